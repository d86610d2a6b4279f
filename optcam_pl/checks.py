"""Checks and conversions of arguments that every room needs: each stands here once."""

from __future__ import annotations

import os
from pathlib import Path


class ToldError(RuntimeError):
    """An error that the user can fix; the command tells it in one sentence, without a traceback."""


def expanded_path(path: str | os.PathLike[str]) -> Path:
    """A path as the user means it: a leading ``~`` and variables (``$HOME``, ``${DATA}``) expanded.

    A variable that is not set stays as it is written, since a file's name may contain a dollar sign.

    Example:
        >>> os.environ["OPTCAM_EXAMPLE"] = "/data"
        >>> expanded_path("$OPTCAM_EXAMPLE/val").as_posix()
        '/data/val'
    """
    text = os.fspath(path)
    expanded = os.path.expandvars(text)
    if text.startswith("~"):
        expanded = os.path.expanduser(expanded)  # noqa: PTH111 (an unknown user's name stays as it is)
    return Path(expanded)
