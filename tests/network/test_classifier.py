from __future__ import annotations

import copy
import hashlib
import pickle
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from torchvision.transforms.v2.functional import normalize

from optcam_pl.explainers import RISE, GradCAM, OptiCAM
from optcam_pl.network.capture import capture
from optcam_pl.network.classifier import Classifier


def small(width: int = 4, classes: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    )


def test_logits_equal_the_plain_network_behind_normalize() -> None:
    plain = torchvision.models.resnet18(num_classes=7).eval()
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = plain(normalize(image, mean, std))
    torch.testing.assert_close(Classifier(plain, mean=mean, std=std)(image), expected)
    torch.testing.assert_close(
        Classifier(plain, mean=mean, std=std).probabilities(image), expected.softmax(1), rtol=1e-6, atol=1e-7
    )


def test_a_module_without_mean_and_std_sees_the_pixels_as_they_are() -> None:
    classifier = Classifier(small())
    image = torch.rand(2, 3, 8, 8)
    assert torch.equal(classifier(image), classifier.network(image))
    assert classifier.mean.tolist() == [0, 0, 0]
    assert classifier.std.tolist() == [1, 1, 1]


class _Writes(nn.Module):
    """Normalizes its images in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        )

    def forward(self, image: Tensor) -> Tensor:
        image -= 0.5
        logits: Tensor = self.layers(image.div_(0.25))
        return logits


@pytest.mark.parametrize("speed", ["plain", "folded"])
def test_a_network_may_write_into_its_images(speed: Any) -> None:
    network, image = _Writes(), torch.rand(2, 3, 8, 8)
    before = image.clone()
    classifier = Classifier(network, mean=0, std=1, input_size=8, speed=speed)
    clean = Classifier(network.layers, mean=0.5, std=0.25, input_size=8, target_layer="1")
    for explainer in (GradCAM(), OptiCAM(max_iter=2), RISE(num_masks=4)):
        assert torch.allclose(explainer(classifier, image).saliency, explainer(clean, image).saliency, atol=1e-4)
    pixels = image.clone().requires_grad_()
    assert torch.autograd.grad(classifier(pixels).sum(), pixels)[0].any()
    assert torch.equal(image, before)
    assert torch.equal(pixels, before)


def test_only_the_image_gets_a_gradient() -> None:
    classifier = Classifier(small(), mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])
    image = torch.rand(1, 3, 8, 8, requires_grad=True)
    classifier(image).sum().backward()
    assert image.grad is not None
    assert all(parameter.grad is None for parameter in classifier.parameters())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: (logits, "features"),
        lambda logits: {"loss": None, "logits": logits},
        lambda logits: {"out": logits},
        lambda logits: types.SimpleNamespace(logits=logits),
    ],
    ids=["tuple", "mapping", "only entry", "object"],
)
def test_networks_that_return_more_than_logits_are_unwrapped(wrap: Callable[[Tensor], Any]) -> None:
    class Wrapped(nn.Module):
        def forward(self, image: Tensor) -> Any:
            return wrap(image.mean((2, 3)))

    assert Classifier(Wrapped())(torch.ones(1, 3, 4, 4)).tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("output", ["text", (), {}, None])
def test_an_output_without_logits_is_a_type_error(output: Any) -> None:
    class Strange(nn.Module):
        def forward(self, image: Tensor) -> Any:
            return output

    with pytest.raises(TypeError, match="Expected the network to return logits"):
        Classifier(Strange())(torch.ones(1, 3, 4, 4))


def test_images_and_logits_of_another_shape_or_type_are_refused() -> None:
    classifier = Classifier(small())
    with pytest.raises(ValueError, match=r"Expected images of shape \(B, 3, H, W\), but got \(3, 8, 8\)"):
        classifier(torch.rand(3, 8, 8))
    with pytest.raises(ValueError, match=r"but got \(1, 1, 8, 8\)"):
        classifier(torch.rand(1, 1, 8, 8))
    with pytest.raises(TypeError, match=r"floating-point tensors in \[0, 1\], but got torch.uint8"):
        classifier(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(TypeError, match="but got ndarray"):
        classifier(np.zeros((1, 3, 8, 8)))
    with pytest.raises(ValueError, match=r"Expected Conv2d to return logits \(B, C\), but got the shape"):
        Classifier(nn.Conv2d(3, 2, 1))(torch.rand(1, 3, 8, 8))


def test_probabilities_are_float32_in_half_precision_and_float64_in_double() -> None:
    image = torch.rand(1, 3, 8, 8)
    assert Classifier(small()).bfloat16().probabilities(image.bfloat16()).dtype == torch.float32
    assert Classifier(small()).double().probabilities(image.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert Classifier(small()).probabilities(image).dtype == torch.float32


@pytest.mark.parametrize("inputs_file", ["made_inputs.npz", "inputs.npz"])
def test_stored_logits_of_the_tiny_networks(golden: Callable[[str], Path], inputs_file: str) -> None:
    weights, inputs = np.load(golden("models.npz")), np.load(golden(inputs_file))
    cnn = timm.models.resnet.ResNet(
        timm.models.resnet.BasicBlock, (1, 1, 1, 1), num_classes=10, channels=(16, 24, 32, 48), output_stride=8
    )
    vit = timm.models.vision_transformer.VisionTransformer(
        img_size=64, patch_size=8, embed_dim=48, depth=4, num_heads=3, num_classes=10
    )
    image = torch.from_numpy(inputs["pixels_u8"] / 255).float()
    for key, network, layer, grid in (("cnn", cnn, "layer4.0", (48, 8, 8)), ("vit", vit, "blocks.3.norm1", (48, 8, 8))):
        state = {k[4:]: torch.from_numpy(weights[k]) for k in weights.files if k.startswith(f"{key}.")}
        network.load_state_dict(state)
        classifier = Classifier(network, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], input_size=64)
        torch.testing.assert_close(
            classifier(image), torch.from_numpy(inputs[f"{key}_logits"]).float(), rtol=1e-5, atol=1e-5
        )
        assert classifier.target_layers == (layer,)
        with capture({layer: classifier.layer(layer)}) as record:
            classifier(image)
        assert classifier.to_grid(record[layer], (64, 64), layer).shape[1:] == grid


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": [0.5, 0.5], "std": [1, 1, 1]}, "one number for each channel, but `mean` says 2, `std` says 3"),
        ({"mean": True}, "Expected `mean` to be three numbers, one a channel, or one for all, but got True"),
        ({"mean": [124, 116, 104]}, r"Expected `mean` to be three numbers in \[0, 1\], like the pixels"),
        ({"mean": [float("nan")] * 3}, r"in \[0, 1\]"),
        ({"std": [0.2, 0.2, 0.0]}, "Expected `std` to be three positive numbers"),
        ({"std": [float("inf")] * 3}, "Expected `std` to be three positive numbers"),
        ({"input_size": 0}, "Expected `input_size` to be one or two positive integers, but got 0"),
        ({"input_size": (8, 8, 8)}, "Expected `input_size`"),
        ({"interpolation": "lanczos"}, "Expected `interpolation` to be one of bilinear, bicubic, but got 'lanczos'"),
        ({"crop_fraction": 0.0}, r"Expected `crop_fraction` to be in \(0, 1\], but got 0.0"),
        ({"crop_fraction": 1.5}, "Expected `crop_fraction`"),
        ({"num_classes": 0}, "Expected `num_classes` to be a positive integer, but got 0"),
        ({"num_classes": 4, "input_size": 8}, "Expected 4 classes, but Sequential has 3"),
        ({"class_names": ["cat"], "input_size": 8}, "Expected 3 `class_names` for Sequential, but got 1"),
        ({"layout": "nhwc"}, "Expected `layout` to be one of auto, channels_first, channels_last, tokens"),
        ({"weights": None}, r'Expected `weights` to be "default"'),
    ],
)
def test_bad_settings_are_refused_in_words(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classifier(small(), **settings)


def test_a_network_that_is_neither_name_nor_module_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"a name or a torch.nn.Module, but got function"):
        Classifier(small)  # type: ignore[arg-type]


def test_class_names_fall_back_to_numbers_and_are_range_checked() -> None:
    named = Classifier(small(), class_names=["a", "b", "c"], input_size=8)
    assert (named.class_names, named.class_name(2)) == (("a", "b", "c"), "c")
    unnamed = Classifier(small(), input_size=8)
    assert (unnamed.class_names, unnamed.class_name(2)) == (None, "2")
    for index in (-1, 3):
        with pytest.raises(ValueError, match=f"Expected a class from 0 to 2, but got {index}"):
            named.class_name(index)


def test_the_network_is_frozen_and_says_so_when_asked_to_train(recwarn: pytest.WarningsRecorder) -> None:
    classifier = Classifier(small().train(), mean=0, std=1)
    assert not classifier.network[1].training
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    for _ in range(2):
        with pytest.warns(UserWarning, match="Sequential is frozen and stays in eval mode") as caught:
            assert classifier.train() is classifier
        assert len(caught) == 1
        assert not any(module.training for module in classifier.modules())
    with pytest.raises(RuntimeError, match="Sequential is frozen: no gradient is ever computed"):
        classifier.requires_grad_()
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    assert classifier.eval() is classifier.train(False) is classifier.requires_grad_(False)
    assert not recwarn


def test_a_network_that_somebody_put_into_training_mode_is_not_explained() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = Classifier(network, target_layer="1", input_size=8)
    network[1].train()
    with pytest.raises(ValueError, match=r"Sequential in eval mode, but 1 of its modules are in training mode .*: 1\)"):
        GradCAM()(classifier, torch.rand(2, 3, 8, 8))
    assert not network[1].running_mean.any()
    assert GradCAM()(classifier.eval(), torch.rand(2, 3, 8, 8)).saliency.shape == (2, 1, 8, 8)


def test_copies_pickles_and_casts_behave_alike() -> None:
    classifier = Classifier("timm/test_resnet", weights=None, input_size=32)
    image, expected = torch.rand(2, 3, 32, 32), None
    for twin in (classifier, copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier)), classifier.to("cpu")):
        logits = twin(image)
        expected = logits if expected is None else expected
        assert torch.equal(logits, expected)
        assert twin.describe() == classifier.describe()
        assert twin.weight_hash() == classifier.weight_hash()
    double = copy.deepcopy(classifier).double()
    torch.testing.assert_close(double(image.double()).float(), expected, rtol=1e-4, atol=1e-4)
    assert double.mean.dtype == torch.float64
    assert torch.equal(double.mean, classifier.mean.double())
    assert "mean" not in classifier.state_dict()


def test_the_weight_hash_follows_the_weights() -> None:
    network = small()
    classifier = Classifier(network)
    first = classifier.weight_hash()
    assert len(first) == 64
    assert first == classifier.weight_hash() == Classifier(copy.deepcopy(network), mean=[0.5] * 3).weight_hash()
    twin = copy.deepcopy(classifier)
    with torch.no_grad():
        twin.network[5].bias[0] += 1
    assert twin.weight_hash() != first == classifier.weight_hash()
    with torch.no_grad():
        network[1].running_mean[0] += 1
    second = classifier.weight_hash()
    assert second != first
    assert classifier.bfloat16().weight_hash() != second


def test_the_weight_hash_of_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        classifier = Classifier(small())
        assert len(classifier.weight_hash()) == 64
        assert Classifier(small(), input_size=8).num_classes == 3


def test_a_configuration_builds_it_but_names_no_code() -> None:
    parser = ArgumentParser(exit_on_error=False)
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed in jsonargparse 4.5x
    parser.add_class_arguments(Classifier, "classifier")
    arguments = ["network=timm/test_resnet", "weights=null", "input_size=[64,32]", "target_layer=[layer3,layer4]"]
    config = parser.parse_args([f"--classifier.{argument}" for argument in arguments])
    classifier = instantiate(config).classifier
    assert (classifier.input_size, classifier.target_layers) == ((64, 32), ("layer3", "layer4"))
    config = parser.parse_args(['--classifier.network={"class_path": "torch.nn.Flatten"}'])
    with pytest.raises(ValueError, match="Expected `network` to be one of"):
        instantiate(config)


def test_importing_it_imports_no_timm() -> None:
    code = "import sys, optcam_pl.network.classifier; print({'timm'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "set()"


def test_random_weights_have_a_name_that_the_command_line_can_say() -> None:
    # jsonargparse hands a nested `--model.classifier.weights=null` on as the text "None".
    for weights in (None, "random", "None"):
        assert Classifier("timm/test_vit", weights=weights).weights == "random"


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_torchscript_is_explained_by_methods_without_layers_and_others_say_why_not() -> None:
    network = small().eval()
    scripted = torch.jit.script(copy.deepcopy(network))
    plain, classifier = (Classifier(net, mean=0, std=1, input_size=16) for net in (network, scripted))
    image = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(classifier(image), plain(image))
    assert not any(parameter.requires_grad for parameter in scripted.parameters())
    ours, right = (RISE(num_masks=8)(c, image, 1).saliency for c in (classifier, plain))
    torch.testing.assert_close(ours, right, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="as it was before it became TorchScript, which hides"):
        GradCAM()(classifier, image, 1)
    classifier.release()
    assert all(parameter.requires_grad for parameter in scripted.parameters())


def test_a_file_whose_name_is_taken_is_the_same_module_in_every_process(tmp_path: Path) -> None:
    file = tmp_path / "my-net.py"
    file.write_text("from torch import nn\nclass Net(nn.Flatten): ...\n")
    Classifier(f"{file}:Net", mean=0, std=1, input_size=4)
    name = f"_optcam_own_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]}"
    assert name in sys.modules
    del sys.modules[name]
