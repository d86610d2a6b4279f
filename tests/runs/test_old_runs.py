"""Run folders and a checkpoint that an earlier version has made go on working: report, verify, resume, explain."""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from optcam_pl.cli import main
from optcam_pl.data import Shapes
from optcam_pl.explainers import OptiCAM
from optcam_pl.network.classifier import Classifier
from optcam_pl.runs.rows import read_rows

OLD = Path(__file__).parents[1] / "old"
pytestmark = pytest.mark.filterwarnings(
    # tensorboard's protobuf classes and torch's own writer, https://github.com/pytorch/pytorch/issues/134958
    "ignore::DeprecationWarning",
)


@pytest.fixture(autouse=True)
def _old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the old folders, as if they had been made with the installed versions of torch and Python."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shutil.copytree(OLD, "old")
    for path in Path("old").glob("*/manifest.json"):
        manifest = json.loads(path.read_bytes())
        manifest["fingerprint"]["versions"] = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        }
        path.write_text(json.dumps(manifest))


def scores_of(run: str) -> list[tuple[str, str, dict[str, Any]]]:
    return [(row.id, row.status, row.scores) for row in read_rows(run)]


def assert_close(ours: str, theirs: str) -> None:
    """The same numbers but for the last digits, in which machines differ."""
    for (_, _, a), (_, _, b) in zip(scores_of(ours), scores_of(theirs), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_allclose(np.asarray(a[key]), np.asarray(b[key]), atol=0.5, err_msg=key)


def test_an_old_run_is_reported_and_verified(capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("old/complete/summary.json").read_bytes()
    assert main(["verify", "old/complete"]) == 0
    assert main(["report", "old/complete", "--format", "json"]) == 0
    printed = capsys.readouterr().out
    assert "average_gain" in printed
    assert "box_accuracy" in printed
    assert Path("old/complete/summary.json").read_bytes() == before


def test_an_old_complete_run_has_nothing_left_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    rows = scores_of("old/complete")
    assert main(["test", "--config", "old/test.yaml", "--run_dir", "old/complete", "--resume", "require"]) == 0
    assert "nothing left to do" in capsys.readouterr().err
    assert scores_of("old/complete") == rows


def test_an_old_half_done_run_is_finished() -> None:
    before = scores_of("old/half")
    assert main(["test", "--config", "old/test.yaml", "--run_dir", "old/half", "--resume", "require"]) == 0
    after = scores_of("old/half")
    assert [row for row in after if row in before] == before
    assert [row[0] for row in after] == [row[0] for row in scores_of("old/complete")]
    assert_close("old/half", "old/complete")
    assert main(["verify", "old/half"]) == 0


def test_old_stored_weights_are_used() -> None:
    words = ["--config", "old/test.yaml", "--model.weights_from", "old/weights", "--run_dir", "old/again"]
    assert main(["test", *words]) == 0
    assert_close("old/again", "old/complete")


def test_an_old_checkpoint_is_explained() -> None:
    classifier = Classifier(weights="old/last.ckpt")
    assert classifier.name == "timm/test_efficientnet"
    assert classifier.target_layers == ("bn2",)
    assert classifier.num_classes == 6
    stored = json.loads((OLD / "complete" / "manifest.json").read_bytes())["fingerprint"]["classifier"]["hash"]
    assert classifier.weight_hash() == stored
    data = Shapes(images=2, size=64)
    data.setup("test")
    image = torch.stack([data.table[i]["image"] for i in range(2)])
    assert not OptiCAM(max_iter=1)(classifier, image).degenerate.any()
