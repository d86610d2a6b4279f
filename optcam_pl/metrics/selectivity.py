"""Metrics against selectivity: Average Drop, Gain and Increase when the map is raised to the power of alpha.

Zhang et al., CVIU 2024, figure A4. alpha < 1 spreads a map out, alpha > 1 concentrates it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from optcam_pl.metrics.base import Need
from optcam_pl.metrics.functional.classification import average_drop, average_gain, average_increase
from optcam_pl.metrics.perturbation import CurveMetric

ALPHAS = (0.01, 0.05, 0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
"""The paper's values."""


class _Selectivity(CurveMetric):
    """A metric at each of several alphas. Its value is their mean; the curve is the main result.

    Args:
        alphas: the powers, each positive.
        kwargs: of `torchmetrics.Metric`.
    """

    axis = "alpha"
    conventions = ("alphas",)

    def __init__(self, alphas: Sequence[float] = ALPHAS, **kwargs: Any) -> None:
        if not alphas or not all(0 < alpha < float("inf") for alpha in alphas):
            raise ValueError(f"Expected `alphas` to be positive numbers, but got {list(alphas)}.")
        super().__init__(len(alphas), **kwargs)
        self.alphas = tuple(float(alpha) for alpha in alphas)

    @staticmethod
    @abstractmethod
    def of_probabilities() -> Callable[..., Tensor]:
        """The metric as a function of p and o."""

    def needs(self) -> dict[str, Need]:
        """The curve at the alphas."""
        return {"original": {}, "selectivity_curve": {"alphas": self.alphas}}

    def settings(self) -> dict[str, str | int | float | bool]:
        """The alphas as one string."""
        return {f"{self.key}_alphas": " ".join(f"{alpha:g}" for alpha in self.alphas)}

    def positions(self) -> Tensor:
        """The alphas."""
        return torch.tensor(self.alphas, device="cpu")

    def curves(self, original: Tensor, selectivity_curve: Tensor) -> Tensor:
        """Percent for each image at each alpha, (B,A)."""
        self.scaled(selectivity_curve)  # checks its shape
        p = original.repeat_interleave(self.points)
        return self.of_probabilities()(p, selectivity_curve.flatten(), reduction="none").view(-1, self.points)

    def score(self, original: Tensor, selectivity_curve: Tensor) -> Tensor:
        """Mean over alpha, (B,), of p (B,) and the probability of the image masked by S^alpha, (B,A)."""
        return self.curves(original, selectivity_curve).mean(1)


class SelectivityDrop(_Selectivity):
    """Average Drop against alpha, in percent, lower is better.

    Example:
        >>> metric = SelectivityDrop(alphas=[1, 2])
        >>> metric.update(torch.tensor([0.5]), torch.tensor([[0.25, 0.5]]))
        >>> metric.curve()[0].tolist(), metric.compute().item()
        ([50.0, 0.0], 25.0)
    """

    key, label = "selectivity_drop", "AD^a"
    higher_is_better: bool = False

    @staticmethod
    def of_probabilities() -> Callable[..., Tensor]:
        """`functional.average_drop`."""
        return average_drop


class SelectivityGain(_Selectivity):
    """Average Gain against alpha, in percent, higher is better. See `SelectivityDrop`."""

    key, label = "selectivity_gain", "AG^a"
    higher_is_better: bool = True

    @staticmethod
    def of_probabilities() -> Callable[..., Tensor]:
        """`functional.average_gain`."""
        return average_gain


class SelectivityIncrease(_Selectivity):
    """Average Increase against alpha, in percent, higher is better. See `SelectivityDrop`."""

    key, label = "selectivity_increase", "AI^a"
    higher_is_better: bool = True

    @staticmethod
    def of_probabilities() -> Callable[..., Tensor]:
        """`functional.average_increase`."""
        return average_increase
