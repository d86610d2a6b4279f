"""Datasets of other packages as data modules of this package."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from difflib import get_close_matches
from typing import Any, Literal, TypeAlias

import numpy as np
import torchvision.datasets
from PIL import Image, ImageChops
from torch import Tensor

from optcam_pl.checks import expanded_path
from optcam_pl.data.base import ImageDataModule
from optcam_pl.data.batch import Annotation, Entry, Item, Reader
from optcam_pl.data.boxes import check_box, to_corners
from optcam_pl.data.text import class_number
from optcam_pl.imagenet import imagenet_names, imagenet_wnids
from optcam_pl.photos.decode import ImageReadError, to_rgb

_VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_ANNOTATIONS: dict[str, tuple[Annotation, ...]] = {
    "VOCDetection": ("boxes",),
    "CocoDetection": ("boxes", "masks"),
    "VOCSegmentation": ("masks",),
}


_PATHS = ("root", "annFile", "img_folder")

# Text comes first, so that a configuration's "2012" stays text.
Argument: TypeAlias = str | bool | int | float | list[Any] | dict[str, Any] | None


class TorchvisionReader:
    """Reads an item of a torchvision dataset: an entry's path is its number, the folder in its id is its part.

    The type of what comes with the image decides its meaning: a number is the class; an image is a mask; a mapping is
    an annotation of Pascal VOC; a list is an annotation of COCO. If there are several objects, the one with the largest
    box gives the class, and the boxes (and COCO's masks) are those of all objects of this class.

    Args:
        datasets: the datasets by part; "" is the one to explain and measure on.
        foreground: values of a mask image that mean the object.
        categories: class index by VOC's name or COCO's category number.
        classes: number of classes; None if it is unknown.
    """

    def __init__(
        self,
        datasets: Mapping[str, Any],
        foreground: Sequence[int],
        categories: Mapping[Any, int],
        classes: int | None = None,
    ) -> None:
        self.datasets = datasets
        self.foreground = tuple(foreground)
        self.categories = categories
        self.classes = classes

    def __call__(self, entry: Entry) -> Item:
        """Read the item.

        Raises:
            ImageReadError: the image is damaged or missing.
            ValueError: the label is not one of the dataset's classes, or a box ends before it begins.
            TypeError: what comes with the image is no label, mask or annotation.
        """
        dataset = self.datasets[entry.id.rpartition("/")[0]]
        try:
            image, target = dataset[int(entry.path)]
        except (OSError, SyntaxError, Image.DecompressionBombError) as fault:  # what Pillow raises on damaged files
            reason = f"the file cannot be read ({type(fault).__name__}: {' '.join(str(fault).split())})"
            raise ImageReadError(f"Cannot read the image {entry.id!r}: {reason}.", reason) from fault
        try:
            item = Item(to_rgb(image))
            for part in target if isinstance(target, tuple) else (target,):
                item = self._add(item, part, dataset)
        except (TypeError, ValueError) as fault:
            kind = type(dataset).__name__
            raise type(fault)(f"What comes with the image {entry.id!r} of {kind} is wrong: {fault}") from fault
        return item

    def _add(self, item: Item, part: Any, dataset: Any) -> Item:
        if isinstance(part, Image.Image):
            return item._replace(
                mask=Image.fromarray(np.isin(np.asarray(part), self.foreground).astype(np.uint8) * 255)
            )
        if isinstance(part, Mapping):
            return self._add_voc(item, part["annotation"])
        if isinstance(part, list):
            return self._add_coco(item, part, dataset.coco)
        if isinstance(part, (Tensor, np.ndarray)) and part.ndim == 0:
            part = part.item()
        if part is None or isinstance(part, (int, float, np.integer, np.floating)):
            return self._add_label(item, part)
        raise TypeError(
            f"Expected a class, a mask image, or an annotation of VOC or COCO, but got {type(part).__name__}."
        )

    def _add_label(self, item: Item, label: Any) -> Item:
        number = class_number(label)
        if item.target is not None:
            raise ValueError(
                f"Expected one label per image, but got {item.target} and {label}: ask for one target type."
            )
        if number is not None and self.classes is not None and number >= self.classes:
            raise ValueError(f"Expected a label in 0..{self.classes - 1} (-1: none), but got {label}.")
        return item._replace(target=number)

    def _category(self, key: Any) -> int:
        if key not in self.categories:
            known = ", ".join(map(str, list(self.categories)[:90]))
            raise ValueError(f"Expected an object of one of the categories {known}, but got {key!r}.")
        return self.categories[key]

    def _add_voc(self, item: Item, annotation: Mapping[str, Any]) -> Item:
        found = []
        for thing in annotation["object"]:
            xmin, ymin, xmax, ymax = (float(thing["bndbox"][side]) for side in ("xmin", "ymin", "xmax", "ymax"))
            check_box((xmin, ymin, xmax, ymax))
            # VOC numbers pixels from 1 and includes the last one.
            found.append((self._category(thing["name"]), (xmin - 1, ymin - 1, xmax, ymax)))
        target = _largest(found)
        return item._replace(target=target, boxes=[box for number, box in found if number == target])

    def _add_coco(self, item: Item, objects: list[Mapping[str, Any]], coco: Any) -> Item:
        found = []
        for thing in objects:
            box = to_corners(thing["bbox"], "xywh")
            check_box(box)
            found.append((self._category(thing["category_id"]), box))
        target = _largest(found)
        mask = Image.new("L", item.size)
        for thing, (number, _) in zip(objects, found, strict=True):
            if number == target and thing.get("segmentation"):
                mask = ImageChops.lighter(mask, Image.fromarray(coco.annToMask(thing) * np.uint8(255)))
        return item._replace(target=target, boxes=[box for number, box in found if number == target], mask=mask)


def _largest(found: Sequence[tuple[int, tuple[float, ...]]]) -> int:
    """Class of the object with the largest box; -1 if there is none."""
    areas = [((x2 - x1) * (y2 - y1), -place) for place, (_, (x1, y1, x2, y2)) in enumerate(found)]
    return found[-max(areas)[1]][0] if areas else -1


class TorchvisionDataset(ImageDataModule):
    """Any image dataset of torchvision, with its boxes and masks if it has them; nothing is downloaded.

    Args:
        dataset: name of a class of ``torchvision.datasets``, such as "OxfordIIITPet", "VOCDetection", "CocoDetection".
        arguments: its arguments, such as ``{root: data, split: test, target_types: [category, segmentation]}``; ~ and
            variables are expanded in paths.
        train_arguments: the arguments that differ for its training images, such as ``{split: trainval}``; None: no
            training.
        val_arguments: the arguments that differ for its validation images.
        foreground: values of a mask image that mean the object. None means 1 for OxfordIIITPet, where 2 is the
            background and 3 the border, and all values but 0 (background) and 255 (void) for other datasets.
        **kwargs: of ImageDataModule.

    Raises:
        ValueError: torchvision has no such dataset.
        FileNotFoundError: torchvision does not find its files.
        TypeError: it has no such argument.
    """

    def __init__(
        self,
        dataset: str,
        arguments: dict[str, Argument],
        *,
        train_arguments: dict[str, Argument] | None = None,
        val_arguments: dict[str, Argument] | None = None,
        foreground: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        name = dataset.removeprefix("torchvision.datasets.")
        known = [key for key in torchvision.datasets.__all__ if isinstance(getattr(torchvision.datasets, key), type)]
        if name not in known:
            near = ", ".join(map(repr, get_close_matches(name, known, n=3, cutoff=0)))
            raise ValueError(f"torchvision has no dataset {dataset!r}; the nearest are {near}.")
        self.dataset_name = name
        self.name = name.lower()
        self.arguments = _expanded(arguments)
        self.part_arguments = {
            "train": None if train_arguments is None else _expanded(train_arguments),
            "val": None if val_arguments is None else _expanded(val_arguments),
        }
        self._given_foreground = foreground
        self.foreground = foreground or ([1] if name == "OxfordIIITPet" else list(range(1, 255)))
        kinds = arguments.get("target_types")
        segmented = "segmentation" in (kinds if isinstance(kinds, list) else [kinds])
        self.annotations = ("masks",) if segmented else _ANNOTATIONS.get(name, ())
        self._datasets = {"": self._make({})}

    def _make(self, other: dict[str, Any]) -> Any:
        given = {**self.arguments, **other}
        try:
            with redirect_stdout(sys.stderr):  # pycocotools tells there what it does
                return getattr(torchvision.datasets, self.dataset_name)(**given)
        except (OSError, RuntimeError, TypeError) as fault:
            kind = TypeError if isinstance(fault, TypeError) else FileNotFoundError
            raise kind(
                f"Expected `arguments` with which torchvision finds {self.dataset_name}, but with {given} it says: "
                f"{fault}"
            ) from fault

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes by index, if torchvision knows them."""
        if self.dataset_name == "VOCDetection":
            return _VOC
        if self.dataset_name == "CocoDetection":
            return tuple(category["name"] for _, category in sorted(self._datasets[""].coco.cats.items()))
        dataset = self._datasets[""]
        wnids = getattr(dataset, "wnids", ())
        if wnids and set(wnids) <= set(imagenet_wnids()):
            return tuple(imagenet_names()[imagenet_wnids().index(wnid)] for wnid in wnids)
        kinds = self.arguments.get("target_types")
        binary = "binary-category" in (kinds if isinstance(kinds, list) else [kinds])
        names = getattr(dataset, "bin_classes" if binary else "classes", None)
        return tuple(", ".join(name) if isinstance(name, (tuple, list)) else str(name) for name in names or ()) or None

    def looked_for(self) -> str:
        """The dataset and its arguments."""
        return f"torchvision's {self.dataset_name} with {self.arguments}"

    def entries(self) -> list[Entry]:
        """The numbers of the images; labels and annotations are read with the image."""
        return [Entry(f"{i:06}", str(i)) for i in range(len(self._datasets[""]))]

    def training_entries(self, split: Literal["train", "val"]) -> list[Entry]:
        """The numbers of the images of a part."""
        other = self.check_trainable(f"{split}_arguments", self.part_arguments[split])
        if split not in self._datasets:
            self._datasets[split] = self._make(other)
        return [Entry(f"{split}/{i:06}", str(i)) for i in range(len(self._datasets[split]))]

    def reader(self) -> Reader:
        """The reader that gets an item from the dataset."""
        if self.dataset_name == "CocoDetection":
            categories = {number: index for index, number in enumerate(sorted(self._datasets[""].coco.cats))}
        else:
            categories = {name: index for index, name in enumerate(_VOC)}
        names = self.class_names
        return TorchvisionReader(self._datasets, self.foreground, categories, None if names is None else len(names))

    def source(self) -> dict[str, Any]:
        """The dataset and its arguments, without paths; the foreground where it was given."""
        given = {} if self._given_foreground is None else {"foreground": self._given_foreground}
        return {"dataset": self.dataset_name} | _without_paths(self.arguments) | given

    def training_fingerprint(self) -> dict[str, Any]:
        """Adds the arguments of the training images, which their numbers do not reveal."""
        return super().training_fingerprint() | {"train": _without_paths(self.part_arguments["train"] or {})}


def _without_paths(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key not in _PATHS}


def _expanded(arguments: Mapping[str, Argument]) -> dict[str, Any]:
    return {key: str(expanded_path(str(value))) if key in _PATHS else value for key, value in arguments.items()}
