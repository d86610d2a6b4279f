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
        ("path,klass\na.png,0\n", {}, r"lacks the columns \['label'\]; it has \['path', 'klass'\]. .* by `label`\."),
        ("", {}, r"lacks the columns \['label', 'path'\].* The file is empty"),
        ("path,label\na.png,dig\n", {"classes": ["dog", "cat"]}, "Row 2 .*'dig' is none of the 2 classes.*'dog'"),
        ("path,label\na.png,0\na.png,1\n", {}, "Row 3 .* gives 'a.png' another label"),
        ("path,label,x1,y1,x2,y2\na.png,0,1,2,3,\n", {"boxes": BOXES}, "Row 2 .*four numbers of a box"),
        ("path,label,x1,y1,x2,y2\na.png,0,1,2,x,9\n", {"boxes": BOXES}, "Row 2 .*four numbers of a box.*'x'"),
        (
            "path,label,x1,y1,x2,y2\na.png,0,9,2,3,4\n",
            {"boxes": BOXES},
            r"as left, top, right, bottom \(`box_format: xy",
        ),
        (
            "path,label,x1,y1,x2,y2\na.png,0,9,2,3,-4\n",
            {"boxes": BOXES, "box_format": "xywh"},
            "as left, top, width, height",
        ),
        ("path,label\n", {}, r"found no image: looked for rows in `file`, '.*list\.csv'"),
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
    with pytest.raises(FileNotFoundError, match="Expected `file` to be a file .*'nowhere.csv' does not exist"):
        CSVImages("nowhere.csv")
    with pytest.raises(FileNotFoundError, match="Expected `file` to be a file .* is a folder"):
        CSVImages(str(tmp_path))
    (tmp_path / "rows.csv").write_text("path\n")
    with pytest.raises(FileNotFoundError, match="Expected `root` to be a folder, but there is no folder 'nowhere'"):
        CSVImages(str(tmp_path / "rows.csv"), root="nowhere")


# --------------------------------------------------------------------------------------------------------- labels


def many(tmp_path: Path, labels: list[str], **kwargs: Any) -> CSVImages:
    """One row a label."""
    rows = "".join(f"{i:02}.png,{label}\n" for i, label in enumerate(labels))
    return make(tmp_path, f"path,label\n{rows}", **kwargs)


def test_numbers_as_pandas_writes_them_are_numbers(tmp_path: Path) -> None:
    data = many(tmp_path, [f"{i}.0" for i in range(12)] + [""])
    assert list(targets(data).values()) == [*range(12), -1]
    assert data.class_names == tuple(map(str, range(12)))
    data = many(tmp_path, ["-1", *map(str, range(12))])
    assert list(targets(data).values()) == [-1, *range(12)]
    assert data.class_names == tuple(map(str, range(12)))


def test_what_says_that_there_is_no_label_is_none(tmp_path: Path) -> None:
    none = ["", "nan", "NaN", "None", "NA", "-1", "-1.0", "null"]
    for labels in (["1", "0"], ["1.0", "0.0"], ["dog", "cat"]):
        assert list(targets(many(tmp_path, [*labels, *none])).values()) == [1, 0] + [-1] * 8
    assert many(tmp_path, none).class_names is None


def test_numbers_that_are_text_are_read_or_refused(tmp_path: Path) -> None:
    assert list(targets(many(tmp_path, ["007", " 3 ", "1e1", "+2", "0.0"])).values()) == [7, 3, 10, 2, 0]
    for label in ("2.5", "-2", "1.000.000", '"1,0"', '"1,000"', "20261127"):
        with pytest.raises(ValueError, match=rf"Row 3 of .*list\.csv' is wrong: .* got '{label.strip(chr(34))}'"):
            many(tmp_path, ["0", label]).setup()
        with pytest.raises(ValueError, match=r"Row 3 of .*list\.csv' is wrong: "):
            many(tmp_path, ["0", label], classes=["a", "b"]).setup()


def test_words_and_numbers_together_need_classes(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"list\.csv' to be all numbers or all words, but row 3 has 'cat' and row 2 .*"
    ):
        many(tmp_path, ["3", "cat"]).setup()
    assert list(targets(many(tmp_path, ["1.0", "cat"], classes=["cat", "dog"])).values()) == [1, 0]


def test_given_classes_are_names_first(tmp_path: Path) -> None:
    classes = ["3", "None", "1"]  # two of them numbers: a number is a name, and never a place
    assert list(targets(many(tmp_path, ["1.0", "3", "None", "NA"], classes=classes)).values()) == [2, 0, 1, -1]
    with pytest.raises(ValueError, match="Row 2 .*3 classes, one of the names"):
        many(tmp_path, ["0"], classes=classes).setup()
    assert list(targets(many(tmp_path, ["1.0", "5.0", "-1"], classes="imagenet")).values()) == [1, 5, -1]
    with pytest.raises(ValueError, match=r"Row 2 .* in 0\.\.999 .* got '1000'"):
        many(tmp_path, ["1000"], classes="imagenet").setup()


def test_rows_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Row 5 of .* got '2.5'"):
        make(tmp_path, 'path,label\n\n"a\nb.png",1\na.png,2.5\n').setup()


def test_columns_that_shift_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Row 2 .* has 3 columns, the header 2. A text with a ',' in it needs"):
        make(tmp_path, "path,label\na, b.png,cat\n").setup()
    assert targets(make(tmp_path, "path, label\na.png, cat,,\n")) == {"a.png": 0}  # spaces and empty ends are nothing
    with pytest.raises(ValueError, match=r"to have its own name, but got \['label'\] twice"):
        make(tmp_path, "path,label,label\na.png,0,1\n").setup()
    with pytest.raises(ValueError, match="Row 2 .* names no image"):
        make(tmp_path, "path,label\n,0\n").setup()
    with pytest.raises(ValueError, match=r"lacks the columns \['label', 'path'\].* Is its `delimiter` ';'\?"):
        make(tmp_path, "path;label\na.png;0\n").setup()


def test_boxes_that_pandas_left_out_are_none(tmp_path: Path) -> None:
    text = "path,label,x1,y1,x2,y2\na.png,0,nan,nan,nan,nan\nsub/b.png,0,1,2,{},4\n"
    assert [entry.boxes for entry in make(tmp_path, text.format(3), boxes=BOXES).entries()] == [(), ((1, 2, 3, 4),)]
    with pytest.raises(ValueError, match="Row 3 .*four numbers of a box, or none"):
        make(tmp_path, text.format("inf"), boxes=BOXES).setup()


def test_another_encoding_is_read_when_it_is_named_and_refused_with_the_file_otherwise(tmp_path: Path) -> None:
    text = "path,label\na.png,grün\nsub/b.png,blau\n"
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "list.csv").write_text(text, encoding=encoding)
        assert targets(CSVImages(str(tmp_path / "list.csv"))) == {"a.png": 1, "sub/b.png": 0}
    for encoding in ("latin-1", "utf-16"):
        (tmp_path / "list.csv").write_text(text, encoding=encoding)
        with pytest.raises(
            ValueError, match=r"list\.csv' to be written in utf-8, but it is not: .* give its `encoding`"
        ):
            CSVImages(str(tmp_path / "list.csv")).setup()
        assert targets(CSVImages(str(tmp_path / "list.csv"), encoding=encoding)) == {"a.png": 1, "sub/b.png": 0}
    with pytest.raises(ValueError, match="`encoding`"):
        CSVImages(str(tmp_path / "list.csv"), encoding="latin-99")


def test_tabs_and_a_delimiter_that_is_none(tmp_path: Path) -> None:
    for delimiter in ("\t", r"\t"):
        assert targets(make(tmp_path, "path\tlabel\na.png\t0\n", delimiter=delimiter)) == {"a.png": 0}
    for delimiter in ("", ",,", '"'):
        with pytest.raises(ValueError, match="`delimiter` to be one character"):
            make(tmp_path, "path,label\n", delimiter=delimiter)


def test_tilde_and_variables_in_the_paths_of_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PHOTOS", str(tmp_path / "sub"))
    make(tmp_path, "path,label\nb.png,cat\n")
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    data = CSVImages("~/list.csv", "$PHOTOS", classes="${HOME}/names.txt", size=4)
    assert targets(data) == {"b.png": 1}
    assert next(iter(data.test_dataloader()))["error"][0] == ""
