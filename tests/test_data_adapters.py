"""torchvision's datasets, with their labels, boxes and masks, as ours."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import make_pets, make_voc
from PIL import Image

from optcam_pl.data import ImageReadError, TorchvisionDataset


def test_labels_and_names_of_a_folder_dataset(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / name / "1.png")
    data = TorchvisionDataset("torchvision.datasets.ImageFolder", {"root": str(tmp_path)}, size=4, batch_size=2)
    batch = next(iter(data.test_dataloader()))
    assert batch["target"].tolist() == [0, 1]
    assert batch["id"] == ["000000", "000001"]
    assert (data.name, data.class_names, data.annotations) == ("imagefolder", ("cat", "dog"), ())
    assert data.fingerprint()["source"] == {"dataset": "ImageFolder"}
    (tmp_path / "dog" / "1.png").write_bytes(b"rubbish")
    with pytest.raises(ImageReadError, match="'000001'"):
        data.table[1]


def test_training_parts_have_arguments_of_their_own() -> None:
    fake = {"size": 3, "image_size": [3, 8, 8], "num_classes": 5}
    data = TorchvisionDataset("FakeData", fake, train_arguments={"size": 7}, val_arguments={"random_offset": 9}, size=4)
    assert len(data.entries()) == 3
    assert [len(data.training_entries(part)) for part in ("train", "val")] == [7, 3]
    data.training = True
    assert next(iter(data.train_dataloader()))["image"].shape == (8, 3, 4, 4)
    assert next(iter(data.val_dataloader()))["id"][0] == "val/000000"
    with pytest.raises(ValueError, match="`train_arguments`"):
        TorchvisionDataset("FakeData", fake).training_entries("train")


def test_pets_have_a_class_and_a_mask(tmp_path: Path) -> None:
    make_pets(tmp_path)
    arguments = {"root": str(tmp_path), "split": "test", "target_types": ["category", "segmentation"]}
    data = TorchvisionDataset("OxfordIIITPet", arguments, size=(4, 8), batch_size=2)
    batch = next(iter(data.test_dataloader()))
    assert batch["target"].tolist() == [0, 1]
    assert data.class_names == ("Abyssinian", "Beagle")
    assert torch.equal(batch["mask"][0].any(0), torch.arange(8) < 3)
    assert TorchvisionDataset("OxfordIIITPet", {"root": str(tmp_path), "split": "test"}).annotations == ()


def test_voc_has_the_boxes_of_its_largest_objects_class(tmp_path: Path) -> None:
    make_voc(tmp_path)
    data = TorchvisionDataset("VOCDetection", {"root": str(tmp_path), "image_set": "val"}, size=(20, 40))
    sample = data.table[0]
    assert data.class_names is not None
    assert data.class_names[sample["target"]] == "cat"
    assert sample["boxes"].tolist() == [[10, 0, 40, 20], [0, 10, 4, 14]]


def test_coco_has_boxes_and_masks_of_its_largest_objects_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Coco:  # of pycocotools, what is asked of it
        def __init__(self, path: str) -> None:
            content = json.loads(Path(path).read_text())
            self.imgs = {image["id"]: image for image in content["images"]}
            self.cats = {category["id"]: category for category in content["categories"]}
            self.anns = content["annotations"]

        def loadImgs(self, number: int) -> list:  # noqa: N802
            return [self.imgs[number]]

        def getAnnIds(self, number: int) -> list:  # noqa: N802
            return [i for i, thing in enumerate(self.anns) if thing["image_id"] == number]

        def loadAnns(self, numbers: list) -> list:  # noqa: N802
            return [self.anns[i] for i in numbers]

        def annToMask(self, thing: Any) -> np.ndarray:  # noqa: N802
            mask = np.zeros((10, 20), dtype=np.uint8)
            x, y, w, h = thing["bbox"]
            mask[y : y + h, x : x + w] = 1
            return mask

    module = ModuleType("pycocotools.coco")
    module.COCO = Coco  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycocotools", ModuleType("pycocotools"))
    monkeypatch.setitem(sys.modules, "pycocotools.coco", module)
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (20, 10)).save(tmp_path / name)
    things = [(7, [0, 0, 4, 4]), (3, [5, 5, 10, 5]), (3, [0, 8, 2, 2])]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": c, "bbox": b, "segmentation": [[0]]} for c, b in things],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    arguments = {"root": str(tmp_path), "annFile": str(tmp_path / "a.json")}
    data = TorchvisionDataset("CocoDetection", arguments, size=(10, 20))
    sample = data.table[0]
    assert data.class_names == ("cat", "dog")
    assert sample["target"] == 0
    assert sample["boxes"].tolist() == [[5, 5, 15, 10], [0, 8, 2, 10]]
    assert sample["mask"].sum() == 54
    assert sample["mask"][5:, 5:15].all()
    empty = data.table[1]
    assert (empty["target"], len(empty["boxes"]), empty["mask"].any().item()) == (-1, 0, False)


def test_what_is_no_dataset_of_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="torchvision has no dataset 'OxfordPet'; the nearest are 'OxfordIIITPet'"):
        TorchvisionDataset("OxfordPet", {})
    with pytest.raises(ValueError, match="torchvision has no dataset 'os.system'"):
        TorchvisionDataset("os.system", {})
    (tmp_path / "x").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "x" / "1.png")
    data = TorchvisionDataset("ImageFolder", {"root": str(tmp_path)})
    data._datasets[""].target_transform = str
    with pytest.raises(TypeError, match="but got str"):
        data.table[0]
