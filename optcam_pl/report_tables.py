"""Tables of summaries as text, Markdown, CSV, LaTeX and JSON; names from outside are escaped for each."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.cells import cell_len

from optcam_pl.metrics import METRICS

Format = Literal["text", "markdown", "csv", "latex", "json"]


@dataclass(frozen=True)
class Estimate:
    """A mean over images.

    Attributes:
        value: The mean; None where no image has the score.
        undefined: Number of images without the score, which the mean leaves out.
        low: Lower end of its interval, where one was asked for.
        high: Upper end.
    """

    value: float | None
    undefined: int = 0
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Summary:
    """A run's numbers.

    Attributes:
        run: Name of the run.
        stage: What was done: "test", "fit" or "predict".
        data: Name of the dataset.
        classifier: Name of the network.
        explainer: Name of the method.
        settings: What the numbers depend on, by dotted name.
        images: Number of images in the dataset of the run.
        statuses: How many of them are "ok", "degenerate", "error" and "missing".
        seconds_per_image: Mean over the images without an error; None where there is none.
        metrics: The means by metric, in the run's order.
        notes: What was left out, in words.
    """

    run: str
    stage: str
    data: str
    classifier: str
    explainer: str
    settings: dict[str, Any]
    images: int
    statuses: dict[str, int]
    seconds_per_image: float | None
    metrics: dict[str, Estimate]
    notes: tuple[str, ...] = ()

    def values(self) -> dict[str, float]:
        """Its numbers by name, to be logged: the metrics and the seconds per image; NaN where there is none."""
        numbers = {key: estimate.value for key, estimate in self.metrics.items()}
        numbers["seconds_per_image"] = self.seconds_per_image
        return {key: math.nan if value is None else value for key, value in numbers.items()}

    @property
    def conditions(self) -> dict[str, str]:
        """All that the numbers depend on but the method, as text."""
        shown = {**self.settings, "classifier": self.classifier, "data": self.data}
        if self.stage != "test":
            shown["stage"] = self.stage
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in shown.items()}


@dataclass(frozen=True)
class _Grid:
    """A table for people: plain cells, and below it what holds for all runs, and the notes."""

    header: list[str]
    body: list[list[str]]
    left: int  # this many columns are words, the others numbers
    common: list[str]
    notes: list[str]

    @property
    def below(self) -> list[str]:
        return [line for line in ["; ".join(self.common), *self.notes] if line]


def printable(text: str) -> str:
    r"""Escape control characters and undecodable bytes, so that a name can neither drive a terminal nor break a line.

    Example:
        >>> print(printable("a\nb\x1b[31m"))
        a\nb\x1b[31m
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _decimals(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _cell(key: str, estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    digits = 2 if METRICS[key].unit == "%" else 4
    text = _decimals(estimate.value, digits)
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def _head(key: str) -> str:
    return f"{METRICS[key].label} {'↑' if METRICS[key].higher_is_better else '↓'}"


def _union(keys: Sequence[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(key for some in keys for key in some))


def _grid(summaries: Sequence[Summary]) -> _Grid:
    """One row a run; a setting in which runs differ is a column, one on which they agree stands below, once."""
    values: dict[str, dict[str, list[str]]] = {}  # setting -> its values -> the methods that have it
    for summary in summaries:
        for key, value in summary.conditions.items():
            values.setdefault(key, {}).setdefault(value, []).append(summary.explainer)
    columns = [key for key, found in values.items() if len(found) > 1]
    words = [[s.explainer, *(s.conditions.get(key, "-") for key in columns)] for s in summaries]
    named = len({tuple(row) for row in words}) < len(words)  # then only the runs' own names tell them apart
    metrics = _union([list(summary.metrics) for summary in summaries])
    body = [
        [
            *([summary.run] if named else []),
            *row,
            *(_cell(key, summary.metrics.get(key)) for key in metrics),
            _decimals(summary.seconds_per_image, 4),
            _images(summary),
        ]
        for summary, row in zip(summaries, words, strict=True)
    ]
    header = [*(["run"] if named else []), "method", *columns]
    common = [_setting(key, found, len(body)) for key, found in values.items() if len(found) == 1]
    twice = len({summary.explainer for summary in summaries}) < len(summaries)
    notes = [f"{s.run if twice else s.explainer}: {note}" for s in summaries for note in s.notes]
    return _Grid([*header, *map(_head, metrics), "s/image", "images"], body, len(header), common, notes)


def _images(summary: Summary) -> str:
    done = summary.images - summary.statuses["missing"] - summary.statuses["error"]
    return str(done) if done == summary.images else f"{done}/{summary.images}"


def _setting(key: str, found: dict[str, list[str]], runs: int) -> str:
    """`key: value`, with the methods that have the setting where not all runs have it."""
    ((value, methods),) = found.items()
    return f"{key}: {value}" if len(methods) == runs else f"{key} ({', '.join(dict.fromkeys(methods))}): {value}"


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _text(grid: _Grid) -> str:
    rows = [[printable(cell) for cell in row] for row in [grid.header, *grid.body]]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        padded = []
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - cell_len(cell))
            padded.append(cell + space if column < grid.left else space + cell)
        return "  ".join(padded).rstrip()

    lines = [line(rows[0]), "  ".join("-" * width for width in widths), *map(line, rows[1:])]
    whole = [printable(setting).replace(" ", "\0") for setting in grid.common]  # a setting is not broken over lines
    lines += [part.replace("\0", " ") for part in _wrap("; ".join(whole))]
    lines += [part for note in grid.notes for part in _wrap(printable(note))]
    return "\n".join(lines) + "\n"


def _markdown(grid: _Grid) -> str:
    def escape(text: str) -> str:
        return re.sub(r"([\\`*_{}\[\]|~])", r"\\\1", html.escape(printable(text), quote=False))

    rules = ["---" if column < grid.left else "---:" for column in range(len(grid.header))]
    rows = [[escape(cell) for cell in row] for row in [grid.header, *grid.body]]
    lines = [f"| {' | '.join(row)} |" for row in [rows[0], rules, *rows[1:]]]
    return "\n".join([*lines, "", *(f"- {escape(below)}" for below in grid.below)]) + "\n"


_TEX = {c: rf"\{c}" for c in "&%$#_{}"} | {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"},
    **{">": r"\textgreater{}", "|": r"\textbar{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$"},
}


def _latex(grid: _Grid) -> str:
    def escape(text: str) -> str:
        return "".join(_TEX.get(c, c) for c in printable(text))

    rows = [" & ".join(map(escape, row)) + r" \\" for row in [grid.header, *grid.body]]
    columns = "l" * grid.left + "r" * (len(grid.header) - grid.left)
    below = [rf"\par{{\footnotesize {escape(line)}\par}}" for line in grid.below]
    head = ["% needs \\usepackage{booktabs}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rows[0], r"\midrule"]
    return "\n".join([*head, *rows[1:], r"\bottomrule", r"\end{tabular}", *below]) + "\n"


def _csv(summaries: Sequence[Summary]) -> str:
    """Everything at full precision, one row a run; a text that a spreadsheet would take for a formula gets a quote."""
    settings = _union([list(summary.settings) for summary in summaries])
    metrics = _union([list(summary.metrics) for summary in summaries])
    statuses = ["ok", "degenerate", "error", "missing"]
    fixed = ["run", "stage", "data", "classifier", "explainer"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    bounds = ["low", "high"] if any(e.low is not None for s in summaries for e in s.metrics.values()) else []
    ends = [f"{key}_{end}" for key in metrics for end in bounds]
    writer.writerow([*fixed, *settings, "images", *statuses, "seconds_per_image", *metrics, *ends])
    for s in summaries:
        words = [getattr(s, key) for key in fixed] + [s.settings.get(key, "") for key in settings]
        texts = [word if isinstance(word, str) else json.dumps(word) for word in words]
        estimates = [s.metrics.get(key, Estimate(None)) for key in metrics]
        numbers = [s.seconds_per_image, *(e.value for e in estimates)]
        numbers += [getattr(e, end) for e in estimates for end in bounds]
        writer.writerow(
            [*(re.sub(r"\A([=+@-])", r"'\1", printable(text)) for text in texts), s.images]
            + [s.statuses[status] for status in statuses]
            + ["" if number is None else repr(number) for number in numbers]
        )
    return out.getvalue()


def as_dict(summary: Summary) -> dict[str, Any]:
    """A summary as the JSON report has it: numbers at full precision, metric names those of the published table."""
    keys = ("run", "stage", "data", "classifier", "explainer", "settings", "images", "statuses", "seconds_per_image")
    metrics = {}
    for key, estimate in summary.metrics.items():
        metrics[key] = {"value": estimate.value}
        if estimate.low is not None:
            metrics[key] |= {"low": estimate.low, "high": estimate.high}
        if estimate.undefined:
            metrics[key]["undefined"] = estimate.undefined
    return {**{key: getattr(summary, key) for key in keys}, "metrics": metrics, "notes": list(summary.notes)}


def _json(summaries: Sequence[Summary]) -> str:
    return json.dumps([as_dict(summary) for summary in summaries], indent=2, allow_nan=False) + "\n"


_FORMATS: dict[Format, Callable[[Sequence[Summary]], str]] = {
    "text": lambda summaries: _text(_grid(summaries)),
    "markdown": lambda summaries: _markdown(_grid(summaries)),
    "csv": _csv,
    "latex": lambda summaries: _latex(_grid(summaries)),
    "json": _json,
}


def table(summaries: Sequence[Summary], format: Format = "text") -> str:
    """Show summaries as a table, one row a run.

    For people (text, markdown, latex) the settings on which all runs agree stand below, once, and those in which they
    differ are columns; notes about what was left out follow. For programs (csv, json) every number has all its digits.

    Args:
        summaries: The runs, in the order of the rows.
        format: "text", "markdown", "csv", "latex" or "json".

    Raises:
        ValueError: If the format is another.
    """
    if format not in _FORMATS:
        raise ValueError(f"Expected `format` to be one of {', '.join(_FORMATS)}, but got {format!r}.")
    return _FORMATS[format](summaries)
