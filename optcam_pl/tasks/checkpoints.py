"""The checkpoints of a fit, the stop that can be continued, and early stopping."""

from __future__ import annotations

import io
import os
import pickle
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from optcam_pl.checks import expanded_path
from optcam_pl.runs.files import RunFolderError, write_file
from optcam_pl.runs.run_folder import Resume
from optcam_pl.runs.signals import Stopped, requested
from optcam_pl.tasks.classification import ClassificationTask

_FOLDER, _LAST = "checkpoints", "last.ckpt"


def fit_callbacks(task: ClassificationTask, given: Sequence[Callback] = ()) -> list[Callback]:
    """The callbacks that a fit needs: checkpoints, and early stopping if the task has `patience`.

    ``checkpoints/best.ckpt`` is that of the highest validation accuracy; ``checkpoints/last.ckpt`` is written after
    every epoch, and when the fit is told to stop. A fit goes on from it by ``Trainer.fit(ckpt_path=...)``.

    Args:
        task: the task to fit.
        given: callbacks that the trainer has already. No other callback of their kinds is made.
    """
    best = _Checkpoints(
        monitor="val/accuracy", mode="max", filename="best", auto_insert_metric_name=False, enable_version_counter=False
    )
    last = _Checkpoints(filename=Path(_LAST).stem, every_n_epochs=1, enable_version_counter=False)
    early = [] if task.patience is None else [PatienceOfSecondPhase(task.patience)]
    kinds = (ModelCheckpoint, EarlyStopping, ResumableStop)
    present = tuple(kind for kind in kinds if any(isinstance(callback, kind) for callback in given))
    return [callback for callback in (best, last, ResumableStop(), *early) if not isinstance(callback, present)]


def last_checkpoint(run_dir: str | Path, resume: Resume = "auto") -> Path | None:
    """The checkpoint from which a fit in this folder continues; None if there is none.

    Args:
        run_dir: folder of the run.
        resume: "auto" takes a checkpoint if there is one, "never" refuses one, "require" needs one.

    Raises:
        FileExistsError: there is one, and `resume` is "never".
        FileNotFoundError: there is none, and `resume` is "require".
        RunFolderError: it is damaged, or a file of another kind.
    """
    file = expanded_path(run_dir) / _FOLDER / _LAST
    if file.exists() and resume == "never":
        raise FileExistsError(f"Expected no fit in {str(run_dir)!r} with `resume` never, but there is {file}.")
    if not file.exists() and resume == "require":
        raise FileNotFoundError(f"Expected a fit to continue in {str(run_dir)!r}, but there is no {file}.")
    if not file.exists():
        return None
    _check_whole(file)
    return file


def _check_whole(file: Path) -> None:
    """Compare a checkpoint with the checksums in it, as torch reads one with other bits as it is, and look at its keys.

    Raises:
        RunFolderError: it is damaged, or no checkpoint of a fit.
    """
    fault = _damage(file)
    if fault is None and _is_checkpoint(file):
        return
    what = "it is no checkpoint of a fit" if fault is None else f"it is damaged ({fault})"
    raise RunFolderError(
        f"Cannot continue from {file}: {what}. `--ckpt_path` (in Python, `ckpt_path` of `Trainer.fit`) continues from "
        "another checkpoint; without any file of this name the fit begins anew."
    )


def _damage(file: Path) -> str | None:
    """Why the file's bytes are not those that were written; None if they are."""
    try:
        with ZipFile(file) as archive:
            return archive.testzip()
    except (OSError, BadZipFile, EOFError, ValueError, RuntimeError, zlib.error) as error:
        return str(error)


def _is_checkpoint(file: Path) -> bool:
    """Whether torch reads the file and finds in it what Lightning continues from."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        return True  # the states of other callbacks may be of any class
    except (OSError, RuntimeError, KeyError):  # a zip file of another kind
        return False
    return isinstance(content, dict) and {"state_dict", "optimizer_states", "loops"} <= content.keys()


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its old version and renames it, so that a crash or a full disk leaves the old one.

    Lightning writes it into the system's folder for temporary files; where that is another file system, as on many
    clusters, the old checkpoint is overwritten by copying.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write it. Raises RunFolderError if it cannot be written; the old one is then unchanged."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, os.fspath(path), storage_options)
            return
        data = io.BytesIO()
        torch.save(checkpoint, data)
        write_file(path, data.getvalue())


def _write_whole(trainer: L.Trainer) -> None:
    """Have the trainer write whole checkpoints, unless it has its own way to write them."""
    strategy = trainer.strategy
    if isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)) and type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = WholeCheckpoints()


class _Checkpoints(ModelCheckpoint):
    """Checkpoints in the run's folder, for any logger, that still work after the folder was moved.

    Lightning would take the logger's folder, and would forget in a moved one how good the best checkpoint is.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose the folder."""
        _write_whole(trainer)
        if self.dirpath is None and isinstance(pl_module, ClassificationTask):
            self.dirpath = str(pl_module.find_folder(trainer) / _FOLDER)
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        folder, best = str(self.dirpath), state_dict["best_model_path"]  # `setup` has chosen the folder

        def here(path: str) -> str:
            # As Lightning spells it: a file's other spelling it takes for an older file, which it deletes.
            return path and os.path.join(folder, os.path.basename(path))  # noqa: PTH118, PTH119

        if state_dict["dirpath"] != folder and best and Path(here(best)).exists():
            paths = ("best_model_path", "kth_best_model_path", "last_model_path")
            moved = {key: here(state_dict[key]) for key in paths}
            scores = {here(path): score for path, score in state_dict["best_k_models"].items()}
            state_dict = {**state_dict, **moved, "best_k_models": scores, "dirpath": folder}
        super().load_state_dict(state_dict)


class PatienceOfSecondPhase(EarlyStopping):
    """Ends a fit when the validation accuracy has not risen for `patience` epochs of the second phase.

    Args:
        patience: number of epochs.
    """

    def __init__(self, patience: int) -> None:
        super().__init__("val/accuracy", mode="max", patience=patience, check_on_train_epoch_end=False)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the accuracy in the second phase only."""
        assert isinstance(pl_module, ClassificationTask)
        if trainer.current_epoch >= pl_module.head_epochs:
            super().on_validation_end(trainer, pl_module)


class ResumableStop(Callback):
    """Stops a fit after the batch in hand, with a checkpoint, when a signal came (see `optcam_pl.runs.signals`)."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """See that a checkpoint replaces the old one as a whole."""
        _write_whole(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Write ``last.ckpt`` and end, if any process was told to: all have to do it together.

        Raises:
            Stopped: after that.
        """
        assert isinstance(pl_module, ClassificationTask)  # see `fit_callbacks`
        signum = torch.tensor(requested() or 0, device=trainer.strategy.root_device)
        if trainer.world_size > 1:
            signum = trainer.strategy.reduce(signum, reduce_op="max")
        if signum:
            manager = trainer.checkpoint_callback
            folder = manager.dirpath if isinstance(manager, ModelCheckpoint) else None
            trainer.save_checkpoint(Path(folder) / _LAST if folder else pl_module.run_dir / _LAST)
            raise Stopped(int(signum))
