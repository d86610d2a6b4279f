"""Searches folders, and stores results that were costly to find beside the data."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optcam_pl.checks import expanded_path
from optcam_pl.photos.decode import IMAGE_SUFFIXES

_FOLDER = ".optcam_pl"
# Names that file managers, network drives and archives give to thumbnails, trash and copies; all in lower case.
_FOREIGN = frozenset(
    {
        *("__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "recycler", "lost+found", "__pycache__"),
        "system volume information",
    }
)


def list_files(root: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES, *, outside: bool = False) -> list[str]:
    """POSIX paths, relative to `root`, of the files below it with one of these endings, sorted by code point.

    Names for which `hidden` is true are left out.

    Args:
        root: the folder to search.
        suffixes: endings in lower case, with their dot.
        outside: whether symbolic links may lead out of `root`.

    Raises:
        ValueError: a symbolic link leads out of `root`, or round in a circle.
        FileNotFoundError: there is no folder `root`.
    """
    real = os.path.realpath(existing_folder(root))
    found: list[str] = []
    stack: list[tuple[str, tuple[str, ...]]] = [("", (real,))]  # folder below root, its real path and those above
    while stack:
        below, chain = stack.pop()
        with os.scandir(f"{real}{os.sep}{below}") as items:
            for item in items:
                if hidden(item.name):
                    continue
                target = f"{chain[-1]}{os.sep}{item.name}"
                if item.is_symlink():
                    target = check_inside(Path(item.path), Path(real), outside)
                if _is_folder(item):
                    if target in chain:
                        raise _circle(item.path)
                    stack.append((f"{below}{item.name}/", (*chain, target)))
                elif suffix(item.name) in suffixes:
                    found.append(f"{below}{item.name}")
    return sorted(found)


def subfolders(root: Path) -> list[str]:
    """Sorted names of the folders in `root`, without those for which `hidden` is true."""
    with os.scandir(root) as items:
        return sorted(item.name for item in items if not hidden(item.name) and _is_folder(item))


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise _circle(item.path) from error


def _circle(path: str) -> ValueError:
    return ValueError(f"The symbolic link {path!r} leads round in a circle.")


def hidden(name: str) -> bool:
    """Whether a file or folder is not the user's: its name begins with a dot, or is one that file managers use.

    Example:
        >>> [hidden(name) for name in ("._photo.jpg", "__MACOSX", "@eaDir", "cats", "lost+found")]
        [True, True, True, False, True]
    """
    return name.startswith(".") or name.casefold() in _FOREIGN


def holds_image(folder: Path, *, directly: bool = False) -> bool:
    """Whether there is an image below a folder, or `directly` in it; the search stops at the first one."""
    seen: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        folders[:] = [] if directly or real in seen else [name for name in folders if not hidden(name)]
        seen.add(real)
        if any(suffix(name) in IMAGE_SUFFIXES and not hidden(name) for name in files):
            return True
    return False


def suffix(name: str) -> str:
    """The ending of a file's name in lower case with its dot; "" if there is none.

    Example:
        >>> suffix("a.b.JPEG"), suffix("README")
        ('.jpeg', '')
    """
    _, dot, ending = name.rpartition(".")
    return (dot + ending.lower()) if dot else ""


def stem(file: str) -> str:
    """The name of a file without its folders and its ending.

    Example:
        >>> stem("val/a.b.JPEG"), stem("README")
        ('a.b', 'README')
    """
    name = file.rpartition("/")[2]
    return name.rpartition(".")[0] or name


def existing_folder(path: str | os.PathLike[str], option: str = "root") -> Path:
    """The path of a folder, with ~ and variables expanded.

    Args:
        path: the folder.
        option: the argument that names it, for the message.

    Raises:
        FileNotFoundError: nothing exists there.
        NotADirectoryError: it is a file.
    """
    folder = expanded_path(path)
    if not folder.exists():
        where = _shown(path, folder)
        raise FileNotFoundError(f"Expected `{option}` to be a folder, but there is no folder {str(path)!r}{where}.")
    if not folder.is_dir():
        raise NotADirectoryError(f"Expected `{option}` to be a folder, but {str(path)!r} is a file.")
    return folder


def _shown(path: str | os.PathLike[str], folder: Path) -> str:
    return "" if Path(path) == folder else f" ({str(folder)!r})"


def check_inside(path: Path, root: Path, outside: bool) -> str:
    """The real path of `path`, which must lie below `root` unless `outside` is true.

    Raises:
        ValueError: it leads out of `root`.
    """
    target = os.path.realpath(path)
    if not outside and not Path(target).is_relative_to(os.path.realpath(root)):
        raise ValueError(
            f"{str(path)!r} leads out of the data's root {str(root)!r} to {target!r}; "
            "`allow_outside: true` permits that."
        )
    return target


def load_json(root: Path, name: str) -> Any:
    """What `store_json` stored for this folder under this name; None if nothing can be read."""
    for folder in _stores(root):
        with contextlib.suppress(OSError, ValueError):
            return json.loads((folder / name).read_bytes())
    return None


def store_json(root: Path, name: str, value: Any) -> None:
    """Store a JSON value in the hidden folder `.optcam_pl` of `root`, or in the user's cache if `root` is read-only.

    The file is written under a temporary name and renamed, so that a reader never sees half of it. If nothing can be
    written, nothing is stored: every value that is stored here can be computed again.
    """
    for folder in _stores(root):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=folder, prefix=name, suffix=".tmp")
            try:
                with os.fdopen(handle, "w", encoding="ascii") as file:
                    json.dump(value, file, separators=(",", ":"))
                Path(temporary).replace(folder / name)
            except OSError:
                Path(temporary).unlink(missing_ok=True)
                raise
            return


def _stores(root: Path) -> Iterator[Path]:
    real = os.path.realpath(root)
    yield Path(real, _FOLDER)
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    except RuntimeError:  # a user without a home folder, as in some containers
        return
    yield Path(cache, "optcam_pl", hashlib.sha256(os.fsencode(real)).hexdigest()[:16])
