"""What TensorBoard shows of several methods together: their table, a figure per metric, and lines that frame them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from optcam_pl.callbacks.boards import TensorBoardBoard
from optcam_pl.callbacks.running import most_points
from optcam_pl.figures import literal, small_figure
from optcam_pl.figures.fonts import legible
from optcam_pl.reports.summary import finite
from optcam_pl.reports.tables import Summary, table
from optcam_pl.runs.folders import new_folder


def write_comparison(parent: Path, summaries: Mapping[str, Summary], stage: str = "test") -> Path:
    """Write a folder of TensorBoard files beside the runs of several methods on the same images.

    It holds the table of all methods, and for each metric a figure of the values with their intervals. The runs
    ``best`` and ``worst`` in it are level lines at the best and the worst value: TensorBoard's charts leave out the
    outermost twentieth of all points, and with it the best of many methods, if nothing else lies there.

    Args:
        parent: the folder below which the runs are.
        summaries: numbers by the name of the method.
        stage: the command that measured.

    Returns:
        The new folder, ``comparison_k``.
    """
    folder = new_folder(parent, "comparison_")
    board = TensorBoardBoard(SummaryWriter(str(folder)))
    board.text("table", table(list(summaries.values()), format="markdown"))
    for key in _metrics(summaries):
        board.figure(f"{stage}_plots/{key}", _figure(key, summaries))
    board.writer.close()
    images = max(summary.images for summary in summaries.values())
    for which in ("best", "worst"):
        line = TensorBoardBoard(SummaryWriter(str(folder / which)))
        for tags, value in _levels(summaries, stage, which):
            points = _points(images, len(summaries))
            for i in range(points):
                line.scalars(dict.fromkeys(tags, value), 1 + (images - 1) * i // max(1, points - 1))
        line.writer.close()
    return folder


def _metrics(summaries: Mapping[str, Summary]) -> list[str]:
    return list(dict.fromkeys(key for summary in summaries.values() for key in summary.metrics))


def _levels(summaries: Mapping[str, Summary], stage: str, which: str) -> Iterator[tuple[list[str], float]]:
    """The tags and the value of each level line."""
    for key in _metrics(summaries):
        having = [summary for summary in summaries.values() if key in summary.metrics]
        known = finite(summary.metrics[key].value for summary in having)
        if known:
            higher = having[0].info(key).higher_is_better is not False
            tags = [f"{stage}/{key}", *(f"{stage}_intervals/{key}_{end}" for end in ("low", "high"))]
            yield tags, max(known) if higher == (which == "best") else min(known)
    seconds = finite(summary.seconds_per_image for summary in summaries.values())
    if seconds:
        yield [f"{stage}/seconds_per_image"], min(seconds) if which == "best" else max(seconds)


def _points(images: int, methods: int) -> int:
    """So many points of each line that more than the outermost twentieth of all points lies on it.

    >>> points = _points(100, 30)
    >>> points > 0.05 * (30 * most_points(100) + 2 * points)
    True
    """
    return math.ceil((0.05 * methods * most_points(images) + 2) / 0.9)


def _figure(key: str, summaries: Mapping[str, Summary]) -> Figure:
    """The methods' values of one metric with their intervals, the best at the top."""
    known = {name: s for name, s in summaries.items() if key in s.metrics and s.metrics[key].value is not None}
    about = next(summary for summary in summaries.values() if key in summary.metrics).info(key)
    value = {name: float(summary.metrics[key].value or 0.0) for name, summary in known.items()}
    names = sorted(known, key=value.__getitem__, reverse=about.higher_is_better is not False)
    figure = small_figure(height=max(2.2, 0.7 + 0.2 * len(names)))
    axes = figure.add_subplot()
    for place, name in enumerate(names):
        estimate = known[name].metrics[key]
        low, high = (value[name] if end is None else end for end in (estimate.low, estimate.high))
        axes.plot([low, high], [place, place], color="C0", linewidth=1.5)
        axes.plot(value[name], place, "o", color="C0", markersize=5)
    arrow = {True: ", higher is better", False: ", lower is better", None: ""}[about.higher_is_better]
    axes.set_title(literal(about.label + (f" ({about.unit})" if about.unit else "") + arrow), fontsize=10)
    axes.set_yticks(range(len(names)), list(map(literal, names)))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    return legible(figure)
