"""What it costs to keep a run durable, and how time and memory grow with the number of images.

    python benchmarks/bookkeeping.py [--images 100 1000 10000] [--runs 10] [--rows 50000]

The images are made up, the network is a mean of pixels, the map is FakeCAM's, so that nearly all that is left is
blocks, probes, metrics, rows on the disk and TensorBoard. The run folder is a temporary one. The second table is
`optcam report` on so many runs of so many rows, with its start-up: the first time, and again.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from common import Table, arguments, finish
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor, nn

from optcam_pl import Classifier, FakeCAM
from optcam_pl.callbacks import TensorBoardPanels
from optcam_pl.data import Entry, ImageDataModule
from optcam_pl.data.batch import Item
from optcam_pl.metrics import AverageDrop, AverageGain, AverageIncrease, Deletion, Insertion
from optcam_pl.runs import rows as rows_module
from optcam_pl.runs.manifest import write_manifest
from optcam_pl.runs.rows import Row, RowWriter, read_rows
from optcam_pl.runs.run_folder import RunFolder
from optcam_pl.tasks import SaliencyTask

BLOCK, SIDE, MANY = 8, 16, 1000


def read(entry: Entry) -> Item:
    """A plain image whose color is its number's."""
    return Item(Image.new("RGB", (SIDE, SIDE), (int(entry.path) % 256, 40, 90)))


class Plain(ImageDataModule):
    """n plain images."""

    def __init__(self, n: int) -> None:
        super().__init__(batch_size=BLOCK, size=SIDE)
        self.n = n

    def entries(self) -> list[Entry]:
        """Ids as long as ImageNet's."""
        return [Entry(f"ILSVRC2012_val_{i:08}.JPEG", str(i)) for i in range(self.n)]

    def looked_for(self) -> str:
        """Nothing can be missing."""
        return "made-up images"

    def reader(self) -> Callable[[Entry], Item]:
        """See `read`."""
        return read


class Mean(nn.Module):
    """Logits (B,3): the mean colors."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B,3,H,W) -> (B,3)."""
        return self.features(image).mean((2, 3))


class Tenths(Callback):
    """After each tenth of the blocks: resident memory in MB, and the seconds that the process has computed."""

    def __init__(self) -> None:
        self.memory: list[float] = []
        self.computed: list[float] = []

    def on_test_batch_end(self, trainer: L.Trainer, *words: Any) -> None:
        """Look ten times."""
        if (words[3] + 1) % max(1, int(trainer.num_test_batches[0]) // 10) == 0:
            self.memory.append(resident())
            self.computed.append(time.process_time())


def resident() -> float:
    """MB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def timed(function: Callable[..., Any], spent: dict[str, float], key: str) -> Callable[..., Any]:
    """The function, its seconds added up."""

    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[key] = spent.get(key, 0.0) + time.perf_counter() - start

    return call


def run(folder: Path, images: int) -> tuple[float, Tenths]:
    """One start of the run; its seconds, and what was seen on the way."""
    torch.manual_seed(0)
    tenths = Tenths()
    trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=TensorBoardLogger(folder, name="run", version=""),
        callbacks=[TensorBoardPanels(), tenths], enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, inference_mode=False, use_distributed_sampler=False,
    )  # fmt: skip
    classifier = Classifier(Mean(), target_layer="features", mean=(0.5,) * 3, std=(0.5,) * 3, input_size=SIDE)
    start = time.perf_counter()
    trainer.test(SaliencyTask(classifier, FakeCAM(), target="predicted"), datamodule=Plain(images), verbose=False)
    return time.perf_counter() - start, tenths


def measure(images: int) -> dict[str, Any]:
    """Run, and start the finished run again."""
    spent: dict[str, float] = {}
    parts: list[tuple[Any, str]] = [(RunFolder, name) for name in ("prepare", "write", "heed", "finish")]
    parts.append((rows_module, "sync_data"))  # the disk's share, in another thread
    originals = [getattr(owner, name) for owner, name in parts]
    for (owner, name), function in zip(parts, originals, strict=True):
        setattr(owner, name, timed(function, spent, name))
    try:
        with tempfile.TemporaryDirectory() as folder:
            seconds, tenths = run(Path(folder), images)
            again, _ = run(Path(folder), images)
            rows = read_rows(Path(folder) / "run", strict=True)
    finally:
        for (owner, name), function in zip(parts, originals, strict=True):
            setattr(owner, name, function)
    assert [row.index for row in rows] == list(range(images))
    return {
        "images": images,
        "ms_per_image": round(1000 * seconds / images, 3),
        "ms_per_image_in_run_folder": {key: round(1000 * value / images, 4) for key, value in spent.items()},
        "seconds_to_start_a_finished_run": round(again, 2),
        # From the end of the first tenth on: without the start, and without what other programs take.
        "computed_ms_per_image": 1000 * (tenths.computed[-1] - tenths.computed[0]) / (0.9 * images),
        "memory_mb_at_each_tenth": [round(value) for value in tenths.memory],
    }


def made_up(folder: Path, n: int) -> None:
    """Rows of a run with five metrics."""
    drawn = torch.rand(n, 8, generator=torch.Generator().manual_seed(0)).tolist()
    with RowWriter(folder) as writer:
        for start in range(0, n, MANY):
            writer.write(
                Row(
                    index=i, id=f"n01440764/ILSVRC2012_val_{i:08}.JPEG", status="ok", target=i % 1000, seconds=0.5 + t,
                    predicted=i % 1000, p=p, o=o, scores={"average_drop": 100 * a, "average_gain": 100 * b,
                    "average_increase": 100.0 * (o > p), "insertion": 100 * c, "deletion": 100 * d},
                )
                for i, (p, o, a, b, c, d, t, _) in enumerate(drawn[start : start + MANY], start)
            )  # fmt: skip


def made_up_runs(folder: Path, runs: int, n: int) -> None:
    """Runs of different methods, whose rows are the same: to read and to add them costs the same."""
    metrics = [AverageDrop(), AverageGain(), AverageIncrease(), Insertion(), Deletion()]
    for number in range(runs):
        run = folder / f"Method{number}"
        described = {metric.key: asdict(metric.describe()) for metric in metrics}
        words = {"stage": "test", "run": run.name, "data": "made up", "classifier": "none", "explainer": run.name}
        counts = {"images": n, "metrics": list(described), "metric_info": described, "settings": {}}
        write_manifest(run, {**words, **counts, "fingerprint": {"number": number}, "created": "2026-01-01"})
        if number:
            shutil.copytree(folder / "Method0" / "rows", run / "rows")
        else:
            made_up(run, n)


def reports(runs: int, n: int) -> Table:
    """`optcam report`, each time in a new process."""
    table = Table(f"`optcam report` on {runs} runs of {n} rows, with intervals", "", {}, {})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made_up_runs(folder / "runs", runs, n)
        environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
        words = [sys.executable, "-m", "optcam_pl", "report", str(folder / "runs")]
        for time_of in ("the first time", "again", "once more"):
            start = time.perf_counter()
            subprocess.run(words, check=True, env=environment, stdout=subprocess.DEVNULL)
            table.values[time_of] = f"{time.perf_counter() - start:.1f} s"
    table.notes.append("A report keeps the numbers of large, complete runs under a checksum of their rows.")
    table.notes.append("`optcam test` does so at its end: a run's first report is as fast as `again`.")
    return table


def words(holds: bool) -> str:
    """As in a claim."""
    return "yes" if holds else "NO"


def main() -> None:
    options = arguments(__doc__, images=[100, 1_000, 10_000], runs=10, rows=50_000)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    measure(50)  # the first run of a process also imports and warms up
    table = Table("Bookkeeping: whole runs without explaining", "", {}, {})
    paces, peaks = [], []
    for images in options.images:
        found = measure(images)
        paces.append(found["computed_ms_per_image"])
        peaks.append(found["memory_mb_at_each_tenth"][-1])
        parts = ", ".join(f"{part} {ms:.3f}" for part, ms in found["ms_per_image_in_run_folder"].items())
        memory = found["memory_mb_at_each_tenth"]
        table.values[f"{images} images"] = (
            f"{found['ms_per_image']:.2f} ms an image with the start (the run folder: {parts}), {paces[-1]:.2f} ms of "
            f"them computed without it, started again when finished in "
            f"{found['seconds_to_start_a_finished_run']:.1f} s, {memory[0]} MB after the first tenth, "
            f"{memory[-1]} MB at the end"
        )
    slower, larger = paces[-1] / paces[0] - 1, max(peaks) - min(peaks)
    flat = [f"time {slower:+.0%} (at most 10 %: {words(slower <= 0.1)})"]
    flat += [f"memory {larger:+d} MB (at most 100: {words(larger <= 100)})"]
    table.values[f"from {options.images[0]} to {options.images[-1]} images"] = ", ".join(flat)
    table.notes.append("`sync_data`, the disk's own time to make a block of rows durable, passes in a thread.")
    table.notes.append("`write` waits for what the thread has not written of the block before, pictures included.")
    finish("bookkeeping", [table, reports(options.runs, options.rows)], options)


if __name__ == "__main__":
    main()
