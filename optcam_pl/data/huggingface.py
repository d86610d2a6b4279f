"""Image datasets of Hugging Face's `datasets` as data modules of this package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from optcam_pl.checks import expanded_path
from optcam_pl.data.adapters import Argument
from optcam_pl.data.base import ImageDataModule
from optcam_pl.data.batch import Box, Entry, Item, Reader
from optcam_pl.data.boxes import BoxFormat, check_box, check_format, to_corners
from optcam_pl.data.files import check_inside, existing_folder
from optcam_pl.data.labels import LabelReader
from optcam_pl.data.masks import object_mask
from optcam_pl.data.text import class_names_of
from optcam_pl.photos.decode import ImageReadError, read_image


def _modules() -> Any:
    """Import the package, or say how to install it."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError('HuggingFaceDataset needs a package: pip install "optcam_pl[datasets]"') from error
    return datasets


_PATHS = ("data_dir", "data_files", "cache_dir")


def _expanded(paths: Any) -> Any:
    """A path, a list of paths, or paths by part, with ~ and variables expanded; addresses stay unchanged."""
    if isinstance(paths, str):
        return paths if "://" in paths else str(expanded_path(paths))
    if isinstance(paths, dict):
        return {part: _expanded(path) for part, path in paths.items()}
    return [_expanded(path) for path in paths] if isinstance(paths, (list, tuple)) else paths


def _column(rows: Any, name: str) -> list[Any]:
    """The cells of a column, without loading the images of the rows."""
    cells: list[Any] = rows.select_columns([name])[:][name]
    return cells


class HuggingFaceReader:
    """Reads a row: an entry's path is its number, the folder in its id is its part. `read_image` decodes images.

    Args:
        rows: the datasets by part, with images not decoded; "" is the one to explain and measure on.
        image: column of the image.
        mask: column of the mask; None if there is none.
        boxes: column of the boxes; None if there is none. "objects.bbox" is a field of each of the column's objects.
        box_format: "xyxy" or "xywh".
        foreground: values of a mask that mean the object; None for all but 0.
        root: folder of the images that the dataset only names; None: it must not name any.
        allow_outside: whether they may lie anywhere.
    """

    def __init__(
        self,
        rows: dict[str, Any],
        image: str,
        mask: str | None,
        boxes: str | None,
        box_format: BoxFormat,
        foreground: Sequence[int] | None,
        root: Path | None,
        allow_outside: bool,
    ) -> None:
        self.rows, self.image, self.mask, self.boxes = rows, image, mask, boxes
        self.box_format, self.foreground = box_format, foreground
        self.root, self.allow_outside = root, allow_outside

    def __call__(self, entry: Entry) -> Item:
        """Read the row. Raises ImageReadError if its image, mask or boxes are damaged, missing or out of bounds."""
        row = self.rows[entry.id.rpartition("/")[0]][int(entry.path)]
        try:
            image = read_image(self._source(row[self.image]))
            mask = row[self.mask] if self.mask else None
            return Item(image, self._boxes(row), None if mask is None else self._mask(mask))
        except ValueError as fault:  # ImageReadError is one
            reason = fault.reason if isinstance(fault, ImageReadError) else str(fault)
            raise ImageReadError(f"Cannot read the image {entry.id!r}: {reason}.", reason) from fault

    def _source(self, cell: dict[str, Any] | None) -> str | bytes:
        """Bytes of an image, or the path of its file."""
        if cell is None or (cell.get("bytes") is None and not cell.get("path")):
            raise ImageReadError("the row has no image")
        if cell.get("bytes") is not None:
            return bytes(cell["bytes"])
        file = str(cell["path"])
        if self.root is None and not self.allow_outside:
            raise ImageReadError("the dataset only names its file, and `image_root` names no folder for it")
        try:
            path = (self.root or Path()) / file  # an absolute path stays as it is
            check_inside(path, self.root or Path("/"), self.allow_outside)
        except ValueError as fault:
            raise ImageReadError("its file lies outside `image_root`") from fault
        return str(path)

    def _boxes(self, row: dict[str, Any]) -> list[Box]:
        if self.boxes is None:
            return []
        column, _, field = self.boxes.partition(".")
        cell = row[column]
        if field:  # a mapping of lists or a list of mappings, depending on the version of `datasets`
            cell = cell[field] if isinstance(cell, dict) else [thing[field] for thing in cell or []]
        boxes = [[float(side) for side in box] for box in cell or []]
        if any(len(box) != 4 for box in boxes):
            raise ImageReadError(f"its boxes do not have four sides: {boxes}")
        corners = [to_corners(box, self.box_format) for box in boxes]
        for box in corners:
            check_box(box)
        return corners

    def _mask(self, cell: dict[str, Any]) -> Image.Image:
        return object_mask(read_image(self._source(cell), as_stored=True), self.foreground)


class HuggingFaceDataset(ImageDataModule):
    """An image dataset of Hugging Face's `datasets`: from the hub, from a folder, or written by ``save_to_disk``.

    Its labels are a column of class numbers or names. The images are decoded here, not by that package, so that
    orientation, depth and damage are handled as in every other dataset. A dataset's own code is never run.

    Args:
        path: what ``datasets.load_dataset`` takes, such as "beans", "imagefolder" or "parquet"; or a folder that
            ``save_to_disk`` wrote.
        split: the part to explain and measure on.
        train_split: the part to train on; None: no training.
        val_split: the part to validate on while training.
        arguments: other arguments of ``load_dataset``, such as ``{data_dir: FOLDER}``, ``{name: CONFIGURATION}``.
        image: column of the image; None: the only one that has images.
        label: column of the class; None: the only one with named classes, if there is one. In a column without named
            classes, text that consists of numbers is read as numbers; empty cells, -1, NaN and the like mean no label.
        boxes: column of a list of boxes per image, such as "boxes" or "objects.bbox"; None: the dataset has no boxes.
        box_format: "xyxy" (left, top, right, bottom) or "xywh" (left, top, width, height), in pixels.
        mask: column of the mask; None: the dataset has no masks.
        foreground: values of the mask that mean the object; None: all but 0.
        image_root: folder of the images if the dataset contains only their paths; None: ``data_dir``, or `path` if it
            is a folder.
        allow_outside: whether such paths may lie outside `image_root`.
        **kwargs: of ImageDataModule.

    Raises:
        ImportError: the extra ``optcam_pl[datasets]`` is not installed.
        FileNotFoundError: a folder does not exist.
        ValueError: a setting is wrong; or (in `setup`) a column is missing or of the wrong kind, or has to be named.
    """

    def __init__(
        self,
        path: str,
        split: str = "test",
        *,
        train_split: str | None = None,
        val_split: str | None = None,
        arguments: dict[str, Argument] | None = None,
        image: str | None = None,
        label: str | None = None,
        boxes: str | None = None,
        box_format: BoxFormat = "xyxy",
        mask: str | None = None,
        foreground: list[int] | None = None,
        image_root: str | None = None,
        allow_outside: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _modules()
        self.arguments = {key: _expanded(value) if key in _PATHS else value for key, value in (arguments or {}).items()}
        if expanded_path(path).is_dir():
            path = str(expanded_path(path))
        elif path.startswith(("/", ".", "~")):  # no name of the Hub
            raise FileNotFoundError(
                f"Expected `path` to be a folder or the name of a dataset, but there is no folder {path!r}."
            )
        refused = sorted({"split", "streaming", "trust_remote_code"} & set(self.arguments))
        if refused:
            raise ValueError(f"Expected `arguments` to be of load_dataset, without {', '.join(refused)}.")
        self.path = path
        self.name = Path(str(self.arguments.get("data_dir") or path)).name
        self.splits = {"": split, "train": train_split, "val": val_split}
        self.columns = {"image": image, "label": label, "mask": mask}
        self.boxes, self.box_format, self.foreground = boxes, check_format(box_format), foreground
        self.root = self._root(image_root)
        self.allow_outside = allow_outside
        self.annotations = (*(("boxes",) if boxes else ()), *(("masks",) if mask else ()))
        self._rows: dict[str, Any] = {}
        self._names: tuple[str, ...] | None = None

    def _root(self, image_root: str | None) -> Path | None:
        """The folder of images that the dataset only names, by the first of the arguments that says it."""
        if image_root:
            return existing_folder(image_root, "image_root")
        if self.arguments.get("data_dir"):
            return existing_folder(str(self.arguments["data_dir"]), "arguments.data_dir")
        return Path(self.path) if Path(self.path).is_dir() else None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes by index: the dataset's own; for a column of names, the sorted names."""
        rows = self._part("")
        label = self.columns["label"]
        if label is None:
            return None
        feature = rows.features[label]
        if hasattr(feature, "names"):
            return tuple(feature.names)
        if getattr(feature, "dtype", None) not in ("string", "large_string"):
            return None
        if self._names is None:
            parts = [self._part(part) for part, split in self.splits.items() if split]
            labels = (pair for rows in parts for pair in enumerate(_column(rows, label)))
            self._names = class_names_of(labels, f"the column {label!r} of {self.path!r}") or ()
        return self._names or None

    def looked_for(self) -> str:
        """The dataset and its part."""
        return f"rows of the split {self.splits['']!r} of the dataset {self.path!r}"

    def entries(self) -> list[Entry]:
        """The rows by their number, with their labels; boxes and masks are read with the image."""
        return self._of("")

    def training_entries(self, split: Literal["train", "val"]) -> list[Entry]:
        """The rows of a part. Raises ValueError if `train_split` or `val_split` is None."""
        self.check_trainable(f"{split}_split", self.splits[split])
        return self._of(split)

    def _of(self, part: str) -> list[Entry]:
        rows = self._part(part)
        label, names = self.columns["label"], self.class_names
        labels = [None] * len(rows) if label is None else _column(rows, label)
        read, targets = LabelReader(names or ()), []
        for number, value in enumerate(labels):
            try:
                targets.append(value if type(value) is int and value >= -1 else read(value))
            except (TypeError, ValueError) as fault:
                raise ValueError(f"Row {number} of the column {label!r} of {self.path!r} is wrong: {fault}") from fault
        prefix = f"{part}/" if part else ""
        return [Entry(f"{prefix}{i:06}", str(i), target) for i, target in enumerate(targets)]

    def reader(self) -> Reader:
        """The reader of a row."""
        self._part("")  # its columns may not be known yet
        shown = (self.box_format, self.foreground, self.root, self.allow_outside)
        return HuggingFaceReader(self._rows, str(self.columns["image"]), self.columns["mask"], self.boxes, *shown)

    def source(self) -> dict[str, Any]:
        """The dataset, its part and its columns; no folders."""
        self._part("")  # its columns may not be known yet
        settings = {key: value for key, value in self.arguments.items() if key not in _PATHS}
        columns = self.columns | {"boxes": self.boxes, "foreground": self.foreground}
        if self.boxes and self.box_format != "xyxy":
            columns["box_format"] = self.box_format
        return {"dataset": Path(self.path).name, "split": self.splits[""]} | settings | columns

    def training_fingerprint(self) -> dict[str, Any]:
        """Adds the part of the training images, which their numbers do not reveal."""
        return super().training_fingerprint() | {"train": self.splits["train"]}

    def _part(self, part: str) -> Any:
        """The dataset of a part, with images not decoded."""
        if part not in self._rows:
            datasets = _modules()
            rows = self._load(datasets, str(self.splits[part]))
            self._choose_columns(datasets, rows)
            for kind in ("image", "mask"):
                if self.columns[kind]:
                    rows = rows.cast_column(self.columns[kind], datasets.Image(decode=False))
            self._rows[part] = rows
        return self._rows[part]

    def _load(self, datasets: Any, split: str) -> Any:
        folder = Path(self.path)
        if not ((folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()):
            return datasets.load_dataset(self.path, split=split, **self.arguments)
        found = datasets.load_from_disk(self.path)
        if not isinstance(found, datasets.DatasetDict):
            return found
        if split not in found:
            raise ValueError(f"Expected `split` to be one of {sorted(found)} in {self.path!r}, but got {split!r}.")
        return found[split]

    def _choose_columns(self, datasets: Any, rows: Any) -> None:
        """Choose the columns that were left open, and check those that were given."""
        features = rows.features
        given = [name for name in (*self.columns.values(), self.boxes and self.boxes.partition(".")[0]) if name]
        missing = sorted(set(given) - set(features))
        if missing:
            raise ValueError(f"The dataset {self.path!r} lacks the columns {missing}; it has {sorted(features)}.")
        images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
        classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
        open_images = [name for name in images if name != self.columns["mask"]]
        if self.columns["image"] is None:
            if len(open_images) != 1:
                raise ValueError(f"Expected `image` to name a column of {self.path!r}; with images: {open_images}.")
            self.columns["image"] = open_images[0]
        if self.columns["label"] is None and classes:
            if len(classes) != 1:
                raise ValueError(f"Expected `label` to name a column of {self.path!r}; with classes: {classes}.")
            self.columns["label"] = classes[0]
        wrong = [name for name in (self.columns["image"], self.columns["mask"]) if name and name not in images]
        if wrong:
            raise ValueError(f"Expected images in the column {wrong[0]!r} of {self.path!r}; with images: {images}.")
