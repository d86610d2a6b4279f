"""Small pictures of a run's images and maps, for the report page.

At most some hundred images have them, whatever the dataset's size, and the same ones in every run on a dataset.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from optcam_pl.runs.files import RunFolderError
from optcam_pl.runs.tensors import load_tensors, save_tensors

MOST = 500
"""The maximum number of images of a run that have thumbnails, about 12 kB each."""
_PHOTO, _MAP = 176, 64  # pixels of the longer side
_QUALITY = 80


class Thumbnail(NamedTuple):
    """A small picture of an image and of its map.

    Attributes:
        jpeg: the image, a JPEG file.
        saliency: (h,w) uint8, the map times 255.
    """

    jpeg: bytes
    saliency: Tensor


def chosen(index: int, images: int, most: int = MOST) -> bool:
    """Whether an image has a thumbnail: all do in small datasets, otherwise `most` that are spread evenly.

    >>> [index for index in range(10) if chosen(index, 10, most=4)]
    [0, 3, 5, 8]
    """
    return images <= most or (index * most) % images < most


def save_thumbnails(run_dir: Path, block: int, indices: Sequence[int], images: Tensor, maps: Tensor) -> None:
    """Write the thumbnails of a block's images.

    Args:
        run_dir: the run's folder.
        block: number of the block in the dataset.
        indices: of the n images in the dataset.
        images: (n,3,H,W) in [0,1].
        maps: (n,1,H,W) in [0,1].

    Raises:
        RunFolderError: the disk is full or the folder cannot be written.
    """
    save_small(run_dir, block, indices, *small(images, maps))


def small(images: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """The images (n,3,h,w) and maps (n,h,w) of thumbnails, uint8 on the CPU; arguments as of `save_thumbnails`."""
    return _small(images, _PHOTO), _small(maps, _MAP)[:, 0]


def save_small(run_dir: Path, block: int, indices: Sequence[int], images: Tensor, maps: Tensor) -> None:
    """Write what `small` has made; see `save_thumbnails`."""
    files = [_jpeg(image) for image in images]
    save_tensors(
        run_dir / "thumbnails" / f"b{block:06d}.safetensors",
        {
            "index": torch.tensor(indices),
            "maps": maps,
            "jpeg": torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8),
            "length": torch.tensor([len(file) for file in files]),
        },
    )


def read_thumbnails(run_dir: Path) -> dict[int, Thumbnail]:
    """A run's thumbnails by the index of the image; empty if it has none.

    Raises:
        RunFolderError: a file is damaged.
    """
    found: dict[int, Thumbnail] = {}
    for path in sorted((run_dir / "thumbnails").glob("b*.safetensors")):
        tensors, _ = load_tensors(path)
        try:
            data, start = tensors["jpeg"].numpy().tobytes(), 0
            for i, length in enumerate(tensors["length"].tolist()):
                found[int(tensors["index"][i])] = Thumbnail(data[start : start + length], tensors["maps"][i])
                start += length
        except (KeyError, IndexError) as error:
            raise RunFolderError(f"Cannot read {path}: it does not hold thumbnails ({error}).") from error
    return found


def _small(images: Tensor, side: int) -> Tensor:
    """(n,K,H,W) in [0,1] -> uint8 of at most `side` pixels, on the CPU."""
    images = images.detach().float()
    factor = side / max(images.shape[2:])
    if factor < 1:
        size = [max(1, round(length * factor)) for length in images.shape[2:]]
        images = F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
    return images.clamp(0, 1).mul(255).round().byte().cpu()


def _jpeg(image: Tensor) -> bytes:
    data = io.BytesIO()
    pixels = image.numpy().transpose(1, 2, 0)  # see `figures.picture` for why NumPy copies it
    Image.fromarray(np.ascontiguousarray(pixels)).save(data, "JPEG", quality=_QUALITY)
    return data.getvalue()
