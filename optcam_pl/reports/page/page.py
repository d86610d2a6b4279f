"""Makes the page: reads the runs, writes the pictures, fills the template."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from optcam_pl.checks import check_positive, expanded_path
from optcam_pl.reports.grids import printable
from optcam_pl.reports.page import charts
from optcam_pl.reports.page.images import Gallery, Put, inside, into
from optcam_pl.reports.report import Run, compare_runs, find_run, find_runs, load_run
from optcam_pl.reports.statistics import Method
from optcam_pl.reports.summary import summarize_all
from optcam_pl.reports.tables import Summary, heading, metric_columns, p_cell, signed, words_of
from optcam_pl.runs.files import RunFolderError, write_file

_VEGA_LITE = "6.4"
_GLOBAL = "window.vegaEmbed = vegaEmbed;"
_NEEDS = 'The page needs two packages: pip install "optcam_pl[page]".'


def write_page(
    run_dirs: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    limit: int = 500,
    intervals: Method | None = "bca",
    against: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a page of runs: their table, charts, differences, settings, and a gallery of their maps.

    The page is opened without any server or network. It is a folder: `index.html` holds everything but the gallery's
    pictures, which lie in `images` and are loaded when they are scrolled to. Or it is one file to be sent, with the
    pictures inside. These are made of the thumbnails that runs store for up to 500 images; for runs of older versions,
    of the panels that `MapWriter` wrote.

    Args:
        run_dirs: run folders, or folders that contain runs.
        output: the folder, or the file if it ends in `.html`; files of the same names are replaced.
        limit: the maximum number of images in the gallery; they are spread evenly over the order of the dataset.
        intervals: the method for the 95 % bootstrap intervals of the means; None makes none.
        against: the run that the others are compared with, image by image; None means the first run.

    Returns:
        The path of `index.html`, or of the one file.

    Raises:
        ValueError: the limit is not positive.
        RunFolderError: a folder has no run, a run contradicts itself, or the page cannot be written.
        ImportError: jinja2 or vl-convert-python is not installed.
    """
    check_positive("limit", limit)
    try:
        import jinja2
        import vl_convert
    except ImportError as error:
        raise ImportError(_NEEDS) from error
    runs = [load_run(path) for path in find_runs(run_dirs)]
    summaries = summarize_all(runs, intervals)
    summaries, base, why_not = _differences(runs, summaries, against)
    path = expanded_path(output)
    one_file = path.suffix.lower() in (".html", ".htm")
    put = inside if one_file else into(path / "images")
    content = _content(runs, summaries, Gallery(runs, limit), put)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["printable"] = lambda text: printable(str(text))
    page = environment.from_string(_file("page.html")).render(
        **content,
        base=base,
        why_not=why_not,
        style=_file("page.css"),
        script=_file("page.js"),
        vega=vl_convert.javascript_bundle(_GLOBAL, _VEGA_LITE).replace("</script", "<\\/script"),
    )
    index = path if one_file else path / "index.html"
    write_file(index, page)
    return index


def _file(name: str) -> str:
    return files("optcam_pl.reports.page").joinpath(name).read_text(encoding="utf-8")


def _differences(
    runs: Sequence[Run], summaries: list[Summary], against: str | os.PathLike[str] | None
) -> tuple[list[Summary], str, str]:
    """The summaries with paired differences, the name of the run that they are from, and why there are none."""
    other = runs[0] if against is None else load_run(find_run(against))
    labels = dict(zip((run.path for run in runs), _labels(summaries), strict=True))
    name = labels.get(other.path, str(other.manifest["run"]))
    if against is None and len(runs) < 2:
        return summaries, name, "There is one run only."
    try:
        return compare_runs(runs, summaries, other), name, ""
    except RunFolderError as error:
        if against is not None:
            raise
        return summaries, name, str(error)


def _content(runs: Sequence[Run], summaries: Sequence[Summary], gallery: Gallery, put: Put) -> dict[str, Any]:
    """What the template shows."""
    labels = _labels(summaries)
    names = [_class_names(run) for run in runs]
    drawn = [
        *charts.drop_against_gain(labels, summaries),
        *charts.curves(labels, runs),
        *charts.classes(labels, runs, names),
        *charts.differences(labels, summaries),
    ]
    shown = gallery.images(put)
    classes = _name_classes(shown, names)
    words = [_quantity(summary) for summary in summaries]
    data = {
        "runs": labels,
        "quantities": words,
        "images": shown,
        "classes": classes,
        "charts": [chart.spec for chart in drawn],
        "metrics": {key: {"label": i.label, "digits": i.digits} for run in runs for key, i in run.metrics.items()},
    }
    common, settings = _settings(labels, summaries)
    return {
        "title": ", ".join(dict.fromkeys(summary.data for summary in summaries)),
        "networks": ", ".join(dict.fromkeys(summary.classifier for summary in summaries)),
        "table": _table(labels, summaries),
        "charts": list(enumerate(drawn)),
        "pairs": _pairs(labels, summaries),
        "common": common,
        "settings": settings,
        "labels": labels,
        "notes": [f"{label}: {note}" for label, s in zip(labels, summaries, strict=True) for note in s.notes],
        "quantities": list(dict.fromkeys(words)),
        "found": gallery.found,
        "shown": len(shown),
        "without": [labels[runs.index(run)] for run in gallery.without],
        "data": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }


def _class_names(run: Run) -> dict[int, str]:
    """The names of the classes of a run's network by index; those that several classes have, with the index."""
    names = run.manifest.get("class_names", [])
    times = Counter(names)
    return {index: name if times[name] == 1 else f"{name} ({index})" for index, name in enumerate(names)}


def _name_classes(shown: Sequence[dict[str, Any]], names: Sequence[dict[int, str]]) -> list[dict[int, str]]:
    """Note with each image whose classes its first run has (`named`); return those classes that occur, by network."""
    networks: list[dict[int, str]] = []
    classes: list[dict[int, str]] = []
    for image in shown:
        of = next(own for own, entry in zip(names, image["runs"], strict=True) if entry)
        if of not in networks:
            networks.append(of)
            classes.append({})
        image["named"] = networks.index(of)
        used = {entry[key] for entry in image["runs"] if entry for key in ("target", "predicted")}
        classes[image["named"]] |= {index: of[index] for index in used if index in of}
    return classes


def _labels(summaries: Sequence[Summary]) -> list[str]:
    """A name for each run that no other has: the method's, if it is the only one of that method."""
    explainers = [summary.explainer for summary in summaries]
    labels: list[str] = []
    for summary in summaries:
        alone = explainers.count(summary.explainer) == 1
        label = summary.explainer if alone else f"{summary.explainer} ({summary.run})"
        labels.append(label if label not in labels else f"{label} {len(labels) + 1}")
    return labels


def _quantity(summary: Summary) -> str:
    """What a run's p and o are: with the link "identity" its scores have no probabilities."""
    return "score" if summary.settings.get("link") == "identity" else "p"


def _table(labels: Sequence[str], summaries: Sequence[Summary]) -> dict[str, Any]:
    """Columns and rows of the table; a cell is a number to sort by, its text, and whether it is the column's best."""
    columns = metric_columns(summaries)
    best = {}
    for column in columns:
        better = column.info.higher_is_better
        values = [e.value for s in summaries if (e := column.of(s)) is not None and e.value is not None]
        if len(values) > 1 and better is not None:
            best[column] = max(values) if better else min(values)
    rows = []
    for label, summary in zip(labels, summaries, strict=True):
        cells = []
        for column in columns:
            estimate, digits = column.of(summary), column.info.digits
            if estimate is None or estimate.value is None:
                cells.append({"sort": "", "text": "-", "interval": "", "best": False})
                continue
            interval = "" if estimate.low is None else f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}"
            is_best = estimate.value == best.get(column)
            cells.append(
                {"sort": estimate.value, "text": f"{estimate.value:.{digits}f}", "interval": interval, "best": is_best}
            )
        seconds, done = summary.seconds_per_image, summary.statuses["ok"] + summary.statuses["degenerate"]
        time = {"sort": "" if seconds is None else seconds, "text": "-" if seconds is None else f"{seconds:.3g}"}
        count = {"sort": done, "text": str(done) if done == summary.images else f"{done} of {summary.images}"}
        rows.append({"label": label, "cells": [*cells, time, count]})
    heads = [{"head": column.head, "words": charts.head(column.info)} for column in columns]
    more = [
        {"head": "s/image", "words": "seconds of explaining an image, mean"},
        {"head": "images", "words": "images with a result"},
    ]
    return {"columns": [*heads, *more], "rows": rows}


def _pairs(labels: Sequence[str], summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """The rows of the table of differences."""
    found = []
    for label, summary in zip(labels, summaries, strict=True):
        for key, estimate in summary.metrics.items():
            if (pair := estimate.against) is None:
                continue
            info = summary.info(key)
            numbers = [signed(info, number) for number in (pair.difference, pair.low, pair.high)]
            is_sure = pair.p < 0.05
            row = {"label": label, "metric": heading(key, info), "p": p_cell(pair.p), "images": pair.images}
            found.append({**row, "difference": numbers[0], "low": numbers[1], "high": numbers[2], "is_sure": is_sure})
    return found


def _settings(
    labels: Sequence[str], summaries: Sequence[Summary]
) -> tuple[list[tuple[str, str]], list[dict[str, Any]]]:
    """The settings that all runs share, and those that differ, with one cell for each run."""
    of_runs = [
        {**s.conditions, **{key: words_of(value) for key, value in s.options.items() if key not in s.conditions}}
        for s in summaries
    ]
    keys = list(dict.fromkeys(key for settings in of_runs for key in settings))
    common, differing = [], []
    for key in keys:
        values = [settings.get(key, "-") for settings in of_runs]
        if len(set(values)) == 1:
            common.append((key, values[0]))
        else:
            differing.append({"key": key, "values": values})
    return common, differing
