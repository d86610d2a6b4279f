"""A data module serves every image once, in order, and says in words what is wrong."""

import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from data_cases import Listed, make_images
from torchvision.transforms import v2

from optcam_pl.data import Entry, ImageReadError, Preprocessing


class Named(Listed):
    class_names = ("cat", "dog")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_gives_every_image_once_in_order(tmp_path: Path, workers: int) -> None:
    data = Listed(make_images(tmp_path, 7), batch_size=3, num_workers=workers, size=4)
    data.setup()
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    batches = list(data.test_dataloader())
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1:] == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6, -1, -1]]
    assert [batch["id"] for batch in batches][2] == ["06.png", "", ""]
    assert batches[1]["image"].shape == (3, 3, 4, 4)
    assert torch.allclose(batches[1]["image"][:, 0, 0, 0], torch.tensor([30, 40, 50]) / 255)
    data.todo = [2]
    assert [batch["index"].tolist() for batch in data.predict_dataloader()] == [[6, -1, -1]]
    assert data.num_blocks == 3


def test_an_error_in_a_worker_names_the_file(tmp_path: Path) -> None:
    entries = make_images(tmp_path, 2)
    Path(entries[1].path).write_bytes(b"")
    data = Listed(entries, num_workers=1, size=4)
    with pytest.raises(ImageReadError, match=r"01\.png.*the file is empty"):
        list(data.test_dataloader())


def test_limit_is_spread_evenly_and_a_seed_chooses_at_random(tmp_path: Path) -> None:
    entries = make_images(tmp_path, 10)
    ids = lambda **kwargs: [entry.id[:2] for entry in Listed(entries, **kwargs).table.entries]  # noqa: E731
    assert ids(limit=4) == ["00", "02", "05", "07"]
    assert ids(limit=10) == ids(limit=99) == [f"{i:02}" for i in range(10)]
    one, two = ids(limit=4, seed=1), ids(limit=4, seed=2)
    assert one == sorted(one) != two
    assert one == ids(limit=4, seed=1)
    assert set(one) <= set(ids(limit=7, seed=1))


def test_the_network_fills_what_the_user_left_open() -> None:
    data = Listed([])
    assert data.preprocessing == Preprocessing((224, 224), "stretch", 0.875, "bilinear")
    data.match_network((288, 256), "bicubic", 0.95)
    assert data.preprocessing == Preprocessing((288, 256), "stretch", 0.95, "bicubic")
    data = Listed([], size=64, interpolation="bilinear", resize="crop")
    data.match_network((288, 288), "bicubic", 0.95)
    assert data.preprocessing == Preprocessing((64, 64), "crop", 0.95, "bilinear")


def test_the_fingerprint_tells_datasets_labels_and_preprocessing_apart(tmp_path: Path) -> None:
    entries = make_images(tmp_path, 3)
    base = Listed(entries, size=8).fingerprint()
    assert base["name"] == "listed"
    assert base["images"] == 3
    moved = [entry._replace(path="elsewhere") for entry in entries]
    assert Listed(moved, size=8).fingerprint() == base
    relabeled = [*entries[:2], entries[2]._replace(target=0)]
    for other in (Listed(entries, size=9), Listed(relabeled, size=8), Listed(entries, size=8, limit=2)):
        assert other.fingerprint() != base


def test_an_empty_dataset_says_what_was_looked_for() -> None:
    with pytest.raises(ValueError, match="Listed found no image: looked for a list"):
        Listed([]).setup()


def test_two_images_of_one_id_and_labels_outside_the_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="'a' occurs twice"):
        Listed([Entry("a", "x"), Entry("a", "y")]).setup()
    with pytest.raises(ValueError, match=r"lie in 0 \.\.\. 1 \(-1: none\), but 'b' has 2"):
        Named([Entry("a", "x", -1), Entry("b", "y", 2)]).setup()
    with pytest.raises(ValueError, match="'a' has -2"):
        Listed([Entry("a", "x", -2)]).setup()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "`batch_size` to be a positive integer, but got 0"),
        ({"batch_size": 2.5}, TypeError, "`batch_size` to be an integer"),
        ({"num_workers": -1}, ValueError, "`num_workers` to be zero or a positive integer"),
        ({"limit": 0}, ValueError, "`limit` to be a positive integer"),
        ({"seed": 3}, ValueError, "`limit` to be given with `seed`"),
        ({"on_error": "skip"}, ValueError, "`on_error` to be one of raise, record, but got 'skip'"),
        ({"timeout": -1}, ValueError, "`timeout`"),
        ({"size": 0}, ValueError, "`size`"),
        ({"size": (8, -8)}, ValueError, "`size`"),
        ({"resize": "pad"}, ValueError, "`resize`"),
        ({"interpolation": "nearest"}, ValueError, "`interpolation`"),
    ],
)
def test_wrong_arguments_are_refused_in_words(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Listed([], **arguments)


class Seen(pl.LightningModule):
    """Notes the indices that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[int] = []

    def step(self, batch: Any) -> torch.Tensor:
        self.seen += batch["index"].tolist()
        return self.weight * batch["image"].mean()

    training_step = validation_step = test_step = predict_step = lambda self, batch: self.step(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


# Lightning's advice on the speed of loaders is not what is tested here; Lightning 2.6 uses what torch 2.15 deprecates.
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_every_stage_of_a_trainer_sees_every_image_once_in_order(tmp_path: Path, stage: str) -> None:
    data = Listed(make_images(tmp_path, 5), batch_size=2, size=4)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0 if stage == "fit" else 1.0,
    )  # fmt: skip
    model = Seen()
    getattr(trainer, stage)(model, datamodule=data)
    assert model.seen == [0, 1, 2, 3, 4, -1]


def test_a_transform_is_part_of_the_fingerprint_and_of_the_samples(tmp_path: Path) -> None:
    entries = make_images(tmp_path, 2)
    plain, inverted = Listed(entries, size=4), Listed(entries, size=4, transform=v2.RandomInvert(1.0))
    assert plain.fingerprint() != inverted.fingerprint()
    assert torch.allclose(plain.table[1]["image"] + inverted.table[1]["image"], torch.ones(3, 4, 4))


def test_a_dataset_without_training_images_says_so(tmp_path: Path) -> None:
    data = Listed(make_images(tmp_path, 2), size=4)
    data.training = True
    with pytest.raises(ValueError, match="Listed has no train images"):
        data.setup("fit")
