"""Hugging Face's `datasets` as ours: real ones, written and read by that package, without its hub."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import make_tree
from PIL import Image

from optcam_pl.data import HuggingFaceDataset, ImageReadError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That package's cache is the test's own, and silent."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def png(color: tuple[int, int, int], size: tuple[int, int] = (8, 4), **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG", **options)
    return file.getvalue()


def write(folder: Path, columns: dict[str, list], **features: object) -> Path:
    """A dataset of two parts as `save_to_disk` writes it."""
    kinds = datasets.Features({"image": datasets.Image(decode=False), **features})
    rows = datasets.Dataset.from_dict(columns, features=kinds)
    both = datasets.DatasetDict({"test": rows, "train": rows.select([0])})
    both.save_to_disk(str(folder))
    return folder


def cells(*images: bytes | None) -> list[dict | None]:
    return [{"bytes": image, "path": None} for image in images]


@pytest.fixture
def boxed(tmp_path: Path) -> Path:
    """Two images of 8 x 4 pixels with named classes, boxes and masks."""
    mask = Image.fromarray(np.array([[2, 2, 0, 0, 0, 0, 0, 1]] * 4, dtype=np.uint8), mode=None)
    mask.putpalette([0, 0, 0, 0, 0, 0, 255, 255, 255])  # classes 0 and 1 are both shown black
    file = io.BytesIO()
    mask.save(file, "PNG")
    columns = {
        "image": cells(png((255, 0, 0)), png((0, 0, 255))),
        "label": [1, 0],
        "mask": cells(file.getvalue(), file.getvalue()),
        "objects": [{"bbox": [[0, 0, 4, 2], [2, 1, 6, 3]]}, {"bbox": []}],
    }
    kinds = {
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "mask": datasets.Image(decode=False),
        "objects": {"bbox": datasets.Sequence(datasets.Sequence(datasets.Value("float32")))},
    }
    return write(tmp_path / "boxed", columns, **kinds)


def test_labels_boxes_and_masks(boxed: Path) -> None:
    options = {"boxes": "objects.bbox", "box_format": "xywh", "image": "image", "mask": "mask"}
    data = HuggingFaceDataset(str(boxed), "test", **options, size=(4, 8), batch_size=2)
    batch = next(iter(data.test_dataloader()))
    assert (data.name, data.class_names, data.annotations) == ("boxed", ("cat", "dog"), ("boxes", "masks"))
    assert batch["target"].tolist() == [1, 0]
    assert batch["id"] == ["000000", "000001"]
    assert batch["image"][:, :, 0, 0].tolist() == [[1, 0, 0], [0, 0, 1]]
    assert batch["boxes"][0].tolist() == [[0, 0, 4, 2], [2, 1, 8, 4]]
    assert batch["boxes"][1].shape == (0, 4)
    assert batch["mask"][0, 0].tolist() == [True, True, False, False, False, False, False, True]
    only = HuggingFaceDataset(str(boxed), **options, foreground=[1], size=(4, 8))
    assert only.table[0]["mask"][0].tolist() == [False] * 7 + [True]
    assert only.fingerprint() != data.fingerprint()
    assert "/" not in str(data.fingerprint()["source"])


def test_a_list_of_objects_as_other_versions_have_it(boxed: Path) -> None:
    data = HuggingFaceDataset(str(boxed), boxes="objects.bbox", box_format="xywh", image="image")
    reader = data.reader()
    row = {"objects": [{"bbox": [0, 0, 4, 2]}, {"bbox": [2, 1, 6, 3]}]}
    assert reader._boxes(row) == [(0, 0, 4, 2), (2, 1, 8, 4)]  # type: ignore[attr-defined]


def test_readers_are_sent_to_other_processes(boxed: Path) -> None:
    data = HuggingFaceDataset(str(boxed), image="image", size=4)
    assert torch.equal(pickle.loads(pickle.dumps(data.table))[1]["image"], data.table[1]["image"])


def test_training_parts_and_names_as_labels(tmp_path: Path) -> None:
    columns = {"image": cells(png((9, 9, 9)), png((1, 1, 1)), png((2, 2, 2))), "kind": ["owl", "ant", None]}
    folder = write(tmp_path / "named", columns, kind=datasets.Value("string"))
    data = HuggingFaceDataset(str(folder), train_split="train", label="kind", size=4)
    assert data.class_names == ("ant", "owl")
    assert [entry.target for entry in data.entries()] == [1, 0, -1]
    assert [(entry.id, entry.target) for entry in data.training_entries("train")] == [("train/000000", 1)]
    assert data.training_fingerprint()["train"] == "train"
    data.training = True
    assert set(next(iter(data.train_dataloader()))["id"]) == {"train/000000"}
    with pytest.raises(ValueError, match="`val_split`"):
        data.training_entries("val")
    unlabeled = HuggingFaceDataset(str(folder))
    assert unlabeled.class_names is None
    assert {entry.target for entry in unlabeled.entries()} == {-1}


def test_a_folder_of_images_is_decoded_by_us(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", ("cat", "dog"), {"train": 2, "test": 4})
    turned = Image.new("RGB", (8, 4), (0, 0, 0))
    turned.paste((255, 255, 255), (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the left half comes to the top
    turned.save(tmp_path / "tree" / "test" / "cat" / "a_turned.png", exif=exif)
    (tmp_path / "tree" / "test" / "dog" / "z_broken.png").write_bytes(b"rubbish")
    arguments = {"data_dir": str(tmp_path / "tree"), "cache_dir": str(tmp_path / "cache")}
    data = HuggingFaceDataset("imagefolder", arguments=arguments, size=(8, 4), on_error="record")
    assert data.name == "tree"
    samples = [data.table[i] for i in range(len(data.table))]
    assert [sample["target"] for sample in samples] == [0, 0, 0, 1, 1, 1]
    assert [bool(sample["error"]) for sample in samples] == [False] * 5 + [True]
    upright = [i for i in range(5) if samples[i]["image"][:, :4].eq(1).all() and samples[i]["image"][:, 4:].eq(0).all()]
    assert len(upright) == 1
    assert samples[5]["error"] == "it is not an image of a known format"


def test_paths_do_not_leave_the_root(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png((7, 7, 7)))
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "a.png").write_bytes(png((5, 5, 5)))
    paths = [str(inside / "a.png"), str(inside / ".." / "secret.png"), str(tmp_path / "secret.png")]
    columns = {"image": [{"bytes": None, "path": path} for path in paths] + [{"bytes": b"", "path": None}, None]}
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features({"image": datasets.Image(decode=False)}))
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(rows.data.table, tmp_path / "rows.parquet")  # that package's own writers put the files in
    arguments = {"data_files": {"test": str(tmp_path / "rows.parquet")}, "cache_dir": str(tmp_path / "cache")}

    def errors(**options: object) -> list[str]:
        table = HuggingFaceDataset("parquet", arguments=arguments, size=4, on_error="record", **options).table
        return [table[i]["error"] for i in range(len(table))]

    outside = "its file lies outside `image_root`"
    assert errors(image_root=str(inside)) == ["", outside, outside, "the file is empty", "the row has no image"]
    assert errors()[:3] == ["the dataset only names its file, and `image_root` names no folder for it"] * 3
    assert errors(allow_outside=True)[:3] == [""] * 3


def test_wrong_settings_are_named(boxed: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`arguments`.*streaming"):
        HuggingFaceDataset("beans", arguments={"streaming": True})
    with pytest.raises(ValueError, match="`box_format`"):
        HuggingFaceDataset("beans", box_format="cxcywh")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`image` to name a column.*\['image', 'mask'\]"):
        HuggingFaceDataset(str(boxed)).setup()
    with pytest.raises(ValueError, match=r"lacks the columns \['picture'\]"):
        HuggingFaceDataset(str(boxed), image="picture").setup()
    with pytest.raises(ValueError, match="Expected images in the column 'label'"):
        HuggingFaceDataset(str(boxed), image="label").setup()
    with pytest.raises(ValueError, match=r"`split` to be one of \['test', 'train'\].*'val'"):
        HuggingFaceDataset(str(boxed), "val", image="image").setup()
    table = HuggingFaceDataset(str(write(tmp_path / "broken", {"image": cells(png((9, 9, 9)), b"rubbish")}))).table
    with pytest.raises(ImageReadError, match="'000001'"):
        table[1]


def labels(tmp_path: Path, values: list[object], kind: str | None = None) -> HuggingFaceDataset:
    columns = {"image": cells(*[png((9, 9, 9))] * len(values)), "kind": values}
    feature = datasets.Value(kind) if kind else datasets.ClassLabel(names=["9", "3"])
    folder = write(tmp_path / f"labels {len(list(tmp_path.iterdir()))}", columns, kind=feature)
    return HuggingFaceDataset(str(folder), label="kind", size=4)


def targets(data: HuggingFaceDataset) -> list[int]:
    return [entry.target for entry in data.table.entries]


def test_labels_of_every_kind_of_column(tmp_path: Path) -> None:
    text = labels(tmp_path, ["10", "2.0", "0", "", "nan", None, "-1"], "string")
    assert targets(text) == [10, 2, 0, -1, -1, -1, -1]
    assert text.class_names == tuple(map(str, range(11)))
    assert targets(labels(tmp_path, ["dog", " cat", "", None], "string")) == [1, 0, -1, -1]
    floats = labels(tmp_path, [10.0, 2.0, float("nan"), None, -1.0], "float32")
    assert (targets(floats), floats.class_names) == ([10, 2, -1, -1, -1], None)
    assert targets(labels(tmp_path, [10, -1, None], "int64")) == [10, -1, -1]
    assert targets(labels(tmp_path, [True, False], "bool")) == [1, 0]
    assert targets(labels(tmp_path, [1, -1, None])) == [1, -1, -1]  # of named classes: places, whatever their names
    assert labels(tmp_path, ["", None], "string").class_names is None


def test_labels_that_are_doubtful_are_refused_with_their_row(tmp_path: Path) -> None:
    for values, kind in (([0.0, 2.5], "float64"), ([0, -2], "int64"), (["0", "2.5"], "string")):
        with pytest.raises(ValueError, match=r"Row 1 of the column 'kind' of '.*' is wrong: .* got '?-?2"):
            labels(tmp_path, values, kind).setup()
    with pytest.raises(ValueError, match="column 'kind' of .* all numbers or all words, but row 1 has 'cat' and row 0"):
        labels(tmp_path, ["0", "cat"], "string").setup()


def test_a_folder_that_is_not_there_is_named_with_its_argument(boxed: Path) -> None:
    for words, message in (
        ({"path": "./nowhere"}, r"Expected `path` to be a folder or the name of a dataset, .*'\./nowhere'"),
        ({"path": "~/nowhere"}, "Expected `path` to be a folder or the name of a dataset, .*'~/nowhere'"),
        ({"path": str(boxed), "image_root": "nowhere"}, "Expected `image_root` to be a folder, .*'nowhere'"),
        (
            {"path": "imagefolder", "arguments": {"data_dir": "nowhere"}},
            "Expected `arguments.data_dir` to be .*'nowhere'",
        ),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            HuggingFaceDataset(**words)


def test_tilde_and_variables_in_paths(boxed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    data = HuggingFaceDataset("~/boxed", image="image", image_root="$HOME")
    assert (len(data.entries()), data.root, data.name) == (2, tmp_path, "boxed")
    arguments = {"data_dir": "~/boxed", "data_files": {"test": ["$HOME/a", "https://x/$HOME/~"]}, "revision": "~"}
    assert HuggingFaceDataset("imagefolder", arguments=arguments).arguments == {
        "data_dir": str(boxed),
        "data_files": {"test": [f"{tmp_path}/a", "https://x/$HOME/~"]},
        "revision": "~",
    }


def test_paths_that_are_relative_lie_in_the_images_root(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png((255, 0, 0)))
    cell = [{"bytes": None, "path": path} for path in ("a.png", "../secret.png")]
    rows = datasets.Dataset.from_dict(
        {"image": cell}, features=datasets.Features({"image": datasets.Image(decode=False)})
    )
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(rows.data.table, tmp_path / "rows.parquet")
    arguments = {"data_files": {"test": str(tmp_path / "rows.parquet")}, "cache_dir": str(tmp_path / "cache")}
    options = {"image_root": str(tmp_path / "images"), "size": 4, "on_error": "record"}
    table = HuggingFaceDataset("parquet", arguments=arguments, **options).table
    assert [table[i]["error"] for i in range(2)] == ["", "its file lies outside `image_root`"]
    assert table[0]["image"][:, 0, 0].tolist() == [1, 0, 0]


def test_boxes_in_another_format_are_told_and_the_format_is_part_of_a_run(boxed: Path) -> None:
    options = {"boxes": "objects.bbox", "image": "image", "size": (4, 8)}
    data = HuggingFaceDataset(str(boxed), **options, box_format="xywh")
    other = HuggingFaceDataset(str(boxed), **options)
    assert data.fingerprint() != other.fingerprint()
    assert "box_format" not in other.fingerprint()["source"]  # as runs have it that began before
    reader = other.reader()
    with pytest.raises(ValueError, match=r"left, top, right, bottom, but got \[5.0, 1.0, 2.0, 3.0\]"):
        reader._boxes({"objects": {"bbox": [[5, 1, 2, 3]]}})  # type: ignore[attr-defined]


def test_the_alpha_channel_of_a_mask_is_no_object(tmp_path: Path) -> None:
    mask = Image.new("RGBA", (8, 4), (0, 0, 0, 255))
    mask.paste((0, 0, 9, 255), (0, 0, 2, 4))
    file = io.BytesIO()
    mask.save(file, "PNG")
    columns = {"image": cells(png((9, 9, 9))), "mask": cells(file.getvalue())}
    folder = write(tmp_path / "alpha", columns, mask=datasets.Image(decode=False))
    data = HuggingFaceDataset(str(folder), image="image", mask="mask", size=(4, 8))
    assert data.table[0]["mask"][0].tolist() == [True] * 2 + [False] * 6
