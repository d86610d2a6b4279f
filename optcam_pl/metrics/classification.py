"""Metrics of the class probability before and after masking the image."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from optcam_pl.metrics.base import ImageMetric
from optcam_pl.metrics.functional.classification import average_drop, average_gain, average_increase


class _MaskedProbability(ImageMetric):
    """A percentage made of p = `original` and o = `masked`, (B,) probabilities in [0, 1]."""

    unit: ClassVar[str] = "%"
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 100.0

    @abstractmethod
    def score(self, original: Tensor, masked: Tensor) -> Tensor:
        """Percent per image, (B,)."""

    def update(self, original: Tensor, masked: Tensor) -> None:
        """Add B images: the class probability of the whole and of the masked image, both (B,) in [0, 1]."""
        self.accumulate(self.score(original, masked))

    def settings(self) -> dict[str, str | int | float | bool]:
        """What the metric compares: softmax probabilities, not logits."""
        return {"score": "probability"}


class AverageDrop(_MaskedProbability):
    """Average Drop (AD) in percent, lower is better; see `functional.average_drop`. p = 0 counts as 0.

    Example:
        >>> import torch
        >>> metric = AverageDrop()
        >>> metric.update(original=torch.tensor([0.5, 0.8]), masked=torch.tensor([0.25, 0.9]))
        >>> round(metric.compute().item(), 4)
        25.0
    """

    key = "average_drop"
    label = "AD"
    higher_is_better: bool = False

    def score(self, original: Tensor, masked: Tensor) -> Tensor:
        """Percent of its probability that each image loses, (B,)."""
        return average_drop(original, masked, reduction="none")


class AverageGain(_MaskedProbability):
    """Average Gain (AG) in percent, higher is better; see `functional.average_gain`. p = 1 counts as 0.

    Example:
        >>> import torch
        >>> metric = AverageGain()
        >>> metric.update(original=torch.tensor([0.5, 0.75]), masked=torch.tensor([0.25, 1.0]))
        >>> round(metric.compute().item(), 4)
        50.0
    """

    key = "average_gain"
    label = "AG"
    higher_is_better: bool = True

    def score(self, original: Tensor, masked: Tensor) -> Tensor:
        """Percent of its missing probability that each image gains, (B,)."""
        return average_gain(original, masked, reduction="none")


class AverageIncrease(_MaskedProbability):
    """Average Increase (AI) in percent, higher is better; see `functional.average_increase`.

    Example:
        >>> import torch
        >>> metric = AverageIncrease()
        >>> metric.update(original=torch.tensor([0.5, 0.75]), masked=torch.tensor([0.25, 1.0]))
        >>> round(metric.compute().item(), 4)
        50.0
    """

    key = "average_increase"
    label = "AI"
    higher_is_better: bool = True

    def score(self, original: Tensor, masked: Tensor) -> Tensor:
        """100 for each image whose probability rises, else 0, (B,)."""
        return average_increase(original, masked, reduction="none")
