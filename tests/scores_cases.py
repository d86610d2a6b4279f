"""Tiny networks whose outputs are not class logits; configs name them by import path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Ending(nn.Module):
    """Two convolutions, a mean over places, a linear layer, and a last function of its numbers."""

    def __init__(self, outputs: int, end: Callable[[Tensor], Any] = lambda z: z, channels: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.features = nn.Sequential(
                nn.Conv2d(channels, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU()
            )
            self.head = nn.Linear(6, outputs)
            nn.init.normal_(self.head.weight, std=3.0)
        self.end = end

    def forward(self, image: Tensor) -> Any:
        """What `end` makes of the numbers (B,outputs)."""
        return self.end(self.head(self.features(image).mean((2, 3))))


def one_logit() -> nn.Module:
    """(B,1)."""
    return Ending(1)


def two_heads() -> nn.Module:
    """A dict of shape (B,2) and color (B,3)."""
    return Ending(5, lambda z: {"shape": z[:, :2], "color": z[:, 2:]})


def three_logits() -> nn.Module:
    """(B,3)."""
    return Ending(3)


def lead(output: Tensor) -> Tensor:
    """(B,1): the largest logit minus the second."""
    best = output.topk(2, dim=1).values
    return best[:, :1] - best[:, 1:]
