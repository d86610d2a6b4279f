"""Does a set-up measure what the paper measures? Checks that cost little and whose right answer is known."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.stats import binomtest

from optcam_pl.reports.grids import Grid
from optcam_pl.reports.statistics import Interval, bootstrap_interval, paired_difference
from optcam_pl.reports.summary import Run

Verdict = Literal["right", "off", "cannot tell"]

LE_OF_FAKE_CAM = 54.0
"""Fake-CAM's localization error on ImageNet's validation images in tables A.7 and A.8, in percent."""

# Top-1 accuracy in percent with the source's own resize and crop: results/results-imagenet.csv of timm's repository.
TIMM_ACCURACY = {
    "deit_base_patch16_224.fb_in1k": 81.992,
    "tf_efficientnet_lite0.in1k": 74.830,
    "vit_base_patch16_224.augreg2_in21k_ft_in1k": 85.096,
    "vit_base_patch16_224.augreg_in21k_ft_in1k": 84.532,
}

_ROUNDING = 1e-3  # nats and points: float32 maps and probabilities differ by less
_SAME_MAPS = 0.05  # points: half of the last digit that the paper prints
_FAITHFUL = ("average_drop", "average_gain", "average_increase")


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: what was checked.
        ours: what was found, in words.
        expected: what it should be, in words.
        verdict: whether it is right.
        effect: what follows for the paper's tables, in a sentence.
    """

    name: str
    ours: str
    expected: str
    verdict: Verdict
    effect: str


def _interval(found: Interval, digits: int = 2) -> str:
    if math.isnan(found.low):
        return f"{found.value:.{digits}f}"
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def _within(value: float, found: Interval) -> Verdict:
    if math.isnan(found.low):
        return "cannot tell"
    return "right" if found.low <= value <= found.high else "off"


def _share(hits: Sequence[bool]) -> Interval:
    """The share of hits in percent, with its exact interval, which also holds where all or none of a few are hits."""
    if not hits:
        return Interval(math.nan, math.nan, math.nan)
    ends = binomtest(sum(hits), len(hits)).proportion_ci(method="exact")
    return Interval(100.0 * sum(hits) / len(hits), 100.0 * float(ends.low), 100.0 * float(ends.high))


def accuracy(run: Run, published: float | None) -> Finding:
    """Top-1 accuracy against the weights' source.

    Args:
        run: any method's run for the label, on images with the source's own resize and crop.
        published: the source's accuracy in percent; None if it is not known.
    """
    found = _share([row.predicted == row.target for row in run.usable])
    name = "top-1 accuracy with the source's resize and crop, %"
    if published is None:
        return Finding(name, _interval(found), "not known", "cannot tell", "the source's accuracy is not known")
    verdict = _within(published, found)
    difference = found.value - published
    effect = (
        f"weights, labels, preprocessing or images are others ({difference:+.1f} points): for {abs(difference):.1f} % "
        "of the images or more, p is another number, in every column of every table"
    )
    return Finding(name, _interval(found), f"{published:.2f}", verdict, effect if verdict == "off" else "none")


def localization(run: Run) -> Finding | None:
    """Fake-CAM's localization error, which says what the boxes cover; None for a run without boxes."""
    if "localization_error" not in run.metrics:
        return None
    found = bootstrap_interval([row.scores.get("localization_error") for row in run.usable])
    verdict, difference = _within(LE_OF_FAKE_CAM, found), found.value - LE_OF_FAKE_CAM
    effect = (
        f"the boxes cover {100 - found.value:.1f} % of an image, the paper's {100 - LE_OF_FAKE_CAM:.0f} %: "
        f"Fake-CAM's LE moves by {difference:+.1f} points, a uniform map's EP by {-difference:+.1f}: other images or "
        "boxes are measured"
    )
    words = effect if verdict == "off" else "none"
    return Finding("Fake-CAM's LE, %", _interval(found), f"{LE_OF_FAKE_CAM:.1f}", verdict, words)


def saliency_metric(run: Run) -> Finding | None:
    """Fake-CAM's saliency metric, which is the mean cross-entropy of the label; None for a run without it."""
    if "saliency_metric" not in run.metrics:
        return None
    rows = [row for row in run.usable if row.p and row.scores.get("saliency_metric") is not None]
    if not rows:
        return None
    found = bootstrap_interval([row.scores["saliency_metric"] for row in rows])
    entropy = math.fsum(-math.log(row.p) for row in rows if row.p) / len(rows)
    difference = found.value - entropy
    off = abs(difference) > _ROUNDING
    effect = f"every SM of tables A.7 and A.8 moves by {difference:+.3f}" if off else "none"
    name = "Fake-CAM's SM is the mean cross-entropy, nats"
    return Finding(name, _interval(found, 3), f"{entropy:.3f}", "off" if off else "right", effect)


def same_maps(grad: Run, other: Run, *, pooled: bool) -> Finding:
    """Grad-CAM against a method that equals it where the head is average pooling and one linear layer.

    Args:
        grad: Grad-CAM's run.
        other: HiRes-CAM's or XGrad-CAM's run on the same images.
        pooled: whether the network's head is such a one.
    """
    moved = {key: _paired(other, grad, key) for key in _FAITHFUL[:2]}
    largest = float(np.max([abs(difference) for difference, _ in moved.values()]))  # NaN where one of them is
    words = ", ".join(f"{grad.metrics[key].label} {difference:+.3f}" for key, (difference, _) in moved.items())
    name = f"{other.manifest['explainer']} - GradCAM, points"
    if math.isnan(largest):
        return Finding(name, words, "0", "cannot tell", "no image has both methods' scores")
    if not pooled:
        return Finding(name, words, "any", "cannot tell", "the head is not average pooling and one linear layer")
    off = largest > _SAME_MAPS
    effect = f"the row of {other.manifest['explainer']} moves by up to {largest:.2f} points" if off else "none"
    return Finding(name, words, "0", "off" if off else "right", effect)


def _paired(ours: Run, theirs: Run, key: str) -> tuple[float, str]:
    """The mean difference of a metric on the images of both, also in words with its interval."""
    of = {row.id: row.scores.get(key) for row in theirs.usable}
    both = [(row.scores.get(key), of[row.id]) for row in ours.usable if row.id in of]
    found = paired_difference([pair[0] for pair in both], [pair[1] for pair in both])
    low_high = "" if math.isnan(found.low) else f" [{found.low:+.2f}, {found.high:+.2f}]"
    return found.difference, f"{ours.metrics[key].label} {found.difference:+.2f}{low_high}"


def resizing(stretched: Run, cropped: Run) -> Finding:
    """What the resize alone does to a method's numbers: the paper stretches, networks' sources crop.

    Args:
        stretched: a method's run as in the tables.
        cropped: the same with the source's resize and crop.
    """
    words = ", ".join(_paired(cropped, stretched, key)[1] for key in _FAITHFUL)
    name = f"{stretched.manifest['explainer']}, cropped - stretched, points"
    return Finding(
        name, words, "any", "cannot tell", "the paper does not say how it resizes; this is what it can change"
    )


def findings_grid(findings: Sequence[Finding], title: str) -> Grid:
    """The findings as a table."""
    header = ["check", "found", "expected", "verdict", "what it moves in the paper's tables"]
    body = [[f.name, f.ours, f.expected, f.verdict, f.effect] for f in findings]
    return Grid(header, body, 5, [], [], title)


def findings_text(findings: Sequence[Finding], title: str) -> str:
    """The findings as lines for a terminal: the verdict first, and below it what it moves."""
    width, lines = max(map(len, get_args(Verdict))), [title]
    for found in findings:
        lines.append(f"{found.verdict:<{width}}  {found.name}: {found.ours}; expected: {found.expected}")
        if found.effect != "none":
            indent = " " * (width + 2)
            lines += textwrap.wrap(found.effect, 120, initial_indent=indent, subsequent_indent=indent)
    return "\n".join(lines) + "\n"
