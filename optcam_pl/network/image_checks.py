"""Checks of a classifier's settings for images: colors, size, crop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def check_color(name: str, values: float | Sequence[float]) -> list[float]:
    """Three numbers, one a channel: a `mean` in [0,1] or a positive `std`."""
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
    """(H,W) of positive integers."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"Expected `input_size` to be one or two positive integers, but got {size!r}.")
    return sides


def check_fraction(fraction: float) -> float:
    """A number in (0,1]."""
    if not 0 < fraction <= 1:
        raise ValueError(f"Expected `crop_fraction` to be in (0, 1], but got {fraction!r}.")
    return float(fraction)
