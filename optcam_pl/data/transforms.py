"""Transforms of an image with its boxes and mask, before it is resized to the network's input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from optcam_pl.threads import process_wide


def augmentation(size: tuple[int, int]) -> v2.Transform:
    """The default augmentation of training images: a random crop of at least half of the image, and a flip."""
    return v2.Compose([v2.RandomResizedCrop(size, scale=(0.5, 1.0)), v2.RandomHorizontalFlip()])


def transform_image(
    transform: Callable[..., Any],
    image: Image.Image | Tensor,
    boxes: Sequence[Sequence[float]],
    mask: Image.Image | None,
    seed: tuple[int, ...],
) -> tuple[Image.Image, list[list[float]], Image.Image | None]:
    """Apply a torchvision v2 transform to an image with its boxes and mask.

    Args:
        transform: sees a PIL image and tv_tensors; may return the image as a PIL image or a tensor, of any size.
        image: RGB; floating-point pixels (3,h,w) are rounded to it.
        boxes: (n,4) xyxy in the pixels of the image.
        mask: gray image of the same size, or None.
        seed: seed of a random transform; torch's global random state stays unchanged.

    Returns:
        Image, boxes and mask after the transform.
    """
    photo: Image.Image = v2.functional.to_pil_image(image) if isinstance(image, Tensor) else image
    w, h = photo.size
    drawn = torch.as_tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    parts = [photo, tv_tensors.BoundingBoxes(drawn, format="XYXY", canvas_size=(h, w))]
    if mask is not None:
        parts.append(tv_tensors.Mask(mask.convert("L")))
    with process_wide(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        parts = transform(*parts)
    pictures = [part if isinstance(part, Image.Image) else v2.functional.to_pil_image(part) for part in parts[::2]]
    return pictures[0].convert("RGB"), parts[1].tolist(), pictures[1] if mask is not None else None
