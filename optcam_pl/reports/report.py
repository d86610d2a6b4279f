"""Tables of run folders, made from their rows (see `summary`) and compared with the paper or with another run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from optcam_pl.checks import expanded_path
from optcam_pl.reports.published import beside_published
from optcam_pl.reports.statistics import Method, holm, paired_difference
from optcam_pl.reports.stored import summaries_of
from optcam_pl.reports.summary import Run, in_numpy, load_run, settings_of, summarize
from optcam_pl.reports.tables import Format, Paired, Summary, table
from optcam_pl.runs.files import RunFolderError
from optcam_pl.runs.manifest import MANIFEST

__all__ = ["Run", "Summary", "compare_runs", "find_run", "find_runs", "load_run", "report", "summarize", "table"]


def _natural(path: Path) -> list[tuple[str, int]]:
    """A key that sorts version_2 before version_10."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", os.fspath(path))]


def find_runs(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Find the run folders at or below the given paths.

    They are returned in the order of the paths and, below each path, sorted by name. Each folder appears once.

    Raises:
        RunFolderError: If a folder is missing, or there is no run in it or below it.
    """
    runs: dict[Path, Path] = {}
    for path in map(expanded_path, paths):
        found = []
        for folder, below, files in os.walk(path):
            if MANIFEST in files:
                found.append(Path(folder))
                below.clear()
        if not found:
            if path.is_dir():
                raise RunFolderError(f"There is no run in {path}: no {MANIFEST} in it or below it.")
            given = f"{path} is a file" if path.is_file() else f"there is no folder {path}"
            raise RunFolderError(f"Expected a run folder, or a folder with runs below it, but {given}.")
        for run in sorted(found, key=_natural):
            runs.setdefault(run.resolve(), run)
    return list(runs.values())


def find_run(path: str | os.PathLike[str]) -> Path:
    """The only run folder at or below a path, for what compares with one run.

    Raises:
        RunFolderError: there is none, or several, which the message names.
    """
    found = find_runs([path])
    if len(found) > 1:
        shown = ", ".join(map(str, found[:3])) + (", ..." if len(found) > 3 else "")
        raise RunFolderError(f"Expected one run to compare with, but {path} holds {len(found)}: {shown}.")
    return found[0]


def comparable(run: Run, other: Run) -> list[str]:
    """The metrics that both runs have, measured in the same way.

    Raises:
        RunFolderError: the runs have other data or settings, which the message names.
    """
    if run.manifest["data"] != other.manifest["data"]:
        data = f"{run.manifest['data']} and {other.manifest['data']}"
        raise RunFolderError(f"{run.path} and {other.path} cannot be compared image by image: their data are {data}.")
    ours, theirs = settings_of(run), settings_of(other)
    alike = ("target", "baseline", "region", "input_size", "input", *_conventions(run), *_conventions(other))
    for key in alike:
        if ours.get(key) != theirs.get(key):
            both = f"{ours.get(key)!r} and {theirs.get(key)!r}"
            raise RunFolderError(
                f"{run.path} and {other.path} cannot be compared image by image: their {key} is {both}."
            )
    keys = [key for key in run.metrics if key in other.metrics]
    for key in keys:
        _check_same_metric(run, other, key)
    return [key for key in keys if run.of_means(key) is not None]


def _check_same_metric(run: Run, other: Run, key: str) -> None:
    """Users may have two different metrics with the same key; only runs that describe their metrics show this."""
    if not all(key in one.manifest.get("metric_info", {}) for one in (run, other)):
        return
    ours, theirs = run.metrics[key], other.metrics[key]
    for name in ("unit", "higher_is_better", "aggregate"):
        if getattr(ours, name) != getattr(theirs, name):
            both = f"{getattr(ours, name)!r} and {getattr(theirs, name)!r}"
            raise RunFolderError(
                f"{run.path} and {other.path} cannot be compared image by image: `{name}` of their {key} is {both}."
            )


def _conventions(run: Run) -> list[str]:
    """The names of the settings that belong to metrics."""
    return [name for name in settings_of(run) if any(name.startswith(f"{key}_") for key in run.metrics)]


def compare_runs(runs: Sequence[Run], summaries: Sequence[Summary], other: Run) -> list[Summary]:
    """Add the paired differences from another run to the runs' summaries, computed on the images that both runs have.

    The p values are adjusted with Holm's method for the number of comparisons: all metrics of all runs.

    Args:
        runs: the runs. If `other` is among them, it gets no differences.
        summaries: the summaries of the runs.
        other: the run that they are compared with.

    Raises:
        RunFolderError: a run has other data, was measured differently, or has no image in common with the other run.
    """
    theirs = {row.id: row for row in other.usable}
    pairs: dict[tuple[int, str], Paired] = {}
    for number, run in enumerate(runs):
        if run.path.resolve() == other.path.resolve():
            continue
        both = [(row, theirs[row.id]) for row in run.usable if row.id in theirs]
        if not both:
            raise RunFolderError(f"{run.path} and {other.path} have no image in common.")
        for key in comparable(run, other):
            ours, others = ([row.scores.get(key) for row in side] for side in zip(*both, strict=True))
            of_means = run.of_means(key)
            assert of_means is not None  # see comparable
            found = paired_difference(ours, others, in_numpy(of_means))
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
    """Make the table of several runs from their rows.

    Args:
        run_dirs: Run folders, or folders that contain runs (`logs/`).
        format: "text", "markdown", "csv", "latex" or "json".
        beside_paper: Show the published values next to ours, or say which settings differ.
        intervals: "bca" or "percentile" adds the 95 % bootstrap interval of each mean.
        against: A run folder that the others are compared with, image by image; see `compare_runs`.

    Raises:
        RunFolderError: If a folder has no run, or if a run contradicts itself or cannot be compared with the other.
    """
    paths = find_runs(run_dirs)
    summaries = summaries_of(paths, intervals)
    if against is not None:
        other = find_run(against)
        if all(path.resolve() == other.resolve() for path in paths):
            raise RunFolderError(f"Expected another run than {other} beside `against`, but there is none to compare.")
        summaries = compare_runs([load_run(path) for path in paths], summaries, load_run(other))
    if beside_paper:
        summaries = [beside_published(summary) for summary in summaries]
    return table(summaries, format)
