"""`optcam compare`: which explainers it takes, what it leaves out and says so, several datasets and their mean."""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from optcam_pl import GradCAM
from optcam_pl.cli import main
from optcam_pl.cli.compare import mean_over
from optcam_pl.cli.lightning_cli import OptcamCLI
from optcam_pl.cli.methods import BLOCKS, COSTLY, choose, listed_methods
from optcam_pl.explainers import XGradCAM
from optcam_pl.reports.report import load_run, summarize
from optcam_pl.reports.tables import Format, table
from optcam_pl.runs.rows import read_rows

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "tests" / "conf" / "tiny.yaml")

pytestmark = pytest.mark.filterwarnings(
    # tensorboard's protobuf classes and torch's own writer, https://github.com/pytorch/pytorch/issues/134958
    "ignore::DeprecationWarning",
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def folder_of_photos(name: str, count: int) -> Path:
    rng = np.random.default_rng(count)
    folder = Path(name) / "n01440764"
    folder.mkdir(parents=True)
    for i in range(count):
        coarse = rng.integers(0, 256, (8, 9, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((90, 80)).save(folder / f"{i}.png")
    return Path(name)


@pytest.fixture
def photos() -> Path:
    return folder_of_photos("photos", 3)


@pytest.fixture
def blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four quick blocks in the place of the package's own; one cannot work on a CNN."""
    folder = tmp_path / "blocks"
    folder.mkdir()
    for name, content in {
        "attention": "class_path: optcam_pl.explainers.RawAttention",
        "few_masks": "class_path: optcam_pl.explainers.RISE\ninit_args: {num_masks: 6, cells: 3}",
        "more_masks": "class_path: optcam_pl.explainers.RISE\ninit_args: {num_masks: 9, cells: 3}",
        "ss_cam": "class_path: optcam_pl.explainers.ScoreCAM\ninit_args: {smooth: noise, num_samples: 2}",
    }.items():
        (folder / f"{name}.yaml").write_text(content)
    monkeypatch.setattr("optcam_pl.cli.methods.BLOCKS", folder)
    return folder


def run(photos: Path, *words: str) -> int:
    return main(["compare", "--config", TINY, f"--data.root={photos}", *words])


def test_all_runs_every_block_and_says_which_it_does_not(
    photos: Path, blocks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(photos, "--explainers", "all") == 0
    table, told = capsys.readouterr()
    final = told[told.index("\nskipped:") :]
    assert "  attention: Expected a vision transformer" in final
    assert "  ss_cam: 35 times the passes of score_cam; name it to run it" in final
    assert "failed" not in told
    runs = sorted(path.parent.name for path in Path("logs/photos").glob("*/version_0"))
    assert runs == ["few_masks", "more_masks"]
    assert table.startswith("method")
    assert "few_masks" in table
    assert "more_masks" in table
    assert load_run("logs/photos/more_masks/version_0").manifest["explainer_settings"]["num_masks"] == 9


def test_a_listed_explainer_has_its_own_settings_and_none_of_another_class(photos: Path) -> None:
    Path("own.yaml").write_text("explainers: [ExtremalPerturbation, {class_path: OptiCAM, init_args: {lr: 1.0}}]")
    perturbation, opticam = listed_methods([TINY, "own.yaml"])
    words = ["test", "--config", TINY, "--config", "own.yaml", f"--data.root={photos}"]
    iterations = [OptcamCLI(m.added_to(words), dry=True).model.explainer.max_iter for m in (perturbation, opticam)]
    assert iterations == [800, 100]  # tiny.yaml has 4 of Opti-CAM's
    with pytest.raises(ValueError, match="`--explainers NAME ...`, or a config with the list `explainers`"):
        run(photos)


def test_a_file_has_its_own_settings_and_none_of_the_configs_explainer(photos: Path) -> None:
    Path("quick.yaml").write_text("class_path: OptiCAM\ninit_args: {preset: fast}")
    words = ["test", "--config", TINY, f"--data.root={photos}"]
    (of_file,), (of_class,) = choose(["quick.yaml"]), choose(["OptiCAM"])
    fast, own = (OptcamCLI(m.added_to(words), dry=True).model.explainer for m in (of_file, of_class))
    assert (fast.max_iter, fast.lr) == (20, 1.0)
    assert own.max_iter == 4  # tiny.yaml's


def test_settings_on_the_command_line_are_for_every_explainer_that_has_them(photos: Path) -> None:
    Path("own.yaml").write_text("explainers: [GradCAM, {class_path: OptiCAM, init_args: {lr: 1.0}}]")
    Path("quick.yaml").write_text("class_path: OptiCAM\ninit_args: {preset: fast}")
    words = ["test", "--config", TINY, f"--data.root={photos}", "--model.explainer.max_iter", "3"]
    gradcam, listed = listed_methods([TINY, "own.yaml"])
    for method in (listed, *choose(["quick.yaml", "OptiCAM", "ExtremalPerturbation"])):
        assert OptcamCLI(method.added_to(words), dry=True).model.explainer.max_iter == 3
    assert isinstance(OptcamCLI(gradcam.added_to(words), dry=True).model.explainer, GradCAM)


def test_a_setting_that_no_explainer_has_is_refused(photos: Path) -> None:
    message = "`--model.explainer.max_itr` to be a setting of one of the explainers GradCAM, OptiCAM, .*max_iter"
    with pytest.raises(ValueError, match=message):
        run(photos, "--explainers", "GradCAM", "OptiCAM", "--model.explainer.max_itr=3")


def test_blocks_classes_and_files_go_together_and_named_ones_are_never_too_costly(
    photos: Path, blocks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Path("own.yaml")
    own.write_text("class_path: GradCAM\ninit_args: {layer: layer2}")
    names = ["own.yaml", "optcam_pl.explainers.FakeCAM", "ss_cam", "few_masks", "GradCAM"]
    assert run(photos, "--run_dir=runs", "--explainers", *names) == 0
    found = sorted(path.name for path in Path("runs").iterdir())
    assert found == [
        "FakeCAM",
        "GradCAM",
        "comparison_0",
        "few_masks",
        "own",
        "ss_cam",
    ]  # comparison_0 is TensorBoard's
    told = capsys.readouterr().err
    assert "skipped" not in told
    assert "report runs --html page\n" in told  # not five folders: there is no other run below this one
    assert run(photos, "--run_dir=runs/deep", "--explainers", "FakeCAM", "GradCAM") == 0
    assert run(photos, "--run_dir=runs/deep", "--explainers", "FakeCAM") == 0
    assert "report runs/deep/FakeCAM --html page\n" in capsys.readouterr().err
    assert load_run("runs/own").manifest["explainer_settings"]["layer"] == "layer2"
    assert [method.name for method in choose(["more_masks", "all"])] == ["more_masks", "attention", "few_masks"]


def test_a_dataset_is_a_block_by_name_and_a_config_may_be_yaml_itself(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = "{explainers: [FakeCAM], trainer: {callbacks: {class_path: MapWriter, init_args: {maps: false}}}}"
    assert run(photos, "--config", config, "--data", "data/image_folder", "--data.limit=2", "--run_dir=one") == 0
    assert "FakeCAM" in capsys.readouterr().out
    assert len(list(Path("one/FakeCAM/overlays").glob("*.png"))) == 2  # by the only callback, which is no list
    with pytest.raises(FileNotFoundError, match="Expected `--data` to be .* no file 'image_foldr.yaml'.*image_folder"):
        run(photos, "--explainers", "FakeCAM", "--data", "image_foldr.yaml")


@pytest.mark.parametrize("content", ["", "- GradCAM", "init_args: {lr: 1}", "class_path: 3"])
def test_a_file_that_is_no_explainer_is_told(photos: Path, content: str) -> None:
    Path("mine.yaml").write_text(content)
    with pytest.raises(ValueError, match="Expected 'mine.yaml' to be an explainer .*, but it holds"):
        run(photos, "--explainers", "mine.yaml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--explainers", "few_mask"], "got 'few_mask'. The nearest are: 'few_masks'"),
        (["--explainers", "GradCAM", "my.GradCAM"], "names of their own.*GradCAM, GradCAM"),
        (["--data", "a.yaml", "--data", "b/a.yaml", "--explainers", "GradCAM"], "names of their own.*a, a"),
        (["--explainers", "GradCAM", "attention"], "Expected a vision transformer"),
        (["--explainers", "all", "--model.classifier.network=torchvision/resnet5"], "resnet50"),
        (["--explainers", "all", "--model.selectivity=0"], "Expected `selectivity` to be a positive number"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    photos: Path, blocks: Path, words: list[str], message: str
) -> None:
    Path("b").mkdir()
    for file in ("a.yaml", "b/a.yaml"):
        Path(file).write_text("data: {class_path: ImageFolder}")
    with pytest.raises(ValueError, match=message):
        run(photos, *words)
    assert not Path("logs").exists()


def _bursts(*_args: object) -> None:
    raise RuntimeError("burst")


def test_a_method_that_breaks_off_does_not_take_the_others_along(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GradCAM, "raw_map", _bursts)
    monkeypatch.setattr(GradCAM, "check", lambda *_: None)
    assert run(photos, "--explainers", "GradCAM", "FakeCAM", "XGradCAM") == 1
    out, err = capsys.readouterr()
    assert "optcam compare: GradCAM broke off: RuntimeError: burst" in err
    assert err[err.index("\nfailed:") :].startswith("\nfailed:\n  GradCAM: RuntimeError: burst\n")
    assert "FakeCAM" in out
    assert "XGradCAM" in out
    assert "\nGradCAM" not in out


def test_an_error_of_all_methods_ends_it_after_the_second(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "n01440764" / "broken.png").write_text("this is no image")
    asked: list[str] = []
    for kind in (GradCAM, XGradCAM):
        monkeypatch.setattr(kind, "check", lambda self, _: asked.append(type(self).__name__))
    with pytest.raises(ValueError, match="broken.png"):
        run(photos, "--explainers", "GradCAM", "XGradCAM", "FakeCAM")
    assert asked == ["GradCAM", "XGradCAM"]
    assert not list(Path("logs/photos").glob("FakeCAM/*"))


def test_the_error_of_the_only_method_is_told_once(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "n01440764" / "broken.png").write_text("this is no image")
    with pytest.raises(ValueError, match="broken.png"):  # which the command tells
        run(photos, "--explainers", "GradCAM")
    assert "broke off" not in capsys.readouterr().err


def test_several_datasets_give_a_table_each_and_their_mean(capsys: pytest.CaptureFixture[str]) -> None:
    for name, count in (("north", 2), ("south", 4)):
        folder_of_photos(name, count)
        Path(f"{name}.yaml").write_text(
            f"data:\n  class_path: ImageFolder\n  init_args: {{root: {name}, batch_size: 2}}"
        )
    datasets = ["--data", "north.yaml", "--data=south.yaml", "--data.limit", "2"]
    words = ["compare", *datasets, "--config", TINY, "--explainers", "FakeCAM", "GradCAM", "--run_dir", "runs"]
    assert main([*words, "--format=csv"]) == 0
    assert len(read_rows("runs/south/GradCAM")) == 2
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    single = [summarize(load_run(f"runs/{name}/GradCAM")) for name in ("north", "south")]
    mean = mean_over(single)
    for key, estimate in mean.metrics.items():
        assert estimate.value == pytest.approx(sum(s.metrics[key].value or 0 for s in single) / 2)
    assert mean.images == 4
    assert mean.data == "mean over north, south"
    names = [summary.data for summary in (*single, mean)]
    assert [(row["data"], row["explainer"]) for row in rows] == list(product(names, ("FakeCAM", "GradCAM")))
    assert [float(row["average_gain"]) for row in rows[1::2]] == [
        summary.metrics["average_gain"].value for summary in (*single, mean)
    ]


@pytest.mark.parametrize("format", ["text", "markdown", "csv", "latex", "json"])
def test_stdout_is_the_table_alone(photos: Path, format: Format, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--explainers", "RawAttention", "FakeCAM", "GradCAM", "--run_dir=runs", f"--format={format}"]
    with pytest.raises(ValueError, match="vision transformer"):
        run(photos, *words)
    for _ in range(2):  # the second time the runs go on, and say so
        capsys.readouterr()
        assert run(photos, *words[:1], *words[2:]) == 0
        out, err = capsys.readouterr()
        runs = [summarize(load_run(f"runs/{name}"), "bca") for name in ("FakeCAM", "GradCAM")]
        assert out == table(runs, format=format)
        assert "[2/2] GradCAM: AD " in err
        assert "\nruns:        runs" in err.replace(str(Path.cwd()) + "/", "")
    assert "3 of 3 images are done in " in err


def test_the_table_of_a_run_in_a_process_of_its_own_can_be_piped_into_a_program(photos: Path) -> None:
    words = ["--config", TINY, f"--data.root={photos}", "--explainers", "FakeCAM", "GradCAM", "--format", "json"]
    done = subprocess.run(
        [sys.executable, "-m", "optcam_pl", "compare", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    assert [row["explainer"] for row in json.loads(done.stdout)] == ["FakeCAM", "GradCAM"]


def test_a_plan_has_no_format(photos: Path) -> None:
    with pytest.raises(ValueError, match="Expected no `--format` with `--plan`, which is text, but got 'json'"):
        run(photos, "--explainers", "FakeCAM", "--plan", "--format=json")


def test_a_mean_has_no_value_where_a_dataset_has_none(photos: Path) -> None:
    main(["test", "--config", TINY, f"--data.root={photos}", "--model.explainer=FakeCAM", "--run_dir=x"])
    summary = summarize(load_run("x"))
    lacking = replace(summary, metrics={k: replace(e, value=None, undefined=3) for k, e in summary.metrics.items()})
    mean = mean_over([summary, lacking])
    assert {(estimate.value, estimate.undefined) for estimate in mean.metrics.values()} == {(None, 3)}
    assert mean_over([summary, replace(summary, metrics={})]).metrics == {}
    other = replace(summary, settings={**summary.settings, "baseline": "mean"})
    assert "baseline" in mean_over([summary, summary]).settings
    assert "baseline" not in mean_over([summary, other]).settings


def test_the_packages_own_blocks_are_found_each_on_the_contact_sheet_and_in_the_table_of_methods(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = {file.stem for file in BLOCKS.glob("*.yaml")}
    assert names == {file.stem for file in (ROOT / "configs" / "explainer").glob("*.yaml")}
    assert set(COSTLY) < names
    assert {method.name for method in choose(["all"])} == names - set(COSTLY)
    monkeypatch.syspath_prepend(ROOT / "docs")
    sheet, methods = map(importlib.import_module, ("make_contact_sheet", "make_methods"))
    assert set(sheet.NAMES) == names
    assert set(methods.METHODS) == names
    for name in names:
        _, cheap = sheet.CHEAP.get(name, ("", {}))
        assert sheet.made(name, **cheap)
