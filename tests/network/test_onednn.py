"""Layers of a frozen network on a CPU: the same outputs and gradients as PyTorch's own."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from optcam_pl import Classifier, GradCAM, OptiCAM
from optcam_pl.explainers import FullGrad
from optcam_pl.network import onednn
from optcam_pl.network.onednn import Activation, Clamp, ConvolutionToInput, use_onednn

needs_bfloat16 = pytest.mark.skipif(not onednn._kernels(torch.bfloat16), reason="no bfloat16 in this CPU's oneDNN")


def output_and_gradient(network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    image = image.clone().requires_grad_()
    output = network(image * 1)  # layers in place may not change a leaf
    like = torch.rand(output.shape, generator=torch.Generator().manual_seed(3)).to(output)
    (gradient,) = torch.autograd.grad((output * like).sum(), image)
    return output.detach(), gradient


def frozen(module: nn.Module) -> nn.Module:
    return nn.Sequential(module.requires_grad_(False)).eval()


def equal(ours: nn.Module, right: nn.Module, image: Tensor, bound: float = 1e-5) -> None:
    """Outputs with and without a gradient, and the gradient, relative to the largest magnitude."""
    for mine, other in zip(output_and_gradient(ours, image), output_and_gradient(right, image), strict=True):
        assert mine.shape == other.shape
        assert (mine - other).abs().max() <= bound * other.abs().max()
    with torch.no_grad():
        assert (ours(image) - right(image)).abs().max() <= bound * right(image).abs().max()


CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 1, "groups": 1},
    {"kernel_size": 1, "groups": 1, "bias": False},
    *({"kernel_size": 3, "padding": 1, "stride": stride} for stride in (1, 2, 3)),
    {"kernel_size": 5, "padding": 0, "stride": 2},
    {"kernel_size": 3, "padding": 2, "stride": 2, "dilation": 2},
    {"kernel_size": (3, 5), "padding": (0, 2), "stride": (2, 1), "bias": False},
]


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
@pytest.mark.parametrize("size", [(12, 12), (9, 14)])
@pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)
def test_output_and_gradient_equal_the_own_layer(settings: Any, size: tuple[int, int], dtype: torch.dtype) -> None:
    right = frozen(nn.Conv2d(8, 8, **{"groups": 8} | settings))
    ours = copy.deepcopy(right)
    assert use_onednn(ours) == 1
    assert isinstance(ours[0], ConvolutionToInput)  # type: ignore[index]
    image = torch.rand(3, 8, *size)
    equal(ours, right, image)
    equal(ours.to(dtype), right.to(dtype), image.to(dtype), 0.02 if dtype == torch.bfloat16 else 1e-5)


STEMS: list[tuple[int, dict[str, Any]]] = [
    (3, {"kernel_size": 7, "stride": 2, "padding": 3}),
    (3, {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False}),
    (1, {"kernel_size": 4, "stride": 4}),
    (4, {"kernel_size": 11, "stride": 4, "padding": 2}),
    (3, {"kernel_size": (3, 2), "stride": 2, "padding": (0, 1)}),
    (3, {"kernel_size": 2, "stride": 3}),  # cells between the kernels have no gradient
    (3, {"kernel_size": 3, "stride": 2, "padding": 4}),
]


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (19, 13)])
@pytest.mark.parametrize(("channels", "settings"), STEMS, ids=str)
def test_gradients_to_the_image_equal_the_own_layer(channels: int, settings: Any, size: tuple[int, int]) -> None:
    right = frozen(nn.Conv2d(channels, 8, **settings))
    ours = copy.deepcopy(right)
    assert use_onednn(ours) == 1
    equal(ours, right, torch.rand(2, channels, *size))
    image = torch.rand(2, channels, *size).double()  # PyTorch's own layer
    equal(ours.double(), right.double(), image, 1e-12)


@pytest.mark.parametrize(("size", "stride"), [(11, 2), (12, 2), (13, 3), (8, 1)])
def test_timms_same_padding_is_kept(size: int, stride: int) -> None:
    right = frozen(timm.layers.Conv2dSame(6, 6, 5, stride, groups=6))
    ours, image = copy.deepcopy(right), torch.rand(2, 6, size, size + 1)
    assert use_onednn(ours) == 1
    equal(ours, right, image)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1),  # dense: oneDNN's own backward kernel is as fast
        nn.Conv2d(8, 8, 1, stride=2),
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(3, 8, 3, stride=(2, 1)),
        nn.Conv2d(3, 8, 3, stride=2, dilation=2),
        nn.Conv2d(4, 4, 1, padding=1),
        nn.Conv2d(4, 4, 3, padding="same", groups=4),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding=5, groups=4),
        nn.Conv2d(4, 8, 3, groups=4),
        nn.ReLU(inplace=True),
        nn.ReLU6(),
        nn.SiLU(),
    ],
    ids=str,
)
def test_layers_that_do_not_fit_stay(layer: nn.Module) -> None:
    network = frozen(layer)
    assert use_onednn(network) == 0
    assert network[0] is layer  # type: ignore[index]


def test_layers_with_hooks_stay() -> None:
    layer = nn.Conv2d(4, 4, 1)
    layer.register_forward_hook(lambda m, a, o: o * 2)
    assert use_onednn(frozen(layer)) == 0


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("layer", [nn.ReLU6, lambda inplace: nn.Hardtanh(-0.5, 0.5, inplace), nn.SiLU, nn.Hardswish])
def test_activations_give_the_same_numbers_bit_for_bit(layer: Any, inplace: bool) -> None:
    right = frozen(layer(inplace=inplace))
    ours = copy.deepcopy(right)
    assert use_onednn(ours) == inplace
    image = torch.arange(-7, 8, 0.25).view(1, 3, 4, 5)  # exactly 0 and 6 among them
    assert {0.0, 0.5, 6.0} <= set(image.flatten().tolist())
    for mine, other in zip(output_and_gradient(ours, image), output_and_gradient(right, image), strict=True):
        assert torch.equal(mine, other)
    with torch.no_grad():
        assert torch.equal(ours(image.clone()), right(image.clone()))


def test_a_clamp_keeps_its_output_alone() -> None:
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    image = torch.rand(2, 3, 4, 4, requires_grad=True) * 9
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = Clamp(0, 6)(image)
    assert kept == [output.data_ptr()]
    assert output.data_ptr() == image.data_ptr()  # in place, as before


def test_other_types_autocast_and_a_switched_off_onednn_use_the_own_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    right = frozen(nn.Conv2d(8, 8, 1))
    ours = copy.deepcopy(right)
    use_onednn(ours)

    def fail(*args: Any) -> Any:
        raise AssertionError("oneDNN was called")

    monkeypatch.setattr(torch, "mkldnn_convolution", fail)
    image = torch.rand(2, 8, 5, 5)
    wide, wide_right = copy.deepcopy(ours).double(), copy.deepcopy(right).double()
    equal(wide, wide_right, image.double(), 1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(image), right(image))
    with monkeypatch.context() as switched:
        switched.setattr(torch.backends.mkldnn, "enabled", False)
        equal(ours, right, image)
    assert ours(image[:0]).shape == (0, 8, 5, 5)
    with pytest.raises(AssertionError, match="oneDNN was called"):
        ours(image)


FAMILIES = [
    lambda: torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.25),
    lambda: torchvision.models.mobilenet_v3_small(num_classes=10, width_mult=0.5),
    lambda: torchvision.models.resnet18(num_classes=10),
    lambda: timm.create_model("test_efficientnet", num_classes=10),
    lambda: timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=10),
]


@pytest.mark.parametrize("make", FAMILIES)
def test_real_families_give_the_same_logits_and_gradients(make: Any) -> None:
    torch.manual_seed(0)
    right = make().requires_grad_(False).eval()
    ours = copy.deepcopy(right)
    use_onednn(ours)
    image = torch.rand(2, 3, 64, 64)
    mine, other = output_and_gradient(ours, image), output_and_gradient(right, image)
    assert (mine[0] - other[0]).abs().max() <= 2e-5 * other[0].abs().max()
    # A value that rounding moves over a kink changes single cells of the gradient.
    assert (mine[1] - other[1]).norm() <= 2e-3 * other[1].norm()


def test_a_classifier_says_its_speed_keeps_its_state_and_finds_its_layers() -> None:
    torch.manual_seed(1)
    network = torchvision.models.mobilenet_v2(num_classes=5, width_mult=0.25).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    settings: dict[str, Any] = {"target_layer": "features.18", "mean": 0, "std": 1, "input_size": 32}
    plain, fast = Classifier(network, **settings), Classifier(network, **settings, speed="onednn")
    folded = Classifier(network, **settings, speed="folded")
    assert fast.describe()["speed"] == "onednn"
    assert fast.weight_hash() == plain.weight_hash()
    assert fast.state_dict().keys() == folded.state_dict().keys()
    assert any(isinstance(module, ConvolutionToInput) for module in fast.network.modules())
    assert any(isinstance(module, Clamp) for module in fast.network.modules())
    image = torch.rand(2, 3, 32, 32)
    for explainer in (GradCAM(), GradCAM(layer="features.3.conv.1"), OptiCAM(max_iter=3), FullGrad()):
        right, ours = explainer(plain, image, 1).saliency, explainer(fast, image, 1).saliency
        torch.testing.assert_close(ours, right, atol=2e-3, rtol=0)
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(twin(image), fast(image))


def test_images_do_not_depend_on_the_others_of_their_batch() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU6(inplace=True), nn.Conv2d(8, 8, 3, 2, 1, groups=8))
    network = layers.requires_grad_(False).eval()
    assert use_onednn(network) == 3
    assert isinstance(Activation(nn.SiLU), nn.Module)
    image = torch.rand(4, 3, 10, 10)
    other = torch.cat([image[:1], torch.rand(3, 3, 10, 10)])
    for mine, right in zip(output_and_gradient(network, image), output_and_gradient(network, other), strict=True):
        assert torch.equal(mine[0], right[0])
