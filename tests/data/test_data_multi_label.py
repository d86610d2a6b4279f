"""Images with several labels: a row for each, or one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import optcam_pl
from optcam_pl import Classifier, GradCAM
from optcam_pl.data import CSVImages, MultiLabel

NAMES = ["disc", "ring", "star"]
BOXES = [[0.0, 0, 4, 4], [4.0, 4, 8, 8]]


def items() -> list[Any]:
    image = torch.rand(3, 8, 8)
    return [(image, [2, 0], BOXES), (image, [1], BOXES), {"image": image, "target": torch.zeros(3), "id": "none"}]


def test_each_positive_label_is_a_row_with_its_box() -> None:
    data = MultiLabel(items()[:2], class_names=NAMES, size=8)
    assert [(entry.id, entry.target) for entry in data.entries()] == [("0#star", 2), ("0#disc", 0), ("1#ring", 1)]
    data.setup()
    batch = next(iter(data.test_dataloader()))
    assert [boxes.tolist() for boxes in batch["boxes"]][:3] == [BOXES[:1], BOXES[1:], BOXES]
    assert batch["target"][:3].tolist() == [2, 0, 1]


def test_one_row_an_image_and_images_without_a_label() -> None:
    data = MultiLabel(items(), class_names=NAMES, choose="first", size=8)
    assert [(entry.id, entry.target) for entry in data.entries()] == [("0", 2), ("1", 1), ("2", -1)]
    each = MultiLabel([item["image"] if isinstance(item, dict) else item[0] for item in items()], labels=[[0], [], [1]])
    assert [(entry.id, entry.target) for entry in each.entries()] == [("0#0", 0), ("1", -1), ("2#1", 1)]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0.5, 1, 0]), "zeros and ones"),
        (torch.tensor([1.0, 0]), r"Expected a vector \(3,\)"),
        ([3], r"Expected the numbers of classes in 0..2, but got 3"),
        (["cat"], "Expected the numbers of classes"),
    ],
)
def test_wrong_labels_are_refused_by_item(labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"The labels of item '0' are wrong.*{message}"):
        MultiLabel([(torch.rand(3, 8, 8), labels)], class_names=NAMES).entries()
    with pytest.raises(ValueError, match="Expected `labels` of all 1 items, but got 2"):
        MultiLabel([(torch.rand(3, 8, 8), labels)], labels=[1, 2])


def test_rows_of_the_same_image_are_explained_for_their_labels() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    classifier = Classifier(network, input_size=8, link="sigmoid", class_names=NAMES)
    pairs = items()[:2]
    result = optcam_pl.evaluate(classifier, GradCAM(), MultiLabel(pairs, class_names=NAMES))
    rows = result.rows["GradCAM"]
    assert [row.id for row in rows] == ["0#star", "0#disc", "1#ring"]
    assert [row.target for row in rows] == [2, 0, 1]
    p = 1 / (1 + torch.exp(-network(pairs[0][0][None])[0]))
    assert [row.p for row in rows[:2]] == pytest.approx([float(p[2]), float(p[0])])
    settings = result.runs["GradCAM"].manifest["settings"]
    assert (settings["scores"], settings["link"]) == ("ClassLogits", "sigmoid")


def test_a_csv_lists_several_labels(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    text = "path,label,x1,y1,x2,y2\na.png,ring,0,0,4,4\na.png,star,5,5,9,9\na.png,ring,6,6,8,8\n"
    (tmp_path / "list.csv").write_text(text)
    boxes = ["x1", "y1", "x2", "y2"]
    data = CSVImages(str(tmp_path / "list.csv"), boxes=boxes, each_label=True)
    found = [(entry.id, entry.target, len(entry.boxes or ())) for entry in data.entries()]
    assert found == [("a.png#ring", 0, 2), ("a.png#star", 1, 1)]
    with pytest.raises(ValueError, match="another label than before. For images with several labels, `each_label`"):
        CSVImages(str(tmp_path / "list.csv"), boxes=boxes).entries()


@pytest.mark.parametrize("kind", [list, torch.tensor, np.array])
def test_several_boxes_of_a_label_are_one_row_with_all_of_them(kind: Any) -> None:
    item = {"image": torch.rand(3, 8, 8), "target": kind([1, 2, 1]), "boxes": [*BOXES, [1.0, 1, 2, 2]]}
    data = MultiLabel([item], class_names=NAMES, size=8)
    data.setup()
    samples = [data.table[i] for i in range(len(data.table))]
    assert [(sample["id"], sample["boxes"].tolist()) for sample in samples] == [
        ("0#ring", [BOXES[0], [1, 1, 2, 2]]),
        ("0#star", [BOXES[1]]),
    ]


def test_vectors_of_numpy_are_those_of_torch_and_integers_are_no_multi_hot_vector() -> None:
    image = torch.rand(3, 8, 8)
    data = MultiLabel([(image, np.array([0.0, 1, 1])), (image, np.array([False, True, False]))], class_names=NAMES)
    assert [entry.id for entry in data.entries()] == ["0#ring", "0#star", "1#ring"]
    for labels in (torch.tensor([0, 1, 1]), np.array([0, 0, 1])):
        with pytest.raises(ValueError, match="item '0' are wrong: .* give it as floating point or bool"):
            MultiLabel([(image, labels)], class_names=NAMES).entries()


def test_an_image_whose_labels_cannot_be_read_is_one_row_with_an_error() -> None:
    class Broken(list[Any]):
        """Items, of which one cannot be read."""

        def __getitem__(self, i: Any) -> Any:
            if i == 1:
                raise OSError("truncated")
            return super().__getitem__(i)

    pair = (torch.rand(3, 8, 8), [2])
    data = MultiLabel(Broken([pair, pair, pair]), class_names=NAMES, size=8, on_error="record")
    data.setup()
    assert [(data.table[i]["id"], bool(data.table[i]["error"])) for i in range(3)] == [
        ("0#star", False), ("1", True), ("2#star", False),
    ]  # fmt: skip
