"""Scores of one detection: torchvision's own detections, D-RISE's similarity, and maps that keep to their box."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection as tv
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.ops import MultiScaleRoIAlign, box_iou
from vision_cases import CELL, ColorDetector, seeded, squares

from optcam_pl import Classifier, GradCAM, OptiCAM
from optcam_pl.evaluate.block import evaluate_block
from optcam_pl.explainers import RISE, Explainer, HiResCAM, LayerCAM
from optcam_pl.metrics import AverageDrop, AverageGain
from optcam_pl.network.detection import Detection, Reference
from optcam_pl.network.predictions import Predictions, detections, has_area, log_odds, predict, read, similarity
from optcam_pl.network.words import label_number, label_word

FREE: dict[str, Any] = {"min_size": 64, "max_size": 96, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}


def body(out_channels: Any = 32) -> nn.Module:
    """(B,32,h,w) at a 16th of the image."""
    layers: list[nn.Module] = []
    for before, after in ((3, 8), (8, 8), (8, 8), (8, 32)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.ReLU()]
    network = nn.Sequential(*layers)
    network.out_channels = out_channels  # torchvision asks for it
    return network


def loud(layer: nn.Module) -> None:
    """Let the logits of a last layer spread around 0."""
    nn.init.normal_(layer.weight, std=2.0)  # type: ignore[arg-type]
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


def faster_rcnn() -> nn.Module:
    anchors = AnchorGenerator(((16, 32),), ((0.5, 1.0),))
    pool = MultiScaleRoIAlign(["0"], 3, 2)
    network = tv.FasterRCNN(body(), 4, rpn_anchor_generator=anchors, box_roi_pool=pool, **FREE)
    loud(network.roi_heads.box_predictor.cls_score)
    return network


def retinanet() -> nn.Module:
    network = tv.RetinaNet(body(), 4, anchor_generator=AnchorGenerator(((16, 32),), ((0.5, 1.0),)), **FREE)
    loud(network.head.classification_head.cls_logits)
    return network


def fcos() -> nn.Module:
    network = tv.FCOS(body(), 4, anchor_generator=AnchorGenerator(((16,),), ((1.0,),)), **FREE)
    loud(network.head.classification_head.cls_logits)
    loud(network.head.regression_head.bbox_ctrness)
    return network


def ssd() -> nn.Module:
    free = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    network = tv.ssd.SSD(body([32]), DefaultBoxGenerator([[2]]), (96, 64), 4, **free)
    loud(network.head.classification_head.module_list[0])
    return network


FAMILIES = {"faster_rcnn": faster_rcnn, "retinanet": retinanet, "fcos": fcos, "ssd": ssd}


def free_of_limits(network: Any, nms: float) -> None:
    """Let a detector of torchvision report all of its predictions."""
    owner = getattr(network, "roi_heads", network)
    owner.score_thresh, owner.nms_thresh, owner.detections_per_img = 0.0, nms, 10**6
    owner.topk_candidates = 10**6


@pytest.fixture(params=FAMILIES)
def network(request: pytest.FixtureRequest) -> nn.Module:
    found: nn.Module = seeded(FAMILIES[request.param]).eval()
    return found


@pytest.fixture
def image() -> Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def test_the_predictions_are_those_of_the_network_itself(network: nn.Module, image: Tensor) -> None:
    free_of_limits(network, nms=1.0)
    with torch.no_grad():
        theirs = network(list(image))
        ours = predict(network, image)
    p = ours.probabilities()
    for i, each in enumerate(theirs):
        assert len(each["boxes"]) > 10
        for box, label, score in list(zip(each["boxes"], each["labels"], each["scores"], strict=True))[::7]:
            near = (ours.boxes_of(int(label))[i] - box).abs().amax(1) + (p[i, :, label] - score).abs()
            assert float(near.min()) < 1e-3


def test_the_similarity_is_the_greatest_over_the_networks_own_detections(network: nn.Module, image: Tensor) -> None:
    free_of_limits(network, nms=1.0)
    box, label = torch.tensor([10.0, 12.0, 50.0, 44.0]), 2
    with torch.no_grad():
        theirs = network(list(image))
        ours = similarity(predict(network, image), box, label)
    for i, each in enumerate(theirs):
        own = each["labels"] == label
        wanted = (box_iou(each["boxes"][own], box[None])[:, 0] * each["scores"][own]).max()
        assert float(ours[i]) == pytest.approx(float(wanted), abs=1e-5)


def test_the_detections_are_those_of_the_network_itself(network: nn.Module, image: Tensor) -> None:
    free_of_limits(network, nms=0.4)
    getattr(network, "roi_heads", network).score_thresh = 0.3  # type: ignore[union-attr]
    with torch.no_grad():
        theirs = network(list(image))
        ours = detections(predict(network, image), 0.3, 0.4, limit=10**6)
    for mine, all_of_theirs in zip(ours, theirs, strict=True):
        # clipping at the border leaves FCOS boxes without an area
        real = has_area(all_of_theirs["boxes"])
        each = {key: value[real] for key, value in all_of_theirs.items() if len(value) == len(real)}
        assert len(mine.boxes) == len(each["boxes"]) > 0
        torch.testing.assert_close(mine.probabilities, each["scores"], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(mine.boxes.sum(0), each["boxes"].sum(0), atol=1e-2, rtol=1e-4)
        assert mine.labels.bincount().tolist() == each["labels"].bincount().tolist()


def test_a_whole_block_goes_through(network: nn.Module, image: Tensor) -> None:
    classifier = Classifier(network, input_size=(64, 96), scores=Detection(threshold=0.05))
    assert classifier.mean.tolist() == [0.0] * 3
    result = evaluate_block(classifier, GradCAM(), {"image": image}, "predicted", [AverageDrop(), AverageGain()])
    for i, row in enumerate(result.rows):
        assert row.status in ("ok", "degenerate"), row.reason
        assert 0.05 < row.p <= 1  # type: ignore[operator]
        assert result.target_name(i) == f"box: class {row.target} {row.p:.2f}"
    assert result.references is not None
    assert result.references.boxes is not None


def test_log_odds_are_the_class_logit_and_its_gradient_where_the_boxes_agree() -> None:
    z = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    boxes = torch.tensor([[0.0, 0, 4, 4], [10, 10, 14, 14], [20, 20, 24, 24]]).expand(2, 3, 4)
    for predictions, logit in (
        (Predictions(boxes, z), z[:, 1, 2]),
        (Predictions(boxes, z, "softmax"), z[:, 1, 2] - z[:, 1, [0, 1, 3]].logsumexp(1)),
    ):
        score = log_odds(predictions, boxes[0, 1], 2)
        torch.testing.assert_close(score, logit)
        torch.testing.assert_close(*(torch.autograd.grad(s.sum(), z, retain_graph=True)[0] for s in (score, logit)))


@pytest.mark.parametrize("z", [-80.0, -3.0, 0.0, 5.0, 80.0])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_log_odds_are_finite_and_equal_to_the_similarity(z: float, activation: Any) -> None:
    logits = torch.tensor([[[z, 0.0]]], dtype=torch.float64, requires_grad=True)
    predictions = Predictions(torch.tensor([[[0.0, 0, 4, 4]]]).double(), logits, activation)
    for box in ([0, 0, 4, 4], [0, 0, 2, 4], [9, 9, 10, 10]):
        score = log_odds(predictions, torch.tensor(box), 0)
        assert bool(torch.isfinite(score).all())
        assert bool(torch.isfinite(torch.autograd.grad(score.sum(), logits)[0]).all())
        wanted = float(similarity(predictions, torch.tensor(box), 0).detach())
        assert float(score.detach().sigmoid()) == pytest.approx(wanted, abs=2e-6)


def test_a_prediction_that_overlaps_enough_counts_fully() -> None:
    predictions = Predictions(torch.tensor([[[0.0, 0, 4, 4]]]), torch.tensor([[[1.5]]]))
    box = torch.tensor([0.0, 0, 4, 3])  # IoU 0.75
    assert float(log_odds(predictions, box, 0, least_iou=0.5)) == 1.5
    assert float(log_odds(predictions, box, 0)) < 1.5
    scores = Detection(score="logit")
    with scores.bound.to([Reference(box, 0)]):
        assert scores(predictions).tolist() == [[1.5]]
        assert scores.columns() == 1


def test_the_similarity_has_a_gradient_through_boxes_and_logits() -> None:
    boxes = torch.tensor([[[0.0, 0, 4, 4]]], requires_grad=True)
    logits = torch.zeros(1, 1, 1, requires_grad=True)
    scores = Detection(score="similarity")
    with scores.bound.to([Reference(torch.tensor([0.0, 0, 4, 3]), 0)]):
        value = scores(Predictions(boxes, logits))
    assert value.tolist() == [[0.375]]
    assert all(bool((g != 0).any()) for g in torch.autograd.grad(value.sum(), (boxes, logits)))


TWO = squares(("red", 0, 0), ("blue", 2, 3))
SAME = squares(("red", 0, 0), ("red", 2, 3))


def of_boxes(image: Tensor, cells: list[tuple[int, int]], explainer: Explainer, **own: Any) -> Tensor:
    """(B,4,4) the share of each map that falls into each cell, for one reference box an image."""
    classifier = Classifier(ColorDetector(), mean=0, std=1, input_size=32, scores=Detection("boxes", **own))
    boxes = [torch.tensor([[c, r, c + 1, r + 1]]).float() * CELL for r, c in cells]
    batch: Any = {"image": image.expand(len(cells), -1, -1, -1), "boxes": boxes}
    found = evaluate_block(classifier, explainer, batch, "predicted", [AverageDrop()]).explanation.saliency
    energy = torch.nn.functional.avg_pool2d(found, CELL)[:, 0]
    return energy / energy.sum((1, 2), keepdim=True)


@pytest.mark.parametrize("score", ["auto", "logit", "similarity"])
@pytest.mark.parametrize(
    "explainer",
    [GradCAM("features"), OptiCAM("features", max_iter=30), HiResCAM("features"), RISE(num_masks=300, cells=4)],
    ids=lambda e: e.title,
)
def test_the_map_lies_on_the_box_in_question(explainer: Explainer, score: Any) -> None:
    energy = of_boxes(TWO, [(0, 0), (2, 3)], explainer, score=score)
    assert [divmod(int(each.argmax()), 4) for each in energy] == [(0, 0), (2, 3)]
    # What else Opti-CAM keeps costs its objective nothing.
    share = 0.95 if isinstance(explainer, OptiCAM) else 0.5
    assert energy[0, 2, 3] < share * energy[0, 0, 0]
    assert energy[1, 0, 0] < share * energy[1, 2, 3]


@pytest.mark.parametrize(
    "explainer", [HiResCAM("features"), LayerCAM("features"), RISE(num_masks=300, cells=4)], ids=lambda e: e.title
)
def test_methods_with_a_weight_for_each_place_tell_two_objects_of_one_class_apart(explainer: Explainer) -> None:
    energy = of_boxes(SAME, [(0, 0), (2, 3)], explainer)
    assert [divmod(int(each.argmax()), 4) for each in energy] == [(0, 0), (2, 3)]


def test_one_weight_a_channel_cannot_tell_two_objects_of_one_class_apart() -> None:
    energy = of_boxes(SAME, [(0, 0), (2, 3)], GradCAM("features"))
    torch.testing.assert_close(energy[0], energy[1])


def test_p_and_o_are_those_of_the_reference() -> None:
    classifier = Classifier(ColorDetector(), mean=0, std=1, input_size=32, scores=Detection(), class_names=["red", "b"])
    result = evaluate_block(classifier, HiResCAM("features"), {"image": TWO[None]}, "predicted", [AverageDrop()])
    (row,) = result.rows
    assert row.p == pytest.approx(torch.sigmoid(torch.tensor(4.0)).item())
    assert result.target_name(0) == "box: red 0.98"
    saliency = result.explanation.saliency
    z = predict(classifier.network, TWO[None] * saliency).logits[0, :, row.target].max()
    assert row.o == pytest.approx(float(z.sigmoid()))
    assert row.predicted == row.target


def test_an_image_without_a_detection_is_a_counted_row() -> None:
    classifier = Classifier(ColorDetector(), mean=0, std=1, input_size=32, scores=Detection(threshold=0.6))
    batch: Any = {"image": torch.stack([TWO, torch.full_like(TWO, 0.3)])}
    good, bad = evaluate_block(classifier, GradCAM("features"), batch, "predicted", [AverageDrop()]).rows
    assert good.status == "ok"
    assert (bad.status, bad.scores["average_drop"]) == ("degenerate", None)
    assert bad.reason == "the network has no detection above 0.6 in the image"


def test_one_class_can_be_asked_for_by_name() -> None:
    scores = Detection(category="blue")
    classifier = Classifier(ColorDetector(), mean=0, std=1, input_size=32, scores=scores, class_names=["red", "blue"])
    with classifier.references({"image": torch.stack([TWO, SAME])}) as found:
        assert found is not None
        assert found.names[0] == "box: blue 0.98"
        assert found.missing == ("", "the network has no detection of blue above 0.5 in the image")
    with pytest.raises(ValueError, match="Unknown `category` 'blu' of ColorDetector. The nearest are: 'blue'"):
        label_number(classifier, "blu", 2)
    with pytest.raises(ValueError, match=r"in 0\.\.1, but got 7"):
        label_number(classifier, 7, 2)
    assert label_word(classifier, 1) == "blue"


def test_boxes_without_a_label_get_the_class_that_the_network_gives_them() -> None:
    classifier = Classifier(ColorDetector(), mean=0, std=1, input_size=32, scores=Detection("boxes"))
    batch: Any = {"image": TWO[None].expand(2, -1, -1, -1), "boxes": [torch.tensor([[24.0, 16, 32, 24]])] * 2}
    batch["target"] = torch.tensor([-1, 0])
    with classifier.references(batch) as found:
        assert found is not None
        assert found.classes == (1, 0)
        assert found.names == ("box: class 1 0.98", "box: class 0 0.02")


def test_bad_input_is_refused_in_a_sentence() -> None:
    classifier = Classifier(ColorDetector(), mean=0, std=1, input_size=32, scores=Detection("boxes"))
    with pytest.raises(ValueError, match="Expected a dataset with boxes, as `references` of Detection is boxes"):
        evaluate_block(classifier, GradCAM(), {"image": TWO[None]}, "predicted", [])
    two: Any = {"image": TWO[None], "boxes": [torch.tensor([[0.0, 0, 8, 8], [8.0, 8, 16, 16]])], "id": ["a.png"]}
    with pytest.raises(ValueError, match=r"image 'a.png' has 2. Wrap the dataset in EachBox"):
        evaluate_block(classifier, GradCAM(), two, "predicted", [])
    with pytest.raises(ValueError, match="Expected `threshold` to be in"):
        Detection(threshold=1.5)
    with pytest.raises(ValueError, match="`score`"):
        Detection(score="logits")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Give `reader`"):
        read(nn.Identity(), torch.zeros(1, 3), (4, 4))
    with pytest.raises(ValueError, match=r"N at least 1, but got the shapes \(1, 0, 4\)"):
        Predictions(torch.zeros(1, 0, 4), torch.zeros(1, 0, 2))
    with pytest.raises(ValueError, match="softmax"):
        Classifier(ColorDetector(), mean=0, std=1, scores=Detection(), link="softmax")


def test_an_own_reader_and_its_settings() -> None:
    scores = Detection(reader=reader)
    classifier = Classifier(Wrapped(), mean=0, std=1, input_size=32, scores=scores)
    with classifier.references({"image": TWO[None]}) as found:
        assert found is not None
        assert found.names == ("box: class 0 0.98",)
    assert scores.settings()["reader"] == f"{__name__}.reader"
    assert scores.settings()["references"] == "detections"
    with pytest.raises(RuntimeError, match="Expected `reader` of Detection to return Predictions, but got dict"):
        Classifier(Wrapped(), mean=0, std=1, input_size=32, scores=Detection(reader=dict))(TWO[None])


class Wrapped(ColorDetector):
    def forward(self, image: Tensor) -> Any:
        return list(super().forward(image).items())


def reader(output: Any) -> Predictions:
    return Predictions(**dict(output))


def test_what_ultralytics_returns_is_read() -> None:
    centers = torch.tensor([[[10.0, 20.0], [10.0, 20.0], [4.0, 8.0], [4.0, 8.0]]])  # (1,4,2): cx, cy, w, h
    raw = torch.tensor([[[2.0, -1.0], [0.5, 0.0], [1.0, 1.0]]])  # (1,3,2)
    found = read(nn.Identity(), (torch.cat([centers, raw.sigmoid()], 1), {"scores": raw}), (32, 32))
    assert found.boxes.tolist() == [[[8.0, 8.0, 12.0, 12.0], [16.0, 16.0, 24.0, 24.0]]]
    torch.testing.assert_close(found.probabilities(), raw.sigmoid().transpose(1, 2))
    final = torch.tensor([[[8.0, 8, 12, 12, 0.9, 1.0]]])
    found = read(nn.Identity(), (final, {"one2many": {"scores": raw}}), (32, 32))
    assert [round(p, 3) for p in found.probabilities()[0, 0].tolist()] == [0.0, 0.9, 0.0]


def test_the_predictions_of_detr_are_those_of_transformers_own_processor(image: Tensor) -> None:
    hub = pytest.importorskip("transformers")
    backbone = hub.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, layer_type="basic", out_features=["stage4"]
    )
    small = {"d_model": 16, "num_queries": 6, "num_labels": 3, "backbone": None, "backbone_config": backbone}
    parts = ("layers", "attention_heads", "ffn_dim")
    small |= {f"{side}_{part}": n for side in ("encoder", "decoder") for part, n in zip(parts, (1, 2, 16), strict=True)}
    settings = hub.DetrConfig(use_timm_backbone=False, use_pretrained_backbone=False, **small)
    network = seeded(lambda: hub.DetrForObjectDetection(settings)).eval()
    rng = torch.Generator().manual_seed(0)
    for weight in network.parameters():  # so that the queries differ
        if weight.ndim == 2:
            nn.init.normal_(weight, std=0.7, generator=rng)
    with torch.no_grad():
        processor = hub.DetrImageProcessor()
        theirs = processor.post_process_object_detection(network(image), 0.0, target_sizes=[(64, 96)] * 2)
        ours = predict(network, image)
    p = ours.probabilities()
    assert ours.boxes.std(1).amax() > 1
    for i, each in enumerate(theirs):
        for n, (box, label, score) in enumerate(zip(each["boxes"], each["labels"], each["scores"], strict=True)):
            torch.testing.assert_close(ours.boxes[i, n], box, atol=1e-3, rtol=1e-5)
            assert float(p[i, n, label]) == pytest.approx(float(score), abs=1e-5)
    classifier = Classifier(network, mean=0, std=1, input_size=(64, 96), scores=Detection(threshold=0.05))
    (first, _) = evaluate_block(classifier, GradCAM(), {"image": image}, "predicted", [AverageDrop()]).rows
    assert first.p == pytest.approx(float(p[0][:, [0, 1, 2]].max()), abs=1e-4)


def test_the_score_of_an_image_does_not_depend_on_how_many_proposals_its_neighbors_have(image: Tensor) -> None:
    network: Any = faster_rcnn().eval()
    with torch.no_grad():
        few, many = (image.new_tensor([[8.0 * i, 0, 8 * i + 8, 16]]) for i in (0, 1))
        network.rpn.forward = lambda images, features: ([few, many.repeat(5, 1)][: len(images.tensors)], {})
        together, alone = predict(network, image[:2]), predict(network, image[:1])
    assert len(together.logits[0]) == 5
    assert len(alone.logits[0]) == 1
    torch.testing.assert_close(together.probabilities()[0, 1:, 1:], torch.zeros(4, together.num_classes - 1))
    far = torch.tensor([40.0, 40.0, 48.0, 48.0])  # overlaps nothing
    for scores in (Detection(), Detection(score="logit")):
        torch.testing.assert_close(scores(together)[:1], scores(alone))
        with scores.bound.to([Reference(far, 1)]):
            torch.testing.assert_close(scores(together)[:1], scores(alone))
