"""One page with the overlays of several runs side by side, image by image."""

from __future__ import annotations

import base64
import html
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from optcam_pl.checks import check_positive, expanded_path
from optcam_pl.reports.report import Run, find_runs, load_run, summarize
from optcam_pl.reports.tables import printable, table
from optcam_pl.runs.files import RunFolderError, write_file
from optcam_pl.runs.rows import Row

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>optcam gallery</title>
<style>
body {{ font: 14px system-ui, sans-serif; margin: 1.5em; }}
section {{ display: flex; flex-wrap: wrap; gap: 1em; margin-bottom: 1.5em; }}
h2 {{ font-size: 1em; overflow-wrap: anywhere; border-top: 1px solid #ccc; padding-top: 1em; }}
figure {{ margin: 0; max-width: 100%; }}
img {{ max-width: 100%; display: block; }}
figcaption, pre {{ font-size: 12px; }}
pre {{ overflow-x: auto; }}
</style>
</head>
<body>
<h1>optcam gallery</h1>
<pre>{table}</pre>
<p>{shown}</p>
{sections}
</body>
</html>
"""


def gallery(run_dirs: Iterable[str | os.PathLike[str]], output: str | os.PathLike[str], limit: int = 50) -> Path:
    """Write a self-contained HTML page with the runs' table and, for each image, every run's overlay and scores.

    The overlays are read from `RUN/overlays`. Its `index.json` (or one `index-<rank>.json` for each process) maps image
    ids to file names. The page contains the overlays as JPEG, so that it can be shared as a single file.

    Args:
        run_dirs: Run folders, or folders that contain runs; runs without overlays are left out.
        output: The page.
        limit: The maximum number of images; they are spread evenly over the order of the dataset.

    Returns:
        The page's path.

    Raises:
        ValueError: If the limit is not positive.
        RunFolderError: If no run has overlays, or the page cannot be written.
    """
    check_positive("limit", limit)
    runs = [(run, _overlays(run.path)) for run in map(load_run, find_runs(run_dirs))]
    runs = [(run, overlays) for run, overlays in runs if overlays]
    if not runs:
        raise RunFolderError("None of the runs has overlays: `optcam predict` writes them.")
    found = list(dict.fromkeys(row.id for run, overlays in runs for row in run.rows if row.id in overlays))
    ids = found if len(found) <= limit else [found[k * len(found) // limit] for k in range(limit)]
    rows = [{row.id: row for row in run.rows} for run, _ in runs]
    page = _PAGE.format(
        table=_safe(table([summarize(run) for run, _ in runs]), keep="\n"),
        shown=f"{len(ids)} of {len(found)} images.",
        sections="\n".join(_section(image_id, runs, rows) for image_id in ids),
    )
    output = expanded_path(output)
    write_file(output, page)
    return output


def _safe(text: str, keep: str = "") -> str:
    return html.escape("".join(c if c in keep else printable(c) for c in text))


def _overlays(run: Path) -> dict[str, Path]:
    """Image id -> file, only for files inside the run's own overlay folder."""
    folder, found = run / "overlays", {}
    for index in sorted(folder.glob("index*.json")):
        try:
            names = dict(json.loads(index.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise RunFolderError(f"Cannot read {index}: {error}.") from error
        for image_id, name in names.items():
            if isinstance(name, str) and Path(name).name == name and (folder / name).is_file():
                found[image_id] = folder / name
    return found


def _section(image_id: str, runs: Sequence[tuple[Run, Mapping[str, Path]]], rows: Sequence[Mapping[str, Row]]) -> str:
    figures = [
        _figure(run, overlays[image_id], of_run.get(image_id))
        for (run, overlays), of_run in zip(runs, rows, strict=True)
        if image_id in overlays
    ]
    return f"<h2>{_safe(image_id)}</h2>\n<section>\n{''.join(figures)}</section>"


def _figure(run: Run, path: Path, row: Row | None) -> str:
    name = _safe(run.manifest["explainer"])
    return (
        f'<figure><img alt="{name}" loading="lazy" src="data:image/jpeg;base64,{_jpeg(path)}">'
        f"<figcaption>{name}: {_safe(_caption(row, run))}</figcaption></figure>\n"
    )


def _caption(row: Row | None, run: Run) -> str:
    if row is None:
        return "no row"
    parts = [f"class {row.target}"] if row.target == row.predicted else [f"class {row.target}, seen as {row.predicted}"]
    if row.p is not None and row.o is not None:
        parts.append(f"p {row.p:.3f} → {row.o:.3f}")
    for key, score in row.scores.items():
        label = run.metrics[key].label if key in run.metrics else key
        if isinstance(score, float):
            parts.append(f"{label} {score:.2f}")
    return ", ".join([*parts, *([f"{row.status}: {row.reason}"] if row.status != "ok" else [])])


def _jpeg(path: Path) -> str:
    try:
        with Image.open(path) as image:
            data = io.BytesIO()
            image.convert("RGB").save(data, "JPEG", quality=88)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise RunFolderError(f"Cannot read {path}: {error}.") from error
    return base64.b64encode(data.getvalue()).decode()
