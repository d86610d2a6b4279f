"""Checks and conversions of arguments that the whole package uses."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, get_args

Number = TypeVar("Number", int, float)


class ToldError(RuntimeError):
    """An error that the user can fix; the command prints it as one sentence, without a traceback."""


def expanded_path(path: str | os.PathLike[str]) -> Path:
    """Expand a leading ``~`` and variables (``$HOME``, ``${DATA}``) in a path.

    A variable that is not set is left as written, because a file name may contain a dollar sign.

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


def nearest(name: str, known: Iterable[str], count: int = 5) -> str:
    """The known names most like `name`, as words for an error message. Case does not matter.

    Example:
        >>> nearest("layer4.7", ["layer3.0", "layer4.0", "layer4.1", "fc"], count=2)
        "'layer4.1', 'layer4.0'"
        >>> nearest("gradcam", ["Grad", "GradCAM"])
        "'GradCAM', 'Grad'"
    """
    names: dict[str, list[str]] = {}
    for one in filter(None, known):
        names.setdefault(one.casefold(), []).append(one)
    close = difflib.get_close_matches(name.casefold(), names, count, 0.3) or list(names)[:count]
    return ", ".join(repr(one) for key in close for one in names[key])


def check_choice(name: str, value: Any, choices: Any) -> Any:
    """Return the value if it is one of the choices.

    Args:
        name: the argument's name.
        value: the given value.
        choices: a `Literal` type, or the values themselves.

    Raises:
        ValueError: it is none of them.

    Example:
        >>> check_choice("area", "sum", ("mean", "trapezoid"))
        Traceback (most recent call last):
        ValueError: Expected `area` to be one of mean, trapezoid, but got 'sum'.
    """
    known = get_args(choices) or tuple(choices)
    if value not in known:
        raise ValueError(f"Expected `{name}` to be one of {', '.join(map(str, known))}, but got {value!r}.")
    return value


def check_count(name: str, value: Any, least: int = 0) -> int:
    """Return the value if it is an integer that is at least `least`, which is 0 or 1.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is smaller.

    Example:
        >>> check_count("num_workers", -1)
        Traceback (most recent call last):
        ValueError: Expected `num_workers` to be zero or a positive integer, but got -1.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"Expected `{name}` to be an integer, but got {value!r}.")
    if value < least:
        kind = "zero or a positive integer" if least == 0 else "a positive integer"
        raise ValueError(f"Expected `{name}` to be {kind}, but got {value}.")
    return value


def check_positive(name: str, value: Any) -> int:
    """Return the value if it is a positive integer.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is smaller than 1.
    """
    return check_count(name, value, least=1)


def check_number(name: str, value: Number, *, positive: bool = False) -> Number:
    """Return the value if it is finite and not negative or, with `positive`, greater than 0.

    Raises:
        TypeError: it is no number.
        ValueError: it is not finite, or too small.

    Example:
        >>> check_number("lr", 0.0, positive=True)
        Traceback (most recent call last):
        ValueError: Expected `lr` to be a positive number, but got 0.0.
    """
    try:
        finite = math.isfinite(value)
    except (TypeError, ValueError):
        raise TypeError(f"Expected `{name}` to be a number, but got {value!r}.") from None
    if not finite or value < 0 or (positive and value == 0):
        kind = "a positive number" if positive else "zero or a positive number"
        raise ValueError(f"Expected `{name}` to be {kind}, but got {value!r}.")
    return value
