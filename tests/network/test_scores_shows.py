"""Scores on networks whose right answer is known, and beside pytorch-grad-cam's model targets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from explainer_cases import correlation, tiny_cnn
from scores_cases import Ending
from torch import Tensor, nn

import optcam_pl
from optcam_pl import Classifier, GradCAM, OptiCAM
from optcam_pl.explainers import HiResCAM
from optcam_pl.metrics import Deletion, Insertion, StandardPointingGame
from optcam_pl.network.scores import Binary, Regression, Targets


def images(count: int = 3, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", [GradCAM, HiResCAM])
def test_targets_are_those_of_pytorch_grad_cam(method: type[Any]) -> None:
    """One function an image, also their own classes, used as they are."""
    pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget

    torch.manual_seed(0)
    inner, x = tiny_cnn(), images()
    targets = [ClassifierOutputSoftmaxTarget(1), ClassifierOutputTarget(3), ClassifierOutputSoftmaxTarget(0)]
    normalized = (x - inner.mean.view(-1, 1, 1)) / inner.std.view(-1, 1, 1)
    with getattr(pytorch_grad_cam, method.__name__)(
        model=inner.network.requires_grad_(True), target_layers=[inner.layer("4")]
    ) as theirs:
        found = torch.from_numpy(theirs(input_tensor=normalized, targets=targets)).unsqueeze(1)
    classifier = Classifier(
        inner.network, target_layer="4", mean=inner.mean.tolist(), std=inner.std.tolist(), input_size=16, scores=targets
    )
    ours = method()(classifier, x, range(3)).saliency
    speaks = found.flatten(1).amax(1) > 0
    assert speaks.any()
    assert correlation(ours, found)[speaks].min() > 0.999
    described = classifier.describe()["scores"]
    assert "ClassifierOutputSoftmaxTarget" in described
    assert "'category': 3" in described


@pytest.mark.parametrize("answer", [0, 1])
def test_both_answers_equal_pytorch_grad_cams_binary_target(answer: int) -> None:
    pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import BinaryClassifierOutputTarget

    network, x = Ending(1), images()
    classifier = Classifier(network, target_layer="features", input_size=16, scores=Binary())
    ours = GradCAM()(classifier, x, answer).saliency
    with pytorch_grad_cam.GradCAM(model=network.requires_grad_(True), target_layers=[network.features]) as theirs:
        targets = [BinaryClassifierOutputTarget(answer)] * 3
        found = torch.from_numpy(theirs(input_tensor=x, targets=targets)).unsqueeze(1)
    speaks = found.flatten(1).amax(1) > 0
    if answer == 1 or speaks.any():
        assert correlation(ours, found)[speaks].min() > 0.999
    assert (ours.flatten(1).amax(1) > 0).equal(speaks)


class Colors(nn.Module):
    """Feature maps of red, green and blue beyond the others, and their sums: what each looks at is known."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 3, 1, bias=False)
        self.features.weight = nn.Parameter((2 * torch.eye(3) - 1).view(3, 3, 1, 1))
        self.relu = nn.ReLU()

    def forward(self, image: Tensor) -> Tensor:
        """(B,3)."""
        return 0.2 * self.relu(self.features(image)).sum((2, 3)) - 2


def blobs(colors: tuple[int, ...], count: int = 6) -> tuple[Tensor, list[list[list[float]]]]:
    """Gray images with a square of each color in a quarter of its own, and the squares' boxes."""
    rng = torch.Generator().manual_seed(1)
    found, boxes = torch.full((count, 3, 16, 16), 0.3), []
    for i in range(count):
        boxes.append([])
        for color, quarter in zip(colors, torch.randperm(4, generator=rng).tolist(), strict=False):
            left, top = 8 * (quarter % 2) + 1, 8 * (quarter // 2) + 2
            found[i, :, top : top + 4, left : left + 5] = 0.1
            found[i, color, top : top + 4, left : left + 5] = 0.9
            boxes[-1].append([float(left), float(top), float(left + 5), float(top + 4)])
    return found, boxes


@pytest.mark.parametrize("explainer", [GradCAM(), OptiCAM(max_iter=20)], ids=["grad_cam", "opticam"])
def test_the_map_of_an_estimate_lies_on_the_blob_that_it_measures(explainer: Any) -> None:
    """The estimate is the amount of red; the blue blob has no part in it."""
    x, boxes = blobs((0, 2))
    scores = Regression("up", column=0)
    classifier = Classifier(Colors(), target_layer="relu", input_size=16, mean=0, std=1, scores=scores)
    batch: Any = {"image": x, "boxes": [torch.tensor(found[:1]) for found in boxes]}
    metrics = [StandardPointingGame(), Insertion(8, "logit"), Deletion(8, "logit")]
    result = optcam_pl.evaluate(classifier, explainer, batch, metrics)
    rows = next(iter(result.rows.values()))
    assert [row.scores["standard_pointing_game"] for row in rows] == [100.0] * 6
    for row in rows:  # inserting the blob brings the estimate, deleting it takes it
        assert row.scores["insertion"] > row.scores["deletion"]  # type: ignore[operator]


def test_an_estimate_is_kept_by_the_blob_that_it_measures() -> None:
    """What else is shown does not matter to the estimate; all of the red blob has to be."""
    x, boxes = blobs((0, 2))
    scores = Regression("keep", column=0)
    classifier = Classifier(Colors(), target_layer="relu", input_size=16, mean=0, std=1, scores=scores)
    with classifier.references({"image": x}):
        found = OptiCAM(max_iter=20)(classifier, x, range(6))
    for saliency, (red, _) in zip(found.saliency, boxes, strict=True):
        left, top, right, bottom = map(int, red)
        assert saliency[0, top:bottom, left:right].min() > 0.9


@pytest.mark.parametrize(
    "explainer", [GradCAM(), OptiCAM(objective="contrast", gamma=1.0, max_iter=30)], ids=["grad_cam", "contrast"]
)
def test_the_maps_of_several_labels_lie_each_on_its_own_object(explainer: Any) -> None:
    x, boxes = blobs((0, 1, 2))
    names = ["red", "green", "blue"]
    data = optcam_pl.data.MultiLabel(list(zip(x, [[0, 1, 2]] * 6, boxes, strict=True)), class_names=names, size=16)
    classifier = Classifier(
        Colors(), target_layer="relu", input_size=16, mean=0, std=1, link="sigmoid", class_names=names
    )
    result = optcam_pl.evaluate(classifier, explainer, data, [StandardPointingGame()])
    rows = next(iter(result.rows.values()))
    assert [row.id for row in rows[:3]] == ["0#red", "0#green", "0#blue"]
    assert [row.scores["standard_pointing_game"] for row in rows] == [100.0] * 18


def test_nan_scores_are_told() -> None:
    classifier = Classifier(Ending(2, lambda z: z * torch.nan), input_size=16, scores=Targets([lambda z: z[0]]))
    with pytest.raises(ValueError, match="for an image of noise it outputs NaN or infinity"):
        optcam_pl.evaluate(classifier, GradCAM(), images())
