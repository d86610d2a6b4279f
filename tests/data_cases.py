"""Images and data modules that several tests of the data share."""

from pathlib import Path
from typing import Any

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
