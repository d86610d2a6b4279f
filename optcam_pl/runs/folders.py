"""Chooses a run's folder, independently of the logger."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import lightning as L

from optcam_pl.photos.decode import IMAGE_SUFFIXES
from optcam_pl.runs.files import RunFolderError
from optcam_pl.runs.manifest import MANIFEST

REPORT = "report"
"""Name of the folder in which commands that make several runs write their tables and figures, beside the runs."""

# Names that a run writes or that people keep beside a run: logs, configs, a page. Locks begin with a dot.
_NAMES = {"checkpoints", "curves", "maps", "overlays", REPORT, "rows", "weights", "metrics.csv", "sanity.png"}
_SUFFIXES = {".ckpt", ".err", ".json", ".log", ".out", ".txt", ".yaml", ".yml"}
_EVENTS = "events.out.tfevents"


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
                f"{path.name}/{file.name}" for file in sorted(path.iterdir()) if file.suffix.lower() in IMAGE_SUFFIXES
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


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders that a start has created, the deepest first, until one is not empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return
