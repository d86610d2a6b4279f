from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

from optcam_pl.explainers import Explainer, OptiCAM
from optcam_pl.reports.published import METHODS, beside_published, published
from optcam_pl.reports.tables import Estimate, Summary, table


def a_summary(**changes) -> Summary:
    """A run with the paper's settings: Opti-CAM on ResNet50, the whole validation set."""
    values = {
        "run": "r",
        "stage": "test",
        "data": "imagenet_val",
        "classifier": "torchvision/resnet50",
        "explainer": "OptiCAM",
        "settings": {
            "baseline": "black",
            "target": "label",
            "layer": ["layer4.2"],
            "input_size": [224, 224],
            "weights": "IMAGENET1K_V1",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "score": "probability",
        },
        "options": {"objective": "mask", "normalizer": "range", "max_iter": 100, "lr": 0.1},
        "images": 50_000,
        "statuses": {"ok": 50_000, "degenerate": 0, "error": 0, "missing": 0},
        "seconds_per_image": 1.0,
        "metrics": {"average_drop": Estimate(1.75), "average_gain": Estimate(70.0)},
    }
    return Summary(**{**values, **changes})


def with_settings(**settings) -> Summary:
    summary = a_summary()
    return replace(summary, settings={**summary.settings, **settings})


def test_the_table_is_whole_and_its_numbers_are_numbers():
    rows = published()
    assert len(rows) == 1074
    assert {row.network for row in rows} == {"resnet50", "vgg16_bn", "vit_base_patch16_224", "deit_base_patch16_224"}
    assert {row.better for row in rows} == {"higher", "lower"}
    assert all(-100 <= row.value <= 1000 for row in rows)


def test_the_methods_of_the_table_are_those_of_the_package():
    of_the_paper = {row.method for row in published()}
    assert set(METHODS.values()) <= of_the_paper
    assert of_the_paper - set(METHODS.values()) == {"LIME", "TIBAV", "classifier", "box", "box_complement"}

    def subclasses(kind):
        return [kind, *(name for sub in kind.__subclasses__() for name in subclasses(sub))]

    ours = {kind.__name__ for kind in subclasses(Explainer)}
    assert {name.lower() for name in METHODS} >= {name.lower() for name in ours & {"OptiCAM", "GradCAM", "FakeCAM"}}


def test_a_run_with_the_papers_settings_stands_beside_table_1():
    estimate = beside_published(a_summary()).metrics["average_gain"]
    assert (estimate.published.value, estimate.published.table, estimate.published.differences) == (68.8, "1", ())
    assert estimate.beyond_published == pytest.approx(1.2)


@pytest.mark.parametrize(
    ("summary", "differences"),
    [
        (with_settings(baseline="mean"), ("baseline mean, not black",)),
        (with_settings(weights="random"), ("weights random, not IMAGENET1K_V1",)),
        (with_settings(weights="default"), ("weights default, not IMAGENET1K_V1",)),  # torchvision's are its second
        (with_settings(weights="IMAGENET1K_V2"), ("weights IMAGENET1K_V2, not IMAGENET1K_V1",)),
        (with_settings(input="224x224 crop, bilinear"), ("resize crop, not stretch",)),
        (with_settings(selectivity=2.0), ("selectivity 2.0, not 1.0",)),
        (with_settings(input_size=[288, 288]), ("input_size [288, 288], not [224, 224]",)),
        (with_settings(layer=["layer3.5"]), ("layer layer3.5, not layer4.2",)),
        (with_settings(score="logit"), ("score logit, not probability",)),
        (a_summary(data="photos", images=24), ("data photos, not imagenet_val", "images 24, not 50000")),
        (a_summary(statuses={"missing": 3}), ("images 49997 of 50000, not 50000",)),
    ],
)
def test_each_setting_that_differs_is_named_and_no_difference_is_given(summary, differences):
    estimate = beside_published(summary).metrics["average_drop"]
    assert estimate.published.value == 1.5
    assert sorted(estimate.published.differences) == sorted(differences)
    assert estimate.beyond_published is None


def test_each_part_of_another_climb_is_named():
    fast = a_summary(options=json.loads(json.dumps(OptiCAM(preset="fast").settings())))
    estimate = beside_published(fast).metrics["average_drop"]
    assert estimate.beyond_published is None
    assert estimate.published.differences == (
        *("max_iter 20, not 100", "lr 1.0, not 0.1"),
        *("start balanced, not uniform", "schedule linear, not constant", "betas [0.5, 0.5], not [0.9, 0.999]"),
    )
    paper = a_summary(options=json.loads(json.dumps(OptiCAM().settings())))
    assert beside_published(paper).metrics["average_drop"].published.differences == ()
    own = a_summary(options={"optimizer": "SGD(lr=3.0)", "tol": 0.01})
    assert beside_published(own).metrics["average_drop"].published.differences == (
        *("tol 0.01, not 1e-10", "optimizer SGD(lr=3.0), not Adam"),
    )


def test_a_variant_of_the_paper_is_found_by_its_settings():
    second = beside_published(with_settings(target="second")).metrics["average_gain"].published
    assert (second.value, second.table, second.differences) == (5.8, "A.9", ())
    summary = a_summary(
        classifier="torchvision/vgg16_bn",
        images=1000,
        options={"objective": "diff", "normalizer": "sigmoid", "max_iter": 50, "lr": 0.1},
    )
    summary = replace(summary, settings={**summary.settings, "layer": ["features.42"]})
    variant = beside_published(summary).metrics["average_gain"].published
    assert (variant.table, variant.differences) == ("6", ())
    raw = beside_published(replace(with_settings(mean=[0.0] * 3, std=[1.0] * 3), explainer="GradCAM", options={}))
    assert raw.metrics["average_drop"].published.table == "A.14"


def test_timm_names_with_a_tag_are_the_network():
    summary = a_summary(classifier="timm/deit_base_patch16_224.fb_in1k", explainer="GradCAM", options={})
    summary = replace(summary, settings={**summary.settings, "layer": "blocks.11.norm1"})
    assert beside_published(summary).metrics["average_gain"].published.differences == ()


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"classifier": "timm/tf_efficientnet_lite0"}, "the paper has no value for the network tf_efficientnet_lite0"),
        ({"explainer": "RISE"}, "the paper has no value for the method RISE"),
        ({"explainer": "RawAttention"}, "the paper has no value for RawAtt on resnet50"),
    ],
)
def test_what_the_paper_does_not_have_is_said(changes, note):
    summary = beside_published(a_summary(**changes))
    assert summary.notes == (note,)
    assert all(estimate.published is None for estimate in summary.metrics.values())


def test_the_tables_put_the_papers_value_beside_ours():
    summaries = [beside_published(a_summary()), beside_published(a_summary(explainer="FakeCAM", images=24))]
    lines = table(summaries).splitlines()
    start = lines.index("Beside the published values (Zhang et al., CVIU 2024):")
    assert [line.split() for line in lines[start + 1 :]] == [
        ["method", "metric", "ours", "paper", "difference", "table"],
        ["-------", "------", "-----", "-----", "----------", "-----"],
        ["OptiCAM", "AD", "↓", "1.75", "1.50", "+0.25", "1"],
        ["OptiCAM", "AG", "↑", "70.00", "68.80", "+1.20", "1"],
        ["FakeCAM", "AD", "↓", "1.75", "0.80", "-", "1"],
        ["FakeCAM", "AG", "↑", "70.00", "1.60", "-", "1"],
        ["FakeCAM,", "table", "1:", "not", "comparable:", "images", "24,", "not", "50000"],
    ]
    first, second = json.loads(table(summaries, "json"))
    assert first["metrics"]["average_drop"] == {
        **{"value": 1.75, "label": "AD", "unit": "%", "higher_is_better": False},
        "published": {"value": 1.5, "table": "1", "differences": [], "difference": 0.25},
    }
    assert second["metrics"]["average_drop"]["published"]["difference"] is None
    cells = list(csv.DictReader(io.StringIO(table(summaries, "csv"))))
    assert (cells[0]["average_drop_published"], cells[0]["average_drop_published_difference"]) == ("1.5", "0.25")
    assert cells[1]["average_drop_published_difference"] == ""
    assert "Beside the published" in table(summaries, "latex")
    assert "| OptiCAM | AD ↓ | 1.75 | 1.50 | +0.25 | 1 |" in table(summaries, "markdown")
