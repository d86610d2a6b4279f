"""Make the README's picture: three photographs, explained by Opti-CAM and two other methods.

Run: python docs/make_picture.py [OUTPUT.png]   (needs the demo extra)
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image

from optcam_pl import Classifier, GradCAM, GradCAMPlusPlus, OptiCAM
from optcam_pl.data import SamplePhotos
from optcam_pl.figures import Picture, column, overlay, picture, row
from optcam_pl.network.allocator import keep_freed_memory

OUTPUT = Path(__file__).with_name("opticam.png")


def main(output: Path) -> None:
    """Write the picture."""
    keep_freed_memory()
    table = SamplePhotos().table
    image = torch.stack([table[i]["image"] for i in (0, 1, 4)])
    classifier = Classifier("demo/efficientnet_lite0")
    p, target = classifier.probabilities(image).max(1)
    maps = {kind.__name__: kind()(classifier, image, target).saliency for kind in (OptiCAM, GradCAM, GradCAMPlusPlus)}
    rows: list[Picture] = []
    for i in range(len(image)):
        titles, tiles = [f"{classifier.class_name(int(target[i]))}, p = {p[i]:.2f}"], [picture(image[i])]
        for name, saliency in maps.items():
            masked = classifier.probabilities(image[i : i + 1] * saliency[i : i + 1])[0, target[i]]
            titles.append(f"{name}: masked p = {masked:.2f}")
            tiles.append(overlay(image[i], saliency[i]))
        rows.append(row(tiles, titles))
    Image.fromarray(column(rows)).save(output)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT)
