"""Images that are listed in a CSV file, with their labels, boxes and split."""

from __future__ import annotations

import csv
import io
import math
import os
import posixpath
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from optcam_pl.checks import expanded_path
from optcam_pl.data.base import ImageDataModule
from optcam_pl.data.batch import Box, Entry
from optcam_pl.data.boxes import BoxFormat, check_format, to_corners
from optcam_pl.data.files import check_inside, existing_folder
from optcam_pl.data.folders import Split
from optcam_pl.data.labels import LabelReader
from optcam_pl.data.names import class_list
from optcam_pl.data.text import check_encoding, class_names_of, is_missing, read_text
from optcam_pl.imagenet import imagenet_names, imagenet_wnids


class CSVImages(ImageDataModule):
    r"""Images listed in a CSV file with a header. An image with several boxes or labels has several rows.

    Args:
        file: the CSV file.
        root: the folder to which its paths are relative; None: the file's folder.
        path: column of the image's path.
        label: column of the label: a class's name, or its index from 0, written as a whole number (7, 7.0, 007). Empty,
            -1, nan, NaN, None, NA, null or the like mean no label. None: there are no labels.
        boxes: the four columns of a box, empty if an image has none; None: the dataset has no boxes.
        box_format: "xyxy" (left, top, right, bottom) or "xywh" (left, top, width, height), in pixels.
        classes: the classes, as in ImageFolder; None: the sorted names that occur, or the numbers if all labels are
            numbers. In that case a file must not mix words and numbers.
        each_label: whether an image may have several labels: then each of them is explained and measured by itself, as
            an image of its own with the id "path#label", with the boxes of the rows that have this label. False: a
            second label is an error.
        split: the part to explain and measure on, "train", "val" or "test"; None for all rows. With a split, a network
            can be trained on the rows of "train" and validated on those of "val".
        split_column: column of the split.
        delimiter: the character that separates columns; "\t" for a tab.
        encoding: the file's encoding, such as "latin-1" or "utf-16".
        allow_outside: whether paths may be absolute or lead out of `root`.
        **kwargs: of ImageDataModule.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: (in `setup`) a column is missing or a row is wrong; the message says which.
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
        each_label: bool = False,
        split: Split | None = None,
        split_column: str = "split",
        delimiter: str = ",",
        encoding: str = "utf-8",
        allow_outside: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.file = expanded_path(file)
        if not self.file.is_file():
            wrong = "is a folder" if self.file.is_dir() else "does not exist"
            raise FileNotFoundError(f"Expected `file` to be a file of images and labels, but {file!r} {wrong}.")
        if boxes is not None and len(boxes) != 4:
            raise ValueError(f"Expected `boxes` to name four columns, but got {boxes}.")
        delimiter = "\t" if delimiter == "\\t" else delimiter
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise ValueError(f"Expected `delimiter` to be one character such as ',' or ';', but got {delimiter!r}.")
        self.root = existing_folder(root) if root else self.file.parent
        self.name = self.file.stem
        self.columns = {"path": path, "label": label, "split": split_column if split else None}
        self.boxes = boxes
        self.box_format = check_format(box_format)
        self.each_label = each_label
        self.split = split
        self.delimiter = delimiter
        self.encoding = check_encoding(encoding)
        self.allow_outside = allow_outside
        self.annotations = ("boxes",) if boxes else ()
        self._given_classes = class_list(classes)
        self._rows: dict[int, dict[str, str]] | None = None
        self._names: tuple[str, ...] | None = None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes by index."""
        if self._given_classes is not None or self.columns["label"] is None:
            return imagenet_names() if self._given_classes == "imagenet" else self._tuple(self._given_classes)
        if self._names is None:
            labels = ((number, row["label"]) for number, row in self._read().items())
            self._names = class_names_of(labels, repr(str(self.file)))
        return self._names

    @staticmethod
    def _tuple(classes: Sequence[str] | None) -> tuple[str, ...] | None:
        return None if classes is None else tuple(classes)

    def looked_for(self) -> str:
        """The file and the split."""
        return f"rows{f' of the split {self.split!r}' if self.split else ''} in `file`, {str(self.file)!r}"

    def entries(self) -> list[Entry]:
        """The images in the order in which they first occur."""
        return self._of(self.split)

    def training_entries(self, split: Literal["train", "val"]) -> list[Entry]:
        """The images of a split. Raises ValueError if `split` is None, because the parts would be the same images."""
        self.check_trainable("split", self.split)
        return self._of(split)

    def _read(self) -> dict[int, dict[str, str]]:
        """The rows by the number of their last line, with the columns by their meaning."""
        if self._rows is None:
            text = read_text(self.file, self.encoding, ", or give its `encoding`, such as latin-1 or utf-16")
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=self.delimiter)
            try:
                columns = self._columns([name.strip() for name in next(reader, [])])
                rows = ((reader.line_num, row) for row in reader if row)
                self._rows = {number: self._row(row, columns, number) for number, row in rows}
            except csv.Error as fault:
                raise ValueError(f"Row {reader.line_num} of {str(self.file)!r} is wrong: {fault}.") from fault
        return self._rows

    def _columns(self, header: list[str]) -> dict[str, int]:
        """The position of each column in use, by its meaning; the number of columns as ""."""
        wanted = {kind: name for kind, name in self.columns.items() if name}
        wanted |= {f"box{i}": name for i, name in enumerate(self.boxes or [])}
        missing = sorted(set(wanted.values()) - set(header))
        if missing:
            others = [mark for mark in ",;\t|" if mark != self.delimiter and any(mark in name for name in header)]
            named = {"split": "split_column"} | {f"box{i}": "boxes" for i in range(4)}
            options = dict.fromkeys(f"`{named.get(kind, kind)}`" for kind, name in wanted.items() if name in missing)
            advice = f"Columns of other names are given by {', '.join(options)}."
            advice = f"Is its `delimiter` {others[0]!r}?" if others else advice if header else "The file is empty."
            raise ValueError(f"{str(self.file)!r} lacks the columns {missing}; it has {header}. {advice}")
        twice = sorted(name for name in set(wanted.values()) if header.count(name) > 1)
        if twice:
            raise ValueError(f"Expected each column of {str(self.file)!r} to have its own name, but got {twice} twice.")
        return {kind: header.index(name) for kind, name in wanted.items()} | {"": len(header)}

    def _row(self, row: list[str], columns: dict[str, int], number: int) -> dict[str, str]:
        count = columns[""]
        if any(cell.strip() for cell in row[count:]):
            raise ValueError(
                f"Row {number} of {str(self.file)!r} is wrong: it has {len(row)} columns, the header {count}. A text "
                f"with a {self.delimiter!r} in it needs quotation marks."
            )
        return {kind: row[at].strip() if at < len(row) else "" for kind, at in columns.items() if kind}

    def _of(self, split: Split | None) -> list[Entry]:
        names = self.class_names or ()
        read = LabelReader(names, imagenet_wnids() if names == imagenet_names() else ())
        inside = lru_cache(maxsize=None)(lambda folder: check_inside(folder, self.root, self.allow_outside))
        entries: dict[str, Entry] = {}
        for number, row in self._read().items():
            if split and row["split"] != split:
                continue
            try:
                entry = self._entry(row, read, inside)
            except ValueError as fault:
                raise ValueError(f"Row {number} of {str(self.file)!r} is wrong: {fault}") from fault
            if self.each_label and entry.target >= 0:
                entry = entry._replace(id=f"{entry.id}#{names[entry.target]}")
            old = entries.setdefault(entry.id, entry)
            if old.target != entry.target:
                raise ValueError(
                    f"Row {number} of {str(self.file)!r} gives {entry.id!r} another label than before. "
                    "For images with several labels, `each_label` explains each of them."
                )
            if old is not entry and entry.boxes:
                entries[entry.id] = old._replace(boxes=(*(old.boxes or ()), *entry.boxes))
        return list(entries.values())

    def _entry(self, row: dict[str, str], read: LabelReader, inside: Any) -> Entry:
        if not row["path"]:
            raise ValueError("it names no image.")
        file = self.root / row["path"]
        inside(file.parent)
        if file.is_symlink():
            inside(file)
        relative = os.path.relpath(file, self.root) if Path(row["path"]).is_absolute() else row["path"]
        target = read(row.get("label"))
        return Entry(posixpath.normpath(Path(relative).as_posix()), str(file), target, self._boxes(row))

    def _boxes(self, row: dict[str, str]) -> tuple[Box, ...] | None:
        if self.boxes is None:
            return None
        texts = [row[f"box{i}"] for i in range(4)]
        if all(map(is_missing, texts)):
            return ()
        try:
            sides = [float(text) for text in texts]
        except ValueError:
            sides = [math.nan]
        if not all(map(math.isfinite, sides)):
            raise ValueError(f"Expected four numbers of a box, or none at all, but got {texts}.")
        left, top, right, bottom = box = to_corners(sides, self.box_format)
        if right < left or bottom < top:
            other = "left, top, right, bottom" if self.box_format == "xyxy" else "left, top, width, height"
            raise ValueError(f"Expected a box as {other} (`box_format: {self.box_format}`), but got {texts}.")
        return (box,)
