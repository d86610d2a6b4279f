from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from optcam_pl.metrics import ADCC, AverageGain, BoxAccuracy, PixelAveragePrecision
from optcam_pl.reports.statistics import Sample, bootstrap_interval, bootstrap_intervals, holm, paired_difference


def skewed(n, seed=0):
    return np.random.default_rng(seed).gamma(0.8, 20, n)


def drawn_by(seed):
    """The setting of scipy's functions that draw; before scipy 1.15 it had another name."""
    name = "rng" if "rng" in inspect.signature(scipy.stats.bootstrap).parameters else "random_state"
    return {name: np.random.default_rng(seed)}


def harmonic(means):
    """ADCC of means in numpy's terms."""
    return ADCC.of_means(torch.from_numpy(means)).numpy()


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_samples_that_share_their_draws_have_the_digits_of_each_alone(method):
    samples = [
        Sample([*skewed(70)]), Sample([None, *skewed(69, 1)]), Sample([*skewed(69, 2), math.nan]), Sample([3.0]),
        Sample([]), Sample([[0.5, 0.25, 1.0], *np.random.default_rng(0).random((69, 3)).tolist()], harmonic),
    ]  # fmt: skip
    together = bootstrap_intervals(samples, method=method)
    alone = [bootstrap_interval(*sample, method=method) for sample in samples]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("method", ["bca", "percentile"])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_intervals_of_a_mean_equal_scipys_up_to_the_draws(method, level):
    scores = skewed(60)
    theirs = scipy.stats.bootstrap(
        (scores,), np.mean, confidence_level=level, method=method, n_resamples=40000, **drawn_by(5)
    ).confidence_interval
    ours = bootstrap_interval(scores, level=level, method=method, resamples=40000)
    assert ours.value == pytest.approx(scores.mean(), rel=1e-14)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), rel=0.01)


def test_intervals_of_a_function_of_means_equal_scipys_up_to_the_draws():
    parts = np.random.default_rng(1).beta(2, 1, (50, 3)) * 100
    theirs = scipy.stats.bootstrap(
        tuple(parts.T), lambda *columns, axis: 3 / sum(1 / column.mean(axis) for column in columns),
        paired=True, method="BCa", n_resamples=20000, axis=0, **drawn_by(5),
    ).confidence_interval  # fmt: skip
    ours = bootstrap_interval(parts, harmonic, resamples=20000)
    assert ours.value == pytest.approx(ADCC.reduce(parts.tolist()), rel=1e-14)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), rel=0.01)


def test_the_corrected_interval_leans_to_the_long_tail():
    scores = skewed(40)
    bca, percentile = (bootstrap_interval(scores, method=method, resamples=20000) for method in ("bca", "percentile"))
    assert bca.low > percentile.low
    assert bca.high > percentile.high


def test_intervals_cover_the_true_mean_about_as_often_as_they_say():
    covered = [
        interval.low <= 16 <= interval.high
        for interval in (bootstrap_interval(skewed(80, seed), resamples=600) for seed in range(200))
    ]
    assert 0.88 <= np.mean(covered) <= 0.99


def test_the_same_rows_give_the_same_digits_and_the_value_of_the_metric():
    scores = [*skewed(30).tolist(), None, math.nan]
    first = bootstrap_interval(scores)
    assert first == bootstrap_interval(scores)
    assert first.value == AverageGain.reduce(scores)
    assert first != bootstrap_interval(scores, seed=1)
    hits = [row.tolist() for row in np.random.default_rng(0).integers(0, 2, (20, 12))]
    interval = bootstrap_interval([*hits, None], lambda means: BoxAccuracy.of_means(torch.from_numpy(means)).numpy())
    assert interval.value == BoxAccuracy.reduce([*hits, None])
    assert (
        interval.low <= interval.value <= interval.high + 1e-9 or interval.high < interval.value
    )  # a maximum is biased


@pytest.mark.parametrize(
    ("scores", "value", "low", "high"),
    [([], None, None, None), ([None], None, None, None), ([3.0], 3.0, None, None), ([2.0, 2.0, 2.0], 2.0, 2.0, 2.0)],
)
def test_intervals_of_too_few_or_equal_scores(scores, value, low, high):
    want = [math.nan if end is None else end for end in (value, low, high)]
    assert list(bootstrap_interval(scores)) == pytest.approx(want, nan_ok=True)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=30))
def test_intervals_lie_within_the_scores(scores):
    interval = bootstrap_interval(scores, resamples=50)
    assert min(scores) - 1e-9 <= interval.low <= interval.high <= max(scores) + 1e-9


@pytest.mark.parametrize("n", [5, 10])
def test_p_values_of_few_images_are_exact(n):
    ours, theirs = skewed(n), skewed(n, seed=1)
    want = scipy.stats.permutation_test(
        (ours, theirs), lambda a, b, axis: a.mean(axis) - b.mean(axis), permutation_type="samples", n_resamples=np.inf
    )
    got = paired_difference(ours, theirs)
    assert got.p_value == pytest.approx(want.pvalue, abs=1e-12)
    assert got.difference == pytest.approx(want.statistic)
    assert got.images == n


def test_p_values_of_many_images_equal_scipys_up_to_the_draws():
    ours = skewed(200)
    theirs = ours + np.random.default_rng(2).normal(1.0, 8, 200)
    want = scipy.stats.permutation_test(
        (ours, theirs), lambda a, b, axis: a.mean(axis) - b.mean(axis), permutation_type="samples", n_resamples=9999,
        **drawn_by(3),
    )  # fmt: skip
    got = paired_difference(ours, theirs, permutations=9999)
    assert got.p_value == pytest.approx(want.pvalue, abs=0.02)
    assert got.low < got.difference < got.high
    assert (got.low, got.high) == pytest.approx(bootstrap_interval(ours - theirs)[1:], rel=1e-9)


def test_p_values_of_functions_of_means_swap_whole_images():
    rng = np.random.default_rng(1)
    ours, theirs = rng.beta(2, 1, (8, 3)) * 100, rng.beta(1, 1, (8, 3)) * 100
    got = paired_difference(ours, theirs, harmonic)
    observed = ADCC.reduce(ours.tolist()) - ADCC.reduce(theirs.tolist())
    reached = 0
    for bits in range(2**8):
        swap = (bits >> np.arange(8) & 1).astype(bool)[:, None]
        one, two = np.where(swap, theirs, ours), np.where(swap, ours, theirs)
        reached += abs(ADCC.reduce(one.tolist()) - ADCC.reduce(two.tolist())) >= abs(observed) - 1e-9
    assert got.difference == pytest.approx(observed)
    assert got.p_value == reached / 2**8


def test_equal_runs_do_not_differ_and_a_constant_gain_does():
    scores = skewed(50)
    same = paired_difference(scores, scores)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    assert paired_difference(scores + 1, scores).p_value == 1 / 5000


def test_images_without_a_score_in_either_run_are_left_out():
    got = paired_difference([1.0, None, 3.0, 4.0], [0.0, 1.0, math.nan, 2.0])
    assert (got.difference, got.images) == (1.5, 2)
    empty = paired_difference([None], [1.0])
    assert empty.images == 0
    assert math.isnan(empty.p_value)


def test_swaps_of_a_false_hypothesis_are_uniform():
    p_values = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        p_values.append(paired_difference(*rng.random((2, 25)), resamples=2, permutations=199, seed=seed).p_value)
    assert scipy.stats.kstest(p_values, "uniform").pvalue > 0.001


def test_holm_is_the_step_down_rule_and_leaves_out_what_is_missing():
    p = [0.010, 0.001, 0.020, math.nan, 0.9]
    assert holm(p) == pytest.approx([0.03, 0.004, 0.04, math.nan, 0.9], nan_ok=True)
    assert holm([0.6, 0.6]) == [1, 1]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_falls_below_the_value_keeps_the_order_and_bounds_bonferroni(p_values):
    adjusted = holm(p_values)
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()
    for p, got in zip(p_values, adjusted, strict=True):
        assert p <= got <= min(1, len(p_values) * p) or got == pytest.approx(max(p, got))
    assert min(adjusted) == pytest.approx(min(1, len(p_values) * min(p_values)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval([1.0], level=95), "`level` to be between 0 and 1, but got 95"),
        (
            lambda: bootstrap_interval([1.0], method="normal"),
            "`method` to be one of bca, percentile, but got 'normal'",
        ),
        (lambda: bootstrap_interval([1.0], resamples=0), "`resamples` to be a positive integer, but got 0"),
        (lambda: bootstrap_interval([[1.0, 2.0]] * 3), "`of_means` with scores of 2 numbers, but got None"),
        (lambda: paired_difference([1.0], [1.0], permutations=0), "`permutations` to be a positive integer, but got 0"),
        (lambda: paired_difference([1.0, 2.0], [1.0]), r"scores of the same images, but got \(2, 1\) and \(1, 1\)"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_a_value_that_hangs_on_one_image_has_no_interval(method):
    """PxAP where a single image has an object: without it there is no precision and no recall."""
    metric, maps = PixelAveragePrecision(thresholds=4), torch.rand(3, 1, 4, 4)
    mask = torch.zeros(3, 4, 4, dtype=torch.long)
    mask[0, :2] = 1

    def of_means(means):
        return metric.of_means(torch.from_numpy(means)).numpy()

    scores = metric.score(maps, mask).tolist()
    found = bootstrap_interval(scores, of_means, method=method)
    assert found.value == pytest.approx(metric.reduce(scores))
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    without = paired_difference(scores[1:], scores[1:], of_means, method=method)
    assert all(map(math.isnan, without[:4]))
    assert without.images == 2
