"""Region: pytorch-grad-cam's target by another program, values by hand, and a map that keeps to the region."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import segmentation as tv
from vision_cases import ColorSegmenter, seeded, squares

from optcam_pl import Classifier, GradCAM, OptiCAM
from optcam_pl.evaluate.block import evaluate_block
from optcam_pl.explainers import HiResCAM
from optcam_pl.metrics import AverageDrop, Insertion
from optcam_pl.network.segmentation import Region, RegionReference, mean_log_odds

IMAGE = squares(("red", 0, 0), ("red", 0, 1), ("blue", 2, 3))


def classifier_of(scores: Region, network: nn.Module | None = None, **own: Any) -> Classifier:
    return Classifier(network or ColorSegmenter(), mean=0, std=1, input_size=32, scores=scores, **own)


def test_the_map_is_that_of_grad_cams_target() -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    network = seeded(lambda: tv.fcn_resnet50(weights=None, weights_backbone=None, num_classes=4)).eval()
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    classifier = Classifier(network, mean=0, std=1, input_size=64, scores=Region(2, score="logit"))
    assert classifier.target_layers == ("backbone.layer4",)
    with classifier.references({"image": image}) as found:
        assert found is not None
        assert found.masks is not None
        region = found.masks[0]
        ours = GradCAM()(classifier, image, target=0)
        score = classifier(image)
    other = copy.deepcopy(network).requires_grad_(True)
    with peer.GradCAM(_Out(other), [other.backbone.layer4]) as cam:
        target = targets.SemanticSegmentationTarget(2, region.numpy().astype(np.float32))
        theirs = torch.from_numpy(cam(image, [target]))
    assert not bool(ours.degenerate.any())
    both = torch.stack([ours.saliency.flatten(), theirs.flatten()])
    assert float(torch.corrcoef(both)[0, 1]) >= 0.999
    total = target(_Out(network)(image)[0])
    assert float(score) * int(region.sum()) == pytest.approx(float(total.detach()), rel=1e-4)


class _Out(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.network(image)["out"]
        return found


def test_p_is_the_mean_probability_in_the_region() -> None:
    classifier = classifier_of(Region(), class_names=["none", "red", "blue"])
    result = evaluate_block(classifier, HiResCAM("features"), {"image": IMAGE[None]}, "predicted", [AverageDrop()])
    z = classifier.network(IMAGE[None])["out"][0]
    region = z.argmax(0) == 1
    p = z.softmax(0)[1][region].mean()
    (row,) = result.rows
    assert (row.target, row.p) == (1, pytest.approx(float(p)))
    assert result.target_name(0) == f"red in {int(region.sum())} pixels {p:.2f}"
    masked = classifier.network(IMAGE[None] * result.explanation.saliency)["out"][0]
    assert row.o == pytest.approx(float(masked.softmax(0)[1][region].mean()))


@pytest.mark.parametrize("explainer", [HiResCAM("features"), GradCAM("features"), OptiCAM("features", max_iter=20)])
def test_the_map_stays_in_the_regions_context(explainer: Any) -> None:
    classifier = classifier_of(Region("red"), class_names=["none", "red", "blue"])
    result = evaluate_block(classifier, explainer, {"image": IMAGE[None]}, "predicted", [])
    saliency = result.explanation.saliency[0, 0]
    assert saliency[:9, :17].sum() > 0.55 * saliency.sum()
    assert divmod(int(saliency.argmax()), 32)[0] < 9
    if isinstance(explainer, HiResCAM):  # one weight for each place: nothing beyond the reach of a 3 x 3 filter
        assert float(saliency[10:].max()) == 0.0


def test_the_region_may_be_the_datasets_mask() -> None:
    mask = torch.zeros(2, 32, 32, dtype=torch.bool)
    mask[0, 16:24, 24:32] = True
    batch: Any = {"image": torch.stack([IMAGE, IMAGE]), "mask": mask, "target": torch.tensor([2, 2])}
    good, empty = evaluate_block(
        classifier_of(Region(region="mask")), GradCAM("features"), batch, "predicted", [AverageDrop()]
    ).rows
    assert (good.status, good.target) == ("ok", 2)
    assert (empty.status, empty.reason) == ("degenerate", "the mask of the image is empty")
    assert empty.scores["average_drop"] is None
    with pytest.raises(ValueError, match="Expected a dataset with masks, as `region` of Region is mask"):
        evaluate_block(classifier_of(Region(region="mask")), GradCAM(), {"image": IMAGE[None]}, "predicted", [])


def test_a_class_that_the_network_sees_nowhere_is_a_counted_row() -> None:
    batch: Any = {"image": torch.stack([IMAGE, torch.full_like(IMAGE, 0.3)])}
    for scores, what in ((Region(), "anything but background"), (Region("blue"), "blue")):
        classifier = classifier_of(scores, class_names=["none", "red", "blue"])
        good, bad = evaluate_block(classifier, GradCAM("features"), batch, "predicted", [AverageDrop()]).rows
        assert good.status == "ok"
        assert bad.reason == f"the network sees {what} nowhere in the image"


def test_the_mean_logit_has_no_probability() -> None:
    classifier = classifier_of(Region(1, score="logit"))
    assert classifier.link == "identity"
    insertion = Insertion(steps=3, output="logit", target="explained")
    (row,) = evaluate_block(classifier, GradCAM("features"), {"image": IMAGE[None]}, "predicted", [insertion]).rows
    z = classifier.network(IMAGE[None])["out"][0]
    assert row.p == pytest.approx(float(z[1][z.argmax(0) == 1].mean()))


def test_one_logit_is_one_class_against_the_rest() -> None:
    z = torch.tensor([[[[3.0, -2.0]]]])
    region = torch.tensor([[True, False]])
    assert mean_log_odds(z, region, 1).tolist() == [3.0]
    assert mean_log_odds(z, region, 0).tolist() == [-3.0]
    scores = Region(score="logit")
    with scores.bound.to([RegionReference(region, 1), RegionReference(region, 0)]):
        assert scores(z).tolist() == [[3.0, -3.0]]


def test_log_odds_are_finite_where_the_network_is_sure() -> None:
    z = torch.tensor([[[[60.0, 70.0]], [[-60.0, -70.0]]]], requires_grad=True)
    score = mean_log_odds(z, torch.ones(1, 2, dtype=torch.bool), 0)
    assert 100 < float(score.detach()) < 150
    assert bool(torch.isfinite(torch.autograd.grad(score.sum(), z)[0]).all())


def test_what_networks_return() -> None:
    image = IMAGE[None]
    whole = classifier_of(Region(1)).output(image)
    for network, output in ((ColorSegmenter(None), None), (ColorSegmenter("logits"), None), (ColorSegmenter("s"), "s")):
        torch.testing.assert_close(classifier_of(Region(1, output=output), network).output(image), whole)
    with pytest.raises(ValueError, match=r"scores each place, \(B, C, h, w\)"):
        classifier_of(Region(1), nn.Flatten())(image)
    with pytest.raises(ValueError, match="`region`"):
        Region(region="masks")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["deeplabv3", "fcn", "lraspp", "segformer"])
def test_networks_of_torchvision_and_transformers(name: str) -> None:
    if name == "segformer":
        hub = pytest.importorskip("transformers")
        sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1, 1, 2, 2]}
        config = hub.SegformerConfig(**sizes, decoder_hidden_size=16, num_labels=3)
        network, layer = seeded(lambda: hub.SegformerForSemanticSegmentation(config)), ".layer_norm"
    else:
        make = {"deeplabv3": tv.deeplabv3_mobilenet_v3_large, "fcn": tv.fcn_resnet50}.get(
            name, tv.lraspp_mobilenet_v3_large
        )
        network, layer = seeded(lambda: make(weights=None, weights_backbone=None, num_classes=3)), "backbone."
    classifier = Classifier(network, mean=0, std=1, input_size=(64, 96), scores=Region(background=None))
    assert layer in classifier.target_layers[0]
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    result = evaluate_block(classifier, GradCAM(), {"image": image}, "predicted", [AverageDrop()])
    assert result.references is not None
    assert result.references.masks is not None
    assert result.references.masks.shape == (2, 64, 96)
    assert all(0 < row.p < 1 for row in result.rows)  # type: ignore[operator]
