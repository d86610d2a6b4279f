"""The arguments of a classifier: words of the command line, and checks with clear messages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from optcam_pl.checks import check_positive
from optcam_pl.network.own import is_import_path
from optcam_pl.network.weights import Network
from optcam_pl.private import uncompiled


def from_words(network: Network | None, weights: str | Path | None) -> tuple[Network | None, str | Path | None]:
    """Interpret the command line's words for "nothing" in network and weights, and uncompile the network."""
    # jsonargparse passes on a nested `null` of the command line as the text "None".
    network = None if isinstance(network, str) and network == "None" else network
    weights = None if weights in ("random", "None") else weights
    return (uncompiled(network) if isinstance(network, nn.Module) else network), weights


def check_network(network: Network | None, stored: Mapping[str, Any], weights: str | Path | None) -> Network:
    """Check that the network is the one that the checkpoint was made from, and return it."""
    if network is None:
        if not stored:
            raise ValueError("Expected `network` to be given, unless `weights` is a checkpoint of ClassificationTask.")
        network = stored.get("network")
        if is_import_path(network):  # a file must not name code to run
            raise ValueError(
                f"The weights in {weights} are of your own network {network!r}: name it as `network`, too. What a file "
                "names is never imported."
            )
    name = network if isinstance(network, str) else type(network).__name__
    if stored and stored.get("network") != name:
        raise ValueError(f"The weights in {weights} are of {stored.get('network')}, but `network` is {name}.")
    return network  # type: ignore[return-value]  # other values from a file are refused with a message


def channels_of(channels: int | None, mean: object, std: object, known: Sequence[float]) -> int:
    """The number of the images' channels: as given, else the length of `mean` or `std`, else that of the known mean.

    Raises:
        ValueError: they contradict each other.

    Example:
        >>> channels_of(None, [0.5] * 4, 0.2, (0, 0, 0)), channels_of(1, None, None, (0, 0, 0))
        (4, 1)
    """
    if channels is not None:
        check_positive("channels", channels)
    lengths = {"channels": channels}
    lengths |= {key: len(v) for key, v in (("mean", mean), ("std", std)) if isinstance(v, (list, tuple, Tensor))}
    stated = {key: length for key, length in lengths.items() if length is not None}
    if len(set(stated.values())) > 1:
        said = ", ".join(f"`{key}` says {length}" for key, length in stated.items())
        raise ValueError(f"Expected `mean` and `std` to have one number for each channel, but {said}.")
    return next(iter(stated.values()), len(known))


def check_color(name: str, values: float | Sequence[float], channels: int = 3) -> list[float]:
    """`mean` or `std` as one number for each channel.

    Raises:
        ValueError: it is something else.
    """
    number = {1: "one number", 2: "two numbers", 3: "three numbers"}.get(channels, f"{channels} numbers")
    if isinstance(values, (int, float)) and not isinstance(values, bool):
        values = (values,) * channels
    if not isinstance(values, Iterable) or len(numbers := [float(value) for value in values]) != channels:
        raise ValueError(f"Expected `{name}` to be {number}, one a channel, or one for all, but got {values!r}.")
    if name == "mean" and not all(0 <= number <= 1 for number in numbers):
        raise ValueError(f"Expected `mean` to be {number} in [0, 1], like the pixels, but got {numbers}.")
    if name == "std" and not all(0 < number < math.inf for number in numbers):
        raise ValueError(f"Expected `std` to be {number.replace(' ', ' positive ')}, but got {numbers}.")
    return numbers


def check_rgb(chosen: Sequence[int] | None, channels: int) -> tuple[int, ...] | None:
    """`rgb_channels`, three of the channels.

    Raises:
        ValueError: it is something else.
    """
    if chosen is None:
        return None
    if len(chosen) != 3 or not all(isinstance(c, int) and 0 <= c < channels for c in chosen):
        raise ValueError(f"Expected `rgb_channels` to be three channels in 0..{channels - 1}, but got {chosen!r}.")
    return tuple(chosen)


def check_size(size: int | Sequence[int]) -> tuple[int, int]:
    """`input_size` as (H,W).

    Raises:
        ValueError: it is something else.
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"Expected `input_size` to be one or two positive integers, but got {size!r}.")
    return sides


def check_fraction(fraction: float) -> float:
    """`crop_fraction` in (0,1].

    Raises:
        ValueError: it is something else.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"Expected `crop_fraction` to be in (0, 1], but got {fraction!r}.")
    return float(fraction)
