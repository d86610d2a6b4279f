"""Whole runs of Opti-CAM beside the bare passes that they make: maps alone, and maps with metrics.

    python benchmarks/whole_run.py [--images 8] [--iterations 8] [--steps 8] [--batch 4] [--workers 0]

A run is what `optcam predict` and `optcam test` do: blocks, maps, probes, metrics, rows on the disk, TensorBoard. Its
time counts from the first block to the last, without the start-up that startup.py measures. The limit makes the same
passes again, of as many images each, with a backward pass where the run made one. With --images-from, its photographs
are read from that folder. On a GPU the run has the speed "auto" in bfloat16, and the limit is the folded network's
passes in bfloat16, replayed as CUDA graphs. There the first block belongs to the start-up, as everything is captured in
it: time and passes count from its end.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from common import (
    Claim,
    Contestant,
    Table,
    arguments,
    at_speed,
    classifier_of,
    finish,
    graphed,
    on_gpu,
    passes,
    photographs,
    race,
)
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from optcam_pl import Classifier, OptiCAM
from optcam_pl.callbacks import MapWriter, TensorBoardPanels
from optcam_pl.data import Entry, ImageDataModule, ImagePaths
from optcam_pl.data.batch import Item
from optcam_pl.metrics import AverageDrop, AverageGain, AverageIncrease, Deletion, ImageMetric, Insertion
from optcam_pl.tasks import SaliencyTask


class Pictures(ImageDataModule):
    """The photographs that scikit-image ships, over and over."""

    def __init__(self, n: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.n = n

    def entries(self) -> list[Entry]:
        """Numbered."""
        return [Entry(f"{i}.png", str(i)) for i in range(self.n)]

    def reader(self) -> Callable[[Entry], Item]:
        """See `read`."""
        return read


def read(entry: Entry) -> Item:
    """A photograph from its package, decoded as a user's is."""
    import skimage.data
    from PIL import Image

    shown = (skimage.data.chelsea, skimage.data.coffee, skimage.data.astronaut)[int(entry.path) % 3]
    return Item(Image.fromarray(shown()))


class Clock(Callback):
    """Seconds from the first block to the last, or from the first one's end."""

    def __init__(self, without_first: bool) -> None:
        self.seconds = self._start = 0.0
        self.runs, self._without_first = False, without_first

    def on_test_start(self, *_: Any) -> None:
        """Begin."""
        if not self._without_first:
            self._begin()

    def on_test_batch_end(self, *given: Any) -> None:
        """Begin, after the first block."""
        if not self.runs:
            self._begin()

    def _begin(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.runs, self._start = True, time.perf_counter()

    def on_test_end(self, *_: Any) -> None:
        """End."""
        self.seconds = time.perf_counter() - self._start

    on_predict_start, on_predict_batch_end, on_predict_end = on_test_start, on_test_batch_end, on_test_end


def measure(title: str, stage: str, metrics: list[ImageMetric], classifier: Classifier, options: Any) -> Table:
    """The race of one kind of run."""
    made: list[tuple[int, bool]] = []
    image = photographs(options, classifier, max(64, options.batch))
    half = at_speed(classifier, "auto", weights_dtype="bfloat16") if on_gpu(options) else classifier
    clock = Clock(False)

    def run(network: Classifier = half, iterations: int = options.iterations) -> float:
        nonlocal clock
        clock = Clock(on_gpu(options))
        callbacks: list[Callback] = [TensorBoardPanels(), *([MapWriter()] if stage == "predict" else [])]
        with tempfile.TemporaryDirectory() as folder:
            trainer = L.Trainer(
                accelerator="gpu" if options.device == "cuda" else "cpu", devices=1, inference_mode=False,
                logger=TensorBoardLogger(folder, name="run", version=""), enable_progress_bar=False,
                callbacks=[clock, *callbacks], enable_checkpointing=False,
                enable_model_summary=False, use_distributed_sampler=False,
            )  # fmt: skip
            task = SaliencyTask(network, OptiCAM(max_iter=iterations, tol=0), "predicted", metrics=metrics)
            data = pictures(options, classifier)
            if stage == "test":
                trainer.test(task, datamodule=data, verbose=False)
            else:
                trainer.predict(task, datamodule=data, return_predictions=False)
        return clock.seconds

    def counting(self: Classifier, given: Tensor) -> Any:
        if clock.runs:
            made.append((len(given), torch.is_grad_enabled() and given.requires_grad))
        return original(self, given)

    original = Classifier._pass
    Classifier._pass = counting
    try:
        run(classifier, 1)  # plain, as the counter does not see replays; all iterations make the same passes
    finally:
        Classifier._pass = original
    times = {kind: n * (options.iterations if kind[1] else 1) for kind, n in Counter(made).items()}
    again = bare(classifier.to(options.device), image, times, options)  # a run leaves its network on the CPU

    counted = options.images - (options.batch if on_gpu(options) else 0)
    contestants = [
        Contestant("the same passes, bare", again, "limit", counted),
        Contestant(f"optcam {stage}", run, "ours", counted),
    ]
    table = race(f"{title}, {classifier.name}, {options.images} photographs", "an image", contestants, options.rounds)
    table.shows.append(Claim(f"optcam {stage}", "the same passes, bare", 1 / 0.85))
    return table


def pictures(options: Any, classifier: Classifier) -> ImageDataModule:
    """The photographs of a run."""
    settings = {"batch_size": options.batch, "size": classifier.input_size, "num_workers": options.workers}
    if options.images_from is None:
        return Pictures(options.images, **settings)
    return ImagePaths(options.images_from, limit=options.images, **settings)


def bare(
    classifier: Classifier, image: Tensor, made: Mapping[tuple[int, bool], int], options: Any
) -> Callable[[], None]:
    """Passes of so many images, with a backward pass or without, so many times each."""
    calls = [
        (graphed if on_gpu(options) else passes)(classifier, image[:count], times, backward)
        for (count, backward), times in made.items()
    ]

    def call() -> None:
        for each in calls:
            each()

    return call


def main() -> None:
    options = arguments(
        __doc__, network="demo/efficientnet_lite0", images=8, iterations=8, steps=8, rounds=3, batch=4, workers=0,
        parts=["maps", "metrics", "curves"],
    )  # fmt: skip
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    classifier = classifier_of(options.network, options)
    usual: list[ImageMetric] = [AverageDrop(), AverageGain(), AverageIncrease()]
    curves: list[ImageMetric] = [Insertion(options.steps), Deletion(options.steps)]
    known = {
        "maps": ("Maps alone", "predict", []),
        "metrics": ("Maps, AD, AG and AI", "test", usual),
        "curves": (f"Maps and curves of {options.steps} steps", "test", [*usual, *curves]),
    }
    finish("whole_run", [measure(*known[part], classifier, options) for part in options.parts], options)


if __name__ == "__main__":
    main()
