"""ImageNet in every layout that people have gives the same images, classes and boxes."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from test_data_boxes import xml

from optcam_pl.data import ImageNet
from optcam_pl.imagenet import imagenet_names, imagenet_wnids

CLASSES = [281, 0, 999, 281]
STEMS = [f"ILSVRC2012_val_{number:08}" for number in (1, 2, 3, 5)]


def flat(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for stem in STEMS:
        Image.new("RGB", (40, 20)).save(folder / f"{stem}.JPEG")
    return folder


def by_wnid(folder: Path) -> Path:
    for stem, number in zip(STEMS, CLASSES, strict=True):
        (folder / imagenet_wnids()[number]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20)).save(folder / imagenet_wnids()[number] / f"{stem}.JPEG")
    return folder


def devkit(folder: Path, packed: bool = False) -> Path:
    """A development kit that numbers the classes in reverse, with two classes that are no leaves."""
    kit = folder / "ILSVRC2012_devkit_t12"
    (kit / "data").mkdir(parents=True)
    kind = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "f8")]
    rows = [(i + 1, wnid, "word", "gloss", 0) for i, wnid in enumerate(reversed(imagenet_wnids()))]
    rows += [(1001, "n00001740", "entity", "gloss", 2), (1002, "n00021939", "artifact", "gloss", 2)]
    savemat(kit / "data" / "meta.mat", {"synsets": np.array(rows, dtype=kind)[:, None]})
    truth = dict(zip(STEMS, CLASSES, strict=True))
    numbers = [1000 - truth.get(f"ILSVRC2012_val_{i:08}", 7) for i in range(1, 6)]
    (kit / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in numbers))
    if not packed:
        return kit
    with tarfile.open(folder / "kit.tar.gz", "w:gz") as archive:
        archive.add(kit, "ILSVRC2012_devkit_t12")
    return folder / "kit.tar.gz"


def classes(data: ImageNet) -> dict[str, int]:
    return {Path(entry.id).stem: entry.target for entry in data.table.entries}


EXPECTED = dict(zip(STEMS, CLASSES, strict=True))


def test_folders_by_wnid_directly_and_in_torchvisions_val(tmp_path: Path) -> None:
    by_wnid(tmp_path / "val")
    data = ImageNet(str(tmp_path / "val"))
    assert classes(data) == EXPECTED
    assert (data.name, data.class_names, data.annotations) == ("imagenet", imagenet_names(), ())
    above = ImageNet(str(tmp_path))
    assert above.fingerprint() == data.fingerprint()
    (tmp_path / "train" / "n01440764").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "train" / "n01440764" / "x.JPEG")
    assert [entry.id for entry in above.training_entries("train")] == ["n01440764/x.JPEG"]


@pytest.mark.parametrize("packed", [False, True])
def test_flat_images_with_the_development_kit(tmp_path: Path, packed: bool) -> None:
    kit = devkit(tmp_path, packed)
    assert classes(ImageNet(str(flat(tmp_path / "images")), labels=str(kit))) == EXPECTED


def test_the_kit_is_understood_as_torchvision_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import imagenet as reference

    packed = devkit(tmp_path, packed=True)
    monkeypatch.setattr(reference, "_verify_archive", lambda *_: None)  # of the real kit's checksum
    reference.parse_devkit_archive(str(tmp_path), packed.name)
    _, wnids = reference.load_meta_file(str(tmp_path))
    ours = classes(ImageNet(str(flat(tmp_path / "images")), labels=str(packed)))
    assert [imagenet_wnids()[ours[stem]] for stem in STEMS] == [wnids[i] for i in (0, 1, 2, 4)]


def test_the_kit_and_val_in_one_folder_are_found_by_themselves(tmp_path: Path) -> None:
    devkit(tmp_path)
    flat(tmp_path / "val")
    assert classes(ImageNet(str(tmp_path))) == EXPECTED


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"{stem}.JPEG {number}\n" for stem, number in EXPECTED.items()),
        "image,label\n" + "".join(f"{stem},{imagenet_wnids()[number]}\n" for stem, number in EXPECTED.items()),
        "".join(f"{stem}\t{imagenet_names()[number]}\n" for stem, number in EXPECTED.items()),
        "".join(f'val/{stem}.JPEG,"{imagenet_names()[number]}"\n' for stem, number in EXPECTED.items()),
    ],
)
def test_flat_images_with_a_file_of_two_columns(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.txt").write_text(text + "ILSVRC2012_val_00009999,7\n" * ("," in text))
    assert classes(ImageNet(str(flat(tmp_path / "images")), labels=str(tmp_path / "labels.txt"))) == EXPECTED


def test_kaggles_file_gives_classes_and_boxes(tmp_path: Path) -> None:
    flat(tmp_path)
    rows = [
        f"{stem},{imagenet_wnids()[number]} 1 2 30 10 {imagenet_wnids()[number]} 0 0 5 5 "
        for stem, number in EXPECTED.items()
    ]
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "\n".join(rows))
    data = ImageNet(str(tmp_path), size=(20, 40))
    assert classes(data) == EXPECTED
    assert data.table[0]["boxes"].tolist() == [[1, 2, 30, 10], [0, 0, 5, 5]]


@pytest.mark.parametrize("kaggle", [False, True])
def test_boxes_that_end_before_they_begin_are_told(tmp_path: Path, kaggle: bool) -> None:
    by_wnid(tmp_path / "val")
    if kaggle:
        wnid = imagenet_wnids()[EXPECTED[STEMS[0]]]
        (tmp_path / "LOC_val_solution.csv").write_text(f"{STEMS[0]},{wnid} 30 2 1 10 {wnid} 0 0 5 5\n")
        data = ImageNet(str(tmp_path), size=(20, 40))
    else:
        (tmp_path / "boxes").mkdir()
        (tmp_path / "boxes" / f"{STEMS[0]}.xml").write_bytes(xml((30, 2, 1, 10), (0, 0, 5, 5), size=(40, 20)))
        data = ImageNet(str(tmp_path), boxes=str(tmp_path / "boxes"), size=(20, 40))
    with pytest.warns(UserWarning, match=rf"1 boxes in .* end before they begin, such as one of '.*{STEMS[0]}"):
        data.setup("test")
    table = {Path(data.table[i]["id"]).stem: data.table[i]["boxes"].tolist() for i in range(4)}
    assert table[STEMS[0]] == [[0, 0, 5, 5]]


def test_xml_boxes_are_carried_through_resize_and_crop_as_computed_by_hand(tmp_path: Path) -> None:
    by_wnid(tmp_path / "val")
    (tmp_path / "boxes").mkdir()
    (tmp_path / "boxes" / f"{STEMS[0]}.xml").write_bytes(xml((10, 5, 30, 15), size=(40, 20)))
    (tmp_path / "boxes" / f"{STEMS[1]}.xml").write_bytes(xml((0, 0, 100, 100), (0, 0, 20, 100), size=(400, 200)))
    (tmp_path / "boxes" / f"{STEMS[2]}.xml").write_bytes(xml(size=(40, 20)))
    arguments = {"root": str(tmp_path), "boxes": str(tmp_path / "boxes")}
    data = ImageNet(**arguments, size=80)
    assert data.annotations == ("boxes",)
    table = {Path(data.table[i]["id"]).stem: data.table[i]["boxes"].tolist() for i in range(4)}
    # 40 x 20 to 80 x 80: x by 2, y by 4; the second was annotated at ten times the size.
    assert table == {
        STEMS[0]: [[20, 20, 60, 60]],
        STEMS[1]: [[0, 0, 20, 40], [0, 0, 4, 40]],
        STEMS[2]: [],
        STEMS[3]: [],
    }
    data = ImageNet(**arguments, size=70, resize="crop")
    table = {Path(data.table[i]["id"]).stem: data.table[i]["boxes"].tolist() for i in range(4)}
    # To 160 x 80 (by 4), then 45 from the left and 5 from above, clipped to 70 x 70; the second's are cropped away.
    assert table == {STEMS[0]: [[0, 15, 70, 55]], STEMS[1]: [], STEMS[2]: [], STEMS[3]: []}
    batch = next(iter(data.test_dataloader()))
    assert [boxes.shape for boxes in batch["boxes"]][:4] == [(0, 4), torch.Size([1, 4]), (0, 4), (0, 4)]


def test_flat_images_take_their_class_from_the_boxes_if_there_is_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "boxes").mkdir()
    for stem, number in EXPECTED.items():
        (tmp_path / "boxes" / f"{stem}.xml").write_bytes(
            xml((1, 1, 2, 2), size=(40, 20), name=imagenet_wnids()[number])
        )
    flat(tmp_path / "images")
    assert classes(ImageNet(str(tmp_path / "images"), boxes=str(tmp_path / "boxes"))) == EXPECTED


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    images = str(flat(tmp_path / "images"))
    with pytest.raises(
        ValueError, match=r"No label \(give `labels`\) for 4 of 4 images, such as 'ILSVRC2012_val_00000001'"
    ):
        ImageNet(images).setup()
    (tmp_path / "labels.txt").write_text(f"{STEMS[0]} 3\n")
    with pytest.raises(ValueError, match=r"No label in '.*labels.txt' for 3 of 4"):
        ImageNet(images, labels=str(tmp_path / "labels.txt")).setup()
    (tmp_path / "labels.txt").write_text("".join(f"{stem} tabbi\n" for stem in STEMS))
    with pytest.raises(ValueError, match="'tabbi' is none of the 1000 classes"):
        ImageNet(images, labels=str(tmp_path / "labels.txt")).setup()
    (tmp_path / "truth.txt").write_text("1\n2\n3\n4\n5\n")
    with pytest.raises(ValueError, match=r"meta\.mat"):
        ImageNet(images, labels=str(tmp_path / "truth.txt")).setup()
    (tmp_path / "kit").mkdir()
    with pytest.raises(ValueError, match=r"lacks .*ground_truth.txt and meta.mat"):
        ImageNet(images, labels=str(tmp_path / "kit")).setup()
    for arguments in ({"labels": "nowhere.csv"}, {"boxes": "nowhere.tgz"}):
        (option,) = arguments
        with pytest.raises(FileNotFoundError, match=f"Expected `{option}` to be a file or a folder, .*nowhere"):
            ImageNet(images, **arguments)
    with pytest.raises(FileNotFoundError, match="Expected `root` to hold the folders train and val .* has no 'train'"):
        ImageNet(images).training_entries("train")


def test_a_label_list_says_numbers_as_others_do_and_where_an_image_has_none(tmp_path: Path) -> None:
    images = str(flat(tmp_path / "images"))
    lines = [f"{STEMS[0]},281.0", f"{STEMS[1]},-1", "", f"{STEMS[2]},", f"{STEMS[3]}, 007"]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    assert list(classes(ImageNet(images, labels=str(tmp_path / "labels.csv"))).values()) == [281, -1, -1, 7]
    for wrong, message in (
        ("2.5", "got '2.5'"),
        ("1000", r"in 0\.\.999 .* got '1000'"),
        ("tabbi", "nearest are 'tabby'"),
    ):
        (tmp_path / "labels.csv").write_text("\n".join([*lines[:4], f"{STEMS[3]},{wrong}"]))
        with pytest.raises(ValueError, match=rf"Row 5 of .*labels\.csv' is wrong: .*{message}"):
            ImageNet(images, labels=str(tmp_path / "labels.csv")).setup()
    (tmp_path / "labels.csv").write_text("\n".join([*lines, f"{STEMS[0]},4"]))
    with pytest.raises(ValueError, match=f"Row 6 of .* gives '{STEMS[0]}' another label than before"):
        ImageNet(images, labels=str(tmp_path / "labels.csv")).setup()
    (tmp_path / "labels.csv").write_text(f"{STEMS[0]},ä\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"labels\.csv' to be written in utf-8"):
        ImageNet(images, labels=str(tmp_path / "labels.csv")).setup()


def test_folders_by_wnid_below_the_root_are_told(tmp_path: Path) -> None:
    by_wnid(tmp_path / "ILSVRC" / "images")
    with pytest.raises(ValueError, match=r"they lie in 'ILSVRC/images' below it: give '.*/ILSVRC/images' as `root`"):
        ImageNet(str(tmp_path)).setup()


def test_tilde_and_variables_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    flat(tmp_path / "images")
    (tmp_path / "labels.txt").write_text("".join(f"{stem} {number}\n" for stem, number in EXPECTED.items()))
    (tmp_path / "boxes").mkdir()
    data = ImageNet("~/images", "$HOME/labels.txt", "~/boxes")
    assert (classes(data), data.annotations) == (EXPECTED, ("boxes",))


def test_kaggles_boxes_are_also_those_of_images_in_folders(tmp_path: Path) -> None:
    by_wnid(tmp_path / "val")
    rows = [f"{stem},{imagenet_wnids()[EXPECTED[stem]]} 1 2 30 10 " for stem in STEMS[:3]]
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "\n".join(rows))
    data = ImageNet(str(tmp_path), size=(20, 40))
    assert classes(data) == EXPECTED
    boxes = {Path(data.table[i]["id"]).stem: data.table[i]["boxes"].tolist() for i in range(4)}
    assert boxes == {key: [[1, 2, 30, 10]] for key in STEMS[:3]} | {STEMS[3]: []}


def test_linked_annotations_can_be_allowed(tmp_path: Path) -> None:
    by_wnid(tmp_path / "val")
    (tmp_path / "far").mkdir()
    (tmp_path / "boxes").mkdir()
    (tmp_path / "far" / "1.xml").write_bytes(xml((10, 5, 30, 15), size=(40, 20)))
    (tmp_path / "boxes" / f"{STEMS[0]}.xml").symlink_to(tmp_path / "far" / "1.xml")
    arguments = {"root": str(tmp_path), "boxes": str(tmp_path / "boxes")}
    with pytest.raises(ValueError, match="`allow_outside: true` permits that"):
        ImageNet(**arguments).setup()
    data = ImageNet(**arguments, allow_outside=True)
    assert sum(len(entry.boxes or ()) for entry in data.table.entries) == 1


def test_flat_images_of_one_name_in_two_folders_are_refused(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        flat(tmp_path / "val" / folder)
    (tmp_path / "val.txt").write_text("".join(f"x/{stem}.JPEG {EXPECTED[stem]}\n" for stem in STEMS))
    with pytest.raises(ValueError, match=f"but got 'x/{STEMS[0]}.JPEG' and 'y/{STEMS[0]}.JPEG'. A CSV file"):
        ImageNet(str(tmp_path)).setup()
