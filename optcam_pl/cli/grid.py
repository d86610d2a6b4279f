"""A grid of settings: its axes, as a command line or a config gives them, and its points. It loads no network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

Axes = dict[str, list[str]]
"""Dotted name of a setting -> the values that it takes, as words of the command line."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._=,+-]+")


class Point(NamedTuple):
    """A point of a grid.

    Attributes:
        values: short name of each axis -> the value there.
        words: the words of `optcam test` that set them.
    """

    values: dict[str, str]
    words: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The name of its folder, "" for the only point of a grid without axes."""
        return _UNSAFE.sub("_", ",".join(f"{name}={value}" for name, value in self.values.items()))


def read_axes(texts: Iterable[str], config: Mapping[str, Any] | None = None) -> Axes:
    """The axes of a grid, those of a config first; a text of the same setting takes the place of the config's.

    Args:
        texts: "KEY=VALUE,VALUE..." each; commas in brackets, braces or quotes do not separate.
        config: KEY -> list of values.

    Raises:
        ValueError: a text has no key or no value, or an axis has a value twice.
        TypeError: the config's grid is not made of lists.

    Example:
        >>> read_axes(["model.explainer.lr=0.1,1", "data.size=[8,8],16"])
        {'model.explainer.lr': ['0.1', '1'], 'data.size': ['[8,8]', '16']}
    """
    axes: Axes = {}
    for key, values in _mapping(config).items():
        if not isinstance(values, list):
            raise TypeError(f"Expected the `grid` of a config to have a list of values for {key}, but got {values!r}.")
        axes[key] = [value if isinstance(value, str) else json.dumps(value) for value in values]
    for text in texts:
        key, equals, values = text.partition("=")
        if not key or not equals:
            raise ValueError(f"Expected `--grid` to be KEY=VALUE,VALUE..., but got {text!r}.")
        axes[key.removeprefix("--")] = _split(values)
    for key, values in axes.items():
        if not values or not all(values):
            raise ValueError(f"Expected the grid to have values for {key}, but got {','.join(values)!r}.")
        if len(set(values)) < len(values):
            raise ValueError(f"Expected the grid to have each value of {key} once, but got {', '.join(values)}.")
    return axes


def _mapping(config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if config is not None and not isinstance(config, Mapping):
        raise TypeError(f"Expected the `grid` of a config to have a list of values for each setting, but got {config}.")
    return config or {}


def _split(text: str) -> list[str]:
    """The parts between the commas that are in no bracket and no quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "[{(") - (character in "]})")
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each dotted name -> its last parts, as many as tell it from the others.

    Example:
        >>> short_names(["model.explainer.init_args.lr", "model.layer", "data.layer"])
        {'model.explainer.init_args.lr': 'lr', 'model.layer': 'model.layer', 'data.layer': 'data.layer'}
    """
    found = {}
    for key in keys:
        parts = key.split(".")
        for count in range(1, len(parts) + 1):
            name = ".".join(parts[-count:])
            if sum(f".{other}".endswith(f".{name}") for other in keys) == 1:
                break
        found[key] = name
    return found


def points(axes: Axes) -> list[Point]:
    """Every point of a grid, the last axis changing first; one point without words if there is no axis.

    Raises:
        ValueError: two points would have one folder.
    """
    names = short_names(list(axes))
    found = [
        Point(
            {names[key]: value for key, value in zip(axes, values, strict=True)},
            tuple(f"--{key}={value}" for key, value in zip(axes, values, strict=True)),
        )
        for values in product(*axes.values())
    ]
    folders = [point.folder.casefold() for point in found]  # folders of some systems do not tell cases apart
    if twice := next((name for number, name in enumerate(folders) if name in folders[:number]), None):
        raise ValueError(f"Expected the grid's points to have folders of their own, but two would be {twice!r}.")
    return found
