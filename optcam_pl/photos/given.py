"""Photographs as people have them: Pillow images, files, bytes, arrays and tensors."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from optcam_pl.photos.advice import out_of_range
from optcam_pl.photos.decode import as_rgb, read_image
from optcam_pl.photos.preprocessing import Preprocessing

OnePhoto: TypeAlias = "Image.Image | str | os.PathLike[str] | bytes | NDArray[Any] | Tensor"
AnyPhoto: TypeAlias = "OnePhoto | Sequence[OnePhoto]"
"""One photograph or several; the first dimension of a tensor (B,3,H,W) or an array (B,H,W,3) counts photographs."""

_SLACK = 1e-4  # resampling in float32 may leave [0,1] by rounding
_LUMA = (0.299, 0.587, 0.114)  # shares of red, green and blue in Pillow's gray
_KINDS = (
    "a PIL image, a path, the bytes of an image file, an array (H,W,3) of uint8 or of floats in [0, 1], a tensor "
    "(3,H,W), or a list of these"
)


@dataclass(frozen=True)
class Photo:
    """A photograph, and the part of it that a network sees.

    Attributes:
        image: the whole photograph, upright, RGB.
        region: (left, top, right, bottom) of the part, in the photograph's pixels.
        name: its file's name, or "".
    """

    image: Image.Image = field(repr=False)
    region: tuple[float, float, float, float]
    name: str = ""

    @property
    def outside(self) -> float:
        """The share of the photograph, in [0,1), that the network does not see.

        >>> Photo(Image.new("RGB", (200, 100)), (50, 0, 150, 100)).outside
        0.5
        """
        left, top, right, bottom = self.region
        width, height = self.image.size
        return 1 - (right - left) * (bottom - top) / (width * height)

    def paste(self, saliency: Tensor) -> NDArray[np.float32]:
        """The map of the part, (H,W), at the photograph's resolution, (height,width); NaN outside of the part.

        Bilinear, with pixels as areas, as the map was made from the feature grid.
        """
        left, top, right, bottom = self.region
        height, width = saliency.shape[-2:]
        values = saliency.detach().float().cpu().numpy().reshape(height, width)
        scale_x, scale_y = width / (right - left), height / (bottom - top)
        back = (scale_x, 0, -left * scale_x, 0, scale_y, -top * scale_y)
        drawn = Image.fromarray(values).transform(
            self.image.size, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR, fillcolor=float("nan")
        )
        return np.array(drawn)

    def boxes(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Boxes (n,4) xyxy in the pixels of the part's map of `size` (H,W), in the pixels of the photograph.

        >>> photo = Photo(Image.new("RGB", (200, 100)), (50, 0, 150, 100))
        >>> photo.boxes(torch.tensor([[1.0, 1.0, 2.0, 2.0]]), (2, 2)).tolist()
        [[100.0, 50.0, 150.0, 100.0]]
        """
        left, top, right, bottom = self.region
        scale = boxes.new_tensor([(right - left) / size[1], (bottom - top) / size[0]] * 2)
        return boxes * scale + boxes.new_tensor([left, top] * 2)


def prepare(
    photo: AnyPhoto, preprocessing: Preprocessing, channels: int = 3, rgb: Sequence[int] | None = None
) -> tuple[Tensor, list[Photo]]:
    """Read photographs and resize them.

    Args:
        photo: one or several; see `AnyPhoto`. For `channels` other than 3, tensors have that many, (channels,H,W), and
            so have arrays, (H,W,channels); for one channel, photographs become gray.
        preprocessing: how they are resized.
        channels: of the network's images.
        rgb: the three channels that are shown as red, green and blue; None: the first three.

    Returns:
        (B,channels,H,W) float32 in [0,1], on the CPU, and the B photographs.

    Raises:
        TypeError: it is nothing that a photograph can be read from.
        ValueError: shape or pixels are not those of a photograph.
        ImageReadError: a file cannot be read.
    """
    images, photos = [], []
    for one in _each(photo):
        image = _read(one) if channels == 3 else _read_other(one, channels)
        pixels, size = preprocessing(image)[:channels], _size(image)
        images.append(pixels)
        photos.append(Photo(_shown(image, rgb), preprocessing.region(size), _name(one)))
    if not images:
        raise ValueError("Expected `photo` to be one photograph or several, but got an empty list.")
    return torch.stack(images), photos


def _each(photo: Any) -> Sequence[Any]:
    """The photographs one by one."""
    several = isinstance(photo, (Tensor, np.ndarray)) and photo.ndim == 4
    return list(photo) if several or isinstance(photo, (list, tuple)) else [photo]


def _read(photo: Any) -> Image.Image | Tensor:
    """An RGB image, or pixels (3,h,w) in [0,1] where they come as floats."""
    if isinstance(photo, Image.Image):
        return as_rgb(photo)
    if isinstance(photo, np.ndarray):
        return _of_array(photo)
    if isinstance(photo, Tensor):
        return _of_tensor(photo)
    if isinstance(photo, (bytearray, memoryview)):
        photo = bytes(photo)
    if isinstance(photo, str) and re.match(r"https?://", photo):
        raise ValueError(
            f"Expected `photo` to be a file, but got the address {photo!r}. Download it first, and pass the path or "
            "the bytes."
        )
    if isinstance(photo, (str, os.PathLike, bytes)):
        return read_image(photo if isinstance(photo, bytes) else os.path.expanduser(photo))  # noqa: PTH111
    raise TypeError(f"Expected `photo` to be {_KINDS}, but got {type(photo).__name__}.")


def _read_other(photo: Any, channels: int) -> Image.Image | Tensor:
    """Pixels (channels,h,w) in [0,1], or for one channel a gray image, which is RGB."""
    if isinstance(photo, np.ndarray) and photo.ndim == 3 and photo.shape[2] == channels and photo.dtype.kind in "iuf":
        photo = torch.from_numpy(np.moveaxis(photo, 2, 0).copy())
    if isinstance(photo, Tensor) and photo.ndim == 3 and len(photo) == channels and photo.numel():
        return _pixels(photo.detach().cpu())
    if channels != 1:
        what = tuple(photo.shape) if isinstance(photo, (Tensor, np.ndarray)) else type(photo).__name__
        raise ValueError(
            f"Expected `photo` to have the {channels} channels of the network's images, as a tensor ({channels},H,W) "
            f"or an array (H,W,{channels}), but got {what}."
        )
    image = _read(photo)
    if isinstance(image, Image.Image):
        return image.convert("L").convert("RGB")
    return (image * image.new_tensor(_LUMA).view(3, 1, 1)).sum(0, keepdim=True)


def _pixels(tensor: Tensor) -> Tensor:
    """A tensor of any number of channels as floats in [0,1]."""
    if tensor.dtype == torch.uint8:
        return tensor.float() / 255
    if not tensor.is_floating_point():
        _refuse_integers("tensor", tensor.dtype)
    return _checked(tensor.float())


def _of_array(array: NDArray[Any]) -> Image.Image | Tensor:
    shape = array.shape
    if not (array.ndim in (2, 3) and (array.ndim == 2 or shape[2] in (1, 3, 4)) and array.size):
        first = array.ndim == 3 and shape[0] in (1, 3)
        advice = " Put the channels last: np.moveaxis(photo, 0, -1)." if first else ""
        raise ValueError(f"Expected `photo` as an array to have shape (H,W,3), but got {shape}.{advice}")
    array = array[..., 0] if array.ndim == 3 and shape[2] == 1 else array
    if array.dtype == np.uint8:
        return as_rgb(Image.fromarray(np.ascontiguousarray(array)))
    if array.dtype.kind != "f":
        _refuse_integers("array", array.dtype)
    if array.ndim == 3 and shape[2] == 4:
        raise ValueError(
            f"Expected `photo` as an array of floats to have shape (H,W,3), but got {shape}. Leave the fourth channel "
            "out: photo[..., :3]."
        )
    gray = array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2)
    return _checked(torch.from_numpy(np.ascontiguousarray(np.moveaxis(gray, 2, 0), dtype=np.float32)))


def _of_tensor(tensor: Tensor) -> Image.Image | Tensor:
    tensor = tensor.detach().cpu()
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3) or not tensor.numel():
        last = tensor.ndim == 3 and tensor.shape[2] == 3
        advice = " Put the channels first: photo.permute(2, 0, 1)." if last else ""
        raise ValueError(
            f"Expected `photo` as a tensor to have shape (3,H,W) or (B,3,H,W), but got {tuple(tensor.shape)}.{advice}"
        )
    tensor = tensor.expand(3, -1, -1)
    if tensor.dtype == torch.uint8:
        return Image.fromarray(tensor.permute(1, 2, 0).contiguous().numpy())
    if not tensor.is_floating_point():
        _refuse_integers("tensor", tensor.dtype)
    return _checked(tensor.float())


def _refuse_integers(kind: str, dtype: object) -> None:
    raise ValueError(
        f"Expected `photo` as {'an' if kind == 'array' else 'a'} {kind} to hold uint8 from 0 to 255 or floats in "
        f"[0, 1], but got {dtype}. "
        f"Convert it: photo{'.astype(np.uint8)' if kind == 'array' else '.to(torch.uint8)'}, if it is from 0 to 255."
    )


def _checked(pixels: Tensor) -> Tensor:
    low, high = (float(value) for value in torch.aminmax(pixels))
    if low >= -_SLACK and high <= 1 + _SLACK:
        return pixels.clamp(0, 1)
    if math.isnan(low):
        raise ValueError("Expected `photo` to have finite pixels in [0, 1], but got NaN.")
    raise ValueError(
        f"Expected `photo` to have pixels in [0, 1], before mean/std normalization (the classifier does that itself), "
        f"but got values from {low:.4g} to {high:.4g}.{out_of_range(low, high)}"
    )


def _size(image: Image.Image | Tensor) -> tuple[int, int]:
    """Width and height."""
    return image.size if isinstance(image, Image.Image) else (image.shape[2], image.shape[1])


def _shown(image: Image.Image | Tensor, rgb: Sequence[int] | None = None) -> Image.Image:
    """An image to look at: floats are rounded to 8 bits; one channel or two are gray, of more three are shown."""
    if isinstance(image, Image.Image):
        return image
    picture = image[list(rgb)] if rgb else image[:3] if len(image) >= 3 else image.mean(0, keepdim=True)
    return Image.fromarray(picture.expand(3, -1, -1).mul(255).round().byte().permute(1, 2, 0).contiguous().numpy())


def _name(photo: Any) -> str:
    if isinstance(photo, Image.Image):
        photo = getattr(photo, "filename", "")
    return os.path.basename(photo) if isinstance(photo, (str, os.PathLike)) else ""  # noqa: PTH119
