"""How to convert what users pass as images into what is expected: advice for error messages, as sentences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor


def conversion(image: object) -> str:
    """How to turn an object into a floating-point tensor; empty if nothing is known. Begins with a space.

    Example:
        >>> conversion("cat.jpg")
        ' Convert it: classifier.preprocess(image). `optcam_pl.explain` takes a photograph as it is.'
    """
    if isinstance(image, Tensor):
        return " Convert it: image.float() / 255." if not image.is_floating_point() else ""
    if isinstance(image, np.ndarray) and not (image.ndim in (3, 4) and image.shape[-1] in (3, 4)):
        return " Convert it: torch.from_numpy(image).float()."
    if isinstance(image, (list, tuple)):
        return " Stack the images: torch.stack(images)." if image and isinstance(image[0], Tensor) else ""
    if isinstance(image, (str, bytes, Path, np.ndarray, Image.Image)):
        return " Convert it: classifier.preprocess(image). `optcam_pl.explain` takes a photograph as it is."
    return ""


def reshaping(shape: tuple[int, ...], channels: int = 3) -> str:
    """How to bring a tensor of another shape to (B,channels,H,W); empty if nothing is known. Begins with a space.

    Example:
        >>> reshaping((3, 8, 8)), reshaping((2, 8, 8, 3))
        (' The batch dimension is missing: image.unsqueeze(0).', ' Put the channels first: image.permute(0, 3, 1, 2).')
    """
    if len(shape) == 3 and shape[0] == channels:
        return " The batch dimension is missing: image.unsqueeze(0)."
    if len(shape) == 3 and shape[2] == channels:
        return " Put the channels first, and a batch dimension before them: image.permute(2, 0, 1).unsqueeze(0)."
    if len(shape) == 4 and shape[3] == channels:
        return " Put the channels first: image.permute(0, 3, 1, 2)."
    if len(shape) == 4 and channels != 3:
        return f" The network's images have {channels} channels, as its `mean`, `std` or `channels` says."
    if len(shape) == 4 and shape[1] == 1:
        return " A gray image becomes one of three channels by image.expand(-1, 3, -1, -1)."
    if len(shape) == 4 and shape[1] == 4:
        return " Leave the fourth channel out: image[:, :3]."
    return ""


def out_of_range(low: float, high: float) -> str:
    """What pixels outside of [0,1] probably are; empty if nothing is known. Begins with a space.

    Example:
        >>> out_of_range(0.0, 255.0), out_of_range(-2.1, 2.6)
        (' Divide pixels of 0 to 255 by 255.', ' They seem to be normalized already: pass the original pixels.')
    """
    if low >= 0 and 1 < high <= 255:
        return " Divide pixels of 0 to 255 by 255."
    if -10 < low < 0 < high < 10:
        return " They seem to be normalized already: pass the original pixels."
    return ""
