"""Checks that the metrics share, each with its sentence."""

from __future__ import annotations

from torch import Tensor


def check_maps(saliency: Tensor) -> None:
    """Raise a ValueError unless the tensor is (B,1,H,W)."""
    if saliency.ndim != 4 or saliency.shape[1] != 1:
        raise ValueError(f"Expected `saliency` to have shape (B,1,H,W), but got {tuple(saliency.shape)}.")


def wide(values: Tensor) -> Tensor:
    """The tensor in float64 if it is in that, else in float32, whatever precision a network ran in."""
    return values.double() if values.element_size() > 4 else values.float()
