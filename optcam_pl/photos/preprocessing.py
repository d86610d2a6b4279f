"""From a photograph of any size to the network's input, and back to where its part lay in the photograph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Resize = Literal["stretch", "crop"]
Interpolation = Literal["bilinear", "bicubic"]

_ELONGATED = 16  # an image with more than this many times the result's pixels is not resized as a whole
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Preprocessing:
    """Resizes images to one size. The pixels stay in [0, 1]: mean and standard deviation belong to the network.

    ``resize="stretch"`` resizes to H x W directly, as in the paper. ``resize="crop"`` is the other common way: the
    image is resized until its shorter side is ``size / crop_fraction``, and the H x W in the middle is kept. It gives
    the same pixels as torchvision's ``Resize`` and ``CenterCrop`` on the same Pillow image. For a very elongated image
    only the part that is kept is ever computed, which may change a pixel by the rounding of the two passes.

    Both resample with Pillow on 8-bit channels, antialiased. Bicubic overshoot is clipped there, so that the result
    always lies in [0, 1]. Floating-point pixels are resampled alike, channel by channel, without rounding to 8 bits.

    Args:
        size: height and width of the result in pixels.
        resize: "stretch" or "crop".
        crop_fraction: the crop's share of the shorter side, in (0, 1]; it has no effect with "stretch".
        interpolation: "bilinear" or "bicubic".

    Example:
        >>> image = Image.new("RGB", (400, 200), (255, 0, 51))
        >>> box = torch.tensor([[100.0, 0.0, 200.0, 100.0], [0.0, 0.0, 50.0, 50.0]])
        >>> stretch = Preprocessing(size=(100, 100))
        >>> pixels = stretch(image)
        >>> pixels.shape, [round(v, 2) for v in pixels[:, 0, 0].tolist()]
        (torch.Size([3, 100, 100]), [1.0, 0.0, 0.2])
        >>> stretch.boxes(box, image.size).tolist()
        [[25.0, 0.0, 50.0, 50.0], [0.0, 0.0, 12.5, 25.0]]
        >>> Preprocessing(size=(100, 100), resize="crop", crop_fraction=1.0).boxes(box, image.size).tolist()
        [[0.0, 0.0, 50.0, 50.0]]
    """

    size: tuple[int, int]
    resize: Resize = "stretch"
    crop_fraction: float = 0.875
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        sides = tuple(self.size)
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            raise ValueError(f"Expected `size` to be two positive integers (height, width), but got {self.size!r}.")
        if self.resize not in ("stretch", "crop"):
            raise ValueError(f"Expected `resize` to be 'stretch' or 'crop', but got {self.resize!r}.")
        if self.interpolation not in _FILTERS:
            raise ValueError(f"Expected `interpolation` to be 'bilinear' or 'bicubic', but got {self.interpolation!r}.")
        if not 0 < self.crop_fraction <= 1:
            raise ValueError(f"Expected `crop_fraction` to lie in (0, 1], but got {self.crop_fraction!r}.")

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """Pixels (3,H,W) float32 in [0,1] of an RGB image, or of pixels (3,h,w) in [0,1]."""
        if isinstance(image, Tensor):
            return self._of_pixels(image)
        pixels = np.array(self._resample(image, _FILTERS[self.interpolation]))
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div_(255)

    def _of_pixels(self, pixels: Tensor) -> Tensor:
        if self._plan((pixels.shape[2], pixels.shape[1])) == (pixels.shape[2], pixels.shape[1], 0, 0):
            return pixels.float()  # of this size already
        channels = [Image.fromarray(channel.float().cpu().numpy()) for channel in pixels]
        resized = [np.array(self._resample(channel, _FILTERS[self.interpolation])) for channel in channels]
        return torch.from_numpy(np.stack(resized)).clamp_(0, 1)

    def mask(self, mask: Image.Image) -> Tensor:
        """Mask (H,W) bool, true where the nearest pixel of a mask image (gray, as large as the image) is not 0."""
        return torch.from_numpy(np.array(self._resample(mask.convert("L"), Image.Resampling.NEAREST)) > 0)

    def boxes(self, boxes: Tensor | Sequence[Sequence[float]], image_size: tuple[int, int]) -> Tensor:
        """Apply the same resize and crop to boxes, in float64.

        Args:
            boxes: (n,4) xyxy in the pixels of the image, whose corners are (0,0) and (width,height).
            image_size: width and height of the image, as Pillow gives them.

        Returns:
            (m,4) float32 xyxy in the pixels of the result, clipped to it; boxes without any remaining area are dropped.
        """
        H, W = self.size
        left, top, right, bottom = self.region(image_size)
        old = torch.as_tensor(boxes, dtype=torch.float64).reshape(-1, 4)
        offset = torch.tensor([left, top, left, top], dtype=torch.float64)
        extent = torch.tensor([right - left, bottom - top] * 2, dtype=torch.float64)
        limit = torch.tensor([W, H, W, H], dtype=torch.float64)
        new = ((old - offset) * limit / extent).clamp(min=torch.zeros(4, dtype=torch.float64), max=limit)
        kept = (new[:, 2] > new[:, 0]) & (new[:, 3] > new[:, 1])
        return new[kept].float()

    def region(self, image_size: tuple[int, int]) -> tuple[float, float, float, float]:
        """The part (left, top, right, bottom) of an image of (width, height) that becomes the result, in its pixels."""
        w, h = image_size
        new_w, new_h, left, top = self._plan(image_size)
        scale_x, scale_y = w / new_w, h / new_h
        right, bottom = left + self.size[1], top + self.size[0]
        return left * scale_x, top * scale_y, min(right * scale_x, w), min(bottom * scale_y, h)

    def _plan(self, image_size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Width and height to resize the whole image to, then left and top of the crop; rounded as torchvision does."""
        H, W = self.size
        if self.resize == "stretch":
            return W, H, 0, 0
        w, h = image_size
        cover_h, cover_w = int(H / self.crop_fraction), int(W / self.crop_fraction)
        if cover_w * h >= cover_h * w:
            new_w, new_h = cover_w, int(cover_w * h / w)
        else:
            new_w, new_h = int(cover_h * w / h), cover_h
        return new_w, new_h, round((new_w - W) / 2), round((new_h - H) / 2)

    def _resample(self, image: Image.Image, method: Image.Resampling) -> Image.Image:
        H, W = self.size
        new_w, new_h, left, top = self._plan(image.size)
        if new_w * new_h > _ELONGATED * H * W:
            return image.resize((W, H), method, box=self.region(image.size))
        return image.resize((new_w, new_h), method).crop((left, top, left + W, top + H))
