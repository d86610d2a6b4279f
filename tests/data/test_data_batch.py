"""A sample is what the design says; a broken image is its own row and nobody else's."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from data_cases import make_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from optcam_pl.data import BlockSampler, Entry, ImageReadError, ImageTable, Preprocessing, collate


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
def test_broken_neighbors_never_change_a_sample(faults: list) -> None:
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


def test_the_table_and_the_sampler_also_serve_a_plain_loader(tmp_path: Path) -> None:
    table = ImageTable(make_images(tmp_path, 3), Preprocessing((4, 4)))
    loader = DataLoader(table, batch_sampler=BlockSampler(3, 2), collate_fn=collate)
    assert [batch["index"].tolist() for batch in loader] == [[0, 1], [2, -1]]


def test_boxes_are_scaled_from_the_frame_that_they_were_drawn_on(tmp_path: Path) -> None:
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    entry = Entry("a.png", str(tmp_path / "a.png"), 0, boxes=((100, 50, 200, 150),), frame=(400, 200))
    table = ImageTable([entry, entry._replace(frame=(401, 199))], Preprocessing((100, 200)), annotations=("boxes",))
    assert table[0]["boxes"].tolist() == [[50, 25, 100, 75]]
    assert torch.allclose(table[1]["boxes"], torch.tensor([[50.0, 25, 100, 75]]), atol=0.5)
    turned = ImageTable([entry._replace(frame=(200, 400))], Preprocessing((9, 9)), annotations=("boxes",))
    with pytest.raises(ImageReadError, match="drawn on 200 x 400 pixels, but it has 200 x 100"):
        turned[0]


def test_a_transform_moves_image_boxes_and_mask_together(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20))
    image.paste((255, 255, 255), (0, 0, 10, 20))
    image.save(tmp_path / "a.png")
    entry = Entry("a.png", str(tmp_path / "a.png"), 0)

    def reader(_: Entry) -> Any:
        from optcam_pl.data import Item

        return Item(image, [(0, 0, 10, 20)], image.convert("L"))

    both = ("boxes", "masks")
    table = ImageTable(
        [entry], Preprocessing((20, 40)), reader=reader, annotations=both, transform=v2.RandomHorizontalFlip(1)
    )
    sample = table[0]
    assert sample["boxes"].tolist() == [[30, 0, 40, 20]]
    assert torch.equal(sample["mask"], sample["image"][0] > 0.5)
    assert sample["mask"][:, 30:].all()
    assert not sample["mask"][:, :30].any()
    to_tensor = v2.Compose([v2.ToImage(), v2.CenterCrop(20), v2.ToDtype(torch.float32, scale=True)])
    sample = ImageTable([entry], Preprocessing((20, 20)), reader=reader, annotations=both, transform=to_tensor)[0]
    assert sample["image"].shape == (3, 20, 20)
    assert not sample["mask"].any()
    assert sample["boxes"].shape == (0, 4)  # what the crop cut away


def test_a_random_transform_depends_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    entries = make_images(tmp_path, 2)
    jitter = v2.ColorJitter(brightness=0.9)
    table = ImageTable(entries, Preprocessing((2, 2)), transform=jitter, seed=1)
    state = torch.get_rng_state()
    first = table.sample(1, epoch=0)["image"]
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(table.sample(1, epoch=0)["image"], first)
    assert not torch.equal(table.sample(1, epoch=1)["image"], first)
    other = ImageTable(entries, Preprocessing((2, 2)), transform=jitter, seed=2)
    assert not torch.equal(other.sample(1, epoch=0)["image"], first)
