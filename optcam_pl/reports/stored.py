"""Summaries that need not be made again: the numbers of a large, complete run, kept in the user's cache folder.

The key of an entry is a checksum of everything that the numbers follow from: each byte of the manifest and the rows,
the code that reads and adds them, and the kind of interval. An entry is therefore never out of date: if anything
changes, its name is never asked for again. Run folders themselves are not touched. The folder
`~/.cache/optcam_pl/summaries` (or below `XDG_CACHE_HOME`) may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from optcam_pl.metric_info import MetricInfo
from optcam_pl.reports.statistics import Method
from optcam_pl.reports.summary import Run, load_run, summarize_all
from optcam_pl.reports.tables import Estimate, Summary
from optcam_pl.runs.files import RunFolderError, write_file
from optcam_pl.runs.manifest import MANIFEST
from optcam_pl.runs.rows import row_files

LEAST = 2**20
"""Bytes of rows from which a summary is kept: smaller runs are summarized in no time."""

_MOST = 500  # entries; the oldest ones go


def summaries_of(paths: Sequence[Path], intervals: Method | None = None) -> list[Summary]:
    """The summaries of run folders, from the cache where they are in it; see `summarize_all`.

    Raises:
        RunFolderError: If a folder is no run, or its rows contradict each other.
    """
    keys = [_key(path, intervals) for path in paths]
    known = {i: summary for i, key in enumerate(keys) if key and (summary := _recall(key)) is not None}
    left = [i for i in range(len(paths)) if i not in known]
    lasting: list[int] = []

    def runs() -> Iterator[Run]:
        for i in left:  # one after the other, so that only one run's rows are in memory
            run = load_run(paths[i])
            if keys[i] and _lasts(run):
                lasting.append(i)
            yield run

    made = dict(zip(left, summarize_all(runs(), intervals), strict=True))
    for i in lasting:
        if _key(paths[i], intervals) == keys[i]:  # nothing was written while the rows were read
            _keep(keys[i], made[i])
    return [known[i] if i in known else made[i] for i in range(len(paths))]


def keep_summary(run: Run, summary: Summary, intervals: Method | None) -> None:
    """Keep the summary of a run that has just ended, so that its first report is as fast as the later ones."""
    key = _key(run.path, intervals)
    if key and _lasts(run):
        _keep(key, summary)


def _lasts(run: Run) -> bool:
    """Whether the run is complete (no sentence about it names a file), and only this package computes its numbers."""
    complete = sum(row.index < run.manifest["images"] for row in run.rows) == run.manifest["images"]
    ours = all(info.aggregate == "mean" or info.path.startswith("optcam_pl.") for info in run.metrics.values())
    return complete and ours and set(run.manifest["metrics"]) == set(run.metrics)


def _key(path: Path, intervals: Method | None) -> str:
    """The key of a run's summary; "" for a small run, and for what cannot be read."""
    try:
        files = [path / MANIFEST, *row_files(path)]
        if sum(file.stat().st_size for file in files[1:]) < LEAST:
            return ""
        digest = hashlib.sha256(_code())
        digest.update(repr((intervals, [file.name for file in files])).encode())
        for file in files:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    except OSError:
        return ""
    return digest.hexdigest()


@functools.cache
def _code() -> bytes:
    """A checksum of the code that makes numbers from rows."""
    package = Path(__file__).parents[1]
    files = [package / "metric_info.py", *sorted((package / "runs").glob("*.py"))]
    files += [*sorted((package / "reports").glob("*.py")), *sorted((package / "metrics").rglob("*.py"))]
    digest = hashlib.sha256(np.__version__.encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.digest()


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(cache, "optcam_pl", "summaries")


def _recall(key: str) -> Summary | None:
    """The entry of a key; None if there is none, or one that cannot be read."""
    try:
        stored = json.loads((_folder() / f"{key}.json").read_bytes())
        metrics = {name: Estimate(**found) for name, found in stored["metrics"].items()}
        described = {name: MetricInfo(**found) for name, found in stored["metric_info"].items()}
        words = {"metrics": metrics, "metric_info": described, "notes": tuple(stored["notes"])}
        return Summary(**{**stored, **words})
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _keep(key: str, summary: Summary) -> None:
    """Add an entry; a cache that cannot be written is no fault."""
    with contextlib.suppress(OSError, RuntimeError, ValueError, TypeError, RunFolderError):
        folder = _folder()
        text = json.dumps({**asdict(summary), "metric_info": {k: asdict(v) for k, v in summary.metric_info.items()}})
        write_file(folder / f"{key}.json", text)
        entries = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime)
        for old in entries[: max(0, len(entries) - _MOST)]:
            old.unlink(missing_ok=True)
