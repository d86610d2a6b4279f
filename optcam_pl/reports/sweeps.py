"""Figures of a sweep: how the metrics depend on the settings that were varied."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from optcam_pl.reports.grids import printable
from optcam_pl.reports.summary import load_run
from optcam_pl.reports.tables import Summary, heading
from optcam_pl.runs.tensors import mean_curves

_WIDTH, _HEIGHT = 4.2, 3.2  # inches of one panel
_WIDE_SPREAD = 20  # positive values whose largest is that many times the smallest stand on a logarithmic axis


class Measured(NamedTuple):
    """One run of a sweep: its place on each axis, and its numbers."""

    values: Mapping[str, str]
    summary: Summary


def sweep_figure(runs: Sequence[Measured], axes: Mapping[str, Sequence[str]]) -> Any:
    """Draw the metrics against the settings: one axis as a curve with its band, two as a heat map, more as several.

    A column of panels is a metric. With one axis, each method is a curve, with the 95 % interval as its band. With two
    axes, a row of panels is a method; with more, one combination of a method and the values of all axes but the last
    two. The colors of a column have one scale.

    Args:
        runs: the runs; points that have none stay empty.
        axes: name of each axis -> its values in order; at least one.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: there is no run, no axis or no metric.
    """
    keys = list(dict.fromkeys(key for run in runs for key in run.summary.metrics))
    if not (runs and axes and keys):
        raise ValueError(
            f"Expected runs, axes and metrics to draw, but got {len(runs)}, {len(axes)} and {len(keys)} of them."
        )
    return _legible(_curves(runs, axes, keys) if len(axes) == 1 else _heat_maps(runs, axes, keys))


def _panels(rows: int, columns: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _legend(figure: Any, panel: Any) -> None:
    """Name the curves beside the panels, where none lies below the names."""
    figure.legend(*panel.get_legend_handles_labels(), loc="outside right center", fontsize="small")


def _legible(figure: Any) -> Any:
    from optcam_pl.figures.fonts import legible  # loads matplotlib

    return legible(figure)


def _words(text: str) -> str:
    from optcam_pl.figures import literal  # loads matplotlib

    return literal(printable(text))


def _title(runs: Sequence[Measured], key: str) -> str:
    summary = next(run.summary for run in runs if key in run.summary.metrics)
    return _words(heading(key, summary.info(key)))


def _numbers(values: Sequence[str]) -> list[float] | None:
    """The values as numbers, None if one is none."""
    try:
        found = [float(value) for value in values]
    except ValueError:
        return None
    return found if all(map(math.isfinite, found)) else None


def _curves(runs: Sequence[Measured], axes: Mapping[str, Sequence[str]], keys: Sequence[str]) -> Any:
    ((name, values),) = axes.items()
    numbers = _numbers(values)
    places = list(range(len(values))) if numbers is None else numbers
    figure, panels = _panels(1, len(keys))
    for panel, key in zip(panels[0], keys, strict=True):
        for method in dict.fromkeys(run.summary.explainer for run in runs):
            of = {run.values[name]: run.summary.metrics.get(key) for run in runs if run.summary.explainer == method}
            found = [
                (x, e) for x, value in zip(places, values, strict=True) if (e := of.get(value)) and e.value is not None
            ]
            found.sort(key=lambda pair: pair[0])
            x = [place for place, _ in found]
            (line,) = panel.plot(x, [e.value for _, e in found], "o-", label=_words(method))
            low, high = (
                [math.nan if (v := getattr(e, end)) is None else v for _, e in found] for end in ("low", "high")
            )
            panel.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        panel.set(title=_title(runs, key), xlabel=_words(name))
        if numbers is None:
            panel.set_xticks(places, list(map(_words, values)), rotation=45, ha="right")
        elif min(numbers) > 0 and max(numbers) >= _WIDE_SPREAD * min(numbers):
            panel.set_xscale("log")
    _legend(figure, panels[0][-1])
    return figure


def selectivity_figure(runs: Sequence[tuple[str, Path]]) -> Any:
    """Draw Average Drop, Gain and Increase against alpha, the power of the map, with 95 % bands (figure A4).

    Args:
        runs: method -> its run folder, of a run with the selectivity metrics.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: no run has such a curve.
    """
    of = {method: (load_run(folder), mean_curves(folder)) for method, folder in runs}
    # In the order of the metrics: the files of the curves have none.
    found = (key for run, curves in of.values() for key in run.metrics if key in curves)
    keys = list(dict.fromkeys(key for key in found if key.startswith("selectivity_")))
    if not keys:
        raise ValueError("Expected runs with the metrics SelectivityDrop, SelectivityGain or SelectivityIncrease.")
    figure, panels = _panels(1, len(keys))
    for panel, key in zip(panels[0], keys, strict=True):
        for method, (run, curves) in of.items():
            if key in curves:
                mean, band, _ = curves[key]
                alphas = [float(word) for word in run.manifest["settings"][f"{key}_alphas"].split()]
                (line,) = panel.plot(alphas, mean.tolist(), "o-", label=_words(method))
                low, high = (mean - band).tolist(), (mean + band).tolist()
                panel.fill_between(alphas, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        info = next(run.metrics[key] for run, _ in of.values() if key in run.metrics)
        panel.set(title=_words(heading(key, info)), xlabel="alpha", xscale="log")
    _legend(figure, panels[0][-1])
    return _legible(figure)


def _heat_maps(runs: Sequence[Measured], axes: Mapping[str, Sequence[str]], keys: Sequence[str]) -> Any:
    *outer, (down, rows), (across, columns) = axes.items()
    methods = list(dict.fromkeys(run.summary.explainer for run in runs))
    facets = list(product(methods, *(values for _, values in outer)))
    figure, panels = _panels(len(facets), len(keys))
    for column, key in enumerate(keys):
        grids = []
        for method, *at in facets:
            fixed = dict(zip((name for name, _ in outer), at, strict=True))
            of = {
                (run.values[down], run.values[across]): run.summary.metrics.get(key)
                for run in runs
                if run.summary.explainer == method and all(run.values[name] == v for name, v in fixed.items())
            }
            cells = [[e.value if (e := of.get((r, c))) else None for c in columns] for r in rows]
            grids.append(np.array(cells, dtype=np.float64))
        known = np.concatenate([grid[np.isfinite(grid)] for grid in grids])
        scale = (known.min(), known.max()) if len(known) else (0.0, 1.0)
        for row, (facet, grid) in enumerate(zip(facets, grids, strict=True)):
            named = [f"{name}={value}" for (name, _), value in zip(outer, facet[1:], strict=True)]
            facts = [*(facet[:1] if len(methods) > 1 else []), *named]
            _heat_map(panels[row][column], grid, scale, ", ".join([_title(runs, key), *map(_words, facts)]))
            panels[row][column].set_xticks(range(len(columns)), list(map(_words, columns)))
            panels[row][column].set_yticks(range(len(rows)), list(map(_words, rows)))
            panels[row][column].set(xlabel=_words(across), ylabel=_words(down))
    return figure


def _heat_map(panel: Any, grid: Any, scale: tuple[float, float], title: str) -> None:
    """A grid of numbers as colors, each number written into its field."""
    low, high = scale
    panel.imshow(grid, cmap="viridis", vmin=low, vmax=high, aspect="auto")
    panel.set_title(title, fontsize="medium")
    for (row, column), value in np.ndenumerate(grid):
        if math.isfinite(value):
            dark = value <= (low + high) / 2
            panel.text(column, row, f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}", ha="center", va="center",
                       color="white" if dark else "black")  # fmt: skip
