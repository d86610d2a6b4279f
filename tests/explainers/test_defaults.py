"""Maps and numbers depend on seeds and inputs alone, not on torch's default type and device, which are the user's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from explainer_cases import tiny_cnn

from optcam_pl.data.torch_data import in_memory
from optcam_pl.evaluate.block import evaluate_block
from optcam_pl.explainers import (
    RISE,
    Explainer,
    ExtremalPerturbation,
    GradCAM,
    MeaningfulPerturbation,
    OptiCAM,
    RandomCAM,
    ScoreCAM,
    SmoothGradCAMPlusPlus,
)
from optcam_pl.metrics import AOPC, Infidelity, Insertion, MaxSensitivity, Road, SelectivityDrop

METHODS = [
    RISE(num_masks=8),
    RandomCAM(),
    ScoreCAM(smooth="noise", num_samples=2),
    SmoothGradCAMPlusPlus(num_samples=2),
    ExtremalPerturbation(max_iter=1),
    MeaningfulPerturbation(max_iter=1, cell=4),
    OptiCAM(max_iter=2),
]


@pytest.fixture(params=["float64", "meta"])
def defaults(request: pytest.FixtureRequest) -> Iterator[str]:
    """A default that is not the usual one, put back afterwards; "meta" stands for a GPU that the network is not on."""
    yield request.param
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def change(name: str) -> None:
    if name == "meta":
        torch.set_default_device("meta")
    else:
        torch.set_default_dtype(torch.float64)


@pytest.mark.parametrize("explainer", METHODS, ids=lambda explainer: explainer.title)
def test_maps_do_not_depend_on_torchs_defaults(explainer: Explainer, defaults: str) -> None:
    if defaults == "meta" and isinstance(explainer, (OptiCAM, MeaningfulPerturbation)) and torch.__version__ < (2, 7):
        pytest.skip("Adam of torch 2.6 counts its steps on the default device")
    classifier, image = tiny_cnn(), torch.rand(2, 3, 16, 16)
    classifier.check_function()
    wanted = explainer(classifier, image, 1).saliency
    change(defaults)
    found = explainer(classifier, image, 1).saliency
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)


def test_numbers_do_not_depend_on_torchs_defaults(defaults: str) -> None:
    classifier, image = tiny_cnn(), torch.rand(2, 3, 16, 16)
    classifier.check_function()
    metrics = [
        Insertion(steps=4), Road(), AOPC(regions=2, patch=4), Infidelity(patch=4, samples=3),
        MaxSensitivity(samples=2), SelectivityDrop(),
    ]  # fmt: skip
    batch = {"image": image, "target": torch.tensor([0, 1]), "index": torch.tensor([0, 1])}
    wanted = [row.scores for row in evaluate_block(classifier, GradCAM(), batch, "label", metrics).rows]  # type: ignore[arg-type]
    change(defaults)
    assert [row.scores for row in evaluate_block(classifier, GradCAM(), batch, "label", metrics).rows] == wanted  # type: ignore[arg-type]


def test_padded_blocks_keep_the_images_type() -> None:
    data = in_memory([{"image": torch.rand(1, 3, 16, 16)}], batch_size=2)  # type: ignore[list-item]
    data.match_network((16, 16), "bilinear", 0.875, 3)
    data.setup("test")
    torch.set_default_dtype(torch.float64)
    try:
        block = next(iter(data.test_dataloader()))
    finally:
        torch.set_default_dtype(torch.float32)
    assert block["index"].tolist() == [0, -1]
    assert block["image"].dtype == torch.float32
