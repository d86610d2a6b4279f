"""ImageProgress: how far a run is, in images and within a block, as bars in a terminal and as lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm

from optcam_pl.checks import check_count, check_number
from optcam_pl.explainers.steps import Step, listening
from optcam_pl.tasks import SaliencyTask

_READ = 0.5  # seconds between two readings of an objective: on a GPU each waits for the device
_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"


class Meter:
    """One count and what stands beside it: bars on the standard error if it is a terminal, otherwise lines.

    There is a line after the first update, at most one every `seconds`, and one at the end.

    Args:
        label: what is counted.
        total: what it is counted to.
        first: what it starts at.
        unit: what one is called, in the plural.
        seconds: time between two lines.
    """

    def __init__(self, label: str, total: int, first: int = 0, unit: str = "images", seconds: float = 30) -> None:
        self.label, self.total, self.first, self.unit, self.seconds = label, total, first, unit, seconds
        self.done, self._values = first, ""
        self._start = self._said = time.monotonic()
        self._silent, self._read = True, 0.0
        self._bar: Any = None
        self._inner: Any = None
        if _draws():
            self._bar = self._make(label, total, f" {unit}", position=0, initial=first)

    def update(self, done: int, values: Mapping[str, str]) -> None:
        """Show a new count and what stands beside it."""
        self.done, self._values = done, "".join(f", {key} {value}" for key, value in values.items())
        self._close_inner()
        if self._bar is not None:
            self._bar.set_postfix_str(self._values.removeprefix(", "), refresh=False)
            self._bar.update(done - self._bar.n)
        elif self._silent or done >= self.total or self._due():
            self._say()

    def step(self, step: Step) -> None:
        """Show a step of the computation that leads to the next count."""
        now = time.monotonic()
        if now - self._read < _READ:
            return
        self._read = now
        if self._bar is None:
            if self._due():
                self._say(f"; {step.what} {step.done} of {step.total}{_objective(step)}")
            return
        if self._inner is None or (self._inner.total, self._inner.desc) != (step.total, f"  {step.what}: "):
            self._close_inner()
            self._inner = self._make(f"  {step.what}", step.total, "", position=1, leave=False)
        self._inner.set_postfix_str(_objective(step).removeprefix(", "), refresh=False)
        self._inner.update(step.done - self._inner.n)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._close_inner()
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _make(self, label: str, total: int, unit: str, **options: Any) -> Any:
        shown: dict[str, Any] = {"file": sys.stderr, "dynamic_ncols": True, "bar_format": _FORMAT, "smoothing": 0}
        return tqdm(desc=label, total=total, unit=unit, mininterval=0, **shown, **options)

    def _close_inner(self) -> None:
        if self._inner is not None:
            self._inner.close()
            self._inner = None

    def _due(self) -> bool:
        return time.monotonic() - self._said >= self.seconds

    def _say(self, inside: str = "") -> None:
        self._said, self._silent = time.monotonic(), False
        spent, done = self._said - self._start, self.done - self.first
        line = f"{self.label}: {self.done} of {self.total} {self.unit}"
        if done and self.done < self.total:
            line += f", {tqdm.format_interval(spent / done * (self.total - self.done))} left"
        if done:
            line += f", {_rate(done, spent, self.unit)}"
        print(f"{line}{self._values}{inside}", file=sys.stderr, flush=True)


def _rate(done: int, spent: float, unit: str) -> str:
    """What is done a second, or how many seconds one takes, whichever is above 1.

    >>> _rate(30, 12, "images"), _rate(2, 12, "images"), _rate(2, 12, "batches")
    ('2.5 images/s', '6 s/image', '6 s/batch')
    """
    if done >= spent:
        return f"{done / spent:.3g} {unit}/s"
    return f"{spent / done:.3g} s/{unit.removesuffix('es' if unit == 'batches' else 's')}"


def _draws() -> bool:
    """Whether bars can be drawn: in a terminal and in a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def _objective(step: Step) -> str:
    return "" if step.objective is None else f", objective {float(step.objective.mean()):.4g}"


class ImageProgress(ProgressBar):
    """How far a run is: images done, images per second, the time that is left, the means so far.

    Within a block, the iteration of an optimizing method with its objective, or the passes of a method that needs many,
    are shown, too. All of it goes to the standard error: in a terminal as two bars; elsewhere as a line after the first
    block, at most one every `seconds`, and one at the end. Training a network counts the batches of each epoch.

    Args:
        refresh_rate: 0 shows nothing; any other number is the same as 1.
        label: what stands first, for example which method of how many this is; "" is the method's name.
        seconds: time between two lines where the output is no terminal.
    """

    def __init__(self, refresh_rate: int = 1, label: str = "", seconds: float = 30) -> None:
        super().__init__()
        self._enabled = check_count("refresh_rate", refresh_rate) > 0
        self.label, self.seconds = label, check_number("seconds", seconds)
        self._meter: Meter | None = None
        self._open = ExitStack()

    def disable(self) -> None:
        """Show nothing, as on every process but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show it again."""
        self._enabled = True

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """The means so far: of a measurement of maps the metrics, otherwise what Lightning's bars show."""
        if not isinstance(pl_module, SaliencyTask):
            found = {**super().get_metrics(trainer, pl_module)}
            found.pop("v_num", None)
            return {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in found.items()}
        values = {}
        for metric in pl_module.running():
            about = metric.describe()
            values[about.label] = f"{float(metric.of_means(metric.total / metric.count)):.{about.digits}f}"
        return values

    def _begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._enabled or trainer.sanity_checking:
            return
        self._close()
        if isinstance(pl_module, SaliencyTask):
            images, done = len(pl_module.data.table), pl_module.folder.plan.done
            label = self.label or f"{pl_module.explainer.title}, {pl_module.data.name}"
            self._meter = Meter(label, images, done, seconds=self.seconds)
            self._open.enter_context(listening(self._meter.step))
        elif not trainer.training:
            total = sum(_whole(batches) for batches in _listed(_batches(trainer)))
            self._meter = Meter(_stage(trainer), total, unit="batches", seconds=self.seconds)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count the batches of an epoch in which a network is trained."""
        if not self._enabled or isinstance(pl_module, SaliencyTask):
            return
        self._close()
        label = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
        self._meter = Meter(label, _whole(trainer.num_training_batches), unit="batches", seconds=self.seconds)

    def _advance(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        if self._meter is None:
            return
        if isinstance(pl_module, SaliencyTask):
            rows = () if pl_module.result is None else pl_module.result.rows
            more = len(rows) * trainer.world_size  # the other processes' blocks are as large
        else:
            more = 1
        done = min(self._meter.total, self._meter.done + more)
        self._meter.update(done, self.get_metrics(trainer, pl_module))

    def _close(self, *_: Any, **__: Any) -> None:
        self._open.close()
        if self._meter is not None:
            self._meter.close()
            self._meter = None

    on_train_start = on_validation_start = on_test_start = on_predict_start = _begin
    on_train_batch_end = on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _advance
    on_train_end = on_validation_end = on_test_end = on_predict_end = on_exception = _close


def _stage(trainer: L.Trainer) -> str:
    """The measurement in hand: validate or test, also within a fit."""
    return "" if trainer.state.stage is None else str(trainer.state.stage.value)


def _batches(trainer: L.Trainer) -> Any:
    """Number of batches of each loader of the measurement in hand."""
    if trainer.testing:
        return trainer.num_test_batches
    return trainer.num_predict_batches if trainer.predicting else trainer.num_val_batches


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _whole(batches: float) -> int:
    """A number of batches; an endless loader has 0."""
    return int(batches) if batches != float("inf") else 0
