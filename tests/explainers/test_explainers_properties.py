"""What every explainer promises, for any network, layer, size and type: the shared contract, tried at random."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from explainer_cases import leaves_no_trace, tiny_cnn, tiny_vit
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser, Namespace
from torch import nn

from optcam_pl import explainers
from optcam_pl.explainers import CallableExplainer, CaptumExplainer, Explainer, Explanation, GradCAM, OptiCAM
from optcam_pl.network.classifier import Classifier

# Settings with which a method takes no time, or that it cannot do without.
QUICK: dict[str, dict[str, Any]] = {
    "CallableExplainer": {"function": lambda classifier, image, target: image.mean(1)},
    "CaptumExplainer": {"method": "Saliency"},
    "ExtremalPerturbation": {"areas": [0.2, 0.4], "max_iter": 2, "step": 4, "sigma": 4.0},
    "FinerCAM": {"explainer": GradCAM("4")},
    "GradientSHAP": {"n_samples": 3},
    "LIME": {"segments": "grid", "num_segments": 4, "n_samples": 6},
    "MeaningfulPerturbation": {"max_iter": 2, "cell": 4},
    "OptiCAM": {"max_iter": 2},
    "RISE": {"num_masks": 6, "cells": 3},
    "SmoothGradCAMPlusPlus": {"num_samples": 2},
}
NAMES = sorted(
    name
    for name in explainers.__all__
    if isinstance(member := getattr(explainers, name), type)
    and issubclass(member, Explainer)
    and not inspect.isabstract(member)
)


def make(name: str, layer: str | None = None) -> Explainer:
    """The explainer with quick settings, and with the layer if it takes one."""
    kind = getattr(explainers, name)
    if kind.__module__.endswith("external") and name != "CallableExplainer":
        pytest.importorskip("captum")
    chosen = dict(QUICK.get(name, {}))
    if layer is not None and "layer" in inspect.signature(kind).parameters:
        chosen["layer"] = layer
    explainer = kind(**chosen)
    assert isinstance(explainer, Explainer)
    return explainer


def works_on(explainer: Explainer, classifier: Classifier, dtype: torch.dtype = torch.float32) -> bool:
    """Whether the method is made for this kind of network; if not, it has to say so in words, and leave no trace."""
    with leaves_no_trace(classifier):
        try:
            explainer(classifier, torch.rand(1, 3, 16, 16, dtype=dtype))
        except (ValueError, TypeError) as error:
            assert len(str(error)) > 30  # noqa: PT017 (the message is what is asked for)
            return False
    return True


def suitable(explainer: Explainer) -> Classifier:
    """A CNN where the method takes one, else a vision transformer."""
    classifier = tiny_cnn()
    return classifier if works_on(explainer, classifier) else tiny_vit()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_map_has_the_images_shape_lies_in_0_1_and_depends_on_no_neighbor(name: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]), "dtype")
    torch.manual_seed(data.draw(st.integers(0, 5), "seed"))
    explainer = make(name)
    if works_on(explainer, tiny_cnn()) and data.draw(st.booleans(), "cnn"):
        classifier = tiny_cnn(data.draw(st.integers(2, 7), "channels")).to(dtype)
        size = data.draw(st.tuples(st.integers(9, 20), st.integers(9, 20)), "size")
        at = make(name, data.draw(st.sampled_from(["0", "2", "4"]), "layer"))
        explainer = at if works_on(at, classifier, dtype) else explainer
    else:
        classifier, size = tiny_vit().to(dtype), (16, 16)
        if not works_on(explainer, classifier, dtype):
            classifier = tiny_cnn().to(dtype)
    batch = data.draw(st.integers(2, 4), "batch")
    image, target = torch.rand(batch, 3, *size, dtype=dtype), torch.randint(5, (batch,))

    with leaves_no_trace(classifier):
        explanation = explainer(classifier, image, target)

    saliency = explanation.saliency
    assert saliency.shape == (batch, 1, *size)
    assert saliency.dtype == dtype
    assert bool(torch.isfinite(saliency).all())
    assert 0 <= float(saliency.min()) <= float(saliency.max()) <= 1
    assert not saliency.requires_grad
    assert torch.equal(explanation.target, target)
    assert explanation.degenerate.shape == (batch,)

    others, other_target = torch.rand_like(image), torch.randint(5, (batch,))
    others[0], other_target[0] = image[0], target[0]
    assert torch.equal(explainer(classifier, others, other_target).saliency[0], saliency[0])
    if dtype == torch.float64:
        alone = explainer(classifier, image[:1], target[:1])
        torch.testing.assert_close(alone.saliency, saliency[:1], atol=1e-8, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_promises_hold_for_views_and_exponents_too(name: str) -> None:
    explainer = make(name)
    classifier, image = suitable(explainer), torch.rand(2, 3, 16, 16)
    explainer.augment, explainer.selectivity = True, 0.5
    with leaves_no_trace(classifier):
        saliency = explainer(classifier, image, 1).saliency
    assert saliency.shape == (2, 1, 16, 16)
    assert bool(torch.isfinite(saliency).all())
    assert 0 <= float(saliency.min()) <= float(saliency.max()) <= 1
    neighbor = torch.stack([image[0], torch.rand(3, 16, 16)])
    assert torch.equal(explainer(classifier, neighbor, 1).saliency[0], saliency[0])


class _Fuse(nn.Module):
    """Burns in the middle of a network's pass number `at`, and stays so until it is mended."""

    def __init__(self) -> None:
        super().__init__()
        self.passes, self.at = 0, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        if self.at and self.passes >= self.at:
            raise RuntimeError("in the middle")
        return x


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_an_error_in_the_middle_of_the_network_leaves_nothing_behind(name: str, at: int) -> None:
    explainer, fuse = make(name), _Fuse()
    classifier = suitable(explainer)
    inner = classifier.network
    if isinstance(inner, nn.Sequential):
        inner[3] = nn.Sequential(inner[3], fuse)
    else:
        assert isinstance(inner.norm, nn.Module)
        inner.norm = nn.Sequential(inner.norm, fuse)
    classifier.eval()  # the parts that are new
    assert classifier.num_classes == 5  # counted now, by a pass of its own
    classifier.check_function((16, 16))  # once, too
    image = torch.rand(2, 3, 16, 16)
    fuse.passes = 0
    expected = explainer(classifier, image, 1).saliency
    passes, fuse.passes = fuse.passes, 0
    fuse.at = at
    if passes >= at:
        with leaves_no_trace(classifier), pytest.raises(RuntimeError, match="in the middle"):
            explainer(classifier, image, 1)
    fuse.at = 0
    assert torch.equal(explainer(classifier, image, 1).saliency, expected)


CONTEXTS: dict[str, Callable[[], Any]] = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_map_is_the_same_inside_of_no_grad_and_inference_mode(name: str, context: str) -> None:
    explainer = make(name)
    classifier, image = suitable(explainer), torch.rand(2, 3, 16, 16)
    outside = explainer(classifier, image, 1).saliency
    with CONTEXTS[context](), leaves_no_trace(classifier):
        inside = explainer(classifier, image.clone(), 1).saliency
    assert torch.equal(inside.clone(), outside)


@pytest.mark.parametrize("name", NAMES)
def test_a_map_is_float32_under_autocast(name: str) -> None:
    explainer = make(name)
    classifier = suitable(explainer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        saliency = explainer(classifier, torch.rand(2, 3, 16, 16), 1).saliency
    assert saliency.dtype == torch.float32
    assert bool(torch.isfinite(saliency).all())


@pytest.mark.parametrize("name", NAMES)
def test_settings_state_the_constructors_arguments_as_they_are(name: str) -> None:
    explainer = make(name)
    stated = explainer.settings()
    assert set(stated) <= set(inspect.signature(type(explainer)).parameters)
    for key, value in QUICK.get(name, {}).items():
        assert stated[key] == value or callable(value)


BLOCKS = sorted((Path(__file__).parents[2] / "configs" / "explainer").glob("*.yaml"))


@pytest.mark.parametrize("block", BLOCKS, ids=lambda path: path.stem)
def test_a_config_block_makes_its_explainer(block: Path) -> None:
    if "captum" in block.read_text().lower() or block.stem in ("lime", "gradient_shap"):
        pytest.importorskip("captum")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Explainer, "explainer")
    parsed = parser.parse_args([f"--explainer={block}"]).explainer
    name = parsed.class_path.rpartition(".")[2]
    explainer = getattr(explainers, name)(**parsed.get("init_args", Namespace()).as_dict())
    assert name in NAMES
    assert isinstance(explainer, Explainer)


@pytest.mark.parametrize("name", NAMES)
def test_check_says_before_a_call_what_the_call_would_say(name: str) -> None:
    explainer = make(name)
    for classifier in (tiny_cnn(), tiny_vit()):
        with leaves_no_trace(classifier):
            try:
                explainer.check(classifier)
            except (ValueError, TypeError) as refusal:
                with pytest.raises(type(refusal), match=re.escape(str(refusal))):
                    explainer(classifier, torch.rand(1, 3, 16, 16))
            else:
                assert works_on(explainer, classifier)


def test_guided_backpropagation_without_a_relu_is_refused_as_it_would_be_the_gradient() -> None:
    pytest.importorskip("captum")
    with pytest.raises(ValueError, match="which is the method Saliency"):
        CaptumExplainer("GuidedBackprop")(tiny_vit(), torch.rand(1, 3, 16, 16))


def test_check_takes_no_pass_a_sample() -> None:
    classifier = tiny_cnn()
    classifier.check_function()  # once, whatever the number of methods
    passes: list[int] = []
    classifier.register_forward_hook(lambda *_: passes.append(1))
    for name in ("RISE", "ScoreCAM", "AblationCAM", "OptiCAM", "ExtremalPerturbation", "MeaningfulPerturbation"):
        make(name).check(classifier)
    assert len(passes) == 3  # one where there is a layer to look for


def explained(explainer: Explainer, image: torch.Tensor) -> Explanation:
    explanation = explainer(Classifier(nn.Flatten(), input_size=2), image, 0)
    assert isinstance(explanation, Explanation)
    return explanation


def test_augment_is_the_normalized_mean_over_six_views() -> None:
    # Brightness: 0.48 is above 0.5 when brightened, nothing is when darkened; symmetric, so mirroring changes nothing.
    bright = CallableExplainer(lambda classifier, image, target: (image[:, 0] > 0.5).float())
    bright.augment = True
    image = torch.tensor([0.48, 0.52, 0.48, 0.2]).expand(1, 3, 2, 4)
    row = torch.tensor([1 / 2, 1, 1 / 2, 0])  # (0 1 0 0), (0 0 0 0) and (1 1 1 0) have the mean (1/3 2/3 1/3 0)
    mirrored = row.flip(0)
    torch.testing.assert_close(explained(bright, image).saliency, row.expand(1, 1, 2, 4))
    torch.testing.assert_close(explained(bright, image.flip(3)).saliency, mirrored.expand(1, 1, 2, 4))
    # A map that does not follow the image: mirrored back it cancels, which is said.
    fixed = CallableExplainer(lambda classifier, image, target: torch.arange(4.0).expand(1, 2, 4))
    fixed.augment = True
    assert explained(fixed, image).saliency.sum() == 0
    assert explained(fixed, image).degenerate.tolist() == [True]
    assert fixed.settings()["augment"] is True


def test_augment_keeps_pixels_within_their_range_and_asks_for_one_class() -> None:
    seen: list[tuple[float, int]] = []

    def spy(classifier: Classifier, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append((float(image.max()), int(target)))
        return image.mean(1)

    explainer = CallableExplainer(spy)
    explainer.augment = True
    classifier = Classifier(nn.Flatten(), input_size=2)
    explainer(classifier, torch.tensor([0.1, 0.5, 0.95, 0.2]).view(1, 1, 2, 2).expand(1, 3, 2, 2))
    brightness = [0.95, 0.855, 1.0, 0.95, 0.855, 1.0]
    assert [high for high, _ in seen] == pytest.approx(brightness)
    assert {target for _, target in seen} == {2}


@pytest.mark.parametrize("alpha", [0.01, 0.5, 2, 10])
def test_selectivity_is_an_exponent_of_the_map_and_of_nothing_else(alpha: float) -> None:
    classifier, image = tiny_cnn(), torch.rand(2, 3, 16, 16)
    plain, raised = OptiCAM(max_iter=3), OptiCAM(max_iter=3)
    raised.selectivity = alpha
    before, after = plain(classifier, image), raised(classifier, image)
    assert torch.equal(after.saliency, before.saliency**alpha)
    assert torch.equal(after.weights, before.weights)
    assert torch.equal(after.objective, before.objective)
    assert torch.equal(after.degenerate, before.degenerate)
    assert raised.settings() == {**plain.settings(), "selectivity": alpha}


def test_selectivity_is_positive() -> None:
    for alpha in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="Expected `selectivity` to be a positive number, but got"):
            GradCAM().selectivity = alpha
