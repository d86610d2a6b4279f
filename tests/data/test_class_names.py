"""A network and a dataset that name their classes in another order measure the right class, or are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from PIL import Image
from torch import nn

from optcam_pl import Classifier
from optcam_pl.data import CSVImages, ImageFolder
from optcam_pl.explainers import FakeCAM
from optcam_pl.network.weights import SETTINGS, read_settings
from optcam_pl.runs.rows import read_rows
from optcam_pl.tasks import ClassificationTask, SaliencyTask

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
pytestmark = [
    # tensorboard's protobuf classes and torch's own writer, https://github.com/pytorch/pytorch/issues/134958
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # Lightning's advice on speed, and what torch 2.15 deprecates and Lightning 2.6 uses.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning", "ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*", "ignore:Checkpoint directory"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, color in COLOURS.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (8, 8), color).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


def classifier(names: list[str] | None) -> Classifier:
    """Its three classes are red, green and blue, whatever they are called."""
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(3).view(3, 3, 1, 1))
        network[3].weight.copy_(5 * torch.eye(3))
        for layer in (network[0], network[3]):
            layer.bias.zero_()
    return Classifier(network, class_names=names, input_size=8, target_layer="0")


def explained(folder: Path, run: Path, names: list[str] | None, target: Any = "label", **kwargs: Any) -> dict[str, int]:
    """The class that was explained, by image."""
    task = SaliencyTask(classifier(names), FakeCAM(), target=target)
    loop = pl.Trainer(accelerator="cpu", logger=False, default_root_dir=run, enable_progress_bar=False)
    loop.test(task, datamodule=ImageFolder(str(folder), batch_size=4, **kwargs), verbose=False)
    rows = sorted(read_rows(run), key=lambda row: row.index)
    return {row.id: row.target for row in rows}


RIGHT = {"blue/0.png": 2, "blue/1.png": 2, "green/0.png": 1, "green/1.png": 1, "red/0.png": 0, "red/1.png": 0}


def test_the_right_class_is_explained_and_measured(folder: Path, tmp_path: Path) -> None:
    assert explained(folder, tmp_path / "a", ["Red", "GREEN", "blue"]) == RIGHT
    assert explained(folder, tmp_path / "b", None, classes=["red", "green", "blue"]) == RIGHT
    # Some of the network's classes.
    for name in ("0.png", "1.png"):
        (folder / "green" / name).unlink()
    (folder / "green").rmdir()
    some = {name: target for name, target in RIGHT.items() if target != 1}
    assert explained(folder, tmp_path / "c", ["red", "green", "blue"]) == some


def test_contradicting_names_are_refused_where_labels_are_used(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 of 3 are not: 'green'. Classes of Sequential .* does not name: 'yellow'"):
        explained(folder, tmp_path / "a", ["red", "yellow", "blue"])
    names = ["dog", "cat", "bird"]
    assert explained(folder, tmp_path / "b", names, "predicted") == RIGHT
    assert set(explained(folder, tmp_path / "c", names, 1).values()) == {1}


def test_an_unreadable_images_row_has_the_networks_class_or_none(folder: Path, tmp_path: Path) -> None:
    (folder / "red" / "0.png").write_bytes(b"rubbish")
    for number, (names, expected) in enumerate([(["red", "green", "blue"], 0), (["a", "b", "c"], -1), (None, 2)]):
        found = explained(folder, tmp_path / str(number), names, "predicted", on_error="record")
        assert found["red/0.png"] == expected


def accuracy(folder: Path, run: Path, names: list[str] | None, data: Any = None) -> float:
    task = ClassificationTask(classifier(names))
    loop = pl.Trainer(accelerator="cpu", logger=False, default_root_dir=run, enable_progress_bar=False)
    found = loop.test(task, datamodule=data or ImageFolder(str(folder), batch_size=4), verbose=False)
    return float(found[0]["test/accuracy"])


def test_accuracy_is_of_the_classes_of_the_same_names(folder: Path, tmp_path: Path) -> None:
    assert accuracy(folder, tmp_path, ["red", "green", "blue"]) == 100
    assert accuracy(folder, tmp_path, None) == pytest.approx(100 / 3)  # nothing is known: in the folders' order
    with pytest.raises(ValueError, match="3 of 3 are not: 'blue', 'green', 'red'"):
        accuracy(folder, tmp_path, ["dog", "cat", "bird"])
    (folder / "list.csv").write_text("path,label\nred/0.png,0.0\nblue/0.png,2.0\ngreen/0.png,1.0\n")
    assert accuracy(folder, tmp_path, ["dog", "cat", "bird"], CSVImages(str(folder / "list.csv"))) == 100
    some = ImageFolder(str(folder), ["blue", "red", "green"])
    assert accuracy(folder, tmp_path, ["red", "green", "blue"], some) == 100


def fit(folder: Path, run: Path, own: Classifier, **kwargs: Any) -> ClassificationTask:
    task = ClassificationTask(own, head_epochs=1, epochs=0, head_lr=1e-9, **kwargs)
    loop = pl.Trainer(
        accelerator="cpu", logger=False, default_root_dir=run, max_epochs=1, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    loop.fit(task, datamodule=ImageFolder(str(folder), batch_size=2, split="test"))
    loop.save_checkpoint(run / "last.ckpt")
    return task


@pytest.fixture
def split(folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for part in ("train", "val", "test"):
        for name, color in COLOURS.items():
            for i in range(1 + (name == "blue")):
                file = tmp_path / "data" / part / name / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), color).save(file)
    return tmp_path / "data"


def test_a_fit_keeps_the_networks_order(split: Path, tmp_path: Path) -> None:
    own = classifier(["red", "green", "blue"])
    task = fit(split, tmp_path / "run", own, class_weights="balanced")
    assert own.class_names == ("red", "green", "blue")
    assert read_settings(tmp_path / "run" / "last.ckpt")["class_names"] == ["red", "green", "blue"]
    assert task.weight is not None
    assert task.weight.tolist() == pytest.approx([4 / 3, 4 / 3, 4 / 6])  # of blue there are two
    assert task.data.training_fingerprint()["class_map"] == (2, 1, 0)
    assert float(task.trainer.callback_metrics["val/accuracy"]) == 100


def test_a_fit_names_the_classes_of_a_network_without_names(split: Path, tmp_path: Path) -> None:
    own = classifier(None)
    task = fit(split, tmp_path / "run", own)
    assert own.class_names == ("blue", "green", "red")
    assert "class_map" not in task.data.training_fingerprint()
    stored = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert stored[SETTINGS]["class_names"] == ["blue", "green", "red"]


def test_a_fit_of_a_network_of_other_names_is_refused(split: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="classes of data to be among those of Sequential, but 1 of 3 are not: 'red'"):
        fit(split, tmp_path / "run", classifier(["blue", "green", "violet"]))
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    more = Classifier(network, class_names=["red", "green", "blue", "violet"], input_size=8, target_layer="0")
    with pytest.raises(ValueError, match="they have 3 and 4"):
        fit(split, tmp_path / "run", more)
