"""Metrics that compare the class probability before and after the image is masked."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from optcam_pl.maps import Baseline, check_baseline
from optcam_pl.metrics.base import ImageMetric, Need
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

    p = 0 counts as 0, and so does a p that is too small to divide by it.

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


class _HeldOut(_Probability):
    """A metric whose masked image fades into another baseline than the run's, to which no method was fitted.

    Args:
        baseline: "black", "mean", "blur" or an RGB triple, not the run's own; None: blur, or the mean where the run has
            blur.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ValueError: (when measured) it is the run's own baseline.
    """

    conventions = ("baseline",)

    def __init__(self, baseline: Baseline | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.baseline = None if baseline is None else check_baseline(baseline)

    def needs(self) -> dict[str, Need]:
        """p, and o with the other baseline."""
        return {"original": {}, "held_out": {"baseline": self.baseline}}

    def settings(self) -> dict[str, str | int | float | bool]:
        """The baseline in words."""
        named = "another" if self.baseline is None else str(self.baseline)
        return {"score": "probability", f"{self.key}_baseline": named}


class HeldOutDrop(_HeldOut):
    """Average Drop with a held-out baseline; see `AverageDrop` and the class it is one of.

    Opti-CAM maximizes the score of the image masked with the run's baseline, and Average Drop measures that score. Here
    the masked image is one that the method has never seen: the same map, another baseline.

    Example:
        >>> import torch
        >>> metric = HeldOutDrop(baseline="mean")
        >>> metric.update(original=torch.tensor([0.5]), held_out=torch.tensor([0.25]))
        >>> metric.compute().item(), metric.settings()["held_out_drop_baseline"]
        (50.0, 'mean')
    """

    key, label = "held_out_drop", "AD held out"
    higher_is_better: bool = False

    def score(self, original: Tensor, held_out: Tensor) -> Tensor:
        """Percent of its probability that each image loses, (B,)."""
        return average_drop(original, held_out, reduction="none")


class HeldOutGain(_HeldOut):
    """Average Gain with a held-out baseline; see `HeldOutDrop`."""

    key, label = "held_out_gain", "AG held out"
    higher_is_better: bool = True

    def score(self, original: Tensor, held_out: Tensor) -> Tensor:
        """Percent of its missing probability that each image gains, (B,)."""
        return average_gain(original, held_out, reduction="none")


class HeldOutIncrease(_HeldOut):
    """Average Increase with a held-out baseline; see `HeldOutDrop`."""

    key, label = "held_out_increase", "AI held out"
    higher_is_better: bool = True

    def score(self, original: Tensor, held_out: Tensor) -> Tensor:
        """100 for each image whose probability rises, else 0, (B,)."""
        return average_increase(original, held_out, reduction="none")
