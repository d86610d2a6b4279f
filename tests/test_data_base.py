"""Blocks cover the dataset once for any number of processes; a broken image is its own row and nobody else's."""

import random
import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from optcam_pl.data import BlockSampler, Entry, ImageDataModule, ImageReadError, ImageTable, Preprocessing, collate


class Listed(ImageDataModule):
    """Entries as they are given."""

    def __init__(self, entries: list[Entry], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.given = entries

    def entries(self) -> list[Entry]:
        return self.given

    def looked_for(self) -> str:
        return "a list"


class Named(Listed):
    class_names = ("cat", "dog")


def make_images(folder: Path, n: int) -> list[Entry]:
    """n one-coloured images, the red of number i being 10 * i."""
    for i in range(n):
        Image.new("RGB", (9, 7), (10 * i, 0, 0)).save(folder / f"{i:02}.png")
    return [Entry(f"{i:02}.png", str(folder / f"{i:02}.png"), i) for i in range(n)]


# --------------------------------------------------------------------------------------------------------- blocks


@given(st.integers(0, 50), st.integers(1, 9), st.sampled_from([1, 2, 3, 7]), st.data())
@settings(deadline=None)
def test_every_index_is_in_one_block_of_one_rank(n: int, size: int, world: int, data: st.DataObject) -> None:
    blocks = -(-n // size)
    every = data.draw(st.one_of(st.none(), st.lists(st.integers(0, max(blocks - 1, 0)), unique=True, max_size=blocks)))
    todo = None if every is None else sorted(every)
    ranks = [list(BlockSampler(n, size, rank, world, todo)) for rank in range(world)]
    assert {len(rank) for rank in ranks} == {len(BlockSampler(n, size, 0, world, todo))}
    assert len(ranks[0]) >= 1
    assert all(len(block) == size for rank in ranks for block in rank)
    real = [block for rank in ranks for block in rank if block != [-1] * size]
    expected = range(blocks) if todo is None else todo
    assert sorted(real) == [[i if i < n else -1 for i in range(k * size, k * size + size)] for k in expected]
    for position, k in enumerate(expected):  # position p of todo is rank p mod world's block number p div world
        assert ranks[position % world][position // world][0] == k * size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 2), "`n`"),
        ((3, 0), "`block_size`"),
        ((3, 2, 2, 2), "`rank`"),
        ((3, 2, 0, 1, [2]), "`todo` to name blocks from 0 to 1"),
        ((3, 2, 0, 1, [1, 1]), "each once"),
    ],
)
def test_wrong_blocks_are_refused_in_words(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockSampler(*arguments)


# ---------------------------------------------------------------------------------------------------------- table


def test_a_sample_is_what_the_design_says(tmp_path: Path) -> None:
    table = ImageTable(make_images(tmp_path, 3), Preprocessing((4, 5)))
    sample = table[2]
    assert sample["image"].shape == (3, 4, 5)
    assert sample["image"].dtype == torch.float32
    assert sample["image"][0].unique().tolist() == [torch.tensor(20 / 255).item()]
    assert {k: v for k, v in sample.items() if k != "image"} == {"target": 2, "id": "02.png", "index": 2, "error": ""}
    with pytest.raises(IndexError, match="0 to 2"):
        table[3]


def test_padding_is_black_and_has_no_name_label_or_error(tmp_path: Path) -> None:
    sample = ImageTable(make_images(tmp_path, 1), Preprocessing((4, 5)), annotations=("boxes", "masks"))[-1]
    assert not sample["image"].any()
    assert (sample["target"], sample["id"], sample["index"], sample["error"]) == (-1, "", -1, "")
    assert sample["boxes"].shape == (0, 4)
    assert sample["mask"].shape == (4, 5)


def test_a_broken_image_raises_or_is_recorded(tmp_path: Path) -> None:
    entries = make_images(tmp_path, 3)
    Path(entries[1].path).write_bytes(b"rubbish")
    with pytest.raises(ImageReadError, match=r"01\.png"):
        ImageTable(entries, Preprocessing((4, 4)))[1]
    batch = collate([ImageTable(entries, Preprocessing((4, 4)), on_error="record")[i] for i in range(3)])
    assert batch["error"] == ["", "it is not an image of a known format", ""]
    assert batch["target"].tolist() == batch["index"].tolist() == [0, 1, 2]
    assert torch.allclose(batch["image"].amax((1, 2, 3)), torch.tensor([0.0, 0.0, 20 / 255]))


def test_other_faults_than_an_images_are_never_recorded(tmp_path: Path) -> None:
    def broken(_: Entry) -> Any:
        raise KeyError("a mistake in the program")

    table = ImageTable(make_images(tmp_path, 1), Preprocessing((4, 4)), reader=broken, on_error="record")
    with pytest.raises(KeyError):
        table[0]


@given(st.lists(st.one_of(st.just(None), st.binary(max_size=60), st.integers(0, 99)), min_size=1, max_size=6))
@settings(deadline=None, max_examples=60)
def test_broken_neighbours_never_change_a_sample(faults: list) -> None:
    with tempfile.TemporaryDirectory() as folder:
        entries = make_images(Path(folder), len(faults))
        for entry, fault in zip(entries, faults, strict=True):
            data = Path(entry.path).read_bytes()
            if fault is not None:  # random bytes, or the file cut to so many percent
                Path(entry.path).write_bytes(fault if isinstance(fault, bytes) else data[: len(data) * fault // 100])
        table = ImageTable(entries, Preprocessing((3, 3)), on_error="record")
        batch = collate([table[i] for i in range(len(faults))])
    for i, fault in enumerate(faults):
        if fault is None:
            assert batch["error"][i] == ""
            assert torch.equal(batch["image"][i, 0], torch.full((3, 3), 10 * i) / 255)
        elif batch["error"][i]:
            assert not batch["image"][i].any()
    assert batch["id"] == [entry.id for entry in entries]


def test_boxes_and_masks_travel_with_the_image(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    entry = Entry("a.png", str(tmp_path / "a.png"), 0, boxes=((0, 0, 10, 10),))
    table = ImageTable([entry, entry._replace(boxes=())], Preprocessing((10, 10)), annotations=("boxes",))
    batch = collate([table[0], table[1]])
    assert [boxes.tolist() for boxes in batch["boxes"]] == [[[0, 0, 5, 10]], []]
    assert "mask" not in batch


# ---------------------------------------------------------------------------------------------------- data module


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
    relabelled = [*entries[:2], entries[2]._replace(target=0)]
    for other in (Listed(entries, size=9), Listed(relabelled, size=8), Listed(entries, size=8, limit=2)):
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
        ({"num_workers": -1}, ValueError, "`num_workers` to be a non-negative integer"),
        ({"limit": 0}, ValueError, "`limit` to be a positive integer"),
        ({"seed": 3}, ValueError, "`limit` to be given with `seed`"),
        ({"on_error": "skip"}, ValueError, "`on_error` to be 'raise' or 'record', but got 'skip'"),
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


def test_the_table_and_the_sampler_also_serve_a_plain_loader(tmp_path: Path) -> None:
    table = ImageTable(make_images(tmp_path, 3), Preprocessing((4, 4)))
    loader = DataLoader(table, batch_sampler=BlockSampler(3, 2), collate_fn=collate)
    assert [batch["index"].tolist() for batch in loader] == [[0, 1], [2, -1]]
