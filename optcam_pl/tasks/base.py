"""What the two tasks share: a run's data module and its folder."""

from __future__ import annotations

import os
from pathlib import Path

import lightning as L

from optcam_pl.checks import expanded_path
from optcam_pl.data import ImageDataModule
from optcam_pl.runs.folders import choose_run_dir


class RunTask(L.LightningModule):
    """A LightningModule whose run has a folder and whose data comes from an `ImageDataModule`.

    Attributes:
        run_dir: the run's folder. Set it to choose one. Otherwise it is the logger's folder or, without a logger, the
            trainer's ``default_root_dir``.
        cut_short: a sentence that says so if a limit of the trainer ended the run early; otherwise "".
    """

    def __init__(self) -> None:
        super().__init__()
        self.cut_short = ""
        self._given_dir: Path | None = None

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

    def find_folder(self, trainer: L.Trainer) -> Path:
        """Find the run's folder before `setup`; all processes have to call this together."""
        return choose_run_dir(trainer, self._given_dir)
