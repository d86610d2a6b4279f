"""The blocks of boxes, regions and texts run from the command to the table and the panels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vision_cases import squares

from optcam_pl.cli import main
from optcam_pl.reports.report import load_run
from optcam_pl.runs.run_folder import RunFolder

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TINY = str(CONFIGS.parent / "tests" / "conf" / "tiny.yaml")
# config -> the words that put a network in the place of the config's, and the link
CASES = {
    "detection": (["network=vision_cases.detector", "input_size=32", "target_layer=features"], "sigmoid"),
    "region": (["network=vision_cases.segmenter", "input_size=32", "target_layer=features"], "sigmoid"),
    "zero_shot": (["network=vision_cases.tiny_open_clip", "input_size=32"], "softmax"),
    "similarity": (
        ["network=vision_cases.embedder", "input_size=32", "scores.references=[references/0.png]"],
        "optcam_pl.network.image_text.cosine_share",
    ),
}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's protobuf classes


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = [squares(("red", 0, 0), ("blue", 2, 3)), squares(("red", 1, 1)), squares()]
    for folder in ("data/x", "references"):
        Path(folder).mkdir(parents=True)
        for i, pixels in enumerate(pictures):
            Image.fromarray((pixels * 255).byte().permute(1, 2, 0).numpy()).save(f"{folder}/{i}.png")


def words(name: str, *own: str) -> list[str]:
    given = [f"--model.classifier.{word}" for word in ["weights=default", "mean=0", "std=1", *CASES[name][0]]]
    given = [word.replace("classifier.scores.", "classifier.scores.init_args.") for word in given]
    config = ["--config", TINY, "--config", str(CONFIGS / "scores" / f"{name}.yaml")]
    return [*config, *given, *own]


@pytest.mark.parametrize("name", CASES)
def test_a_block_goes_the_whole_way(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("open_clip")
    assert main(["test", *words(name), "--data.root=data", "--run_dir=run"]) == 0
    out = capsys.readouterr().out
    found = load_run("run")
    settings = found.manifest["settings"]
    assert settings["link"] == found.manifest["fingerprint"]["classifier"]["link"] == CASES[name][1]
    assert settings["link"].rpartition(".")[2] in out  # of a function of the package its name is enough
    assert [row.status for row in found.rows][:2] == ["ok", "ok"]
    if name in ("detection", "region"):  # the third picture has no object
        assert found.rows[2].status == "degenerate"
        assert found.rows[2].scores["average_drop"] is None
    assert all(0 <= row.p <= 1 for row in found.rows)  # type: ignore[operator]


def test_each_detection_is_a_row_and_its_panel_shows_the_box() -> None:
    own = ["--model.classifier.scores.init_args.references=boxes", "--trainer.callbacks+=MapWriter"]
    data = ["--config", str(CONFIGS / "data" / "each_box.yaml"), "--data.data.init_args.root=data"]
    config = words("detection", *own)
    assert main(["test", *config[:4], *data, *config[4:], "--run_dir=run"]) == 0
    rows = load_run("run").rows
    assert [row.id for row in rows] == ["x/0.png#box1", "x/0.png#box2", "x/1.png#box1", "x/2.png"]
    assert [row.target for row in rows[:3]] == [0, 1, 0]
    files = json.loads(Path("run/overlays/index.json").read_text())
    assert set(files) == {row.id for row in rows}
    panels = [np.asarray(Image.open(f"run/overlays/{files[f'x/0.png#box{k}']}").convert("L")) for k in (1, 2)]
    # The first tile of each shows another frame: its corner is white, and outside of it there is a black line.
    tiles = [panel[-32:, :32] for panel in panels]
    assert (tiles[0][0, 7], tiles[0][8, 4]) == (255, 0)
    assert (tiles[1][16, 24], tiles[1][15, 26]) == (255, 0)
    assert tiles[1][0, 7] != 255


EACH_BOX = ["--config", str(CONFIGS / "data" / "each_box.yaml")]


def each_box_of(data: str = "data", *own: str) -> list[str]:
    given = words("detection", "--model.classifier.scores.init_args.references=boxes", *own)
    return ["test", *given[:4], *EACH_BOX, *given[4:], f"--data.data.init_args.root={data}"]


def rows_of(folder: str) -> list[dict[str, Any]]:
    return [{**json.loads(row.to_json()), "seconds": 0} for row in load_run(folder).rows]


def test_a_run_of_boxes_that_was_stopped_goes_on_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = iter(range(99))
    write = RunFolder.write

    def failing(self: RunFolder, *given: Any) -> None:
        if next(blocks) == 1:
            raise KeyboardInterrupt
        write(self, *given)

    small = "--data.data.init_args.batch_size=1"
    monkeypatch.setattr(RunFolder, "write", failing)
    with pytest.raises(SystemExit):
        main([*each_box_of("data", small), "--run_dir=run"])
    monkeypatch.setattr(RunFolder, "write", write)
    assert [row.id for row in load_run("run").rows] == ["x/0.png#box1"]
    for folder in ("run", "whole"):
        assert main([*each_box_of("data", small), f"--run_dir={folder}"]) == 0
    assert rows_of("run") == rows_of("whole")
    assert [row["id"] for row in rows_of("run")] == ["x/0.png#box1", "x/0.png#box2", "x/1.png#box1", "x/2.png"]


@pytest.mark.ddp
def test_two_processes_find_the_boxes_and_write_the_rows_of_one() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(CONFIGS.parent), str(CONFIGS.parent / "tests")])
    for devices in (1, 2):
        spread = [f"--trainer.devices={devices}", *(["--trainer.strategy=ddp"] if devices > 1 else [])]
        given = each_box_of("data", "--data.data.init_args.batch_size=1", *spread, f"--run_dir=p{devices}")
        command = [sys.executable, "-m", "optcam_pl", *given]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    assert rows_of("p1") == rows_of("p2")
    assert len(rows_of("p1")) == 4
    one, two = (load_run(f"p{n}").manifest["fingerprint"]["data"] for n in (1, 2))
    assert one == two


def test_compare_takes_several_methods_with_one_set_of_references(capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--explainers", "GradCAM", "HiResCAM", "--run_dir=runs"]
    assert main(["compare", *words("detection"), "--data.root=data", *own]) == 0
    out = capsys.readouterr().out
    assert "GradCAM" in out
    assert "HiResCAM" in out


def test_every_block_has_a_case() -> None:
    assert {path.stem for path in (CONFIGS / "scores").glob("*.yaml")} >= set(CASES)


def test_what_the_comment_on_similarity_says_may_stand_in_the_place_of_the_list(
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = "--model.classifier.scores.references"
    assert main(["test", *words("similarity", f"{own}=own"), "--data.root=data", "--run_dir=run"]) == 0
    assert "references=own" in capsys.readouterr().out
    for given, told in (("self", "to be 'own' or a list, but got 'self'"), ("a.jpg", "in brackets: [a.jpg]")):
        with pytest.raises(SystemExit):
            main(["test", *words("similarity", f"{own}={given}"), "--data.root=data"])
        assert told in capsys.readouterr().err
