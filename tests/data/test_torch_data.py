"""Datasets and DataLoaders of PyTorch as a data module: for `evaluate`, and for a Trainer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, WeightedRandomSampler
from torchvision.transforms import v2

from optcam_pl import Classifier, FakeCAM, SaliencyTask
from optcam_pl.data import ImageFolder, Preprocessing, TorchData
from optcam_pl.runs.rows import read_rows

pytestmark = pytest.mark.filterwarnings(
    # tensorboard's protobuf classes and torch's own writer, https://github.com/pytorch/pytorch/issues/134958
    "ignore::DeprecationWarning",
    # Lightning 2.6 calls what torch 2.14 deprecates
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
    "ignore:.*does not have many workers.*",
)


class Items(Dataset[Any]):
    """A Dataset of given items."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.items[index], Exception):
            raise self.items[index]
        return self.items[index]


def batch_of(data: TorchData) -> Any:
    data.setup()
    return next(iter(data.test_dataloader()))


def photo(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def floats(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def test_pil_images_and_bytes_are_read_as_those_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    photo().save(tmp_path / "a" / "1.png")
    data = ImageFolder(str(tmp_path), batch_size=1, size=8)
    data.setup()
    want = next(iter(data.test_dataloader()))["image"]
    pixels = torch.from_numpy(np.array(photo())).permute(2, 0, 1)
    got = batch_of(TorchData(Items(photo(), pixels), batch_size=2, size=8))["image"]
    assert torch.equal(got, want.expand(2, -1, -1, -1))


def test_floats_stay_as_they_are_or_are_resized_without_rounding() -> None:
    image = torch.rand(3, 8, 8)
    assert torch.equal(batch_of(TorchData(Items(image), batch_size=1, size=8))["image"][0], image)
    large = floats(photo())
    for resize in ("stretch", "crop"):
        prepare = Preprocessing((8, 8), resize, interpolation="bicubic")  # type: ignore[arg-type]
        torch.testing.assert_close(prepare(large), prepare(photo()), atol=1.5 / 255, rtol=0)
    faint = torch.full((3, 20, 30), 0.3001)
    torch.testing.assert_close(Preprocessing((8, 8))(faint), torch.full((3, 8, 8), 0.3001))


def test_every_kind_of_item() -> None:
    image, box = torch.rand(3, 8, 8), torch.tensor([[0.0, 0.0, 4.0, 2.0]])
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:2, :4] = True
    plain = batch_of(TorchData(Items(image, (image,), (image, torch.tensor(3)), (image, None)), size=8, batch_size=4))
    assert (plain["target"].tolist(), plain["id"]) == ([-1, -1, 3, -1], ["0", "1", "2", "3"])
    assert "boxes" not in plain
    boxed = batch_of(TorchData(Items((image, 1, box), (image, 2, None)), size=16, batch_size=2))
    assert [b.tolist() for b in boxed["boxes"]] == [[[0, 0, 8, 4]], []]
    dicts = [{"image": image, "label": np.int64(4), "id": "b", "boxes": box.tolist(), "mask": mask}]
    full = batch_of(TorchData(Items(*dicts), size=8, batch_size=1))
    assert (full["id"], full["target"].tolist(), full["boxes"][0].tolist()) == (["b"], [4], box.tolist())
    assert torch.equal(full["mask"][0], mask)


@pytest.mark.parametrize(
    ("item", "kind", "message"),
    [
        (torch.rand(3, 8, 8) * 4 - 2, ValueError, r"Item 0 of Items is wrong: .*in \[0, 1\].*leave Normalize out"),
        (torch.rand(3, 8, 8) * 255, ValueError, "Divide pixels of 0 to 255 by 255, or give them as uint8"),
        (torch.full((3, 8, 8), torch.nan), ValueError, r"in \[0, 1\], but they lie in \[nan"),
        (torch.rand(1, 8, 8), ValueError, "Expected images of 3 channels, as the network takes, but '0' has 1"),
        (torch.ones(3, 8, 8, dtype=torch.int64), TypeError, "uint8 or floating point, but got torch.int64"),
        ((np.zeros((8, 8, 3)), 1), TypeError, "a tensor .* or a PIL image, but got ndarray"),
        ((torch.rand(3, 8, 8), "cat"), ValueError, "Expected the label to be a class's number"),
        ((torch.rand(3, 8, 8), torch.tensor([0, 1])), ValueError, "Expected the label to be one number"),
        ((torch.rand(3, 8, 8), 2), ValueError, r"Expected a label in 0..1 \(-1: none\), but got 2"),
        ((torch.rand(3, 8, 8), 1, torch.rand(2, 3)), ValueError, r"Expected boxes \(n,4\)"),
        ({"image": torch.rand(3, 8, 8), "mask": torch.rand(1, 8, 8)}, ValueError, r"mask to be of shape \(H,W\)"),
        ({"picture": 1}, TypeError, "Expected dicts with an `image`, but got one with picture"),
        ((1, 2, 3, 4), TypeError, "but got tuple of 4 parts"),
        ("cat.png", TypeError, "but got str"),
    ],
)
def test_wrong_items_are_told_in_words(item: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        batch_of(TorchData(Items(item), size=8, class_names=["a", "b"]))


def test_of_a_loader_the_dataset_is_taken_in_its_order() -> None:
    items = Items(*((torch.rand(3, 8, 8), i) for i in range(5)))
    data = TorchData(DataLoader(items, batch_size=2), size=8)
    data.setup()
    assert data.batch_size == 2
    assert [b["target"].tolist() for b in data.test_dataloader()] == [[0, 1], [2, 3], [4, -1]]
    with pytest.warns(UserWarning, match="The DataLoader shuffles, but images are evaluated in the dataset's order"):
        shuffled = TorchData(DataLoader(items, batch_size=2, shuffle=True), size=8)
    assert batch_of(shuffled)["target"].tolist() == [0, 1]
    assert batch_of(TorchData(Subset(items, [3, 1]), size=8, batch_size=2))["target"].tolist() == [3, 1]
    for options in ({"sampler": WeightedRandomSampler([1.0] * 5, 3)}, {"batch_sampler": [[0, 2]]}):
        with pytest.raises(ValueError, match="Expected a DataLoader that reads its dataset in order, but it has a"):
            TorchData(DataLoader(items, **options))  # type: ignore[arg-type]


def test_what_has_no_numbered_items_is_refused() -> None:
    class Stream(IterableDataset[Any]):
        """Items without a place."""

        def __iter__(self) -> Any:
            return iter([])

    for stream in (Stream(), DataLoader(Stream())):
        with pytest.raises(TypeError, match="Stream is an IterableDataset: its images have no fixed place"):
            TorchData(stream)
    with pytest.raises(TypeError, match="Expected a Dataset with `__len__` and `__getitem__`.* but got generator"):
        TorchData(x for x in [])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="TorchData found no image: looked for items of the Items, whose length is 0"):
        TorchData(Items()).setup()


def test_a_trainer_takes_it_and_a_broken_file_is_its_own_row(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    classifier = Classifier(network, mean=(0, 0, 0), std=(1, 1, 1), input_size=8)
    items = Items((photo(), 0), OSError("cannot identify"), (photo(1), 2))
    task = SaliencyTask(classifier, FakeCAM())
    task.run_dir = tmp_path / "run"  # type: ignore[assignment]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", inference_mode=False, **quiet)
    trainer.test(task, TorchData(DataLoader(items, batch_size=2), name="mine", on_error="record"), verbose=False)
    rows = read_rows(tmp_path / "run")
    assert [(row.id, row.status, row.target) for row in rows] == [("0", "ok", 0), ("1", "error", -1), ("2", "ok", 2)]
    assert rows[1].reason == "the file cannot be read (OSError: cannot identify)"


def test_the_snippet_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).resolve().parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(snippet, "docs/datasets.md", "exec"), {})
    assert "GradCAM" in capsys.readouterr().out
    assert [row.target for row in read_rows("runs/mine")] == [0, 1, 2]


def test_pil_images_of_any_depth_and_transparency_are_read_as_files_are(tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((8, 8), 32896, dtype=np.uint16))
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    images = batch_of(TorchData(Items(deep, clear), size=8, batch_size=2))["image"]
    assert images[0].unique().tolist() == [pytest.approx(128 / 255)]  # Pillow's own conversion would be white
    assert images[1].unique().tolist() == [1]
    with pytest.raises(ValueError, match="Item 0 of Items is wrong: .*their scale is unknown|scale is unknown"):
        batch_of(TorchData(Items(Image.fromarray(np.full((8, 8), 7.0, dtype=np.float32))), size=8))


@pytest.mark.parametrize("box", [[4.0, 4, 2, 6], [4.0, 4, 6, 2], [0.0, 0, float("nan"), 4]])
def test_a_box_that_ends_before_it_begins_is_not_left_out_in_silence(box: list[float]) -> None:
    with pytest.raises(ValueError, match="Item 0 of Items is wrong: Expected a box as left, top, right, bottom"):
        batch_of(TorchData(Items({"image": torch.rand(3, 8, 8), "boxes": [box]}), size=8))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1"])
def test_masks_of_any_mode_are_not_0_on_the_object(mode: str) -> None:
    shown = np.zeros((8, 8), dtype=np.uint8)
    shown[:2] = 1
    mask = Image.fromarray(shown) if mode in "LP" else Image.fromarray(shown * np.uint8(255)).convert(mode)
    if mode == "P":
        mask.putpalette([255, 255, 255, 0, 0, 0])  # the object is black, what is around it is white
    if mode.startswith("RGB"):  # dark blue, and opaque everywhere
        mask = Image.fromarray(np.stack([shown * 0, shown * 0, shown], 2)).convert(mode)
    data = TorchData(Items({"image": torch.rand(3, 8, 8), "mask": mask}), size=8, batch_size=1)
    assert batch_of(data)["mask"][0].sum(1).tolist() == [8, 8, 0, 0, 0, 0, 0, 0]


def test_a_mask_of_another_shape_than_its_image_is_refused() -> None:
    items = Items(*({"image": torch.rand(3, 8, 16), "mask": torch.ones(size)} for size in ((4, 8), (16, 8))))
    data = TorchData(items, size=8, batch_size=2, on_error="record")
    assert batch_of(data)["error"] == ["", "its mask has 8 x 16 pixels, but it has 16 x 8"]


def test_a_mask_of_another_resolution_moves_with_its_image() -> None:
    mask = torch.zeros(4, 8)
    mask[:, :2] = 1
    items = Items({"image": torch.rand(3, 8, 16), "mask": mask})
    for transform, first in ((None, 0), (v2.RandomHorizontalFlip(1.0), 6)):
        batch = batch_of(TorchData(items, size=8, batch_size=1, transform=transform))
        assert batch["mask"][0].any(0).nonzero().flatten().tolist() == [first, first + 1]


@pytest.mark.parametrize("broken", [0, 1])
def test_a_broken_file_does_not_end_the_search_for_ids(broken: int) -> None:
    items: list[Any] = [{"image": torch.rand(3, 8, 8), "id": name, "boxes": []} for name in "ab"]
    items[broken] = OSError("cannot identify")
    data = TorchData(Items(*items), size=8, batch_size=2, on_error="record")
    batch = batch_of(data)
    assert batch["id"][1 - broken] == "ab"[1 - broken]
    assert [bool(error) for error in batch["error"]] == [i == broken for i in range(2)]
    assert "boxes" in batch
    with pytest.raises(ValueError, match=f"Cannot read item {broken} of Items: .*cannot identify"):
        TorchData(Items(*items), size=8).setup()
