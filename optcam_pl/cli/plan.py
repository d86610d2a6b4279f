"""`optcam compare --plan`: what a comparison will cost, from a short probe of each method, before anything runs."""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from optcam_pl.callbacks.base import BlockCallback
from optcam_pl.cli.lightning_cli import OptcamCLI
from optcam_pl.data import Batch, ImageDataModule
from optcam_pl.evaluate.block import BlockResult, evaluate_block
from optcam_pl.evaluate.subject import match
from optcam_pl.reports.grids import aligned
from optcam_pl.runs.run_folder import FileWriter
from optcam_pl.runs.tensors import save_curves
from optcam_pl.tasks import SaliencyTask

_DEVICES = (1, 2, 4, 8)
_FEW = 8  # images whose decoding is timed


@dataclass(frozen=True)
class Cost:
    """What one method costs on one dataset.

    Attributes:
        name: the method, and the dataset if there are several.
        images: number of images of the dataset.
        block: images in a block.
        seconds: of an image: map and metrics.
        loading: seconds of an image: reading and resizing, divided by the loader's processes.
        memory: the largest memory in use, in bytes: of the GPU, or of this process.
        disk: bytes an image: its row, its curves, and the files of callbacks.
        measured: images of the measured block; fewer than `block` if that would have taken too long.
        device: "GPU" or "CPU".
        devices: number of devices that the config asks for.
    """

    name: str
    images: int
    block: int
    seconds: float
    loading: float
    memory: int
    disk: float
    measured: int
    device: str
    devices: int

    @property
    def pace(self) -> float:
        """Seconds an image: whatever is slower, because images are loaded while others are explained."""
        return max(self.seconds, self.loading)

    def hours(self, devices: int = 1) -> float:
        """Hours until the last of some devices is done; each takes every so-manieth block."""
        blocks = math.ceil(math.ceil(self.images / self.block) / devices)
        return self.pace * min(self.images, blocks * self.block) / 3600


def cost(name: str, words: Sequence[str], seconds: float) -> Cost:
    """Measure what an `optcam test` with these words costs.

    The first block is evaluated as in a run: one image alone, and then the whole block if that is likely to fit into
    the time. Nothing is written into the run's folder.

    Args:
        name: name of the row.
        words: the words after `optcam`.
        seconds: time for the probe. One image is measured in any case.

    Raises:
        TypeError: the command is not a test of maps.
        ValueError: its parts do not fit each other.
    """
    cli = OptcamCLI(words, dry=True)
    task, data = cli.model, cli.datamodule
    if not isinstance(task, SaliencyTask) or not isinstance(data, ImageDataModule):
        raise TypeError(f"Expected a SaliencyTask on images to plan, but got {type(task).__name__}.")
    match(task.classifier, task.explainer, data, task.target)
    data.setup("test")
    device = cli.trainer.strategy.root_device
    task.to(device)
    start = time.perf_counter()
    few = [data.table[i] for i in range(min(_FEW, len(data.table)))]
    loading = (time.perf_counter() - start) / len(few) / max(1, data.workers)
    block = _on(next(iter(data.test_dataloader())), device)
    with tempfile.TemporaryDirectory() as folder:
        task.run_dir = Path(folder)
        took, result = _probe(cli, task, block, seconds)
        count = len(result.rows)
        disk = _written(cli, task, result) / count
    return Cost(
        name,
        len(data.table),
        data.batch_size,
        took / count,
        loading,
        _memory(device),
        disk,
        count,
        "GPU" if device.type == "cuda" else "CPU",
        cli.trainer.world_size,
    )


def _probe(cli: OptcamCLI, task: SaliencyTask, block: Batch, seconds: float) -> tuple[float, BlockResult]:
    """Seconds and result of as many images as fit into the time."""
    end, whole = time.perf_counter() + seconds, len(block["index"])
    # The first pass of a size prepares (checks, kernels, graphs), so each size is measured twice where time allows.
    sizes = [count for count in dict.fromkeys((1, min(4, whole), whole)) for _ in range(2)]
    took, result = _evaluate(cli, task, block, 1)
    for count in sizes[1:]:
        if time.perf_counter() + took / len(result.rows) * count > end:
            break
        took, result = _evaluate(cli, task, block, count)
    return took, result


def _evaluate(cli: OptcamCLI, task: SaliencyTask, block: Batch, count: int) -> tuple[float, BlockResult]:
    """Seconds and result of the first images of a block."""
    part: Any = {key: value[:count] for key, value in dict[str, Any](block).items()}
    start = time.perf_counter()
    with cli.trainer.precision_plugin.forward_context():
        result = evaluate_block(
            task.classifier,
            task.explainer,
            part,
            task.target,
            task.metrics_on(cli.datamodule),
            region=task.region,
            chunk_size=task.chunk_size,
        )
    return time.perf_counter() - start, result


def _on(block: Batch, device: torch.device) -> Batch:
    moved: Any = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in block.items()}
    return moved  # type: ignore[no-any-return]


def _written(cli: OptcamCLI, task: SaliencyTask, result: BlockResult) -> int:
    """Bytes that a run writes for these images."""
    rows = sum(len(str(row)) for row in result.rows)
    for callback in cli.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, BlockCallback) and isinstance(callback, FileWriter):
            callback.on_block(cli.trainer, task, result)
    if result.curves:
        curves = {key: curve.cpu() for key, curve in result.curves.items()}
        save_curves(task.run_dir, 0, result.batch["id"], curves)
    return rows + sum(file.stat().st_size for file in task.run_dir.rglob("*") if file.is_file())


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def plan_text(costs: Sequence[Cost]) -> str:
    """A table of the costs with their sum, and how long several devices take."""
    device = costs[0].device
    heads = ["method", "ms an image", "images", f"{device}-hours", "memory", "disk"]
    body = [
        [
            cost.name + ("" if cost.measured >= min(cost.block, cost.images) else "*"),
            f"{1000 * cost.pace:.3g}" + (" (loading)" if cost.loading > cost.seconds else ""),
            str(cost.images),
            f"{cost.hours():.3g}",
            size(cost.memory),
            size(cost.disk * cost.images),
        ]
        for cost in costs
    ]
    total = sum(cost.hours() for cost in costs)
    disk = sum(cost.disk * cost.images for cost in costs)
    body.append(["all", "", "", f"{total:.3g}", size(max(cost.memory for cost in costs)), size(disk)])
    lines = aligned(heads, body, 1)
    if any(row[0].endswith("*") for row in body):
        lines.append("* measured on fewer images than a block has, which did not fit into the time: at most so much.")
    counts = sorted({*_DEVICES, costs[0].devices})
    spread = ", ".join(f"{n} {device}{'s' * (n > 1)} {sum(c.hours(n) for c in costs):.3g} h" for n in counts)
    lines.append(f"Until the end, one method after the other: {spread} (blocks are dealt out; without start-up).")
    return "\n".join(lines)


def size(count: float) -> str:
    """A number of bytes with its unit.

    >>> [size(10), size(2_500_000), size(3e9)]
    ['10 B', '2.5 MB', '3 GB']
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"
