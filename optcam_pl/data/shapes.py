"""A synthetic dataset: textured shapes in textured surroundings, which may or may not reveal the class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from optcam_pl.checks import check_choice, check_positive
from optcam_pl.data.base import ImageDataModule
from optcam_pl.data.batch import Entry, Item, Reader
from optcam_pl.data.folders import Split

Array = NDArray[np.float64]

# Tests for points inside shapes of "radius" 1 around the origin, y pointing down: true inside.
_SHAPES: dict[str, Callable[[Array, Array], NDArray[np.bool_]]] = {
    "disc": lambda x, y: x**2 + y**2 < 0.8,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.8,
    "triangle": lambda x, y: (y < 0.7) & (y > 1.9 * abs(x) - 1),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.28) & (np.maximum(abs(x), abs(y)) < 1),
    "ring": lambda x, y: abs(x**2 + y**2 - 0.65) < 0.35,
    "star": lambda x, y: np.hypot(x, y) < 0.72 + 0.28 * np.cos(5 * np.arctan2(x, -y)),
}
# Patterns in [0,1] over coordinates in pixels, with a period and a random number generator for phases and noise.
_PATTERNS: dict[str, Callable[[Array, Array, float, np.random.Generator], Array]] = {
    "horizontal stripes": lambda x, y, p, rng: _wave(y, p, rng) + 0 * x,
    "vertical stripes": lambda x, y, p, rng: _wave(x, p, rng) + 0 * y,
    "diagonal stripes": lambda x, y, p, rng: _wave((x + y) * 0.7, p, rng),
    "checks": lambda x, y, p, rng: abs(_wave(x, 2 * p, rng) - _wave(y, 2 * p, rng)),
    "dots": lambda x, y, p, rng: ((x % p - p / 2) ** 2 + (y % p - p / 2) ** 2 < p * p / 9).astype(float),
    "grains": lambda x, y, p, rng: rng.random(np.broadcast(x, y).shape),
}
CLASSES = tuple(_SHAPES)
CONTEXTS = tuple(_PATTERNS)


def _wave(x: Array, period: float, rng: np.random.Generator) -> Array:
    return ((x / period + rng.random()) % 1 < 0.5).astype(float)


@dataclass(frozen=True)
class ShapeReader:
    """Draws the image of an entry, whose path is its number; the same seed gives the same image on every machine.

    Args:
        side: side of the image in pixels.
        correlation: probability that the surroundings have the pattern of the class; otherwise their pattern is one of
            all six. Thus 0 means no relation and 1 reveals the class.
        fidelity: probability that the shape is that of the class; otherwise it is one of all six.
        seed: seed of everything random.

    Example:
        >>> item = ShapeReader(side=64)(Entry("train/0", "0", target=1))
        >>> item.image.size, len(item.boxes), item.mask.getbbox() == tuple(item.boxes[0])
        ((64, 64), 1, True)
    """

    side: int = 64
    correlation: float = 0.0
    fidelity: float = 1.0
    seed: int = 0

    def __call__(self, entry: Entry) -> Item:
        """Draw the image, its mask and its box."""
        part = ("train", "val", "test").index(entry.id.split("/")[0])
        rng = np.random.default_rng((self.seed, part, int(entry.path)))
        shape = _with_probability(rng, self.fidelity, entry.target, len(CLASSES))
        context = _with_probability(rng, self.correlation, entry.target, len(CONTEXTS))
        mask = self._place(rng, CLASSES[shape])
        surroundings = self._texture(rng, CONTEXTS[context], saturation=0.35)
        surface = self._texture(rng, CONTEXTS[int(rng.random() * len(CONTEXTS))], saturation=1.0)
        pixels = np.where(mask[..., None], surface, surroundings)
        drawn = Image.fromarray(mask.astype(np.uint8) * 255)
        box = drawn.getbbox() or (0, 0, 0, 0)
        return Item(Image.fromarray(np.rint(255 * pixels).astype(np.uint8)), [box], drawn)

    def _grid(self) -> tuple[Array, Array]:
        at = np.arange(self.side, dtype=np.float64) + 0.5
        return at[None, :], at[:, None]

    def _place(self, rng: np.random.Generator, shape: str) -> NDArray[np.bool_]:
        """Mask (side,side) of a shape that is slightly rotated and takes up a quarter to a half of the side."""
        x, y = self._grid()
        radius = self.side * (0.14 + 0.1 * rng.random())
        center_x, center_y = radius + (self.side - 2 * radius) * rng.random(2)
        angle = (rng.random() - 0.5) * 0.5
        u, v = (x - center_x) / radius, (y - center_y) / radius
        return _SHAPES[shape](u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle))

    def _texture(self, rng: np.random.Generator, pattern: str, saturation: float) -> Array:
        """Pixels (side,side,3) in [0,1]: a pattern between two tones of one random color."""
        x, y = self._grid()
        hue = rng.random(3)
        color = 0.5 + saturation * (hue - hue.mean()) / max(float(np.ptp(hue)), 1e-6)
        value = _PATTERNS[pattern](x, y, self.side * (0.09 + 0.06 * rng.random()), rng)
        pixels: Array = np.clip(color + 0.3 * (value[..., None] - 0.5), 0, 1)
        return pixels


def _with_probability(rng: np.random.Generator, probability: float, value: int, count: int) -> int:
    keep, other = rng.random(2)
    return value if keep < probability else int(other * count)


class Shapes(ImageDataModule):
    """Images of six textured shapes in six kinds of textured surroundings, with exact boxes and masks, made on the fly.

    It tests the whole pipeline offline, and is a controlled case of the paper's argument: if the surroundings reveal
    the class better than the shape does (`correlation` above `fidelity`), a faithful map does not lie on the object.

    Args:
        images: number of test images, and also of validation images.
        train_images: number of training images.
        split: the part to explain and measure on.
        side: side of the images in pixels, and of the network's input unless `size` is given.
        correlation: see ShapeReader.
        fidelity: see ShapeReader.
        data_seed: seed of the drawing.
        size: size of the network's input.
        **kwargs: of ImageDataModule.
    """

    def __init__(
        self,
        images: int = 600,
        train_images: int = 6000,
        *,
        split: Split = "test",
        side: int = 64,
        correlation: float = 0.0,
        fidelity: float = 1.0,
        data_seed: int = 0,
        size: int | tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(size=side if size is None else size, **kwargs)
        check_positive("images", images)
        check_positive("train_images", train_images)
        if side < 16:
            raise ValueError(f"Expected `side` to be at least 16 pixels, but got {side}.")
        for name, share in (("correlation", correlation), ("fidelity", fidelity)):
            if not 0 <= share <= 1:
                raise ValueError(f"Expected `{name}` to lie in [0, 1], but got {share}.")
        check_choice("split", split, Split)
        self.split = split
        self.counts = {"train": train_images, "val": images, "test": images}
        self.drawing = ShapeReader(side, correlation, fidelity, data_seed)
        self.annotations = ("boxes", "masks")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The shapes."""
        return CLASSES

    def looked_for(self) -> str:
        """Never needed, because there is always an image."""
        return "numbers of images"

    def entries(self) -> list[Entry]:
        """The numbers of the images; the classes take turns."""
        return self._of(self.split)

    def training_entries(self, split: Literal["train", "val"]) -> list[Entry]:
        """The numbers of the images of a split."""
        return self._of(split)

    def _of(self, split: Split) -> list[Entry]:
        return [Entry(f"{split}/{i:06}", str(i), i % len(CLASSES)) for i in range(self.counts[split])]

    def reader(self) -> Reader:
        """The reader that draws the images."""
        return self.drawing

    def source(self) -> dict[str, Any]:
        """The settings of the drawing."""
        return asdict(self.drawing)
