"""Metrics of curves: the class score while pixels are replaced in the order of the saliency map."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from optcam_pl.checks import check_choice, check_positive
from optcam_pl.maps import wide
from optcam_pl.metrics.base import ImageMetric, Need
from optcam_pl.metrics.functional.perturbation import Area, aopc_score, curve_area, patch_count

Output = Literal["probability", "logit"]
CurveTarget = Literal["predicted", "explained"]

_NORMAL_95 = 1.959964


class CurveMetric(ImageMetric):
    """One number per image, computed from a curve, and the mean curve of all images.

    Args:
        points: T, number of points of a curve.
        output: which score of the network the curves contain, "probability" (shown in percent) or "logit" (unchanged).
        kwargs: of `torchmetrics.Metric`.
    """

    unit: str = "%"
    axis: str = "pixels replaced, %"
    curve_total: Tensor
    curve_squares: Tensor

    def __init__(self, points: int, output: Output = "probability", **kwargs: Any) -> None:
        check_choice("output", output, Output)
        super().__init__(**kwargs)
        self.points, self.output = points, output
        if output == "logit":
            self.unit = ""
        self.add_state("curve_total", torch.zeros(points), dist_reduce_fx="sum")
        self.add_state("curve_squares", torch.zeros(points), dist_reduce_fx="sum")

    @abstractmethod
    def curves(self, *args: Any, **kwargs: Any) -> Tensor:
        """The curves (B,T) in the metric's unit, from the evidence of `score`."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Add B images and their curves; takes the arguments of `score`."""
        self.accumulate(self.score(*args, **kwargs), self.curves(*args, **kwargs))

    def accumulate(self, scores: Tensor, curves: Tensor | None = None) -> None:
        """Add the scores (B,) of B images and, for the mean curve, their curves (B,T) in the metric's unit."""
        super().accumulate(scores)
        if curves is not None:
            kept = curves.detach()[~scores.isnan()].to(self.total)
            self.curve_total = self.curve_total.to(kept) + kept.sum(0)
            self.curve_squares = self.curve_squares.to(kept) + kept.square().sum(0)

    def scaled(self, curve: Tensor) -> Tensor:
        """Curves (B,T) in the metric's unit and at least float32, after checking their shape."""
        if curve.ndim != 2 or curve.shape[1] != self.points:
            raise ValueError(
                f"Expected curves of shape (B,{self.points}) for {self.key}, but got {tuple(curve.shape)}."
            )
        return 100 * wide(curve) if self.output == "probability" else wide(curve)

    def curve(self) -> tuple[Tensor, Tensor]:
        """The mean curve (T,) of the images given to `update` in all processes, and half its 95 % band (T,).

        This is a collective operation: if there are several processes, each of them must call it. The band is that of a
        normal mean; NaN for fewer than two images.
        """
        with self.sync_context():
            mean = self.curve_total / self.count
            variance = (self.curve_squares / self.count - mean.square()).clamp(min=0)
            return mean, _NORMAL_95 * (variance / (self.count - 1)).sqrt()

    @abstractmethod
    def positions(self) -> Tensor:
        """The positions of the curve's points on its axis, (T,)."""

    def plot_curve(self, ax: Any = None, label: str | None = None, curve: tuple[Tensor, Tensor] | None = None) -> Any:
        """Draw a mean curve with its band.

        Args:
            ax: matplotlib axis to draw on; None creates a figure.
            label: the curve's name; None means the metric's name.
            curve: mean (T,) and half its band (T,); None means the metric's own, which is collective, see `curve`.

        Returns:
            The matplotlib figure and axis.
        """
        mean, half = (part.cpu().numpy() for part in (self.curve() if curve is None else curve))
        if ax is None:
            from matplotlib.figure import Figure  # heavy, and not needed for measuring

            ax = Figure(layout="constrained").add_subplot()
        x = self.positions().numpy()
        ax.plot(x, mean, label=label or self.label or self.key)
        ax.fill_between(x, mean - half, mean + half, alpha=0.25)
        ax.set(
            title=self.label or self.key,
            xlabel=self.axis,
            ylabel=f"{self.output}, {self.unit}" if self.unit else self.output,
        )
        ax.legend()
        return ax.figure, ax


class _AreaUnderCurve(CurveMetric):
    """The area under a curve that runs from no pixel replaced to all pixels replaced."""

    conventions = ("steps", "patch", "area", "output", "target")

    def __init__(
        self,
        steps: int = 224,
        output: Output = "probability",
        area: Area = "mean",
        target: CurveTarget = "predicted",
        patch: int = 1,
        **kwargs: Any,
    ) -> None:
        check_positive("steps", steps)
        check_positive("patch", patch)
        check_choice("area", area, Area)
        check_choice("target", target, CurveTarget)
        super().__init__(steps + 1, output, **kwargs)
        self.steps, self.area, self.target, self.patch = steps, area, target, patch

    def needs(self) -> dict[str, Need]:
        """The curve, measured as the conventions say."""
        names = ("steps", "patch", "output", "target")
        return {self.evidence()[0]: {name: getattr(self, name) for name in names}}

    def fits(self, size: tuple[int, int]) -> bool:
        """Whether there are as many pixels (or patches) as steps."""
        return self.steps <= patch_count(size, self.patch)

    def positions(self) -> Tensor:
        """Percent of replaced pixels."""
        return torch.linspace(0, 100, self.points, device="cpu")


class Insertion(_AreaUnderCurve):
    """Insertion, higher is better: the score while the most salient pixels are inserted into a blurred image.

    Petsiuk, Das and Saenko, "RISE", BMVC 2018.

    Args:
        steps: the number of equal steps in which the pixels are inserted.
        output: "probability" (percent) or "logit".
        area: "mean" of all points, or "trapezoid" as in RISE's program.
        target: whether the score is that of the "predicted" class (as in the source and the paper) or of the
            "explained" one.
        patch: side of the squares that are inserted together, in pixels; 1 inserts single pixels.
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> metric = Insertion(steps=2)
        >>> metric.update(insertion_curve=torch.tensor([[0.0, 0.25, 0.5]]))
        >>> metric.compute().item()
        25.0
    """

    key, label = "insertion", "Ins"
    higher_is_better: bool = True

    def score(self, insertion_curve: Tensor) -> Tensor:
        """Area per image, (B,), under its class scores after 0 .. steps steps, (B,steps+1)."""
        return curve_area(self.curves(insertion_curve), self.area)

    def curves(self, insertion_curve: Tensor) -> Tensor:
        """The class scores in the metric's unit, (B,steps+1)."""
        return self.scaled(insertion_curve)


class Deletion(_AreaUnderCurve):
    """Deletion, lower is better: the score while the most salient pixels are removed. See `Insertion`.

    They are replaced by the run's baseline.
    """

    key, label = "deletion", "Del"
    higher_is_better: bool = False

    def score(self, deletion_curve: Tensor) -> Tensor:
        """Area per image, (B,), under its class scores after 0 .. steps steps, (B,steps+1)."""
        return curve_area(self.curves(deletion_curve), self.area)

    def curves(self, deletion_curve: Tensor) -> Tensor:
        """The class scores in the metric's unit, (B,steps+1)."""
        return self.scaled(deletion_curve)


class AOPC(CurveMetric):
    """AOPC, higher is better: the mean fall of the score while the most salient patches are replaced.

    See `functional.aopc_score`. The mean curve is that of the fall.

    Args:
        regions: L, the number of patches that are replaced by the run's baseline.
        output: "probability" (percent) or "logit", of the explained class.
        origin: whether the untouched image counts as a step, as in the source; Quantus leaves it out.
        patch: side of a patch in pixels.
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> metric = AOPC(regions=2)
        >>> metric.update(aopc_curve=torch.tensor([[0.75, 0.5, 0.25]]))
        >>> metric.compute().item()
        37.5
    """

    key, label = "aopc", "AOPC"
    axis = "patches replaced"
    higher_is_better: bool = True
    conventions = ("regions", "patch", "origin", "output")

    def __init__(
        self,
        regions: int = 10,
        output: Output = "probability",
        origin: bool = False,
        patch: int = 14,
        **kwargs: Any,
    ) -> None:
        check_positive("regions", regions)
        check_positive("patch", patch)
        super().__init__(regions + 1, output, **kwargs)
        self.regions, self.origin, self.patch = regions, origin, patch

    def needs(self) -> dict[str, Need]:
        """The curve, measured as the conventions say."""
        return {"aopc_curve": {"regions": self.regions, "patch": self.patch, "output": self.output}}

    def fits(self, size: tuple[int, int]) -> bool:
        """Whether there are as many patches as regions."""
        return self.regions <= patch_count(size, self.patch)

    def positions(self) -> Tensor:
        """Number of replaced patches."""
        return torch.arange(self.points, device="cpu")

    def score(self, aopc_curve: Tensor) -> Tensor:
        """Mean fall per image, (B,), of its class scores after 0 .. regions patches, (B,regions+1)."""
        return aopc_score(self.scaled(aopc_curve), self.origin)

    def curves(self, aopc_curve: Tensor) -> Tensor:
        """The fall of the class scores in the metric's unit, (B,regions+1)."""
        curve = self.scaled(aopc_curve)
        return curve[:, :1] - curve


class _Road(CurveMetric):
    """A mean over percentiles of saliency, each in 1 .. 99; the pixels at or above each percentile are imputed.

    Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML 2022.
    """

    axis = "pixels imputed, %"
    conventions = ("percentiles", "output")

    def __init__(
        self, percentiles: Sequence[int] = (20, 40, 60, 80), output: Output = "probability", **kwargs: Any
    ) -> None:
        if not percentiles or not all(0 < percentile < 100 for percentile in percentiles):
            raise ValueError(f"Expected `percentiles` between 0 and 100, but got {list(percentiles)}.")
        super().__init__(len(percentiles), output, **kwargs)
        self.percentiles = tuple(percentiles)

    def positions(self) -> Tensor:
        """Percent of imputed pixels."""
        return 100 - torch.tensor(self.percentiles, device="cpu")

    def needs(self) -> dict[str, Need]:
        """The curves at the percentiles."""
        return {name: {"percentiles": self.percentiles, "output": self.output} for name in self.evidence()}

    def settings(self) -> dict[str, str | int | float | bool]:
        """The settings, with the percentiles as one string."""
        return {**super().settings(), f"{self.key}_percentiles": " ".join(map(str, self.percentiles))}


class RoadMost(_Road):
    """ROAD, most relevant first, lower is better: the score after the most salient pixels are imputed."""

    key, label = "road_most", "ROAD-M"
    higher_is_better: bool = False

    def score(self, road_most_curve: Tensor) -> Tensor:
        """Mean per image, (B,), of its class score at each percentile, (B,S)."""
        return self.curves(road_most_curve).mean(1)

    def curves(self, road_most_curve: Tensor) -> Tensor:
        """The class scores in the metric's unit, (B,S)."""
        return self.scaled(road_most_curve)


class RoadLeast(_Road):
    """ROAD, least relevant first, higher is better: the score after the least salient pixels are imputed."""

    key, label = "road_least", "ROAD-L"
    higher_is_better: bool = True

    def score(self, road_least_curve: Tensor) -> Tensor:
        """Mean per image, (B,), of its class score at each percentile, (B,S)."""
        return self.curves(road_least_curve).mean(1)

    def curves(self, road_least_curve: Tensor) -> Tensor:
        """The class scores in the metric's unit, (B,S)."""
        return self.scaled(road_least_curve)


class Road(_Road):
    """ROAD, higher is better: half the distance between the curves "least relevant first" and "most relevant first".

    Args:
        percentiles: of saliency, each in 1 .. 99; the pixels at or above it (least first: at or below) are imputed.
        output: "probability" (percent) or "logit".
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> metric = Road(percentiles=(50,))
        >>> metric.update(road_most_curve=torch.tensor([[0.25]]), road_least_curve=torch.tensor([[0.75]]))
        >>> metric.compute().item()
        25.0
    """

    key, label = "road", "ROAD"
    higher_is_better: bool = True

    def score(self, road_most_curve: Tensor, road_least_curve: Tensor) -> Tensor:
        """Mean per image, (B,), of half the difference of its class scores at each percentile, (B,S) both."""
        return self.curves(road_most_curve, road_least_curve).mean(1)

    def curves(self, road_most_curve: Tensor, road_least_curve: Tensor) -> Tensor:
        """Half the difference of the class scores in the metric's unit, (B,S)."""
        return (self.scaled(road_least_curve) - self.scaled(road_most_curve)) / 2
