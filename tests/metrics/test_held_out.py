"""Average Drop, Gain and Increase with another baseline than the maps were made with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from explainer_cases import tiny_cnn

import optcam_pl
from optcam_pl.explainers import OptiCAM
from optcam_pl.maps import blur
from optcam_pl.metrics import AverageDrop, HeldOutDrop, HeldOutGain, HeldOutIncrease


def test_they_measure_the_same_map_with_the_other_baseline() -> None:
    torch.manual_seed(0)
    classifier, x = tiny_cnn(), torch.rand(4, 3, 16, 16)
    metrics = [AverageDrop(), HeldOutDrop("blur"), HeldOutGain("blur"), HeldOutIncrease("blur")]
    explainer = OptiCAM(max_iter=3)
    rows = optcam_pl.evaluate(classifier, explainer, x, metrics, labels=[0, 1, 2, 3]).rows["OptiCAM"]
    target = torch.arange(4)
    s = explainer(classifier, x, target).saliency
    under = blur(x, classifier.mean)
    p = classifier(x).softmax(1)[range(4), target]
    o = classifier(under + (x - under) * s).softmax(1)[range(4), target]
    gain = 100 * (o - p).clamp(min=0) / (1 - p)
    assert [row.scores["held_out_drop"] for row in rows] == pytest.approx((100 * (p - o).clamp(min=0) / p).tolist())
    assert [row.scores["held_out_gain"] for row in rows] == pytest.approx(gain.tolist())
    assert [row.scores["held_out_increase"] for row in rows] == (100.0 * (o > p)).tolist()
    assert [row.o for row in rows] != pytest.approx(o.tolist())


def test_the_runs_own_baseline_is_refused_and_the_default_is_another() -> None:
    classifier, x = tiny_cnn(), torch.rand(2, 3, 16, 16)
    with pytest.raises(ValueError, match="other than the run's own.*but both are blur"):
        optcam_pl.evaluate(classifier, OptiCAM(max_iter=1), x, [HeldOutDrop("blur")], baseline="blur")
    found = [
        optcam_pl.evaluate(classifier, OptiCAM(max_iter=1), x, [metric], baseline="blur").rows["OptiCAM"][0].scores
        for metric in (HeldOutDrop(), HeldOutDrop("mean"))
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(("own", "other"), [("black", (0.0, 0.0, 0.0)), ("its mean", "mean")])
def test_a_baseline_of_another_name_that_is_the_runs_own_is_refused(own: Any, other: Any) -> None:
    classifier, x = tiny_cnn(), torch.rand(1, 3, 16, 16)
    own = tuple(classifier.mean.tolist()) if own == "its mean" else own
    with pytest.raises(ValueError, match="Expected a held-out `baseline` other than the run's own"):
        optcam_pl.evaluate(classifier, OptiCAM(max_iter=1), x, [HeldOutDrop(baseline=other)], baseline=own)
