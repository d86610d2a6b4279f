"""A table of the paper with our numbers in it: ours with their intervals, the paper's, and the differences."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from optcam_pl.reports.grids import Grid, grid_width
from optcam_pl.reports.published import MISCLASSIFIED, beside_published, network_of, networks_of, published_seconds
from optcam_pl.reports.summary import Run
from optcam_pl.reports.sweeps import Measured
from optcam_pl.reports.tables import (
    Estimate,
    PaperValue,
    Summary,
    decimals,
    estimate_cell,
    heading,
    run_grid,
    spreadsheet_cell,
)
from optcam_pl.runs.rows import Rows

_SAMPLE = ("data ", "images ")
_OTHERS = "* The paper's values of another network: its order of the methods may hold here, its values need not."


def misclassified(predicted: Run, label: Run) -> Run:
    """The part of a run with the predicted class whose images have another label, which a run with the label knows.

    Returns:
        The run with these rows alone and the target `published.MISCLASSIFIED`, as in table A.9.
    """
    wrong = {row.id for row in label.usable if row.predicted != row.target}
    kept = [row for row in predicted.usable if row.id in wrong]
    rows = Rows(tuple(replace(row, index=number) for number, row in enumerate(kept)))
    settings = {**predicted.manifest["settings"], "target": MISCLASSIFIED}
    return replace(predicted, rows=rows, manifest={**predicted.manifest, "settings": settings, "images": len(kept)})


def paper_grids(runs: Sequence[Measured], table: str) -> list[Grid]:
    """One grid for each of our networks: its methods in rows, and for each metric ours, the paper's, the difference.

    For a network that the paper does not have, the columns of all its networks stand there, marked, without a
    difference. A difference is also given for a sample of the paper's images; the notes say of how many.

    Args:
        runs: our runs, in the order of the rows.
        table: name of the table in `published.csv`.
    """
    names = dict.fromkeys(run.summary.classifier for run in runs)
    return [_grid([run for run in runs if run.summary.classifier == name], table) for name in names]


def _grid(runs: Sequence[Measured], table: str) -> Grid:
    own = network_of(runs[0].summary.classifier)
    networks = [own] if own in networks_of(table) else networks_of(table)
    found = [[beside_published(run.summary, table, network) for network in networks] for run in runs]
    keys = list(dict.fromkeys(key for run in runs for key in run.summary.metrics))
    axes = list(dict.fromkeys(name for run in runs for name in run.values))
    header, body = ["method", *axes], [[run.summary.explainer, *(run.values.get(a, "-") for a in axes)] for run in runs]
    for key in keys:
        header += [heading(key, runs[0].summary.info(key)), *_heads(networks, own)]
        for row, ours in zip(body, found, strict=True):
            row += [estimate_cell(ours[0], key), *_values(ours, key, same=networks == [own])]
    timed = any(_seconds(run.summary, table, network) for run in runs for network in networks)
    if timed:
        header += ["s / 8 images", *(head for head in _heads(networks, own) if head != "difference")]
    header.append("images")
    for row, run in zip(body, runs, strict=True):
        if timed:
            seconds = run.summary.seconds_per_image
            row.append(decimals(None if seconds is None else 8 * seconds, 2))
            row += [decimals(_seconds(run.summary, table, network), 2) for network in networks]
        row.append(str(run.summary.images - run.summary.statuses["missing"] - run.summary.statuses["error"]))
    shared = run_grid([run.summary for run in runs])
    title = f"Table {table} of the paper (Zhang et al., CVIU 2024), {own}:"
    notes = [*shared.notes, *(_settings(found) if networks == [own] else [_OTHERS])]
    return Grid(header, body, 1 + len(axes), shared.common, notes, title)


def folded(grid: Grid, width: int = 120) -> list[Grid]:
    """A wide table of `paper_grids` as several with the same rows, each no wider than a terminal.

    Args:
        grid: the table.
        width: in characters; a table of one metric may be wider.

    Returns:
        The parts, the first with the title, the last with what stands below. A metric keeps its columns together.
    """
    starts = [n for n, head in enumerate(grid.header) if n >= grid.left and not _belongs(head)]
    groups = [list(range(*pair)) for pair in zip(starts, [*starts[1:], len(grid.header)], strict=True)]
    parts: list[list[int]] = []
    for group in groups:
        if parts and grid_width(_part(grid, [*parts[-1], *group])) <= width:
            parts[-1] += group
        else:
            parts.append(list(group))
    found = [_part(grid, part) for part in parts] or [grid]
    found[0] = replace(found[0], title=grid.title)
    found[-1] = replace(found[-1], common=grid.common, notes=grid.notes)
    return found


def _belongs(head: str) -> bool:
    """Whether a column is the paper's beside ours."""
    return head in ("paper", "difference") or head.endswith("*")


def _part(grid: Grid, columns: Sequence[int]) -> Grid:
    """The table's columns of words and some of its others, without what stands around it."""
    kept = [*range(grid.left), *columns]
    body = [[row[column] for column in kept] for row in grid.body]
    return Grid([grid.header[column] for column in kept], body, grid.left, [], [])


def _heads(networks: Sequence[str], own: str) -> list[str]:
    return ["paper", "difference"] if networks == [own] else [f"{network}*" for network in networks]


def _values(of: Sequence[Summary], key: str, *, same: bool) -> list[str]:
    """The paper's values of a metric, and for the same network the difference."""
    estimates = [summary.metrics.get(key, Estimate(None)) for summary in of]
    digits = of[0].info(key).digits
    cells = [decimals(e.published.value if e.published else None, digits) for e in estimates]
    if not same:
        return cells
    difference = sample_difference(estimates[0])
    return [*cells, "-" if difference is None else f"{difference:+.{digits}f}"]


def sample_difference(estimate: Estimate) -> float | None:
    """Ours minus the paper's where all settings but the images are the paper's."""
    paper = estimate.published
    if estimate.value is None or paper is None or not _is_sample(paper):
        return None
    return estimate.value - paper.value


def _is_sample(paper: PaperValue) -> bool:
    return all(words.startswith(_SAMPLE) for words in paper.differences)


def _settings(found: Iterable[Sequence[Summary]]) -> list[str]:
    """One sentence for each set of settings that differ from the paper's."""
    of: dict[str, list[str]] = {}
    for ours in found:
        for estimate in ours[0].metrics.values():
            if estimate.published and estimate.published.differences:
                of.setdefault(", ".join(estimate.published.differences), []).append(ours[0].explainer)
    return [
        f"settings that differ from the paper's ({', '.join(dict.fromkeys(names))}): {settings}"
        for settings, names in of.items()
    ]


def _seconds(summary: Summary, table: str, network: str) -> float | None:
    return published_seconds(summary.explainer, network, table)


def paper_csv(runs: Sequence[Measured], table: str) -> str:
    """Every number at full precision: a row for each run, metric and network of the paper."""
    axes = list(dict.fromkeys(name for run in runs for name in run.values))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    ours = ["network", "method", *axes, "metric", "images", "value", "low", "high"]
    writer.writerow([*ours, "paper_network", "paper", "difference", "table", "settings_that_differ", "run"])
    for run in runs:
        own = network_of(run.summary.classifier)
        for network in [own] if own in networks_of(table) else networks_of(table):
            summary = beside_published(run.summary, table, network)
            for key, estimate in summary.metrics.items():
                paper = estimate.published
                words = [summary.classifier, summary.explainer, *(run.values.get(axis, "") for axis in axes), key]
                theirs: list[Any] = [network, "", "", table, ""]
                if paper is not None:
                    theirs[1:3] = [paper.value, sample_difference(estimate)]
                    theirs[4] = ", ".join(paper.differences)
                numbers = [summary.images, estimate.value, estimate.low, estimate.high]
                row = [*map(spreadsheet_cell, words), *numbers, *theirs, spreadsheet_cell(summary.run)]
                writer.writerow("" if cell is None else cell for cell in row)
    return out.getvalue()
