"""Metrics that compare the class probability before and after the image is masked."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from optcam_pl.metrics.base import ImageMetric
from optcam_pl.metrics.functional.classification import (
    average_drop,
    average_drop_deletion,
    average_gain,
    average_increase,
)


class _Probability(ImageMetric):
    """A percentage computed from softmax probabilities (B,) in [0, 1] of the class of interest."""

    unit: str = "%"

    def settings(self) -> dict[str, str | int | float | bool]:
        """The metric's own settings, and the note that it compares probabilities, not logits."""
        return {"score": "probability", **super().settings()}


class AverageDrop(_Probability):
    """Average Drop (AD) in percent, lower is better; see `functional.average_drop`. p = 0 counts as 0.

    Example:
        >>> import torch
        >>> metric = AverageDrop()
        >>> metric.update(original=torch.tensor([0.5, 0.8]), masked=torch.tensor([0.25, 0.9]))
        >>> round(metric.compute().item(), 4)
        25.0
    """

    key, label = "average_drop", "AD"
    higher_is_better: bool = False

    def score(self, original: Tensor, masked: Tensor) -> Tensor:
        """Percent of its probability that each image loses, (B,)."""
        return average_drop(original, masked, reduction="none")


class AverageGain(_Probability):
    """Average Gain (AG) in percent, higher is better; see `functional.average_gain`. p = 1 counts as 0.

    Example:
        >>> import torch
        >>> metric = AverageGain()
        >>> metric.update(original=torch.tensor([0.5, 0.75]), masked=torch.tensor([0.25, 1.0]))
        >>> round(metric.compute().item(), 4)
        50.0
    """

    key, label = "average_gain", "AG"
    higher_is_better: bool = True

    def score(self, original: Tensor, masked: Tensor) -> Tensor:
        """Percent of its missing probability that each image gains, (B,)."""
        return average_gain(original, masked, reduction="none")


class AverageIncrease(_Probability):
    """Average Increase (AI) in percent, higher is better; see `functional.average_increase`.

    Example:
        >>> import torch
        >>> metric = AverageIncrease()
        >>> metric.update(original=torch.tensor([0.5, 0.75]), masked=torch.tensor([0.25, 1.0]))
        >>> round(metric.compute().item(), 4)
        50.0
    """

    key, label = "average_increase", "AI"
    higher_is_better: bool = True

    def score(self, original: Tensor, masked: Tensor) -> Tensor:
        """100 for each image whose probability rises, else 0, (B,)."""
        return average_increase(original, masked, reduction="none")


class AverageDropDeletion(_Probability):
    """Average Drop in Deletion (ADD) in percent, higher is better; see `functional.average_drop_deletion`.

    Args:
        signed: whether a rise counts as a negative drop, as in the source, or as 0.
        kwargs: of `torchmetrics.Metric`.
    """

    key, label = "average_drop_deletion", "ADD"
    higher_is_better: bool = True
    conventions = ("signed",)

    def __init__(self, signed: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.signed = signed

    def score(self, original: Tensor, deleted: Tensor) -> Tensor:
        """Percent of its probability that each image loses without its salient part, (B,)."""
        return average_drop_deletion(original, deleted, self.signed, reduction="none")
