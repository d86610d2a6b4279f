"""What a CSV lists is what one gets; what is wrong with it is told by row."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from optcam_pl.data import CSVImages

BOXES = ["x1", "y1", "x2", "y2"]


def make(tmp_path: Path, text: str, **kwargs: Any) -> CSVImages:
    for name in ("a.png", "sub/b.png", "sub/c d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 10)).save(tmp_path / name)
    (tmp_path / "list.csv").write_text(text, encoding="utf-8-sig")
    return CSVImages(str(tmp_path / "list.csv"), **kwargs)


def targets(data: CSVImages) -> dict[str, int]:
    return {entry.id: entry.target for entry in data.table.entries}


def test_paths_and_class_names_in_the_order_of_the_file(tmp_path: Path) -> None:
    data = make(tmp_path, 'label,path\ndog,sub/b.png\ncat,"sub/c d.png"\ndog,./sub/../a.png\n', size=4)
    assert list(targets(data).items()) == [("sub/b.png", 1), ("sub/c d.png", 0), ("a.png", 1)]
    assert (data.name, data.class_names, data.annotations) == ("list", ("cat", "dog"), ())
    assert next(iter(data.test_dataloader()))["error"] == [""] * 8


def test_numbers_and_given_classes(tmp_path: Path) -> None:
    text = "path,label\na.png,2\nsub/b.png,0\n"
    assert make(tmp_path, text).class_names == ("0", "1", "2")
    assert targets(make(tmp_path, text)) == {"a.png": 2, "sub/b.png": 0}
    assert targets(make(tmp_path, text, classes=["x", "y", "z"])) == {"a.png": 2, "sub/b.png": 0}
    assert targets(make(tmp_path, "path,label\na.png,tabby\nsub/b.png,n01440764\n", classes="imagenet")) == {
        "a.png": 281,
        "sub/b.png": 0,
    }


def test_no_labels_or_some(tmp_path: Path) -> None:
    data = make(tmp_path, "file\na.png\n", path="file", label=None)
    assert (targets(data), data.class_names) == ({"a.png": -1}, None)
    assert targets(make(tmp_path, "path,label\na.png,\nsub/b.png,x\n")) == {"a.png": -1, "sub/b.png": 0}


def test_boxes_of_one_image_in_several_rows(tmp_path: Path) -> None:
    text = "path;label;x1;y1;x2;y2\na.png;1;1;2;3;4\nsub/b.png;0;;;;\na.png;1;5;6;7;8.5\n"
    data = make(tmp_path, text, boxes=BOXES, delimiter=";", size=(10, 20))
    assert data.annotations == ("boxes",)
    assert data.table[0]["boxes"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8.5]]
    assert data.table[1]["boxes"].shape == (0, 4)
    wide = make(tmp_path, text, boxes=BOXES, delimiter=";", box_format="xywh", size=(10, 20))
    assert wide.table[0]["boxes"].tolist()[0] == [1, 2, 4, 6]


def test_a_split_column_separates_training_from_testing(tmp_path: Path) -> None:
    data = make(tmp_path, "path,label,split\na.png,0,test\nsub/b.png,1,train\nsub/c d.png,1,val\n", split="test")
    assert list(targets(data)) == ["a.png"]
    assert [entry.id for entry in data.training_entries("train")] == ["sub/b.png"]
    assert [entry.id for entry in data.training_entries("val")] == ["sub/c d.png"]
    assert data.class_names == ("0", "1")
    with pytest.raises(ValueError, match="`split`"):
        make(tmp_path, "path,label\na.png,0\n").training_entries("train")


@pytest.mark.parametrize("path", ["../secret.png", "{outside}/secret.png", "link/secret.png", "link.png"])
def test_paths_out_of_the_root_are_refused_unless_allowed(tmp_path: Path, path: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    Image.new("RGB", (4, 4)).save(outside / "secret.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (root / "link").symlink_to(outside)
    (root / "link.png").symlink_to(outside / "secret.png")
    text = f"path,label\n{path.format(outside=outside)},0\n"
    with pytest.raises(ValueError, match=r"Row 2 of .* is wrong: .* leads out of the data's root"):
        make(root, text).setup()
    allowed = make(root, text, allow_outside=True, size=4)
    assert next(iter(allowed.test_dataloader()))["error"][0] == ""


def test_an_absolute_path_inside_the_root_is_named_from_the_root(tmp_path: Path) -> None:
    assert targets(make(tmp_path, f"path,label\n{tmp_path}/sub/b.png,0\n")) == {"sub/b.png": 0}


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("path,klass\na.png,0\n", {}, r"lacks the columns \['label'\]; it has \['path', 'klass'\]"),
        ("", {}, r"lacks the columns \['label', 'path'\]"),
        ("path,label\na.png,dig\n", {"classes": ["dog", "cat"]}, "Row 2 .*'dig' is none of the 2 classes.*'dog'"),
        ("path,label\na.png,0\na.png,1\n", {}, "Row 3 .* gives 'a.png' another label"),
        ("path,label,x1,y1,x2,y2\na.png,0,1,2,3,\n", {"boxes": BOXES}, "Row 2 .* could not convert"),
        ("path,label\n", {}, r"found no image: looked for rows in '.*list\.csv'"),
        ("path,label,split\na.png,0,train\n", {"split": "test"}, "rows of the split 'test'"),
        ("path,label\na.png,0\n", {"boxes": ["x"]}, "`boxes` to name four columns"),
        ("path,label\na.png,0\n", {"box_format": "yxyx"}, "`box_format`"),
        ("path,label\na.png,7\n", {"classes": ["x", "y"]}, "Row 2 .* in 0..1 .* got '7'"),
    ],
)
def test_what_is_wrong_is_said_in_words(tmp_path: Path, text: str, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, text, **arguments).setup()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        CSVImages("nowhere.csv")
