"""Finds out which class a label of a table means, and checks that the network has it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from torch import Tensor

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


def check_labels(label: Tensor, classes: int, ids: Sequence[str], what: str = "", advice: str = "") -> None:
    """Check that the network has the class of each image.

    Args:
        label: (B,) int64; a negative number means no label.
        classes: the number of the network's classes.
        ids: the images' ids, for the message.
        what: the argument that gave the classes; "": the dataset's labels.
        advice: what to do about an image without a label, for the message.

    Raises:
        ValueError: an image has no label, or one that the network does not have.

    Example:
        >>> import torch
        >>> check_labels(torch.tensor([0, 7]), 2, ["a.png", "b.png"])
        Traceback (most recent call last):
        ValueError: Expected a label in 0..1 for image 'b.png', but it has 7.
    """
    wrong = ((label < 0) | (label >= classes)).nonzero().flatten().tolist()
    if not wrong:
        return
    first, value = ids[wrong[0]], int(label[wrong[0]])
    if what:
        raise ValueError(f"Expected a class in 0..{classes - 1} for image {first!r}, but `{what}` has {value}.")
    found = f"none{': ' * bool(advice)}{advice}" if value < 0 else str(value)
    raise ValueError(f"Expected a label in 0..{classes - 1} for image {first!r}, but it has {found}.")
