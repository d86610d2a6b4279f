"""Methods of others as explainers: parity with Captum called by hand, seeds, no trace, no foreign code."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from explainer_cases import (
    VIT_LAYER,
    correlation,
    enlarged,
    leaves_no_trace,
    made_case,
    on_both,
    reference,
    stored_case,
    tiny_cnn,
)
from torch import Tensor, nn

from optcam_pl.explainers import LIME, CallableExplainer, CaptumExplainer, Explainer, GradCAM, GradientSHAP
from optcam_pl.explainers.external import attribution_class, seeded, smooth, superpixels, untouched
from optcam_pl.network.classifier import Classifier

captum = pytest.importorskip("captum.attr")
CASES = [("cnn", "layer4"), ("vit", VIT_LAYER)]
OCCLUSION = {"sliding_window_shapes": [3, 16, 16], "strides": [3, 8, 8]}


def shown(raw: Tensor) -> Tensor:
    """What we make of an attribution: the positive part of the sum over the channels."""
    return raw.detach().sum(1, keepdim=True).clamp(min=0)


# Parity -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("which", "layer"), CASES)
@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("IntegratedGradients", {"n_steps": 8}),
        ("Saliency", {"abs": False}),
        ("captum.attr.InputXGradient", {}),
        ("GuidedBackprop", {}),
        ("Occlusion", OCCLUSION),
    ],
)
def test_deterministic_methods_are_captums(golden, which, layer, method, arguments):
    classifier, image, target = made_case(golden, which, layer)
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
    with untouched(classifier), pytest.warns() if method == "GuidedBackprop" else seeded(0, image.device):
        theirs = getattr(captum, method.removeprefix("captum.attr."))(classifier).attribute(
            image.clone().requires_grad_(), target=target, **given
        )
    if method == "GuidedBackprop" and which == "vit":  # no ReLU to change the gradient of: refused, with reason
        plain = captum.Saliency(classifier).attribute(image.clone().requires_grad_(), target=target, abs=False)
        assert torch.equal(theirs, plain)
        with pytest.raises(ValueError, match="which is the method Saliency"):
            CaptumExplainer(method)(classifier, image, target)
        return
    with leaves_no_trace(classifier):
        ours = CaptumExplainer(method, attribute_args=arguments, sign="all")(classifier, image, target).saliency
    assert correlation(ours, theirs.sum(1, keepdim=True)).min() > 0.999


@pytest.mark.parametrize(("which", "layer"), CASES)
def test_stochastic_methods_are_captums_up_to_their_random_numbers(golden, which, layer):
    classifier, image, target = made_case(golden, which, layer)
    image, target, n = image[:1], target[:1], {"cnn": 120, "vit": 500}[which]
    tunnel = {"nt_samples": n, "stdevs": 0.02, "abs": False}
    explained = {
        "shap": GradientSHAP(n_samples=n)(classifier, image, target),
        "smooth": CaptumExplainer("Saliency", wrapper="NoiseTunnel", attribute_args=tunnel)(classifier, image, target),
    }
    moved = image.clone().requires_grad_()
    with seeded(5, image.device):
        shap = captum.GradientShap(classifier).attribute(
            moved, torch.zeros_like(image), target=target, n_samples=n, stdevs=1e-4
        )
        noisy = captum.NoiseTunnel(captum.Saliency(classifier)).attribute(moved, target=target, **tunnel)
    assert correlation(explained["shap"].saliency, shown(shap)).min() > 0.95
    assert correlation(explained["smooth"].saliency, shown(noisy)).min() > 0.95


@on_both
@pytest.mark.parametrize(("which", "layer"), CASES)
def test_lime_is_captums_with_a_linear_model_that_is_not_ours(golden, which, layer, images):
    linear_model = pytest.importorskip("sklearn.linear_model")

    class Ridge:
        def fit(self, loader: object) -> None:
            z, y, weight = next(iter(loader))
            self.model = linear_model.Ridge(alpha=1.0).fit(z.numpy(), y.numpy(), sample_weight=weight.numpy())

        def representation(self) -> Tensor:
            return torch.as_tensor(self.model.coef_)

    def similarity(_image: Tensor, _perturbed: Tensor, z: Tensor, **_others: object) -> float:
        distance = 1 - float(F.cosine_similarity(z.float(), torch.ones_like(z, dtype=torch.float32)))
        return float(np.sqrt(np.exp(-(distance**2) / 0.25**2)))

    classifier, image, target = stored_case(golden, which, layer, images)
    settings = {"segments": "grid", "num_segments": 9, "n_samples": 600, "sign": "all", "chunk_size": 50}
    ours = LIME(**settings)(classifier, image[:1], target[:1]).saliency
    logit = LIME(**settings, output="logit")(classifier, image[:1], target[:1]).saliency
    mask = superpixels(image[0], "grid", 9)[None, None]
    for seed, function, expected, least in (
        (0, classifier.probabilities, ours, 0.999),
        (1, classifier, logit, 0.95),
    ):
        lime = captum.Lime(function, interpretable_model=Ridge(), similarity_func=similarity)
        with seeded(seed, image.device):
            theirs = lime.attribute(
                image[:1], target=target[0], feature_mask=mask, n_samples=600, perturbations_per_eval=50
            )
        assert correlation(expected, theirs.sum(1, keepdim=True)) > least


def test_lime_finds_the_superpixel_that_the_answer_comes_from():
    class Corner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, :, :8, :8].mean((1, 2, 3)), x[:, :, 8:].mean((1, 2, 3))], dim=1)

    classifier, image = Classifier(Corner(), input_size=16), torch.full((1, 3, 16, 16), 0.8)
    saliency = LIME(segments="grid", num_segments=4, n_samples=50, output="logit")(classifier, image, 0).saliency[0, 0]
    assert (saliency[:8, :8] == 1).all()
    assert saliency[8:].max() < 0.1
    both = LIME(segments="grid", num_segments=4, n_samples=50)(classifier, image, 1).saliency[0, 0]
    assert both[8:].min() > 0.9
    assert both[:8].max() == 0


@on_both
def test_a_layers_attribution_is_laid_on_its_grid(golden, images):
    classifier, image, target = stored_case(golden, "cnn", "layer4", images)
    theirs = reference(golden, "cam_others_cnn", images)["captum_LayerGradCam"]
    ours = CaptumExplainer("LayerGradCam")(classifier, image, target).saliency
    assert correlation(ours, enlarged(theirs.clamp(min=0))).min() > 0.999
    torch.testing.assert_close(ours, GradCAM()(classifier, image, target).saliency, atol=1e-4, rtol=0)
    vit, image, target = stored_case(golden, "vit", VIT_LAYER, images)
    weighted = CaptumExplainer("LayerGradientXActivation", reduction="sum")(vit, image, target)
    assert not weighted.degenerate.any()
    with pytest.raises(ValueError, match="has tokens"):
        CaptumExplainer("LayerGradCam")(vit, image, target)


# Options ------------------------------------------------------------------------------------------------------------


class Signed(nn.Module):
    """y_0 = sum of red - 2 sum of green over all pixels but the last row, whose signs are turned round."""

    def forward(self, x: Tensor) -> Tensor:
        y = x[:, 0] - 2 * x[:, 1]
        return torch.stack([y[:, :-1].sum((1, 2)) - y[:, -1].sum(1), x.sum((1, 2, 3))], dim=1)


@pytest.mark.parametrize(
    ("reduction", "sign", "upper", "last"),
    [
        ("sum", "all", -1, 1),
        ("sum", "positive", 0, 1),
        ("sum", "absolute", 1, 1),
        ("mean", "all", -1 / 3, 1 / 3),
        ("max", "positive", 2, 2),
    ],
)
def test_reduction_and_sign_are_what_they_say(reduction, sign, upper, last):
    classifier, image = Classifier(Signed(), input_size=4), torch.rand(2, 3, 4, 4)
    explainer = CaptumExplainer("Saliency", attribute_args={"abs": False}, reduction=reduction, sign=sign)
    raw = explainer.raw_map(classifier, image, torch.tensor([0, 0]))
    torch.testing.assert_close(raw[:, :, :-1], torch.full((2, 1, 3, 4), float(upper)))
    torch.testing.assert_close(raw[:, :, -1], torch.full((2, 1, 4), float(last)))


def test_smoothing_spreads_a_point_and_keeps_its_sum():
    point = torch.zeros(1, 1, 31, 31, dtype=torch.float64)
    point[0, 0, 15, 15] = 1
    spread = smooth(point, 2.0)
    assert spread.sum() == pytest.approx(1)
    assert float(spread[0, 0, 15, 17] / spread[0, 0, 15, 15]) == pytest.approx(np.exp(-0.5))
    assert smooth(point, 0.0) is point
    assert smooth(torch.rand(1, 1, 3, 2), 9.0).shape == (1, 1, 3, 2)


def test_the_baseline_of_the_run_is_what_methods_compare_with():
    classifier, image = tiny_cnn(), torch.full((1, 3, 16, 16), 0.5)
    gray = CaptumExplainer("IntegratedGradients", sign="all", baseline=(0.5, 0.5, 0.5))(classifier, image, 0)
    assert gray.degenerate.all()  # nothing lies between the image and itself
    assert not CaptumExplainer("IntegratedGradients", sign="all")(classifier, image, 0).degenerate.any()
    occlusion = CaptumExplainer("Occlusion", attribute_args={"sliding_window_shapes": [3, 4, 4]}, sign="all")
    assert not occlusion(classifier, image, 0).degenerate.any()
    occlusion.baseline = (0.5, 0.5, 0.5)  # as a task sets it
    assert occlusion(classifier, image, 0).degenerate.all()


def test_superpixels_are_numbered_without_gaps():
    image = torch.zeros(3, 24, 16)
    image[:, :12] = 1
    grid = superpixels(image, "grid", 6)
    assert grid.unique().tolist() == list(range(6))
    assert superpixels(image, "grid", 10_000).unique().numel() == 24 * 16
    pytest.importorskip("skimage")
    labels = superpixels(image, "slic", 6)
    assert labels.unique().tolist() == list(range(int(labels.max()) + 1))
    assert not set(labels[:12].unique().tolist()) & set(labels[12:].unique().tolist())


# Behavior ----------------------------------------------------------------------------------------------------------

STOCHASTIC: list[Explainer] = [
    GradientSHAP(n_samples=4, stdevs=0.1),
    LIME(segments="grid", num_segments=4, n_samples=8),
    CaptumExplainer(
        "Saliency",
        wrapper="NoiseTunnel",
        attribute_args={"nt_samples": 4, "stdevs": 0.1, "abs": False},
        reduction="max",
    ),
    CaptumExplainer("ShapleyValueSampling", segments="grid", num_segments=4, attribute_args={"n_samples": 2}),
]


@pytest.mark.parametrize("explainer", STOCHASTIC, ids=lambda explainer: explainer.method)
def test_random_numbers_depend_on_the_seed_alone_and_disturb_nobody(explainer):
    classifier, image = tiny_cnn(), torch.rand(3, 3, 16, 16)
    torch.manual_seed(3), np.random.seed(3), random.seed(3)  # noqa: NPY002
    expected = (torch.rand(1), np.random.rand(), random.random())  # noqa: NPY002
    torch.manual_seed(3), np.random.seed(3), random.seed(3)  # noqa: NPY002
    with leaves_no_trace(classifier):
        first = explainer(classifier, image, 1).saliency
    assert (torch.rand(1), np.random.rand(), random.random()) == expected  # noqa: NPY002
    assert torch.equal(explainer(classifier, image, 1).saliency, first)
    assert torch.equal(explainer(classifier, image[2:], 1).saliency, first[2:])
    explainer.seed = 1
    assert not torch.equal(explainer(classifier, image, 1).saliency, first)
    explainer.seed = 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", ["IntegratedGradients", "GuidedBackprop", "DeepLift", "GuidedGradCam"])
def test_the_callers_grad_mode_makes_no_difference(method, mode):
    classifier, image = tiny_cnn(), torch.rand(2, 3, 16, 16)
    explainer = CaptumExplainer(method, sign="all")
    expected = explainer(classifier, image, 1).saliency
    with mode():
        assert torch.equal(explainer(classifier, image.clone(), 1).saliency, expected)


@pytest.mark.parametrize("method", ["GuidedBackprop", "DeepLift", "LayerDeepLift", "Deconvolution"])
def test_what_a_method_hangs_on_the_network_is_off_when_the_network_fails(method):
    classifier, image = tiny_cnn(), torch.rand(1, 3, 16, 16)
    explainer = CaptumExplainer(method, sign="all")

    class Fuse(nn.Module):
        burnt = False

        def forward(self, x: Tensor) -> Tensor:
            if self.burnt:
                raise RuntimeError("in the middle")
            return x

    classifier.network.append(fuse := Fuse().eval())
    expected = explainer(classifier, image, 1).saliency
    fuse.burnt = True
    with leaves_no_trace(classifier), pytest.raises(RuntimeError, match="in the middle"):
        explainer(classifier, image, 1)
    fuse.burnt = False
    assert torch.equal(explainer(classifier, image, 1).saliency, expected)


def test_what_captum_itself_forgets_is_taken_off():
    classifier = tiny_cnn()
    with pytest.raises(TypeError, match="Flatten"):  # no rule for it, but the layers before it have theirs already
        captum.LRP(classifier).attribute(torch.rand(1, 3, 16, 16, requires_grad=True), target=1)
    assert "rule" in vars(classifier.network[0])
    clean = tiny_cnn()
    with leaves_no_trace(clean), pytest.raises(TypeError, match="Flatten"):
        CaptumExplainer("LRP")(clean, torch.rand(1, 3, 16, 16), 1)


def test_untouched_puts_back_hooks_attributes_modes_and_gradients():
    classifier = tiny_cnn()
    with leaves_no_trace(classifier), untouched(classifier), torch.enable_grad():
        layer = classifier.network[0]
        layer.register_forward_hook(lambda *_: None)
        layer.note, layer.training, layer.stride = "here", True, (1, 1)
        layer.weight.requires_grad_()
        classifier(torch.rand(1, 3, 16, 16)).sum().backward()
    assert classifier.network[0].stride == (2, 2)


# What a configuration may name --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["os.system", "captum.attr.os", "captum.attr._core.saliency.Saliency", "visualization", "Attribution", "MSE",
     "NeuronGradient", "FeaturePermutation", "LLMAttribution", "LimeBase", "__class__", "IntegratedGradient"],
)  # fmt: skip
def test_only_attributions_of_captum_are_found_by_name(name):
    with pytest.raises(ValueError, match=r"Expected an attribution of captum\.attr"):
        attribution_class(name)


def test_the_nearest_names_are_told():
    with pytest.raises(ValueError, match="'IntegratedGradients'"):
        CaptumExplainer("IntegratedGradient")
    with pytest.raises(ValueError, match=r"'n_step' in `attribute_args`.*'n_steps'"):
        CaptumExplainer("IntegratedGradients", attribute_args={"n_step": 5})
    with pytest.raises(ValueError, match="'multiply' in `method_args`"):
        CaptumExplainer("IntegratedGradients", method_args={"multiply": True})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CaptumExplainer("NoiseTunnel"), "but got NoiseTunnel as `method`"),
        (lambda: CaptumExplainer("Saliency", wrapper="Occlusion"), "but got Occlusion as `wrapper`"),
        (lambda: CaptumExplainer("Saliency", segments="grid"), "takes no `feature_mask`"),
        (lambda: CaptumExplainer("Saliency", reduction="min"), "`reduction` to be one of sum, mean, max"),
        (lambda: CaptumExplainer("Saliency", sign="negative"), "`sign` to be one of positive, absolute, all"),
        (lambda: CaptumExplainer("Saliency", smoothing=-1.0), "`smoothing` to be zero or a positive number"),
        (lambda: LIME(n_samples=0), "`n_samples` to be a positive integer"),
        (lambda: LIME(kernel_width=0.0), "`kernel_width` to be a positive number"),
        (lambda: LIME(segments=None), "`segments` to be one of slic, grid"),
        (lambda: GradientSHAP(stdevs=-1.0), "`stdevs` to be zero or a positive number"),
    ],
)
def test_settings_out_of_range_are_told_in_words(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_without_captum_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ImportError, match=r"optcam_pl\[captum\]"):
        CaptumExplainer("Saliency")


def test_without_scikit_image_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(ImportError, match=r"optcam_pl\[demo\]"):
        superpixels(torch.rand(3, 8, 8), "slic", 4)


def parser():
    from jsonargparse import ArgumentParser

    made = ArgumentParser(exit_on_error=False)
    made.add_subclass_arguments(Explainer, "explainer", fail_untyped=False)
    return made


def test_a_configuration_makes_no_objects_and_imports_no_functions():
    foreign = '{"class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 1}}'
    for arguments in (
        ["--explainer=CallableExplainer", "--explainer.function=os.getcwd"],
        ["--explainer=CallableExplainer", f"--explainer.function={foreign}"],
        ["--explainer=CaptumExplainer", "--explainer.method=Lime", f'--explainer.method_args={{"a": {foreign}}}'],
        ["--explainer=CaptumExplainer", "--explainer.method=Lime", f'--explainer.attribute_args={{"a": {foreign}}}'],
    ):
        with pytest.raises(Exception, match="explainer"):
            parser().parse_args(arguments)


@pytest.mark.parametrize(
    "name",
    ["lime", "gradient_shap", "integrated_gradients", "saliency", "guided_backprop", "smooth_grad", "occlusion"],
)
def test_ready_configurations_explain(name):
    path = Path(__file__).parents[2] / "configs" / "explainer" / f"{name}.yaml"
    if name == "lime":
        pytest.importorskip("skimage")
    quick = {"lime": ["--explainer.n_samples=20"], "gradient_shap": ["--explainer.n_samples=5"]}
    config = parser().parse_args([f"--explainer={path}", *quick.get(name, [])]).explainer
    explainer = getattr(sys.modules["optcam_pl.explainers"], config.class_path.rpartition(".")[2])(**config.init_args)
    image = torch.rand(2, 3, 32, 32)
    explanation = explainer(tiny_cnn(size=32), image, torch.tensor([0, 1]))
    assert explanation.saliency.shape == (2, 1, 32, 32)
    assert ((explanation.saliency.amax((1, 2, 3)) == 1) | explanation.degenerate).all()


# An own function ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 1, 8, 8), (2, 1, 3, 5)])
def test_an_own_functions_map_is_upsampled_and_normalized(shape):
    raw = torch.rand(shape, dtype=torch.float64) * 7 - 3
    explanation = CallableExplainer(lambda classifier, image, target: raw)(tiny_cnn(), torch.rand(2, 3, 8, 8), 1)
    full = F.interpolate(raw.view(2, 1, *shape[-2:]).float(), size=8, mode="bilinear", align_corners=False)
    low, high = full.amin((2, 3), keepdim=True), full.amax((2, 3), keepdim=True)
    torch.testing.assert_close(explanation.saliency, (full - low) / (high - low))


def test_an_own_function_may_use_gradients_and_leaves_no_trace_when_it_fails():
    def gradient(classifier: Classifier, image: Tensor, target: Tensor) -> Tensor:
        image = image.requires_grad_()
        return torch.autograd.grad(classifier(image)[:, 0].sum(), image)[0].abs().sum(1)

    def careless(classifier: Classifier, image: Tensor, target: Tensor) -> Tensor:
        classifier.network[2].register_forward_hook(lambda *_: None)
        raise RuntimeError("in the middle")

    classifier, image = tiny_cnn(), torch.rand(2, 3, 16, 16)
    with torch.inference_mode(), leaves_no_trace(classifier):
        assert CallableExplainer(gradient)(classifier, image, 1).saliency.max() == 1
    with leaves_no_trace(classifier), pytest.raises(RuntimeError, match="in the middle"):
        CallableExplainer(careless)(classifier, image, 1)
    assert CallableExplainer(gradient).settings() == {"function": gradient.__qualname__}


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (torch.rand(3, 3, 8, 8), ValueError, r"but got the shape \(3, 3, 8, 8\)"),
        (torch.rand(1, 8, 8), ValueError, "for 3 images"),
        (np.zeros((3, 8, 8)), TypeError, "to return a tensor, but got ndarray"),
    ],
)
def test_an_own_functions_answer_is_checked(result, error, message):
    with pytest.raises(error, match=message):
        CallableExplainer(lambda classifier, image, target: result)(tiny_cnn(), torch.rand(3, 3, 8, 8), 0)
    with pytest.raises(TypeError, match="`function` to be a function"):
        CallableExplainer("os.system")  # type: ignore[arg-type]


def test_tables_name_the_method_not_the_adapter():
    def brightness(classifier, image, target):
        return image.mean(1)

    found = (CaptumExplainer("Saliency", wrapper="NoiseTunnel"), LIME(), CallableExplainer(brightness))
    assert [explainer.title for explainer in found] == ["NoiseTunnel-Saliency", "LIME", "brightness"]
