"""`optcam verify`: checks that a run folder is complete and does not contradict itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from optcam_pl.reports.summary import SUMMARY, Run, load_run, summarize
from optcam_pl.reports.tables import as_dict
from optcam_pl.runs.files import RunFolderError
from optcam_pl.runs.manifest import flatten
from optcam_pl.runs.rows import Row, format_ranges, missing
from optcam_pl.runs.tensors import load_tensors


def verify(run_dir: str | os.PathLike[str]) -> list[str]:
    """Check that a run folder is consistent.

    The checks are: the manifest's parts agree; every row's checksum is right, and no two rows contradict each other;
    each image of the dataset has a row, and each row has an image; the rows contain what the manifest promises; the
    checksums of stored tensors are right; and, if there is a `summary.json`, the rows still give the same numbers. A
    damaged line is not a problem if its image also has a sound row (its block was done again).

    Returns:
        The problems, one sentence each; an empty list for a complete and sound run. Images with an error are not a
        problem, because their rows say so.
    """
    try:
        run = load_run(run_dir)
        return [*_manifest_problems(run), *_row_problems(run), *_file_problems(run)]
    except RunFolderError as error:
        return [str(error)]
    except (TypeError, KeyError, AttributeError) as error:
        return [f"{Path(run_dir)}: an entry of the manifest is not of the kind that it has to be: {error!r}"]


def _manifest_problems(run: Run) -> Iterator[str]:
    """Places where the manifest states the same thing twice with different values."""
    manifest = run.manifest
    prints = dict(flatten(manifest["fingerprint"]))
    same = {"data.images": manifest["images"], "data.name": manifest["data"], **manifest["settings"]}
    for key, value in same.items():
        if key in prints and prints[key] != value:
            yield f"the manifest contradicts itself: {key} is {value!r}, but {prints[key]!r} in its fingerprint"
    if len(set(manifest["metrics"])) < len(manifest["metrics"]):
        yield f"the manifest names a metric twice: {', '.join(manifest['metrics'])}"
    if odd := [key for key in manifest.get("metric_info", {}) if key not in manifest["metrics"]]:
        yield f"the manifest describes metrics that the run does not have: {', '.join(odd)}"


def _row_problems(run: Run) -> Iterator[str]:
    n = run.manifest["images"]
    if absent := missing(run.rows, n):
        yield f"{len(absent)} of {n} images have no row: {format_ranges(absent)}"
        yield from (f"damaged: {line}" for line in run.rows.damaged)
    if beyond := [row.index for row in run.rows if row.index >= n]:
        yield f"rows beyond the dataset's {n} images: {format_ranges(beyond)}"
    probable = [] if run.manifest["settings"].get("link") == "identity" else run.usable  # where p and o are scores
    for what, wrong in (
        ("a score is missing", [row for row in run.usable if not {*run.manifest["metrics"]} <= {*row.scores}]),
        ("p or o is no probability", [row for row in probable if not all(map(_probability, (row.p, row.o)))]),
        ("an error without a reason", [row for row in run.rows if row.status == "error" and not row.reason]),
    ):
        if wrong:
            yield f"{what}: {_named(wrong)}"


def _probability(value: float | None) -> bool:
    return value is None or -1e-6 <= value <= 1 + 1e-6


def _named(rows: Sequence[Row]) -> str:
    ids = ", ".join(row.id for row in rows[:3])
    return f"images {format_ranges(row.index for row in rows)} ({ids}{', ...' if len(rows) > 3 else ''})"


def _file_problems(run: Run) -> Iterator[str]:
    for path in sorted(run.path.rglob("*.safetensors")):
        try:
            load_tensors(path)
        except RunFolderError as error:
            yield str(error)
    path = run.path / SUMMARY
    if path.exists():
        try:
            stored = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            yield f"cannot read {path}: {error}"
            return
        now = _numbers(json.loads(json.dumps(as_dict(summarize(run)))))
        before = _numbers(stored)
        for key in sorted({*now, *before}):
            if now.get(key) != before.get(key):
                yield f"{path}: {key} is {before.get(key)}, but the rows give {now.get(key)}"


def _numbers(summary: Any) -> dict[str, Any]:
    """The measured numbers of a summary, without intervals and comparisons that a report may have added."""
    kept = {key: summary.get(key) for key in ("images", "statuses", "seconds_per_image")}
    kept["metrics"] = {key: estimate.get("value") for key, estimate in summary.get("metrics", {}).items()}
    return dict(flatten(kept))
