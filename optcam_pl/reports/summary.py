"""From a run's rows to its numbers.

A summary is a pure function of the rows and the manifest. The rows are taken in the order of the dataset's index and
added with math.fsum, so the digits are the same for any number of processes and restarts, on any machine. No network is
loaded and no tensor of the run is read. The manifest describes the metrics, so their classes are not needed.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from optcam_pl.checks import expanded_path
from optcam_pl.metric_info import OWN_KEYS, MetricInfo
from optcam_pl.reports.statistics import Interval, Method, Sample, bootstrap_intervals
from optcam_pl.reports.tables import Estimate, Summary, own_metrics
from optcam_pl.runs.files import RunFolderError
from optcam_pl.runs.manifest import flatten, read_manifest
from optcam_pl.runs.rows import Row, Rows, format_ranges, missing, read_rows

if TYPE_CHECKING:
    from optcam_pl.metrics import ImageMetric

_Array = npt.NDArray[np.float64]
OfMeans: TypeAlias = Callable[[Any], Any]
"""Computes a metric's value from the means of its scores, tensors both; `the_mean` takes arrays, too."""

SUMMARY = "summary.json"
NO_BOX = "the image has no box"
"""The reason given in the row of an image whose scores are undefined although its map may be informative."""


class DegenerateWarning(UserWarning):
    """A run's maps carry no information for most of its images."""


@dataclass(frozen=True)
class Run:
    """A run as stored in its folder.

    Attributes:
        path: the folder.
        manifest: what the run is.
        rows: its results.
        measured_by: the metric objects by key, where they are available, as in the process that measured.
    """

    path: Path
    manifest: dict[str, Any]
    rows: Rows
    measured_by: Mapping[str, ImageMetric] = field(default_factory=dict)

    @property
    def usable(self) -> list[Row]:
        """The rows of the dataset's images that have a result, in the order of the dataset."""
        return [row for row in self.rows if row.status != "error" and row.index < self.manifest["images"]]

    @cached_property
    def metrics(self) -> dict[str, MetricInfo]:
        """The run's metrics by key, in its order; for old runs, which describe none, the package's metrics by key."""
        stored = self.manifest.get("metric_info", {})
        found: dict[str, MetricInfo] = {}
        for key in self.manifest["metrics"]:
            if key in stored:
                found[key] = _info(self.path, key, stored[key])
            elif key in self.measured_by:
                found[key] = self.measured_by[key].describe()
            elif key in OWN_KEYS:
                found[key] = own_metrics()[key]().describe()
        return found

    def of_means(self, key: str) -> OfMeans | None:
        """The function that computes a metric's value from the means of its scores.

        None where only the metric's class has this function, and that class is outside this package and not imported.
        """
        info = self.metrics[key]
        if info.aggregate == "mean":
            return the_mean
        if key in self.measured_by:
            return self.measured_by[key].of_means
        if key in OWN_KEYS and info.path.startswith("optcam_pl."):
            return own_metrics()[key].of_means
        # Looked up, never imported: a folder from another source must not decide which code runs.
        module, _, name = info.path.rpartition(".")
        kind = getattr(sys.modules.get(module), name, None)
        return kind.of_means if isinstance(kind, type) and issubclass(kind, _base()) else None


def _base() -> type[ImageMetric]:
    from optcam_pl.metrics import ImageMetric  # loads PyTorch

    return ImageMetric


def _info(path: Path, key: str, stored: Any) -> MetricInfo:
    """A metric as described in a manifest; the file may come from an untrusted source."""
    try:
        info = MetricInfo(**stored)
    except TypeError as error:
        raise RunFolderError(
            f"The manifest of {path} does not describe the metric {key!r} as it has to: {error}."
        ) from error
    words = all(isinstance(word, str) for word in (info.label, info.unit, info.path, info.aggregate))
    if not (
        words and type(info.digits) is int and 0 <= info.digits <= 17 and info.higher_is_better in (True, False, None)
    ):
        raise RunFolderError(f"The manifest of {path} does not describe the metric {key!r} as it has to: {info}.")
    return info


def load_run(run_dir: str | os.PathLike[str], measured_by: Iterable[ImageMetric] = ()) -> Run:
    """Read a run folder.

    Args:
        run_dir: the folder.
        measured_by: the run's metrics, where they are available; reports do not need them.

    Raises:
        RunFolderError: If it is not a run folder, or its rows contradict each other.
    """
    metrics, path = {metric.key: metric for metric in measured_by}, expanded_path(run_dir)
    return Run(path, read_manifest(path), read_rows(path), metrics)


def the_mean(means: Any) -> Any:
    """The value of a metric that is the mean of its scores."""
    return means


def in_numpy(of_means: OfMeans) -> Callable[[_Array], _Array]:
    """Adapt a metric's `of_means` to NumPy arrays, (m,k) -> (m,)."""
    if of_means is the_mean:  # without PyTorch, which takes longer to load than most reports to make
        return lambda means: means if means.shape[1] > 1 else means[:, 0]
    import torch  # most reports do not need it

    def value(means: _Array) -> _Array:
        given = torch.from_numpy(np.ascontiguousarray(means))
        found: _Array = of_means(given if given.shape[1] > 1 else given[:, 0]).numpy()
        return found

    return value


def _examples(texts: Sequence[str], most: int = 3) -> str:
    return "; ".join(texts[:most]) + (f"; and {len(texts) - most} more" if len(texts) > most else "")


def _notes(run: Run, metrics: dict[str, Estimate]) -> list[str]:
    """Notes for the reader of the run's numbers: everything that was not counted, in words."""
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
    if unknown := [key for key in run.manifest["metrics"] if key not in run.metrics]:
        notes.append(f"left out, neither described by the run nor metrics of this package: {', '.join(unknown)}")
    notes += [
        f"{key} is shown as the run itself stored it: only its class {info.path}, which "
        "`optcam report --import MODULE` loads, can make it anew and compare it"
        for key, info in run.metrics.items()
        if run.of_means(key) is None
    ]
    return notes


def mostly_degenerate(run: Run) -> str:
    """The warning for a run whose maps carry no information for more than half of its images; otherwise ""."""
    silent = [row.reason for row in run.usable if row.status == "degenerate" and row.reason != NO_BOX]
    if 2 * len(silent) <= len(run.usable):
        return ""
    (reason, count), *_ = Counter(silent).most_common(1)
    of_them = "" if count == len(silent) else f" ({count} of them)"
    return (
        f"{len(silent)} of {len(run.usable)} maps are zero everywhere and say nothing about the network. "
        f"The likely reason{of_them}: {reason or 'none given'}"
    )


def finite(values: Iterable[float | None]) -> list[float]:
    """Those of the numbers that are known."""
    return [value for value in values if value is not None and math.isfinite(value)]


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _estimates(
    run: Run, keys: Iterable[str], intervals: Method | None
) -> tuple[dict[str, Estimate], dict[str, Sample]]:
    """The metrics' values, and the scores of those whose intervals are still to be made."""
    estimates: dict[str, Estimate] = {}
    samples: dict[str, Sample] = {}
    rows = run.usable
    for key in keys:
        of_means = run.of_means(key)
        scores = [row.scores.get(key) for row in rows]
        undefined = sum(score is None for score in scores)
        if of_means is None:
            estimates[key] = replace(_stored(run, key, with_interval=intervals is not None), undefined=undefined)
            continue
        estimates[key] = Estimate(_known(_value(scores, of_means)), undefined)
        if intervals is not None:
            samples[key] = Sample(scores, in_numpy(of_means))
    return estimates, samples


def _value(scores: Sequence[Any], of_means: OfMeans) -> float:
    """The value of `ImageMetric.reduce`."""
    if of_means is the_mean and not any(isinstance(score, list) for score in scores):
        known = finite(scores)
        return math.fsum(known) / len(known) if known else math.nan
    from optcam_pl.metrics.base import value_of

    return value_of(scores, of_means)


def _stored(run: Run, key: str, *, with_interval: bool) -> Estimate:
    """The value that the run itself stored for a metric whose class is not available."""
    try:
        stored = json.loads((run.path / SUMMARY).read_bytes())["metrics"][key]
        ends = [stored.get(end) if with_interval else None for end in ("low", "high")]
        return Estimate(stored["value"], 0, *ends)
    except (OSError, ValueError, KeyError, TypeError):  # no stored summary, or one from before the metric
        return Estimate(None)


def settings_of(run: Run, entry: str = "settings") -> dict[str, Any]:
    """The settings of a run, or another entry of its manifest, by dotted name."""
    nested = run.manifest.get(entry)
    return dict(flatten(nested)) if nested else {}


def summarize(run: Run, intervals: Method | None = None) -> Summary:
    """Make a run's numbers from its rows.

    Rows with an error count only in the notes. Seconds per image is the mean over the other rows.

    Args:
        run: the run.
        intervals: the method for the 95 % bootstrap intervals of the means, see `bootstrap_interval`; None makes none.
    """
    (summary,) = summarize_all([run], intervals)
    return summary


def summarize_all(runs: Iterable[Run], intervals: Method | None = None) -> list[Summary]:
    """The same for several runs, which then share the draws of their images where they have equally many of them.

    Args:
        runs: the runs; their rows are needed one run after the other.
        intervals: see `summarize`.
    """
    summaries: list[Summary] = []
    samples: dict[tuple[int, str], Sample] = {}
    for number, run in enumerate(runs):
        estimates, of_run = _estimates(run, run.metrics, intervals)
        samples |= {(number, key): sample for key, sample in of_run.items()}
        summaries.append(_without_intervals(run, estimates))
    if intervals is None:
        return summaries
    found = dict(zip(samples, bootstrap_intervals(list(samples.values()), method=intervals), strict=True))
    return [
        replace(summary, metrics=_with_ends(summary.metrics, {k: v for (n, k), v in found.items() if n == number}))
        for number, summary in enumerate(summaries)
    ]


def _with_ends(estimates: Mapping[str, Estimate], found: Mapping[str, Interval]) -> dict[str, Estimate]:
    return {
        key: replace(one, low=_known(found[key].low), high=_known(found[key].high)) if key in found else one
        for key, one in estimates.items()
    }


def _without_intervals(run: Run, metrics: dict[str, Estimate]) -> Summary:
    rows, manifest = run.usable, run.manifest
    settings, options = settings_of(run), settings_of(run, "explainer_settings")
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
        metric_info=run.metrics,
        notes=tuple(_notes(run, metrics)),
    )


def summary_to_store(run: Run, summary: Summary) -> Summary:
    """Add intervals for those metrics for which a later report, without their classes, cannot make them."""
    own = [
        key for key, info in run.metrics.items() if info.aggregate != "mean" and not info.path.startswith("optcam_pl.")
    ]
    estimates, samples = _estimates(run, own, "bca")
    found = dict(zip(samples, bootstrap_intervals(list(samples.values())), strict=True))
    return replace(summary, metrics={**summary.metrics, **_with_ends(estimates, found)})
