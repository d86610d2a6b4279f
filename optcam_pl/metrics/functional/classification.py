"""How the probability of a class changes when only what a saliency map shows is left of the image.

All take, for B images, p = `original`, the softmax probability of the class of interest for the whole image, and
o = `masked`, the same for the image masked by its saliency map, both (B,) in [0, 1]. All return percent.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["mean", "none"]


def average_drop(original: Tensor, masked: Tensor, reduction: Reduction = "mean") -> Tensor:
    r"""Average Drop, :math:`AD = \frac{100}{N} \sum_i \frac{[p_i - o_i]_+}{p_i}`; lower is better.

    The share of its confidence that the network loses on average (Chattopadhay et al., "Grad-CAM++", WACV 2018). An
    image with p = 0 has nothing to lose and counts as 0.

    Args:
        original: p, (B,) in [0, 1].
        masked: o, (B,) in [0, 1].
        reduction: "mean" over the images, or "none".

    Returns:
        Percent in [0, 100]: a scalar, or (B,) without reduction; float32, or float64 where an input is.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If shapes differ or a value is not in [0, 1].

    Example:
        >>> average_drop(torch.tensor([0.5, 0.8, 0.0]), torch.tensor([0.25, 0.9, 0.5]), reduction="none")
        tensor([50.,  0.,  0.])
        >>> average_drop(torch.tensor([0.5, 0.8]), torch.tensor([0.25, 0.9]))
        tensor(25.)
    """
    p, o = _probabilities(original=original, masked=masked)
    return _reduce(100 * (p - o).clamp(min=0) / p.where(p > 0, 1), reduction)


def average_gain(original: Tensor, masked: Tensor, reduction: Reduction = "mean") -> Tensor:
    r"""Average Gain, :math:`AG = \frac{100}{N} \sum_i \frac{[o_i - p_i]_+}{1 - p_i}`; higher is better.

    The share of its missing confidence that the network gains on average: the symmetric partner of Average Drop (Zhang
    et al., "Opti-CAM", CVIU 2024, section 4). An image with p = 1 has nothing to gain and counts as 0.

    Args:
        original: p, (B,) in [0, 1].
        masked: o, (B,) in [0, 1].
        reduction: "mean" over the images, or "none".

    Returns:
        Percent in [0, 100]: a scalar, or (B,) without reduction; float32, or float64 where an input is.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If shapes differ or a value is not in [0, 1].

    Example:
        >>> average_gain(torch.tensor([0.5, 0.8, 1.0]), torch.tensor([0.75, 0.7, 1.0]), reduction="none")
        tensor([50.,  0.,  0.])
    """
    p, o = _probabilities(original=original, masked=masked)
    return _reduce(100 * (o - p).clamp(min=0) / (1 - p).where(p < 1, 1), reduction)


def average_increase(original: Tensor, masked: Tensor, reduction: Reduction = "mean") -> Tensor:
    r"""Average Increase, :math:`AI = \frac{100}{N} \sum_i 1[p_i < o_i]`; higher is better.

    The share of images of which the network is strictly more certain after masking (Chattopadhay et al., "Grad-CAM++",
    WACV 2018, where it is called Increase in Confidence). Bfloat16 inputs are compared as they are: a change that their
    eight bits do not show is no increase.

    Args:
        original: p, (B,) in [0, 1].
        masked: o, (B,) in [0, 1].
        reduction: "mean" over the images, or "none".

    Returns:
        Percent: a scalar, or (B,) of 0 and 100 without reduction; float32, or float64 where an input is.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If shapes differ or a value is not in [0, 1].

    Example:
        >>> average_increase(torch.tensor([0.5, 0.8, 1.0]), torch.tensor([0.75, 0.7, 1.0]), reduction="none")
        tensor([100.,   0.,   0.])
    """
    p, o = _probabilities(original=original, masked=masked)
    return _reduce(100 * (p < o).to(p.dtype), reduction)


def _probabilities(**named: Tensor) -> list[Tensor]:
    """The arguments in their common wide dtype, after checking that they are probabilities of the same images."""
    for name, value in named.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = f"dtype {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"Expected `{name}` to be a floating-point tensor, but got {got}.")
        if value.ndim != 1:
            raise ValueError(f"Expected `{name}` to have shape (B,), but got {tuple(value.shape)}.")
        wrong = ~((value >= 0) & (value <= 1))  # written so that NaN is wrong, too
        if wrong.any():
            raise ValueError(
                f"Expected `{name}` to hold probabilities in [0, 1], but got {value[wrong][0].item():g} "
                f"at index {int(wrong.nonzero()[0])}."
            )
    shapes = {name: tuple(value.shape) for name, value in named.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"Expected one probability per image in every argument, but got the shapes {shapes}.")
    wide = torch.float64 if any(value.dtype == torch.float64 for value in named.values()) else torch.float32
    return [value.to(wide) for value in named.values()]


def _reduce(scores: Tensor, reduction: Reduction) -> Tensor:
    if reduction not in ("mean", "none"):
        raise ValueError(f"Expected `reduction` to be 'mean' or 'none', but got {reduction!r}.")
    return scores.mean() if reduction == "mean" else scores
