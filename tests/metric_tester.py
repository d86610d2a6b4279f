"""One tester for every metric: what each of them promises, in one process and in two, whatever it measures."""

from __future__ import annotations

import atexit
import copy
import functools
import json
import math
import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from optcam_pl.metrics import ImageMetric, MetricInfo

Batch = dict[str, Any]
PEER_TIMEOUT = 120.0  # seconds: a peer imports torch first


class MetricTester:
    """Checks a metric against per-image scores from an independent source.

    `batches` are dicts of evidence, of uneven sizes; `expected` is one list of per-image scores for each of them (None
    where the score is undefined, a list where it is several numbers) and `expected_value` the value over all, by
    default the mean of the defined ones.
    """

    atol = 1e-5

    def check(
        self,
        make: Callable[[], ImageMetric],
        batches: Sequence[Batch],
        expected: Sequence[Sequence[Any]],
        expected_value: float | None = None,
    ) -> None:
        flat = [score for scores in expected for score in scores]
        if expected_value is None:
            defined = [score for score in flat if score is not None]
            expected_value = sum(defined) / len(defined)
        self.check_scores(make(), batches, expected)
        self.check_value(make(), batches, flat, expected_value)
        self.check_processes(make, batches, expected_value)
        self.check_bfloat16(make, batches)
        self.check_life(make(), batches)
        self.check_description(make())

    def close(self, got: Any, want: float) -> bool:
        return got == pytest.approx(want, rel=self.atol, abs=self.atol, nan_ok=True)

    def check_scores(self, metric: ImageMetric, batches: Sequence[Batch], expected: Sequence[Sequence[Any]]) -> None:
        for batch, scores in zip(batches, expected, strict=True):
            got = metric.score(**batch)
            nothing = torch.full(got.shape[1:], math.nan).tolist()
            want = torch.tensor([nothing if score is None else score for score in scores], dtype=torch.float64)
            torch.testing.assert_close(got.double(), want, rtol=self.atol, atol=self.atol, equal_nan=True)

    def check_value(self, metric: ImageMetric, batches: Sequence[Batch], flat: list[Any], value: float) -> None:
        for batch in batches:
            metric.update(**batch)
        assert self.close(metric.compute().item(), value)
        undefined = sum(score is None for score in flat)
        assert (metric.count.item(), metric.undefined.item()) == (len(flat) - undefined, undefined)
        rows = [row for batch in batches for row in metric.score(**batch).tolist()]
        assert self.close(type(metric).reduce(rows), value), "`reduce` gives another number than `compute`"
        assert type(metric).reduce(rows[::-1]) == type(metric).reduce(rows), "`reduce` depends on the order"

    def check_processes(self, make: Callable[[], ImageMetric], batches: Sequence[Batch], value: float) -> None:
        uneven = [list(batches[:1]), list(batches[1:])]
        for shares in (uneven, [list(batches), []]):  # the second: a process without any image
            for got in two_processes().run([(make(), share) for share in shares]):
                assert self.close(got, value)

    def check_bfloat16(self, make: Callable[[], ImageMetric], batches: Sequence[Batch]) -> None:
        rounded = [_map(batch, lambda tensor: tensor.bfloat16()) for batch in batches]
        widened = [_map(batch, lambda tensor: tensor.float()) for batch in rounded]
        low, high = make(), make()
        for narrow, wide in zip(rounded, widened, strict=True):
            low.update(**narrow)
            high.update(**wide)
        assert self.close(low.compute().item(), high.compute().item()), "bfloat16 is not widened before computing"

    def check_life(self, metric: ImageMetric, batches: Sequence[Batch]) -> None:
        assert math.isnan(metric.compute().item()), "without images the value is NaN"
        assert metric(**batches[0]).item() == pytest.approx(type(metric).reduce(metric.score(**batches[0]).tolist()))
        for batch in batches[1:]:
            metric(**batch)
        value = metric.compute().item()
        for twin in (metric.clone(), copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
            assert twin.compute().item() == value
            assert twin.settings() == metric.settings()
        assert metric.state_dict() == {}
        metric.persistent(True)
        restored = metric.clone()
        restored.reset()
        restored.load_state_dict(metric.state_dict())
        assert restored.compute().item() == value
        assert metric.half().float().to("cpu").compute().item() == value, "`.to` changed the sums"
        metric.reset()
        collection = MetricCollection({metric.key: metric}, compute_groups=False)
        collection.update(**batches[-1], unrelated=torch.zeros(3))
        assert self.close(metric.compute().item(), type(metric).reduce(metric.score(**batches[-1]).tolist()))

    def check_description(self, metric: ImageMetric) -> None:
        info = metric.describe()
        assert info.label
        assert MetricInfo(**json.loads(json.dumps(asdict(info)))) == info
        assert metric.higher_is_better in (True, False)
        assert all(isinstance(value, str | int | float | bool) for value in metric.settings().values())
        assert metric.evidence()
        assert tuple(metric.needs()) == metric.evidence()


def _map(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with every floating-point tensor changed, also those in lists."""

    def one(value: Any) -> Any:
        if isinstance(value, list):
            return [one(item) for item in value]
        return change(value) if isinstance(value, Tensor) and value.is_floating_point() else value

    return {name: one(value) for name, value in batch.items()}


class _Pair:
    """Two processes joined by gloo, started once for all tests."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.folder = tempfile.TemporaryDirectory()
        meeting = f"file://{Path(self.folder.name) / 'meeting'}"
        self.ends: list[Connection] = []
        for rank in range(2):
            here, there = context.Pipe()
            context.Process(target=_serve, args=(rank, meeting, there), daemon=True).start()
            self.ends.append(here)

    def run(self, jobs: Sequence[tuple[ImageMetric, list[Batch]]], ask: str = "compute") -> list[Any]:
        """Each process updates its metric with its batches; what both then answer to the method `ask`."""
        for end, job in zip(self.ends, jobs, strict=True):
            end.send_bytes(pickle.dumps((*job, ask)))
        answers = []
        for end in self.ends:
            assert end.poll(PEER_TIMEOUT), "a process did not answer"
            answers.append(end.recv())
        assert not any(isinstance(answer, str) for answer in answers), answers
        return answers

    def close(self) -> None:
        for end in self.ends:
            end.close()
        self.folder.cleanup()


@functools.cache
def two_processes() -> _Pair:
    pair = _Pair()
    atexit.register(pair.close)
    return pair


def _serve(rank: int, meeting: str, end: Connection) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    while True:
        try:
            metric, batches, ask = pickle.loads(end.recv_bytes())
        except EOFError:
            return
        try:
            for batch in batches:
                metric.update(**batch)
            answer = getattr(metric, ask)()
            end.send([part.tolist() for part in answer] if isinstance(answer, tuple) else answer.item())
        except Exception:
            end.send(traceback.format_exc())
