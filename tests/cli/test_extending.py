"""The parts of docs/extending.md, as they stand there, go the whole way from a folder outside of the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
CONSOLE = "import sys\nfrom optcam_pl.cli import main\nsys.exit(main())\n"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def optcam(words: list[str], folder: Path) -> str:
    script = folder / "bin" / "optcam.py"  # a console script has its own folder on sys.path, not the current one
    script.parent.mkdir(exist_ok=True)
    script.write_text(CONSOLE)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, script, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(6):
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((40, 40)).save(tmp_path / "pictures" / f"{i}.png")
    (tmp_path / "mine.py").write_text("\n\n".join(blocks("python")))
    (tmp_path / "mine.yaml").write_text(blocks("yaml")[0])
    return tmp_path


def test_each_example_is_at_most_twelve_lines() -> None:
    for block in blocks("python"):
        assert len([line for line in block.splitlines() if line.strip()]) <= 12


def test_the_examples_are_seen_in_table_and_report(folder: Path) -> None:
    compare, report = (line.split()[1:] for line in blocks("sh")[0].splitlines())
    table = optcam(compare, folder)
    again = optcam(report, folder)
    for text in (table, again):
        assert "Kept (%) ↑" in text
        assert "Spread (share) ↓" in text
        row = next(line for line in text.splitlines() if line.strip().startswith("Edges"))
        assert len(re.findall(r"[\d.]+ \[[\d.]+, [\d.]+\]", row)) == 3, row
        assert "mine.Net" in text
        assert "my_pictures" in text
        assert "scores: mine.lead; link: sigmoid" in " ".join(text.split())
