"""Images and data modules that several tests of the data share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from optcam_pl.data import Entry, ImageDataModule


class Listed(ImageDataModule):
    """Entries as they are given."""

    def __init__(self, entries: list[Entry], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.given = entries

    def entries(self) -> list[Entry]:
        return self.given

    def looked_for(self) -> str:
        return "a list"


def make_images(folder: Path, n: int) -> list[Entry]:
    """n one-coloured images, the red of number i being 10 * i."""
    for i in range(n):
        Image.new("RGB", (9, 7), (10 * i, 0, 0)).save(folder / f"{i:02}.png")
    return [Entry(f"{i:02}.png", str(folder / f"{i:02}.png"), i) for i in range(n)]


def make_tree(root: Path, classes: Sequence[str], counts: Mapping[str, int], grey: bool = False) -> Path:
    """Class folders of noisy images whose brightness is the class's; one set a split, or one alone for the split ""."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for i in range(count):
            number = i % len(classes)
            folder = root / split / classes[number]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = 255 * (number + rng.random((32, 40, 3))) / len(classes)
            image = Image.fromarray(pixels.astype(np.uint8))
            (image.convert("L") if grey else image).save(folder / f"image{i:04}.jpeg")
    return root
