"""What keeps a fit from being lost: its checkpoints, a stop that can be taken up again, and stopping early."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from optcam_pl.tasks.classification import ClassificationTask

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def fit_callbacks(task: ClassificationTask, given: Sequence[Callback] = ()) -> list[Callback]:
    """The callbacks of a fit: ``checkpoints/best.ckpt`` by validation accuracy, ``last.ckpt`` after every epoch and
    when it is stopped by a signal, and early stopping where the task has `patience`.

    A fit goes on from ``last.ckpt`` by ``Trainer.fit(ckpt_path=...)``. Of a kind that is `given`, there is no other.
    """
    best = ModelCheckpoint(
        monitor="val/accuracy", mode="max", filename="best", auto_insert_metric_name=False, enable_version_counter=False
    )
    last = ModelCheckpoint(filename="last", every_n_epochs=1, enable_version_counter=False)
    early = [] if task.patience is None else [PatienceOfSecondPhase(task.patience)]
    callbacks = [best, last, ResumableStop(), *early]
    present = [
        kind for kind in (ModelCheckpoint, EarlyStopping, ResumableStop) if any(isinstance(c, kind) for c in given)
    ]
    return [callback for callback in callbacks if not isinstance(callback, tuple(present))]


class PatienceOfSecondPhase(EarlyStopping):
    """Ends a fit when the validation accuracy has not risen for so many epochs of the second phase.

    Args:
        patience: that number of epochs.
    """

    def __init__(self, patience: int) -> None:
        super().__init__("val/accuracy", mode="max", patience=patience, check_on_train_epoch_end=False)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the accuracy, once the second phase has begun."""
        assert isinstance(pl_module, ClassificationTask)
        if trainer.current_epoch >= pl_module.head_epochs:
            super().on_validation_end(trainer, pl_module)


class ResumableStop(Callback):
    """Ctrl-C and SIGTERM end a fit after the batch that is under way, with a checkpoint to go on from.

    The checkpoint is ``last.ckpt`` beside the trainer's others. A second signal ends the fit at once, without.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    @staticmethod
    def file(trainer: L.Trainer) -> Path:
        """Where the checkpoint is written."""
        manager = trainer.checkpoint_callback
        folder = manager.dirpath if isinstance(manager, ModelCheckpoint) else None
        return Path(folder or trainer.log_dir or trainer.default_root_dir) / "last.ckpt"

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do not write over another fit.

        Raises:
            ValueError: the folder has a checkpoint, and the fit does not go on from one.
        """
        if trainer.ckpt_path is None and self.file(trainer).exists():
            raise ValueError(
                f"{self.file(trainer)} is of a fit that was run before. Go on from it with `--ckpt_path "
                f"{self.file(trainer)}`, or choose another `run_dir`."
            )
        trainer.strategy.barrier("checkpoints")  # before any rank writes one

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen to the signals."""
        self._asked = False
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in _SIGNALS}

    def _ask(self, *_: Any) -> None:
        self._asked = True
        self._unhook()

    def _unhook(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Write the checkpoint and stop, if any process was asked to: all have to do it together."""
        if trainer.strategy.reduce_boolean_decision(self._asked, all=False):
            file = self.file(trainer)
            trainer.save_checkpoint(file)
            if trainer.is_global_zero:
                print(f"\nstopped; go on with:  --ckpt_path {file}")
            raise KeyboardInterrupt

    def on_train_end(self, *_: Any) -> None:
        """Listen no more."""
        self._unhook()

    def on_exception(self, *_: Any) -> None:
        """Listen no more."""
        self._unhook()
