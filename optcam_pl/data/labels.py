"""Finds out which class a label of a table means."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from optcam_pl.data.names import ClassIndex
from optcam_pl.data.text import class_number


class LabelReader:
    """Finds the class of a label: by its name, or else by its number.

    If the class names are numbers themselves, a label is a name, never the position of another name.

    Args:
        names: the classes' names; empty if only numbers are labels.
        aliases: the classes' other names (wnids), in the same order.

    Example:
        >>> read = LabelReader(["dog", "cat"])
        >>> read("Cat"), read("1.0"), read(0), read(""), read("nan"), read(None)
        (1, 1, 0, -1, -1, -1)
        >>> LabelReader(["3", "1"])("1.0")
        1
    """

    def __init__(self, names: Sequence[str], aliases: Sequence[str] = ()) -> None:
        self.index = ClassIndex(names, aliases)
        self.by_number: dict[int, int | None] = {}
        for position, name in enumerate(names):
            with contextlib.suppress(ValueError):
                number = class_number(name)
                if number is not None and number >= 0:
                    self.by_number[number] = None if number in self.by_number else position

    def __call__(self, label: object) -> int:
        """The class's index, -1 for none. Raises ValueError if there is no such class."""
        if isinstance(label, str) and label.strip() in self.index.exact:
            return self.index.exact[label.strip()]
        number = class_number(label)
        if number is None:
            return self.index(str(label).strip())
        if number < 0:
            return -1
        count = self.index.count
        found = self.by_number.get(number) if self.by_number else number
        if found is None or (count and found >= count):
            known = "one of the names" if self.by_number else f"in 0..{count - 1}"
            raise ValueError(f"Expected a label of {count} classes, {known} (-1 or empty: none), but got {label!r}.")
        return found
