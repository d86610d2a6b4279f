"""Run folders to tables: what a run's rows say, and nothing else.

A summary is a pure function of the rows and the manifest: the rows are taken in the order of the dataset's index and
added with math.fsum, so a report gives the same digits for any number of processes and restarts, on any machine. No
network is loaded and no tensor of the run is read.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch

from optcam_pl.metrics import METRICS
from optcam_pl.metrics.statistics import Method, bootstrap_interval, holm, paired_difference
from optcam_pl.published import beside_published
from optcam_pl.records import (
    MANIFEST,
    RecordError,
    Row,
    Rows,
    flatten,
    format_ranges,
    missing,
    read_manifest,
    read_rows,
    write_file,
)
from optcam_pl.report_tables import Estimate, Format, Paired, Summary, printable, table

NO_BOX = "the image has no box"
"""The reason in the row of an image whose scores are undefined, though its map may say something."""

_Array = npt.NDArray[np.float64]

__all__ = ["Run", "Summary", "compare_runs", "find_runs", "load_run", "report", "report_command", "summarise", "table"]


class DegenerateWarning(UserWarning):
    """A run's maps say nothing for most of its images."""


@dataclass(frozen=True)
class Run:
    """A run as its folder has it."""

    path: Path
    manifest: dict[str, Any]
    rows: Rows

    @property
    def usable(self) -> list[Row]:
        """The rows of the dataset's images that have a result, in the dataset's order."""
        return [row for row in self.rows if row.status != "error" and row.index < self.manifest["images"]]


def load_run(run_dir: str | os.PathLike[str]) -> Run:
    """Read a run folder.

    Raises:
        RecordError: If it is none, or its rows contradict each other.
    """
    return Run(Path(run_dir), read_manifest(run_dir), read_rows(run_dir))


def _examples(texts: Sequence[str], most: int = 3) -> str:
    return "; ".join(texts[:most]) + (f"; and {len(texts) - most} more" if len(texts) > most else "")


def _notes(run: Run, metrics: dict[str, Estimate]) -> list[str]:
    """What a reader of the run's numbers has to know: whatever was not counted, in words."""
    n, notes = run.manifest["images"], []
    if absent := missing(run.rows, n):
        ranges = format_ranges(absent).split(", ")
        shown = ", ".join(ranges[:20]) + (", ..." if len(ranges) > 20 else "")
        notes.append(f"incomplete: {len(absent)} of {n} images missing: {shown}")
        if run.rows.damaged:
            notes.append(f"damaged lines ({len(run.rows.damaged)}): {_examples(run.rows.damaged)}")
    if beyond := [row.index for row in run.rows if row.index >= n]:
        notes.append(f"not counted: rows beyond the {n} images of the dataset: {format_ranges(beyond)}")
    if errors := [f"{row.id} ({row.reason or 'no reason given'})" for row in run.rows if row.status == "error"]:
        notes.append(f"errors ({len(errors)}), not counted: {_examples(errors)}")
    if odd := [f"{row.id} ({row.reason or 'no reason given'})" for row in run.rows if row.status == "degenerate"]:
        notes.append(f"degenerate ({len(odd)}): {_examples(odd)}")
    if note := mostly_degenerate(run):
        notes.append(note)
    for key, estimate in metrics.items():
        if estimate.undefined:
            notes.append(
                f"{key} is undefined for {estimate.undefined} of {len(run.usable)} images, left out of its mean"
            )
    if unknown := [key for key in run.manifest["metrics"] if key not in METRICS]:
        notes.append(f"left out, not metrics of this package: {', '.join(unknown)}")
    return notes


def mostly_degenerate(run: Run) -> str:
    """What is to be said of a run whose maps say nothing for more than half of its images; "" of the others."""
    silent = [row.reason for row in run.usable if row.status == "degenerate" and row.reason != NO_BOX]
    if 2 * len(silent) <= len(run.usable):
        return ""
    (reason, count), *_ = Counter(silent).most_common(1)
    of_them = "" if count == len(silent) else f" ({count} of them)"
    return (
        f"{len(silent)} of {len(run.usable)} maps are zero everywhere and say nothing about the network. "
        f"The likely reason{of_them}: {reason or 'none given'}"
    )


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _of_means(key: str) -> Callable[[_Array], _Array]:
    """The metric's value of means, in numpy."""

    def of_means(means: _Array) -> _Array:
        given = torch.from_numpy(np.ascontiguousarray(means))
        return METRICS[key].of_means(given if given.shape[1] > 1 else given[:, 0]).numpy()

    return of_means


def _estimate(key: str, rows: Iterable[Row], intervals: Method | None) -> Estimate:
    scores = [row.scores.get(key) for row in rows]
    estimate = Estimate(_known(METRICS[key].reduce(scores)), sum(score is None for score in scores))
    if intervals is None:
        return estimate
    _, low, high = bootstrap_interval(scores, _of_means(key), method=intervals)
    return replace(estimate, low=_known(low), high=_known(high))


def _leaves(nested: dict[str, Any] | None) -> dict[str, Any]:
    return dict(flatten(nested)) if nested else {}


def summarise(run: Run, intervals: Method | None = None) -> Summary:
    """Make a run's numbers from its rows.

    Rows with an error count in the notes alone; seconds per image is the mean over the others.

    Args:
        run: the run.
        intervals: how the 95 % bootstrap intervals of the means are made, see `bootstrap_interval`; None makes none.
    """
    rows, manifest = run.usable, run.manifest
    metrics = {key: _estimate(key, rows, intervals) for key in manifest["metrics"] if key in METRICS}
    settings, options = (_leaves(manifest.get(key)) for key in ("settings", "explainer_settings"))
    counts = Counter(row.status for row in run.rows if row.index < manifest["images"])
    return Summary(
        **{key: manifest[key] for key in ("run", "stage", "data", "classifier", "explainer", "images")},
        settings=settings,
        options={key: value for key, value in options.items() if key not in ("class", *settings)},
        statuses={
            **{status: counts[status] for status in ("ok", "degenerate", "error")},
            "missing": manifest["images"] - counts.total(),
        },
        seconds_per_image=math.fsum(row.seconds for row in rows) / len(rows) if rows else None,
        metrics=metrics,
        notes=tuple(_notes(run, metrics)),
    )


def _natural(path: Path) -> list[tuple[str, int]]:
    """A key that sorts version_2 before version_10."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", os.fspath(path))]


def find_runs(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The run folders at or below the given ones, in the order given, below one sorted by name, each once.

    Raises:
        RecordError: If a folder is missing, or has no run in it or below it.
    """
    runs: dict[Path, Path] = {}
    for path in map(Path, paths):
        found = []
        for folder, below, files in os.walk(path):
            if MANIFEST in files:
                found.append(Path(folder))
                below.clear()
        if not found:
            none = f"There is no run in {path}: no {MANIFEST} in it or below it."
            raise RecordError(none if path.is_dir() else f"No folder {path}.")
        for run in sorted(found, key=_natural):
            runs.setdefault(run.resolve(), run)
    return list(runs.values())


def _comparable(run: Run, other: Run) -> list[str]:
    """The metrics that both have, measured alike; RecordError names what differs otherwise."""
    if run.manifest["data"] != other.manifest["data"]:
        data = f"{run.manifest['data']} and {other.manifest['data']}"
        raise RecordError(f"{run.path} and {other.path} cannot be compared image by image: their data are {data}.")
    ours, theirs = (_leaves(r.manifest.get("settings")) for r in (run, other))
    alike = ("target", "baseline", "region", "input_size", "input", *_conventions(run), *_conventions(other))
    for key in alike:
        if ours.get(key) != theirs.get(key):
            both = f"{ours.get(key)!r} and {theirs.get(key)!r}"
            raise RecordError(f"{run.path} and {other.path} cannot be compared image by image: their {key} is {both}.")
    return [key for key in run.manifest["metrics"] if key in other.manifest["metrics"] and key in METRICS]


def _conventions(run: Run) -> list[str]:
    """Names of the settings that metrics brought along."""
    keys = [key for key in run.manifest["metrics"] if key in METRICS]
    return [name for name in _leaves(run.manifest.get("settings")) if any(name.startswith(f"{key}_") for key in keys)]


def compare_runs(runs: Sequence[Run], summaries: Sequence[Summary], other: Run) -> list[Summary]:
    """Put the paired differences to another run, on the images of both, into the runs' summaries.

    The p values are adjusted after Holm for being as many as there are: all metrics of all runs.

    Args:
        runs: the runs; `other` itself, where it is among them, gets none.
        summaries: theirs.
        other: the run that they are compared with.

    Raises:
        RecordError: a run is of other data or was measured otherwise, or has no image in common with the other.
    """
    theirs = {row.id: row for row in other.usable}
    pairs: dict[tuple[int, str], Paired] = {}
    for number, run in enumerate(runs):
        if run.path.resolve() == other.path.resolve():
            continue
        both = [(row, theirs[row.id]) for row in run.usable if row.id in theirs]
        if not both:
            raise RecordError(f"{run.path} and {other.path} have no image in common.")
        for key in _comparable(run, other):
            ours, others = ([row.scores.get(key) for row in side] for side in zip(*both, strict=True))
            found = paired_difference(ours, others, _of_means(key))
            pairs[number, key] = Paired(
                str(other.manifest["run"]), found.images, *(found.difference, found.low, found.high, found.p_value)
            )
    adjusted = dict(zip(pairs, holm([pair.p for pair in pairs.values()]), strict=True))
    return [
        replace(
            summary,
            metrics={
                key: replace(estimate, against=replace(pairs[n, key], p=adjusted[n, key]))
                if (n, key) in pairs
                else estimate
                for key, estimate in summary.metrics.items()
            },
        )
        for n, summary in enumerate(summaries)
    ]


def report(
    run_dirs: Iterable[str | os.PathLike[str]],
    format: Format = "text",
    *,
    beside_paper: bool = False,
    intervals: Method | None = None,
    against: str | os.PathLike[str] | None = None,
) -> str:
    """The table of several runs, made from their rows.

    Args:
        run_dirs: Run folders, or folders that have runs below them (`logs/`).
        format: "text", "markdown", "csv", "latex" or "json".
        beside_paper: Put the published values beside ours, or say which settings differ.
        intervals: "bca" or "percentile": with the 95 % bootstrap interval of each mean.
        against: A run folder that the others are compared with image by image, see `compare_runs`.

    Raises:
        RecordError: If a folder has no run, or a run contradicts itself or cannot be compared with the other.
    """
    runs = [load_run(path) for path in find_runs(run_dirs)]
    summaries = [summarise(run, intervals) for run in runs]
    if against is not None:
        (other,) = map(load_run, find_runs([against])[:1])
        summaries = compare_runs(runs, summaries, other)
    if beside_paper:
        summaries = [beside_published(summary) for summary in summaries]
    return table(summaries, format)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="optcam report", description="Print the table of finished or unfinished runs, made from their rows."
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN_DIR", help="a run folder, or a folder with runs below it")
    add("--format", choices=get_args(Format), default="text", help="default: text")
    add("--output", metavar="FILE", help="write the table to this file instead of printing it")
    add(
        "--intervals",
        choices=("none", *get_args(Method)),
        default="bca",
        help="95 %% bootstrap intervals; default: bca",
    )
    add("--against", metavar="RUN_DIR", help="also print the differences to this run, with intervals and p values")
    add("--published", action="store_true", help="put the paper's values beside ours, or say which settings differ")
    return parser


def report_command(argv: Sequence[str]) -> int:
    """`optcam report RUN_DIR... [options]`; returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        text = report(
            options.runs,
            options.format,
            beside_paper=options.published,
            intervals=None if options.intervals == "none" else options.intervals,
            against=options.against,
        )
        if options.output:
            write_file(options.output, text)
        else:
            encoding = sys.stdout.encoding or "utf-8"
            print(text.encode(encoding, "replace").decode(encoding), end="")  # an arrow must not end it
    except RecordError as error:
        print(f"optcam report: {printable(str(error))}", file=sys.stderr)
        return 1
    return 0
