"""The connected components of a map at all of its thresholds, found once for all of them.

From each pixel one climbs to its highest neighbor until none is higher: pixels with the same summit form a basin. What
lies above a threshold in one basin is connected, as the way to the summit does not descend. So the components at a
threshold are sets of basins, joined where the ridge between two of them is above the threshold. The ridges are taken
from the highest to the lowest, and each joins two sets at all thresholds below it. A map has far fewer basins than
pixels.

A map is given by its depth (H,W): how many of E rising thresholds lie below each pixel. Shape letters: N basins,
E thresholds.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Connectivity = Literal[4, 8]
Array: TypeAlias = npt.NDArray[Any]

_NOWHERE = np.iinfo(np.int32).max
_FINE = 2**16  # steps of the height within a depth
_STRAIGHT: tuple[Any, ...] = ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:]))
_DIAGONAL: tuple[Any, ...] = ((np.s_[:-1, :-1], np.s_[1:, 1:]), (np.s_[:-1, 1:], np.s_[1:, :-1]))


class Components:
    """The components of {depth > k} for k = 0 .. E-1, each in the row of one of its basins.

    Args:
        depth: (H,W) int in 0 .. E.
        height: (H,W) in [0,1]: where a pixel climbs to among neighbors of the same depth. Any map is right; with the
            one that the depth was made of, there are fewest basins.
        levels: E.
        connectivity: 4 or 8, the number of neighbors of a pixel.

    Attributes:
        basin: (H,W) the basin of each pixel.

    Example:
        >>> found = Components(np.array([[2, 1, 2, 0, 1]]), np.zeros((1, 5)), levels=2)
        >>> found.boxes(*found.alive.nonzero()).tolist()
        [[0, 0, 1, 1], [0, 0, 3, 1], [2, 0, 3, 1], [4, 0, 5, 1]]
    """

    def __init__(self, depth: Array, height: Array, levels: int, connectivity: Connectivity = 8) -> None:
        self.depth, self.levels = depth.astype(np.int32), levels
        self.basin, self.number = _basins(self.depth, height, connectivity)
        self._joins = _joins(self.basin, self.depth, levels, connectivity)

    @property
    def alive(self) -> Array:
        """(N,E): whether there is a component in this row at this threshold."""
        return self.first < _NOWHERE

    @property
    def first(self) -> Array:
        """(N,E): its first pixel in reading order, and a large number where there is none."""
        first: Array = self._extremes[0]
        return first

    def boxes(self, row: Array, threshold: Array) -> Array:
        """Boxes (n,4), x0 y0 x1 y1, of the components in some rows at some thresholds, both (n,)."""
        (first, left, last, right), W = self._extremes[:, row, threshold], self.depth.shape[1]
        return np.stack([left, first // W, 1 - right, 1 + -last // W], 1)

    @cached_property
    def _extremes(self) -> Array:
        """(4,N,E) the least index and column of each component, and the least of their negatives."""
        inside = np.flatnonzero(self.depth)
        place = self._place(self.basin.ravel()[inside], self.depth.ravel()[inside])
        index, column = inside.astype(np.int32), (inside % self.depth.shape[1]).astype(np.int32)
        least: Array = np.full((4, self.number * self.levels), _NOWHERE, dtype=np.int32)
        for found, values in zip(least, (index, column, -index, -column), strict=True):
            np.minimum.at(found, place, values)
        least = np.minimum.accumulate(least.reshape(4, self.number, self.levels), 2)[..., ::-1]
        for gone, kept, ridge in self._joins:
            np.minimum(least[:, kept, :ridge], least[:, gone, :ridge], out=least[:, kept, :ridge])
            least[:, gone, :ridge] = _NOWHERE
        return least

    def _place(self, basin: Array, depth: Array) -> Array:
        """Where pixels of depth 1 .. E count first, in (N,E) with the highest threshold at first."""
        place: Array = basin.astype(np.intp) * self.levels + (self.levels - depth)
        return place

    def count(self, basin: Array, depth: Array) -> Array:
        """(N,E) int: how many of some pixels (n,), given by their basin and depth, each component has."""
        place = self._place(basin[depth > 0], depth[depth > 0])
        counts = np.bincount(place, minlength=self.number * self.levels).reshape(self.number, self.levels)
        counts = counts.cumsum(1)[:, ::-1]
        for gone, kept, ridge in self._joins:
            counts[kept, :ridge] += counts[gone, :ridge]
        return counts

    def largest(self, size: Array, *, last: bool = False) -> Array:
        """Box (E,4) of the largest component at each threshold; zeros where there is none.

        Args:
            size: (N,E) of the components.
            last: of equal ones take the last in reading order, not the first.
        """
        size = np.where(self.alive, size, -1)
        order = -self.first if last else self.first
        chosen = np.where(size == size.max(0), order, _NOWHERE).argmin(0)
        boxes = self.boxes(chosen, np.arange(self.levels))
        return np.where(self.alive.any(0, keepdims=True).T, boxes, 0)

    def reach(self) -> Array:
        """(H,W): at how many of the lowest thresholds a pixel is connected with the last one, the lower right corner.

        This corner must be a highest pixel.
        """
        reach = np.zeros(self.number, dtype=self.depth.dtype)
        reach[-1] = self.levels
        for gone, kept, ridge in reversed(self._joins):
            reach[gone] = min(ridge, reach[kept])
        return np.minimum(self.depth, reach[self.basin])


def _basins(depth: Array, height: Array, connectivity: Connectivity) -> tuple[Array, int]:
    """(H,W) the number of each pixel's basin, in the order of the summits, and how many there are."""
    fine = (np.clip(height, 0, 1) * (_FINE - 1)).astype(np.int64)
    bits = depth.size.bit_length()  # those of a pixel's index: equal neighbors are in reading order
    key = ((depth * np.int64(_FINE) + fine) << bits) + np.arange(depth.size).reshape(depth.shape)
    up = (_highest(key, connectivity) & ((1 << bits) - 1)).ravel()
    while not np.array_equal(up, further := up[up]):
        up = further
    summits = np.flatnonzero(up == np.arange(depth.size))
    number = np.empty(depth.size, dtype=np.int32)
    number[summits] = np.arange(len(summits))
    return number[up].reshape(depth.shape), len(summits)


def _highest(key: Array, connectivity: Connectivity) -> Array:
    """(H,W): the largest of each pixel and its neighbors."""
    padded = np.pad(key, 1, constant_values=-1)
    column = np.maximum(np.maximum(padded[:-2], padded[1:-1]), padded[2:])
    beside = column if connectivity == 8 else padded[1:-1]
    highest: Array = np.maximum(np.maximum(beside[:, :-2], beside[:, 2:]), column[:, 1:-1])
    return highest


def _joins(basin: Array, depth: Array, levels: int, connectivity: Connectivity) -> list[tuple[int, int, int]]:
    """Which basin's set becomes part of which later basin's, and the depth of their ridge, the highest ridge first."""
    found = []
    for one, other in _STRAIGHT if connectivity == 4 else _STRAIGHT + _DIAGONAL:
        between = (basin[one] != basin[other]).nonzero()
        found.append([of[side][between] for of in (basin, depth) for side in (one, other)])
    a, b, depth_a, depth_b = (np.concatenate(parts) for parts in zip(*found, strict=True))
    # Of each pair of basins the highest ridge: numbers that sort like (lower basin, higher basin, E - ridge).
    number = int(basin.max()) + 1
    ends = np.minimum(a, b) * np.int64(number) + np.maximum(a, b)
    ends, below = np.divmod(np.unique(ends * (levels + 1) + levels - np.minimum(depth_a, depth_b)), levels + 1)
    highest = (np.diff(ends, prepend=-1) > 0) & (below < levels)
    order = np.flatnonzero(highest)[np.argsort(below[highest], kind="stable")]
    part_of = list(range(number))
    joins: list[tuple[int, int, int]] = []
    for pair, ridge in zip(ends[order].tolist(), (levels - below[order]).tolist(), strict=True):
        gone, kept = sorted((_top(part_of, pair // number), _top(part_of, pair % number)))
        if gone != kept:
            part_of[gone] = kept
            joins.append((gone, kept, ridge))
    return joins


def _top(part_of: list[int], one: int) -> int:
    """The set that a set has become part of."""
    while part_of[one] != one:
        part_of[one] = one = part_of[part_of[one]]
    return one
