"""Images and data modules that several tests of the data share.

As a script it makes a tree of noise in the layout of a download: python tests/data_cases.py chest_xray FOLDER
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from optcam_pl.data import Entry, ImageDataModule, Kvasir


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
    """n one-colored images, the red of number i being 10 * i."""
    for i in range(n):
        Image.new("RGB", (9, 7), (10 * i, 0, 0)).save(folder / f"{i:02}.png")
    return [Entry(f"{i:02}.png", str(folder / f"{i:02}.png"), i) for i in range(n)]


def make_tree(root: Path, classes: Sequence[str], counts: Mapping[str, int], gray: bool = False) -> Path:
    """Class folders of noisy images whose brightness is the class's; one set a split, or one alone for the split ""."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for i in range(count):
            number = i % len(classes)
            folder = root / split / classes[number]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = 255 * (number + rng.random((32, 40, 3))) / len(classes)
            image = Image.fromarray(pixels.astype(np.uint8))
            (image.convert("L") if gray else image).save(folder / f"image{i:04}.jpeg")
    return root


def make_boxes(root: Path, folder: Path) -> Path:
    """ImageNet's annotations of every image of `make_tree`: one object of 20 x 10 pixels of its 40 x 32."""
    folder.mkdir()
    box = "<bndbox><xmin>10</xmin><ymin>5</ymin><xmax>30</xmax><ymax>15</ymax></bndbox>"
    size = "<size><width>40</width><height>32</height></size>"
    for file in root.rglob("*.jpeg"):
        drawn = f"<annotation>{size}<object><name>{file.parent.name}</name>{box}</object></annotation>"
        (folder / f"{file.stem}.xml").write_text(drawn)
    return folder


def make_pets(root: Path) -> None:
    """Oxford-IIIT Pets with two test images of 8 x 4 pixels, whose left three columns are the animal."""
    base = root / "oxford-iiit-pet"
    (base / "images").mkdir(parents=True)
    (base / "annotations" / "trimaps").mkdir(parents=True)
    for name in ("Abyssinian_1", "beagle_1"):
        Image.new("RGB", (8, 4)).save(base / "images" / f"{name}.jpg")
        trimap = np.full((4, 8), 2, dtype=np.uint8)
        trimap[:, :3], trimap[:, 3] = 1, 3
        Image.fromarray(trimap).save(base / "annotations" / "trimaps" / f"{name}.png")
    (base / "annotations" / "test.txt").write_text("Abyssinian_1 1 1 1\nbeagle_1 2 1 1\n")


def make_voc(root: Path) -> None:
    """Pascal VOC 2012 with one validation image of 40 x 20 pixels, with a dog and two cats."""
    base = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (base / folder).mkdir(parents=True)
    Image.new("RGB", (40, 20)).save(base / "JPEGImages" / "x.jpg")
    box = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
    objects = (("dog", 1, 1, 5, 5), ("cat", 11, 1, 40, 20), ("cat", 1, 11, 4, 14))
    drawn = "".join(f"<object><name>{name}</name>{box.format(*corners)}</object>" for name, *corners in objects)
    (base / "Annotations" / "x.xml").write_text(f"<annotation>{drawn}</annotation>")
    (base / "ImageSets" / "Main" / "val.txt").write_text("x\n")


def make_coco(root: Path) -> None:
    """COCO with two images of 20 x 10 pixels: a dog and two cats with their outlines, and nothing."""
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (20, 10)).save(root / name)
    objects = []
    for number, (category, (x, y, w, h)) in enumerate([(7, (0, 0, 4, 4)), (3, (5, 5, 10, 5)), (3, (0, 8, 2, 2))]):
        outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        shape = {"bbox": [x, y, w, h], "segmentation": outline, "area": w * h, "iscrowd": 0}
        objects.append({"id": number + 1, "image_id": 1, "category_id": category, **shape})
    images = [{"id": i, "file_name": name, "width": 20, "height": 10} for i, name in ((1, "a.jpg"), (2, "b.jpg"))]
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    content = {"images": images, "categories": categories, "annotations": objects}
    (root / "a.json").write_text(json.dumps(content))


def make_cub(root: Path) -> None:
    """CUB-200-2011 of two classes with six images of 10 x 8 pixels each, half of them to train on."""
    lists: dict[str, list[str]] = {"images": [], "image_class_labels": [], "bounding_boxes": [], "train_test_split": []}
    for i in range(1, 13):
        kind = ("001.Black_footed_Albatross", "002.Laysan_Albatross")[i > 6]
        file = root / "images" / kind / f"{i:04}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 8), (20 * i, 0, 0)).save(file)
        rows = (f"{kind}/{file.name}", 1 + (i > 6), f"{i % 3}.0 1.0 6.0 5.0", i % 2)
        for lines, row in zip(lists.values(), rows, strict=True):
            lines.append(f"{i} {row}\n")
    for name, lines in lists.items():
        (root / f"{name}.txt").write_text("".join(lines))


# Of 200 images; Kermany's own split is 5216, 16 and 624.
LAYOUTS: dict[str, tuple[Sequence[str], Mapping[str, int], bool]] = {
    "chest_xray": (("NORMAL", "PNEUMONIA"), {"train": 160, "val": 16, "test": 24}, True),
    "kvasir": (Kvasir.CLASSES, {"": 200}, False),
}

if __name__ == "__main__":
    make_tree(Path(sys.argv[2]), *LAYOUTS[sys.argv[1]])
