"""Argument checks that the metrics share."""

from __future__ import annotations

from torch import Tensor


def check_maps(saliency: Tensor) -> None:
    """Raise a ValueError unless the tensor is (B,1,H,W)."""
    if saliency.ndim != 4 or saliency.shape[1] != 1:
        raise ValueError(f"Expected `saliency` to have shape (B,1,H,W), but got {tuple(saliency.shape)}.")
