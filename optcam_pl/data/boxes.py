"""Boxes: their formats, and XML annotations in the layout of Pascal VOC and ImageNet, in a folder or a tar file."""

from __future__ import annotations

import hashlib
import math
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args
from xml.etree import ElementTree

from optcam_pl.checks import expanded_path
from optcam_pl.data.batch import Box
from optcam_pl.data.files import list_files, load_json, stem, store_json

BoxFormat: TypeAlias = Literal["xyxy", "xywh"]

_MAX_BYTES = 1_000_000  # limit for one annotation; ImageNet's have about a thousand


def check_format(box_format: str) -> BoxFormat:
    """Return the format. Raises ValueError if it is neither "xyxy" nor "xywh"."""
    for known in get_args(BoxFormat):
        if box_format == known:
            return known  # type: ignore[no-any-return]
    raise ValueError(f"Expected `box_format` to be 'xyxy' or 'xywh', but got {box_format!r}.")


def to_corners(box: Sequence[float], box_format: BoxFormat) -> Box:
    """Left, top, right and bottom of a box in either format.

    Example:
        >>> to_corners((10, 20, 5, 6), "xywh")
        (10, 20, 15, 26)
    """
    x, y, third, fourth = box
    return (x, y, third, fourth) if box_format == "xyxy" else (x, y, x + third, y + fourth)


def check_box(box: Sequence[float]) -> None:
    """Check left, top, right and bottom of a box. Raises ValueError if it ends before it begins, or is not finite.

    Example:
        >>> check_box((0, 0, 5, 0))
        >>> check_box((10, 20, 5, 26))
        Traceback (most recent call last):
        ValueError: Expected a box as left, top, right, bottom, but got [10, 20, 5, 26].
    """
    left, top, right, bottom = box
    if not (all(map(math.isfinite, box)) and left <= right and top <= bottom):
        raise ValueError(f"Expected a box as left, top, right, bottom, but got {list(box)}.")


class Annotated(NamedTuple):
    """The objects of one image.

    Attributes:
        frame: width and height of the image that was annotated; None if the file does not say.
        boxes: xyxy as in the file, understood as distances from the left and upper edge.
        names: names of the objects, in the order of the boxes.
    """

    frame: tuple[int, int] | None
    boxes: tuple[Box, ...]
    names: tuple[str, ...]


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses document types, and thereby all attacks through entities."""

    def doctype(self, *_: object) -> None:
        raise ValueError("it declares a document type, which is refused")


def parse_annotation(data: bytes) -> Annotated:
    """Read one XML annotation.

    Raises:
        ValueError: the data is no such annotation, declares a document type, or is larger than a megabyte.

    Example:
        >>> parse_annotation(b'''<annotation><size><width>500</width><height>375</height></size><object>
        ...     <name>n01440764</name><bndbox><xmin>10</xmin><ymin>20</ymin><xmax>300</xmax><ymax>200</ymax></bndbox>
        ... </object></annotation>''')
        Annotated(frame=(500, 375), boxes=((10.0, 20.0, 300.0, 200.0),), names=('n01440764',))
    """
    if len(data) > _MAX_BYTES:
        raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
    try:
        root = ElementTree.fromstring(data, ElementTree.XMLParser(target=_NoDoctype()))
    except ElementTree.ParseError as fault:
        raise ValueError(f"it is not XML ({fault})") from fault
    size = root.find("size")
    frame = None if size is None else (round(_number(size, "width")), round(_number(size, "height")))
    boxes, names = [], []
    for thing in root.iterfind("object"):
        box = thing.find("bndbox")
        if box is None:
            raise ValueError("an object has no bndbox")
        xmin, ymin, xmax, ymax = (_number(box, side) for side in ("xmin", "ymin", "xmax", "ymax"))
        boxes.append((xmin, ymin, xmax, ymax))
        names.append(_text(thing, "name"))
    return Annotated(frame if frame and min(frame) > 0 else None, tuple(boxes), tuple(names))


def _text(element: ElementTree.Element, tag: str) -> str:
    text = element.findtext(tag)
    if not text:
        raise ValueError(f"{element.tag} has no {tag}")
    return " ".join(text.split())


def _number(element: ElementTree.Element, tag: str) -> float:
    text = _text(element, tag)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"the {tag} of {element.tag} is no number, but {text!r}")
    return number


def read_annotations(source: str | Path, *, outside: bool = False) -> Mapping[str, Annotated]:
    """All annotations of a folder (searched recursively) or of a tar file, by their stem.

    The result is stored beside the source, and read from there as long as no file's name, size or time changes.

    Args:
        source: folder or .tar, .tar.gz, .tgz file.
        outside: whether symbolic links may lead out of the folder.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: an annotation is damaged, or two have the same stem; the message names it.
    """
    source = expanded_path(source)
    if not source.exists():
        raise FileNotFoundError(
            f"Expected `boxes` to be a folder or a tar file of annotations, but there is none called {str(source)!r}."
        )
    files = list_files(source, frozenset({".xml"}), outside=outside) if source.is_dir() else [""]
    digest = hashlib.sha256(b"1")  # version of the storage format
    for name in files:
        info = os.stat(f"{source}/{name}" if name else source)  # noqa: PTH116 (Path takes as long as the call itself)
        digest.update(f"{name}\0{info.st_size}\0{info.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    key, store = digest.hexdigest(), f"boxes_{source.name}.json"
    stored = load_json(source.parent, store)
    if isinstance(stored, dict) and stored.get("key") == key:
        return {name: _unpack(row) for name, row in stored["rows"].items()}
    read = _parse_all(_folder_members(source, files) if source.is_dir() else _tar_members(source))
    store_json(source.parent, store, {"key": key, "rows": {name: _pack(item) for name, item in read.items()}})
    return read


def _pack(item: Annotated) -> str:
    """One string, which is faster to read than nested lists: width, height, then a name and four numbers per box."""
    boxes = [text for name, box in zip(item.names, item.boxes, strict=True) for text in (name, *map(repr, box))]
    return "\t".join([*map(str, item.frame or (0, 0)), *boxes])


def _unpack(row: str) -> Annotated:
    width, height, *rest = row.split("\t")
    numbers = [list(map(float, rest[at : at + 4])) for at in range(1, len(rest), 5)]
    boxes = tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in numbers)
    return Annotated((int(width), int(height)) if width != "0" else None, boxes, tuple(rest[::5]))


def _parse_all(members: Iterator[tuple[str, bytes]]) -> dict[str, Annotated]:
    read: dict[str, Annotated] = {}
    for name, data in members:
        key = stem(name)
        if key in read:
            raise ValueError(f"Expected every annotation to have its own name, but {key!r} occurs twice.")
        try:
            read[key] = parse_annotation(data)
        except ValueError as fault:
            raise ValueError(f"Cannot read the annotation {name!r}: {fault}.") from fault
    return read


def _folder_members(folder: Path, files: list[str]) -> Iterator[tuple[str, bytes]]:
    for name in files:
        with (folder / name).open("rb") as file:
            yield name, file.read(_MAX_BYTES + 1)


def _tar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """The annotations in a tar file, without unpacking it to disk."""
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if member.isfile() and member.name.lower().endswith(".xml"):
                    file = archive.extractfile(member)
                    assert file is not None  # it is a regular file
                    yield member.name, file.read(_MAX_BYTES + 1)
    except tarfile.TarError as fault:
        raise ValueError(f"Cannot read the tar file {str(path)!r}: {fault}.") from fault
