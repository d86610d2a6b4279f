"""torchvision's datasets, with their labels, boxes and masks, as ours."""

from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import make_coco, make_pets, make_voc
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
    assert data.training_fingerprint()["train"] == {"size": 7}
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
    border = TorchvisionDataset("OxfordIIITPet", arguments, size=(4, 8), foreground=[3])
    assert border.fingerprint() != data.fingerprint()
    assert "foreground" not in data.fingerprint()["source"]  # as runs have it that began before


def test_voc_has_the_boxes_of_its_largest_objects_class(tmp_path: Path) -> None:
    make_voc(tmp_path)
    data = TorchvisionDataset("VOCDetection", {"root": str(tmp_path), "image_set": "val"}, size=(20, 40))
    sample = data.table[0]
    assert data.class_names is not None
    assert data.class_names[sample["target"]] == "cat"
    assert sample["boxes"].tolist() == [[10, 0, 40, 20], [0, 10, 4, 14]]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_coco_has_boxes_and_masks_of_its_largest_objects_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pycocotools")
    make_coco(tmp_path)
    arguments = {"root": str(tmp_path), "annFile": str(tmp_path / "a.json")}
    data = TorchvisionDataset("CocoDetection", arguments, size=(10, 20))
    out, err = capsys.readouterr()
    assert (out, "loading annotations" in err) == ("", True)  # stdout is a command's table
    sample = data.table[0]
    assert data.class_names == ("cat", "dog")
    assert sample["target"] == 0
    assert sample["boxes"].tolist() == [[5, 5, 15, 10], [0, 8, 2, 10]]
    assert sample["mask"].sum() == 54
    assert sample["mask"][5:, 5:15].all()
    empty = data.table[1]
    assert (empty["target"], len(empty["boxes"]), empty["mask"].any().item()) == (-1, 0, False)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_a_box_that_ends_before_it_begins_is_told_with_its_image(tmp_path: Path) -> None:
    make_voc(tmp_path)
    file = tmp_path / "VOCdevkit" / "VOC2012" / "Annotations" / "x.xml"
    file.write_text(file.read_text().replace("<xmin>11</xmin>", "<xmin>41</xmin>"))
    data = TorchvisionDataset("VOCDetection", {"root": str(tmp_path), "image_set": "val"})
    with pytest.raises(ValueError, match=r"'000000' of VOCDetection is wrong: .* as left, top, .* \[41.0, 1.0, 40"):
        data.table[0]
    pytest.importorskip("pycocotools")
    make_coco(tmp_path)
    file = tmp_path / "a.json"
    file.write_text(file.read_text().replace("[5, 5, 10, 5]", "[5, 5, 10, -5]"))
    data = TorchvisionDataset("CocoDetection", {"root": str(tmp_path), "annFile": str(file)})
    with pytest.raises(ValueError, match=r"'000000' of CocoDetection is wrong: .*left, top, .* \[5, 5, 15, 0\]"):
        data.table[0]


def test_what_is_no_dataset_of_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="torchvision has no dataset 'OxfordPet'; the nearest are 'OxfordIIITPet'"):
        TorchvisionDataset("OxfordPet", {})
    with pytest.raises(ValueError, match="torchvision has no dataset 'os.system'"):
        TorchvisionDataset("os.system", {})
    for name, found in (("CIFAR10", "Dataset not found"), ("ImageFolder", "No such file")):
        message = f"`arguments` with which torchvision finds {name}, but with {{'root': 'nowhere'}} it says: .*{found}"
        with pytest.raises(FileNotFoundError, match=message):
            TorchvisionDataset(name, {"root": "nowhere"})
    with pytest.raises(TypeError, match="torchvision finds CIFAR10, .*unexpected keyword argument 'rot'"):
        TorchvisionDataset("CIFAR10", {"rot": "nowhere"})
    (tmp_path / "x").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "x" / "1.png")
    data = TorchvisionDataset("ImageFolder", {"root": str(tmp_path)})
    data._datasets[""].target_transform = str
    with pytest.raises(TypeError, match="but got str"):
        data.table[0]


class Pairs(list):
    """Images with their labels."""


def labeled(labels: list[object], classes: list[object] | None = None, **attributes: object) -> TorchvisionDataset:
    """A dataset that has these labels and attributes."""
    data = TorchvisionDataset("FakeData", {"size": 1}, size=4)
    data._datasets[""] = Pairs((Image.new("RGB", (8, 8)), label) for label in labels)
    vars(data._datasets[""]).update({"classes": classes, **attributes})
    return data


def test_labels_of_any_kind_of_number_and_of_none() -> None:
    labels = [1, 1.0, np.int64(1), np.float32(1), np.array(1), torch.tensor(1), torch.tensor(1.0), True]
    none = [None, -1, float("nan"), torch.tensor(float("nan")), np.float64("nan")]
    data = labeled([*labels, *none], ["a", "b"])
    assert [data.table[i]["target"] for i in range(13)] == [1] * 8 + [-1] * 5


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (2, r"Expected a label in 0\.\.1 \(-1: none\), but got 2"),
        (1.5, "but got 1.5"),
        (-2, "but got -2"),
        (torch.tensor(1.5), "but got 1.5"),
        ((0, 1), "Expected one label per image, but got 0 and 1"),
    ],
)
def test_a_label_that_is_none_of_the_classes_is_refused_with_its_image(label: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"What comes with the image '000000' of Pairs is wrong: .*{message}"):
        labeled([label], ["a", "b"]).table[0]


def test_names_that_are_synonyms_or_wnids_or_two_kinds() -> None:
    assert labeled([0], [("tench", "Tinca tinca"), "cat"]).class_names == ("tench, Tinca tinca", "cat")
    assert labeled([0], [("x", "y")] * 2, wnids=["n02123045", "n01440764"]).class_names == ("tabby", "tench")
    data = labeled([0], ["Abyssinian", "Beagle"], bin_classes=["Cat", "Dog"])
    data.arguments["target_types"] = ["binary-category"]
    assert data.class_names == ("Cat", "Dog")


def test_an_unknown_category_is_named(tmp_path: Path) -> None:
    make_voc(tmp_path)
    file = tmp_path / "VOCdevkit" / "VOC2012" / "Annotations" / "x.xml"
    file.write_text(file.read_text().replace("dog", "dragon"))
    data = TorchvisionDataset("VOCDetection", {"root": str(tmp_path), "image_set": "val"})
    with pytest.raises(ValueError, match="one of the categories aeroplane, .*, but got 'dragon'"):
        data.table[0]


def test_a_file_managers_folder_is_no_class(tmp_path: Path) -> None:
    for name in ("cat", "__MACOSX"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    with pytest.raises(ValueError, match="'__MACOSX' is what a file manager calls a folder of its own"):
        TorchvisionDataset("ImageFolder", {"root": str(tmp_path)}).setup()


def test_tilde_and_variables_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_voc(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for root in ("~", "$HOME"):
        data = TorchvisionDataset("VOCDetection", {"root": root, "image_set": "val"}, train_arguments={"root": root})
        assert len(data.entries()) == 1
        assert data.part_arguments["train"] == {"root": str(tmp_path)}
        assert data.fingerprint()["source"] == {"dataset": "VOCDetection", "image_set": "val"}
