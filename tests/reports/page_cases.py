"""Small runs with rows, thumbnails and curves, for the tests of the page."""

from __future__ import annotations

from pathlib import Path

import torch
from test_report import a_run

from optcam_pl.runs.rows import Row
from optcam_pl.runs.tensors import save_curves
from optcam_pl.runs.thumbnails import save_thumbnails

NAMES = ["tabby", "tiger cat", "<b>lynx</b>"]


def pictured_run(folder: Path, images: int = 12, shift: int = 0, **manifest: object) -> Path:
    """A run on `images` images of three classes; p is 0.5, and o moves with the image and the run."""
    rows = []
    for index in range(images):
        o = 0.05 * ((index + shift) % images) + 0.1
        drop, gain = max(0.0, 0.5 - o) / 0.5 * 100, max(0.0, o - 0.5) / 0.5 * 100
        rows.append(
            Row(
                **{"index": index, "id": f"{index}.png", "status": "ok", "target": index % 3, "p": 0.5, "o": o},
                **{"predicted": 0 if index == 4 else index % 3, "seconds": 0.01 * (1 + shift)},
                scores={"average_drop": drop, "average_gain": gain, "average_increase": 100.0 * (o > 0.5)},
            )
        )
    described = {"settings": {"baseline": "black", "layer": f"layer{shift}"}, "class_names": NAMES}
    run = a_run(folder, rows, **{**described, **manifest})
    generator = torch.Generator().manual_seed(shift)
    pictures = torch.rand(images, 3, 24, 32, generator=torch.Generator().manual_seed(9))
    save_thumbnails(run, 0, list(range(images)), pictures, torch.rand(images, 1, 24, 32, generator=generator))
    curve = torch.linspace(1, 0.1 * shift, 11).expand(images, 11) + 0.01 * torch.arange(images)[:, None]
    save_curves(run, 0, [row.id for row in rows], {"average_drop": curve})
    return run
