"""From scores to the probabilities p and o that metrics compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from optcam_pl.checks import check_choice
from optcam_pl.network.plain import described

if TYPE_CHECKING:
    from optcam_pl.network.scores import Scores

NamedLink: TypeAlias = Literal["softmax", "sigmoid", "identity"]
Link: TypeAlias = NamedLink | Callable[[Tensor], Tensor]
"""From scores (B,C) to probabilities (B,C); "identity" says that the scores have none."""


def check_link(link: Any, scores: Scores) -> Link:
    """The link that a classifier uses: the one given, or the scores' own.

    Raises:
        ValueError: an unknown name; a function that is not increasing; softmax over columns that are not classes.
    """
    if link is None:
        return scores.default_link
    if callable(link):
        _check_function(link)
        checked: Link = link
        return checked
    if not isinstance(link, str) or link not in get_args(NamedLink):
        raise ValueError(
            f"Expected `link` to be one of {', '.join(get_args(NamedLink))} or a function, but got {link!r}."
        )
    if link == "softmax" and scores.per_image:
        raise ValueError(
            f"Expected `link` to be sigmoid, identity or a function, as each image has its own column of "
            f"{scores.title}'s scores, over which a softmax means nothing, but got 'softmax'."
        )
    named: NamedLink = check_choice("link", link, NamedLink)
    return named


def _check_function(link: Callable[[Tensor], Tensor]) -> None:
    given = torch.linspace(-4, 4, 9, dtype=torch.float32, device="cpu").view(1, -1)
    found = link(given)
    if not isinstance(found, Tensor) or found.shape != given.shape or not bool((found.diff() >= 0).all()):
        raise ValueError(
            "Expected `link` to be an increasing function of scores (B,C) to probabilities (B,C), but for -4, -3, ... "
            f"4 it gives {found.flatten().tolist() if isinstance(found, Tensor) else found!r}."
        )


def probabilities_of(scores: Tensor, link: Link) -> Tensor:
    """The link's values: what p and o are.

    Args:
        scores: (B,C).
        link: see `Link`.

    Returns:
        (B,C) in [0,1]; for "identity" the scores themselves.

    Raises:
        ValueError: a link of your own leaves [0,1].

    Example:
        >>> z = torch.tensor([[0.0, 0.0]])
        >>> probabilities_of(z, "softmax").tolist(), probabilities_of(z - 1, "identity").tolist()
        ([[0.5, 0.5]], [[-1.0, -1.0]])
        >>> probabilities_of(z, lambda z: (z + 10) / 40).tolist()
        [[0.25, 0.25]]
    """
    if link == "softmax":
        return scores.softmax(1)
    if link == "sigmoid":
        return scores.sigmoid()
    if link == "identity":
        return scores
    assert not isinstance(link, str)
    found = link(scores)
    if bool(((found < 0) | (found > 1)).any()):
        low, high = found.detach().aminmax()
        raise ValueError(
            f"Expected `link` to give probabilities in [0, 1], but for scores from {float(scores.detach().min()):g} to "
            f"{float(scores.detach().max()):g} it gives values from {float(low):g} to {float(high):g}: end it in "
            "`.clamp(0, 1)`."
        )
    return found


def link_name(link: Link) -> str:
    """The link's name, as rows and tables show it."""
    return link if isinstance(link, str) else str(described(link))
