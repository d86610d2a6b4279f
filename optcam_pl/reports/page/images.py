"""The page's gallery: what is known of each image, and small pictures of its maps by every run."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from optcam_pl.figures import photo_overlay
from optcam_pl.reports.summary import Run
from optcam_pl.runs.files import RunFolderError
from optcam_pl.runs.rows import Row
from optcam_pl.runs.thumbnails import Thumbnail, read_thumbnails

_PANEL = 176  # pixels: the height of a panel that stands in place of a thumbnail

Put: TypeAlias = Callable[[str, bytes], str]
"""Keeps a JPEG under a name, and returns the address at which the page finds it."""

_Key = tuple[str, str]
"""Name of the dataset and id of the image: two datasets may have images of one name."""


class Gallery:
    """The images that the page shows.

    Args:
        runs: the runs.
        limit: the maximum number of images; they are spread evenly over the order of the dataset.
    """

    def __init__(self, runs: Sequence[Run], limit: int) -> None:
        self.runs = runs
        self.rows: list[dict[_Key, Row]] = [{_key(run, row.id): row for row in run.usable} for run in runs]
        self.thumbnails = [self._by_id(run) for run in runs]
        self.panels = [{} if thumbs else _panels(run) for run, thumbs in zip(runs, self.thumbnails, strict=True)]
        pictured = set().union(*self.thumbnails, *self.panels)
        keys = list(dict.fromkeys(key for rows in self.rows for key in rows if key in pictured))
        self.found = len(keys)
        self.keys = keys if len(keys) <= limit else [keys[k * len(keys) // limit] for k in range(limit)]

    @property
    def without(self) -> list[Run]:
        """The runs that have stored no pictures."""
        pictured = zip(self.runs, self.thumbnails, self.panels, strict=True)
        return [run for run, thumbnails, panels in pictured if not thumbnails and not panels]

    def images(self, put: Put) -> list[dict[str, Any]]:
        """What the page has to know of each image; its pictures are put where the page finds them.

        Raises:
            RunFolderError: a picture cannot be read or written.
        """
        return [self._image(number, key, put) for number, key in enumerate(self.keys)]

    @staticmethod
    def _by_id(run: Run) -> dict[_Key, Thumbnail]:
        names = {row.index: _key(run, row.id) for row in run.usable}
        return {names[index]: thumb for index, thumb in read_thumbnails(Path(run.path)).items() if index in names}

    def _image(self, number: int, key: _Key, put: Put) -> dict[str, Any]:
        thumbs = [found.get(key) for found in self.thumbnails]
        first = next((thumb for thumb in thumbs if thumb is not None), None)
        name = f"{number:04d}"
        photo = None if first is None else put(f"{name}.jpg", first.jpeg)
        entries = [self._of_run(r, key, f"{name}-{r}.jpg", put) for r in range(len(self.runs))]
        return {
            "id": key[1],
            "photo": photo,
            "runs": entries,
            "disagreement": disagreement([thumb.saliency for thumb in thumbs if thumb is not None]),
        }

    def _of_run(self, r: int, key: _Key, name: str, put: Put) -> dict[str, Any] | None:
        row, thumb, panel = self.rows[r].get(key), self.thumbnails[r].get(key), self.panels[r].get(key)
        if row is None:
            return None
        entry = {fact: getattr(row, fact) for fact in ("target", "predicted", "p", "o")}
        entry |= {"scores": {metric: score for metric, score in row.scores.items() if isinstance(score, float)}}
        if row.status != "ok":
            entry["reason"] = row.reason
        if thumb is not None:
            entry["map"] = put(name, _overlay(thumb))
        elif panel is not None:
            entry["map"] = put(name, _panel(panel))
        return entry


def disagreement(maps: Sequence[Tensor]) -> float | None:
    """How much maps of an image differ: 1 minus the mean correlation of their pairs, in [0,2]; None without a pair.

    >>> import torch
    >>> one, other = torch.tensor([[0, 9]]), torch.tensor([[9, 0]])
    >>> disagreement([one, one, one]), disagreement([one, other]), disagreement([one])
    (0.0, 2.0, None)
    """
    usable = [m.double().flatten() for m in maps if m.shape == maps[0].shape and m.double().std() > 0]
    if len(usable) < 2:
        return None
    unit = [(m - m.mean()) / (m - m.mean()).norm() for m in usable]
    pairs = [float(a @ b) for a, b in combinations(unit, 2)]
    return max(0.0, round(1 - sum(pairs) / len(pairs), 6))


def _overlay(thumb: Thumbnail) -> bytes:
    with Image.open(io.BytesIO(thumb.jpeg)) as opened:
        photo = np.asarray(opened.convert("RGB"))
    small = Image.fromarray(thumb.saliency.numpy()).resize((photo.shape[1], photo.shape[0]), Image.Resampling.BILINEAR)
    values: NDArray[np.float32] = np.array(small, dtype=np.float32) / np.float32(255)
    return _encoded(Image.fromarray(photo_overlay(photo, values)))


def _key(run: Run, image_id: str) -> _Key:
    return run.manifest["data"], image_id


def _panels(run: Run) -> dict[_Key, Path]:
    """The panel that `MapWriter` wrote of each image, only files inside the run's own folder."""
    folder, found = Path(run.path) / "overlays", {}
    for index in sorted(folder.glob("index*.json")):
        try:
            names: Mapping[str, Any] = dict(json.loads(index.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise RunFolderError(f"Cannot read {index}: {error}.") from error
        for image_id, name in names.items():
            if isinstance(name, str) and Path(name).name == name and (folder / name).is_file():
                found[_key(run, image_id)] = folder / name
    return found


def _panel(path: Path) -> bytes:
    try:
        with Image.open(path) as opened:
            panel = opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise RunFolderError(f"Cannot read {path}: {error}.") from error
    panel.thumbnail((8 * _PANEL, _PANEL))
    return _encoded(panel)


def into(folder: Path) -> Put:
    """Write pictures into a folder that lies beside the page, without waiting for the disk: a page that a crash has cut
    short is made again.

    Raises:
        RunFolderError: the folder cannot be made, or a picture cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"Cannot write {folder}: {error.strerror}.") from error

    def put(name: str, jpeg: bytes) -> str:
        try:
            (folder / name).write_bytes(jpeg)
        except OSError as error:
            raise RunFolderError(f"Cannot write {folder / name}: {error.strerror}.") from error
        return f"{folder.name}/{name}"

    return put


def inside(name: str, jpeg: bytes) -> str:
    """Keep a picture in the page itself."""
    del name
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def _encoded(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=80)
    return data.getvalue()
