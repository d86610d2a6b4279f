"""Score-CAM and Ablation-CAM, the upper part of a network, and chunks."""

from __future__ import annotations

import functools
import logging

import pytest
import torch
import torch.nn.functional as F
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
    tiny_vit,
)
from torch import nn

from optcam_pl.explainers import AblationCAM, ScoreCAM
from optcam_pl.explainers import masking as masking_module
from optcam_pl.explainers.batching import Chunks
from optcam_pl.explainers.masking import Ablated
from optcam_pl.explainers.upper_part import UpperPart
from optcam_pl.maps import normalize, upsample
from optcam_pl.network.capture import LayerNotCalledError
from optcam_pl.network.classifier import Classifier


@on_both
@pytest.mark.parametrize(
    ("which", "layer", "key", "baseline"),
    [
        ("cnn", "layer3", "ScoreCAM", "mean"),
        ("cnn", "layer4", "ScoreCAM", "mean"),
        ("cnn", "layer4", "ScoreCAM_pixels", "black"),
        ("vit", VIT_LAYER, "ScoreCAM", "mean"),
    ],
)
def test_score_cam_is_that_of_pytorch_grad_cam_but_for_aligned_corners(
    golden, monkeypatch, which, layer, key, baseline, images
):
    # The package masks the normalized image: a masked pixel has the network's mean color. "_pixels" is black.
    stored = reference(golden, "cam_pgc_vit" if which == "vit" else f"cam_pgc_cnn_{layer}", images)
    classifier, image, target = stored_case(golden, which, layer, images)
    monkeypatch.setattr(masking_module, "upsample", aligned_upsample)
    explanation = ScoreCAM(baseline=baseline)(classifier, image, target)
    torch.testing.assert_close(explanation.weights, stored[f"{key}.weights"], atol=1e-5, rtol=1e-4)
    assert correlation(explanation.saliency, stored[f"{key}.map"]).min() > 0.999


@on_both
def test_score_cam_is_that_of_torchcam_with_masks_that_are_normalized_before_they_are_upsampled(
    golden, monkeypatch, images
):
    stored = reference(golden, "cam_torchcam_cnn_layer3", images)
    classifier, image, target = stored_case(golden, "cnn", "layer3", images)
    monkeypatch.setattr(masking_module, "upsample", lambda maps, size: upsample(normalize(maps), size))
    monkeypatch.setattr(masking_module, "normalize", lambda maps, **_: maps)
    explanation = ScoreCAM(baseline="mean")(classifier, image, target)
    torch.testing.assert_close(explanation.weights, stored["ScoreCAM.weights"], atol=1e-5, rtol=1e-4)
    assert correlation(explanation.saliency, enlarged(stored["ScoreCAM.raw"])).min() > 0.999


def test_score_cam_is_that_of_torchcam_up_to_where_masks_are_normalized(golden):
    # The order matters more on the drawn images (0.9926), which are compared in torchcam's order above.
    stored = reference(golden, "cam_torchcam_cnn_layer3", "photographs")
    classifier, image, target = stored_case(golden, "cnn", "layer3")
    saliency = ScoreCAM(baseline="mean")(classifier, image, target).saliency
    assert correlation(saliency, enlarged(stored["ScoreCAM.raw"])).min() > 0.999


@on_both
def test_is_cam_is_that_of_torchcam_with_torchcams_steps(golden, monkeypatch, images):
    # torchcam adds the steps up: its masks go from 0.1 to 5.5, where the path of the paper's integral goes to 1.
    stored = reference(golden, "cam_torchcam_cnn_layer3", images)
    classifier, image, target = stored_case(golden, "cnn", "layer3", images)
    monkeypatch.setattr(ScoreCAM, "step", lambda _, sample: sample * (sample + 1) / 20)
    saliency = ScoreCAM(smooth="integral", baseline="mean")(classifier, image, target).saliency
    assert correlation(saliency, enlarged(stored["ISCAM.raw"])).min() > 0.999


def test_ss_cam_comes_close_to_torchcams(golden):
    torchcam = pytest.importorskip("torchcam.methods")
    classifier, image, target = made_case(golden, "cnn", "layer3")
    classifier.network.eval()
    normalized = (image - classifier.mean.view(3, 1, 1)) / classifier.std.view(3, 1, 1)
    with torch.no_grad(), torchcam.SSCAM(classifier.network, "layer3", num_samples=12, batch_size=64) as extractor:
        [raw] = extractor(target.tolist(), classifier.network(normalized), normalized=False)
    saliency = ScoreCAM(smooth="noise", num_samples=12, baseline="mean")(classifier, image, target).saliency
    assert correlation(saliency, enlarged(raw)).min() > 0.95


def test_one_step_of_the_integral_is_score_cam_and_so_is_noise_of_none():
    classifier, image = tiny_cnn(), torch.rand(2, 3, 16, 16)
    plain = ScoreCAM()(classifier, image, 1).saliency
    for smooth in (ScoreCAM(smooth="integral", num_samples=1), ScoreCAM(smooth="noise", num_samples=1, std=0.0)):
        torch.testing.assert_close(smooth(classifier, image, 1).saliency, plain)


@on_both
@pytest.mark.parametrize("layer", ["layer3", "layer4"])
def test_ablation_cam_is_that_of_pytorch_grad_cam(golden, layer, images):
    stored = reference(golden, f"cam_pgc_cnn_{layer}", images)
    classifier, image, target = stored_case(golden, "cnn", layer, images)
    logit = classifier(image).gather(1, target.unsqueeze(1))
    explanation = AblationCAM()(classifier, image, target)
    torch.testing.assert_close(explanation.weights / logit, stored["AblationCAM.weights"], atol=1e-5, rtol=1e-3)
    assert correlation(explanation.saliency, stored["AblationCAM.map"]).min() > 0.999


def test_ablation_cam_of_a_vit_is_that_of_pytorch_grad_cam_with_zeros(golden):
    # The package sets a feature to -1e7 where a layer has negative ones; the paper to 0.
    peers = pytest.importorskip("pytorch_grad_cam")
    layers = pytest.importorskip("pytorch_grad_cam.ablation_layer")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")

    class Zeros(layers.AblationLayerVit):
        def __call__(self, x):
            output = self.activations
            for i, index in enumerate(self.indices[: len(output)]):
                output[i, :, index] = 0
            return output

    classifier, image, target = made_case(golden, "vit", VIT_LAYER)
    image, target = image[:2], target[:2]
    peer = peers.AblationCAM(
        model=classifier,
        target_layers=[classifier.layer(VIT_LAYER)],
        reshape_transform=lambda activation: classifier.to_grid(activation, (64, 64)),
        ablation_layer=Zeros(),
    )
    with peer:
        theirs = torch.from_numpy(peer(image, [targets.ClassifierOutputTarget(int(c)) for c in target]))
    logit = classifier(image).gather(1, target.unsqueeze(1)).squeeze(1)
    saliency = AblationCAM()(classifier, image, target).saliency
    right = logit > 0  # dividing by a negative logit turns their map round
    assert right.any()
    assert correlation(saliency, theirs)[right].min() > 0.999


def test_ablation_cams_weight_is_what_the_logit_loses():
    classifier, image = tiny_cnn(), torch.rand(1, 3, 16, 16)
    weights = AblationCAM()(classifier, image, 2).weights
    head, features = classifier.network[-1], UpperPart(classifier, "4", image).activation
    torch.testing.assert_close(weights, head.weight[2] * features.mean((2, 3)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 64])
@pytest.mark.parametrize("make", [tiny_cnn, tiny_vit])
@pytest.mark.parametrize("explainer", [AblationCAM, ScoreCAM, functools.partial(ScoreCAM, smooth="noise")])
def test_chunks_do_not_change_a_map(explainer, make, chunk_size):
    classifier, image = make().double(), torch.rand(2, 3, 16, 16, dtype=torch.float64)
    once = explainer(chunk_size=1000)(classifier, image, 1)
    torch.testing.assert_close(explainer(chunk_size=chunk_size)(classifier, image, 1).saliency, once.saliency)


class _Residual(nn.Module):
    """One ReLU for all, a sum past the layers, and an addition in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.b(self.relu(self.a(x)))
        y += x
        return self.relu(y)


class _Folding(nn.Module):
    """Looks at quarters of each image one by one, as windowed attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 1)
        self.after = nn.ReLU()

    def forward(self, x):
        B, K, h, w = x.shape
        quarters = x.view(B, K, 2, h // 2, w).transpose(1, 2).reshape(2 * B, K, h // 2, w)
        quarters = self.inner(quarters)
        return self.after(quarters.view(B, 2, K, h // 2, w).transpose(1, 2).reshape(B, K, h, w))


class _Sorting(nn.Module):
    """Hands on what does not belong to images: its upper part cannot be run with repeated rows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.after = _Table(), nn.ReLU()

    def forward(self, x):
        return self.after(x * self.scale(x).view(1, 4, 1, 1))


class _Table(nn.Module):
    def forward(self, x):
        return torch.arange(1.0, 5.0)


def network_of(middle: nn.Module) -> Classifier:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        middle,
        nn.Conv2d(4, 6, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )
    return Classifier(network, target_layer="2", mean=[0.5] * 3, std=[0.2] * 3, input_size=8)


def without_channels(classifier: Classifier, upper: UpperPart, channels: slice, layer: str) -> torch.Tensor:
    n = channels.stop - channels.start
    copies = upper.activation.repeat(n, *[1] * (upper.activation.ndim - 1))
    classifier.to_grid(copies, (8, 8), layer)[range(n), range(channels.start, channels.stop)] = 0
    return copies


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("inplace", [False, True])
def test_copies_without_a_channel_are_right_in_each_pass_also_after_one_that_failed(inplace, layout):
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(inplace), nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    classifier = Classifier(nn.Sequential(*layers), target_layer="0", mean=0, std=1, input_size=8)
    image = torch.rand(1, 3, 8, 8).contiguous(memory_format=layout)
    upper = UpperPart(classifier, "0", image)
    ablated = Ablated(upper.activation, classifier, (8, 8), "0")
    for channels in (slice(0, 3), slice(3, 6), slice(1, 2), slice(0, 4), slice(4, 6)):
        right = upper(without_channels(classifier, upper, channels, "0"))
        torch.testing.assert_close(ablated.through(upper, channels), right, atol=1e-6, rtol=1e-5)

    def out_of_memory(activation: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        ablated.through(out_of_memory, slice(0, 4))
    right = upper(without_channels(classifier, upper, slice(2, 4), "0"))
    torch.testing.assert_close(ablated.through(upper, slice(2, 4)), right, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("middle", "layer", "partial"),
    [
        (_Residual, "0", True),
        (_Residual, "1", True),
        (_Residual, "2", True),
        (_Residual, "2.a", True),
        (_Residual, "2.b", True),
        (_Residual, "2.relu", False),  # the sum before it is made in place, in what was kept
        (_Residual, "3", True),
        (_Folding, "2.after", True),
        (_Folding, "2", True),
        (_Sorting, "2.after", False),
        (_Sorting, "2", True),
    ],
)
def test_the_upper_part_gives_the_logits_of_the_whole_network(middle, layer, partial):
    classifier, image = network_of(middle()), torch.rand(1, 3, 8, 8)
    with leaves_no_trace(classifier):
        upper, whole = UpperPart(classifier, layer, image), UpperPart(classifier, layer, image, partial=False)
        assert (upper.partial, whole.partial) == (partial, False)
        torch.testing.assert_close(upper(upper.activation.clone()), classifier(image))
        ablated = without_channels(classifier, upper, slice(0, 4), layer)
        torch.testing.assert_close(upper(ablated.clone()), whole(ablated.clone()), atol=1e-6, rtol=1e-5)
        assert not torch.allclose(upper(ablated.clone()), upper.logits.expand(4, 5), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("torchvision/resnet18", "layer4.1.conv1"),
        ("torchvision/resnet18", "layer3"),
        ("torchvision/densenet121", "features.denseblock4.denselayer15"),
        ("timm/vit_tiny_patch16_224", "blocks.10.attn"),
        ("timm/tf_efficientnet_lite0", "bn2"),
        ("timm/swin_tiny_patch4_window7_224", "layers.3.blocks.1.norm1"),
        ("timm/convnext_atto", "stages.3.blocks.1.conv_dw"),
    ],
)
def test_the_upper_part_of_common_networks_needs_nothing_from_below(name, layer):
    size = 224 if "224" in name else 64
    classifier, image = Classifier(name, weights=None, num_classes=7), torch.rand(1, 3, size, size)
    upper, whole = UpperPart(classifier, layer, image), UpperPart(classifier, layer, image, partial=False)
    assert upper.partial
    changed = torch.cat([upper.activation, upper.activation * 0.5])
    torch.testing.assert_close(upper(changed.clone()), whole(changed.clone()), atol=1e-5, rtol=1e-4)


def test_layers_below_are_run_once_for_an_image_however_many_channels_there_are():
    classifier, runs = network_of(_Residual()), []
    assert classifier.num_classes == 5  # counted now, by a pass of its own
    own = classifier.network[0].forward
    classifier.network[0].forward = lambda x: runs.append(len(x)) or own(x)
    kept = classifier.network[0].forward
    classifier.check_function((8, 8))  # once, with images of its own
    runs.clear()
    AblationCAM("2.b", chunk_size=1)(classifier, torch.rand(2, 3, 8, 8), 1)
    assert runs == [1, 1]
    assert classifier.network[0].forward is kept


def test_ablation_cam_without_a_partial_network_is_the_same(monkeypatch):
    classifier, image = network_of(_Residual()), torch.rand(2, 3, 8, 8)
    partial = AblationCAM()(classifier, image, 1)
    monkeypatch.setattr(UpperPart, "_works", lambda _: False)
    whole = AblationCAM()(classifier, image, 1)
    torch.testing.assert_close(partial.weights, whole.weights, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(partial.saliency, whole.saliency, atol=1e-5, rtol=1e-4)


def test_the_upper_part_of_a_layer_that_is_not_called_is_an_error():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network[0].spare = nn.ReLU()
    with pytest.raises(LayerNotCalledError, match="was not called"):
        UpperPart(Classifier(network, target_layer="0", input_size=8), "0.spare", torch.rand(1, 3, 8, 8))


def test_an_error_in_the_network_is_raised_and_leaves_nothing_behind():
    class Failing(nn.Module):
        fails = False

        def forward(self, x):
            if self.fails:
                raise RuntimeError("in the middle")
            return F.relu(x)

    failing = Failing()
    classifier, image = network_of(failing), torch.rand(1, 3, 8, 8)
    upper = UpperPart(classifier, "1", image)
    failing.fails = True
    with leaves_no_trace(classifier), pytest.raises(RuntimeError, match="in the middle"):
        upper(upper.activation.clone())
    with leaves_no_trace(classifier), pytest.raises(RuntimeError, match="in the middle"):
        UpperPart(classifier, "1", image)


def test_chunks_are_halved_where_memory_runs_out_and_nothing_is_lost(caplog):
    seen = []

    def step(part):
        if part.stop - part.start > 3:
            raise torch.OutOfMemoryError
        seen.append((part.start, part.stop))
        return torch.arange(part.start, part.stop).unsqueeze(0)

    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            chunks = Chunks(8)
            assert chunks.cat(step, 10).tolist() == [list(range(10))]
    assert chunks.size == 2
    assert seen[:5] == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    assert len(caplog.records) == 2  # from 8 to 4 and from 4 to 2, told once for both calls


def test_a_single_item_without_memory_is_an_error():
    def step(part):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        Chunks(2).each(step, 3)


def test_a_chunk_holds_the_same_channels_of_every_image():
    assert (Chunks(64, batch=5).size, Chunks(4, batch=5).size) == (12, 1)


@pytest.mark.parametrize("explainer", [ScoreCAM, AblationCAM])
def test_several_layers_are_refused(explainer):
    classifier = tiny_cnn()
    classifier = Classifier(classifier.network, target_layer=["2", "4"], input_size=16)
    with pytest.raises(ValueError, match="Expected one `layer`"):
        explainer()(classifier, torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScoreCAM(chunk_size=0), "`chunk_size` to be a positive integer, but got 0"),
        (lambda: ScoreCAM(smooth="more"), "`smooth` to be one of none, noise, integral, but got 'more'"),
        (lambda: ScoreCAM(num_samples=3), "no `num_samples` without smoothing"),
        (lambda: ScoreCAM(smooth="noise", num_samples=0), "`num_samples` to be a positive integer"),
        (lambda: ScoreCAM(smooth="noise", std=-1), "`std` to be zero or a positive number"),
        (lambda: ScoreCAM(baseline="white"), "`baseline` to be"),
    ],
)
def test_settings_out_of_range_are_told_in_words(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_setting_of_another_type_is_told_in_words():
    with pytest.raises(TypeError, match="`chunk_size` to be an integer, but got True"):
        AblationCAM(chunk_size=True)
