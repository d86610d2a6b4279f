"""Shared fixtures: the stored reference values, and quiet, reproducible defaults."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from optcam_pl.network.allocator import keep_freed_memory

ROOT = Path(__file__).resolve().parent.parent


keep_freed_memory()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven noisy pictures in two class folders."""
    rng = np.random.default_rng(0)
    for i in range(7):
        folder = tmp_path / "photos" / ("n01440764" if i % 2 else "n01484850")
        folder.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (8, 9, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((90, 80)).save(folder / f"photo {i}.png")
    return tmp_path / "photos"


@pytest.fixture(scope="session")
def golden() -> Callable[..., Path]:
    """Path of a stored reference file; the test is skipped where there is none.

    The numbers that need no photograph are part of the project (tests/golden, see its README); the others lie in the
    folder OPTCAM_GOLDEN. With `photographs` a file is looked for only there, as a thinned one of its name may be here.
    """
    others = Path(os.environ.get("OPTCAM_GOLDEN", ROOT.parent / "shared" / "golden"))

    def find(name: str, *, photographs: bool = False) -> Path:
        folders = [others] if photographs else [ROOT / "tests" / "golden", others]
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
        pytest.skip(f"reference values computed on photographs not found: {others / name} (set OPTCAM_GOLDEN)")

    return find
