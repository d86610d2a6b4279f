"""Chooses a run's folder, independently of the logger."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import suppress
from pathlib import Path

import lightning as L

from optcam_pl.photos.decode import IMAGE_SUFFIXES
from optcam_pl.runs.files import RunFolderError, RunLock
from optcam_pl.runs.manifest import MANIFEST

REPORT = "report"
"""Name of the folder in which commands that make several runs write their tables and figures, beside the runs."""

# Names that a run writes or that people keep beside a run: logs, configs, a page. Locks begin with a dot.
_NAMES = {"checkpoints", "curves", "maps", "overlays", REPORT, "rows", "weights", "metrics.csv", "sanity.png"}
_SUFFIXES = {".ckpt", ".err", ".json", ".log", ".out", ".txt", ".yaml", ".yml"}
_EVENTS = "events.out.tfevents"
_CONFIG = re.compile(r"config(_(fit|validate|test|predict))?\.yaml")  # see `SaveConfig`


def choose_run_dir(trainer: L.Trainer, given: Path | None) -> Path:
    """The folder of a run, chosen by the first process. All processes must call this together.

    Args:
        trainer: the trainer of the run.
        given: the folder that the user asked for; None: the logger's, or, without a logger, the trainer's.
    """
    own = given or trainer.log_dir or trainer.default_root_dir
    return Path(trainer.strategy.broadcast(str(own)))


def check_no_others(folder: Path) -> None:
    """Refuse a folder that contains other files and never belonged to a run.

    A run's folder has a manifest, checkpoints, or files of TensorBoard. A folder
    of runs is also accepted, for commands that make several runs.

    Raises:
        RunFolderError: the folder contains images, or files that no run writes; the message names the first ones.
    """
    if not folder.is_dir():
        return
    names = {path.name for path in folder.iterdir()}
    if MANIFEST in names or "checkpoints" in names or any(name.startswith(_EVENTS) for name in names):
        return
    foreign = list(_foreign(folder))
    if foreign:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise RunFolderError(
            f"Expected `run_dir` to be a new folder or a run's, but {folder} contains other files: {shown}. A run "
            f"would write its own among them: give a folder that does not exist, such as {folder / 'run'}."
        )


def _foreign(folder: Path) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        if path.name in _NAMES or path.name.startswith("."):
            continue
        if path.is_dir():
            yield from (
                f"{path.name}/{file.name}"
                for file in sorted(path.iterdir())
                if file.suffix.lower() in IMAGE_SUFFIXES and file.name not in _NAMES
            )
        elif path.suffix.lower() not in _SUFFIXES:
            yield path.name


def new_folder(parent: Path, prefix: str = "version_") -> Path:
    """The folder ``version_k`` whose number comes after those of all that exist below `parent`; nothing is made."""
    numbers = [path.name.removeprefix(prefix) for path in parent.glob(f"{prefix}*")]
    return parent / f"{prefix}{max((int(n) for n in numbers if n.isdecimal()), default=-1) + 1}"


def missing_folders(folder: Path) -> list[Path]:
    """The folders to create so that a folder exists, the deepest first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def remove_start(folder: Path, before: Set[Path], made: Sequence[Path]) -> None:
    """Remove what a start that failed has written, so that it leaves no run behind; then the folders that it made.

    Only files that every start writes are removed, by name. Nothing is removed if the start has written a row or any
    other file, or while another process works in the folder.

    Args:
        folder: the run's folder.
        before: `paths_of_start` before it.
        made: the folders that the start has made, the deepest first.
    """
    new = paths_of_start(folder) - before
    files = {path for path in new if not path.is_dir()}
    if all(_is_of_start(path.relative_to(folder)) or _is_without_rows(path) for path in files):
        with suppress(RunFolderError):  # another process
            if files:
                _remove(folder, files | {folder / ".lock"} - before)
        remove_empty(new - files)
    remove_empty(made)


def paths_of_start(folder: Path) -> set[Path]:
    """What lies in a run's folder, and in its folder of rows, where a start writes before any result."""
    return {path for place in (folder, folder / "rows") if place.is_dir() for path in place.iterdir()}


def _remove(folder: Path, files: Iterable[Path]) -> None:
    with RunLock(folder):
        for path in files:
            with suppress(OSError):  # a system that does not remove open files
                path.unlink()


def _is_of_start(path: Path) -> bool:
    if path.name.startswith(_EVENTS):
        return f".{os.getpid()}." in path.name  # not another process's
    names = {MANIFEST, "hparams.yaml", ".lock", ".manifest.lock"}
    return path.parent == Path() and (path.name in names or _CONFIG.fullmatch(path.name) is not None)


def _is_without_rows(path: Path) -> bool:
    return path.parent.name == "rows" and path.stat().st_size == 0


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders that a start has created, the deepest first, until one is not empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return
