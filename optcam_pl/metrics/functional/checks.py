"""Argument checks that the metrics share."""

from __future__ import annotations

from typing import Any, get_args

from torch import Tensor


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raise a ValueError unless the value is one of a Literal's values."""
    if value not in get_args(choices):
        raise ValueError(
            f"Expected `{name}` to be one of {', '.join(map(repr, get_args(choices)))}, but got {value!r}."
        )


def check_positive(**counts: int) -> None:
    """Raise a ValueError unless all numbers are positive integers."""
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"Expected `{name}` to be a positive integer, but got {count}.")


def check_maps(saliency: Tensor) -> None:
    """Raise a ValueError unless the tensor is (B,1,H,W)."""
    if saliency.ndim != 4 or saliency.shape[1] != 1:
        raise ValueError(f"Expected `saliency` to have shape (B,1,H,W), but got {tuple(saliency.shape)}.")


def wide(values: Tensor) -> Tensor:
    """The tensor in float64 if it has that type, else in float32, no matter in which precision a network ran."""
    return values.double() if values.element_size() > 4 else values.float()
