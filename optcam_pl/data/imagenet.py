"""ImageNet (ILSVRC 2012) in its usual layouts, with its boxes."""

from __future__ import annotations

import csv
import io
import tarfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from scipy.io import loadmat

from optcam_pl.checks import expanded_path
from optcam_pl.data.batch import Box, Entry
from optcam_pl.data.boxes import Annotated, read_annotations
from optcam_pl.data.files import list_files, stem, subfolders
from optcam_pl.data.folders import ImageFolder, in_folders
from optcam_pl.data.labels import LabelReader
from optcam_pl.data.names import ClassIndex
from optcam_pl.data.text import decode_text
from optcam_pl.imagenet import imagenet_names, imagenet_wnids

Label = tuple[int, "tuple[Box, ...] | None"]
"""Class and boxes of one image; None if the source of the labels has no boxes."""

_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_LABELS = ("ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12.tar.gz", "LOC_val_solution.csv", "val.txt", "val.csv")


class ImageNet(ImageFolder):
    """ImageNet's 1000 classes: in folders named by wnid, or flat like the download of the validation images.

    The images lie in ``root/<split>`` if that folder exists (torchvision's layout), otherwise in `root`.

    Args:
        root: the folder.
        labels: the source of the labels of flat images; None: one of the following in `root` by its usual name, or else
            the names of the objects in `boxes`.

            - the development kit (folder or .tar.gz), or its ground-truth file with ``meta.mat`` beside it
            - a text or CSV file with a file's name and its class in each row: a wnid, a name or an index from 0.
              -1, nan or nothing says that an image has none.
              Kaggle's ``LOC_val_solution.csv``, where the wnid is followed by a box, gives the boxes too.
        boxes: folder or tar(.gz) of the official XML annotations; images without an annotation have no box.
        split: "val" or "train".
        **kwargs: of ImageFolder.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: (in `setup`) an image has no label, or a file is not what it should be.
    """

    def __init__(
        self,
        root: str,
        labels: str | None = None,
        boxes: str | None = None,
        *,
        split: Literal["train", "val"] = "val",
        **kwargs: Any,
    ) -> None:
        super().__init__(root, "imagenet", split=split, **kwargs)
        self.name = "imagenet"
        self.box_source = expanded_path(boxes) if boxes else None
        found = [labels] if labels else [str(self.root / name) for name in _LABELS if (self.root / name).exists()]
        self.label_source = expanded_path(found[0]) if found else None
        for option, path in (("labels", self.label_source), ("boxes", self.box_source)):
            if path and not path.exists():
                raise FileNotFoundError(
                    f"Expected `{option}` to be a file or a folder, but there is none called {str(path)!r}."
                )
        if self.box_source or (self.label_source and self.label_source.name == "LOC_val_solution.csv"):
            self.annotations = ("boxes",)

    def looked_for(self) -> str:
        """Folders by wnid, or flat images."""
        folder = str(self._folder(self.split))
        return f"images in {folder!r} (`root`), in folders named by wnid or as ILSVRC2012_val_*.JPEG"

    def training_entries(self, split: Literal["train", "val"]) -> list[Entry]:
        """The images of ``root/train`` or ``root/val``."""
        if not (self.root / split).is_dir():
            raise FileNotFoundError(
                f"Expected `root` to hold the folders train and val to train with, but {str(self.root)!r} has no "
                f"{split!r}."
            )
        return self._of(split)

    def _of(self, split: Literal["train", "val", "test"] | None) -> list[Entry]:
        folder = self._folder(split)
        annotated = read_annotations(self.box_source, outside=self.allow_outside) if self.box_source else {}
        if set(subfolders(folder)) & {*imagenet_wnids(), *imagenet_names()}:
            target = ClassIndex(imagenet_names(), imagenet_wnids())
            files = in_folders(folder, list_files(folder, outside=self.allow_outside))
            entries = [Entry(file, f"{folder}/{file}", target(file.split("/", 1)[0])) for file in files]
            if self.label_source and self.annotations and not self.box_source:  # Kaggle's file has the boxes
                entries = _with_boxes(entries, read_labels(self.label_source, {stem(file) for file in files}))
        else:
            files = list_files(folder, outside=self.allow_outside)
            if not (self.label_source or self.box_source):
                _check_level(folder, files)
            _check_stems(folder, files)
            labeled = self._labels({stem(file) for file in files}, annotated)
            entries = [Entry(file, f"{folder}/{file}", *labeled[stem(file)]) for file in files]
        if self.box_source:
            none = Annotated(None, (), ())
            found = ((entry, annotated.get(stem(entry.id), none)) for entry in entries)
            entries = [entry._replace(boxes=item.boxes, frame=item.frame) for entry, item in found]
        _tell_turned(entries, self.box_source or self.label_source)
        return entries

    def _labels(self, stems: set[str], annotated: Mapping[str, Annotated]) -> dict[str, Label]:
        """Class and boxes of flat images, by stem."""
        if self.label_source:
            labels = read_labels(self.label_source, stems)
        else:
            index = ClassIndex(imagenet_names(), imagenet_wnids())
            named = {key: item.names[0] for key, item in annotated.items() if key in stems and item.names}
            try:
                labels = {key: (index(name), None) for key, name in named.items()}
            except ValueError as fault:
                raise ValueError(f"An object in the annotations {str(self.box_source)!r}: {fault}") from None
        missing = sorted(stems - labels.keys())
        if missing:
            where = f"in {str(self.label_source)!r}" if self.label_source else "(give `labels`)"
            raise ValueError(f"No label {where} for {len(missing)} of {len(stems)} images, such as {missing[0]!r}.")
        return labels


def _with_boxes(entries: Sequence[Entry], labels: Mapping[str, Label]) -> list[Entry]:
    """The entries with the boxes of their images; none where the labels' file does not name the image."""
    none: Label = (-1, ())
    return [entry._replace(boxes=labels.get(stem(entry.id), none)[1]) for entry in entries]


def _tell_turned(entries: Sequence[Entry], source: Path | None) -> None:
    """Warn of boxes that end before they begin; a few of ImageNet's own do, so that they are no reason to refuse it."""
    turned = [e.id for e in entries for x1, y1, x2, y2 in e.boxes or () if not (x1 <= x2 and y1 <= y2)]
    if turned:
        warnings.warn(
            f"{len(turned)} boxes in {str(source)!r} end before they begin, such as one of {turned[0]!r}. They are "
            "left out.",
            stacklevel=2,
        )


def _check_stems(root: Path, files: Sequence[str]) -> None:
    """Raises ValueError if images in two folders have one name, which is what gives flat images their labels."""
    found: dict[str, str] = {}
    for file in files:
        other = found.setdefault(stem(file), file)
        if other.rpartition("/")[0] != file.rpartition("/")[0]:
            raise ValueError(
                f"Expected images in {str(root)!r} that differ in their names, by which they get their labels, but got "
                f"{other!r} and {file!r}. A CSV file with their paths (CSVImages) can tell them apart."
            )


def _check_level(root: Path, files: Sequence[str]) -> None:
    """Raises ValueError if the folders by wnid lie deeper than in `root`."""
    known = set(imagenet_wnids())
    for file in files:
        folders = file.split("/")[:-1]
        depth = next((depth for depth, name in enumerate(folders) if name in known), 0)
        if depth:
            deeper = "/".join(folders[:depth])
            raise ValueError(
                f"Expected the folders by wnid to lie in {str(root)!r}, but they lie in {deeper!r} below it: give "
                f"{f'{root}/{deeper}'!r} as `root`."
            )


def read_labels(source: Path, stems: set[str]) -> dict[str, Label]:
    """Class (and boxes, if Kaggle's file has them) of the images with these stems.

    Args:
        source: development kit, its ground-truth file, or a file of two columns.
        stems: names of the images without their ending; rows of other images are skipped.

    Raises:
        ValueError: the file is none of these, or names an unknown class.
    """
    if source.is_dir() or tarfile.is_tarfile(source):
        truth, meta = _devkit(source)
    else:
        truth = source.read_bytes()
        beside = source.parent / "meta.mat"
        meta = beside.read_bytes() if beside.is_file() else b""
    lines = decode_text(truth, str(source)).splitlines()
    if lines and all(line.strip().isdigit() for line in lines):
        return _from_truth([int(line) for line in lines], meta, stems, source)
    read = LabelReader(imagenet_names(), imagenet_wnids())
    labels: dict[str, Label] = {}
    for number, name, words in _rows(lines):
        if name not in stems:
            continue
        try:
            label = _label(words, read)
        except ValueError as fault:
            raise ValueError(f"Row {number} of {str(source)!r} is wrong: {fault}") from fault
        if labels.setdefault(name, label) != label:
            raise ValueError(f"Row {number} of {str(source)!r} gives {name!r} another label than before.")
    return labels


def _rows(lines: Sequence[str]) -> Iterator[tuple[int, str, list[str]]]:
    """Number, stem and the words of the label of every row; a comma, a tab or a space separates the two columns."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            row = next(csv.reader([line]))
            first, *rest = row if len(row) > 1 else row[0].split(maxsplit=1) or [""]
            yield number, stem(first.strip()), " ".join(rest).split()


def _label(words: list[str], read: LabelReader) -> Label:
    if len(words) > 1 and len(words) % 5 == 0 and words[0] in read.index.exact:  # Kaggle: wnid x1 y1 x2 y2, repeated
        corners = [[float(word) for word in words[at + 1 : at + 5]] for at in range(0, len(words), 5)]
        return read(words[0]), tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in corners)
    return read(" ".join(words)), None


def _from_truth(numbers: list[int], meta: bytes, stems: set[str], source: Path) -> dict[str, Label]:
    """Labels by the number in an image's name, from the development kit's own numbers of the classes, 1 to 1000."""
    if not meta:
        raise ValueError(
            f"{str(source)!r} numbers the classes in the development kit's own order, which its meta.mat explains; "
            "put that file beside it, or give the whole kit."
        )
    synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    rank = {wnid: number for number, wnid in enumerate(imagenet_wnids())}
    index = {int(row["ILSVRC2012_ID"]): rank[str(row["WNID"])] for row in synsets if str(row["WNID"]) in rank}
    labels: dict[str, Label] = {}
    for name in stems:
        number = name.rpartition("_")[2]
        if number.isdigit() and 1 <= int(number) <= len(numbers) and numbers[int(number) - 1] in index:
            labels[name] = index[numbers[int(number) - 1]], None
    return labels


def _devkit(source: Path) -> tuple[bytes, bytes]:
    """The ground truth and meta.mat of a development kit, without unpacking it to disk."""
    wanted = {_TRUTH: b"", "meta.mat": b""}
    if source.is_dir():
        for name in wanted:
            wanted[name] = next(
                (path.read_bytes() for path in (source / "data" / name, source / name) if path.is_file()), b""
            )
    else:
        with tarfile.open(source) as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name in wanted and member.isfile() and member.size < 50_000_000:
                    file = archive.extractfile(member)
                    wanted[name] = file.read() if file else b""
    absent = [name for name, data in wanted.items() if not data]
    if absent:
        raise ValueError(f"The development kit {str(source)!r} lacks {' and '.join(absent)}.")
    return wanted[_TRUTH], wanted["meta.mat"]
