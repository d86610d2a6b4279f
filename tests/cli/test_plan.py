"""`optcam compare --plan`: what a comparison will cost, without running it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from optcam_pl.cli import main
from optcam_pl.cli.plan import Cost, cost, plan_text

TINY = str(Path(__file__).resolve().parents[1] / "conf" / "tiny.yaml")
pytestmark = pytest.mark.filterwarnings(
    # tensorboard's protobuf classes and torch's own writer, https://github.com/pytorch/pytorch/issues/134958
    "ignore::DeprecationWarning",
)


def a_cost(**changes: object) -> Cost:
    given: dict[str, object] = {
        **{"name": "OptiCAM", "images": 1000, "block": 30, "seconds": 3.6, "loading": 0.1, "memory": 2_000_000_000},
        **{"disk": 1000.0, "measured": 30, "device": "GPU", "devices": 1},
    }
    return Cost(**{**given, **changes})  # type: ignore[arg-type]


def test_hours_are_those_of_the_device_that_has_the_most_blocks() -> None:
    assert a_cost().hours() == pytest.approx(1)
    assert a_cost().hours(4) == pytest.approx(9 * 30 * 3.6 / 3600)  # 34 blocks: 9, 9, 8, 8
    assert a_cost(loading=7.2).hours() == pytest.approx(2)  # images cannot be loaded faster


def test_the_table_adds_up_and_marks_what_was_measured_on_few_images() -> None:
    text = plan_text([a_cost(), a_cost(name="ScoreCAM", seconds=36.0, measured=1, devices=3)])
    lines = text.splitlines()
    assert re.split(r"\s{2,}", lines[2].strip()) == ["OptiCAM", "3.6e+03", "1000", "1", "2 GB", "1 MB"]
    assert lines[3].startswith("ScoreCAM*")
    assert re.split(r"\s{2,}", lines[4].strip()) == ["all", "11", "2 GB", "2 MB"]
    assert "* measured on fewer images" in text
    assert "1 GPU 11 h, 2 GPUs 5.6" in text


def test_it_runs_nothing_and_prints_every_method(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    assert (
        main(["compare", "--config", TINY, f"--data.root={photos}", "--explainers", "GradCAM", "FakeCAM", "--plan"])
        == 0
    )
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[2:5]] == ["GradCAM", "FakeCAM", "all"]
    assert "CPU-hours" in out
    assert list(work.iterdir()) == []


def test_files_of_callbacks_and_curves_are_counted(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["test", "--config", TINY, f"--data.root={photos}", "--model.explainer=GradCAM"]
    bare = cost("GradCAM", words, 1.0)
    writing = cost("GradCAM", [*words, "--trainer.callbacks+=optcam_pl.callbacks.MapWriter"], 1.0)
    assert writing.disk > bare.disk + 1000
    assert bare.images == 7
    assert bare.device == "CPU"
    with pytest.raises(TypeError, match="Expected a SaliencyTask on images to plan, but got ClassificationTask"):
        cost("x", ["test", "--model=ClassificationTask", "--model.classifier=optcam_pl.Classifier",
                   "--model.classifier.network=timm/test_resnet", "--model.classifier.weights=random",
                   "--data=ImageFolder", f"--data.root={photos}"], 1.0)  # fmt: skip
