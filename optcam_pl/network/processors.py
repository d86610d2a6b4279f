"""What an image processor of transformers does to images, as settings of a classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SIDE = 64  # pixels of the images with which a processor is tried
_SLACK = 1e-3  # share of a standard deviation by which rounding may change what comes out


def processor_settings(processor: Any) -> dict[str, Any]:
    """The preprocessing of an image processor, tried on images of one color: its settings alone do not say all.

    Some divide by the standard deviation twice (EfficientNet's `include_top`), some state a mean that they do not use.

    Args:
        processor: an image processor of transformers.

    Returns:
        The fields `mean`, `std`, `input_size`, `interpolation`, `crop_fraction`.

    Raises:
        ValueError: it turns the channels round.
    """
    stated: Mapping[str, Any] = processor.to_dict()
    resized = _sides(stated["size"])
    size = _sides(stated["crop_size"]) if stated.get("do_center_crop") else resized
    mean, std = _normalization(processor, stated)
    return {
        "mean": mean,
        "std": std,
        "input_size": size,
        "interpolation": "bilinear" if stated.get("resample") == 2 else "bicubic",  # Pillow's numbers
        "crop_fraction": stated.get("crop_pct") or min(1.0, size[0] / resized[0]),
    }


def _normalization(processor: Any, stated: Mapping[str, Any]) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of pixels in [0,1]: as stated, where these are what the processor does."""
    black, white, red = (_result(processor, color) for color in ((0, 0, 0), (255, 255, 255), (255, 0, 0)))
    if int((red - black).argmax()) != 0:
        raise ValueError(
            f"Expected a network that takes red, green and blue in this order, but its {type(processor).__name__} "
            "turns the channels round. Hand over the network with a layer in front that does so: "
            "Classifier(torch.nn.Sequential(Flip(), network), mean=0, std=1), where Flip's forward is image.flip(1)."
        )
    mean, std = stated.get("image_mean"), stated.get("image_std")
    if stated.get("do_normalize") and mean is not None and std is not None:
        lowest, highest = (((level - torch.tensor(mean)) / torch.tensor(std)).float() for level in (0.0, 1.0))
        if bool(torch.stack([lowest - black, highest - white]).abs().max() < _SLACK):
            return mean, std
    std = 1 / (white - black)
    return [round(value, 6) + 0.0 for value in (-black * std).tolist()], [round(value, 6) for value in std.tolist()]


def _result(processor: Any, color: Sequence[int]) -> Tensor:
    """(3,) what becomes of a color."""
    image = np.full((_SIDE, _SIDE, 3), color, dtype=np.uint8)
    pixels: Tensor = processor(images=[image], return_tensors="pt")["pixel_values"]
    return pixels[0, :, pixels.shape[2] // 2, pixels.shape[3] // 2].float()


def _sides(size: Mapping[str, int]) -> tuple[int, int]:
    """(H,W) from the size in transformers' processors: height and width, or the shorter side."""
    edge = size.get("shortest_edge")
    return (edge, edge) if edge else (size["height"], size["width"])
