"""Training goes on exactly where it was; loader processes outlive the signals that end a run; ddp deals blocks out."""

import inspect
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import pytest
import torch
from data_cases import Listed, make_images
from torchvision.transforms import v2

from optcam_pl.data import Entry, TorchData


class Trainable(Listed):
    """Entries that are trained on, the first two of which validate and test."""

    def training_entries(self, split: Literal["train", "val"]) -> list[Entry]:
        return self.given if split == "train" else self.given[:2]

    def entries(self) -> list[Entry]:
        return self.given[:2]


class Learner(pl.LightningModule):
    """Notes what it is trained on, as (first index, mean pixel) of each batch, and stops at a given batch."""

    def __init__(self, stop_at: int | None = None, where: str = "") -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[list[int], float]] = []
        self.validated: list[int] = []
        self.stop_at, self.where = stop_at, where

    def training_step(self, batch: Any) -> torch.Tensor:
        self._stop("training_step")
        self.seen.append((batch["index"].tolist(), batch["image"].mean().item()))
        return (self.weight - batch["image"].mean()) ** 2

    def validation_step(self, batch: Any) -> None:
        self.validated += batch["index"].tolist()

    def on_train_batch_end(self, *_: Any) -> None:
        self._stop("on_train_batch_end", save=True)

    def on_validation_end(self) -> None:
        self._stop("on_validation_end", save=True)

    def on_train_epoch_end(self) -> None:
        self._stop("on_train_epoch_end", save=True)

    def _stop(self, where: str, save: bool = False) -> None:
        if where == self.where and len(self.seen) == self.stop_at:
            if save:
                self.trainer.save_checkpoint("stopped.ckpt")
            raise KeyboardInterrupt

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class SaveOnStop(pl.Callback):
    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        if not Path("stopped.ckpt").exists():
            trainer.save_checkpoint("stopped.ckpt")


def train(data: Listed, model: Learner, checkpoint: str | None = None) -> None:
    data.training = True
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=[SaveOnStop()],
    )  # fmt: skip
    # The checkpoint is this test's own. Before Lightning 2.6 there was no such setting.
    own = {"weights_only": False} if checkpoint and "weights_only" in inspect.signature(trainer.fit).parameters else {}
    trainer.fit(model, datamodule=data, ckpt_path=checkpoint, **own)


# Lightning's advice on the speed of loaders is not what is tested here; Lightning 2.6 uses what torch 2.15 deprecates.
@pytest.mark.parametrize(
    ("stop_at", "where", "workers"),
    [
        (6, "training_step", 0),
        (6, "on_train_batch_end", 0),
        (8, "on_train_batch_end", 0),  # the last batch of the second epoch
        (8, "on_validation_end", 0),
        (8, "on_train_epoch_end", 0),
        (6, "on_train_batch_end", 2),
    ],
)
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning", "ignore:.*does not have many workers.*")
def test_training_that_was_stopped_anywhere_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int, where: str, workers: int
) -> None:
    monkeypatch.chdir(tmp_path)
    images = make_images(tmp_path, 7)  # 4 batches an epoch
    make = lambda: Trainable(images, batch_size=2, size=4, num_workers=workers)  # noqa: E731
    whole, first, second = Learner(), Learner(stop_at, where), Learner()
    train(make(), whole)
    assert len(whole.seen) == 12
    assert whole.validated == [0, 1] * 3
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(make(), first)
    train(make(), second, "stopped.ckpt")
    assert first.seen + second.seen == whole.seen
    assert torch.equal(second.weight, whole.weight)


def test_training_images_are_augmented_anew_in_every_epoch_and_validation_images_never(tmp_path: Path) -> None:
    data = Trainable(make_images(tmp_path, 2), batch_size=2, size=4, augment=v2.ColorJitter(brightness=0.9))
    data.training = True
    loader = data.train_dataloader()
    epochs = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        batch = next(iter(loader))
        epochs.append(batch["image"][batch["index"].argsort()])
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.allclose(next(iter(data.val_dataloader()))["image"][1].amax(), torch.tensor(10 / 255))


@pytest.mark.skipif(sys.platform != "linux", reason="signals that tell their sender are Linux's")
def test_loader_processes_outlive_signals_that_do_not_come_from_their_parent(tmp_path: Path) -> None:
    data = Listed(make_images(tmp_path, 6), batch_size=2, num_workers=1, size=4, timeout=20)
    batches = iter(data.test_dataloader())
    seen = next(batches)["index"].tolist()
    worker = batches._workers[0]
    for name in ("INT", "TERM", "USR1"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True, timeout=10)
    time.sleep(0.2)
    assert worker.is_alive()
    assert [*seen, *(i for batch in batches for i in batch["index"].tolist())] == list(range(6))
    worker.terminate()
    worker.join(10)
    assert not worker.is_alive()


SCRIPT = """
import json, sys
import lightning.pytorch as pl
from data_cases import Listed, make_images
from pathlib import Path
import torch, warnings
warnings.simplefilter("ignore")

class Seen(pl.LightningModule):
    def __init__(self):
        super().__init__(); self.layer = torch.nn.Linear(1, 1); self.seen = []
    def test_step(self, batch):
        self.seen.append(batch["index"].tolist())
    predict_step = test_step

if __name__ == "__main__":
    folder, stage = Path(sys.argv[1]), sys.argv[2]
    data = Listed(make_images(folder, 5), batch_size=2, size=4)
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False)
    model = Seen()
    getattr(trainer, stage)(model, datamodule=data)
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(model.seen))
"""


@pytest.mark.ddp
@pytest.mark.parametrize("stage", ["test", "predict"])
def test_lightning_leaves_the_blocks_of_two_processes_alone(tmp_path: Path, stage: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    tests = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{tests}:{tests.parent}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "script.py", str(tmp_path), stage]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=180, capture_output=True)
    seen = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert seen == [[[0, 1], [4, -1]], [[2, 3], [-1, -1]]]


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (2, 2), (4, 4), (64, 4)])
@pytest.mark.skipif(sys.platform != "linux", reason="the cores of a process are asked for as on Linux")
def test_loader_processes_fit_the_machine_unless_their_number_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    images = make_images(tmp_path, 3)
    auto = Listed(images, size=4, num_workers="auto")
    assert (auto.workers, auto.test_dataloader().num_workers) == (workers, workers)  # a warning would be an error
    assert Listed(images, size=4).workers == 0
    assert Listed(images, size=4, num_workers=9).workers == 9
    assert TorchData([{"image": torch.rand(3, 4, 4)}], num_workers="auto").workers == workers


def test_loader_processes_are_a_number_or_auto(tmp_path: Path) -> None:
    images = make_images(tmp_path, 1)
    with pytest.raises(ValueError, match="Expected `num_workers` to be a number or 'auto', but got 'many'"):
        Listed(images, num_workers="many")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Expected `num_workers` to be zero or a positive integer, but got -1"):
        Listed(images, num_workers=-1)
