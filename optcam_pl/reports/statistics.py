"""How certain a mean over images is, and whether two runs on the same images differ.

Everything is computed from the scores that a run stores, one row per image: (n,), or (n,k) for metrics that are a
function of several means. Random draws are seeded, so that the same rows give the same digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from optcam_pl.checks import check_choice, check_positive

Array = npt.NDArray[np.float64]
Method = Literal["bca", "percentile"]
OfMeans = Callable[[Array], Array]

_CHUNK = 2**22  # the maximum number of values in a chunk of resamples: 32 MB


class Interval(NamedTuple):
    """A value and the interval around it."""

    value: float
    low: float
    high: float


class Sample(NamedTuple):
    """The scores of a run's images and what computes its value from their means; see `bootstrap_interval`."""

    scores: Sequence[Any] | npt.NDArray[Any]
    of_means: OfMeans | None = None


class PairedDifference(NamedTuple):
    """How much larger the first of two runs' values is, and how likely such a difference is by chance."""

    difference: float
    low: float
    high: float
    p_value: float
    images: int


def bootstrap_interval(
    scores: Sequence[Any] | npt.NDArray[Any],
    of_means: OfMeans | None = None,
    *,
    level: float = 0.95,
    method: Method = "bca",
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Compute the mean of the scores and its bootstrap interval, by drawing the images again with replacement.

    Args:
        scores: n scores, or n rows of k. None, or NaN anywhere in a row, means undefined; such a row is left out.
        of_means: computes the value from the means, (m,k) -> (m,); None for the mean of single scores.
        level: how often the interval should cover the true value.
        method: "bca", corrected for bias and skewness (Efron, "Better bootstrap confidence intervals", JASA 1987), or
            "percentile".
        resamples: how many times the images are drawn.
        seed: the seed of the draws.

    Returns:
        The value and the low and high ends. With a single image the interval is NaN, as it is where the images that are
        drawn may have no value together; with no image the value is NaN, too.

    Example:
        >>> bootstrap_interval([1.0, 2.0, 3.0, 4.0, 5.0, None], method="percentile")
        Interval(value=3.0, low=1.8, high=4.2)
    """
    sample = Sample(scores, of_means)
    (interval,) = bootstrap_intervals([sample], level=level, method=method, resamples=resamples, seed=seed)
    return interval


def bootstrap_intervals(
    samples: Sequence[Sample],
    *,
    level: float = 0.95,
    method: Method = "bca",
    resamples: int = 2000,
    seed: int = 0,
) -> list[Interval]:
    """The intervals of several samples, each as `bootstrap_interval` makes it by itself.

    Samples of equally many images share their draws: to draw takes much longer than to compute the means.

    Args:
        samples: scores and functions.
        level: see `bootstrap_interval`.
        method: the same.
        resamples: the same.
        seed: the same.
    """
    if not 0 < level < 1:
        raise ValueError(f"Expected `level` to be between 0 and 1, but got {level}.")
    check_choice("method", method, Method)
    check_positive("resamples", resamples)
    rows = [_rows(sample.scores) for sample in samples]
    functions = [sample.of_means or _mean for sample in samples]
    values = [
        float(of_means(_exact_mean(one))[0]) if len(one) else math.nan
        for one, of_means in zip(rows, functions, strict=True)
    ]
    drawn = _drawn(rows, functions, resamples, seed)
    ends = (1 + np.array([-level, level])) / 2
    return [
        _interval(ends, drawn[i], value, rows[i], functions[i], method)
        if i in drawn
        else Interval(value, *[math.nan] * 2)
        for i, value in enumerate(values)
    ]


def _drawn(rows: Sequence[Array], functions: Sequence[OfMeans], resamples: int, seed: int) -> dict[int, Array]:
    """The values (resamples,) of the resamples, of all samples of two images or more."""
    of_size: dict[int, list[int]] = {}
    for i, one in enumerate(rows):
        if len(one) > 1:
            of_size.setdefault(len(one), []).append(i)
    parts: dict[int, list[Array]] = {}
    for n, members in of_size.items():
        for counts in resampled_counts(np.random.default_rng(seed), n, resamples):
            for i in members:
                parts.setdefault(i, []).append(functions[i](counts @ rows[i] / n))
    return {i: np.concatenate(of_chunks) for i, of_chunks in parts.items()}


def _interval(ends: Array, drawn: Array, value: float, rows: Array, of_means: OfMeans, method: Method) -> Interval:
    if method == "bca":
        left_out = of_means((rows.sum(0) - rows) / (len(rows) - 1))
        if np.isnan(left_out).any():  # without one of the images there is no value
            return Interval(value, math.nan, math.nan)
        ends = _bca(ends, drawn, value, left_out)
    low, high = np.quantile(drawn, ends)
    return Interval(value, float(low), float(high))


def paired_difference(
    ours: Sequence[Any] | npt.NDArray[Any],
    theirs: Sequence[Any] | npt.NDArray[Any],
    of_means: OfMeans | None = None,
    *,
    level: float = 0.95,
    method: Method = "bca",
    resamples: int = 2000,
    permutations: int = 4999,
    seed: int = 0,
) -> PairedDifference:
    """Compute the difference between two runs' values on the same images, its bootstrap interval and a p value.

    The p value comes from a two-sided permutation test. If the two runs were interchangeable, swapping their scores on
    any images would change nothing. The p value is the share of such swaps with a difference at least as large as the
    observed one. If there are no more than `permutations` swaps, all of them are counted; otherwise that many random
    swaps and the observed arrangement are counted.

    Args:
        ours: scores of the first run, as for `bootstrap_interval`.
        theirs: scores of the second run, in the same order of images. Images that lack a score in either run are left
            out.
        of_means: computes the value from the means; None for the mean of single scores.
        level: the level of the interval.
        method: the method of the interval.
        resamples: the number of resamples for the interval.
        permutations: the number of permutations for the test.
        seed: the seed of both the interval and the test.

    Returns:
        The difference (ours - theirs), its interval, the p value and the number of images compared; NaN where there are
        too few images.

    Example:
        >>> paired_difference([3.0, 5.0, 4.0, 6.0], [1.0, 2.0, 3.0, 5.5]).p_value
        0.125
    """
    check_positive("permutations", permutations)
    pair = [_table(scores) for scores in (ours, theirs)]
    if pair[0].shape != pair[1].shape:
        raise ValueError(f"Expected scores of the same images, but got {pair[0].shape} and {pair[1].shape} of them.")
    k, both, value_of = pair[0].shape[1], _rows(np.hstack(pair)), of_means or _mean

    def difference(means: Array) -> Array:
        return value_of(means[:, :k]) - value_of(means[:, k:])

    interval = bootstrap_interval(both, difference, level=level, method=method, resamples=resamples, seed=seed)
    p_value = _swap_test(both, difference, permutations, seed) if len(both) else math.nan
    return PairedDifference(*interval, p_value=p_value, images=len(both))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for multiple comparisons: the chance that any of them is a false finding stays at the level.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.

    Args:
        p_values: in [0, 1]. NaN marks a comparison that could not be made; it stays NaN and does not count.

    Returns:
        The adjusted values, in the order given.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted = np.asarray(p_values, dtype=np.float64).copy()
    order = np.argsort(adjusted, kind="stable")[: np.count_nonzero(~np.isnan(adjusted))]  # NaN sorts last
    adjusted[order] = np.maximum.accumulate(adjusted[order] * np.arange(len(order), 0, -1)).clip(max=1)
    return [float(value) for value in adjusted]


def _table(scores: Sequence[Any] | npt.NDArray[Any]) -> Array:
    """Scores as (n,k) float64, NaN for None."""
    first = next((score for score in scores if score is not None), None)
    if isinstance(scores, list) and isinstance(first, float):
        return np.array(scores, dtype=np.float64).reshape(-1, 1)
    width = np.size(first) if first is not None else 1
    nothing = np.full(width, np.nan)
    table = [nothing if score is None else score for score in scores] if isinstance(scores, Sequence) else scores
    flat = [np.atleast_1d(row) for row in table] if isinstance(table, list) else table
    return np.asarray(flat, dtype=np.float64).reshape(len(scores), width)


def _rows(scores: Sequence[Any] | npt.NDArray[Any]) -> Array:
    """The rows in which every value is defined."""
    table = _table(scores)
    return table[~np.isnan(table).any(1)]


def _mean(means: Array) -> Array:
    if means.shape[1] > 1:
        raise ValueError(f"Expected `of_means` with scores of {means.shape[1]} numbers, but got None.")
    return means[:, 0]


def _exact_mean(rows: Array) -> Array:
    """(1,k), with the same digits as the metrics' own `reduce`."""
    return np.array([[math.fsum(column) / len(rows) for column in rows.T.tolist()]])


def resampled_counts(rng: np.random.Generator, n: int, resamples: int) -> Iterator[Array]:
    """Draw n images with replacement, many times.

    Args:
        rng: the source of the draws.
        n: the number of images.
        resamples: how many times they are drawn.

    Yields:
        Chunks (m,n) of `resamples` rows in all: how often each image is drawn in a resample of n.
    """
    size = max(1, _CHUNK // n)
    for start in range(0, resamples, size):
        m = min(size, resamples - start)
        drawn = rng.integers(0, n, size=(m, n), dtype=np.int64 if n > 2**16 else np.uint16)
        counts = np.empty((m, n))
        for row, of_one in zip(counts, drawn, strict=True):  # a row at a time stays in the processor's cache
            row[:] = np.bincount(of_one, minlength=n)
        yield counts


def _bca(ends: Array, drawn: Array, value: float, left_out: Array) -> Array:
    """The ends of the corrected interval in the drawn distribution; `left_out` (n,): the value without each image."""
    below = ((drawn < value).sum() + (drawn <= value).sum()) / (2 * len(drawn))  # equal values count half
    half = 0.5 / len(drawn)
    bias = ndtri(np.clip(below, half, 1 - half))
    pull = left_out.mean() - left_out
    pull = pull / (abs(pull).max() or 1)  # only its shape matters, and its cube must not underflow
    skew = (pull**3).sum() / (6 * ((pull**2).sum() or 1) ** 1.5)
    normal = bias + ndtri(ends)
    return np.asarray(ndtr(bias + normal / (1 - skew * normal)))


def _swap_test(both: Array, difference: OfMeans, permutations: int, seed: int) -> float:
    """The share of swaps between `ours` and `theirs` (the halves of `both`) with a difference at least as large.

    NaN if there is no difference, as one of the values is not defined.
    """
    n, k = len(both), both.shape[1] // 2
    means = both.mean(0, keepdims=True)
    gain = np.hstack([both[:, k:] - both[:, :k], both[:, :k] - both[:, k:]]) / n  # what a swap adds to the means
    observed = abs(difference(means)[0])
    if math.isnan(observed):
        return math.nan
    least = observed - 1e-9 * abs(both).max()  # swaps that give the same number may differ by rounding
    every = n < 63 and 2**n <= permutations
    rng = np.random.default_rng(seed)
    reached, total = (0, 2**n) if every else (1, permutations + 1)
    size = max(1, _CHUNK // n)
    for start in range(0, 2**n if every else permutations, size):
        if every:
            swaps = np.arange(start, min(start + size, total))[:, None] >> np.arange(n) & 1
        else:
            bits = rng.integers(0, 256, size=(min(size, permutations - start), -(-n // 8)), dtype=np.uint8)
            swaps = np.unpackbits(bits, axis=1, count=n).astype(np.int64)
        reached += int((abs(difference(means + swaps @ gain)) >= least).sum())
    return reached / total
