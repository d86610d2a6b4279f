"""The last words of a command: where everything is, and commands to look at it that can be typed as they stand."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

_MODULES = {"tensorboard": "tensorboard.main", "optcam": "optcam_pl"}


def typed(program: str) -> str:
    """How a program of this Python environment is called from the current folder.

    Its name, if that finds it; otherwise its path, as after an installation into `.venv` that is not activated; or the
    module, if there is no such program.
    """
    beside = Path(sys.executable).parent / program
    on_path = shutil.which(program)
    if on_path and (not beside.exists() or Path(on_path).samefile(beside)):
        return program
    if beside.exists():
        here = Path.cwd()
        return shlex.quote(str(beside.relative_to(here) if beside.is_relative_to(here) else beside))
    python = "python" if shutil.which("python") else shlex.quote(sys.executable)
    return f"{python} -m {_MODULES[program]}"


def command(program: str, *words: str | Path) -> str:
    """A command line of a program of this environment."""
    return " ".join([typed(program), *(shlex.quote(str(word)) for word in words)])


def lines(places: Iterable[tuple[str, object]]) -> str:
    """Names and what they stand for, one a line; those without anything are left out.

    >>> print(lines([("run folder", "logs/a"), ("overlays", ""), ("rows", "logs/a/rows")]))
    run folder:  logs/a
    rows:        logs/a/rows
    """
    return "\n".join(f"{name + ':':<13}{what}" for name, what in places if what)


def folder_of(run_dir: Path, name: str) -> Path | None:
    """A folder of a run, if there is one."""
    return run_dir / name if (run_dir / name).is_dir() else None


def has_events(run_dir: Path) -> bool:
    """Whether TensorBoard has something to show of a run."""
    return any(run_dir.glob("events.out.tfevents*"))
