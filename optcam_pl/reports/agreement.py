"""Do the metrics agree on the order of the methods?

Kendall's tau (tau-b, Kendall, "The treatment of ties in ranking problems", Biometrika 1945) between two metrics is 1
if they put the methods in the same order, -1 if in the opposite one. How certain it is depends on the images: each is
drawn again with replacement, the same images for every method and metric, and the methods are ordered anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau

from optcam_pl.checks import check_positive
from optcam_pl.reports.grids import Grid, printable
from optcam_pl.reports.report import comparable
from optcam_pl.reports.statistics import resampled_counts
from optcam_pl.reports.summary import OfMeans, Run, in_numpy
from optcam_pl.reports.tables import heading
from optcam_pl.runs.files import RunFolderError

_Array = npt.NDArray[np.float64]
_LEVEL = 0.95


@dataclass(frozen=True)
class Agreement:
    """How far metrics agree on the order of methods.

    Attributes:
        methods: the methods.
        metrics: the metrics that have a better direction and a value for each method, as headings.
        order: for each metric, the methods from the best to the worst.
        tau: (m,m) Kendall's tau between metrics; NaN where all methods tie.
        low: (m,m) the low end of its 95 % interval.
        high: (m,m) the high end.
        images: the number of images, which all runs have.
    """

    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    order: tuple[tuple[str, ...], ...]
    tau: _Array
    low: _Array
    high: _Array
    images: int

    def grid(self) -> Grid:
        """A table of the metrics against each other, and below it what they agree on and what not."""
        m = len(self.metrics)
        body = [
            [self.metrics[row], *(self._cell(row, column) if column > row else "" for column in range(1, m))]
            for row in range(m - 1)
        ]
        title = f"Kendall's tau between metrics over {len(self.methods)} methods, {self.images} images:"
        orders = [f"{name}: {' > '.join(order)}" for name, order in zip(self.metrics, self.order, strict=True)]
        return Grid(["", *self.metrics[1:]], body, 1, [], [*self.sentences(), *orders], title)

    def _cell(self, row: int, column: int) -> str:
        tau, low, high = (found[row, column] for found in (self.tau, self.low, self.high))
        return "-" if math.isnan(tau) else f"{tau:+.2f} [{low:+.2f}, {high:+.2f}]"

    def sentences(self) -> list[str]:
        """Which metrics agree, which contradict each other, and of which the images cannot tell."""
        kinds: dict[str, list[str]] = {"agree": [], "contradict each other": [], "neither, by these images": []}
        for row, first in enumerate(self.metrics):
            for column, second in enumerate(self.metrics[row + 1 :], row + 1):
                if not math.isnan(self.tau[row, column]):
                    above, below = self.low[row, column] > 0, self.high[row, column] < 0
                    kind = "agree" if above else "contradict each other" if below else "neither, by these images"
                    kinds[kind].append(f"{first} and {second}")
        return [f"{kind}: {', '.join(pairs)}" for kind, pairs in kinds.items() if pairs]

    def figure(self) -> Any:
        """A heat map of tau with its intervals, as a `matplotlib.figure.Figure`."""
        from matplotlib.figure import Figure

        from optcam_pl.figures import literal
        from optcam_pl.figures.fonts import legible

        size = 1.5 + 1.05 * len(self.metrics)
        figure = Figure(figsize=(size + 1, size), layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(self.tau, cmap="RdBu", vmin=-1, vmax=1)
        names = list(map(printable, self.metrics))
        shown = list(map(literal, names))
        axes.set_xticks(range(len(names)), shown, rotation=45, ha="right")
        axes.set_yticks(range(len(names)), shown)
        for (row, column), tau in np.ndenumerate(self.tau):
            if row != column and math.isfinite(tau):
                text = f"{tau:+.2f}\n[{self.low[row, column]:+.2f}, {self.high[row, column]:+.2f}]"
                color = "white" if abs(tau) > 0.6 else "black"
                axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
        axes.set_title(f"{len(self.methods)} methods, {self.images} images", fontsize="medium")
        figure.colorbar(image, label="Kendall's tau")
        return legible(figure)


def agreement(runs: Sequence[Run], *, resamples: int = 2000, seed: int = 0) -> Agreement:
    """Compare the orders in which metrics put methods.

    Args:
        runs: one run for each method, on the same data with the same settings.
        resamples: how often the images are drawn.
        seed: the seed of the draws.

    Raises:
        ValueError: there are fewer than three runs: two have no order to speak of.
        RunFolderError: the runs are not comparable image by image, or have fewer than two metrics or images in common.
    """
    check_positive("resamples", resamples)
    if len(runs) < 3:
        raise ValueError(f"Expected at least three runs, whose order metrics can agree on, but got {len(runs)}.")
    keys = [key for key in runs[0].metrics if all(key in comparable(run, runs[0]) for run in runs[1:])]
    keys = [key for key in keys if runs[0].metrics[key].higher_is_better is not None]
    rows = [{row.id: row for row in run.usable} for run in runs]
    ids = [image_id for image_id in rows[0] if all(image_id in of for of in rows)]
    _check_enough(keys, ids)
    counts = [np.ones((1, len(ids))), *resampled_counts(np.random.default_rng(seed), len(ids), resamples)]
    values: dict[str, _Array] = {}
    for key in keys:
        of_means = runs[0].of_means(key)
        assert of_means is not None  # see comparable
        scores = [[of[image_id].scores.get(key) for image_id in ids] for of in rows]
        sign = 1 if runs[0].metrics[key].higher_is_better else -1
        of_key = sign * np.stack([_values(of_run, of_means, counts) for of_run in scores], axis=1)
        if np.isfinite(of_key[0]).all():
            values[key] = of_key
    _check_enough([*values], ids)
    return _agreement(runs, [*values], [*values.values()], len(ids))


def _check_enough(keys: Sequence[str], ids: Sequence[str]) -> None:
    if len(keys) < 2 or len(ids) < 2:
        raise RunFolderError(
            "Expected runs with two metrics or more that have a better direction and a value for each run, and two "
            f"images or more, but they have {len(keys)} metrics and {len(ids)} images in common."
        )


def _agreement(runs: Sequence[Run], keys: Sequence[str], values: Sequence[_Array], images: int) -> Agreement:
    """From the values (1+R,methods) of each metric, higher is better, the first row without a draw."""
    titles = [run.manifest["explainer"] for run in runs]
    names = [str(run.manifest["run"]) for run in runs] if len(set(titles)) < len(titles) else titles
    m = len(keys)
    tau, low, high = (np.full((m, m), np.nan) for _ in range(3))
    for row in range(m):
        for column in range(m):
            tau[row, column] = kendalltau(values[row][0], values[column][0]).statistic
            drawn = taus(values[row][1:], values[column][1:])
            if np.isfinite(drawn).any():
                low[row, column], high[row, column] = np.nanquantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    orders = [tuple(names[place] for place in np.argsort(-value[0], kind="stable")) for value in values]
    heads = tuple(heading(key, runs[0].metrics[key]) for key in keys)
    return Agreement(tuple(names), heads, tuple(orders), tau, low, high, images)


def _values(scores: Sequence[Any], of_means: OfMeans, counts: Sequence[_Array]) -> _Array:
    """A run's values (1+R,) of a metric for the draws; images without a score are left out of each mean."""
    width = next((np.size(score) for score in scores if score is not None), 1)
    table = np.array([np.full(width, np.nan) if s is None else np.atleast_1d(s) for s in scores], dtype=np.float64)
    known = np.isfinite(table.sum(1))
    filled = np.where(known[:, None], table, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.concatenate([in_numpy(of_means)((c @ filled) / (c @ known)[:, None]) for c in counts])


def taus(ours: _Array, theirs: _Array) -> _Array:
    """Kendall's tau-b of many pairs of rankings at once, (R,n) and (R,n) -> (R,); NaN where all values tie.

    Example:
        >>> taus(np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]), np.array([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0]])).round(2)
        array([1.  , 0.33])
    """
    first, second = np.triu_indices(ours.shape[1], 1)
    a, b = (np.sign(values[:, first] - values[:, second]) for values in (ours, theirs))
    with np.errstate(invalid="ignore"):
        found: _Array = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return found
