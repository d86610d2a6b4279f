from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from metric_tester import MetricTester
from torchmetrics import MetricCollection

from optcam_pl.metrics import METRICS, AverageDrop, AverageDropDeletion, AverageGain, AverageIncrease
from optcam_pl.metrics.functional import average_drop, average_drop_deletion, average_gain, average_increase
from optcam_pl.reports.published import published

CLASSES = [AverageDrop, AverageGain, AverageIncrease]
FUNCTIONS = [average_drop, average_gain, average_increase]

# (p, o, AD, AG, AI): the formulas by hand, with the conventions for p = 0 and p = 1
CASES = [
    (0.5, 0.5, 0.0, 0.0, 0.0),
    (0.5, 0.25, 50.0, 0.0, 0.0),
    (0.5, 0.75, 0.0, 50.0, 100.0),
    (0.8, 0.9, 0.0, 50.0, 100.0),
    (1.0, 1.0, 0.0, 0.0, 0.0),
    (1.0, 0.25, 75.0, 0.0, 0.0),
    (0.0, 0.0, 0.0, 0.0, 0.0),
    (0.0, 0.5, 0.0, 50.0, 100.0),
    (1e-12, 0.0, 100.0, 0.0, 0.0),
]


def batches_of(cases, sizes=(2, 4, 3)):
    """The cases in uneven batches of evidence, and their expected scores by column."""
    parts = torch.tensor(cases, dtype=torch.float64).split(sizes)
    batches = [{"original": part[:, 0].float(), "masked": part[:, 1].float()} for part in parts]
    return batches, [[part[:, 2 + column].tolist() for part in parts] for column in range(3)]


@pytest.mark.ddp
@pytest.mark.parametrize("column", range(3), ids=lambda column: CLASSES[column].key)
class TestClasses(MetricTester):
    def test_keeps_what_every_metric_promises(self, column):
        batches, expected = batches_of(CASES)
        self.check(CLASSES[column], batches, expected[column])

    def test_equals_the_stored_values_over_batches(self, column, golden):
        stored = json.loads(golden("adcc.json").read_text())["A"]
        with np.load(golden("adcc.npz")) as arrays:
            p, o = torch.from_numpy(arrays["A_p_f64"]), torch.from_numpy(arrays["A_o_f64"])
        metric = CLASSES[column]()
        for original, masked in zip(p.split(7), o.split(7), strict=True):
            metric.update(original, masked)
        value = stored[f"{metric.label}_percent"]
        assert metric.compute().item() == pytest.approx(value, abs=1e-10)
        assert metric.reduce(metric.score(p, o).tolist()) == pytest.approx(value, abs=1e-12)


@pytest.mark.ddp
class TestAverageDropDeletion(MetricTester):
    @pytest.mark.parametrize("signed", [True, False])
    def test_keeps_what_every_metric_promises(self, signed):
        p, d = [0.5, 0.5, 0.0, 1.0, 0.8], [0.25, 0.75, 0.5, 0.0, 0.8]
        expected = [50.0, -50.0 if signed else 0.0, 0.0, 100.0, 0.0]
        batches = [
            {"original": torch.tensor(p[part]), "deleted": torch.tensor(d[part])} for part in (slice(0, 3), slice(3, 5))
        ]
        self.check(lambda: AverageDropDeletion(signed=signed), batches, [expected[:3], expected[3:]])


def test_drop_in_deletion_is_the_stored_signed_share_of_p(golden):
    for row in json.loads(golden("adcc.json").read_text())["C"]["per_image"].values():
        if isinstance(row, dict):
            p = torch.full((4,), 0.25, dtype=torch.float64)
            d = p * (1 - torch.tensor(row["add"], dtype=torch.float64))
            got = average_drop_deletion(p, d, reduction="none")
            torch.testing.assert_close(got, 100 * torch.tensor(row["add"], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_p_too_small_to_divide_by_counts_as_zero(dtype):
    tiny = torch.finfo(dtype).tiny
    p = torch.tensor([0.0, tiny / 4, tiny, 10 * tiny, 1e-30, 0.5], dtype=dtype)
    one, half = torch.ones_like(p), p / 2
    got = average_drop_deletion(p, one, reduction="none")
    assert got[:4].tolist() == [0, 0, 0, 0]  # 100 / p is larger than any number
    torch.testing.assert_close(got[4:], (100 * (p - one) / p)[4:])
    assert average_drop_deletion(p, half, reduction="none").tolist() == [0, 0, 50, 50, 50, 50]
    metric = AverageDropDeletion()
    metric.update(original=p[1:2], deleted=one[:1])
    metric.update(original=p[-1:], deleted=half[-1:])
    assert metric.compute().item() == 25


@pytest.mark.parametrize("column", range(3), ids=lambda column: FUNCTIONS[column].__name__)
def test_function_equals_the_stored_scores(column, golden):
    with np.load(golden("adcc.npz")) as arrays:
        p, o = torch.from_numpy(arrays["A_p_f64"]), torch.from_numpy(arrays["A_o_f64"])
        stored = torch.from_numpy(arrays[("A_ad_f64", "A_ag_f64", "A_ai_f64")[column]])
    torch.testing.assert_close(FUNCTIONS[column](p, o, "none"), 100 * stored, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("p", "o", "ad", "ag", "ai"), CASES)
def test_edge_values_have_a_stated_score(p, o, ad, ag, ai):
    p, o = torch.tensor([p]), torch.tensor([o])
    got = [function(p, o).item() for function in FUNCTIONS]
    assert got == pytest.approx([ad, ag, ai], abs=1e-4)


def test_edge_values_differ_from_the_raw_formula_only_where_that_is_undefined(golden):
    for case in json.loads(golden("adcc.json").read_text())["A"]["edge_cases"]:
        p, o = (torch.tensor([case[name]], dtype=torch.float64) for name in "po")
        for name, function in zip(("ad", "ag", "ai"), FUNCTIONS, strict=True):
            raw = float(case[name])
            assert function(p, o).item() == pytest.approx(0.0 if math.isnan(raw) else 100 * raw)


@pytest.mark.parametrize("key", ["cam", "noise"])
@pytest.mark.parametrize("mask", ["pixels", "normalised"])  # as the stored arrays are called
def test_probabilities_of_a_real_network_give_the_stored_percentages(key, mask, golden):
    stored = json.loads(golden("adcc.json").read_text())[f"B.{key}"]
    stored = stored["mask_times_01_pixels" if mask == "pixels" else "mask_times_normalised"]
    with np.load(golden("adcc.npz")) as arrays:
        p, o = (
            torch.from_numpy(arrays[f"B.{key}.p"]),
            torch.from_numpy(arrays[f"B.{key}.o_{mask.replace('normalized', 'normalised')}"]),
        )
    got = {name: function(p, o).item() for name, function in zip(("AD", "AG", "AI"), FUNCTIONS, strict=True)}
    assert got == pytest.approx(stored, rel=1e-5)


probability = st.floats(0, 1, width=32)


@given(st.lists(st.tuples(probability, probability), min_size=1, max_size=20))
def test_scores_are_finite_percentages_and_never_drop_and_gain_at_once(pairs):
    p, o = torch.tensor(pairs, dtype=torch.float32).T
    drop, gain, increase = (function(p, o, reduction="none") for function in FUNCTIONS)
    for score in (drop, gain, increase):
        assert ((score >= 0) & (score <= 100.0001)).all()
    assert (drop * gain == 0).all()
    assert (increase[gain > 0] == 100).all()


def test_collection_without_compute_groups_keeps_the_sums_of_each_metric_apart():
    metrics = MetricCollection(
        {key: metric() for key, metric in METRICS.items() if metric in CLASSES}, compute_groups=False
    )
    same = torch.tensor([0.5, 0.5])
    metrics.update(original=same, masked=same, unrelated=torch.zeros(3))  # all states are equal after this batch
    metrics.update(original=same, masked=torch.tensor([0.25, 0.5]), unrelated=torch.zeros(3))
    got = {key: value.item() for key, value in metrics.compute().items()}
    assert got == {"average_drop": 12.5, "average_gain": 0.0, "average_increase": 0.0}


def test_sums_keep_what_float32_would_lose():
    metric = AverageDrop()
    metric.update(torch.ones(1), torch.zeros(1))
    metric.to(torch.float32)  # what a trainer does when it moves a model
    for _ in range(100):
        metric.update(torch.ones(4, dtype=torch.float64), torch.full((4,), 1 - 1e-9, dtype=torch.float64))
    assert metric.total.item() == pytest.approx(100 + 400e-7, abs=1e-12)


def test_reduce_leaves_undefined_scores_out_and_is_nan_without_any():
    assert AverageDrop.reduce([1.0, None, math.nan, 2.0]) == 1.5
    assert math.isnan(AverageDrop.reduce([None, math.nan]))


def test_scores_carry_no_gradient_into_the_sums():
    metric = AverageGain()
    metric.update(torch.tensor([0.5], requires_grad=True), torch.tensor([0.75]))
    assert not metric.total.requires_grad


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("original", "masked", "error", "message"),
    [
        (
            torch.tensor([0.5, 1.5]),
            torch.tensor([0.5, 0.5]),
            ValueError,
            r"`original`.*\[0, 1\], but got 1.5 at index 1",
        ),
        (torch.tensor([0.5]), torch.tensor([-0.5]), ValueError, r"`masked`.*but got -0.5 at index 0"),
        (torch.tensor([0.5]), torch.tensor([math.nan]), ValueError, r"`masked`.*but got nan at index 0"),
        (torch.tensor([0.5]), torch.tensor([0.5, 0.5]), ValueError, r"\(1,\).*\(2,\)"),
        (
            torch.tensor([[0.5]]),
            torch.tensor([[0.5]]),
            ValueError,
            r"`original` to have shape \(B,\), but got \(1, 1\)",
        ),
        (torch.tensor([1]), torch.tensor([0.5]), TypeError, r"`original`.*torch.int64"),
        (torch.tensor([0.5]), [0.5], TypeError, r"`masked`.*list"),
    ],
)
def test_bad_arguments_are_named(function, original, masked, error, message):
    with pytest.raises(error, match=message):
        function(original, masked)


def test_an_unknown_reduction_is_named():
    with pytest.raises(ValueError, match="one of mean, none, but got 'sum'"):
        average_drop(torch.ones(1), torch.ones(1), reduction="sum")


def test_plot_draws_the_value():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    metric = AverageDrop()
    metric.update(torch.ones(2), torch.zeros(2))
    figure, axis = metric.plot()
    assert axis.lines[0].get_ydata()[0] == 100
    matplotlib.pyplot.close(figure)


def test_every_published_metric_has_its_class_which_needs_no_arguments():
    needed = {row.metric for row in published()} - {"seconds_per_batch_of_8", "top1_accuracy"}
    assert needed <= set(METRICS)
    for key, metric in METRICS.items():
        assert (metric().key, metric.key) == (key, key)
