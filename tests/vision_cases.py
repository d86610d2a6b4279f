"""Tiny networks for boxes, regions and texts, made by hand so that the right answer is known; configs name them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CELL = 8  # pixels


class ColorDetector(nn.Module):
    """A dense detector of cells of 8 x 8 pixels: class 0 is red, class 1 blue, and each box is its cell.

    The logit of a class is 8 times how much its color exceeds the others in the cell, minus 4. So the only pixels that
    a prediction depends on are those in its box.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 2, CELL, CELL, bias=False)
        self.relu = nn.ReLU()
        weight = torch.tensor([[1.0, -0.5, -0.5], [-0.5, -0.5, 1.0]])
        with torch.no_grad():
            self.features.weight.copy_(weight[:, :, None, None].expand(2, 3, CELL, CELL) / CELL**2)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Boxes (B,N,4) and logits (B,N,2)."""
        found = self.relu(self.features(image))
        h, w = found.shape[2:]
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        boxes = torch.stack([x, y, x + 1, y + 1], dim=2).flatten(0, 1).to(image) * CELL
        return {"boxes": boxes.expand(len(image), -1, -1), "logits": 8 * found.flatten(2).transpose(1, 2) - 4}


def squares(*places: tuple[str, int, int]) -> Tensor:
    """(3,32,32): gray, with a colored square in each cell named by color, row and column."""
    image = torch.full((3, 32, 32), 0.3)
    for color, row, column in places:
        values = torch.tensor({"red": [1.0, 0.0, 0.0], "blue": [0.0, 0.0, 1.0]}[color])
        image[:, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = values[:, None, None]
    return image


class ColorSegmenter(nn.Module):
    """Scores each pixel by the color of the 3 x 3 around it: class 0 is neither, 1 red, 2 blue."""

    def __init__(self, key: str | None = "out") -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 2, 3, 1, 1, bias=False)
        self.relu = nn.ReLU()
        self.key = key
        weight = torch.tensor([[1.0, -0.5, -0.5], [-0.5, -0.5, 1.0]])
        with torch.no_grad():
            self.features.weight.copy_(weight[:, :, None, None].expand(2, 3, 3, 3) / 9)

    def forward(self, image: Tensor) -> Any:
        """The logits (B,3,H,W) as torchvision's networks return them, or alone."""
        found = self.relu(self.features(image))
        z = torch.cat([torch.full_like(found[:, :1], 2.0), 8 * found], dim=1)
        return z if self.key is None else {self.key: z}


class Embedder(nn.Module):
    """(B,4): sums of pixels in the four quarters of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3, 1, 1)
        self.relu = nn.ReLU()

    def forward(self, image: Tensor) -> Tensor:
        """The embedding."""
        return F.adaptive_avg_pool2d(self.relu(self.features(image)), 1).flatten(1)


def detector() -> nn.Module:
    """See `ColorDetector`."""
    return ColorDetector()


def segmenter() -> nn.Module:
    """See `ColorSegmenter`."""
    return ColorSegmenter()


def embedder() -> nn.Module:
    """See `Embedder`."""
    return seeded(Embedder)


def tiny_open_clip() -> nn.Module:
    """CLIP of open_clip with two layers, for images of 32 x 32."""
    from open_clip.model import CLIP

    vision = {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    return seeded(lambda: CLIP(embed_dim=12, vision_cfg=vision, text_cfg=text))


def seeded(make: Any) -> Any:
    """What `make` makes with the seed 0, without a change of the random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()
