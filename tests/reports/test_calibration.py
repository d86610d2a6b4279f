"""The checks of a set-up on runs whose right verdict is known."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import pytest

from optcam_pl.metrics import METRICS
from optcam_pl.reports.calibration import accuracy, findings_text, localization, resizing, saliency_metric, same_maps
from optcam_pl.reports.summary import Run
from optcam_pl.runs.rows import Row, Rows


def a_run(scores: dict[str, list[float]], right: int = 30, explainer: str = "GradCAM", p: float = 0.5) -> Run:
    """Forty images with these scores, so many of them classified as their label."""
    info = {key: asdict(METRICS[key]().describe()) for key in scores}
    manifest = {"images": 40, "metrics": list(scores), "metric_info": info, "explainer": explainer}
    rows = [
        Row(index=i, id=f"{i}", status="ok", target=1, predicted=int(i < right), p=p, o=p, seconds=0.0,
            scores={key: values[i % len(values)] for key, values in scores.items()})
        for i in range(40)
    ]  # fmt: skip
    return Run(Path("run"), manifest, Rows(tuple(rows)))


def test_accuracy_is_right_within_its_interval() -> None:
    found = accuracy(a_run({}), 73.4)
    assert (found.verdict, found.effect, found.expected) == ("right", "none", "73.40")
    assert found.ours.startswith("75.00 [")
    found = accuracy(a_run({}), 99.0)
    assert found.verdict == "off"
    assert "are others (-24.0 points): for 24.0 % of the images" in found.effect
    assert accuracy(a_run({}), None).verdict == "cannot tell"
    # All of 8 are right, as 20 % of all samples of 8 are with an accuracy of 82 %: no reason for an alarm.
    few = a_run({}, right=8)
    few = Run(few.path, few.manifest, Rows(few.rows[:8]))
    found = accuracy(few, 82.0)
    assert (found.verdict, found.ours) == ("right", f"100.00 [{100 * 0.025 ** (1 / 8):.2f}, 100.00]")
    none = accuracy(Run(few.path, few.manifest, Rows(())), 82.0)
    assert (none.verdict, none.ours) == ("cannot tell", "nan")


def test_fake_cams_error_says_what_the_boxes_cover() -> None:
    right = localization(a_run({"localization_error": [44.0, 64.0]}))
    assert right is not None
    assert (right.verdict, right.ours[:5]) == ("right", "54.00")
    off = localization(a_run({"localization_error": [60.0, 62.0]}))
    assert off is not None
    assert (
        "cover 39.0 % of an image, the paper's 46 %: Fake-CAM's LE moves by +7.0 points, a uniform map's EP by -7.0"
        in (off.effect)
    )
    assert localization(a_run({})) is None


def test_fake_cams_saliency_metric_is_the_cross_entropy() -> None:
    right = saliency_metric(a_run({"saliency_metric": [math.log(2)]}))
    assert right is not None
    assert (right.verdict, right.expected) == ("right", "0.693")
    off = saliency_metric(a_run({"saliency_metric": [0.5]}))
    assert off is not None
    assert (off.verdict, off.effect) == ("off", "every SM of tables A.7 and A.8 moves by -0.193")
    assert saliency_metric(a_run({})) is None


@pytest.mark.parametrize(
    ("gain", "pooled", "verdict", "effect"),
    [
        (9.0, True, "right", "none"),
        (9.2, True, "off", "the row of HiResCAM moves by up to 0.20 points"),
        (9.2, False, "cannot tell", "the head is not average pooling and one linear layer"),
    ],
)
def test_methods_that_are_one_on_a_pooling_head(gain: float, pooled: bool, verdict: str, effect: str) -> None:
    grad = a_run({"average_drop": [5.0], "average_gain": [9.0], "average_increase": [0.0, 100.0]})
    hires = a_run({"average_drop": [5.0], "average_gain": [gain]}, explainer="HiResCAM")
    found = same_maps(grad, hires, pooled=pooled)
    assert (found.verdict, found.effect) == (verdict, effect)
    other = a_run({"average_drop": [7.0], "average_gain": [9.0], "average_increase": [0.0]})
    assert resizing(grad, other).ours.startswith("AD +2.00 [+2.00, +2.00], AG +0.00 [+0.00, +0.00], AI -50.00")
    nothing = Run(hires.path, hires.manifest, Rows(()))
    assert same_maps(grad, nothing, pooled=True).verdict == "cannot tell"
    text = findings_text([found], "Checks:")
    assert text.startswith(f"Checks:\n{verdict:<11}  HiResCAM - GradCAM, points: ")
    assert (f"\n             {effect}\n" in text) is (effect != "none")
