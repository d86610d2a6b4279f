"""Datasets made of plain image folders: single files, folders, and folders of classes with or without a split."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from optcam_pl.checks import expanded_path
from optcam_pl.data.base import ImageDataModule
from optcam_pl.data.batch import Entry
from optcam_pl.data.blocks import seeded_order
from optcam_pl.data.files import (
    existing_folder,
    hidden,
    holds_image,
    list_files,
    load_json,
    store_json,
    subfolders,
    suffix,
)
from optcam_pl.data.names import ClassIndex, class_list
from optcam_pl.imagenet import imagenet_names, imagenet_wnids
from optcam_pl.photos.decode import IMAGE_SUFFIXES

Split = Literal["train", "val", "test"]
_SPLITS = ("train", "val", "test")
_SPLIT_NAMES = frozenset((*_SPLITS, "training", "valid", "validation", "dev", "testing", "eval"))


class ImagePaths(ImageDataModule):
    """Any images, without labels: files, folders (searched recursively) and patterns such as ``*.jpg``.

    Args:
        paths: one or several of these. A single file is read whatever its ending is; in folders and patterns only files
            with an image's ending count, except those whose name begins with a dot or that lie in a file manager's own
            folder. An image that is named twice is used once.
        allow_outside: whether symbolic links in a folder may lead out of it.
        **kwargs: of ImageDataModule.

    Raises:
        FileNotFoundError: a path does not exist or a pattern matches nothing.
    """

    def __init__(self, paths: str | list[str], *, allow_outside: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.allow_outside = allow_outside
        self.paths = [paths] if isinstance(paths, str) else list(paths)
        if not self.paths:
            raise ValueError("Expected `paths` to name at least one file or folder, but it is empty.")
        for path in self.paths:
            next(_expand(path, allow_outside), None)  # report a wrong path at once
        only = expanded_path(self.paths[0]).resolve()
        self.name = only.name if len(self.paths) == 1 and only.is_dir() and only.name else "images"

    def looked_for(self) -> str:
        """The endings and the paths."""
        return f"files that end in {', '.join(sorted(IMAGE_SUFFIXES))} in `paths`: {', '.join(self.paths)}"

    def entries(self) -> list[Entry]:
        """The files in the order of `paths`, sorted within each; the id is the path relative to the common root."""
        found = (os.path.normpath(file.absolute()) for path in self.paths for file in _expand(path, self.allow_outside))
        files = [Path(file) for file in dict.fromkeys(found)]
        if not files:
            return []
        root = os.path.commonpath([file.parent for file in files])
        return [Entry(file.relative_to(root).as_posix(), str(file)) for file in files]


def _expand(path: str, outside: bool) -> Iterator[Path]:
    """The image files of a file, a folder or a pattern. A name that exists is never treated as a pattern."""
    name = expanded_path(path)
    if name.is_dir():
        yield from (name / relative for relative in list_files(name, outside=outside))
    elif name.exists():
        yield name
    else:
        matches = sorted(glob.glob(str(name), recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        if not matches:
            raise FileNotFoundError(
                f"Expected `paths` to be files, folders or patterns, but there is no file or folder {path!r}, and as a "
                "pattern it matches nothing."
            )
        for match in map(Path, matches):
            if any(hidden(part) for part in match.parts if part not in name.parts):
                continue
            if match.is_dir():
                yield from (match / relative for relative in list_files(match, outside=outside))
            elif suffix(match.name) in IMAGE_SUFFIXES:
                yield match


class ImageFolder(ImageDataModule):
    """Folders of images, one for each class.

    With a `split`, a network can also be trained on the dataset (on "train", validated on "val"). The images of a split
    are those in the folder of that name in `root`. If there is no such folder, a split is drawn: an eighth of every
    class goes to "val" and an eighth to "test". The draw depends on `split_seed` and the images' ids, so it is the same
    on every machine. The list is stored as ``.optcam_pl/split_<seed>.json`` in `root`, and kept as long as it names
    every image.

    Args:
        root: the folder that contains the class folders, or the folders of a split; images may lie deeper in them.
        classes: what the classes are and how they are numbered. "imagenet": ImageNet's 1000 classes; folders are named
            by wnid or by class name, and any number of them may exist, so that 500 of the 1000 folders still have
            ImageNet's indices. A text file (one class per line) or a list: folders have these names. None: "imagenet"
            if every folder is named by a wnid of ImageNet, otherwise the sorted names of the folders that contain an
            image. Case, and underscores and hyphens for spaces, matter only if two classes differ in nothing else.
        split: "train", "val" or "test", the part to explain and measure on; None for everything.
        split_seed: seed of the split that is drawn.
        allow_outside: whether symbolic links may lead out of `root`.
        **kwargs: of ImageDataModule.

    Raises:
        FileNotFoundError: there is no such folder or class list.
        ValueError: (in `setup`) a folder belongs to no class (the message lists the nearest names), or two folders
            belong to one; or the class folders lie deeper than in `root`, or `root` is one of them.
    """

    def __init__(
        self,
        root: str,
        classes: list[str] | str | None = None,
        *,
        split: Split | None = None,
        split_seed: int = 0,
        allow_outside: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if split is not None and split not in _SPLITS:
            raise ValueError(f"Expected `split` to be 'train', 'val', 'test' or None, but got {split!r}.")
        self.root = existing_folder(root)
        self.name = self.root.resolve().name or self.name
        self.split = split
        self.split_seed = split_seed
        self.allow_outside = allow_outside
        self._classes = class_list(classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by index."""
        if self._classes is None:
            parts = self._parts()
            folder = parts[0]
            # A class may lack images in one part of a split.
            listed = subfolders(folder) if folder.name == "train" else sorted({*chain(*map(subfolders, parts))})
            found = {name: any(map(holds_image, (part / name for part in parts))) for name in listed}
            folders, others = [[name for name in found if found[name] is held] for held in (True, False)]
            _check_level(folder, folders)
            if others and folders:
                warnings.warn(
                    f"These folders in {str(folder)!r} hold no image and are no classes: {', '.join(others)}. If they "
                    "are, list all classes as `classes`.",
                    stacklevel=2,
                )
            self._classes = "imagenet" if folders and set(folders) <= set(imagenet_wnids()) else tuple(folders)
        return imagenet_names() if self._classes == "imagenet" else tuple(self._classes)

    def looked_for(self) -> str:
        """Class folders and the endings of images."""
        folder = self._folder(self.split)
        root = ("`root`, " if folder == self.root else "") + repr(str(folder))
        advice = (
            f", which holds images itself: for one class, give its parent folder, {str(folder.absolute().parent)!r}"
            "; if its images have no labels, use ImagePaths"
            if holds_image(folder, directly=True)
            else ""
        )
        return f"files that end in {', '.join(sorted(IMAGE_SUFFIXES))} in the class folders of {root}{advice}"

    def entries(self) -> list[Entry]:
        """The images sorted by path, with their folder's class; ids begin at `root`."""
        return self._of(self.split)

    def training_entries(self, split: Literal["train", "val"]) -> list[Entry]:
        """The images of a split. Raises ValueError if `split` is None, because the parts would be the same images."""
        self.check_trainable("split", self.split)
        return self._of(split)

    def _parts(self) -> list[Path]:
        """The folders of all parts of a split, "train" first; only `root` if its parts have no folders."""
        parts = [self.root / split for split in _SPLITS if (self.root / split).is_dir()]
        known = [part for part in parts if part.name in ("train", self.split)]
        return parts if self.split and known else [self.root]

    def _folder(self, split: Split | None) -> Path:
        return self.root / split if split and (self.root / split).is_dir() else self.root

    def _of(self, split: Split | None) -> list[Entry]:
        folder = self._folder(split)
        below = "" if folder == self.root else f"{split}/"
        names = self.class_names
        files = in_folders(folder, list_files(folder, outside=self.allow_outside))
        filled = sorted({file.split("/", 1)[0] for file in files})
        target = self._targets(folder, filled, names)
        entries = [Entry(f"{below}{file}", f"{folder}/{file}", target[file.split("/", 1)[0]]) for file in files]
        if split is None or below:
            return entries
        drawn = self._draw(entries)
        return [entry for entry in entries if drawn[entry.id] == split]

    def _targets(self, folder: Path, filled: Sequence[str], names: tuple[str, ...]) -> Mapping[str, int]:
        """Class index of each folder with images; warns of class folders without images."""
        aliases = imagenet_wnids() if names == imagenet_names() else ()
        try:
            target = match_folders(filled, names, aliases)
        except ValueError as fault:
            raise ValueError(f"{fault}{_advice(folder, filled, ClassIndex(names, aliases))}") from None
        known = ClassIndex(names, aliases)
        empty = [name for name in subfolders(folder) if name not in target and known.knows(name)]
        if empty:
            warnings.warn(
                f"These classes have no image in {str(folder)!r}, as their folders are empty: {', '.join(empty)}.",
                stacklevel=2,
            )
        return target

    def _draw(self, entries: list[Entry]) -> Mapping[str, str]:
        """Split of every id: the stored one, or a new one with an eighth of every class each for val and test."""
        name = f"split_{self.split_seed}.json"
        stored = load_json(self.root, name)
        if isinstance(stored, dict) and stored.keys() >= {entry.id for entry in entries}:
            return stored
        drawn: dict[str, str] = {}
        for target in sorted({entry.target for entry in entries}):
            ids = [entry.id for entry in entries if entry.target == target]
            eighth = len(ids) // 8
            for position, index in enumerate(seeded_order(ids, self.split_seed)):
                drawn[ids[index]] = "val" if position < eighth else "test" if position < 2 * eighth else "train"
        store_json(self.root, name, dict(sorted(drawn.items())))
        return drawn


class ChestXRay(ImageFolder):
    """Kermany's chest X-rays (5216 for training, 16 for validation, 624 for testing): healthy or with pneumonia.

    D. Kermany et al., "Identifying medical diagnoses and treatable diseases by image-based deep learning", Cell 172
    (2018). The layout is that of the download: chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg.

    Args:
        root: the folder chest_xray or the folder that contains it.
        split: the part to explain and measure on.
        **kwargs: of ImageFolder.
    """

    def __init__(self, root: str, *, split: Split = "test", **kwargs: Any) -> None:
        inner = expanded_path(root) / "chest_xray"
        super().__init__(str(inner) if inner.is_dir() else root, ["NORMAL", "PNEUMONIA"], split=split, **kwargs)
        self.name = "chest_xray"


class Kvasir(ImageFolder):
    """Kvasir v2: 8000 images of the digestive tract in eight classes, by default split into 6000, 1000 and 1000.

    K. Pogorelov et al., "KVASIR: a multi-class image dataset for computer aided gastrointestinal disease detection",
    MMSys 2017. The layout is that of the download: one folder for each class; the split is drawn (see ImageFolder).

    Args:
        root: the folder of the class folders, or the folder that contains kvasir-dataset-v2.
        split: the part to explain and measure on.
        **kwargs: of ImageFolder.
    """

    CLASSES = (
        *("dyed-lifted-polyps", "dyed-resection-margins", "esophagitis", "normal-cecum"),
        *("normal-pylorus", "normal-z-line", "polyps", "ulcerative-colitis"),
    )

    def __init__(self, root: str, *, split: Split = "test", **kwargs: Any) -> None:
        inner = expanded_path(root) / "kvasir-dataset-v2"
        super().__init__(str(inner) if inner.is_dir() else root, list(self.CLASSES), split=split, **kwargs)
        self.name = "kvasir"


def in_folders(root: Path, files: Sequence[str]) -> list[str]:
    """The files that lie in a folder of `root`; warns of those beside the folders, which belong to no class."""
    inside = [file for file in files if "/" in file]
    beside = [file for file in files if "/" not in file]
    if inside and beside:
        warnings.warn(
            f"{len(beside)} images lie in {str(root)!r} itself, such as {beside[0]!r}. They belong to no class and are "
            "left out.",
            stacklevel=2,
        )
    return inside


def _check_level(root: Path, folders: Sequence[str]) -> None:
    """Raises ValueError if the folders with images are parts of a split, or if the only one contains the classes."""
    if ("train" in folders and {"val", "test"} & set(folders)) or (len(folders) > 1 and set(folders) <= _SPLIT_NAMES):
        raise ValueError(
            f"{str(root)!r} holds a split, {folders}: choose a part of it with `split`. (Its folders are to be named "
            "train, val and test; otherwise give one of them as `root`.)"
        )
    if len(folders) == 1 and folders[0] not in imagenet_wnids():
        only = root / folders[0]
        inner = [] if holds_image(only, directly=True) else subfolders(only)
        inner = [name for name in inner if holds_image(only / name)]
        if len(inner) > 1:
            raise ValueError(
                f"Expected the class folders to lie in {str(root)!r}, but its only folder holds them: "
                f"{', '.join(inner[:8])}{', ...' * (len(inner) > 8)}. Give {str(only)!r} as `root`; or, if "
                f"{folders[0]!r} is the only class, `classes: [{folders[0]}]`."
            )


def _advice(root: Path, folders: Sequence[str], index: ClassIndex) -> str:
    """Advice that says where the class folders are, if they lie one level deeper than in `root`."""
    for name in folders:
        if not index.knows(name) and any(index.knows(inner) for inner in subfolders(root / name)):
            return f" The classes are folders of {str(root / name)!r}: give it as `root`."
    return ""


def match_folders(folders: Sequence[str], names: Sequence[str], aliases: Sequence[str] = ()) -> Mapping[str, int]:
    """Class index of each folder, by the names of the classes or their aliases.

    Raises:
        ValueError: a folder belongs to no class, or two folders to one.
    """
    index = ClassIndex(names, aliases)
    target: dict[str, int] = {}
    for folder in folders:
        try:
            number = index(folder)
        except ValueError as fault:
            raise ValueError(f"The name of a folder, {fault}") from None
        if number in target.values():
            raise ValueError(f"The folder {folder!r} is the second one of the class {names[number]!r}.")
        target[folder] = number
    return target
