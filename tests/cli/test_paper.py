"""`optcam paper`: tables beside the published ones, going on, other networks, figures, and the check of a set-up."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from data_cases import make_boxes, make_tree
from PIL import Image

from optcam_pl.cli import main, points
from optcam_pl.cli.experiments import CONFIGS, EXPERIMENTS, cost, find_experiment
from optcam_pl.cli.paper_check import published_accuracy
from optcam_pl.cli.parsers import asked
from optcam_pl.imagenet import imagenet_wnids
from optcam_pl.reports.beside import folded, misclassified, paper_csv, paper_grids
from optcam_pl.reports.grids import render
from optcam_pl.reports.published import networks_of, published
from optcam_pl.reports.report import load_run
from optcam_pl.reports.sweeps import Measured
from optcam_pl.reports.tables import Estimate, Summary
from optcam_pl.runs.rows import read_rows
from optcam_pl.runs.signals import Stopped

DOCS = Path(__file__).resolve().parents[2] / "docs"

pytestmark = pytest.mark.filterwarnings(
    # tensorboard's protobuf classes and torch's own writer, https://github.com/pytorch/pytorch/issues/134958
    "ignore::DeprecationWarning",
)


def commands_of(page: str) -> list[list[str]]:
    """The words of the commands that a page of the docs shows."""
    blocks = re.findall(r"```bash\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.startswith("optcam ")]


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A tiny network and made-up photographs with boxes in the place of a table's own."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", num_classes=1000).state_dict(), "tiny.pth")
    make_tree(Path("photos"), imagenet_wnids()[:2], {"": 4})
    make_boxes(Path("photos"), Path("boxes"))
    return [
        *("--network", "timm/test_resnet", "--model.classifier.weights=tiny.pth", "--model.classifier.input_size=64"),
        *("--data.root=photos", "--data.size=64", "--data.num_workers=0", "--limit=2", "--threads=1"),
        *("--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"),
    ]


def test_a_table_that_was_stopped_in_the_middle_does_what_is_missing(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = points.OptcamCLI, []

    def stopped(given, name=None, **kwargs):
        calls.append(name)
        if len(calls) == 3:  # the first one only looks at the settings
            raise Stopped(signal.SIGTERM)
        return real(given, name, **kwargs)

    command = ["paper", "table1", *words, "--explainers", "OptiCAM", "GradCAM", "FakeCAM"]
    with monkeypatch.context() as patch:
        patch.setattr(points, "OptcamCLI", stopped)
        assert main(command) == 143
    folder = Path("logs/paper/table1/test_resnet_limit2")
    assert [path.name for path in folder.iterdir()] == ["OptiCAM"]
    assert load_run(folder / "OptiCAM").manifest["explainer_settings"]["max_iter"] == 100  # the config's
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("rows/*")}
    capsys.readouterr()
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("rows/*") if path in written} == written
    out = capsys.readouterr().out
    table = out[out.index("Table 1 of the paper") :]
    header, _, first, second = table.splitlines()[1:5]
    assert header.split() == ["method", "AD", "↓", "resnet50*", "vgg16_bn*", "AG", "↑", "resnet50*", "vgg16_bn*"]
    more = ["method", "AI", "↑", "resnet50*", "vgg16_bn*", "s", "/", "8", "images", "resnet50*", "vgg16_bn*", "images"]
    assert more in [line.split() for line in table.splitlines()]
    assert max(map(len, table.splitlines()[:12])) <= 120
    assert first.startswith("OptiCAM")
    assert "68.80      71.20" in first
    assert second.startswith("GradCAM")
    assert "* The paper's values of another network" in table
    assert {path.name for path in (folder / "report").iterdir()} == {"table.csv", "table.md", "table.tex"}
    rows = list(csv.DictReader((folder / "report" / "table.csv").read_text().splitlines()))
    assert len(rows) == 3 * 2 * 3
    assert rows[0]["settings_that_differ"] == "network test_resnet, not resnet50"
    assert (rows[0]["paper"], rows[0]["difference"]) == ("1.5", "")
    assert main(["paper", "1", *words, "--explainers", "GradCAM", "--report", "--format=latex"]) == 0
    assert r"\begin{tabular}" in capsys.readouterr().out
    lines = [line for line in commands_of("reproduction.md") if line[1] == "report"]
    for line in lines:
        assert main([str(folder) if word.startswith("logs/") else word for word in line[1:]]) == 0
    assert "Kendall's tau between metrics over 3 methods, 2 images" in capsys.readouterr().out
    assert Path("agreement.png").is_file()


def test_the_page_names_every_experiment_and_its_commands_are_right() -> None:
    lines = commands_of("reproduction.md")
    assert [line[1] for line in lines] == ["paper", "paper", "paper", "report", "report"]
    named = re.findall(r"`optcam paper (table\w+|figure\w+)`", (DOCS / "reproduction.md").read_text())
    assert named == list(EXPERIMENTS)
    options, rest, experiments, _ = asked("paper", lines[2][2:])
    assert [found.name for found in experiments] == [lines[2][2]]
    assert (options.network, options.limit, rest) == (["resnet50"], 1000, ["--data.root", "FOLDER"])


def test_the_bounding_box_study_has_the_boxes_without_a_method(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["paper", "table5", *words, "--data.boxes=boxes", "--explainers", "GradCAM"]) == 0
    out = capsys.readouterr().out
    lines = out[out.index("Table 5 of the paper") :].splitlines()
    assert [line.split()[:2] for line in lines[3:8]] == [
        *([["GradCAM", region] for region in ("map", "inside_box", "outside_box")]),
        *([["no", "method"], ["no", "method"]]),
    ]
    value = {row.variant: row.value for row in published() if row.table == "5" and row.method == "Grad-CAM"
             and row.metric == "average_gain"}  # fmt: skip
    shown = [line.split("]")[1].split()[-1] for line in lines[3:6]]
    assert len(shown) == 3
    rows = list(csv.DictReader(Path("logs/paper/table5/test_resnet_limit2/report/table.csv").read_text().splitlines()))
    gains = {row["region"]: float(row["paper"]) for row in rows if row["metric"] == "average_gain" and row["paper"]}
    assert gains["map"] == value["region=S"]
    assert gains["outside_box"] == value["region=outside_box"]
    (box,) = (row.value for row in published() if row.method == "box" and row.metric == "average_gain")
    assert gains["box"] == box


def test_misclassified_images_are_a_part_of_the_run_with_the_predicted_class(words: list[str]) -> None:
    assert main(["paper", "tableA9", *words, "--explainers", "FakeCAM"]) == 0
    folder = Path("logs/paper/tableA9/test_resnet_limit2")
    label, predicted = (load_run(folder / f"target={target}" / "FakeCAM") for target in ("label", "predicted"))
    part = misclassified(predicted, label)
    assert part.manifest["settings"]["target"] == "top1_misclassified"
    wrong = [row.id for row in label.rows if row.predicted != row.target]
    assert [row.id for row in part.rows] == wrong
    assert part.manifest["images"] == len(wrong)
    known = next(row for row in label.rows)
    right = replace(label, rows=type(label.rows)((replace(known, target=known.predicted), *label.rows[1:])))
    assert known.id not in {row.id for row in misclassified(predicted, right).rows}
    text = (folder / "report" / "table.csv").read_text()
    assert (",top1_misclassified," in text) is bool(wrong)


def test_the_figures_are_drawn(words: list[str]) -> None:
    pytest.importorskip("skimage")
    grid = ["--grid", "model.explainer.lr=0.1", "model.explainer.max_iter=1,2"]
    assert main(["paper", "figureA5", *words, *grid]) == 0
    assert main(["paper", "A4", "figureA6", *words, "--explainers", "GradCAM"]) == 0
    assert main(["paper", "figureA6", *words, "--explainers", "GradCAM", "--report"]) == 0
    for name in ("figureA4", "figureA5", "figureA6"):
        with Image.open(f"logs/paper/{name}/test_resnet_limit2/report/figure.png") as figure:
            assert figure.width > figure.height
    with pytest.raises(RuntimeError, match="made by other words"):
        main(["paper", "figureA6", *words, "--model.target=predicted", "--explainers", "GradCAM"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["paper"], "Expected a table or figure: table1, "),
        (["paper", "tabel1"], "got 'tabel1'. The nearest are: 'table1'"),
        (
            ["paper", "table1", "--network", "resnet5"],
            "Expected `--network` to be one of resnet50, vgg16_bn, .*resnet50",
        ),
        (["paper", "table1", "--network", "resnet50", "--explainers", "GradCAMM"], "The nearest are: 'GradCAM'"),
        (
            ["paper", "table1", "--network", "resnet50", "--model.explainer.max_itr=3"],
            "max_itr` to be a setting of one of the explainers FakeCAM, .*'max_iter'",
        ),
        (["paper", "tableA13", "--network", "timm/test_resnet"], "--grid model.classifier.target_layer=LAYER"),
        (["paper", "check", "--network", "vgg"], "one of resnet50, vgg16_bn, vit_base"),
    ],
)
def test_a_wrong_word_is_told(given: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        main(given)
    assert not Path("logs").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["paper", "table1", "--network", "resnet50"],
        ["paper", "check", "--network", "resnet50"],
        ["paper", "A6"],
        ["test", "--config", "paper/table1_resnet50"],
        ["compare", "--config", "paper/table1_resnet50", "--explainers", "GradCAM"],
        ["sweep", "--config", "paper/table1_resnet50", "--grid", "data.limit=1,2"],
        ["sanity", "--config", "paper/table1_resnet50"],
    ],
)
def test_a_missing_folder_is_told_before_a_network_is_made(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("optcam_pl.network.classifier.load_network", lambda *_: pytest.fail("made"))
    with pytest.raises((OSError, ValueError), match="`root` to be a folder, but there is no folder 'nowhere'"):
        main([*words, "--data.root", "nowhere"])
    assert not Path("logs").exists()


def test_a_network_that_must_be_fine_tuned_first_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="made by: optcam fit --config .*paper/kvasir_resnet50_fit.yaml"):
        main(["paper", "A.10", "--network", "kvasir_resnet50"])


def test_the_list_has_every_config_and_every_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2 : 2 + len(EXPERIMENTS)]] == list(EXPERIMENTS)
    stems = {stem for found in EXPERIMENTS.values() for of in found.configs.values() for stem in of}
    assert stems == {file.stem for file in CONFIGS.glob("*.yaml") if not file.stem.endswith("_fit")}
    assert {found.table for found in EXPERIMENTS.values()} - {""} == {row.table for row in published()} - {"E.2"}
    seconds = {row.method: row.value for row in published() if row.table == "1" and row.network == "vgg16_bn"
               and row.metric == "seconds_per_batch_of_8"}  # fmt: skip
    hours = 4 * 0.5 * seconds["Opti-CAM"] / 8 * 1000 / 3600
    assert cost(find_experiment("table A.12")) == ["vgg16_bn", "4", "1000", f"{hours:.2g}", "1"]


def a_summary(**changes) -> Summary:
    """The paper's settings: Grad-CAM on ResNet50."""
    settings = {"baseline": "black", "target": "label", "layer": ["layer4.2"], "weights": "IMAGENET1K_V1"}
    statuses = {"ok": 100, "degenerate": 0, "error": 0, "missing": 0}
    metrics = {"average_gain": Estimate(20.0, 0, 18.0, 22.0)}
    values = {"run": "r", "stage": "test", "data": "imagenet", "classifier": "torchvision/resnet50"}
    values |= {"explainer": "GradCAM", "settings": settings, "options": {}, "images": 100, "statuses": statuses}
    return Summary(**{**values, "seconds_per_image": 0.5, "metrics": metrics, **changes})


def test_ours_the_papers_and_the_difference_stand_side_by_side() -> None:
    black = Measured({}, a_summary())
    gray = Measured({}, a_summary(explainer="ScoreCAM", settings={**a_summary().settings, "baseline": "mean"}))
    unknown = Measured({}, a_summary(explainer="RISE"))
    (grid,) = paper_grids([black, gray, unknown], "1")
    assert grid.header == ["method", "AG ↑", "paper", "difference", "s / 8 images", "paper", "images"]
    assert grid.body[0] == ["GradCAM", "20.00 [18.00, 22.00]", "17.60", "+2.40", "4.00", "0.03", "100"]
    assert grid.body[1][2:4] == ["26.60", "-"]  # another baseline: no number to subtract
    assert grid.body[2][2:4] == ["-", "-"]
    text = render(grid, "text")
    assert "(GradCAM): images 100, not 50000" in text
    assert "(ScoreCAM): baseline mean, not black, images 100, not 50000" in text
    first = next(csv.DictReader(paper_csv([black], "1").splitlines()))
    assert float(first["difference"]) == pytest.approx(2.4)
    assert networks_of("1") == ["resnet50", "vgg16_bn"]


def test_a_table_too_wide_for_a_terminal_is_several_with_the_same_rows() -> None:
    drop = {"average_drop": Estimate(5.0, 0, 4.0, 6.0), **a_summary().metrics, "average_increase": Estimate(40.0)}
    other = a_summary(classifier="demo/efficientnet_lite0", metrics=drop)
    (wide,) = paper_grids([Measured({"lr": "0.1"}, other), Measured({"lr": "0.5"}, other)], "1")
    assert folded(wide, 1000) == [wide]
    first, *middle, last = folded(wide, 60)
    assert [part.header[:3] for part in (first, *middle, last)] == [["method", "lr", head] for head in (
        "AD ↓", "AG ↑", "AI ↑", "s / 8 images")]  # fmt: skip
    assert [head for part in (first, *middle, last) for head in part.header[2:]] == wide.header[2:]
    assert first.body[1] == ["GradCAM", "0.5", "5.00 [4.00, 6.00]", "12.20", "14.20"]
    assert (first.title, last.title, first.below, last.below) == (wide.title, "", [], wide.below)
    assert all(len(line) <= 60 for line in render(first, "text").splitlines()[1:])
    assert len(folded(wide, 5)) == 5  # one metric each, however wide


def test_the_check_says_what_is_off_and_what_it_moves(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["paper", "check", *words, "--data.boxes=boxes"])
    out = capsys.readouterr().out
    folder = Path("logs/paper/check/test_resnet_limit2")
    rows = read_rows(folder / "FakeCAM")
    entropy = -math.fsum(math.log(row.p) for row in rows) / len(rows)
    text = out[out.index("Checks of timm/test_resnet on 2 images of imagenet:") :]
    assert f"right        Fake-CAM's SM is the mean cross-entropy, nats: {entropy:.3f} [" in text
    assert f"; expected: {entropy:.3f}\n" in text
    assert "cannot tell  top-1 accuracy with the source's resize and crop, %: " in text
    assert "; expected: not known\n" in text
    assert "off          Fake-CAM's LE, %: 84.38 [84.38, 84.38]; expected: 54.0\n" in text  # 1 - 200/1280
    effect = " ".join(text.split())
    assert "the boxes cover 15.6 % of an image, the paper's 46 %: Fake-CAM's LE moves by +30.4 points" in effect
    for name in ("HiResCAM", "XGradCAM"):  # test_resnet's head is average pooling and one linear layer
        assert f"right        {name} - GradCAM, points: AD " in text
    assert "cannot tell  GradCAM, cropped - stretched, points: AD " in text
    assert "| Fake-CAM's LE, % | 84.38" in (folder / "report" / "check.md").read_text()
    assert code == 1
    assert (
        json.loads((folder / "GradCAM_crop" / "manifest.json").read_text())["settings"]["input"].split()[1] == "crop,"
    )


def test_the_check_tells_what_it_can_where_a_run_breaks_off(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = points.OptcamCLI

    def broken(given, name=None, **kwargs):
        if name in only:
            raise ValueError(f"{name} is out of order")
        return real(given, name, **kwargs)

    monkeypatch.setattr(points, "OptcamCLI", broken)
    only = ["FakeCAM", "FakeCAM_crop", "XGradCAM"]
    assert main(["paper", "check", *words]) == 1
    out, err = capsys.readouterr()
    assert "Checks of timm/test_resnet on 2 images of imagenet:" in out
    assert "right        HiResCAM - GradCAM, points: AD " in out
    assert "  FakeCAM_crop: ValueError: FakeCAM_crop is out of order\n" in err


def test_the_sources_accuracy_is_that_of_the_weights() -> None:
    class Named:
        def __init__(self, name: str, weights: str = "default") -> None:
            self.name, self.weights = name, weights

    found = {
        ("torchvision/resnet50", "IMAGENET1K_V1"): 76.13,
        ("torchvision/resnet50", "default"): 80.858,
        ("torchvision/resnet50", "random"): None,
        ("torchvision/resnet50", "a.pth"): None,
        ("timm/vit_base_patch16_224", "default"): 85.096,
        ("timm/vit_base_patch16_224.augreg_in21k_ft_in1k", "default"): 84.532,
        ("timm/deit_base_patch16_224", "default"): 81.992,
        ("timm/resnet18", "default"): None,
        ("timm/deit_base_patch16_224", "a.pth"): None,
        ("demo/efficientnet_lite0", "default"): 74.83,
    }
    assert {key: published_accuracy(Named(*key)) for key in found} == found
