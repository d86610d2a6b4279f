"""Images that a CSV file lists, with their labels, boxes and split."""

from __future__ import annotations

import csv
import os
import posixpath
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from optcam_pl.data.base import ImageDataModule
from optcam_pl.data.boxes import BoxFormat, check_format, to_corners
from optcam_pl.data.folders import ClassIndex, Split, class_list
from optcam_pl.data.index import check_inside, existing_folder
from optcam_pl.data.table import Box, Entry
from optcam_pl.imagenet import imagenet_names, imagenet_wnids


class CSVImages(ImageDataModule):
    """Images listed in a CSV file with a header. An image with several boxes has several rows.

    Args:
        file: the CSV file.
        root: the folder that its paths begin at; None: the file's own.
        path: column of the image's path.
        label: column of the label: a class's name, or its index from 0; empty for none. None: there are no labels.
        boxes: the four columns of a box, empty where an image has none; None: the dataset has no boxes.
        box_format: "xyxy" (left, top, right, bottom) or "xywh" (left, top, width, height), in pixels.
        classes: the classes, as in ImageFolder; None: the sorted names that occur, or where all labels are numbers,
            these.
        split: the part to explain and measure on, "train", "val" or "test"; None for every row. With a split, a network
            can be trained on the rows of "train" and validated on those of "val".
        split_column: column of the split.
        delimiter: what separates columns.
        allow_outside: whether paths may be absolute or lead out of `root`.
        **kwargs: of ImageDataModule.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: (in `setup`) a column is missing, or a row is wrong; the message says which.
    """

    def __init__(
        self,
        file: str,
        root: str | None = None,
        *,
        path: str = "path",
        label: str | None = "label",
        boxes: list[str] | None = None,
        box_format: BoxFormat = "xyxy",
        classes: list[str] | str | None = None,
        split: Split | None = None,
        split_column: str = "split",
        delimiter: str = ",",
        allow_outside: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.file = Path(file).expanduser()
        if not self.file.is_file():
            raise FileNotFoundError(f"There is no file {file!r}.")
        if boxes is not None and len(boxes) != 4:
            raise ValueError(f"Expected `boxes` to name four columns, but got {boxes}.")
        self.root = existing_folder(root) if root else self.file.parent
        self.name = self.file.stem
        self.columns = {"path": path, "label": label, "split": split_column if split else None}
        self.boxes = boxes
        self.box_format = check_format(box_format)
        self.split = split
        self.delimiter = delimiter
        self.allow_outside = allow_outside
        self.annotations = ("boxes",) if boxes else ()
        self._given_classes = class_list(classes)
        self._rows: list[dict[str, str]] | None = None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes by index."""
        if self._given_classes is not None or self.columns["label"] is None:
            return imagenet_names() if self._given_classes == "imagenet" else self._tuple(self._given_classes)
        labels = {row["label"] for row in self._read() if row["label"]}
        if labels and all(label.isdecimal() for label in labels):
            return tuple(str(number) for number in range(max(map(int, labels)) + 1))
        return tuple(sorted(labels)) or None

    @staticmethod
    def _tuple(classes: Sequence[str] | None) -> tuple[str, ...] | None:
        return None if classes is None else tuple(classes)

    def looked_for(self) -> str:
        """The file and the split."""
        return f"rows{f' of the split {self.split!r}' if self.split else ''} in {str(self.file)!r}"

    def entries(self) -> list[Entry]:
        """The images in the order in which they first occur."""
        return self._of(self.split)

    def training_entries(self, split: Literal["train", "val"]) -> list[Entry]:
        """The images of a split. Raises ValueError where `split` is None, as the two would be the same images."""
        if self.split is None:
            raise ValueError("Expected `split` to be given to train a network, whose test images must be others.")
        return self._of(split)

    def _read(self) -> list[dict[str, str]]:
        """The rows, with the columns by what they mean."""
        if self._rows is None:
            with self.file.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file, delimiter=self.delimiter, restval="")
                wanted = {kind: name for kind, name in self.columns.items() if name}
                wanted |= {f"box{i}": name for i, name in enumerate(self.boxes or [])}
                missing = sorted(set(wanted.values()) - set(reader.fieldnames or []))
                if missing:
                    raise ValueError(f"{str(self.file)!r} lacks the columns {missing}; it has {reader.fieldnames}.")
                self._rows = [{kind: row[name].strip() for kind, name in wanted.items()} for row in reader]
        return self._rows

    def _of(self, split: Split | None) -> list[Entry]:
        names = self.class_names or ()
        index = ClassIndex(names, imagenet_wnids() if names == imagenet_names() else ())
        inside = lru_cache(maxsize=None)(lambda folder: check_inside(folder, self.root, self.allow_outside))
        entries: dict[str, Entry] = {}
        for number, row in enumerate(self._read(), start=2):
            if split and row["split"] != split:
                continue
            try:
                entry = self._entry(row, index, inside)
            except ValueError as fault:
                raise ValueError(f"Row {number} of {str(self.file)!r} is wrong: {fault}") from fault
            old = entries.setdefault(entry.id, entry)
            if old.target != entry.target:
                raise ValueError(f"Row {number} of {str(self.file)!r} gives {entry.id!r} another label than before.")
            if old is not entry and entry.boxes:
                entries[entry.id] = old._replace(boxes=(*(old.boxes or ()), *entry.boxes))
        return list(entries.values())

    def _entry(self, row: dict[str, str], index: ClassIndex, inside: Any) -> Entry:
        file = self.root / row["path"]
        inside(file.parent)
        if file.is_symlink():
            inside(file)
        relative = os.path.relpath(file, self.root) if Path(row["path"]).is_absolute() else row["path"]
        label = row.get("label", "")
        if not label:
            target = -1
        elif label.isdecimal() and label not in index.exact:
            target = int(label)
        else:
            target = index(label)
        return Entry(posixpath.normpath(Path(relative).as_posix()), str(file), target, self._boxes(row))

    def _boxes(self, row: dict[str, str]) -> tuple[Box, ...] | None:
        if self.boxes is None:
            return None
        texts = [row[f"box{i}"] for i in range(4)]
        if not any(texts):
            return ()
        return (to_corners([float(text) for text in texts], self.box_format),)
