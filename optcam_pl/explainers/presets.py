"""How Opti-CAM climbs its objective: the paper's settings, and those that reach the same quality in fewer passes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Preset: TypeAlias = Literal["paper", "fast"]
Schedule: TypeAlias = Literal["constant", "linear"]
Start: TypeAlias = Literal["uniform", "balanced"]


@dataclass(frozen=True)
class Climb:
    """What a preset fills in where the user gives nothing.

    Attributes:
        max_iter: the largest number of steps T.
        lr: Adam's learning rate.
        betas: Adam's decay rates of the gradient's mean and of its square's.
        schedule: the factor of step t = 0 ... T-1: 1 ("constant") or 1 - t/T ("linear").
        start: where u begins: 0 ("uniform") or `balanced`.
    """

    max_iter: int
    lr: float
    betas: tuple[float, float]
    schedule: Schedule
    start: Start

    def items(self) -> dict[str, object]:
        """The attributes by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


PRESETS: dict[Preset, Climb] = {
    "paper": Climb(max_iter=100, lr=0.1, betas=(0.9, 0.999), schedule="constant", start="uniform"),
    # Chosen by benchmarks/studies/fewer_passes.py.
    "fast": Climb(max_iter=20, lr=1.0, betas=(0.5, 0.5), schedule="linear", start="balanced"),
}


def factor(schedule: Schedule, t: int, steps: int) -> float:
    """The part of step t that is taken.

    >>> [factor("linear", t, 4) for t in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    return 1.0 if schedule == "constant" else 1 - t / steps


def balanced(features: Tensor) -> Tensor:
    """The logits u with which every channel brings the same amount into the map: ``u_k = -log(mean A_k - min A_k)``.

    In the uniform combination a few strong channels make the whole map. A channel's amount is counted from its minimum,
    because a constant does not change a map that is normalized by its range. It counts as at least a thousandth of the
    image's largest; a constant channel, which brings nothing at any weight, gets the lowest logit.

    For a normalizer that ignores the scale of a map, the same climb from u = 0 with each channel divided by its amount
    would see the same maps. The maps that can be reached stay the same, and so do the weights' meaning and sum.

    Args:
        features: (B,K,h,w).

    Returns:
        (B,K), at least float32.

    >>> balanced(torch.tensor([[[[0.0, 2.0]], [[1.0, 5.0]], [[3.0, 3.0]]]])).exp()
    tensor([[1.0000, 0.5000, 0.5000]])
    """
    flat = features.detach().flatten(2)
    amount = flat.mean(2) - flat.amin(2)
    largest = amount.amax(1, keepdim=True)
    amount = torch.where(amount > 1e-4 * largest, amount, largest).maximum(1e-3 * largest)
    # An image whose channels are all constant, or not finite, has no better start than the uniform one.
    return torch.where((amount > 0) & amount.isfinite(), -amount.log(), 0.0)
