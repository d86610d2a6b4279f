"""Progress in images and within a block, where the output is no terminal and where it is one."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from optcam_pl.callbacks.progress import Meter
from optcam_pl.cli import main
from optcam_pl.explainers.ascent import Ascent, StopRule
from optcam_pl.explainers.batching import Chunks
from optcam_pl.explainers.steps import Step, listening, tell

TINY = str(Path(__file__).parents[1] / "conf" / "tiny.yaml")
pytestmark = pytest.mark.filterwarnings(
    # tensorboard's protobuf classes and torch's own writer, https://github.com/pytorch/pytorch/issues/134958
    "ignore::DeprecationWarning",
)
SHOWN = "--trainer.enable_progress_bar=true"
SHAPES = [SHOWN, "--data=Shapes", "--data.images=7", "--data.batch_size=2", "--model.classifier.num_classes=6"]


class Terminal(io.StringIO):
    """Says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_without_a_terminal_there_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter("GradCAM", 10, seconds=0)
    for done in range(2, 11, 2):
        meter.update(done, {"AD": f"{done}.0"})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("GradCAM: 2 of 10 images, 00:00 left, ")
    assert lines[0].endswith("images/s, AD 2.0")
    assert lines[-1].startswith("GradCAM: 10 of 10 images, ")
    rare = Meter("GradCAM", 10, seconds=3600)
    for done in range(2, 11, 2):
        rare.update(done, {})
    assert [line[:14] for line in capsys.readouterr().err.splitlines()] == ["GradCAM: 2 of ", "GradCAM: 10 of"]


def test_a_step_within_a_block_is_told_with_its_objective(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter("OptiCAM", 10, seconds=0)
    meter.step(Step("iteration", 3, 100, torch.tensor([1.0, 2.0])))
    meter.step(Step("iteration", 4, 100, torch.tensor([1.0, 2.0])))  # too soon to be read
    assert capsys.readouterr().err == "OptiCAM: 0 of 10 images; iteration 3 of 100, objective 1.5\n"


def test_in_a_terminal_there_are_two_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    meter = Meter("OptiCAM", 4)
    meter.step(Step("iteration", 3, 100, torch.tensor([1.5])))
    meter.update(2, {"AD": "1.00"})
    meter.close()
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "iteration" in shown
    assert "objective 1.5" in shown
    assert "2/4" in shown
    assert "AD 1.00" in shown


def test_loops_tell_their_steps_only_to_listeners() -> None:
    heard: list[Any] = []
    with listening(lambda step: heard.append(step[:3])):
        Chunks(2).each(lambda part: None, 5)
        with listening(None):
            tell("pass", 1, 2)
        u = torch.nn.Parameter(torch.zeros(1, 2))
        ascent = Ascent(lambda w: w[:, 0], [u], torch.optim.SGD([u], 1.0), StopRule(0), torch.ones(1))
        ascent.run(3)
    tell("pass", 1, 2)
    assert heard == [("pass", 2, 5), ("pass", 4, 5), ("pass", 5, 5), *(("iteration", t, 3) for t in range(3))]


def test_a_run_tells_images_and_means_and_where_things_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "--config", TINY, *SHAPES, "--model.explainer=GradCAM", "--run_dir=r"]) == 0
    out, err = capsys.readouterr()
    assert "GradCAM, shapes: 2 of 7 images, " in err
    assert "GradCAM, shapes: 7 of 7 images, " in err
    assert ", AD " in err.splitlines()[-1]
    assert "rows:        r/rows (a line per image; files are named a<attempt>-r<process>)" in out
    assert "--logdir r" in out
    assert "report r" in out


def test_quiet_prints_the_table_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "--config", TINY, *SHAPES, "--model.explainer=GradCAM", "--run_dir=r", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert "AD" in out
    assert "run folder" not in out
    assert err == ""
    assert main(["compare", "--config", TINY, *SHAPES, "--explainers", "FakeCAM", "--run_dir=all", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert "TensorBoard" not in out
    assert err == ""


def test_compare_says_which_method_of_how_many_and_its_settings_once(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "--config", TINY, *SHAPES, "--explainers", "FakeCAM", "GradCAM", "--run_dir=all"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert "[1/2] FakeCAM, shapes: 7 of 7 images" in err
    assert "[2/2] GradCAM, shapes: 7 of 7 images" in err
    assert "[2/2] GradCAM: AD " in err
    assert out.count("baseline: black") == 1
    assert list(Path("all/comparison_0").glob("events*"))
