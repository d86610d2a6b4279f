"""Images with several labels: each positive label is explained as an image of its own, or one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from optcam_pl.checks import check_choice
from optcam_pl.data.batch import Entry, Item, Reader
from optcam_pl.data.text import class_number
from optcam_pl.data.torch_data import TorchData, TorchReader

Choice = Literal["each", "first"]


class MultiLabel(TorchData):
    """A Dataset of PyTorch whose images have several labels, for networks with the link "sigmoid".

    An item is (image, labels), (image, labels, boxes) or a dict of ``image``, ``target`` and perhaps ``boxes`` and
    ``id``. The labels are a multi-hot vector (C,) of zeros and ones (floating point or bool), or the positive classes'
    numbers: a list, or a vector of integers. Where there is one box for each of these numbers, each label keeps its own
    boxes, and a label that occurs several times is one row; otherwise each label has all boxes.

    Args:
        data: the Dataset, as for `TorchData`.
        choose: "each": one row for each positive label of an image, with the id "image#label"; an image without any has
            one row without a label. "first": one row for an image, with the first positive label, for a ``target`` that
            is chosen otherwise (predicted, second, least, or one class).
        labels: the labels of all items, so that they need not be read with the images; None reads the dataset once.
        **kwargs: of TorchData.

    Raises:
        ValueError: (in `setup`) labels that are neither.

    Example:
        >>> items = [(torch.rand(3, 8, 8), [0, 2]), (torch.rand(3, 8, 8), torch.tensor([0.0, 1.0, 0.0]))]
        >>> data = MultiLabel(items, class_names=["disc", "ring", "star"], size=8)
        >>> [(entry.id, entry.target) for entry in data.entries()]
        [('0#disc', 0), ('0#star', 2), ('1#ring', 1)]
    """

    def __init__(
        self,
        data: Dataset[Any] | Sequence[Any],
        *,
        choose: Choice = "each",
        labels: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(data, **kwargs)
        self.choose: Choice = check_choice("choose", choose, Choice)
        if labels is not None and len(labels) != len(self.dataset):
            raise ValueError(f"Expected `labels` of all {len(self.dataset)} items, but got {len(labels)}.")
        self._labels = labels

    def entries(self) -> list[Entry]:
        """The items' numbers, once for each label that is explained."""
        entries = []
        for i, entry in enumerate(super().entries()):
            positive = self._positive(i, entry.id) or [-1]
            for label in positive if self.choose == "each" else positive[:1]:
                own = f"{entry.id}#{self._name(label)}" if self.choose == "each" and label >= 0 else entry.id
                entries.append(Entry(own, entry.path, label))
        return entries

    def _positive(self, i: int, name: str) -> list[int]:
        parts = self._parts(i) if self._labels is None else {"target": self._labels[i]}
        try:
            found = positive_labels(parts.get("target"), None if self.class_names is None else len(self.class_names))
            _check_not_multi_hot(parts.get("target"), parts.get("boxes"))
            return list(dict.fromkeys(found))
        except (TypeError, ValueError) as fault:
            raise type(fault)(f"The labels of item {name!r} are wrong: {fault}") from fault

    def _name(self, label: int) -> str:
        return str(label) if self.class_names is None else self.class_names[label]

    def reader(self) -> Reader:
        """What asks the dataset for an item, and takes the boxes of one label."""
        return _LabelReader(self.dataset)

    def source(self) -> dict[str, Any]:
        """The dataset's class and which labels are chosen."""
        return {**super().source(), "choose": self.choose}


class _LabelReader(TorchReader):
    """Reads an item for the label of an entry."""

    def item(self, entry: Entry, parts: Mapping[str, Any]) -> Item:
        """The label is the entry's, and so are the boxes, where there is one for each label."""
        item = super().item(entry, {**parts, "target": entry.target})
        labels = parts.get("target")
        numbers = None if _is_multi_hot(labels) else _listed(labels)
        if not isinstance(numbers, (list, tuple)) or len(numbers) != len(item.boxes):
            return item
        own = [box for box, label in zip(item.boxes, numbers, strict=True) if class_number(label) == entry.target]
        return item._replace(boxes=own)


def positive_labels(labels: Any, classes: int | None = None) -> list[int]:
    """The numbers of an image's positive classes, from a multi-hot vector (C,) or a list of numbers; [] for none.

    Raises:
        ValueError: a vector has other values than 0 and 1 or another length, or a class does not exist.
        TypeError: it is something else.

    Example:
        >>> positive_labels([3, 1]), positive_labels(torch.tensor([0.0, 1.0])), positive_labels(None)
        ([3, 1], [1], [])
    """
    if _is_multi_hot(labels):
        labels = torch.as_tensor(labels)
        if not bool(((labels == 0) | (labels == 1)).all()) or (classes is not None and len(labels) != classes):
            wanted = f"({classes},)" if classes is not None else "(C,)"
            raise ValueError(f"Expected a vector {wanted} of zeros and ones, but got {labels.tolist()}.")
        return [int(i) for i in labels.nonzero().flatten()]
    labels = _listed(labels)
    if not isinstance(labels, (list, tuple)):
        labels = [labels]
    numbers = [class_number(label) for label in labels]
    for number, label in zip(numbers, labels, strict=True):
        if number is None or (classes is not None and number >= classes):
            known = "" if classes is None else f" in 0..{classes - 1}"
            raise ValueError(f"Expected the numbers of classes{known}, but got {label!r}.")
    return [number for number in numbers if number is not None and number >= 0]


def _is_multi_hot(labels: Any) -> bool:
    """Whether it is a vector of floating point or bool."""
    if isinstance(labels, np.ndarray):
        return labels.ndim == 1 and labels.dtype.kind in "fb"
    return (
        isinstance(labels, Tensor) and labels.ndim == 1 and (labels.is_floating_point() or labels.dtype == torch.bool)
    )


def _listed(labels: Any) -> Any:
    """A vector's numbers as a list; anything else as it is."""
    return labels.tolist() if isinstance(labels, (Tensor, np.ndarray)) and labels.ndim <= 1 else labels


def _check_not_multi_hot(labels: Any, boxes: Any) -> None:
    """Refuse a vector of integers that can hardly be class numbers, because only 0 and 1 occur, and repeatedly.

    Raises:
        ValueError: it is one, and its numbers are not those of as many boxes.
    """
    if not isinstance(labels, (Tensor, np.ndarray)) or _is_multi_hot(labels):
        return
    numbers = _listed(labels)
    repeated = isinstance(numbers, list) and len(numbers) > len(set(numbers))
    if repeated and set(numbers) <= {0, 1} and (boxes is None or len(boxes) != len(numbers)):
        raise ValueError(
            f"Expected the numbers of classes, each once, but got {numbers}. If it says of each class whether the "
            "image has it, give it as floating point or bool."
        )
