"""Fine-tuning in two phases, its scores against hand-computed ones, stopping and going on, and what checkpoints say."""

from __future__ import annotations

import errno
import os
import signal
import zipfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from data_cases import Listed, make_tree
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from optcam_pl import Classifier
from optcam_pl.callbacks import ImageProgress
from optcam_pl.data import Entry, ImageFolder
from optcam_pl.explainers import OptiCAM
from optcam_pl.network.weights import read_settings
from optcam_pl.runs import files
from optcam_pl.runs.files import RunFolderError
from optcam_pl.runs.manifest import FingerprintMismatch
from optcam_pl.runs.signals import Stopped, stop_signals
from optcam_pl.tasks import ClassificationTask, SaliencyTask, fit_callbacks, last_checkpoint

CLASSES = ("ant", "bee", "cat")
pytestmark = [
    # tensorboard's protobuf classes and torch's own writer, https://github.com/pytorch/pytorch/issues/134958
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # Lightning's advice on speed, and what torch 2.15 deprecates and Lightning 2.6 uses.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning", "ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*", "ignore:Checkpoint directory"),
]


def network(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(1)
    body = [nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*body, nn.Dropout(dropout), nn.Linear(16, 3))


def classifier(dropout: float = 0.0) -> Classifier:
    return Classifier(network(dropout), input_size=8, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "animals", CLASSES, {"train": 12, "val": 6, "test": 9})


def trainer(task: ClassificationTask, folder: Path, **kwargs: Any) -> pl.Trainer:
    options: dict[str, Any] = {
        "accelerator": "cpu", "max_epochs": task.max_epochs, "logger": TensorBoardLogger(folder, name="", version=""),
        "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1,
        "callbacks": fit_callbacks(task),
    }  # fmt: skip
    return pl.Trainer(**{**options, **kwargs})


def fit(
    task: ClassificationTask, tree: Path, folder: Path, checkpoint: Path | None = None, **kwargs: Any
) -> pl.Trainer:
    loop = trainer(task, folder, **kwargs)
    data = ImageFolder(str(tree), split="test", batch_size=4)
    loop.fit(task, datamodule=data, ckpt_path=checkpoint)
    return loop


class Watch(pl.Callback):
    """Notes the learning rate of every step, and the weights at the end of every epoch."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, *_: Any) -> None:
        self.rates.append(float(trainer.callback_metrics["train/lr"]))

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.weights.append({key: value.clone() for key, value in task.classifier.network.state_dict().items()})


def test_first_the_head_alone_learns_then_everything_each_at_its_rate(tree: Path, tmp_path: Path) -> None:
    cosine = lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2)  # noqa: E731
    task = ClassificationTask(classifier(), head_epochs=2, head_lr=0.3, epochs=2, lr=0.1, schedule=cosine)
    before = {key: value.clone() for key, value in task.classifier.network.state_dict().items()}
    watch = Watch()
    fit(task, tree, tmp_path / "run", callbacks=[*fit_callbacks(task), watch])
    assert watch.rates == pytest.approx([0.3] * 6 + [0.1] * 3 + [0.05] * 3)
    head = {"6.weight", "6.bias"}
    for epoch in (0, 1):
        assert {k for k in before if not torch.equal(before[k], watch.weights[epoch][k])} == head
    assert {k for k in before if not torch.equal(before[k], watch.weights[2][k])} == set(before)
    # Frozen again, and in a state to be explained.
    assert not any(p.requires_grad for p in task.classifier.parameters())
    assert not any(module.training for module in task.classifier.modules())


def test_phases_are_ordinary_fits_of_torch_one_after_the_other(tree: Path, tmp_path: Path) -> None:
    """Both by hand: the same batches, cross-entropy with weights and smoothing, SGD with momentum 0.9."""
    weights = [1.0, 2.0, 0.5]
    task = ClassificationTask(
        classifier(), head_epochs=1, head_lr=0.2, epochs=1, lr=0.05, class_weights=weights, label_smoothing=0.1
    )
    seen: list[tuple[Tensor, Tensor]] = []
    step = task.training_step
    task.training_step = lambda batch: seen.append((batch["image"], batch["target"])) or step(batch)  # type: ignore[method-assign]
    fit(task, tree, tmp_path / "run")
    mine = network()
    loss = nn.CrossEntropyLoss(torch.tensor(weights), label_smoothing=0.1)
    for part, batches, lr in ((mine[-1], seen[:3], 0.2), (mine, seen[3:], 0.05)):
        mine.train(part is mine)
        sgd = torch.optim.SGD(part.parameters(), lr=lr, momentum=0.9)
        for image, target in batches:
            sgd.zero_grad()
            loss(mine((image - 0.5) / 0.2), target).backward()
            sgd.step()
    assert len(seen) == 6
    for key, value in mine.state_dict().items():
        torch.testing.assert_close(task.classifier.network.state_dict()[key], value)


class Colors(nn.Module):
    """The logits are ten times the mean red, green and blue."""

    def forward(self, image: Tensor) -> Tensor:
        return 10 * image.mean((2, 3))


def test_scores_are_those_computed_by_hand(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (11, 3))
    labels = [0, 1, 1, 0, 1, 0, 1, 0, 1, 1, 0]  # no image of the third class
    entries = []
    for i, (color, label) in enumerate(zip(pixels, labels, strict=True)):
        Image.new("RGB", (8, 8), tuple(color.tolist())).save(tmp_path / f"{i:02}.png")
        entries.append(Entry(f"{i:02}.png", str(tmp_path / f"{i:02}.png"), label))
    entries.append(Entry("gone.png", str(tmp_path / "gone.png"), 0))
    task = ClassificationTask(Classifier(Colors(), input_size=8))
    loop = trainer(task, tmp_path / "run", callbacks=[])
    scores = loop.test(task, datamodule=Listed(entries, batch_size=4, on_error="record"), verbose=False)[0]

    logits = 10 * pixels / 255
    guess, truth = logits.argmax(1), np.array(labels)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    confusion = np.array([[int(((truth == i) & (guess == j)).sum()) for j in range(3)] for i in range(3)])
    assert task.confusion is not None
    assert task.confusion.tolist() == confusion.tolist()
    f1 = [2 * confusion[c, c] / max(1, confusion[c].sum() + confusion[:, c].sum()) for c in range(3)]
    auroc = [np.mean([(a > b) + 0.5 * (a == b) for a in p[truth == c, c] for b in p[truth != c, c]]) for c in (0, 1)]
    assert scores["test/images"] == 11
    assert scores["test/accuracy"] == pytest.approx(100 * (guess == truth).mean())
    assert scores["test/macro_f1"] == pytest.approx(100 * np.mean(f1))
    assert scores["test/auroc"] == pytest.approx(100 * np.mean(auroc))
    assert scores["test/loss"] == pytest.approx(-np.log(p[np.arange(11), truth]).mean(), rel=1e-5)
    assert task.summary().startswith(f"accuracy {scores['test/accuracy']:.2f} %   macro F1 ")
    assert task.summary().endswith("images 11")


def test_classes_that_no_font_can_draw_have_numbers_in_the_figure_and_names_in_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    monkeypatch.setattr("optcam_pl.figures.drawable", lambda name: name.replace("猫", "?"))
    task = ClassificationTask(Classifier(Colors(), input_size=8, class_names=["dog", "猫", "bird"]))
    loop = trainer(task, tmp_path / "run", callbacks=[])
    loop.test(task, datamodule=Listed([Entry("0.png", str(tmp_path / "0.png"), 1)], batch_size=1), verbose=False)
    board = EventAccumulator(str(tmp_path / "run")).Reload()
    assert board.Tags()["images"] == ["test/confusion"]
    (text,) = board.Tensors("test/confusion/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "- class 1: 猫"


def interrupted(task: ClassificationTask, step: int) -> ClassificationTask:
    """The task, to which Ctrl-C happens within its step of that number."""
    steps, original = [0], task.training_step

    def training_step(batch: Any) -> Tensor:
        steps[0] += 1
        if steps[0] == step:
            os.kill(os.getpid(), signal.SIGINT)
        return original(batch)

    task.training_step = training_step  # type: ignore[method-assign]
    return task


@pytest.mark.parametrize("step", [2, 6, 8, 9, 11])  # 3 an epoch; 6 ends the first phase, 9 an epoch of the second
def test_a_fit_that_was_stopped_and_goes_on_ends_as_one_that_was_not(tree: Path, tmp_path: Path, step: int) -> None:
    def make() -> ClassificationTask:
        schedule = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)  # noqa: E731
        return ClassificationTask(
            classifier(0.5), head_epochs=2, head_lr=0.1, epochs=2, lr=0.05, mixup=0.4, schedule=schedule
        )

    whole, stopped, second = make(), interrupted(make(), step), make()
    fit(whole, tree, tmp_path / "whole")
    with stop_signals(), pytest.raises(Stopped):
        fit(stopped, tree, tmp_path / "run")
    checkpoint = last_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    assert torch.load(checkpoint, weights_only=True)["global_step"] == step
    loop = fit(second, tree, tmp_path / "run", checkpoint)
    assert loop.global_step == 12
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(second.state_dict()[key], value, rtol=0, atol=1e-6)


def test_a_fit_does_not_go_on_with_other_settings_but_for_longer(tree: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match="Expected a fit to continue in .*run', but there is no"):
        last_checkpoint(run, "require")
    assert last_checkpoint(run, "never") is None
    fit(ClassificationTask(classifier(), head_epochs=1, epochs=1), tree, run)
    with pytest.raises(FileExistsError, match="Expected no fit in .*run' with `resume` never"):
        last_checkpoint(run, "never")
    checkpoint = last_checkpoint(run)
    with pytest.raises(FingerprintMismatch, match=r"  lr: 1e-05 there, 0.1 now") as caught:
        fit(ClassificationTask(classifier(), head_epochs=1, epochs=1, lr=0.1), tree, run, checkpoint)
    assert caught.value.keys == ("lr",)
    assert fit(ClassificationTask(classifier(), head_epochs=1, epochs=2), tree, run, checkpoint).current_epoch == 3


def test_a_fit_does_not_go_on_with_what_torch_would_silently_keep_or_change(tree: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    clipped = {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "norm"}
    fit(ClassificationTask(classifier(), head_epochs=1, epochs=1), tree, tmp_path / "clipped", **clipped)
    task = ClassificationTask(classifier(), head_epochs=1, epochs=2)
    assert fit(task, tree, tmp_path / "clipped", last_checkpoint(tmp_path / "clipped"), **clipped).current_epoch == 3
    fit(ClassificationTask(classifier(), head_epochs=1, epochs=1), tree, run)

    def refused(own: Classifier | None = None, options: Any = None, **kwargs: Any) -> set[str]:
        task = ClassificationTask(own or classifier(), head_epochs=1, epochs=2, **(options or {}))
        with pytest.raises(FingerprintMismatch) as caught:
            fit(task, tree, run, last_checkpoint(run), **kwargs)
        return set(caught.value.keys)

    decay = lambda params: torch.optim.SGD(params, momentum=0.9, weight_decay=0.1)  # noqa: E731
    assert refused(options={"optimizer": decay}) == {"optimizer.weight_decay"}
    assert {"optimizer.class", "optimizer.betas"} < refused(options={"optimizer": torch.optim.AdamW})
    step = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)  # noqa: E731
    assert {"schedule.class", "schedule.step_size"} < refused(options={"schedule": step})
    assert refused(Classifier(network(), input_size=8)) == {"classifier.mean", "classifier.std"}
    assert refused(precision="bf16-mixed", accumulate_grad_batches=2, gradient_clip_val=1.0) == {
        "trainer.precision",
        "trainer.accumulate_grad_batches",
        "trainer.gradient_clip_val",
    }
    (tree / "train" / "ant" / "image0000.jpeg").rename(tree / "train" / "bee" / "other.jpeg")
    assert refused() == {"data.sha256"}


def test_mixed_precision_keeps_the_weights_in_full(tree: Path, tmp_path: Path) -> None:
    task = ClassificationTask(classifier(), head_epochs=1, epochs=1, lr=0.1)
    before = {key: value.clone() for key, value in task.classifier.network.named_parameters()}
    loop = fit(task, tree, tmp_path / "run", precision="bf16-mixed")
    assert loop.callback_metrics["val/loss"].isfinite()
    for key, value in task.classifier.network.named_parameters():
        assert value.dtype == torch.float32
        assert not torch.equal(value, before[key])


def test_patience_counts_the_second_phase_alone(tree: Path, tmp_path: Path) -> None:
    task = ClassificationTask(classifier(), head_epochs=4, head_lr=1e-12, epochs=9, lr=1e-12, patience=2)
    loop = fit(task, tree, tmp_path / "run")
    assert loop.current_epoch == 4 + 3  # one epoch to compare with, two without a rise


def test_the_best_checkpoint_is_that_of_the_highest_accuracy(tree: Path, tmp_path: Path) -> None:
    task = ClassificationTask(classifier(), head_epochs=0, epochs=6, lr=0.1)
    loop = fit(task, tree, tmp_path / "run")
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert loop.checkpoint_callback.best_model_path == str(best)
    again = ClassificationTask(Classifier(network(), best))
    data = ImageFolder(str(tree / "val"), batch_size=4)
    scores = trainer(again, tmp_path / "test", callbacks=[]).test(again, datamodule=data, verbose=False)[0]
    assert scores["test/accuracy"] == pytest.approx(float(loop.checkpoint_callback.best_model_score))
    assert sorted(path.name for path in best.parent.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_a_new_head_is_explained_only_after_its_fit(tree: Path, tmp_path: Path) -> None:
    torch.save(Classifier("timm/test_resnet", None, num_classes=7).network.state_dict(), tmp_path / "other.pth")
    with pytest.warns(UserWarning, match="new, random head for 3 classes"):
        own = Classifier("timm/test_resnet", tmp_path / "other.pth", "layer3", num_classes=3, input_size=32)

    def explain() -> pl.Trainer:
        loop = pl.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path / "explained")
        loop.test(SaliencyTask(own, OptiCAM(max_iter=1)), datamodule=ImageFolder(str(tree), split="test"))
        return loop

    with pytest.raises(
        ValueError, match="Expected a trained network, but timm/test_resnet has a new, random head for 3"
    ):
        explain()
    fit(ClassificationTask(own, head_epochs=1, epochs=0), tree, tmp_path / "run")
    assert "test/average_drop" in explain().callback_metrics


def test_a_run_folder_that_was_moved_keeps_its_best_checkpoint(tree: Path, tmp_path: Path) -> None:
    first = fit(ClassificationTask(classifier(), head_epochs=0, epochs=6, lr=0.1), tree, tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    best = tmp_path / "moved" / "checkpoints" / "best.ckpt"
    score, content = first.checkpoint_callback.best_model_score, best.read_bytes()
    loop = trainer(task := ClassificationTask(classifier(), head_epochs=0, epochs=7, lr=0.1), tmp_path / "moved")
    data = ImageFolder(str(tree), split="test", batch_size=4)
    (tree / "val").rename(tree / "right")
    (tree / "val").mkdir()
    for name, other in zip(CLASSES, ("bee", "cat", "ant"), strict=True):  # from now on it is wrong
        (tree / "right" / name).rename(tree / "val" / other)
    loop.fit(task, datamodule=data, ckpt_path=last_checkpoint(tmp_path / "moved"))
    assert loop.checkpoint_callback.best_model_score == score
    assert loop.checkpoint_callback.best_model_path == str(best)
    assert best.read_bytes() == content


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_and_the_fit_goes_on(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def task() -> ClassificationTask:
        return ClassificationTask(classifier(), head_epochs=0, epochs=3, lr=0.1)

    class Fills(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
            if trainer.current_epoch == 2:
                monkeypatch.setattr(files, "write_all", half)

    def half(fd: int, data: bytes) -> None:
        os.write(fd, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    whole = fit(task(), tree, tmp_path / "whole")
    with monkeypatch.context() as monkeypatch, pytest.raises(RunFolderError, match=r"Cannot write .*\.ckpt: No space"):
        fit(task(), tree, tmp_path / "run", callbacks=[*fit_callbacks(task()), Fills()])
    last = last_checkpoint(tmp_path / "run")
    assert torch.load(last, weights_only=True)["epoch"] == 1  # type: ignore[arg-type]
    assert not [path for path in last.parent.iterdir() if path.suffix == ".tmp"]  # type: ignore[union-attr]
    loop = fit(task(), tree, tmp_path / "run", last)
    for one, other in zip(loop.model.parameters(), whole.model.parameters(), strict=True):  # type: ignore[union-attr]
        assert torch.equal(one, other)


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped"])
def test_a_damaged_checkpoint_is_told_before_the_fit_goes_on(tree: Path, tmp_path: Path, damage: str) -> None:
    fit(ClassificationTask(classifier(), head_epochs=0, epochs=1, lr=0.1), tree, tmp_path / "run")
    file = last_checkpoint(tmp_path / "run")
    assert file is not None
    data = bytearray(file.read_bytes())
    at = data.index(torch.load(file, weights_only=True)["state_dict"]["classifier.network.6.bias"].numpy().tobytes())
    data[at] ^= 64
    file.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "flipped": data}[damage])
    with pytest.raises(RunFolderError, match=r"Cannot continue from .*last.ckpt: it is damaged .*`--ckpt_path`"):
        last_checkpoint(tmp_path / "run")


class Breaks(nn.Sequential):
    """A network whose scores of the first image of each batch are not finite."""

    def forward(self, input: Tensor) -> Tensor:
        scores: Tensor = super().forward(input)
        return torch.cat([scores[:1] * torch.nan, scores[1:]])


def test_a_network_that_has_diverged_is_told_and_has_no_loss(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = ClassificationTask(Classifier(Breaks(*network()), input_size=8, mean=0, std=1))
    options: dict[str, Any] = {"callbacks": [ImageProgress()], "enable_progress_bar": True}
    data = ImageFolder(str(tree), split="test", batch_size=4)
    with pytest.warns(UserWarning, match="scores are not finite for some images"):
        trainer(task, tmp_path / "run", **options).test(task, datamodule=data, verbose=False)
    assert "loss nan" in task.summary()
    assert "\ntest: 3 of 3 batches" in capsys.readouterr().err


def test_a_file_of_another_kind_is_no_checkpoint_to_continue_from(tmp_path: Path) -> None:
    file = tmp_path / "checkpoints" / "last.ckpt"
    file.parent.mkdir()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("thesis/chapter.txt", "no checkpoint")
    with pytest.raises(RunFolderError, match=r"last.ckpt: it is no checkpoint of a fit. `--ckpt_path`"):
        last_checkpoint(tmp_path)
    torch.save(network().state_dict(), file)
    with pytest.raises(RunFolderError, match=r"last.ckpt: it is no checkpoint of a fit. `--ckpt_path`"):
        last_checkpoint(tmp_path)
    states: dict[str, Any] = {"state_dict": {}, "optimizer_states": [], "loops": {}}
    torch.save({**states, "callbacks": Path("of a class that only the user's callback knows")}, file)
    assert last_checkpoint(tmp_path) == file


def test_a_checkpoint_makes_the_classifier_again(tree: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_classes": 3, "mean": [0.1, 0.2, 0.3], "std": [1, 2, 3], "input_size": 40}
    tuned = Classifier("timm/test_resnet", None, "layer3", crop_fraction=0.5, interpolation="bilinear", **options)
    task = ClassificationTask(tuned, head_epochs=1, epochs=0)
    fit(task, tree, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    for again in (Classifier(weights=path), Classifier("timm/test_resnet", str(path))):
        assert again.class_names == CLASSES
        assert again.settings() == tuned.settings()
        assert again.weight_hash() == tuned.weight_hash()
    assert Classifier(weights=path, target_layer="layer4", mean=[0, 0, 0]).target_layers == ("layer4",)
    with pytest.raises(ValueError, match=r"best.ckpt are of timm/test_resnet, but `network` is timm/test_vit"):
        Classifier("timm/test_vit", path)
    with pytest.raises(ValueError, match="Expected `network` to be given"):
        Classifier()
    assert read_settings(tree / "train" / "ant" / "image0000.jpeg") == {}


def test_balanced_weights_come_from_the_training_images(tree: Path, tmp_path: Path) -> None:
    for i in range(3, 12, 3):
        (tree / "train" / "ant" / f"image{i:04}.jpeg").unlink()  # 1 ant, 4 bees, 4 cats
    task = ClassificationTask(classifier(), head_epochs=1, epochs=0, class_weights="balanced")
    fit(task, tree, tmp_path / "run")
    assert task.weight is not None
    assert task.weight.tolist() == pytest.approx([9 / 3, 9 / 12, 9 / 12])
    (tree / "train" / "ant" / "image0000.jpeg").rename(tree / "train" / "bee" / "other.jpeg")
    message = "training images of every class for balanced weights, but animals has none of"
    with pytest.warns(UserWarning, match="their folders are empty: ant"), pytest.raises(ValueError, match=message):
        fit(task, tree, tmp_path / "other")


def test_unreadable_training_images_do_not_count(tree: Path, tmp_path: Path) -> None:
    for file in (tree / "train").rglob("*.jpeg"):
        file.write_text("no image")
    task = ClassificationTask(classifier(), head_epochs=1, epochs=1)
    before = {key: value.clone() for key, value in task.classifier.network.named_parameters()}
    data = ImageFolder(str(tree), split="test", batch_size=4, on_error="record")
    trainer(task, tmp_path / "run").fit(task, datamodule=data)
    assert all(torch.equal(value, before[key]) for key, value in task.classifier.network.named_parameters())


def test_labels_that_the_network_cannot_have_are_named(tree: Path, tmp_path: Path) -> None:
    two = ClassificationTask(Classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), input_size=8))
    with pytest.raises(ValueError, match="animals and Sequential to have the same classes, but they have 3 and 2. Set"):
        fit(two, tree, tmp_path / "run")
    task = ClassificationTask(classifier())
    for label, words in ((-1, "none"), (3, "3")):
        entries = [Entry("x.png", str(next(tree.rglob("*.jpeg"))), label)]
        with pytest.raises(ValueError, match=f"Expected a label in 0..2 for image 'x.png', but it has {words}"):
            trainer(task, tmp_path / "test", callbacks=[]).test(task, datamodule=Listed(entries))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_epochs": -1}, "`head_epochs` to be zero or a positive integer, but got -1"),
        ({"head_epochs": 0, "epochs": 0}, "both are 0"),
        ({"patience": 0}, "`patience` to be a positive integer, but got 0"),
        ({"lr": 0.0}, "`lr` to be a positive number, but got 0.0"),
        ({"head_lr": float("nan")}, "`head_lr` to be a positive number, but got nan"),
        ({"label_smoothing": 1.0}, "`label_smoothing` to lie in"),
        ({"mixup": -1.0}, "`mixup` to be zero or a positive number"),
        ({"class_weights": [1.0, 2.0]}, "`class_weights` to be 3 numbers"),
    ],
)
def test_settings_out_of_range_are_refused_in_words(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassificationTask(classifier(), **options)
