"""A run's numbers, and what a table says of several runs: as cells for people (`grids`), and as CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from optcam_pl.checks import check_choice
from optcam_pl.metric_info import OWN_KEYS, MetricInfo
from optcam_pl.reports.grids import (
    Grid,
    PagesFormat,  # noqa: F401 - it and two others here stood in this module before
    aligned,  # noqa: F401
    grid_width,
    printable,
    render,
    wrapped,  # noqa: F401
)

if TYPE_CHECKING:
    from optcam_pl.metrics import ImageMetric

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
_OF_PACKAGE = re.compile(r"\Aoptcam_pl(\.\w+)*\.(?=\w+\Z)")  # the modules before a name
_WIDEST = 160  # the maximum width, in characters, of a table with one row per run

Format = Literal["text", "markdown", "csv", "latex", "json"]


def own_metrics() -> Mapping[str, type[ImageMetric]]:
    """The package's metrics by key, for old runs and functions of several means; they load PyTorch."""
    from optcam_pl.metrics import METRICS

    return METRICS


@dataclass(frozen=True)
class PaperValue:
    """A published value: the number in our unit, its table, and the settings that differ from the run's."""

    value: float
    table: str
    differences: tuple[str, ...] = ()


@dataclass(frozen=True)
class Paired:
    """A run's mean difference from another run on the images that both have, with its interval and p value."""

    run: str
    images: int
    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Estimate:
    """A mean over images.

    Attributes:
        value: The mean; None where no image has the score.
        undefined: Number of images without the score; the mean leaves them out.
        low: Lower end of the interval, if one was requested.
        high: Upper end of the interval, if one was requested.
        published: The paper's value, if it was requested and exists.
        against: The difference from another run, if it was requested.
    """

    value: float | None
    undefined: int = 0
    low: float | None = None
    high: float | None = None
    published: PaperValue | None = None
    against: Paired | None = None

    @property
    def beyond_published(self) -> float | None:
        """Our value minus the paper's, where all settings match the paper's."""
        comparable = self.value is not None and self.published is not None and not self.published.differences
        return self.value - self.published.value if comparable else None  # type: ignore[union-attr, operator]


@dataclass(frozen=True)
class Summary:
    """A run's numbers.

    Attributes:
        run: Name of the run.
        stage: What was done: "test", "fit" or "predict".
        data: Name of the dataset.
        classifier: Name of the network.
        explainer: Name of the method.
        settings: The settings that the numbers depend on, by dotted name.
        options: The method's own settings.
        images: Number of images in the run's dataset.
        statuses: How many of them are "ok", "degenerate", "error" and "missing".
        seconds_per_image: Mean over the images without an error; None if there are none.
        metrics: The means by metric, in the run's order.
        notes: What was left out, in words.
        metric_info: What the metrics are, by metric; see `info`.
    """

    run: str
    stage: str
    data: str
    classifier: str
    explainer: str
    settings: dict[str, Any]
    options: dict[str, Any]
    images: int
    statuses: dict[str, int]
    seconds_per_image: float | None
    metrics: dict[str, Estimate]
    notes: tuple[str, ...] = ()
    metric_info: Mapping[str, MetricInfo] = field(default_factory=dict)

    def named(self, method: str) -> Summary:
        """The summary with another name of the method, such as that of its settings."""
        return replace(self, explainer=method)

    def info(self, key: str) -> MetricInfo:
        """The description of a metric; if the summary has none, that of the package's metric with this key."""
        return self.metric_info[key] if key in self.metric_info else own_metrics()[key]().describe()

    def values(self) -> dict[str, float]:
        """The numbers to log, by name: the metrics and the seconds per image; NaN where a number is missing."""
        numbers = {key: estimate.value for key, estimate in self.metrics.items()}
        numbers["seconds_per_image"] = self.seconds_per_image
        return {key: math.nan if value is None else value for key, value in numbers.items()}

    @property
    def conditions(self) -> dict[str, str]:
        """Everything except the method that the numbers depend on, as text."""
        shown = {**self.settings, "classifier": self.classifier, "data": self.data}
        if self.stage != "test":
            shown["stage"] = self.stage
        return {key: words_of(value) for key, value in shown.items()}


def words_of(value: Any) -> str:
    """A setting's value as text: of a function of this package the name, of another one where it is imported from.

    Example:
        >>> words_of("optcam_pl.network.image_text.cosine_share"), words_of("my_net.link"), words_of([1, 2])
        ('cosine_share', 'my_net.link', '[1, 2]')
    """
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ", ".join(value)
    return _OF_PACKAGE.sub("", value) if isinstance(value, str) else json.dumps(value)


def decimals(value: float | None, digits: int) -> str:
    """A number with so many decimals, or "-" for none."""
    return "-" if value is None else f"{value:.{digits}f}"


def signed(info: MetricInfo, value: float | None) -> str:
    """A difference in a metric's digits with its sign, or "-" for none: an interval needs more than one image."""
    return "-" if value is None or math.isnan(value) else f"{value:+.{info.digits}f}"


def p_cell(p: float) -> str:
    """A p value with two digits, or "-" for none."""
    return "-" if math.isnan(p) else f"{p:.2g}"


def estimate_cell(summary: Summary, key: str) -> str:
    """A metric's value with its interval, "-" where the run has none."""
    if key not in summary.metrics:
        return "-"
    estimate, digits = summary.metrics[key], summary.info(key).digits
    text = decimals(estimate.value, digits)
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def heading(key: str, info: MetricInfo) -> str:
    """Label, unit and better direction; the package's own percentages have no unit in the heading, as in papers."""
    usual = key in OWN_KEYS and info.unit == "%"
    arrow = "" if info.higher_is_better is None else "↑" if info.higher_is_better else "↓"
    return " ".join(filter(None, (info.label, f"({info.unit})" if info.unit and not usual else "", arrow)))


class Column(NamedTuple):
    """A metric's column in a table of several runs.

    Attributes:
        key: the metric.
        head: its heading.
        info: what the first run that has it says about it.
    """

    key: str
    head: str
    info: MetricInfo

    def of(self, summary: Summary) -> Estimate | None:
        """The run's value in this column; None if it has no such metric, or another one with the same key."""
        estimate = summary.metrics.get(self.key)
        return estimate if estimate and heading(self.key, summary.info(self.key)) == self.head else None


def metric_columns(summaries: Sequence[Summary]) -> list[Column]:
    """The columns of the summaries' metrics; different metrics with the same key get a column each."""
    found: dict[tuple[str, str], MetricInfo] = {}
    for summary in summaries:
        for key in summary.metrics:
            found.setdefault((key, heading(key, summary.info(key))), summary.info(key))
    return [Column(*names, info) for names, info in found.items()]


def _union(keys: Sequence[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(key for some in keys for key in some))


def _differing(of: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    """The settings that have several values for one owner."""
    values: dict[tuple[str, str], set[str]] = {}
    for owner, settings in of:
        for key, value in settings.items():
            values.setdefault((key, owner), set()).add(words_of(value))
    return _union([[key for (key, _), found in values.items() if len(found) > 1]])


def _whole_options(summaries: Sequence[Summary]) -> list[tuple[str, dict[str, Any]]]:
    """Each run's method and its settings; one that only another run of the method has is None, as it is not shared."""
    known: dict[str, list[str]] = {}
    for s in summaries:
        known[s.explainer] = _union([known.get(s.explainer, []), list(s.options)])
    return [(s.explainer, {key: s.options.get(key) for key in known[s.explainer]}) for s in summaries]


def run_grid(summaries: Sequence[Summary]) -> Grid:
    """One row per run. Settings in which the runs differ are columns; shared settings appear once, below."""
    columns = _differing(("", s.conditions) for s in summaries)
    own = [key for key in _differing(_whole_options(summaries)) if key not in columns]
    words = [
        [s.explainer, *(s.conditions.get(k, "-") for k in columns), *(words_of(s.options.get(k, "-")) for k in own)]
        for s in summaries
    ]
    named = len({tuple(row) for row in words}) < len(words)  # then only the runs' names distinguish them
    metrics = metric_columns(summaries)
    body = [
        [
            *([s.run] if named else []),
            *row,
            *(estimate_cell(s, column.key) if column.of(s) else "-" for column in metrics),
            decimals(s.seconds_per_image, 4),
            _images(s),
        ]
        for s, row in zip(summaries, words, strict=True)
    ]
    header = [*(["run"] if named else []), "method", *columns, *own]
    common = {key: _setting(key, summaries) for s in summaries for key in s.conditions if key not in columns}
    for s in summaries:
        options = ", ".join(f"{k}={words_of(v)}" for k, v in s.options.items() if k not in own and v is not None)
        common |= {f"({s.explainer})": f"{s.explainer}({options})"} if options else {}
    twice = len({summary.explainer for summary in summaries}) < len(summaries)
    notes = [f"{s.run if twice else s.explainer}: {note}" for s in summaries for note in s.notes]
    return Grid(
        [*header, *(column.head for column in metrics), "s/image", "images"],
        body,
        len(header),
        list(common.values()),
        notes,
    )


def _published_grid(summaries: Sequence[Summary]) -> Grid | None:
    """The paper's values next to ours, one row for each."""
    body, reasons = [], []
    for summary in summaries:
        for key, estimate in summary.metrics.items():
            if (paper := estimate.published) is None:
                continue
            info = summary.info(key)
            values = [decimals(value, info.digits) for value in (estimate.value, paper.value)]
            difference = signed(info, estimate.beyond_published)
            body.append([summary.explainer, heading(key, info), *values, difference, paper.table])
            reasons.append((f"{summary.explainer}, table {paper.table}", paper.differences))
    header = ["method", "metric", "ours", "paper", "difference", "table"]
    title = "Beside the published values (Zhang et al., CVIU 2024):"
    return Grid(header, body, 2, [], not_comparable(reasons), title) if body else None


def not_comparable(found: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    """Sentences that name the settings in which runs differ from the paper, one for each set of settings.

    Args:
        found: what was compared, and the settings that differ.

    Example:
        >>> not_comparable([("GradCAM, table 1", ["images 9, not 50000"]), ("LIME, table 1", ["images 9, not 50000"])])
        ['GradCAM, table 1; LIME, table 1: not comparable: images 9, not 50000']
    """
    of: dict[str, list[str]] = {}
    for name, settings in found:
        if settings:
            of.setdefault(", ".join(settings), []).append(name)
    return [f"{'; '.join(dict.fromkeys(names))}: not comparable: {settings}" for settings, names in of.items()]


def against_grid(summaries: Sequence[Summary]) -> Grid | None:
    """The paired differences, one row for each."""
    pairs = [(s, k, s.info(k), e.against) for s in summaries for k, e in s.metrics.items() if e.against is not None]
    twice = len({s.explainer for s in summaries}) < len(summaries)
    body = [
        [
            *(s.run if twice else s.explainer, heading(key, info), signed(info, pair.difference)),
            f"[{signed(info, pair.low)}, {signed(info, pair.high)}]",
            *(p_cell(pair.p), str(pair.images)),
        ]
        for s, key, info, pair in pairs
    ]
    header = ["method", "metric", "difference", "95 % interval", "p (Holm)", "images"]
    title = f"Difference to {pairs[0][3].run}, on the images of both:" if pairs else ""
    return Grid(header, body, 2, [], [], title) if body else None


def _grids(summaries: Sequence[Summary]) -> list[Grid]:
    others = (_published_grid(summaries), against_grid(summaries))
    return [_narrow(run_grid(summaries)), *(grid for grid in others if grid is not None)]


def _narrow(grid: Grid) -> Grid:
    """The grid; if it is too wide to read, the transposed grid (one row per metric) where that is narrower."""
    turned = replace(
        grid,
        header=["metric", *(", ".join(row[: grid.left]) for row in grid.body)],
        body=[list(column) for column in zip(grid.header, *grid.body, strict=True)][grid.left :],
        left=1,
    )
    return min((grid, turned), key=grid_width) if grid_width(grid) > _WIDEST else grid


def _images(summary: Summary) -> str:
    done = summary.images - summary.statuses["missing"] - summary.statuses["error"]
    return str(done) if done == summary.images else f"{done}/{summary.images}"


def _setting(key: str, summaries: Sequence[Summary]) -> str:
    """`key: value`; if not all runs have the setting, the methods that do are named."""
    having = [summary for summary in summaries if key in summary.conditions]
    some = f" ({', '.join(_union([[s.explainer for s in having]]))})" if len(having) < len(summaries) else ""
    return f"{key}{some}: {having[0].conditions[key]}"


def spreadsheet_cell(text: str) -> str:
    """A text for CSV; what a spreadsheet would read as a formula, and is no number, gets a quote in front."""
    shown = printable(text)
    return shown if _NUMBER.fullmatch(shown) else re.sub(r"\A([=+@-])", r"'\1", shown)


def _csv(summaries: Sequence[Summary]) -> str:
    """Everything at full precision, one row per run; text that a spreadsheet would read as a formula gets a quote."""
    fixed = ["run", "stage", "data", "classifier", "explainer"]
    settings = _union([[*summary.settings, *summary.options] for summary in summaries])
    settings = [key for key in settings if key not in fixed]  # a column each; manifests name the classifier twice
    metrics = _union([list(summary.metrics) for summary in summaries])
    statuses = ["ok", "degenerate", "error", "missing"]
    numbers = [{key: _numbers(estimate) for key, estimate in summary.metrics.items()} for summary in summaries]
    extra = _union([list(found) for of_run in numbers for found in of_run.values()])
    columns = [(key, kind) for key in metrics for kind in extra]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [f"{key}{'_' + kind if kind else ''}" for key, kind in columns]
    writer.writerow(
        [
            *fixed,
            *map(spreadsheet_cell, settings),
            "images",
            *statuses,
            "seconds_per_image",
            *map(spreadsheet_cell, names),
        ]
    )
    for s, found in zip(summaries, numbers, strict=True):
        words = [getattr(s, key) for key in fixed] + [{**s.options, **s.settings}.get(key, "") for key in settings]
        values = [s.seconds_per_image, *(found.get(key, {}).get(kind) for key, kind in columns)]
        counts = [s.images, *(s.statuses[status] for status in statuses)]
        texts = [spreadsheet_cell(words_of(word)) for word in words]
        writer.writerow([*texts, *counts, *("" if value is None else repr(value) for value in values)])
    return out.getvalue()


def _numbers(estimate: Estimate) -> dict[str, float | None]:
    """An estimate's numbers by the suffix of their CSV column; numbers that no run has get no column."""
    found: dict[str, float | None] = {"": estimate.value}
    if estimate.low is not None:
        found |= {"low": estimate.low, "high": estimate.high}
    if paper := estimate.published:
        found |= {"published": paper.value, "published_difference": estimate.beyond_published}
    if pair := estimate.against:
        numbers = {"": pair.difference, "_low": pair.low, "_high": pair.high, "_p": pair.p}
        found |= {f"against{end}": _known(number) for end, number in numbers.items()}
    return found


def _known(number: float) -> float | None:
    """A number, None for NaN, which JSON does not have."""
    return None if math.isnan(number) else number


def as_dict(summary: Summary) -> dict[str, Any]:
    """A summary as in the JSON report: numbers at full precision, and metrics by key with their descriptions."""
    keys = ("run", "stage", "data", "classifier", "explainer", "settings", "options", "images", "statuses")
    metrics: dict[str, dict[str, Any]] = {}
    for key, estimate in summary.metrics.items():
        info = summary.info(key)
        described = {"label": info.label, "unit": info.unit, "higher_is_better": info.higher_is_better}
        metrics[key] = {"value": estimate.value, **described}
        if estimate.low is not None:
            metrics[key] |= {"low": estimate.low, "high": estimate.high}
        if estimate.undefined:
            metrics[key]["undefined"] = estimate.undefined
        if paper := estimate.published:
            metrics[key]["published"] = {**asdict(paper), "difference": estimate.beyond_published}
        if pair := estimate.against:
            numbers = {end: _known(getattr(pair, end)) for end in ("difference", "low", "high", "p")}
            metrics[key]["against"] = {**asdict(pair), **numbers}
    return {
        **{key: getattr(summary, key) for key in keys},
        "seconds_per_image": summary.seconds_per_image,
        "metrics": metrics,
        "notes": list(summary.notes),
    }


def _json(summaries: Sequence[Summary]) -> str:
    return json.dumps([as_dict(summary) for summary in summaries], indent=2, allow_nan=False) + "\n"


def table(summaries: Sequence[Summary], format: Format = "text") -> str:
    """Show summaries as a table with one row per run.

    In the formats for people (text, markdown, latex), settings that all runs share appear once below the table, and
    settings that differ are columns. Notes about what was left out follow. In the formats for programs (csv, json),
    every number has all its digits.

    Args:
        summaries: The runs, in the order of the rows.
        format: "text", "markdown", "csv", "latex" or "json".

    Raises:
        ValueError: If the format is not one of these.
    """
    check_choice("format", format, Format)
    if format == "csv":
        return _csv(summaries)
    if format == "json":
        return _json(summaries)
    return "\n".join(render(grid, format) for grid in _grids(summaries))
