"""Scores with faster networks, other precisions, formats and block sizes; what a dataset's labels may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vision_cases import CELL, ColorDetector, ColorSegmenter, Embedder, seeded, squares, tiny_open_clip

import optcam_pl
from optcam_pl import Classifier, GradCAM, OptiCAM
from optcam_pl.data import EachBox, TorchData
from optcam_pl.explainers import HiResCAM, ScoreCAM
from optcam_pl.metrics import StandardPointingGame
from optcam_pl.network.detection import Detection
from optcam_pl.network.image_text import Similarity, ZeroShot
from optcam_pl.network.predictions import Predictions, detections, overlaps
from optcam_pl.network.scores import Binary, ClassLogits, Regression, Scores
from optcam_pl.network.segmentation import Region

SIZE = (16, 24)


class Normed(nn.Module):
    """Two convolutions with batch norms as after training, and a last function of their (B,C,8,12)."""

    def __init__(self, outputs: int, end: Callable[[Tensor], Any] = lambda z: z.mean((2, 3))) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.Conv2d(6, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        for norm in (self.features[1], self.features[4]):
            nn.init.uniform_(norm.running_mean, -0.3, 0.3)
            nn.init.uniform_(norm.running_var, 0.05, 0.2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
        self.end = end

    def forward(self, image: Tensor) -> Any:
        """What `end` makes of the features."""
        return self.end(self.features(image))


def two_boxes(z: Tensor) -> dict[str, Tensor]:
    boxes = torch.tensor([[0.0, 0, 12, 16], [12, 0, 24, 16]]).to(z).expand(len(z), 2, 4)
    return {"boxes": boxes, "logits": torch.stack([z[..., :6].mean((2, 3)), z[..., 6:].mean((2, 3))], 1)}


# name -> the network and its scores; every class that there is
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "one_of_several_heads": (lambda: Normed(5, lambda z: {"a": z[:, :2].mean((2, 3)), "b": z[:, 2:].mean((2, 3))}),
                             lambda: ClassLogits("b")),
    "binary": (lambda: Normed(1), Binary),
    "regression": (lambda: Normed(2), lambda: Regression("down")),
    "regression_keep": (lambda: Normed(2), lambda: Regression("keep")),
    "function": (lambda: Normed(2, lambda z: {"depth": z}), lambda: lambda output: output["depth"].mean((2, 3))),
    "targets": (lambda: Normed(2), lambda: [lambda output: output[1], lambda output: output.sum()]),
    "region": (lambda: Normed(3, lambda z: {"out": z}), lambda: Region(background=None)),
    "detection": (lambda: Normed(3, two_boxes), lambda: Detection(threshold=0.1)),
    "similarity": (lambda: Normed(4), lambda: Similarity(torch.rand(2, 3, *SIZE))),
    "similarity_own": (lambda: Normed(4), lambda: Similarity("own")),
}  # fmt: skip


def images(count: int = 3, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CASES)
def test_scores_of_a_folded_network_are_those_of_the_plain_one(name: str) -> None:
    """Within rounding: 1e-5 of p, o and 1e-3 of the optimized map."""
    network, scores = (seeded(make) for make in CASES[name])
    own: Any = {"mean": 0.4, "std": 0.25, "input_size": SIZE, "scores": scores, "target_layer": "features.2"}
    method = OptiCAM(max_iter=3)
    found = []
    for speed in ("plain", "folded"):
        classifier = Classifier(network, speed=speed, **own)
        assert classifier.fast is None or classifier.fast.pairs == 2
        with classifier.references({"image": images()}) as references:
            target = [0, 0, 0] if references is None else range(3)
            maps = method(classifier, images(), target).saliency
        found.append((maps, optcam_pl.evaluate(classifier, method, images()).rows["OptiCAM"]))
    (plain, rows), (folded, again) = found
    torch.testing.assert_close(folded, plain, atol=1e-3, rtol=0)
    assert [row.status for row in again] == [row.status for row in rows] == ["ok"] * 3
    for one, other in zip(rows, again, strict=True):
        assert (other.p, other.o) == (pytest.approx(one.p, abs=1e-5), pytest.approx(one.o, abs=1e-5))


def test_texts_are_scored_by_a_folded_network() -> None:
    """It is called as the scores call it, for the proof too: a CLIP network takes more than an image."""
    pytest.importorskip("open_clip")
    network, x = tiny_open_clip(), images(2, (32, 32))
    plain, folded = (
        Classifier(network, mean=0.4, std=0.25, input_size=32, scores=ZeroShot(["cat", "dog"]), speed=speed)
        for speed in ("plain", "folded")
    )
    torch.testing.assert_close(folded(x), plain(x))


class AnyDetector(ColorDetector):
    """A detector that also predicts a box without an area, as clipping at the border leaves some."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """The cells' boxes, and one more that is the most probable."""
        found = super().forward(image)
        empty = torch.tensor([5.0, 0, 5, 3]).to(image).expand(len(image), 1, 4)
        logits = torch.full_like(found["logits"][:, :1], 6.0)
        return {"boxes": torch.cat([empty, found["boxes"]], 1), "logits": torch.cat([logits, found["logits"]], 1)}


def test_a_box_without_an_area_is_no_detection_and_makes_no_nan() -> None:
    empty = torch.tensor([5.0, 0, 5, 3])
    assert overlaps(empty.view(1, 1, 4), empty).tolist() == [[0.0]]
    x = squares(("red", 0, 0))[None]
    classifier = Classifier(AnyDetector(), mean=0, std=1, input_size=32, scores=Detection(), target_layer="features")
    (row,) = optcam_pl.evaluate(classifier, HiResCAM(), x).rows["HiResCAM"]
    assert (row.status, row.target, row.p) == ("ok", 0, pytest.approx(torch.sigmoid(torch.tensor(4.0)).item()))
    given: Any = {"image": x, "boxes": [empty.view(1, 4)]}
    boxes = Classifier(ColorDetector(), mean=0, std=1, input_size=32, scores=Detection("boxes"))
    with boxes.references(given) as found:
        assert found is not None
        assert found.missing == ("the reference box has no area",)
    alone = Predictions(empty.view(1, 1, 4), torch.full((1, 1, 2), 6.0))
    assert len(detections(alone, 0.5)[0].boxes) == 0
    boxed = TorchData([{"image": x[0], "boxes": empty.view(1, 4)}], size=32)
    (row,) = optcam_pl.evaluate(boxes, HiResCAM("features"), EachBox(boxed)).rows["HiResCAM"]
    assert (row.status, row.reason) == ("degenerate", "the image has no reference box")  # the dataset drops it


def test_references_that_are_images_do_not_hide_the_layer_to_explain() -> None:
    """Their own pass is not one of the image: the layer is still called once."""
    classifier = Classifier(seeded(Embedder), mean=0.5, std=0.25, input_size=32, scores=Similarity(images(2, (32, 32))))
    assert classifier.target_layers == ("relu",)
    with torch.no_grad():
        for value in classifier.network.parameters():
            value.mul_(1.1)  # so the references are embedded again, while the layer is recorded
    assert GradCAM()(classifier, images(2, (32, 32)), [0, 1]).saliency.shape == (2, 1, 32, 32)


@pytest.mark.parametrize("method", [HiResCAM(), GradCAM(), OptiCAM(max_iter=5), ScoreCAM()], ids=lambda m: m.title)
@pytest.mark.parametrize("kind", ["detection", "region"])
def test_rows_do_not_depend_on_the_size_of_a_block(kind: str, method: Any) -> None:
    """Column i is image i's reference, whatever else is in the block; a last block is smaller."""
    pictures = [squares(("red", 0, 0), ("blue", 2, 3)), squares(("blue", 1, 1)), squares(), squares(("red", 3, 2))]
    pictures.append(squares(("blue", 0, 3)))
    network = {"detection": ColorDetector, "region": ColorSegmenter}[kind]()
    scores: Scores = {"detection": Detection(), "region": Region()}[kind]
    classifier = Classifier(
        network, mean=0, std=1, input_size=32, scores=scores, target_layer={"detection": "relu"}.get(kind, "features")
    )
    found = [
        next(iter(optcam_pl.evaluate(classifier, method, torch.stack(pictures), batch_size=size).rows.values()))
        for size in (1, 4)
    ]
    assert [row.status for row in found[0]] == ["ok", "ok", "degenerate", "ok", "ok"]
    for one, four in zip(*found, strict=True):
        assert (one.id, one.status, one.target, one.reason) == (four.id, four.status, four.target, four.reason)
        if one.status == "ok":
            assert four.p == pytest.approx(one.p, abs=1e-6)
            assert four.o == pytest.approx(one.o, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in CASES if name != "function"])
def test_scores_of_networks_in_half_precision(name: str, dtype: torch.dtype) -> None:
    network, scores = (seeded(make) for make in CASES[name])
    own: Any = {"mean": 0.4, "std": 0.25, "input_size": SIZE, "scores": scores, "target_layer": "features.2"}
    whole = optcam_pl.evaluate(Classifier(network, **own), OptiCAM(max_iter=2), images()).rows["OptiCAM"]
    classifier = Classifier(network.to(dtype), **own)
    half = optcam_pl.evaluate(classifier, OptiCAM(max_iter=2), images()).rows["OptiCAM"]
    assert classifier(images()).dtype == torch.float32 or name in ("detection", "region", "regression_keep")
    for one, other in zip(half, whole, strict=True):
        assert one.p == pytest.approx(other.p, abs=0.05)


def test_boxes_and_regions_of_images_that_are_not_square() -> None:
    wide = torch.cat([squares(("red", 1, 0)), squares(("blue", 2, 3))], dim=2)  # (3,32,64)
    for kind, place in (("red", (8, 0)), ("blue", (16, 56))):
        category, (top, left) = {"red": 0, "blue": 1}[kind], place
        own: Any = {"mean": 0, "std": 1, "input_size": (32, 64)}
        box = torch.tensor([[left, top, left + CELL, top + CELL]]).float()
        batch: Any = {"image": wide[None], "boxes": [box]}
        scores = Detection(category=category)
        found = optcam_pl.evaluate(
            Classifier(ColorDetector(), scores=scores, **own), HiResCAM("features"), batch, [StandardPointingGame()]
        )
        assert [row.scores["standard_pointing_game"] for row in found.rows["HiResCAM"]] == [100.0]
        segmenter = Classifier(ColorSegmenter(), scores=Region(category=category + 1), **own)
        with segmenter.references(batch) as references:
            assert references is not None
            assert references.masks is not None
            rows, columns = references.masks[0].nonzero(as_tuple=True)
            assert abs(int(rows.min()) - top) <= 1  # it looks at 3 x 3 pixels
            assert abs(int(columns.min()) - left) <= 1
            saliency = HiResCAM("features")(segmenter, wide[None], range(1)).saliency[0, 0]
        y, x = divmod(int(saliency.argmax()), 64)
        assert top - 1 <= y <= top + CELL
        assert left - 1 <= x <= left + CELL


class Labeled(nn.Module):
    """A detector with a softmax, in which class 0 means no object."""

    def __init__(self) -> None:
        super().__init__()
        self.network = ColorDetector()

    def forward(self, image: Tensor) -> Predictions:
        """The cells' predictions."""
        found = self.network(image)
        return Predictions(found["boxes"], F.pad(found["logits"], (1, 0)), activation="softmax", background=0)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (0, "image '0#box1' has the label 0, which is its class for no object. Number them as the network does"),
        (7, r"image '0#box1' has the label 7, which is not in 0\.\.2"),
    ],
)
def test_labels_that_are_numbered_otherwise_are_told(label: int, message: str) -> None:
    boxes = torch.tensor([[0.0, 0, 8, 8]])
    data = EachBox(TorchData([{"image": squares(("red", 0, 0)), "target": label, "boxes": boxes}], size=32))
    classifier = Classifier(Labeled(), mean=0, std=1, input_size=32, scores=Detection("boxes"))
    with pytest.raises(ValueError, match=message):
        optcam_pl.evaluate(classifier, HiResCAM("network.features"), data)


def test_a_masks_label_has_to_be_one_of_the_networks() -> None:
    batch: Any = {
        "image": squares(("red", 0, 0))[None], "target": torch.tensor([9]), "mask": torch.ones(1, 32, 32).long(),
        "id": ["a.png"],
    }  # fmt: skip
    classifier = Classifier(ColorSegmenter(), mean=0, std=1, input_size=32, scores=Region(region="mask"))
    with (
        pytest.raises(ValueError, match=r"image 'a.png' has the label 9, which is not in 0\.\.2"),
        classifier.references(batch),
    ):
        pass


class Head(nn.Module):
    """What the last module of ultralytics' networks says of the ones that it reads."""

    f = (1, 2)


def test_the_layers_of_a_yolo_are_the_grids_that_its_head_reads() -> None:
    made = type("DetectionModel", (nn.Module,), {"__module__": "ultralytics.nn.tasks"})
    network = made()
    network.model = nn.Sequential(nn.Identity(), nn.Identity(), nn.Identity(), Head())
    assert Detection().layers_of(network) == ("model.1", "model.2")
    assert Detection().layers_of(nn.Sequential(network)) == ()
    assert ClassLogits().layers_of(network) == ()


class OfDict(nn.Module):
    """Takes a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Embedder()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """(B,4)."""
        found: Tensor = self.network(batch["image"]) * batch["factor"]
        return found


def test_scores_get_a_module_also_where_the_network_takes_a_dict() -> None:
    seen = []

    class Own(ClassLogits):
        def run(self, network: nn.Module, image: Tensor, **inputs: Any) -> Any:
            seen.append(network)
            return super().run(network, image, **inputs)

    own: Any = {"mean": 0, "std": 1, "input_size": 32, "inputs_as": "dict"}
    classifier = Classifier(seeded(OfDict), inputs={"factor": [2.0]}, scores=Own(), **own)
    x = images(2, (32, 32))
    torch.testing.assert_close(classifier(x), 2 * classifier.network.network(x))
    classifier(x)
    assert isinstance(seen[0], nn.Module)
    assert all(network is seen[0] for network in seen)
    with pytest.raises(ValueError, match="Expected `speed` to be plain for a network with other `inputs` or with a"):
        Classifier(OfDict(), speed="folded", **own)
    with pytest.raises(ValueError, match="Expected `references` of Similarity to be embeddings"):
        Classifier(OfDict(), inputs={"factor": [2.0]}, scores=Similarity(x), **own)
