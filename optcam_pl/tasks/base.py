"""What the two tasks share: a run's data module and its folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from optcam_pl.checks import expanded_path
from optcam_pl.data import ImageDataModule
from optcam_pl.runs.folders import choose_run_dir, new_folder


class RunTask(L.LightningModule):
    """A LightningModule whose run has a folder and whose data comes from an `ImageDataModule`.

    Attributes:
        run_dir: the run's folder. Set it to choose one. Otherwise it is the logger's folder or, without a logger, the
            trainer's ``default_root_dir``; where that is the current folder, as it is if nobody has chosen it, a new
            folder ``logs/<data>/<title>/version_k``, as for the command.
        cut_short: a sentence that says so if a limit of the trainer ended the run early; otherwise "".
    """

    def __init__(self) -> None:
        super().__init__()
        self.cut_short = ""
        self._given_dir: Path | None = None
        self._fresh_dir: Path | None = None

    @property
    def data(self) -> ImageDataModule:
        """The data module of the run.

        Raises:
            TypeError: the trainer was given something else.
        """
        return ImageDataModule.of(self.trainer)

    @property
    def run_dir(self) -> Path:
        """The folder of this run; known from `setup` on, or as soon as it is set."""
        return self._run_dir

    @run_dir.setter
    def run_dir(self, folder: str | os.PathLike[str] | None) -> None:
        self._given_dir = None if folder is None else expanded_path(folder)
        if self._given_dir is not None:
            self._run_dir = self._given_dir

    @property
    def title(self) -> str:
        """What the run is called in folders."""
        return type(self).__name__

    def find_folder(self, trainer: L.Trainer) -> Path:
        """Find the run's folder before `setup`; all processes have to call this together."""
        given = self._given_dir
        if given is None and not trainer.loggers and Path(trainer.default_root_dir) == Path.cwd():
            if self._fresh_dir is None:
                self._fresh_dir = new_folder(Path("logs", ImageDataModule.of(trainer).name, self.title))
                self._fresh_dir = Path(trainer.strategy.broadcast(str(self._fresh_dir)))
                rank_zero_info(f"No logger and no `run_dir`: this run is in {self._fresh_dir}.")
            given = self._fresh_dir
        return choose_run_dir(trainer, given)

    def teardown(self, stage: str) -> None:
        """The next run gets a folder of its own."""
        self._fresh_dir = None


def limit_name(stage: str) -> str:
    """The trainer's setting that limits the batches of a stage.

    >>> limit_name("fit"), limit_name(TrainerFn.VALIDATING), limit_name("test")
    ('limit_train_batches', 'limit_val_batches', 'limit_test_batches')
    """
    name = TrainerFn(stage).value  # Lightning gives its own enumeration, whose members are no words in a text
    return f"limit_{ {'fit': 'train', 'validate': 'val'}.get(name, name) }_batches"


@contextmanager
def without_scaler(plugin: Precision) -> Iterator[None]:
    """For steps whose gradients do not come from a loss that float16's scaler has seen; it would refuse them.

    Args:
        plugin: the trainer's; only float16's mixed precision has a scaler.
    """
    scaler = plugin.scaler if isinstance(plugin, MixedPrecision) else None
    if scaler is None:
        yield
        return
    assert isinstance(plugin, MixedPrecision)
    plugin.scaler = None
    try:
        yield
    finally:
        plugin.scaler = scaler
