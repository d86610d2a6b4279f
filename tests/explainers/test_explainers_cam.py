"""Class activation maps: parity with the stored values of other programs, and what each formula promises."""

from __future__ import annotations

import pytest
import torch
from explainer_cases import (
    VIT_LAYER,
    aligned_upsample,
    correlation,
    enlarged,
    leaves_no_trace,
    made_case,
    on_both,
    reference,
    stored_case,
    tiny_cnn,
    tiny_vgg,
    tiny_vit,
)
from torch import nn

from optcam_pl.explainers import (
    CAM,
    EigenCAM,
    EigenGradCAM,
    FullGrad,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    RandomCAM,
    SmoothGradCAMPlusPlus,
    XGradCAM,
)
from optcam_pl.explainers import fullgrad as fullgrad_module
from optcam_pl.explainers.base import Explainer
from optcam_pl.network.classifier import Classifier

CASES = [("cnn", "layer4"), ("cnn", "layer3"), ("vit", VIT_LAYER)]
WEIGHTED = {"GradCAM": GradCAM, "XGradCAM": XGradCAM, "LayerCAM": LayerCAM, "HiResCAM": HiResCAM}


def pgc_file(which: str, layer: str) -> str:
    return "cam_pgc_vit" if which == "vit" else f"cam_pgc_cnn_{layer}"


@on_both
@pytest.mark.parametrize(("which", "layer"), CASES)
@pytest.mark.parametrize("name", WEIGHTED)
def test_gradient_methods_are_those_of_pytorch_grad_cam(golden, which, layer, name, images):
    stored = reference(golden, pgc_file(which, layer), images)
    classifier, image, target = stored_case(golden, which, layer, images)
    saliency = WEIGHTED[name]()(classifier, image, target).saliency
    assert correlation(saliency, stored[f"{name}.map"]).min() > 0.999


@pytest.mark.parametrize("make", [tiny_cnn, tiny_vit])
@pytest.mark.parametrize("name", WEIGHTED)
def test_gradient_methods_are_those_of_the_installed_pytorch_grad_cam(make, name):
    peers = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    classifier, image = make(), torch.rand(2, 3, 16, 16)
    [layer] = classifier.target_layers
    peer = getattr(peers, name)(
        model=classifier,
        target_layers=[classifier.layer(layer)],
        reshape_transform=lambda activation: classifier.to_grid(activation, (16, 16)),
    )
    with peer, torch.enable_grad():
        found = peer(image.clone().requires_grad_(), [targets.ClassifierOutputTarget(c) for c in (1, 3)])
    saliency, theirs = WEIGHTED[name]()(classifier, image, torch.tensor([1, 3])).saliency, torch.from_numpy(found)
    speaks = theirs.flatten(1).amax(1) > 0  # a map without evidence is zero everywhere
    assert speaks.any()
    assert torch.equal(speaks, saliency.flatten(1).amax(1) > 0)
    assert correlation(saliency[speaks], theirs[speaks]).min() > 0.999


@on_both
@pytest.mark.parametrize("layer", ["layer3", "layer4"])
def test_grad_cam_plus_plus_is_that_of_pytorch_grad_cam_on_a_cnn(golden, layer, images):
    stored = reference(golden, f"cam_pgc_cnn_{layer}", images)
    classifier, image, target = stored_case(golden, "cnn", layer, images)
    saliency = GradCAMPlusPlus()(classifier, image, target).saliency
    assert correlation(saliency, stored["GradCAMPlusPlus.map"]).min() > 0.999


@on_both
def test_grad_cam_plus_plus_is_that_of_pytorch_grad_cam_on_a_vit_up_to_its_epsilon(golden, images):
    # pytorch-grad-cam adds 1e-6 to the denominator, which here is as small as the gradients of one photograph.
    stored = reference(golden, "cam_pgc_vit", images)
    A, G = stored["activations"], stored["gradients"]
    below = 2 * G**2 + A.sum((2, 3), keepdim=True) * G**3 + 1e-6
    theirs = ((G**2 / below * G.relu()).sum((2, 3), keepdim=True) * A).sum(1)
    torch.testing.assert_close(theirs, stored["GradCAMPlusPlus.raw"], atol=1e-4, rtol=1e-3)
    classifier, image, target = stored_case(golden, "vit", VIT_LAYER, images)
    explainer = GradCAMPlusPlus()
    with torch.enable_grad():
        [(own_A, own_G)] = explainer.gradients(classifier, image, target)
    torch.testing.assert_close(own_A, A, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(own_G, G, atol=1e-5, rtol=1e-4)
    saliency = explainer(classifier, image, target).saliency
    large = [0, 1, 3] if images == "photographs" else [0, 1, 2, 3]
    assert correlation(saliency[large], stored["GradCAMPlusPlus.map"][large]).min() > 0.999


@on_both
def test_grad_cam_plus_plus_is_not_that_of_torchcam_whose_weights_are_cubes_of_gradients(golden, images):
    gradients = reference(golden, "cam_pgc_cnn_layer3", images)["gradients"]
    stored = reference(golden, "cam_torchcam_cnn_layer3", images)
    torch.testing.assert_close(gradients.relu().pow(3).sum((2, 3)), stored["GradCAMpp.weights"], atol=1e-6, rtol=1e-4)


@on_both
@pytest.mark.parametrize(("which", "layer"), CASES)
def test_eigen_cam_centered_is_that_of_pytorch_grad_cam_up_to_the_sign(golden, which, layer, images):
    stored = reference(golden, pgc_file(which, layer), images)
    classifier, image, target = stored_case(golden, which, layer, images)
    [raw] = EigenCAM(center=True).maps(classifier, image, target)
    assert correlation(raw, stored["EigenCAM.raw"]).abs().min() > 0.999
    if which == "cnn":
        with torch.enable_grad():
            [raw] = EigenGradCAM().maps(classifier, image, target)
        assert correlation(raw, stored["EigenGradCAM.raw"]).abs().min() > 0.999


def test_eigen_cam_is_the_papers_projection_without_centring_whose_largest_entry_is_positive():
    classifier, image = tiny_cnn(), torch.rand(3, 3, 16, 16)
    explainer = EigenCAM()
    [raw] = explainer.maps(classifier, image, torch.zeros(3, dtype=torch.int64))
    [A], _ = explainer.features(classifier, image)
    for one, features in zip(raw.flatten(1), A.flatten(2), strict=True):
        _, vectors = torch.linalg.eigh(features @ features.T)
        expected = features.T @ vectors[:, -1]
        torch.testing.assert_close(one.abs(), expected.abs(), atol=1e-4, rtol=1e-3)
        assert one[one.abs().argmax()] > 0
    torch.testing.assert_close(
        explainer(classifier, image, 0).saliency, explainer(classifier, image, 3).saliency, atol=0, rtol=0
    )


@on_both
@pytest.mark.parametrize(("layer", "name"), [("layer4", "CAM"), ("layer3", "XGradCAM"), ("layer3", "LayerCAM")])
def test_maps_are_those_of_torchcam(golden, layer, name, images):
    stored = reference(golden, f"cam_torchcam_cnn_{layer}", images)
    classifier, image, target = stored_case(golden, "cnn", layer, images)
    explainer = CAM() if name == "CAM" else WEIGHTED[name]()
    saliency = explainer(classifier, image, target).saliency
    assert correlation(saliency, enlarged(stored[f"{name}.raw"])).min() > 0.999


@on_both
def test_grad_cam_is_captums_before_the_relu(golden, images):
    stored = reference(golden, "cam_others_cnn", images)
    classifier, image, target = stored_case(golden, "cnn", "layer4", images)
    with torch.enable_grad():
        [raw] = GradCAM().maps(classifier, image, target)
    torch.testing.assert_close(raw[:, 0], stored["captum_LayerGradCam"], atol=1e-5, rtol=1e-4)


def test_layers_of_layer_cam_are_fused_as_torchcam_fuses_them(golden):
    torchcam = pytest.importorskip("torchcam.methods")
    classifier, image, target = made_case(golden, "cnn", ["layer2", "layer4"])
    saliency = LayerCAM()(classifier, image, target).saliency
    normalized = (image - classifier.mean.view(3, 1, 1)) / classifier.std.view(3, 1, 1)
    with torch.enable_grad(), torchcam.LayerCAM(classifier.network, ["layer2", "layer4"]) as extractor:
        scores = classifier.network(normalized.requires_grad_())
        raw = extractor(target.tolist(), scores, normalized=False)
        # torchcam's own normalization subtracts the minimum first; the paper divides by the maximum alone.
        fused = extractor.fuse_cams([m / m.amax((1, 2), keepdim=True) for m in raw], target_shape=(64, 64))
    assert correlation(saliency, fused.unsqueeze(1)).min() > 0.999


def test_several_layers_are_added_up_elsewhere():
    classifier, image = tiny_cnn(), torch.rand(2, 3, 16, 16)
    both = GradCAM(["0", "4"])
    with torch.enable_grad():
        maps = both.maps(classifier, image, torch.tensor([1, 2]))
    full = both.fuse([raw.relu() for raw in maps], (16, 16))
    assert correlation(both(classifier, image, torch.tensor([1, 2])).saliency, full).min() > 0.99999


def test_smooth_grad_cam_plus_plus_comes_close_to_torchcams(golden):
    # torchcam adds its noise to the normalized image and takes the first derivative of the last noisy copy alone.
    torchcam = pytest.importorskip("torchcam.methods")
    classifier, image, target = made_case(golden, "cnn", "layer3")
    saliency = SmoothGradCAMPlusPlus(std=0.01, num_samples=8)(classifier, image, target).saliency
    normalized = (image - classifier.mean.view(3, 1, 1)) / classifier.std.view(3, 1, 1)
    normalized.requires_grad_()  # torchcam before 0.5 wants a gradient in every pass
    with torch.enable_grad():
        extractor = torchcam.SmoothGradCAMpp(classifier.network, "layer3", num_samples=8, std=0.01 / 0.225)
        with extractor:
            classifier.network(normalized)
            [raw] = extractor(target.tolist(), normalized=False)
    assert correlation(saliency, enlarged(raw)).min() > 0.95


def test_smooth_grad_cam_plus_plus_without_noise_is_grad_cam_plus_plus():
    classifier, image = tiny_cnn(), torch.rand(2, 3, 16, 16)
    smooth = SmoothGradCAMPlusPlus(std=0, num_samples=2)(classifier, image, 1).saliency
    torch.testing.assert_close(smooth, GradCAMPlusPlus()(classifier, image, 1).saliency, atol=1e-5, rtol=1e-4)


def test_smooth_grad_cam_plus_plus_has_the_same_noise_for_every_image_and_another_for_another_seed():
    classifier, one = tiny_cnn(), torch.rand(1, 3, 16, 16)
    twice = SmoothGradCAMPlusPlus(num_samples=3)(classifier, one.repeat(2, 1, 1, 1), 1).saliency
    assert torch.equal(twice[0], twice[1])
    assert not torch.equal(twice[:1], SmoothGradCAMPlusPlus(num_samples=3, seed=1)(classifier, one, 1).saliency)


def test_full_grad_is_the_authors_but_for_aligned_corners(golden, monkeypatch):
    stored = reference(golden, "cam_others_cnn", "photographs")
    classifier, image, target = stored_case(golden, "cnn", "layer4")
    monkeypatch.setattr(fullgrad_module, "upsample", aligned_upsample)
    assert correlation(FullGrad()(classifier, image, target).saliency, stored["FullGrad_idiap"]).min() > 0.999


@on_both
def test_full_grads_terms_add_up_to_the_logit_of_a_relu_network(golden, images):
    classifier, image, target = stored_case(golden, "cnn", "layer4", images)
    with torch.enable_grad():
        of_input, of_biases = FullGrad.terms(classifier, image, target)
    of_input, of_biases = of_input.flatten(1).sum(1), sum(term.flatten(1).sum(1) for term in of_biases)
    if images == "photographs":  # the authors' program is no package
        stored = reference(golden, "cam_others_cnn", images)["FullGrad_completeness"]
        torch.testing.assert_close(torch.stack([of_input, of_biases], 1), stored[:, :2], atol=1e-4, rtol=1e-4)
    logit = classifier(image).gather(1, target.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(of_input + of_biases, logit, atol=1e-4, rtol=1e-4)


def test_full_grad_finds_the_biases_of_layers_that_fuse_batch_norm_and_activation():
    # timm's BatchNormAct2d applies the activation inside the module: its output is not where the bias is added.
    from timm.layers import BatchNormAct2d

    fused = BatchNormAct2d(4)
    nn.init.normal_(fused.bias)
    nn.init.normal_(fused.running_mean)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), fused, nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    classifier, image = Classifier(network, input_size=8), torch.rand(1, 3, 8, 8)
    with torch.enable_grad():
        of_input, of_biases = FullGrad.terms(classifier, image, torch.tensor([2]))
    total = of_input.sum() + sum(term.sum() for term in of_biases)
    torch.testing.assert_close(total, classifier(image)[0, 2], atol=1e-4, rtol=1e-3)


def test_full_grad_explains_a_vit_and_refuses_a_network_without_biases():
    assert not FullGrad()(tiny_vit(), torch.rand(1, 3, 16, 16)).degenerate.any()
    bare = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match="FullGrad needs layers with biases"):
        FullGrad()(Classifier(bare, input_size=16), torch.rand(1, 3, 16, 16))


def test_grad_cam_hires_cam_and_xgrad_cam_are_one_where_the_head_is_average_pooling_and_linear(golden):
    classifier, image, target = made_case(golden, "cnn", "layer4")
    maps = [explainer(classifier, image, target).saliency for explainer in (GradCAM(), HiResCAM(), XGradCAM())]
    torch.testing.assert_close(maps[0], maps[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(maps[0], maps[2], atol=1e-5, rtol=0)


def test_grad_cam_hires_cam_and_xgrad_cam_differ_on_a_vgg():
    classifier, image = tiny_vgg(), torch.rand(2, 3, 16, 16)
    maps = [explainer(classifier, image, 1).saliency for explainer in (GradCAM(), HiResCAM(), XGradCAM())]
    assert not torch.allclose(maps[0], maps[1], atol=0.01)
    assert not torch.allclose(maps[0], maps[2], atol=0.01)


def test_cam_is_grad_cam_without_the_relu():
    classifier, image = tiny_cnn(), torch.rand(2, 3, 16, 16)
    [raw] = CAM().maps(classifier, image, torch.tensor([3, 0]))
    with torch.enable_grad():
        [grad] = GradCAM().maps(classifier, image, torch.tensor([3, 0]))
    torch.testing.assert_close(raw, grad * raw.shape[2] * raw.shape[3], atol=1e-5, rtol=1e-4)


def test_cam_reads_a_convolution_as_a_head():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 5, 1), nn.Flatten())
    classifier = Classifier(network, target_layer="1", input_size=8)
    assert CAM()(classifier, torch.rand(2, 3, 8, 8), 2).saliency.shape == (2, 1, 8, 8)


@pytest.mark.parametrize("make", [tiny_vgg, tiny_vit])
def test_cam_refuses_networks_without_average_pooling_and_a_linear_head(make):
    with pytest.raises(ValueError, match="CAM needs a network that averages"):
        CAM()(make(), torch.rand(1, 3, 16, 16))


def test_cam_refuses_a_layer_before_others():
    with pytest.raises(ValueError, match="from 2"):
        CAM("2")(tiny_cnn(), torch.rand(1, 3, 16, 16))


def test_random_cam_draws_one_set_of_weights_a_seed():
    classifier, one = tiny_cnn(), torch.rand(1, 3, 16, 16)
    twice = RandomCAM()(classifier, one.repeat(2, 1, 1, 1), 1).saliency
    assert torch.equal(twice[0], twice[1])
    assert not torch.equal(twice[:1], RandomCAM(seed=1)(classifier, one, 1).saliency)


@pytest.mark.parametrize("explainer", [GradCAM(), GradCAMPlusPlus(), XGradCAM(), EigenCAM(), EigenGradCAM()])
def test_a_map_without_information_is_zero_and_degenerate(explainer):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    nn.init.zeros_(network[0].weight)
    nn.init.zeros_(network[0].bias)
    with pytest.warns(UserWarning, match="the same scores for noise, a black image and another one"):
        explanation = explainer(Classifier(network, target_layer="1", input_size=8), torch.rand(2, 3, 8, 8), 1)
    assert explanation.degenerate.all()
    assert not explanation.saliency.any()


@pytest.mark.parametrize("explainer", [EigenCAM(), GradCAM(), XGradCAM()])
def test_an_image_whose_features_overflow_is_degenerate_and_its_neighbor_is_not(explainer):
    class Overflow(nn.Module):
        def forward(self, x):
            return torch.where(x.mean((1, 2, 3), keepdim=True) > 0.9, x / 0, x)

    network = nn.Sequential(nn.Conv2d(3, 4, 1), Overflow(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    nn.init.constant_(network[0].weight, 1 / 3)
    nn.init.zeros_(network[0].bias)
    image = torch.stack([torch.ones(3, 8, 8), torch.rand(3, 8, 8)])
    explanation = explainer(Classifier(network, target_layer="1", input_size=8), image, 1)
    assert explanation.degenerate.tolist()[0]
    assert torch.isfinite(explanation.saliency).all()
    alone = explainer(Classifier(network, target_layer="1", input_size=8), image[1:], 1)
    torch.testing.assert_close(explanation.saliency[1:], alone.saliency)


class _NoWayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise AssertionError("a backward pass went below the layer")


class _Guard(nn.Module):
    def forward(self, x):
        return _NoWayBack.apply(x)


def gradient_methods() -> list[Explainer]:
    return [GradCAM(), GradCAMPlusPlus(), XGradCAM(), LayerCAM(), HiResCAM(), EigenGradCAM(), SmoothGradCAMPlusPlus()]


@pytest.mark.parametrize("explainer", gradient_methods())
def test_no_backward_pass_goes_below_the_layer(explainer):
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), _Guard(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    classifier = Classifier(network, target_layer="2", input_size=8)
    image = torch.rand(2, 3, 8, 8)
    with pytest.raises(AssertionError, match="went below the layer"):  # the guard does see one that does
        classifier(image.clone().requires_grad_()).sum().backward()
    with leaves_no_trace(classifier):
        explanation = explainer(classifier, image)
    assert explanation.saliency.isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SmoothGradCAMPlusPlus(num_samples=0), "`num_samples` to be a positive integer, but got 0"),
        (lambda: SmoothGradCAMPlusPlus(std=-0.1), "`std` to be zero or a positive number, but got -0.1"),
    ],
)
def test_settings_out_of_range_are_told_in_words(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU])
def test_fullgrad_sees_the_biases_of_transposed_convolutions_and_instance_norms(activation):
    torch.manual_seed(0)
    norm = nn.InstanceNorm2d(6, affine=True, track_running_stats=True)
    nn.init.normal_(norm.running_mean)
    nn.init.normal_(norm.bias)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), norm, activation(), nn.ConvTranspose2d(6, 4, 2, 2), activation(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    classifier, image = Classifier(network, mean=0, std=1, input_size=16), torch.rand(2, 3, 16, 16)
    of_input, of_biases = FullGrad.terms(classifier, image, torch.tensor([1, 2]))
    assert [tuple(term.shape) for term in of_biases] == [(2, 6, 8, 8), (2, 6, 8, 8), (2, 4, 16, 16), (2, 3)]
    if activation is nn.ReLU:
        total = sum(term.flatten(1).sum(1) for term in [of_input, *of_biases])
        torch.testing.assert_close(total, classifier(image)[[0, 1], [1, 2]], atol=1e-4, rtol=1e-4)
