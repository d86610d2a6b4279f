"""The arguments of a classifier: words of the command line, and checks with clear messages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from optcam_pl.network.own import is_import_path
from optcam_pl.network.weights import Network
from optcam_pl.private import uncompiled

Flags: TypeAlias = "tuple[list[tuple[nn.Module, bool]], list[tuple[nn.Parameter, bool]]]"


def flags_of(network: nn.Module) -> Flags:
    """`training` of each module, `requires_grad` of each parameter."""
    modules = [(module, module.training) for module in network.modules()]
    return modules, [(parameter, parameter.requires_grad) for parameter in network.parameters()]


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


def check_color(name: str, values: float | Sequence[float]) -> list[float]:
    """`mean` or `std` as three numbers.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(values, (int, float)) and not isinstance(values, bool):
        values = (values,) * 3
    if not isinstance(values, Iterable) or len(numbers := [float(value) for value in values]) != 3:
        raise ValueError(f"Expected `{name}` to be three numbers, one a channel, or one for all, but got {values!r}.")
    if name == "mean" and not all(0 <= number <= 1 for number in numbers):
        raise ValueError(f"Expected `mean` to be three numbers in [0, 1], like the pixels, but got {numbers}.")
    if name == "std" and not all(0 < number < math.inf for number in numbers):
        raise ValueError(f"Expected `std` to be three positive numbers, but got {numbers}.")
    return numbers


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
