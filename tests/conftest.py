"""Shared fixtures: the stored reference values, and quiet, reproducible defaults."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Path]:
    """Path of a stored reference file; the test is skipped where the folder is missing."""
    folder = Path(os.environ.get("OPTCAM_GOLDEN", ROOT.parent / "shared" / "golden"))

    def find(name: str) -> Path:
        path = folder / name
        if not path.is_file():
            pytest.skip(f"reference values not found: {path} (set OPTCAM_GOLDEN)")
        return path

    return find
