"""The commands, as a user types them: every config, every bad input, fit then test, one process and two."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from optcam_pl.cli import main
from optcam_pl.data import ImageFolder
from optcam_pl.metrics import METRICS
from optcam_pl.network.classifier import Classifier
from optcam_pl.reports.report import load_run, report, summarize
from optcam_pl.runs.rows import read_rows
from optcam_pl.runs.tensors import mean_curves

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "tests" / "conf" / "tiny.yaml")

pytestmark = pytest.mark.filterwarnings(
    # tensorboard's protobuf classes and torch's own writer, https://github.com/pytorch/pytorch/issues/134958
    "ignore::DeprecationWarning",
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in json.loads(row.to_json()).items() if k != "seconds"} for row in read_rows(run)]


def test_an_output_that_nobody_reads_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "optcam_pl", "--help"]
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, timeout=240, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_test_writes_rows_maps_and_tensorboard_and_prints_the_table(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = '--trainer.callbacks+={"class_path": "optcam_pl.callbacks.MapWriter"}'
    assert main(["test", "--config", TINY, f"--data.root={photos}", writer]) == 0
    run = Path("logs/photos/OptiCAM/version_0")
    rows = read_rows(run)
    assert [row.index for row in rows] == list(range(7))
    assert all(row.status in ("ok", "degenerate") for row in rows)
    out = capsys.readouterr().out
    assert "AD" in out
    assert "OptiCAM" in out
    assert "baseline: black" in out
    assert str(run / "overlays") in out
    assert len(list((run / "overlays").glob("*.png"))) == 7
    with np.load(next((run / "maps").glob("*.npz"))) as stored:
        assert stored["saliency"].shape == (64, 64)
        assert 0 <= stored["saliency"].min() <= stored["saliency"].max() <= 1
    assert list(run.glob("events.out.tfevents*"))
    assert (run / "config.yaml").is_file()


def test_the_rows_are_those_of_any_limit_of_the_same_images_and_blocks(photos: Path) -> None:
    main(["test", "--config", TINY, f"--data.root={photos}", "--run_dir=a"])
    main(["test", "--config", TINY, f"--data.root={photos}", "--run_dir=b"])
    assert rows_of(Path("a")) == rows_of(Path("b"))


def test_fit_then_test_gives_the_numbers_of_test_alone(photos: Path) -> None:
    common = ["--config", TINY, f"--data.root={photos}"]
    main(["fit", *common, "--run_dir=fit"])
    main(["test", *common, "--run_dir=with", "--model.weights_from=fit"])
    main(["test", *common, "--run_dir=alone"])
    assert rows_of(Path("with")) == rows_of(Path("alone"))
    stored = load_file("fit/weights/b000000.safetensors")
    assert stored["weights"].shape[0] == 3
    assert stored["objective"].shape == (5, 3)
    torch.testing.assert_close(stored["weights"].sum(1), torch.ones(3))


def test_weights_of_other_settings_are_refused_by_name(photos: Path) -> None:
    common = ["--config", TINY, f"--data.root={photos}"]
    main(["fit", *common, "--run_dir=fit"])
    with pytest.raises(RuntimeError, match=r"The fit in fit was made with other settings:\s+explainer.normalizer"):
        main(["test", *common, "--model.weights_from=fit", "--model.explainer.normalizer=max"])
    main(["test", *common, "--run_dir=alone"])
    with pytest.raises(ValueError, match="the run folder of an `optcam fit`, but alone is one of an `optcam test`"):
        main(["test", *common, "--model.weights_from=alone"])


def test_selectivity_and_augment_are_settings_of_any_run(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--config", TINY, f"--data.root={photos}", "--data.limit=3"]
    main(["fit", *common, "--run_dir=fit"])
    main(["test", *common, "--run_dir=plain"])
    raised = ["--model.selectivity=0.5"]
    main(["test", *common, *raised, "--run_dir=alone"])
    main(["test", *common, *raised, "--run_dir=with", "--model.weights_from=fit"])  # one fit serves every exponent
    assert rows_of(Path("alone")) == rows_of(Path("with")) != rows_of(Path("plain"))
    augment = ["--model.augment=true", "--model.explainer=GradCAM"]
    main(["test", *common, *augment, "--run_dir=views"])
    settings = [load_run(run).manifest["explainer_settings"] for run in ("plain", "alone", "views")]
    assert [s.get("selectivity") for s in settings] == [None, 0.5, None]
    assert [s.get("augment") for s in settings] == [None, None, True]
    for command, more in (("fit", []), ("test", ["--model.weights_from=fit"])):
        with pytest.raises(ValueError, match="Expected `augment` to be off"):
            main([command, *common, *more, "--model.augment=true", "--run_dir=refused"])


@pytest.mark.parametrize(("target", "rank"), [("predicted", 0), ("second", 1), ("least", -1), (5, None)])
def test_the_class_that_is_explained_is_chosen_by_rank_or_number(photos: Path, target: str, rank: int | None) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), "tiny.pth")
    words = ["--model.explainer=FakeCAM", f"--model.target={target}", "--model.classifier.weights=tiny.pth"]
    main(["test", "--config", TINY, f"--data.root={photos}", "--run_dir=x", *words])
    run = load_run("x")
    classifier, data = Classifier("timm/test_resnet", "tiny.pth", input_size=64), ImageFolder(str(photos))
    data.match_network(classifier.input_size, classifier.interpolation, classifier.crop_fraction)
    image = torch.stack([data.table[i]["image"] for i in range(len(data.table))])
    order = classifier(image).argsort(1, descending=True)
    for row, ranked in zip(run.rows, order, strict=True):
        assert row.predicted == ranked[0]
        assert row.target == (5 if rank is None else ranked[rank])


def test_predict_explains_a_single_file(photos: Path) -> None:
    photo = next(photos.rglob("*.png"))
    data = ["--data=ImagePaths", f"--data.paths={photo}", "--data.batch_size=1"]
    main(["predict", "--config", TINY, *data, "--run_dir=predict"])
    assert len(list(Path("predict/overlays").glob("*.png"))) == 1
    assert len(list(Path("predict/maps").glob("*.npz"))) == 1


def test_compare_prints_one_table_and_report_prints_it_again(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    explainers = ["--explainers", "OptiCAM", "GradCAM", "FakeCAM"]
    assert main(["compare", "--config", TINY, f"--data.root={photos}", "--run_dir=all", *explainers]) == 0
    out, err = capsys.readouterr()
    assert all(name in out for name in explainers[1:])
    assert "tensorboard --logdir" in err
    assert main(["report", "all", "--format=json"]) == 0
    runs = json.loads(capsys.readouterr().out)
    assert {run["explainer"] for run in runs} == set(explainers[1:])
    for run in runs:
        assert {"run", "data", "classifier", "settings", "images", "seconds_per_image", "metrics"} <= run.keys()
        assert {"average_drop", "average_gain", "average_increase"} <= run["metrics"].keys()
        alone = summarize(load_run(f"all/{run['explainer']}"))
        assert run["metrics"]["average_drop"]["value"] == alone.metrics["average_drop"].value
    assert main(["verify", "all/OptiCAM"]) == 0


def measured(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Metrics and the rest of the JSON report of a run, and the printed table, which `report` prints again."""
    capsys.readouterr()
    assert main(["test", "--config", TINY, *words, "--run_dir=r"]) == 0
    printed = capsys.readouterr().out
    assert main(["report", "r"]) == 0
    assert capsys.readouterr().out in printed  # to the last digit
    assert main(["report", "r", "--format=json"]) == 0
    return dict(json.loads(capsys.readouterr().out)[0])


SHAPES = ["--data=Shapes", "--data.images=7", "--data.batch_size=3", "--model.target=label"]


def test_every_metric_is_measured_with_an_interval_and_its_curves_are_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    smooth = ["--model.metrics=all", "--model.explainer=GradCAM", "--model.classifier.input_size=56"]
    found = measured([*SHAPES, *smooth, "--model.classifier.num_classes=6"], capsys)
    assert list(found["metrics"]) == list(METRICS)
    for key, estimate in found["metrics"].items():
        assert estimate["low"] <= estimate["value"] <= estimate["high"], key
    assert found["settings"]["insertion_steps"] == 224
    curve, half, images = mean_curves(Path("r"))["insertion"]
    assert (curve.shape, half.shape, images) == ((225,), (225,), 7)
    assert curve.mean().item() == pytest.approx(found["metrics"]["insertion"]["value"], abs=1e-4)
    accumulator = EventAccumulator("r", size_guidance={"images": 0})
    accumulator.Reload()
    assert {"test_plots/insertion", "test_plots/selectivity_gain"} <= set(accumulator.Tags()["images"])


@pytest.mark.parametrize("region", ["inside_box", "outside_box", "box", "complement"])
def test_regions_of_the_map_are_measured_in_its_place(region: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SHAPES, "--model.explainer=FakeCAM", f"--model.region={region}", "--model.classifier.num_classes=6"]
    metrics = ["AverageDrop", "EnergyPointingGame", "Complexity"]
    found = measured([*words, f"--model.metrics={json.dumps(metrics)}"], capsys)
    assert found["settings"]["region"] == region
    inside = region in ("inside_box", "box")
    assert found["metrics"]["energy_pointing_game"]["value"] == pytest.approx(100 if inside else 0)
    assert 0 < found["metrics"]["complexity"]["value"] < 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.region=box"], "a dataset with boxes, which `region` box needs, but photos has none"),
        (['--model.metrics=["PixelF1"]'], "a dataset with boxes, which metric pixel_f1 needs, but photos has none"),
        (['--model.metrics=["AverageDrop","AverageDrop"]'], "each of `metrics` once"),
        (["--model.chunk_size=0"], "`chunk_size` to be a positive integer, but got 0"),
    ],
)
def test_metrics_that_cannot_be_measured_are_refused(photos: Path, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main(["test", "--config", TINY, f"--data.root={photos}", *words])


def test_a_broken_file_is_named_or_recorded(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "n01440764" / "photo 9.png").write_text("this is no image")
    common = ["--config", TINY, f"--data.root={photos}"]
    with pytest.raises(ValueError, match="photo 9.png"):
        main(["test", *common])
    assert main(["test", *common, "--data.on_error=record", "--run_dir=recorded"]) == 3
    rows = read_rows("recorded")
    assert [row.id for row in rows if row.status == "error"] == ["n01440764/photo 9.png"]
    assert len(rows) == 8
    told = capsys.readouterr()
    assert "errors (1), not counted: n01440764/photo 9.png" in told.out
    assert "1 of 8 images could not be read" in told.err
    compare = ["--explainers", "GradCAM", "FakeCAM", "--data.on_error=record", "--run_dir=both"]
    main(["compare", *common, *compare])  # goes on to the second
    assert [len(read_rows(f"both/{name}")) for name in compare[1:3]] == [8, 8]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.root=nowhere"], "nowhere"),
        (["--model.target=label", "--data=ImagePaths", "--data.paths={photo}"], "no labels, set `target` to predicted"),
        (["--model.target=5000"], "Expected `target`"),
        (["--model.classifier.network=torchvision/resnet5"], "resnet50"),
        (["--model.classifier.target_layer=layr4"], "layer4"),
        (["--model.classifier.weights=other.pth"], "state dict|unexpected|missing"),
        (["--model.explainer.max_iter=0"], "Expected `max_iter` to be a positive integer, but got 0."),
        (["--model.explainer=GradCAM", "--model.weights_from=x"], "an explainer that optimizes weights"),
        (["--threads=0"], "Expected `threads` to be a positive integer"),
    ],
)
def test_bad_input_is_refused_in_words(photos: Path, words: list[str], message: str) -> None:
    torch.save({"other.weight": torch.zeros(2)}, "other.pth")
    words = [word.format(photo=next(photos.rglob("*.png"))) for word in words]
    with pytest.raises((ValueError, OSError), match=message):
        main(["test", "--config", TINY, f"--data.root={photos}", *words])


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("--model.explainer.max_iter=0", "optcam: error: Expected `max_iter` to be a positive integer, but got 0."),
        ("--data.root=nowhere", "optcam: error: Expected `root` to be a folder, but there is no folder 'nowhere'."),
        (
            "--model.classifier.network=null",
            "optcam: error: Expected `network` to be given, unless `weights` is a checkpoint of ClassificationTask.",
        ),
    ],
)
def test_an_error_is_told_in_one_sentence(
    photos: Path, word: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["optcam", "test", "--config", TINY, f"--data.root={photos}", word])
    assert main() == 2
    assert capsys.readouterr().err == f"{told}\n(OPTCAM_TRACEBACK=1 shows where)\n"


def test_fit_of_something_without_weights_is_refused(photos: Path) -> None:
    with pytest.raises(TypeError, match="something to fit \\(OptiCAM\\), but got FakeCAM"):
        main(["fit", "--config", TINY, f"--data.root={photos}", "--model.explainer=FakeCAM"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.explainer=OptiCAMM"], "OptiCAMM"),
        (["--model.explainer.max_itr=3"], "max_itr"),
    ],
)
def test_unknown_explainers_options_and_configs_are_named(
    photos: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["test", "--config", TINY, f"--data.root={photos}", *words])
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert message in told
    assert "NoneType" not in told
    assert "Given value" not in told


def test_compare_names_an_unknown_explainer() -> None:
    with pytest.raises(ValueError, match="got 'GradCAN'. The nearest are: 'GradCAM'"):
        main(["compare", "--config", TINY, "--explainers", "GradCAN"])


def test_help_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    about = {"": "train a network", "test": "--model.help SaliencyTask", "compare": "--explainers"}
    for command, told in about.items():
        words = [*command.split(), "--help"]
        if command:
            with pytest.raises(SystemExit) as stopped:
                main(words)
            assert stopped.value.code == 0
        else:
            assert main(words) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "--config" in text
        assert told in text
        assert "Lightning" not in text.partition("options:")[0]


def test_print_config_shows_the_merged_settings(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["test", "--config", TINY, f"--data.root={photos}", "--model.explainer.lr=0.5", "--print_config"])
    assert "lr: 0.5" in capsys.readouterr().out


@pytest.mark.parametrize(("preset", "max_iter", "lr"), [("paper", 100, 0.1), ("fast", 20, 1.0)])
def test_a_printed_config_is_the_run_and_the_run_tells_what_its_preset_filled_in(
    photos: Path, capsys: pytest.CaptureFixture[str], preset: str, max_iter: int, lr: float
) -> None:
    Path("tiny.yaml").write_text(Path(TINY).read_text().replace("max_iter: 4", f"preset: {preset}"))
    words = ["test", "--config", "tiny.yaml", f"--data.root={photos}", "--data.limit=1"]
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--print_config"])
    Path("printed.yaml").write_text(capsys.readouterr().out)
    assert yaml.safe_load(Path("printed.yaml").read_text())["model"]["init_args"]["explainer"]["init_args"][
        "max_iter"
    ] is None  # fmt: skip
    assert main([*words, "--run_dir=a"]) == 0
    assert main(["test", "--config", "printed.yaml", "--run_dir=b"]) == 0
    assert main(["test", "--config", "a/config.yaml", "--run_dir=c"]) == 0
    first, *others = (load_run(run).manifest for run in "abc")
    assert all(other["fingerprint"] == first["fingerprint"] for other in others)
    assert rows_of(Path("a")) == rows_of(Path("b")) == rows_of(Path("c"))
    assert (first["explainer_settings"]["max_iter"], first["explainer_settings"]["lr"]) == (max_iter, lr)
    (summary,) = json.loads(report(["a"], "json"))
    assert (summary["options"]["max_iter"], summary["options"]["lr"]) == (max_iter, lr)
    assert f"max_iter={max_iter}, lr={lr}" in " ".join(report(["a"]).split())


def test_loader_processes_are_no_part_of_a_run(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["test", "--config", TINY, f"--data.root={photos}"]
    for workers in ("0", "auto"):
        assert main([*common, f"--data.num_workers={workers}", f"--run_dir={workers}"]) == 0
    assert rows_of(Path("0")) == rows_of(Path("auto"))
    assert load_run("0").manifest["fingerprint"] == load_run("auto").manifest["fingerprint"]
    capsys.readouterr()
    assert main([*common, "--data.num_workers=auto", "--run_dir=0", "--resume=require"]) == 0
    assert "7 of 7 images are done in 0: nothing left to do" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["data", "classifier", "trainer", "explainer", "metrics"])
def test_every_block_composes_with_a_run(folder: str, photos: Path) -> None:
    for block in sorted((ROOT / "configs" / folder).glob("*.yaml")):
        use = [f"--model.explainer={block}"] if folder == "explainer" else [f"--config={block}"]
        root = [] if folder == "data" else [f"--data.root={photos}"]
        with pytest.raises(SystemExit) as stopped:
            main(["test", "--config", TINY, *use, *root, "--print_config"])
        assert stopped.value.code == 0, block


@pytest.mark.ddp
def test_two_processes_write_the_rows_of_one(photos: Path) -> None:
    common = [sys.executable, "-m", "optcam_pl", "test", "--config", TINY, f"--data.root={photos}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for devices in (1, 2):
        extra = ["--trainer.strategy=ddp"] if devices > 1 else []
        words = [*common, f"--trainer.devices={devices}", f"--run_dir=p{devices}", *extra]
        done = subprocess.run(words, capture_output=True, text=True, timeout=240, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert not re.findall("Seed set|GPU available|Tip:", done.stderr)  # what Lightning says at every run
    assert rows_of(Path("p1")) == rows_of(Path("p2"))
    one, two = (summarize(load_run(f"p{n}")).metrics for n in (1, 2))
    assert one == two


@pytest.mark.ddp
def test_fit_on_two_processes_stores_the_weights_of_one(photos: Path) -> None:
    common = [sys.executable, "-m", "optcam_pl", "fit", "--config", TINY, f"--data.root={photos}"]
    for devices in (1, 2):
        extra = ["--trainer.strategy=ddp"] if devices > 1 else []
        words = [*common, f"--trainer.devices={devices}", f"--run_dir=f{devices}", *extra]
        done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    files = sorted(p.name for p in Path("f1/weights").iterdir())
    assert files == sorted(p.name for p in Path("f2/weights").iterdir())
    for name in files:
        one, two = load_file(f"f1/weights/{name}"), load_file(f"f2/weights/{name}")
        assert all(torch.equal(one[key], two[key]) for key in one)
