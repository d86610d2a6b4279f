"""Metrics of where saliency maps lie. Images without a box are undefined and counted separately.

Evidence: `saliency` (B,1,H,W) in [0,1]; `boxes`, one tensor (n,4) for each of the B images, x0 y0 x1 y1 in pixels of
the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from optcam_pl.checks import check_choice, check_positive
from optcam_pl.metrics.base import ImageMetric
from optcam_pl.metrics.functional.components import Connectivity
from optcam_pl.metrics.functional.localization import (
    Contours,
    Convention,
    box_hits,
    energy_pointing_game,
    localization_error,
    official_metric,
    pixel_average_precision,
    pixel_f1,
    pixel_histograms,
    saliency_metric,
    standard_pointing_game,
)


class _BoxedMap(ImageMetric):
    """A metric of the box around the largest connected component of {S > mean(S)}.

    Args:
        connectivity: 4 or 8, the number of neighbors that can belong to a pixel's component.
        kwargs: of `torchmetrics.Metric`.
    """

    unit: str = "%"
    higher_is_better: bool = False
    conventions = ("connectivity",)

    def __init__(self, connectivity: Connectivity = 8, **kwargs: Any) -> None:
        check_choice("connectivity", connectivity, Connectivity)
        super().__init__(**kwargs)
        self.connectivity = connectivity


class LocalizationError(_BoxedMap):
    """LE in percent, lower is better; see `functional.localization_error`.

    Example:
        >>> import torch
        >>> metric = LocalizationError()
        >>> metric.update(torch.tensor([[[[0.0, 1.0, 0.0, 0.0]]]]), [torch.tensor([[1.0, 0.0, 3.0, 1.0]])])
        >>> metric.compute().item()
        50.0
    """

    key, label = "localization_error", "LE"

    def score(self, saliency: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Percent per image, (B,)."""
        return localization_error(saliency, boxes, self.connectivity)


class OfficialMetric(_BoxedMap):
    """OM in percent, lower is better: LE, and 100 if the class is wrong; see `functional.official_metric`.

    An image without a label is undefined.
    """

    key, label = "official_metric", "OM"

    def score(self, saliency: Tensor, boxes: Sequence[Tensor], predicted: Tensor, target: Tensor) -> Tensor:
        """Percent per image, (B,); `predicted` and `target` (B,) are the network's class and the label's."""
        return official_metric(saliency, boxes, predicted, target, self.connectivity)


class SaliencyMetric(_BoxedMap):
    """SM, lower is better: small boxes and certain networks; see `functional.saliency_metric`."""

    key, label, unit = "saliency_metric", "SM", ""

    def score(self, saliency: Tensor, original: Tensor) -> Tensor:
        """Nats per image, (B,); `original` (B,) is the class probability of the whole image."""
        return saliency_metric(saliency, original, self.connectivity)


class PixelF1(ImageMetric):
    """F1 of the map's pixels and the boxes' in percent, higher is better; see `functional.pixel_f1`."""

    key, label, unit = "pixel_f1", "F1", "%"
    higher_is_better: bool = True

    def score(self, saliency: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Percent per image, (B,)."""
        return pixel_f1(saliency, boxes)


class EnergyPointingGame(ImageMetric):
    """EP in percent, higher is better: the share of the map in the boxes; see `functional.energy_pointing_game`."""

    key, label, unit = "energy_pointing_game", "EP", "%"
    higher_is_better: bool = True

    def score(self, saliency: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Percent per image, (B,)."""
        return energy_pointing_game(saliency, boxes)


class StandardPointingGame(ImageMetric):
    """SP in percent, higher is better: is the maximum in a box; see `functional.standard_pointing_game`.

    Args:
        tolerance: how far the maximum may lie from a box, in pixels.
        kwargs: of `torchmetrics.Metric`.
    """

    key, label, unit = "standard_pointing_game", "SP", "%"
    higher_is_better: bool = True
    conventions = ("tolerance",)

    def __init__(self, tolerance: float = 0.0, **kwargs: Any) -> None:
        if not tolerance >= 0:
            raise ValueError(f"Expected `tolerance` to be a number of pixels, 0 or more, but got {tolerance}.")
        super().__init__(**kwargs)
        self.tolerance = tolerance

    def score(self, saliency: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """100 or 0 per image, (B,)."""
        return standard_pointing_game(saliency, boxes, self.tolerance)


class BoxAccuracy(ImageMetric):
    """BA in percent, higher is better: MaxBoxAccV2, the mean over IoU 0.3, 0.5, 0.7, each at its best threshold.

    The best threshold is chosen over all images. Therefore a score is a hit or a miss for every IoU and threshold; see
    `functional.box_hits`. With convention "wsol" and all contours it equals MaxBoxAccV2 of the authors' program.

    Args:
        thresholds: number of thresholds between 0 and 1.
        convention: "pixels" or "wsol": how boxes follow from a thresholded map.
        contours: the "largest" box or "all" of them.
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = BoxAccuracy(thresholds=10)
        >>> metric.update(torch.tensor([[[[0.0, 1.0, 0.2, 0.0]]]]), [torch.tensor([[1.0, 0.0, 3.0, 1.0]])])
        >>> metric.compute().item()
        100.0
    """

    key, label, unit = "box_accuracy", "BA", "%"
    higher_is_better: bool = True
    conventions = ("thresholds", "convention", "contours")
    ious: ClassVar[tuple[float, ...]] = (0.3, 0.5, 0.7)

    def __init__(
        self,
        thresholds: int = 100,
        convention: Convention = "pixels",
        contours: Contours = "largest",
        **kwargs: Any,
    ) -> None:
        check_positive("thresholds", thresholds)
        check_choice("convention", convention, Convention)
        check_choice("contours", contours, Contours)
        super().__init__(shape=(len(self.ious) * thresholds,), **kwargs)
        self.thresholds, self.convention, self.contours = thresholds, convention, contours

    @classmethod
    def of_means(cls, means: Tensor) -> Tensor:
        """Share of hits (..., D*E) -> percent (...): the best threshold of each IoU, averaged."""
        return 100 * means.reshape(*means.shape[:-1], len(cls.ious), -1).amax(-1).mean(-1)

    def score(self, saliency: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Hits of each image, (B,D*E) of 0 and 1: all thresholds for each IoU."""
        return box_hits(
            saliency,
            boxes,
            ious=self.ious,
            thresholds=self.thresholds,
            convention=self.convention,
            contours=self.contours,
        )


class MaxBoxAccuracy(BoxAccuracy):
    """MaxBoxAcc in percent, higher is better: hits for IoU 0.5 at its best threshold; see `BoxAccuracy`."""

    key, label = "max_box_accuracy", "MaxBoxAcc"
    ious = (0.5,)


class PixelAveragePrecision(ImageMetric):
    """PxAP in percent, higher is better, for datasets with object masks; see `functional.pixel_average_precision`.

    The pixels of all images form one curve: a score is a histogram, and an image with more pixels counts more.

    Args:
        thresholds: number of bins.
        kwargs: of `torchmetrics.Metric`.
    """

    key, label, unit = "pixel_average_precision", "PxAP", "%"
    higher_is_better: bool = True
    conventions = ("thresholds",)

    def __init__(self, thresholds: int = 100, **kwargs: Any) -> None:
        check_positive("thresholds", thresholds)
        super().__init__(shape=(2 * (thresholds + 1),), **kwargs)
        self.thresholds = thresholds

    @classmethod
    def of_means(cls, means: Tensor) -> Tensor:
        """Mean histogram (..., 2*(E+1)) -> percent (...)."""
        return pixel_average_precision(means)

    def score(self, saliency: Tensor, mask: Tensor) -> Tensor:
        """Histograms (B,2*(E+1)), object then background; `mask` (B,H,W): 1 object, 0 background, others ignored."""
        return pixel_histograms(saliency, mask, self.thresholds)
