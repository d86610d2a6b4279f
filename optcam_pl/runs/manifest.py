"""A run's description, `RUN/manifest.json`, and the fingerprint in it that identifies the run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from optcam_pl.runs.files import RunFolderError, write_file
from optcam_pl.runs.rows import STATUSES, Row

FORMAT = 1
MANIFEST = "manifest.json"
MANIFEST_KEYS = (
    *("format", "stage", "run", "data", "classifier", "explainer", "images", "metrics", "settings", "fingerprint"),
    "created",
)


class FingerprintMismatch(RunFolderError):  # noqa: N818 - named after what it reports
    """A run was started with settings that differ from those of the run in its folder.

    Attributes:
        keys: The dotted names of the settings that differ.
    """

    def __init__(self, message: str, keys: Sequence[str]) -> None:
        super().__init__(message)
        self.keys = tuple(keys)


def check_metric_keys(keys: Sequence[str]) -> None:
    """Check that the keys of metrics clash neither with each other nor with a row's own entries.

    Raises:
        ValueError: a key occurs twice, or means something else in rows and reports.

    Example:
        >>> check_metric_keys(["average_drop", "seconds"])
        Traceback (most recent call last):
        ValueError: Expected `metrics` to have keys that are no entries of rows and reports, but got 'seconds'.
    """
    if len(set(keys)) < len(keys):
        raise ValueError(f"Expected each of `metrics` once, but got {', '.join(keys)}.")
    own = {*(entry.name for entry in fields(Row)), "crc", *MANIFEST_KEYS, *STATUSES, "missing", "seconds_per_image"}
    if taken := [repr(key) for key in keys if key in own]:
        raise ValueError(
            f"Expected `metrics` to have keys that are no entries of rows and reports, but got {', '.join(taken)}."
        )


def write_manifest(run_dir: str | os.PathLike[str], manifest: Mapping[str, Any]) -> None:
    """Write `RUN/manifest.json` atomically.

    Args:
        run_dir: The run's folder; it is created if it is missing.
        manifest: The entries of `MANIFEST_KEYS` as JSON values (`format` is added). A run that measures also has
            `metric_info`, the `MetricInfo` of each metric by key.

    Raises:
        ValueError: If an entry is missing or a number is not finite.
        TypeError: If an entry is not a JSON value.
        RunFolderError: If the file cannot be written.
    """
    manifest = {"format": FORMAT, **manifest}
    if absent := [key for key in MANIFEST_KEYS if key not in manifest]:
        raise ValueError(f"Expected the manifest to have all of its entries, but {', '.join(absent)} is missing.")
    write_file(Path(run_dir) / MANIFEST, json.dumps(manifest, indent=2, allow_nan=False) + "\n")


def read_manifest(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Read `RUN/manifest.json`.

    Raises:
        RunFolderError: If the file is missing or not a manifest of this format.
    """
    path = Path(run_dir) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise RunFolderError(f"{run_dir} is not a run folder: it has no {MANIFEST}.") from error
    except (OSError, ValueError) as error:
        raise RunFolderError(f"Cannot read {path}: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or not {*MANIFEST_KEYS} <= {*manifest}:
        raise RunFolderError(
            f"{path} is not a manifest of format {FORMAT}. Expected the entries {', '.join(MANIFEST_KEYS)}."
        )
    return manifest


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts by their dotted names."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def check_fingerprint(old: Mapping[str, Any], new: Mapping[str, Any], what: str = "The run in this folder") -> None:
    """Refuse to continue a run that was started with other settings.

    Args:
        old: The fingerprint in the manifest of the folder.
        new: The fingerprint of this run. Both are compared as JSON, so a tuple equals a list.
        what: What has the first one, for the message.

    Raises:
        FingerprintMismatch: If a key differs; the message lists each such key (dotted if nested) with its two values.

    Example:
        >>> check_fingerprint({"block": 8, "data": {"root": "a"}}, {"block": 8, "data": {"root": "b"}})
        Traceback (most recent call last):
        optcam_pl.runs.manifest.FingerprintMismatch: The run in this folder was made with other settings:
          data.root: "a" there, "b" now
    """
    before, now = ({key: json.dumps(leaf, sort_keys=True) for key, leaf in flatten(side)} for side in (old, new))
    differ = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if differ:
        lines = [f"  {key}: {before.get(key, 'nothing')} there, {now.get(key, 'nothing')} now" for key in differ]
        raise FingerprintMismatch("\n".join([f"{what} was made with other settings:", *lines]), differ)
