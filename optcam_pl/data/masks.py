"""Masks of objects: from whatever image they are stored in, and checked against the image that they belong to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

_TOLERANCE = 0.02  # of the aspect ratio: a mask of another resolution is rounded to whole pixels


def object_mask(stored: Image.Image, foreground: Sequence[int] | None = None) -> Image.Image:
    """A gray image that is 255 on the object and 0 elsewhere.

    Values are taken as they are stored: palette indices are classes, the palette's colors are not. Of a color image
    each pixel has its largest channel; an alpha channel is no part of it.

    Args:
        stored: the mask's image, of any mode.
        foreground: values that mean the object; None for all but 0.

    Example:
        >>> mask = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
        >>> mask.putpixel((1, 0), (0, 0, 1, 255))
        >>> np.asarray(object_mask(mask)).tolist()
        [[0, 255]]
    """
    values = np.asarray(stored)
    if values.ndim == 3:
        colors = values[..., :-1] if stored.mode in ("RGBA", "LA", "PA", "RGBa", "La") else values
        values = colors.max(2)
    shown = values != 0 if foreground is None else np.isin(values, foreground)
    return Image.fromarray(shown.astype(np.uint8) * 255)


def check_mask_size(mask: tuple[int, int], image: tuple[int, int]) -> None:
    """Check that a mask can be the one of an image: it may have another resolution, but not another shape.

    Args:
        mask: width and height of the mask.
        image: those of the image.

    Raises:
        ValueError: their aspect ratios differ by more than 2 %.

    Example:
        >>> check_mask_size((50, 25), (100, 50))
        >>> check_mask_size((50, 100), (100, 50))
        Traceback (most recent call last):
        ValueError: its mask has 50 x 100 pixels, but it has 100 x 50
    """
    (w, h), (mask_w, mask_h) = image, mask
    if abs(w * mask_h - h * mask_w) > _TOLERANCE * w * mask_h:
        raise ValueError(f"its mask has {mask_w} x {mask_h} pixels, but it has {w} x {h}")
