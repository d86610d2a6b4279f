"""Images of any number of channels, in any format and precision, and networks with other inputs beside the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scores_cases import Ending
from torch import Tensor, nn

import optcam_pl
from optcam_pl import Classifier, GradCAM, OptiCAM
from optcam_pl.data import ImagePaths
from optcam_pl.evaluate.block import evaluate_block
from optcam_pl.explainers import RISE, ScoreCAM
from optcam_pl.figures import picture
from optcam_pl.metrics import AOPC, AverageDrop, Coherency, Deletion, Infidelity, Insertion, MaxSensitivity, Road
from optcam_pl.network.errors import NetworkError


def images(channels: int, count: int = 2, size: tuple[int, int] = (16, 24)) -> Tensor:
    return torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_images_of_any_number_of_channels_are_normalized_explained_and_measured(channels: int) -> None:
    network = Ending(3, channels=channels)
    mean, std = [0.1 * (c % 5) for c in range(channels)], [0.5 + 0.01 * c for c in range(channels)]
    classifier = Classifier(network, input_size=(16, 24), mean=mean, std=std)
    x = images(channels)
    normalized = (x - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    torch.testing.assert_close(classifier(x), network(normalized))
    assert classifier.target_layers == ("features",)
    methods = [GradCAM(), OptiCAM(max_iter=2, baseline="blur"), ScoreCAM(), RISE(num_masks=4)]
    metrics = [
        *(AverageDrop(), Insertion(steps=4), Deletion(steps=4), AOPC(regions=2, patch=4), Road(percentiles=(50,))),
        *(MaxSensitivity(samples=1), Infidelity(samples=2, patch=4), Coherency()),
    ]
    result = optcam_pl.evaluate(classifier, methods, x, metrics, labels=[0, 1], chunk_size=8)
    masking = ("OptiCAM", "ScoreCAM", "RISE")  # Grad-CAM's ReLU may remove everything
    assert all(row.status == "ok" for name in masking for row in result.rows[name])
    assert result.runs["OptiCAM"].manifest["settings"]["mean"] == pytest.approx(mean)


def test_the_number_of_channels_comes_from_one_of_three_arguments() -> None:
    assert Classifier(Ending(2, channels=4), input_size=8, channels=4, mean=0, std=1).mean.tolist() == [0] * 4
    assert Classifier(Ending(2, channels=4), input_size=8, std=[1, 1, 1, 2]).channels == 4
    with pytest.raises(ValueError, match="one number for each channel, but `channels` says 4, `mean` says 3"):
        Classifier(Ending(2), channels=4, mean=[0, 0, 0])
    with pytest.raises(ValueError, match="three channels in 0..3, but got"):
        Classifier(Ending(2, channels=4), channels=4, rgb_channels=(0, 1, 4))


def test_a_wrong_number_of_channels_is_told() -> None:
    classifier = Classifier(Ending(2, channels=4), input_size=8, channels=4)
    with pytest.raises(ValueError, match=r"shape \(B,4,H,W\), but got \(2, 3, 16, 24\).*images have 4 channels"):
        GradCAM()(classifier, images(3))
    with pytest.raises(NetworkError, match="wants images of 4 channels: give the classifier `channels` 4"):
        Classifier(Ending(2, channels=4), input_size=8).num_classes  # noqa: B018
    with pytest.raises(ValueError, match="black, mean or blur for images of 4 channels"):
        OptiCAM(max_iter=1, baseline=(0.1, 0.2, 0.3))(classifier, images(4))


def test_pictures_show_gray_the_first_three_or_chosen_channels() -> None:
    assert picture(torch.full((1, 2, 2), 0.5)).tolist() == [[[128] * 3] * 2] * 2
    many = torch.arange(5.0).view(5, 1, 1).expand(5, 1, 1) / 10
    assert picture(many).tolist() == [[[0, 26, 51]]]
    classifier = Classifier(Ending(2, channels=5), channels=5, rgb_channels=(4, 2, 0))
    assert picture(classifier.shown(many)).tolist() == [[[102, 51, 0]]]


def test_pictures_of_files_become_gray_for_a_network_of_one_channel(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "a.png")
    data = ImagePaths([str(tmp_path / "a.png")])
    result = optcam_pl.evaluate(Classifier(Ending(2, channels=1), input_size=8, channels=1), GradCAM(), data)
    assert len(result.rows["GradCAM"]) == 1
    assert next(iter(data.test_dataloader()))["image"].shape == (8, 1, 8, 8)
    with pytest.raises(ValueError, match="Expected images of 4 channels, as the network takes, but 'a.png' has 3"):
        optcam_pl.evaluate(Classifier(Ending(2, channels=4), input_size=8, channels=4), GradCAM(), data)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_networks_in_half_precision_are_explained_in_float32(dtype: torch.dtype) -> None:
    classifier = Classifier(Ending(3).to(dtype), input_size=(16, 24))
    result = optcam_pl.evaluate(classifier, [GradCAM(), OptiCAM(max_iter=3)], images(3), labels=[0, 1])
    whole = optcam_pl.evaluate(Classifier(Ending(3), input_size=(16, 24)), GradCAM(), images(3), labels=[0, 1])
    for half, full in zip(result.rows["GradCAM"], whole.rows["GradCAM"], strict=True):
        assert half.p == pytest.approx(full.p, abs=0.02)
    assert GradCAM()(classifier, images(3)).saliency.dtype == torch.float32


class WithAge(nn.Module):
    """The logits, moved by a number that comes with the image."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Ending(3)

    def forward(self, image: Tensor, age: Tensor) -> Tensor:
        """(B,3)."""
        assert age.shape == (len(image), 1)
        assert not age.requires_grad
        logits: Tensor = self.network(image) * (1 + age)
        return logits


class OfDict(WithAge):
    """The same of a dict."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        """(B,3)."""
        return super().forward(batch["image"], batch["age"])


@pytest.mark.parametrize(("kind", "how"), [(WithAge, "keywords"), (OfDict, "dict")])
def test_other_inputs_stay_as_they_are_and_each_image_has_its_own(kind: type[nn.Module], how: Any) -> None:
    classifier = Classifier(kind(), input_size=(16, 24), inputs={"age": [0.0]}, inputs_as=how)
    ages = torch.tensor([[0.0], [0.5], [2.0]])
    batch: Any = {"image": images(3, 3), "target": torch.tensor([0, 1, 2]), "inputs": {"age": ages}}
    metrics = [AverageDrop(), Insertion(steps=4)]
    rows = optcam_pl.evaluate(classifier, OptiCAM(max_iter=3), batch, metrics).rows["OptiCAM"]
    plain = Ending(3)
    p = (plain(batch["image"]) * (1 + ages)).softmax(1).gather(1, batch["target"].view(-1, 1))
    assert [row.p for row in rows] == pytest.approx(p.flatten().tolist())
    for size in (1, 2):  # the result does not depend on the block
        again = optcam_pl.evaluate(classifier, OptiCAM(max_iter=3), batch, metrics, batch_size=size).rows["OptiCAM"]
        assert [(row.p, row.o, row.scores) for row in again] == [(row.p, row.o, row.scores) for row in rows]
    assert classifier.describe()["inputs_as"] == how


def test_what_is_measured_one_by_one_is_a_block_again() -> None:
    classifier = Classifier(WithAge(), input_size=(16, 24), inputs={"age": [0.0]})
    batch: Any = {"image": images(3, 3), "inputs": [{"age": torch.tensor([float(i)])} for i in range(3)]}
    result = evaluate_block(classifier, OptiCAM(max_iter=3), batch, [0, 1, 2], [Insertion(steps=4)])
    assert result.explanation.saliency.shape == (3, 1, 16, 24)
    assert result.explanation.objective is not None
    assert result.explanation.objective.shape == (4, 3)
    assert result.curves["insertion"].shape == (3, 5)
    torch.testing.assert_close(result.probes.masked, torch.tensor([row.o for row in result.rows]))
    assert [row.target for row in result.rows] == [0, 1, 2]


def test_other_inputs_are_bound_for_a_call_and_misspelled_ones_told() -> None:
    classifier = Classifier(WithAge(), input_size=(16, 24), inputs={"age": [0.0]})
    with classifier.inputs.bound_to({"age": torch.tensor([1.0])}):
        torch.testing.assert_close(classifier(images(3)), 2 * Ending(3)(images(3)))
    torch.testing.assert_close(classifier(images(3)), Ending(3)(images(3)))
    with (
        pytest.raises(ValueError, match="Expected `inputs` that the network has, but got 'aeg'; it has 'age'"),
        classifier.inputs.bound_to({"aeg": torch.tensor([1.0])}),
    ):
        pass
    with pytest.raises(ValueError, match=r"one entry for each of 2 images, but got the shape \(1, 1\)"):
        optcam_pl.evaluate(classifier, GradCAM(), {"image": images(3), "inputs": {"age": torch.zeros(1, 1)}})
