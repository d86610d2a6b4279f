"""The base class of every metric: the mean over images of each image's score."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor
from torchmetrics import Metric

from optcam_pl.metric_info import MetricInfo
from optcam_pl.private import plot_values, state_defaults

Need: TypeAlias = "Mapping[str, Any] | tuple[Callable[..., Any], Mapping[str, Any]]"
"""The options of a named probe, or your own probe (a function of `Probes`) with its options."""


_PROBABILITIES = frozenset({"original", "masked", "deleted", "held_out", "selectivity_curve"})


class ImageMetric(Metric, ABC):
    """The mean over images of a score that each image has by itself, or a number computed from several such means.

    A metric takes numbers and tensors, never a network. Its life has three steps:

    1. `score(**evidence)` turns the evidence of B images into B scores (B,) or, for numbers that are computed from
       several means, (B,k); NaN where an image has no defined score;
    2. `update(**evidence)`, which takes the arguments of `score`, adds the scores to the states `total`, `count` and
       `undefined`. All states are sums, which add up over batches and processes, even if a process saw no image at all;
    3. `compute()` returns `of_means(total / count)`; without any defined score that is NaN.

    `reduce` computes the same number from stored scores, so that a report needs neither tensors nor states of a run.

    Your own metric is a class with a `key` and a `score`. The names of the parameters of `score` are the evidence: each
    is a named probe of `Probes`, unless `needs` brings a function. That function gets the `Probes` of the batch
    (`image`, `logits`, `explanation`, `classifier`, `batch`, `original`, `masked`, ...) and the options:

        >>> def edges(probes, threshold):  # (B,1,H,W): 1 where the image has an edge
        ...     brightness = torch.nn.functional.pad(probes.image.mean(1, keepdim=True), (0, 1))
        ...     return (brightness.diff(dim=3).abs() > threshold).float()
        >>> class EdgeShare(ImageMetric):
        ...     key, label, unit, higher_is_better = "edge_share", "Edges", "%", True
        ...     def needs(self):
        ...         return {"saliency": {}, "edges": (edges, {"threshold": 0.1})}
        ...     def score(self, saliency, edges):
        ...         return 100 * (saliency * edges).flatten(1).sum(1) / saliency.flatten(1).sum(1)
        >>> EdgeShare()(saliency=torch.tensor([[[[1.0, 3.0]]]]), edges=torch.tensor([[[[0.0, 1.0]]]])).item()
        75.0

    Sums are kept in float64 (float32 on Apple's mps, which has no wider type). The states start as float32 zeros and
    are promoted when something is added, so that a change of dtype from outside cannot reduce the precision of later
    sums.

    Collect metrics in a `MetricCollection` with `compute_groups=False`: torchmetrics otherwise merges metrics whose
    states are equal after the first batch and gives one the sums of the other.

    Attributes:
        key: name in rows, reports and tables, for example "average_drop"; it must be a Python identifier.
        label: the short name in a table's header, for example "AD"; "" means the key.
        unit: "%" where the value is in percent, else another unit or "".
        higher_is_better: which direction is better.
        digits: how many decimals tables show; None means 2 for percent and 4 for everything else.
        conventions: names of the attributes on which the number depends, see `settings`.
    """

    key: ClassVar[str]
    label: ClassVar[str] = ""
    unit: str = ""
    digits: int | None = None
    conventions: ClassVar[tuple[str, ...]] = ()
    higher_is_better: bool
    is_differentiable: bool = False
    full_state_update: bool = False

    total: Tensor
    count: Tensor
    undefined: Tensor

    def __init__(self, shape: Sequence[int] = (), **kwargs: Any) -> None:
        """Create the three sums.

        Args:
            shape: () or (k,), the shape of one image's score.
            kwargs: arguments of `torchmetrics.Metric`.

        Raises:
            TypeError: the class has no `key`, or one that is no Python identifier.
            ValueError: a score has several numbers, but the class does not define `of_means`.
        """
        name, key = type(self).__name__, getattr(self, "key", None)
        if not (isinstance(key, str) and key.isidentifier()):
            raise TypeError(f'Expected {name} to have a `key` like "my_metric", its name in rows, but it is {key!r}.')
        if shape and self._takes_the_mean():
            raise ValueError(f"Expected {name} to define `of_means`, as its scores are of shape {tuple(shape)}.")
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(tuple(shape)), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("undefined", torch.tensor(0), dist_reduce_fx="sum")

    @abstractmethod
    def score(self, *args: Any, **kwargs: Any) -> Tensor:
        """Scores (B, *shape) of B images; the names of the parameters say which evidence the metric needs."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Add B images; takes the arguments of `score`."""
        self.accumulate(self.score(*args, **kwargs))

    def _filter_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        """Select the metric's own evidence for a `MetricCollection` (torchmetrics 1.9 would look at `update`)."""
        return {name: kwargs[name] for name in self.evidence() if name in kwargs}

    @classmethod
    def of_means(cls, means: Tensor) -> Tensor:
        """The metric's value from the means of its scores, (..., *shape) -> (...): here the mean itself."""
        return means

    @classmethod
    def _takes_the_mean(cls) -> bool:
        return getattr(cls.of_means, "__func__", None) is getattr(ImageMetric.of_means, "__func__", None)

    @classmethod
    def evidence(cls) -> tuple[str, ...]:
        """Names of the arguments of `score`: a run measures exactly these for this metric."""
        parameters = [*inspect.signature(cls.score).parameters.values()][1:]  # without self
        return tuple(p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))

    def needs(self) -> dict[str, Need]:
        """The evidence by name, each with its named probe's options, or with the metric's own probe and its options.

        Metrics whose probes are the same function with the same options share what it measures. Metrics that share a
        named probe must agree on its options.

        Example:
            >>> from optcam_pl.metrics import Insertion
            >>> Insertion(steps=8).needs()
            {'insertion_curve': {'steps': 8, 'patch': 1, 'output': 'probability', 'target': 'predicted'}}
        """
        return {name: {} for name in self.evidence()}

    @property
    def needs_probability(self) -> bool:
        """Whether the metric compares probabilities, so that scores without a probability have no such number.

        This is so if it needs p, o or what is like them, or a curve of the "probability". Override it in your own
        metric if it takes these and is right for any score.
        """
        needs = self.needs()
        options = [need[1] if isinstance(need, tuple) else need for need in needs.values()]
        return not _PROBABILITIES.isdisjoint(needs) or any(o.get("output") == "probability" for o in options)

    def fits(self, size: tuple[int, int]) -> bool:
        """Whether images of `size` (H,W) are large enough for the metric with its settings: `metrics` "all" asks it."""
        return True

    def describe(self) -> MetricInfo:
        """What a report needs to know about this metric."""
        digits = self.digits if self.digits is not None else 2 if self.unit == "%" else 4
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        aggregate: Literal["mean", "of_means"] = "mean" if self._takes_the_mean() else "of_means"
        return MetricInfo(self.label or self.key, self.unit, self.higher_is_better, digits, path, aggregate)

    def settings(self) -> dict[str, str | int | float | bool]:
        """The conventions that the number depends on, named after the metric, for reports to print beside it."""
        return {f"{self.key}_{name}": getattr(self, name) for name in self.conventions}

    def check_scores(self, scores: Tensor, images: int | None = None) -> Tensor:
        """Check that there is one score of `shape` for each image, and return the scores as floating-point numbers.

        Raises:
            TypeError: they are not a tensor.
            ValueError: they have another shape.
        """
        name = type(self).__name__
        if not isinstance(scores, Tensor):
            raise TypeError(f"Expected `score` of {name} to return a tensor, but got {type(scores).__name__}.")
        if not scores.ndim or scores.shape[1:] != self.total.shape or len(scores) != (images or len(scores)):
            want = (images or "B", *self.total.shape)
            raise ValueError(
                f"Expected `score` of {name} to return scores of shape {want}, one for each image, but got "
                f"{tuple(scores.shape)}. Scores of several numbers need `shape` of `ImageMetric.__init__`."
            )
        return scores if scores.is_floating_point() else scores.double()

    def accumulate(self, scores: Tensor) -> None:
        """Add the scores (B, *shape) of B images to the sums; an image with a NaN counts as undefined.

        Raises:
            ValueError: the scores have another shape.
        """
        scores = self.check_scores(scores)
        scores = scores.detach().to(self.total.device, _widest(self.total.device))
        defined = ~scores.isnan().flatten(1).any(1) if scores.ndim > 1 else ~scores.isnan()
        self.total = self.total.to(scores.dtype) + scores[defined].sum(0)
        self.count = self.count + defined.sum()
        self.undefined = self.undefined + (~defined).sum()
        self._computed = None  # `update` does this, but callers that have scores skip it

    def compute(self) -> Tensor:
        """The value over the images with a defined score, a scalar; NaN if there is none."""
        return self.of_means(self.total / self.count)

    @classmethod
    def reduce(cls, values: Sequence[float | Sequence[float] | None]) -> float:
        """The value of `compute` from stored scores, no matter how they were split over processes.

        Args:
            values: one score per image, as in `score(...).tolist()`; None and NaN mean undefined and are left out.

        Returns:
            The value. Its means are added with `math.fsum`, so the order of the images does not matter. NaN without any
            defined score.

        Example:
            >>> from optcam_pl.metrics import AverageDrop
            >>> AverageDrop.reduce([20.0, None, 40.0])
            30.0
        """
        return value_of(values, cls.of_means)

    @property
    def update_called(self) -> bool:
        """Always true: a process without images is normal and needs no warning; without any image the value is NaN."""
        return True

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the sums of all processes.

        The sums are promoted first: a process without images still holds its initial float32 zeros, and gathering
        tensors of different dtypes fails or, worse, misreads bytes.
        """
        for name, default in state_defaults(self).items():
            state = getattr(self, name)
            if isinstance(default, Tensor) and state.is_floating_point():
                setattr(self, name, state.to(_widest(state.device)))
        super().sync(*args, **kwargs)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot a value, or the values of several steps.

        Args:
            val: a result of `compute`, or a list of results; None means the current value.
            ax: matplotlib axis to draw on; None creates a figure.

        Returns:
            The matplotlib figure and axis.
        """
        return plot_values(self, val, ax)


def value_of(values: Sequence[float | Sequence[float] | None], of_means: Callable[[Tensor], Tensor]) -> float:
    """A metric's value from stored scores and its `of_means`; see `ImageMetric.reduce`."""
    rows = [[value] if isinstance(value, (int, float)) else value for value in values if value is not None]
    rows = [row for row in rows if not any(map(math.isnan, row))]
    if not rows:
        return math.nan
    means = torch.tensor(
        [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)], dtype=torch.float64, device="cpu"
    )
    return float(of_means(means))


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
