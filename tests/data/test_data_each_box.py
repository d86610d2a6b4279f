"""EachBox: a row for each box, of the dataset or of the network, and one for an image without any."""

from __future__ import annotations

import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from vision_cases import ColorDetector, squares

from optcam_pl import Classifier, SaliencyTask, evaluate
from optcam_pl.data import CSVImages, EachBox, ImageFolder, ImageReadError, TorchData
from optcam_pl.explainers import GradCAM, HiResCAM
from optcam_pl.metrics import AverageDrop, StandardPointingGame
from optcam_pl.network.detection import Detection
from optcam_pl.reports.report import load_run

BOTH = squares(("red", 0, 0), ("blue", 2, 3))
IMAGES = [BOTH, torch.full_like(BOTH, 0.3), squares(("blue", 1, 1))]
RED, BLUE, MIDDLE = [0.0, 0.0, 8.0, 8.0], [24.0, 16.0, 32.0, 24.0], [8.0, 8.0, 16.0, 16.0]
BOXES = [[RED, BLUE], [], [MIDDLE]]

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",  # tensorboard's protobuf classes
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",  # Lightning 2.6 with torch 2.14
    "ignore:.*does not have many workers.*",
)


def images(**own: Any) -> TorchData:
    items = [{"image": x, "boxes": torch.tensor(b).reshape(-1, 4)} for x, b in zip(IMAGES, BOXES, strict=True)]
    return TorchData(items, size=32, batch_size=2, **own)


def classifier(**own: Any) -> Classifier:
    return Classifier(
        ColorDetector(), mean=0, std=1, input_size=32, scores=Detection("boxes", **own), class_names=["red", "blue"]
    )


@pytest.mark.parametrize("boxes", ["dataset", "network"])
def test_one_row_for_each_box(boxes: Any) -> None:
    data = EachBox(images(), boxes)
    result = evaluate(classifier(), HiResCAM("features"), data, metrics=[AverageDrop(), StandardPointingGame()])
    (rows,) = result.rows.values()
    assert [row.id for row in rows] == ["0#box1", "0#box2", "1", "2#box1"]
    assert [row.status for row in rows] == ["ok", "ok", "degenerate", "ok"]
    assert rows[2].reason == "the image has no reference box"
    assert [row.target for row in rows if row.status == "ok"] == [0, 1, 1]
    p = torch.sigmoid(torch.tensor(4.0)).item()
    assert [row.p for row in rows if row.status == "ok"] == [pytest.approx(p)] * 3
    # each map is measured with its own box
    assert [row.scores["standard_pointing_game"] for row in rows if row.status == "ok"] == [100.0] * 3


def test_the_same_numbers_come_from_a_task_and_from_blocks_of_another_size(tmp_path: Path) -> None:
    data = EachBox(images(), "network")
    task = SaliencyTask(classifier(), HiResCAM("features"), target="predicted")
    trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.test(task, data, verbose=False)
    run = load_run(tmp_path)
    assert run.manifest["images"] == 4
    assert run.manifest["fingerprint"]["data"]["source"]["each_box"] == "network"
    whole = evaluate(classifier(), HiResCAM("features"), EachBox(images(), "network"), batch_size=None)
    (rows,) = whole.rows.values()
    assert [(row.id, row.target, row.p) for row in run.rows] == [(row.id, row.target, row.p) for row in rows]


def test_the_fingerprint_holds_the_boxes_that_were_found() -> None:
    digests = []
    for threshold in (0.5, 0.99):
        data = EachBox(images(), "network")
        evaluate(classifier(threshold=threshold), HiResCAM("features"), data)
        digests.append(data.fingerprint()["sha256"])
        assert len(data.table) == {0.5: 4, 0.99: 3}[threshold]
    assert digests[0] != digests[1]


def test_boxes_of_files_follow_the_resize(tmp_path: Path) -> None:
    Image.fromarray((BOTH * 255).byte().permute(1, 2, 0).numpy()).resize((64, 32), 0).save(tmp_path / "a.png")
    lines = ["path,label,x1,y1,x2,y2", "a.png,red,0,0,16,8", "a.png,red,48,16,64,24"]
    (tmp_path / "boxes.csv").write_text("\n".join(lines) + "\n")
    given = {"boxes": ["x1", "y1", "x2", "y2"], "classes": ["red", "blue"]}
    data = EachBox(CSVImages(str(tmp_path / "boxes.csv"), root=str(tmp_path), **given))
    (rows,) = evaluate(classifier(), HiResCAM("features"), data).rows.values()
    assert [(row.id, row.target) for row in rows] == [("a.png#box1", 0), ("a.png#box2", 0)]
    assert [sample["boxes"].tolist() for sample in map(data.table.sample, range(2))] == [[RED], [BLUE]]
    assert rows[0].p > 0.9 > 0.1 > rows[1].p  # type: ignore[operator]  # the second one is blue


def test_an_image_that_cannot_be_read_is_one_row(tmp_path: Path) -> None:
    Image.fromarray((BOTH * 255).byte().permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    for name in ("x",):
        (tmp_path / name).mkdir()
        for file in ("a.png", "b.png"):
            (tmp_path / file).rename(tmp_path / name / file)
    data = EachBox(ImageFolder(str(tmp_path), on_error="record"), "network")
    (rows,) = evaluate(classifier(), HiResCAM("features"), data).rows.values()
    assert [(row.id, row.status) for row in rows] == [
        ("x/a.png#box1", "ok"), ("x/a.png#box2", "ok"), ("x/b.png", "error"),
    ]  # fmt: skip


def test_what_does_not_fit_is_refused_in_a_sentence() -> None:
    with pytest.raises(TypeError, match="Expected `data` of EachBox to be an ImageDataModule, but got list"):
        EachBox([])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Expected a dataset with boxes, as `boxes` of EachBox is dataset"):
        EachBox(TorchData([(BOTH, 0)], size=32))
    plain = Classifier(ColorDetector(), mean=0, std=1, input_size=32, scores=Detection())
    with pytest.raises(ValueError, match=r"Expected a classifier with the scores Detection\(references=boxes\)"):
        evaluate(plain, HiResCAM("features"), EachBox(images()))
    with pytest.raises(IndexError, match="Expected an index"):
        EachBox(images()).table.sample(9)


def test_the_fingerprint_holds_the_datasets_transform() -> None:
    plain, gray = (EachBox(images(transform=transform)) for transform in (None, v2.Grayscale(3)))
    assert plain.fingerprint()["transform"] == "None"
    assert "Grayscale" in gray.fingerprint()["transform"]
    assert gray.table[0]["image"].std(0).max() == 0  # it is applied once, by the dataset


def test_processes_look_for_boxes_in_the_same_passes_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[list[int]] = []

    def find(image: torch.Tensor) -> list[Any]:
        passes.append((image[:, 0, 0, 0] * 100).round().int().tolist())
        return [(torch.zeros(0, 4), torch.zeros(0))] * len(image)

    data = EachBox(TorchData([torch.full((3, 4, 4), i / 100) for i in range(19)], size=4), "network")
    data.setup()
    data._search(data.data.table, find)
    alone, passes[:] = passes.copy(), []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    gather = lambda found, own: found.__setitem__(slice(None), [own, {}])  # noqa: E731
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        data._search(data.data.table, find)
    assert sorted(passes) == alone
    assert len(alone) == 3


@pytest.mark.parametrize("broken", [2, 9])  # the first process's image, and the second one's
def test_an_image_that_one_process_cannot_read_ends_all(broken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(list[Any]):
        """Items, of which one cannot be read."""

        def __getitem__(self, i: Any) -> Any:
            if i == broken:
                raise OSError("cannot identify")
            return super().__getitem__(i)

    data = EachBox(TorchData(Broken(torch.rand(11, 3, 4, 4)), size=4), "network")
    data.setup()
    find = lambda image: [(torch.zeros(0, 4), torch.zeros(0))] * len(image)  # noqa: E731
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    told: list[Any] = []

    def note(found: list[Any], own: Any) -> None:
        told.append(own)
        found[:] = [own, {}]  # nothing comes from the other one yet

    monkeypatch.setattr(torch.distributed, "all_gather_object", note)
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        with suppress(ImageReadError):
            data._search(data.data.table, find)
    sent = pickle.loads(pickle.dumps(told))
    monkeypatch.setattr(torch.distributed, "all_gather_object", lambda found, _: found.__setitem__(slice(None), sent))
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        with pytest.raises(ImageReadError, match=f"Cannot read item {broken} of Broken: .*cannot identify"):
            data._search(data.data.table, find)


def test_another_network_has_its_own_boxes() -> None:
    data, methods = EachBox(images(), "network"), [HiResCAM("features"), GradCAM("features")]
    for threshold, rows in ((0.5, 4), (0.99, 3), (0.5, 4)):
        result = evaluate(classifier(threshold=threshold), methods, data)
        assert [len(of_method) for of_method in result.rows.values()] == [rows, rows]
