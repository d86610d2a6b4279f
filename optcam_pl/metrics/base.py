"""What every metric of the package is: a mean over images of what each image scores."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric


class ImageMetric(Metric, ABC):
    """The mean over images of a score that each image has by itself, or a number made of several such means.

    A metric is fed with numbers and tensors, never with a network. Its life has three steps:

    1. `score(**evidence)` turns the evidence of B images into B scores (B,) or, for numbers that are made of several
       means, (B,k); NaN where an image has no defined score;
    2. `update(**evidence)`, which names the same parameters, adds them to the states `total`, `count` and `undefined`,
       all of them sums, which add up over batches and processes, also where a process saw no image at all;
    3. `compute()` returns `of_means(total / count)`; without any defined score that is NaN.

    `reduce` makes the same number from stored scores, so that a report needs neither tensors of a run nor its states.

    Sums are kept in float64 (float32 on Apple's mps, which has nothing wider). The states start as float32 zeros and
    are promoted when something is added, so that a change of dtype from outside cannot make later sums coarse.

    Collect metrics in a `MetricCollection` with `compute_groups=False`: torchmetrics otherwise merges metrics whose
    states are equal after the first batch and gives one the sums of the other.

    Attributes:
        key: name in rows, reports and tables, for example "average_drop".
        label: the short name in a table's head, for example "AD".
        unit: "%" where the value is in percent, else "".
        higher_is_better: which way is better.
        conventions: names of the attributes on which the number depends, see `settings`.
    """

    key: ClassVar[str]
    label: ClassVar[str]
    unit: str = ""
    conventions: ClassVar[tuple[str, ...]] = ()
    higher_is_better: bool
    is_differentiable: bool = False
    full_state_update: bool = False

    total: Tensor
    count: Tensor
    undefined: Tensor

    def __init__(self, shape: Sequence[int] = (), **kwargs: Any) -> None:
        """Create the three sums; `shape` is () or (k,), that of one image's score; `kwargs` go to `torchmetrics`."""
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(tuple(shape)), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("undefined", torch.tensor(0), dist_reduce_fx="sum")

    @abstractmethod
    def score(self, *args: Any, **kwargs: Any) -> Tensor:
        """Scores (B, *shape) of B images; subclasses name the evidence that they need, here and in `update`."""

    @classmethod
    def of_means(cls, means: Tensor) -> Tensor:
        """The metric's value from the means of its scores, (..., *shape) -> (...): here the mean itself."""
        return means

    @classmethod
    def evidence(cls) -> tuple[str, ...]:
        """Names of what `score` and `update` need: what a run has to measure for this metric, and no more."""
        return tuple(name for name in inspect.signature(cls.score).parameters if name != "self")

    def needs(self) -> dict[str, dict[str, Any]]:
        """The evidence by name, each with the settings that it is measured with; metrics that share it must agree."""
        return {name: {} for name in self.evidence()}

    def settings(self) -> dict[str, str | int | float | bool]:
        """The conventions that the number depends on, to be printed beside it, named after the metric."""
        return {f"{self.key}_{name}": getattr(self, name) for name in self.conventions}

    def accumulate(self, scores: Tensor) -> None:
        """Add the scores (B, *shape) of B images to the sums; an image with a NaN counts as undefined."""
        scores = scores.detach().to(self.total.device, _widest(self.total.device))
        defined = ~scores.isnan().flatten(1).any(1) if scores.ndim > 1 else ~scores.isnan()
        self.total = self.total.to(scores.dtype) + scores[defined].sum(0)
        self.count = self.count + defined.sum()
        self.undefined = self.undefined + (~defined).sum()
        self._computed = None  # as `update` does, for those who have scores and come here without it

    def compute(self) -> Tensor:
        """The value over the images with a defined score, a scalar; NaN without any."""
        return self.of_means(self.total / self.count)

    @classmethod
    def reduce(cls, values: Sequence[float | Sequence[float] | None]) -> float:
        """The value of `compute` from stored scores, independent of how they were split over processes.

        Args:
            values: one score per image, as `score(...).tolist()` gives them; None and NaN mean undefined and are left
                out.

        Returns:
            The value, its means added with `math.fsum` and therefore the same in every order of the images; NaN without
            any defined score.

        Example:
            >>> from optcam_pl.metrics import AverageDrop
            >>> AverageDrop.reduce([20.0, None, 40.0])
            30.0
        """
        rows = [[value] if isinstance(value, (int, float)) else value for value in values if value is not None]
        rows = [row for row in rows if not any(map(math.isnan, row))]
        if not rows:
            return math.nan
        means = torch.tensor([math.fsum(column) / len(rows) for column in zip(*rows, strict=True)], dtype=torch.float64)
        return float(cls.of_means(means))

    @property
    def update_called(self) -> bool:
        """Always true: a process without images is normal here and needs no warning, and no image at all gives NaN."""
        return True

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the sums of all processes.

        They are promoted first: a process without images still holds the float32 zeros of its start, and a gathering
        of tensors of different dtypes fails or, worse, misreads bytes.
        """
        for name, default in self._defaults.items():
            state = getattr(self, name)
            if isinstance(default, Tensor) and state.is_floating_point():
                setattr(self, name, state.to(_widest(state.device)))
        super().sync(*args, **kwargs)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot a value, or the values of several steps.

        Args:
            val: a result of `compute` or a list of them; None takes the present value.
            ax: matplotlib axis to draw on; None makes a figure.

        Returns:
            The matplotlib figure and axis.
        """
        return self._plot(val, ax)


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
