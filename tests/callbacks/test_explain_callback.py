"""ExplainCallback: a training with it ends as one without, and shows what the network looks at."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from optcam_pl.callbacks import ExplainCallback
from optcam_pl.explainers import RISE, FakeCAM, OptiCAM

pytestmark = pytest.mark.filterwarnings(
    # tensorboard's protobuf classes and torch's own writer, https://github.com/pytorch/pytorch/issues/134958
    "ignore::DeprecationWarning",
    # Lightning 2.6 calls what torch 2.14 deprecates
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
    "ignore:.*does not have many workers.*",
    "ignore:.*is smaller than the logging interval.*",
)


class Noisy(Dataset[tuple[Tensor, int]]):
    """Sixteen images that are augmented at random, with the random numbers of torch, NumPy and Python."""

    def __init__(self, scale: float = 1.0) -> None:
        self.image = torch.rand(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))
        self.scale = scale

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = self.image[i] * (0.5 + 0.2 * torch.rand(()) + 0.1 * np.random.rand() + 0.1 * random.random())  # noqa: NPY002
        return self.scale * image.float(), i % 3


class Plain(L.LightningModule):
    """A small network with dropout and batch normalization, as anybody writes it."""

    def __init__(self, rate: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        features = (nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3))
        self.net = nn.Sequential(*features, nn.Conv2d(6, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(6, 3)
        self.losses: list[float] = []

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.head(self.net(image))
        return out

    def training_step(self, batch: Any) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss.item())
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any) -> None:
        self.log("val", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.hparams["rate"])


def trained(tmp_path: Path, callback: ExplainCallback | None, scale: float = 1.0, **options: Any) -> Plain:
    L.seed_everything(3, verbose=False)
    module, data = Plain(), Noisy(scale)
    L.Trainer(
        accelerator="cpu", max_epochs=3, logger=TensorBoardLogger(tmp_path, name="", version=""),
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        callbacks=[] if callback is None else [callback], **options,
    ).fit(module, DataLoader(data, 4, shuffle=True), DataLoader(data, 4))  # fmt: skip
    return module


@pytest.mark.parametrize("explainer", [None, OptiCAM(max_iter=3), RISE(num_masks=8)], ids=lambda e: type(e).__name__)
def test_training_is_the_same_bit_for_bit(tmp_path: Path, explainer: Any) -> None:
    states = []
    for number, callback in enumerate((None, ExplainCallback(explainer, images=6))):
        module = trained(tmp_path / str(number), callback)
        drawn = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())  # noqa: NPY002
        flags = [(p.requires_grad, p.grad is None) for p in module.parameters()]
        states.append((module.losses, {k: v.tolist() for k, v in module.state_dict().items()}, drawn, flags))
        assert not any(m._forward_hooks for m in module.modules())
    assert states[0] == states[1]
    assert len(states[0][0]) == 12


def accumulated(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    return found


def test_panels_and_numbers_of_the_epochs_are_logged(tmp_path: Path) -> None:
    trained(tmp_path, ExplainCallback(FakeCAM(), images=5, every_n_epochs=2, class_names=["a", "b", "c"]))
    board = accumulated(tmp_path)
    assert [event.step for event in board.Scalars("explain/average_drop")] == [4, 12]  # after epochs 0 and 2
    assert {f"explain_examples/{i}" for i in range(5)} == {t for t in board.Tags()["images"] if "explain" in t}
    assert [event.step for event in board.Images("explain_examples/4")] == [4, 12]
    assert 0 <= board.Scalars("explain/p")[0].value <= 1
    # FakeCAM masks a single pixel, so that nothing is lost but that pixel.
    assert abs(board.Scalars("explain/average_drop")[0].value) < 5


@pytest.mark.parametrize("images", [12, 100])  # the sanity check shows 8 of the 16 images; there are no 100
def test_no_image_is_explained_twice(tmp_path: Path, images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    explained: list[int] = []

    class Counts(FakeCAM):
        def explain(self, classifier: Any, image: Tensor, *args: Any) -> Any:
            explained.append(len(image))
            assert len(image.flatten(1).unique(dim=0)) == len(image)
            return super().explain(classifier, image, *args)

    monkeypatch.setattr(Noisy, "__getitem__", lambda self, i: (self.image[i], i % 3))
    trained(tmp_path, ExplainCallback(Counts(), images=images))
    assert explained == [8] + [min(images, 16)] * 3


def test_an_epoch_without_validation_is_explained_after_the_next_one(tmp_path: Path) -> None:
    trained(tmp_path, ExplainCallback(FakeCAM(), every_n_epochs=2), check_val_every_n_epoch=2)
    assert [event.step for event in accumulated(tmp_path).Scalars("explain/p")] == [8]  # after epoch 1, for epoch 0


def test_normalized_images_need_mean_and_std(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Give ExplainCallback the `mean` and `std`"):
        trained(tmp_path / "a", ExplainCallback(FakeCAM()), scale=3)
    trained(tmp_path / "b", ExplainCallback(FakeCAM(), mean=0.0, std=1 / 3), scale=3)
    assert accumulated(tmp_path / "b").Scalars("explain/p")


def test_a_later_failure_is_a_warning(tmp_path: Path) -> None:
    class Breaks(FakeCAM):
        calls = 0

        def explain(self, *args: Any) -> Any:
            Breaks.calls += 1
            if Breaks.calls > 1:
                raise ValueError("no more")
            return super().explain(*args)

    with pytest.warns(UserWarning, match="could not explain epoch 0; the training goes on: no more"):
        module = trained(tmp_path, ExplainCallback(Breaks(), every_n_epochs=5))
    assert len(module.losses) == 12


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"network": "nett"}, ValueError, r"a part of Plain \(net, head\), but got 'nett'"),
        ({"layer": "net.9"}, ValueError, "net.9"),
        ({"unpack": lambda batch: (batch, None)}, Exception, "."),
    ],
)
def test_faults_of_the_settings_end_the_run_before_it_trains(
    tmp_path: Path, options: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        trained(tmp_path, ExplainCallback(**options))


def test_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match="Expected `explainer` to be an object of Explainer, but got 'GradCAM'"):
        ExplainCallback("GradCAM")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="every_n_epochs"):
        ExplainCallback(every_n_epochs=0)
    with pytest.raises(ValueError, match="target"):
        ExplainCallback(target="least")  # type: ignore[arg-type]
