"""The page's charts as Vega-Lite specifications; Vega-Embed, which the page contains, draws them.

Colors are those of Okabe and Ito, which people with any kind of color vision can tell apart. Runs also differ by shape
or dash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from optcam_pl.metrics import MetricInfo
from optcam_pl.reports.summary import Run
from optcam_pl.reports.tables import Summary
from optcam_pl.runs.tensors import mean_curves

Spec = dict[str, Any]

_COLORS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8A6D00", "#777777"]
_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_POINTS = 100  # of a curve, at most
_CLASSES = 25  # bars of classes, at most
_HEIGHT = 300


class Chart(NamedTuple):
    """A chart of the page.

    Attributes:
        section: the part of the page that it stands in.
        title: its heading.
        words: what it shows, for everybody and for those who cannot see it.
        spec: the specification.
    """

    section: str
    title: str
    words: str
    spec: Spec


def head(info: MetricInfo) -> str:
    """Label, unit and better direction of a metric, for an axis.

    >>> head(MetricInfo("AD", "%", False, 2, "", "mean"))
    'AD (%), lower is better'
    """
    better = {True: ", higher is better", False: ", lower is better", None: ""}[info.higher_is_better]
    return f"{info.label}{f' ({info.unit})' if info.unit else ''}{better}"


def drop_against_gain(labels: Sequence[str], summaries: Sequence[Summary]) -> list[Chart]:
    """Average Drop against Average Gain, with the intervals of both; none if the runs lack one of them."""
    keys = ("average_drop", "average_gain")
    points = []
    for label, summary in zip(labels, summaries, strict=True):
        found = [summary.metrics.get(key) for key in keys]
        if any(estimate is None or estimate.value is None for estimate in found):
            continue
        point: dict[str, Any] = {"run": label}
        for axis, estimate in zip("xy", found, strict=True):
            assert estimate is not None  # see above
            ends = (estimate.value if end is None else end for end in (estimate.low, estimate.high))
            point |= {axis: estimate.value} | dict(zip((f"{axis}_low", f"{axis}_high"), ends, strict=True))
        points.append(point)
    if not points:
        return []
    drop, gain = (next(s for s in summaries if key in s.metrics).info(key) for key in keys)
    x, y = _axis("x", head(drop)), _axis("y", head(gain))
    color = _color(labels)
    layers = [
        {"mark": "rule", "encoding": {"x": {**x, "field": "x_low"}, "x2": {"field": "x_high"}, "y": y, "color": color}},
        {"mark": "rule", "encoding": {"y": {**y, "field": "y_low"}, "y2": {"field": "y_high"}, "x": x, "color": color}},
        {
            "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
            "encoding": {
                "x": x,
                "y": y,
                "color": color,
                "shape": _shape(labels),
                "tooltip": _tooltips("run", "x", "y"),
            },
        },
    ]
    words = "One point for each run, with the 95 % intervals of both means. Good runs are at the upper left."
    return [Chart("results", "Average Drop against Average Gain", words, _spec(points, layer=layers))]


def curves(labels: Sequence[str], runs: Sequence[Run]) -> list[Chart]:
    """The mean curves of metrics that have some (insertion, deletion ...), with their 95 % bands."""
    values: dict[str, list[dict[str, Any]]] = {}
    infos: dict[str, MetricInfo] = {}
    for label, run in zip(labels, runs, strict=True):
        for key, (mean, half, _) in mean_curves(Path(run.path)).items():
            if key not in run.metrics:
                continue
            infos.setdefault(key, run.metrics[key])
            last = max(len(mean) - 1, 1)
            every = range(0, len(mean), max(1, last // _POINTS))
            band = half.nan_to_num(0)  # a single image has none
            values.setdefault(key, []).extend(
                {
                    "run": label,
                    "step": 100 * i / last,
                    "value": float(mean[i]),
                    "low": float(mean[i] - band[i]),
                    "high": float(mean[i] + band[i]),
                }
                for i in every
            )
    x: Spec = {"field": "step", "type": "quantitative", "title": "share of the steps (%)"}
    color = _color(labels)
    found = []
    for key, points in values.items():
        unit = f" ({infos[key].unit})" if infos[key].unit else ""
        low, middle = (_axis(name, f"mean over the images{unit}") for name in ("low", "value"))
        line: Spec = {"x": x, "y": middle, "color": color, "strokeDash": _dash(labels)}
        line["tooltip"] = _tooltips("run", "step", "value")
        layers = [
            {
                "mark": {"type": "area", "opacity": 0.2},
                "encoding": {"x": x, "y": low, "y2": {"field": "high"}, "color": color},
            },
            {
                "mark": {"type": "line", "strokeWidth": 2},
                "encoding": line,
            },
        ]
        words = f"{head(infos[key])}: the mean over the images with its 95 % band."
        found.append(Chart("results", f"{infos[key].label}: curves", words, _spec(points, layer=layers)))
    return found


def classes(labels: Sequence[str], runs: Sequence[Run], names: Sequence[Mapping[int, str]]) -> list[Chart]:
    """Bars of each class's mean scores; the reader chooses the metric.

    Args:
        labels: names of the runs.
        runs: the runs.
        names: of each run, the names of its network's classes; a class is the same in two runs if its name is.
    """
    infos = {key: info for run in runs for key, info in run.metrics.items() if info.aggregate == "mean"}
    sums: dict[tuple[str, str, str], list[float]] = {}
    counts: Counter[tuple[int, str]] = Counter()
    for label, run, own in zip(labels, runs, names, strict=True):
        for row in run.usable:
            name = own.get(row.target, f"class {row.target}")
            counts[row.target, name] += 1
            for key in infos:
                score = row.scores.get(key)
                if isinstance(score, float):
                    sums.setdefault((label, key, name), []).append(score)
    largest = {name for _, name in sorted(counts, key=lambda one: (-counts[one], one))[:_CLASSES]}
    values = [
        {
            **{"run": label, "metric": infos[key].label, "class": name},
            **{"mean": sum(scores) / len(scores), "images": len(scores)},
        }
        for (label, key, name), scores in sums.items()
        if name in largest
    ]
    if not values or len(counts) < 2:
        return []
    offered = list(dict.fromkeys(value["metric"] for value in values))
    spec = _spec(
        values,
        height=len(largest) * (8 + len(labels) * max(7, 24 // len(labels))),
        params=[
            {"name": "metric", "value": offered[0], "bind": {"input": "select", "options": offered, "name": "metric "}}
        ],
        transform=[{"filter": "datum.metric == metric"}],
        mark="bar",
        encoding={
            "y": {"field": "class", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 140}},
            "yOffset": {"field": "run", "sort": list(labels)},
            "x": {"field": "mean", "type": "quantitative", "title": "mean over the class's images"},
            "color": _color(labels, orient="top"),
            "tooltip": _tooltips("class", "run", "mean", "images"),
        },
    )
    words = f"The means over the images of the {len(largest)} classes with most images, of {len(counts)} classes."
    return [Chart("classes", "By class", words, spec)]


def differences(labels: Sequence[str], summaries: Sequence[Summary]) -> list[Chart]:
    """The paired differences from one run, a chart for each metric."""
    points: dict[str, list[dict[str, Any]]] = {}
    infos: dict[str, MetricInfo] = {}
    for label, summary in zip(labels, summaries, strict=True):
        for key, estimate in summary.metrics.items():
            if (pair := estimate.against) is not None:
                infos.setdefault(key, summary.info(key))
                numbers = {"difference": pair.difference, "low": pair.low, "high": pair.high, "p": pair.p}
                known = {name: value for name, value in numbers.items() if value == value}  # noqa: PLR0124 (not NaN)
                points.setdefault(key, []).append({"run": label, **known})
    found = []
    for key, values in points.items():
        info = infos[key]
        x = {"type": "quantitative", "title": f"difference in {info.label}{f' ({info.unit})' if info.unit else ''}"}
        y = {"field": "run", "type": "nominal", "title": None, "sort": list(labels)}
        color = _color(labels, orient=None)
        layers = [
            {"mark": {"type": "rule", "strokeDash": [4, 3]}, "encoding": {"x": {**x, "datum": 0}}},
            {"mark": "rule", "encoding": {"y": y, "x": {**x, "field": "low"}, "x2": {"field": "high"}, "color": color}},
            {
                "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
                "encoding": {
                    **{"y": y, "x": {**x, "field": "difference"}, "color": color},
                    "tooltip": _tooltips("run", "difference", "low", "high", "p"),
                },
            },
        ]
        words = f"{head(info)}: the mean difference with its 95 % interval."
        found.append(Chart("differences", info.label, words, _spec(values, height=34 * len(values), layer=layers)))
    return found


def _spec(values: Sequence[Mapping[str, Any]], **parts: Any) -> Spec:
    size = {"width": "container", "height": _HEIGHT}
    return {"$schema": _SCHEMA, **size, "data": {"values": list(values)}, **parts}


def _axis(field: str, title: str) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, "scale": {"zero": False, "nice": True}}


def _by_run(labels: Sequence[str], values: Sequence[Any], orient: str | None = "bottom") -> Spec:
    """A channel that tells the runs apart; `orient` is the place of its legend, None for none."""
    many = [values[i % len(values)] for i in range(len(labels))]
    legend = {"orient": orient, "columns": 2, "title": None, "labelLimit": 220, "symbolOpacity": 1}
    return {
        **{"field": "run", "type": "nominal", "scale": {"domain": list(labels), "range": many}},
        "legend": legend if orient else None,
    }


def _color(labels: Sequence[str], orient: str | None = "bottom") -> Spec:
    return _by_run(labels, _COLORS, orient)


def _shape(labels: Sequence[str]) -> Spec:
    return _by_run(labels, ["circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "triangle-right"])


def _dash(labels: Sequence[str]) -> Spec:
    return _by_run(labels, [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 4]])


def _tooltips(*fields: str) -> list[Spec]:
    found = []
    for name in fields:
        words = name in ("run", "class")
        kind: Spec = {"type": "nominal"} if words else {"type": "quantitative", "format": ".4g"}
        found.append({"field": name, **kind})
    return found
