"""Images as they lie about: single files, folders, and folders of classes."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from optcam_pl.data.base import Entry, ImageDataModule
from optcam_pl.data.decode import IMAGE_SUFFIXES
from optcam_pl.imagenet import imagenet_names, imagenet_wnids


def list_files(root: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES, *, outside: bool = False) -> list[str]:
    """POSIX paths, relative to `root`, of the files below it with one of these endings, sorted by code point.

    Names that begin with a dot are left out.

    Args:
        root: the folder to search.
        suffixes: endings in lower case, with their dot.
        outside: whether symbolic links may lead out of `root`.

    Raises:
        ValueError: a symbolic link leads out of `root`, or round in a circle.
        FileNotFoundError: there is no folder `root`.
    """
    real = Path(os.path.realpath(_existing_folder(root)))
    found: list[str] = []
    stack: list[tuple[str, tuple[str, ...]]] = [("", (str(real),))]  # folder below root, real paths from root to it
    while stack:
        below, chain = stack.pop()
        with os.scandir(real / below) as items:
            for item in items:
                if item.name.startswith("."):
                    continue
                relative = f"{below}{item.name}"
                target = _follow(item, real, outside) if item.is_symlink() else f"{chain[-1]}{os.sep}{item.name}"
                if item.is_dir():
                    if target in chain:
                        raise ValueError(f"The symbolic link {item.path!r} leads round in a circle.")
                    stack.append((f"{relative}/", (*chain, target)))
                elif _suffix(item.name) in suffixes:
                    found.append(relative)
    return sorted(found)


def _follow(link: os.DirEntry[str], root: Path, outside: bool) -> str:
    target = os.path.realpath(link.path)
    if not outside and not Path(target).is_relative_to(root):
        raise ValueError(
            f"The symbolic link {link.path!r} leads out of the data's root to {target!r}; "
            "`allow_outside: true` permits that."
        )
    return target


def _existing_folder(path: str | os.PathLike[str]) -> Path:
    folder = Path(path).expanduser()
    if not folder.exists():
        raise FileNotFoundError(f"There is no folder {str(path)!r}.")
    if not folder.is_dir():
        raise NotADirectoryError(f"Expected {str(path)!r} to be a folder, but it is a file.")
    return folder


class ImagePaths(ImageDataModule):
    """Any images, without labels: files, folders (searched with what is below them) and patterns such as ``*.jpg``.

    Args:
        paths: one of them or several. A file is read whatever its name ends in; in folders and patterns only files with
            an image's ending count, and none whose name begins with a dot. An image that is named twice is taken once.
        **kwargs: of ImageDataModule.

    Raises:
        FileNotFoundError: a path does not exist or a pattern matches nothing.
    """

    def __init__(self, paths: str | list[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.paths = [paths] if isinstance(paths, str) else list(paths)
        if not self.paths:
            raise ValueError("Expected `paths` to name at least one file or folder, but it is empty.")
        for path in self.paths:
            next(_expand(path), None)  # a wrong path is told at once
        only = Path(self.paths[0]).expanduser().resolve()
        self.name = only.name if len(self.paths) == 1 and only.is_dir() and only.name else "images"

    def looked_for(self) -> str:
        """The endings and the paths."""
        return f"files that end in {', '.join(sorted(IMAGE_SUFFIXES))} in {', '.join(self.paths)}"

    def entries(self) -> list[Entry]:
        """The files in the order of `paths`, sorted within each; the id is the path relative to the common root."""
        found = (os.path.normpath(file.absolute()) for path in self.paths for file in _expand(path))
        files = [Path(file) for file in dict.fromkeys(found)]
        if not files:
            return []
        root = os.path.commonpath([file.parent for file in files])
        return [Entry(file.relative_to(root).as_posix(), str(file)) for file in files]


def _expand(path: str) -> Iterator[Path]:
    """The image files of a file, a folder or a pattern. A name that exists is never taken for a pattern."""
    name = Path(path).expanduser()
    if name.is_dir():
        yield from (name / relative for relative in list_files(name))
    elif name.exists():
        yield name
    else:
        matches = sorted(glob.glob(str(name), recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        if not matches:
            raise FileNotFoundError(f"There is no file or folder {path!r}, and as a pattern it matches nothing.")
        for match in matches:
            if Path(match).is_dir():
                yield from _expand(match)
            elif _suffix(match) in IMAGE_SUFFIXES:
                yield Path(match)


def _suffix(name: str) -> str:
    """The ending of a file's name in lower case with its dot."""
    return "." + name.rpartition(".")[2].lower()


class ImageFolder(ImageDataModule):
    """Folders of images, one for each class.

    Args:
        root: the folder that holds the class folders; images may lie deeper in them.
        classes: what the classes are and how they are numbered. "imagenet": ImageNet's 1000 classes, folders named by
            wnid or by class name, any number of them, so that 500 of the 1000 folders still have ImageNet's indices. A
            text file (one class a line) or a list: folders named by these. None: "imagenet" where every folder is named
            by a wnid of ImageNet, otherwise the sorted names of the folders. Names are compared without regard to case
            or to underscores for spaces.
        allow_outside: whether symbolic links may lead out of `root`.
        **kwargs: of ImageDataModule.

    Raises:
        FileNotFoundError: there is no such folder or class list.
        ValueError: (in `setup`) a folder belongs to no class, or two to one; the nearest names are listed.
    """

    def __init__(
        self, root: str, classes: list[str] | str | None = None, allow_outside: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.root = _existing_folder(root)
        self.name = self.root.resolve().name or self.name
        self.allow_outside = allow_outside
        self._classes = class_list(classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by index."""
        if self._classes is None:
            folders = _subfolders(self.root)
            self._classes = "imagenet" if folders and set(folders) <= set(imagenet_wnids()) else tuple(folders)
        return imagenet_names() if self._classes == "imagenet" else tuple(self._classes)

    def looked_for(self) -> str:
        """Class folders and the endings of images."""
        return f"files that end in {', '.join(sorted(IMAGE_SUFFIXES))} in the class folders of {str(self.root)!r}"

    def entries(self) -> list[Entry]:
        """The images sorted by path, with their folder's class."""
        names = self.class_names
        aliases = imagenet_wnids() if self._classes == "imagenet" else ()
        target = match_folders(_subfolders(self.root), names, aliases)
        files = (file for file in list_files(self.root, outside=self.allow_outside) if "/" in file)
        return [Entry(file, str(self.root / file), target[file.split("/", 1)[0]]) for file in files]


def class_list(classes: Sequence[str] | str | None) -> tuple[str, ...] | str | None:
    """The classes of a list or of a text file, one a line; "imagenet" and None as they are."""
    if classes is None or classes == "imagenet":
        return classes if classes is None else "imagenet"
    if isinstance(classes, (str, os.PathLike)):
        file = Path(classes).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"Expected `classes` to be 'imagenet', a list or a text file; no file {classes!r}.")
        classes = file.read_text(encoding="utf-8-sig").splitlines()
    names = tuple(name.strip() for name in classes)
    repeated = sorted({name for name in names if names.count(name) > 1 or not name})
    if repeated or not names:
        raise ValueError(f"Expected `classes` to be names, each once, but got {repeated or 'none'}.")
    return names


def match_folders(folders: Sequence[str], names: Sequence[str], aliases: Sequence[str] = ()) -> Mapping[str, int]:
    """Class index of each folder.

    Args:
        folders: the folders' names.
        names: the classes' names.
        aliases: the classes' other names (wnids), in the same order.

    Raises:
        ValueError: a folder belongs to no class, or two folders to one.

    Example:
        >>> match_folders(["Great_White_Shark", "n01443537"], imagenet_names(), imagenet_wnids())
        {'Great_White_Shark': 2, 'n01443537': 1}
        >>> match_folders(["tensch"], imagenet_names())
        Traceback (most recent call last):
        ValueError: The folder 'tensch' belongs to none of the 1000 classes; the nearest are 'tench', ...
    """
    known = {_key(name): index for all_names in (aliases, names) for index, name in enumerate(all_names)}
    target: dict[str, int] = {}
    for folder in folders:
        index = known.get(_key(folder))
        if index is None:
            near = get_close_matches(_key(folder), known, n=3, cutoff=0) or list(known)[:3]
            raise ValueError(
                f"The folder {folder!r} belongs to none of the {len(names)} classes; "
                f"the nearest are {', '.join(map(repr, near))}."
            )
        if index in target.values():
            raise ValueError(f"The folder {folder!r} is the second one of the class {names[index]!r}.")
        target[folder] = index
    return target


def _key(name: str) -> str:
    return name.replace("_", " ").casefold()


def _subfolders(root: Path) -> list[str]:
    return sorted(item.name for item in os.scandir(root) if item.is_dir() and not item.name.startswith("."))
