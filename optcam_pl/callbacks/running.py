"""Means that are shown while a run measures, and the images that it shows."""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from optcam_pl.figures import Picture
from optcam_pl.metrics import ImageMetric
from optcam_pl.metrics.base import value_of
from optcam_pl.runs.rows import Row

_POINTS = 100  # of a curve, whatever the number of images
_NORMAL = 1.959964

Point: TypeAlias = tuple[int, dict[str, float]]
"""A number of images, and values over them."""


def most_points(images: int) -> int:
    """How many points a curve over so many images has at most, its last one included.

    >>> most_points(5), most_points(50000)
    (5, 100)
    """
    return -(-images // _every(images))


def _every(images: int) -> int:
    """How many images lie between two points."""
    return -(-images // _POINTS)


class RunningMeans:
    """The metrics' values over the images so far, at about a hundred numbers of images.

    Args:
        metrics: the metrics.
        images: number of images of the dataset.
        rows: rows of images that were done before.

    Example:
        >>> from optcam_pl.metrics import AverageDrop
        >>> from optcam_pl.runs.rows import Row
        >>> known = dict(status="ok", target=0, predicted=0, p=0.5, o=0.4, seconds=1.0)
        >>> rows = [Row(index=i, id=str(i), scores={"average_drop": d}, **known) for i, d in enumerate((20.0, 40.0))]
        >>> (_, first), (images, values) = RunningMeans([AverageDrop()], images=3).add(rows)
        >>> images, values["average_drop"], round(values["average_drop_low"], 2), values["seconds_per_image"]
        (2, 30.0, 10.4, 1.0)
    """

    def __init__(self, metrics: Iterable[ImageMetric], images: int, rows: Iterable[Row] = ()) -> None:
        self.metrics = {metric.key: metric for metric in metrics}
        self.images, self.seen = images, 0
        self._seconds = _Sum()
        self._sums: dict[str, list[_Sum]] = {key: [] for key in self.metrics}
        for row in rows:
            if row.status != "error":
                self._add_image(row)

    def add(self, rows: Iterable[Row]) -> Iterator[Point]:
        """Add images; yields the number of images so far and the values, for each point to show."""
        every = _every(self.images)
        for row in rows:
            self._add_image(row)
            if self.seen % every == 0:
                yield self.seen, {**dict(self._values()), "seconds_per_image": self._seconds.mean}

    def _add_image(self, row: Row) -> None:
        self.seen += 1
        self._seconds.add(row.seconds)
        for key, sums in self._sums.items():
            score = row.scores.get(key)
            parts = [score] if isinstance(score, (int, float)) else score
            if parts is None or any(math.isnan(part) for part in parts):
                continue
            if not sums:
                sums += [_Sum() for _ in parts]
            for one, part in zip(sums, parts, strict=True):
                one.add(part)

    def _values(self) -> Iterator[tuple[str, float]]:
        for key, sums in self._sums.items():
            if not sums:
                continue
            metric = self.metrics[key]
            value = value_of([[one.mean for one in sums]], metric.of_means)
            half = 0.0  # a chart wants both ends wherever there is a value
            if metric.describe().aggregate == "mean" and sums[0].count > 1:
                half = _NORMAL * sums[0].deviation / math.sqrt(sums[0].count)
            yield from ((key, value), (f"{key}_low", value - half), (f"{key}_high", value + half))


class _Sum:
    """Count, mean and standard deviation of the numbers so far (Welford)."""

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    def add(self, value: float) -> None:
        self.count += 1
        before = value - self.mean
        self.mean += before / self.count
        self._squares += before * (value - self.mean)

    @property
    def deviation(self) -> float:
        return math.sqrt(self._squares / (self.count - 1))


@dataclass(frozen=True)
class Shown:
    """An image that is shown.

    Attributes:
        rank: what it was chosen by, and its number in the dataset; the largest are shown.
        panel: what is shown.
    """

    rank: tuple[float, int]
    panel: Picture


Draw: TypeAlias = Callable[[], Picture]
"""Draws a panel, of copies on the CPU."""


@dataclass
class _Held:
    """An image among the largest: how its panel's contents are copied, until they are, and the panel once drawn."""

    take: Callable[[], Draw] | None
    panel: Picture | None = None

    def drawing(self) -> Callable[[], None]:
        """Copy the contents; what is returned draws them."""
        assert self.take is not None  # see Chosen.drawings
        draw, self.take = self.take(), None  # it holds the whole block

        def work() -> None:
            self.panel = draw()

        return work


class Chosen:
    """The images with the largest values, at most `most`; a panel is drawn only where its image is among them.

    Example:
        >>> chosen = Chosen(2)
        >>> for index, value in enumerate([0.1, 0.5, 0.3]):
        ...     chosen.offer(value, index, lambda index=index: lambda: f"panel {index}")
        >>> for draw in chosen.drawings():
        ...     draw()
        >>> [shown.panel for shown in chosen.best()]
        ['panel 1', 'panel 2']
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._heap: list[tuple[tuple[float, int], _Held]] = []

    def offer(self, value: float, index: int, take: Callable[[], Draw]) -> None:
        """Take the image if its value is among the largest; `take` is called by `drawings`."""
        held = (value, index), _Held(take)  # no two images have the same rank, so that no more is compared
        if len(self._heap) < self.most:
            heapq.heappush(self._heap, held)
        elif self._heap and held[0] > self._heap[0][0]:
            heapq.heapreplace(self._heap, held)

    def drawings(self) -> list[Callable[[], None]]:
        """What has to be called before `best`, for images that came since the last time; their contents are copied."""
        return [held.drawing() for _, held in self._heap if held.take is not None]

    def best(self, others: Iterable[Sequence[Shown]] = ()) -> list[Shown]:
        """The images with the largest values, the largest first; `others` are those of other processes."""
        own = [Shown(rank, held.panel) for rank, held in self._heap if held.panel is not None]
        every = own + [shown for some in others for shown in some]
        return sorted(every, key=lambda shown: shown.rank, reverse=True)[: self.most]


def lot(image_id: str) -> float:
    """A number in [0,1) that looks random and is the same for an image in every run.

    >>> lot("a.png") == lot("a.png") != lot("b.png")
    True
    """
    digest = hashlib.sha256(image_id.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
