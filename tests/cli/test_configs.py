"""Every config runs, on made-up data and with a tiny network; fitting and explaining take one config each."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from data_cases import make_boxes, make_coco, make_cub, make_pets, make_tree, make_voc

from optcam_pl import explainers
from optcam_pl.cli import main
from optcam_pl.cli.grid import points, read_axes
from optcam_pl.cli.methods import listed_methods
from optcam_pl.data import ChestXRay, Kvasir
from optcam_pl.imagenet import imagenet_wnids
from optcam_pl.reports.report import load_run
from optcam_pl.runs.rows import read_rows
from optcam_pl.tasks import ClassificationTask

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TINY = str(CONFIGS.parent / "tests" / "conf" / "tiny.yaml")
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--threads=1"]
SMALL = ["--data.batch_size=4", "--data.num_workers=0"]
CLASSES = {"ChestXRay": ("NORMAL", "PNEUMONIA"), "Kvasir": Kvasir.CLASSES}

pytestmark = pytest.mark.filterwarnings(
    # tensorboard's protobuf classes and torch's own writer, https://github.com/pytorch/pytorch/issues/134958
    "ignore::DeprecationWarning",
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def read(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    return config


def made_up(data: dict[str, Any]) -> list[str]:
    """The words that put made-up images in the place of a config's data."""
    name, here = data["class_path"], Path("made up")
    if name in ("ImageNet", "ImageFolder"):
        make_tree(here, imagenet_wnids()[:2], {"": 6})
        if "boxes" in data["init_args"]:
            make_boxes(here, Path("boxes"))
            return [f"--data.root={here}", "--data.boxes=boxes"]
    elif name == "ImagePaths":
        return [f"--data.paths={make_tree(here, ['x'], {'': 4})}"]
    elif name == "ChestXRay":
        make_tree(here / "chest_xray", CLASSES[name], {"train": 8, "val": 4, "test": 4}, gray=True)
    elif name == "Kvasir":
        make_tree(here, CLASSES[name], {"": 64})
    elif name == "Shapes":
        return ["--data.images=6", "--data.train_images=12"]
    elif name == "SamplePhotos":
        return []
    elif name == "CSVImages" and "CUB" in data["init_args"]["file"]:
        make_cub(here)
        command = next(line for line in (CONFIGS / "data" / "cub.yaml").read_text().splitlines() if "paste" in line)
        subprocess.run(["bash", "-c", command.removeprefix("# ")], cwd=here, check=True)
        return [f"--data.file={here / 'cub.csv'}"]
    elif name == "CSVImages":
        file = next(make_tree(here, ["x"], {"": 1}).rglob("*.jpeg"))
        Path("images.csv").write_text(f"path,label,x1,y1,x2,y2,split\n{file},0,1,1,9,9,test\n")
        return ["--data.file=images.csv", "--data.root=."]
    elif name == "HuggingFaceDataset":
        pytest.importorskip("datasets").disable_progress_bars()
        make_tree(here, ["cat", "dog"], {"train": 4, "validation": 2, "test": 4})
        return [f"--data.arguments={{data_dir: {here}, cache_dir: cache}}"]
    elif data["init_args"]["dataset"] == "CocoDetection":
        pytest.importorskip("pycocotools")
        here.mkdir()
        make_coco(here)
        return [f"--data.arguments={{root: {here}, annFile: {here / 'a.json'}}}"]
    else:
        (make_voc if data["init_args"]["dataset"] == "VOCDetection" else make_pets)(here)
        return [f"--data.arguments.root={here}"]
    return [f"--data.root={here}"]


def tiny_weights(classes: int) -> str:
    torch.save(timm.create_model("test_resnet", num_classes=classes).state_dict(), "tiny.pth")
    return "tiny.pth"


def test_the_packages_configs_leave_the_number_of_loader_processes_to_the_machine() -> None:
    found = {path.stem: re.findall(r"num_workers: *(\w+)", path.read_text()) for path in CONFIGS.rglob("*.yaml")}
    assert {value for values in found.values() for value in values} == {"auto"}


def tiny(config: dict[str, Any], fit: bool) -> list[str]:
    """The words that put a tiny network in the place of a config's."""
    given = config["model"]["init_args"]["classifier"]["init_args"]
    data = config["data"]["class_path"]
    classes = given.get("num_classes") or {"Shapes": 6}.get(data) or len(CLASSES.get(data, range(1000)))
    words = ["network=timm/test_resnet", f"weights={'random' if fit else tiny_weights(classes)}", "input_size=64"]
    words += ["target_layer=layer4"] if "target_layer" in given else []
    return [f"--model.classifier.{word}" for word in words]


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("*.yaml")) + sorted(CONFIGS.glob("paper/*_fit.yaml")), ids=lambda p: p.stem
)
def test_every_config_runs_with_a_tiny_network(path: Path) -> None:
    config = read(path)
    fit = path.stem.endswith("_fit")
    command = "fit" if fit else "predict" if path.stem == "predict" else "test"
    words = [*tiny(config, fit), *made_up(config["data"]), *QUIET, "--run_dir=run", "--data.batch_size=4"]
    if "num_workers" in config["data"]["init_args"]:
        words.append("--data.num_workers=0")
    if fit:
        words += ["--model.head_epochs=1", "--model.epochs=1"]
    elif config["model"]["class_path"] == "SaliencyTask":
        words.append("--model.explainer.max_iter=2")
    assert main([command, "--config", str(path), *words]) == 0
    if fit:
        assert Path("run/checkpoints/best.ckpt").is_file()
    elif config["model"]["class_path"] == "SaliencyTask":
        assert read_rows("run")


@pytest.mark.parametrize("path", sorted(set(CONFIGS.glob("paper/*")) - set(CONFIGS.glob("paper/*_fit.yaml"))),
                         ids=lambda p: p.stem)  # fmt: skip
def test_every_config_of_the_paper_runs_on_two_images(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = read(path)
    point = points(read_axes([], config.get("grid")))[-1]  # the settings that are farthest from the usual ones
    words = [word.replace("features.6", "layer1") for word in point.words]
    words += ["--data.size=64"]
    words = ["test", "--config", str(path), *tiny(config, False), *made_up(config["data"]), *QUIET, *SMALL, *words]
    assert main([*words, "--data.limit=2", "--model.explainer.max_iter=2", "--run_dir=run"]) == 0
    assert len(read_rows("run")) == 2
    saved = yaml.safe_load(Path("run/config.yaml").read_text())
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        main(["test", "--config", str(path), "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["explainers"], printed["grid"]) == (saved["explainers"], saved["grid"])
    for method in listed_methods([str(path)]) if config.get("explainers") else []:
        given = json.loads(method.given) if method.given.startswith("{") else {"class_path": method.given}
        getattr(explainers, given["class_path"])(**given.get("init_args", {}))
    settings = config["model"]["init_args"]["explainer"]["init_args"]
    assert {**settings, "max_iter": 100} == {"objective": "mask", "normalizer": "range", "max_iter": 100, "lr": 0.1}


# Rows for boxes need scores of boxes: test_vision_configs runs that block.
DATA_BLOCKS = sorted(path for path in CONFIGS.glob("data/*.yaml") if path.stem != "each_box")


@pytest.mark.parametrize("path", DATA_BLOCKS, ids=lambda p: p.stem)
def test_every_data_block_runs(path: Path) -> None:
    words = [*made_up(read(path)["data"]), "--data.num_workers=0", *QUIET, "--model.target=predicted", "--run_dir=run"]
    assert main(["test", "--config", TINY, "--config", str(path), *words, "--model.explainer=FakeCAM"]) == 0
    assert read_rows("run")


def interrupt_step(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ctrl-C happen within the training step of that number."""
    steps: Iterator[int] = iter(range(1, 1000))
    original = ClassificationTask.training_step

    def training_step(self: ClassificationTask, batch: Any) -> Any:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch)

    monkeypatch.setattr(ClassificationTask, "training_step", training_step)


@pytest.mark.parametrize(
    ("dataset", "network", "data", "counts"),
    [
        ("chest_xray", "resnet50", ChestXRay, {"train": 160, "val": 16, "test": 24}),
        ("kvasir", "vgg16_bn", Kvasir, {"": 208}),
    ],
)
def test_a_network_is_fine_tuned_and_explained_by_one_config_each(
    dataset: str, network: str, data: Any, counts: dict[str, int],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    root = make_tree(Path("tree"), CLASSES[data.__name__], counts, gray=data is ChestXRay)
    config = str(CONFIGS / "paper" / f"{dataset}_{network}")
    common = ["fit", "--config", f"{config}_fit.yaml", f"--data.root={root}", *QUIET]
    settings = ["network=timm/test_resnet", "weights=random", "input_size=32", "target_layer=layer3"]
    common += [f"--model.classifier.{word}" for word in settings]
    common += ["--data.batch_size=16", "--data.num_workers=0", "--model.head_epochs=1", "--model.epochs=2"]
    common += ["--model.lr=0.01", "--model.mixup=0.2"]
    assert main([*common, "--run_dir=whole"]) == 0
    with monkeypatch.context() as patch:
        interrupt_step(13, patch)
        assert main([*common, "--run_dir=run"]) == 130
    assert re.search(r"goes on with:\n  \S*optcam fit ", capsys.readouterr().err)
    assert main([*common, "--run_dir=run"]) == 0
    written = Path("run/checkpoints/last.ckpt").stat().st_mtime_ns
    assert main([*common, "--run_dir=run"]) == 0  # nothing is left to do
    assert Path("run/checkpoints/last.ckpt").stat().st_mtime_ns == written
    whole, again = (torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True) for run in ("whole", "run"))
    assert whole["global_step"] == again["global_step"] == 30  # ten an epoch
    for key, value in whole["state_dict"].items():
        torch.testing.assert_close(again["state_dict"][key], value, rtol=0, atol=1e-6)

    explain = ["test", "--config", f"{config}.yaml", f"--data.root={root}", *QUIET, *SMALL]
    checkpoint = "--model.classifier.weights=run/checkpoints/best.ckpt"
    with pytest.raises(ValueError, match=f"are of timm/test_resnet, but `network` is torchvision/{network}"):
        main([*explain, checkpoint])
    explain += ["--model.classifier.network=timm/test_resnet", "--model.explainer.max_iter=3", "--run_dir=test"]
    assert main([*explain, checkpoint]) == 0
    out = capsys.readouterr().out
    assert all(column in out for column in ("AD", "AG", "AI"))
    manifest = load_run("test").manifest
    assert manifest["settings"]["layer"] == ["layer3"]
    assert manifest["settings"]["input"].startswith("32x32")
    assert manifest["images"] == 24
    assert {row.target for row in read_rows("test")} == set(range(len(CLASSES[data.__name__])))


def test_accuracy_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    root = make_tree(Path("tree"), imagenet_wnids()[:2], {"": 6})
    config = CONFIGS / "imagenet_accuracy.yaml"
    words = [*tiny(read(config), False), f"--data.root={root}", *SMALL, *QUIET]
    assert main(["test", "--config", str(config), *words]) == 0
    assert "accuracy 0.00 %   macro F1 0.00 %   AUROC" in capsys.readouterr().out
    assert Path("logs/imagenet/test_resnet/version_0").is_dir()


@pytest.mark.ddp
def test_two_processes_train_as_one_with_batches_of_twice_the_size() -> None:
    """Without batch normalization, which is each process's own; the second process has nothing to validate."""
    root = make_tree(Path("tree"), ["ant", "bee"], {"train": 24, "val": 3, "test": 5})
    config = str(CONFIGS / "paper" / "chest_xray_resnet50_fit.yaml")
    data = ["--data=ImageFolder", f"--data.root={root}", "--data.split=test", "--data.num_workers=0"]
    words = [*data, *QUIET, "--model.classifier.network=timm/test_vit", "--model.classifier.weights=random"]
    words += ["--model.head_epochs=1", "--model.epochs=2", "--model.lr=0.01", "--model.optimizer=torch.optim.SGD"]
    scores = []
    for devices in (1, 2):
        folder, batch = f"--run_dir=p{devices}", f"--data.batch_size={8 // devices}"
        spread = [f"--trainer.devices={devices}", *(["--trainer.strategy=ddp"] if devices > 1 else [])]
        command = [sys.executable, "-m", "optcam_pl", "fit", "--config", config, *words, batch, folder, *spread]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        stored = torch.load(f"p{devices}/checkpoints/last.ckpt", weights_only=True)
        best = next(state for key, state in stored["callbacks"].items() if "val/accuracy" in key)
        scores.append((stored["global_step"], float(best["best_model_score"]), stored["state_dict"]))
    assert scores[0][:2] == scores[1][:2]
    assert scores[0][0] == 9
    for key, value in scores[0][2].items():
        torch.testing.assert_close(scores[1][2][key], value, rtol=0, atol=1e-5)
