"""`optcam sweep`: every point its run folder, failures, shards, going on, the table and the plots."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from optcam_pl.cli import main
from optcam_pl.cli.grid import points, read_axes
from optcam_pl.cli.methods import config_key, listed_methods
from optcam_pl.figures import confusion_figure
from optcam_pl.reports.report import find_runs, load_run, summarize
from optcam_pl.reports.sweeps import Measured, sweep_figure
from optcam_pl.reports.tables import Estimate, Summary

TINY = str(Path(__file__).resolve().parents[1] / "conf" / "tiny.yaml")

pytestmark = pytest.mark.filterwarnings(
    # tensorboard's protobuf classes and torch's own writer, https://github.com/pytorch/pytorch/issues/134958
    "ignore::DeprecationWarning",
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sweep(photos: Path, *words: str) -> int:
    return main(["sweep", "--config", TINY, f"--data.root={photos}", "--data.limit=2", "--run_dir=runs", *words])


def test_a_sweep_goes_on_after_a_failure_and_does_only_what_is_missing(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["--grid", "model.explainer.max_iter=1,2,no", "model.explainer.objective=mask"]
    assert sweep(photos, *grid) == 1
    err = capsys.readouterr().err
    assert "max_iter=no,objective=mask: ValueError: a setting is wrong" in err
    assert "2 of 3 runs are there" in err
    runs = find_runs(["runs"])
    assert [run.name for run in runs] == ["max_iter=1,objective=mask", "max_iter=2,objective=mask"]
    assert [load_run(run).manifest["explainer_settings"]["max_iter"] for run in runs] == [1, 2]
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("rows/*")}
    assert sweep(photos, "--grid", "model.explainer.max_iter=1,2", "model.explainer.objective=mask") == 0
    assert "nothing left to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("rows/*")} == before
    cells = list(csv.DictReader(Path("runs/report/table.csv").read_text().splitlines()))
    assert [cell["max_iter"] for cell in cells] == ["1", "2"]
    for cell, run in zip(cells, runs, strict=True):
        assert float(cell["average_gain"]) == summarize(load_run(run)).metrics["average_gain"].value


def test_shards_do_the_points_and_the_report_needs_no_run(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = ["--grid", "model.explainer.max_iter=1,2,3"]
    assert sweep(photos, *grid, "--shard=2/2") == 0
    assert [run.name for run in find_runs(["runs"])] == ["max_iter=2"]
    capsys.readouterr()
    assert sweep(photos, *grid, "--shard=1/2", "--format=json") == 0
    assert [run["options"]["max_iter"] for run in json.loads(capsys.readouterr().out)] == [1, 2, 3]
    assert sweep(photos, *grid, "--report", "--format=json") == 0
    assert [run["options"]["max_iter"] for run in json.loads(capsys.readouterr().out)] == [1, 2, 3]
    with Image.open("runs/report/figure.png") as figure:
        assert figure.width > 3 * figure.height  # a panel for each of three metrics


def test_a_shard_without_a_point_is_done_at_once(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(photos, "--grid", "model.target=0,1", "--shard=3/4", "--run_dir=few") == 0
    assert "nothing to do for shard 3/4: the sweep has 2 runs" in capsys.readouterr().err
    assert not Path("few").exists()


def test_the_commands_of_the_page_work(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "sweeps.md").read_text()
    first, script = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    tiny = ["--config", TINY, f"--data.root={photos}", "--data.limit=2"]
    for line in first.splitlines():
        words = [word for word in shlex.split(line)[1:] if word not in ("--config", "configs/demo.yaml")]
        assert main([*words[:1], *tiny, *words[1:]]) == 0
    assert len(find_runs(["runs/lr", "runs/grid"])) == 7
    assert "runs/grid/max_iter=10,objective=mask" in text
    assert Path("runs/grid/max_iter=10,objective=mask").is_dir()
    (own,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    Path("run.yaml").write_text(own)
    assert [method.name for method in listed_methods(["run.yaml"])] == ["GradCAM", "quick"]
    assert read_axes([], config_key(["run.yaml"], "grid")) == {"model.target": ["label", "predicted"]}
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    subprocess.run(["bash", "-c", "srun() { printf '%s\\n' \"$@\" > words; }\n" + script], check=True)
    program, command, *words = Path("words").read_text().split("\n")[:-1]
    assert (program, command) == ("optcam", "sweep")
    words = [word for word in words if word not in ("--config", "run.yaml")]
    assert main([command, *tiny, *words]) == 0
    assert [run.name for run in find_runs(["runs/sweep"])] == ["lr=0.5"]


def test_the_config_has_the_grid_and_the_explainers(photos: Path) -> None:
    Path("own.yaml").write_text(
        "explainers: [FakeCAM, {class_path: OptiCAM, init_args: {max_iter: 1}, name: quick}]\n"
        "grid: {model.target: [0, predicted]}"
    )
    assert sweep(photos, "--config=own.yaml") == 0
    found = {str(run.relative_to("runs")): load_run(run).manifest for run in find_runs(["runs"])}
    assert set(found) == {f"target={target}/{name}" for target in ("0", "predicted") for name in ("FakeCAM", "quick")}
    assert found["target=0/quick"]["settings"]["target"] == 0
    assert found["target=0/quick"]["explainer_settings"]["max_iter"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Expected `--grid KEY=VALUE,VALUE`"),
        (["--grid", "lr"], "KEY=VALUE,VALUE..., but got 'lr'"),
        (["--grid", "a=1,,2"], "values for a, but got '1,,2'"),
        (["--grid", "a=1,1"], "each value of a once"),
        (["--grid", "a=x/y,x:y"], "folders of their own"),
        (["--grid", "model.target=0", "--shard=3/2"], "i from 1 to n"),
        (["--grid", "model.explainer.lr=1", "--explainers", "GradCAM"], "Give `--explainers`"),
        (["--grid", "model.target=0", "--explainers", "GradCAMM"], "The nearest are: 'GradCAM'"),
        (["--grid", "model.target=0", "--report"], "None of the 1 runs"),
    ],
)
def test_what_cannot_be_is_told_before_anything_runs(photos: Path, words: list[str], message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        sweep(photos, *words)
    assert not Path("runs").exists()


def test_a_config_whose_explainers_or_grid_is_none_is_told(photos: Path) -> None:
    for text, message in (
        ("grid: {a: 1}", "list of values for a, but got 1"),
        ("grid: [1]", "list of values for each setting"),
        ("{grid: {a: [1]}, explainers: []}", "Expected `explainers` of a config to be a list"),
        ("{grid: {a: [1]}, explainers: [{init_args: {}}]}", "to be a name or to have a `class_path`"),
        ("{grid: {a: [1]}, explainers: [{class_path: GradCAM, args: {}}]}", "but got 'args'"),
        ("{grid: {a: [1]}, explainers: [GradCAM, GradCAM]}", "names of their own.*GradCAM, GradCAM"),
    ):
        Path("own.yaml").write_text(text)
        with pytest.raises((ValueError, TypeError), match=message):
            sweep(photos, "--config=own.yaml")


def test_axes_and_points() -> None:
    axes = read_axes(["b.lr=1,2", "--c='x,y',[1,2]"], {"a.lr": [0.5, True], "b.lr": [9]})
    assert axes == {"a.lr": ["0.5", "true"], "b.lr": ["1", "2"], "c": ["'x,y'", "[1,2]"]}
    found = points(axes)
    assert len(found) == 8
    assert found[1].values == {"a.lr": "0.5", "b.lr": "1", "c": "[1,2]"}
    assert found[1].words == ("--a.lr=0.5", "--b.lr=1", "--c=[1,2]")
    (alone,) = points({})
    assert (alone.values, alone.words, alone.folder) == ({}, (), "")


def measured(value: float | None, method: str = "OptiCAM", **values: str) -> Measured:
    metrics = {"average_gain": Estimate(value, 0, value and value - 1, value and value + 1)}
    statuses = {"ok": 1, "degenerate": 0, "error": 0, "missing": 0}
    return Measured(values, Summary("r", "test", "d", "c", method, {}, {}, 1, statuses, 1.0, metrics))


def test_one_axis_is_a_curve_with_its_band() -> None:
    runs = [measured(30.0, lr="1"), measured(10.0, lr="0.01"), measured(20.0, lr="0.1"), measured(None, lr="3")]
    (panel,) = sweep_figure(runs, {"lr": ["1", "0.01", "0.1", "3"]}).axes
    (line,) = panel.lines
    assert line.get_xydata().tolist() == [[0.01, 10], [0.1, 20], [1, 30]]
    assert panel.get_xscale() == "log"
    assert panel.get_title() == "AG ↑"
    (band,) = panel.collections
    assert {tuple(point) for point in band.get_paths()[0].vertices.tolist()} >= {(0.01, 9), (1, 31)}
    (panel,) = sweep_figure([measured(1.0, layer="b"), measured(2.0, "GradCAM", layer="a")], {"layer": ["a", "b"]}).axes
    assert [label.get_text() for label in panel.get_xticklabels()] == ["a", "b"]
    assert [line.get_label() for line in panel.lines] == ["OptiCAM", "GradCAM"]


def test_words_with_dollar_signs_are_no_formulas() -> None:
    of = [measured(1.0, "$a_$", **{"$k_$": value}) for value in ("$x_$", "$y_$")]
    figure = sweep_figure(of, {"$k_$": ["$x_$", "$y_$"]})
    figure.savefig(io.BytesIO())  # matplotlib cannot read such a formula
    assert figure.axes[0].get_xticklabels()[0].get_text() == r"\$x_\$"
    confusion_figure([[1, 0], [0, 1]], ["$a_$", "b"]).savefig(io.BytesIO())


def test_two_axes_are_a_heat_map_and_more_are_several() -> None:
    runs = [measured(float(10 * i + j), lr=str(i), it=str(j)) for i in (1, 2) for j in (1, 2, 3) if (i, j) != (2, 2)]
    (panel,) = sweep_figure(runs, {"lr": ["1", "2"], "it": ["1", "2", "3"]}).axes
    (image,) = panel.images
    assert image.get_array().filled(-1).tolist() == [[11, 12, 13], [21, -1, 23]]
    assert sorted(text.get_text() for text in panel.texts) == ["11.0", "12.0", "13.0", "21.0", "23.0"]
    runs = [measured(float(i), a=a, b="1", c="1") for i, a in enumerate("xy")]
    panels = sweep_figure(runs, {"a": ["x", "y"], "b": ["1"], "c": ["1"]}).axes
    assert [panel.get_title() for panel in panels] == ["AG ↑, a=x", "AG ↑, a=y"]
    with pytest.raises(ValueError, match="Expected runs, axes and metrics"):
        sweep_figure([], {"a": ["1"]})
