"""Errors of the network, of what is handed in, and of a missing gradient: one sentence that says what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from explainer_cases import leaves_no_trace, tiny_cnn
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from optcam_pl.cli import compare
from optcam_pl.explainers import (
    CaptumExplainer,
    ExtremalPerturbation,
    FullGrad,
    GradCAM,
    MeaningfulPerturbation,
    OptiCAM,
    ScoreCAM,
)
from optcam_pl.network.classifier import Classifier
from optcam_pl.network.errors import NetworkError

IMAGE = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class Staged(nn.Module):
    """Features, then a head; subclasses join them otherwise."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(image))
        return logits


class Detached(Staged):
    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image).detach()


class WithoutGradient(Staged):
    def forward(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(image)


class Inferring(Staged):
    def forward(self, image: Tensor) -> Tensor:
        with torch.inference_mode():
            return super().forward(image)


class Frozen(Staged):
    def forward(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            found = self.features(image)
        logits: Tensor = self.head(found.detach())
        return logits


class Raising(Staged):
    def forward(self, image: Tensor) -> Tensor:
        if image.shape[0] == 2:
            raise KeyError("no such expert")
        return super().forward(image)


def of(network: nn.Module, **settings: Any) -> Classifier:
    return Classifier(network, target_layer="features", input_size=16, **settings)


NEEDS_GRADIENT = [
    OptiCAM(max_iter=2),
    FullGrad(),
    MeaningfulPerturbation(max_iter=2, cell=4),
    ExtremalPerturbation(areas=[0.2], max_iter=2, step=4, sigma=4.0),
]


@pytest.mark.parametrize("network", [Detached, WithoutGradient, Inferring])
@pytest.mark.parametrize("explainer", [GradCAM(), *NEEDS_GRADIENT], ids=lambda e: e.title)
def test_a_network_without_gradient_is_told(network: type[Staged], explainer: Any) -> None:
    classifier = of(network())
    with (
        leaves_no_trace(classifier),
        pytest.raises(ValueError, match="to have a gradient at the .*, but there is none"),
    ):
        explainer(classifier, IMAGE, 1)
    assert ScoreCAM()(classifier, IMAGE, 1).saliency.shape == (2, 1, 16, 16)


@pytest.mark.parametrize("method", ["Saliency", "LayerGradCam"])
def test_captums_methods_tell_it_likewise(method: str) -> None:
    pytest.importorskip("captum")
    with pytest.raises(ValueError, match="to have a gradient at the .*, but there is none"):
        CaptumExplainer(method)(of(Detached()), IMAGE, 1)


@pytest.mark.parametrize("explainer", NEEDS_GRADIENT[:1] + NEEDS_GRADIENT[2:], ids=lambda e: e.title)
def test_a_backbone_that_is_cut_off_has_no_gradient_at_the_image(explainer: Any) -> None:
    with pytest.raises(ValueError, match="gradient at the image, but there is none"):
        explainer(of(Frozen()), IMAGE, 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torch's own, of quantization
def test_quantized_layers_have_no_gradient() -> None:
    def quantized(seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        network: nn.Module = torch.ao.quantization.quantize_dynamic(Staged(), {nn.Linear}, dtype=torch.qint8)
        return network

    fast = Classifier(quantized(), mean=0, std=1, input_size=16, speed="onednn")  # with backward passes of our own
    perturbations = (MeaningfulPerturbation(max_iter=2), ExtremalPerturbation(max_iter=2))
    for explainer in (GradCAM(), OptiCAM(max_iter=2), FullGrad(), *perturbations):
        for classifier in (of(quantized()), fast):
            with pytest.raises(ValueError, match="quantized layers, which have no gradient"):
                explainer(classifier, IMAGE, 1)
    assert ScoreCAM()(of(quantized()), IMAGE, 1).saliency.shape == (2, 1, 16, 16)
    before = fast.weight_hash()
    assert Classifier(quantized(seed=1), mean=0, std=1, input_size=16).weight_hash() != before


def test_a_forward_hook_that_asks_for_a_gradient_is_told() -> None:
    network = Staged()
    network.features.register_forward_hook(lambda module, args, output: output.register_hook(print))
    with pytest.raises(NetworkError, match="forward hook of your own that calls `register_hook`"):
        GradCAM()(of(network), IMAGE, 1)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch's, at each pass
def test_checkpoints_of_the_older_kind_leave_methods_without_a_gradient() -> None:
    class Checkpointed(Staged):
        def forward(self, image: Tensor) -> Tensor:
            logits: Tensor = self.head(checkpoint(self.features[1], self.features[0](image), use_reentrant=True))
            return logits

    classifier = Classifier(Checkpointed(), mean=0, std=1, input_size=16)
    assert ScoreCAM()(classifier, IMAGE, 1).saliency.shape == (2, 1, 16, 16)
    for refused in (GradCAM("features.0").check, lambda c: GradCAM("features.0")(c, IMAGE)):
        with pytest.raises(NetworkError, match="Switch its gradient checkpointing off"):
            refused(classifier)


@pytest.mark.parametrize("target", [[None, 1], {"a": 1}, [len, len], np.array([["a"], ["b"]])])
def test_what_is_no_class_is_told(target: Any) -> None:
    with pytest.raises(TypeError, match="(?s)`target` to be a class's number or name.*is given to the Classifier"):
        GradCAM()(of(Staged()), IMAGE, target)


def test_names_of_classes_may_be_an_array() -> None:
    classifier = Classifier(Staged(), mean=0, std=1, input_size=16, class_names=["a", "b", "c"])
    assert GradCAM()(classifier, IMAGE, np.array(["c", "a"])).target.tolist() == [2, 0]


@pytest.mark.filterwarnings("ignore:Raising takes one image at a time")  # what it looks like from outside
def test_what_a_network_raises_is_shown_as_its_own_with_what_was_being_done() -> None:
    classifier = of(Raising())
    with pytest.raises(
        NetworkError,
        match=r"^Raising raised KeyError while it computed scores of 2 images of 16 x 16: 'no such expert'\.$",
    ) as caught:
        GradCAM()(classifier, IMAGE, 1)
    assert isinstance(caught.value.__cause__, KeyError)
    assert GradCAM()(classifier, IMAGE[:1], 1).saliency.shape == (1, 1, 16, 16)


def test_errors_of_our_own_hooks_stay_as_they_are() -> None:
    classifier = of(Staged())

    def hook(*_: object) -> None:
        raise ValueError("ours")

    hook.__globals__["__name__"], name = "optcam_pl.hooks", __name__
    try:
        with classifier.network.features.register_forward_hook(hook), pytest.raises(ValueError, match="^ours$"):
            classifier(IMAGE)
    finally:
        hook.__globals__["__name__"] = name


@pytest.mark.parametrize("channels", [1, 4])
def test_a_network_of_other_channels_is_told_so(channels: int) -> None:
    classifier = of(Staged(channels))
    with pytest.raises(
        NetworkError, match=f"wants images of {channels} channels?: give the classifier `channels`"
    ) as caught:
        _ = classifier.num_classes
    assert "input_size" not in str(caught.value)
    advised = nn.Sequential(nn.Conv2d(3, channels, 1), Staged(channels))
    assert Classifier(advised)(IMAGE).shape == (2, 3)


def test_timms_assertion_about_the_size_is_told_with_the_setting() -> None:
    vit = timm.models.vision_transformer.VisionTransformer(img_size=32, embed_dim=12, depth=1, num_heads=2)
    classifier = Classifier(vit, input_size=32)
    with pytest.raises(NetworkError, match=r"VisionTransformer raised AssertionError while .* 16 x 16: .*`input_size`"):
        classifier(IMAGE)


def test_weights_made_in_inference_mode_are_told() -> None:
    with torch.inference_mode():
        network = Staged()
    with pytest.raises(NetworkError, match="Its weights were made inside torch.inference_mode"):
        GradCAM()(of(network), IMAGE, 1)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # in passes that need no gradient
def test_gradient_checkpointing_that_was_left_on_is_told() -> None:
    class Checkpointed(Staged):
        def forward(self, image: Tensor) -> Tensor:
            logits: Tensor = self.head(checkpoint(self.features, image, use_reentrant=True))
            return logits

    with pytest.raises(NetworkError, match="Switch its gradient checkpointing off"):
        OptiCAM(max_iter=2)(of(Checkpointed()), IMAGE, 1)


# What is handed in ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "advice"),
    [
        (np.zeros((16, 16, 3), np.uint8), "classifier.preprocess(image)"),
        (np.zeros((2, 16, 16, 3), np.float32), "classifier.preprocess(image)"),
        (np.zeros((2, 3, 16, 16), np.float32), "torch.from_numpy(image).float()"),
        (Image.new("RGB", (16, 16)), "`optcam_pl.explain` takes a photograph as it is"),
        (Path("cat.jpg"), "classifier.preprocess(image)"),
        ("cat.jpg", "classifier.preprocess(image)"),
        ((IMAGE * 255).byte(), "image.float() / 255"),
        (list(IMAGE), "torch.stack(images)"),
    ],
    ids=["array", "arrays", "channels first", "PIL", "path", "text", "uint8", "list"],
)
def test_other_kinds_of_images_are_told_how_to_convert(image: Any, advice: str) -> None:
    with pytest.raises(TypeError) as caught:
        GradCAM()(tiny_cnn(), image)
    assert advice in str(caught.value)
    with pytest.raises(TypeError) as caught:
        tiny_cnn()(image)
    assert advice in str(caught.value)


def test_the_advised_conversions_give_images() -> None:
    array = np.zeros((16, 16, 3), np.uint8)
    for kind, image in (("array", array), ("PIL", Image.fromarray(array))):
        with pytest.raises(TypeError) as caught:
            GradCAM()(tiny_cnn(), image)  # type: ignore[arg-type]
        line = str(caught.value).partition("Convert it: ")[2].partition(". ")[0]
        found = eval(line, {"classifier": tiny_cnn(), "image": image})
        assert found.shape == (1, 3, 16, 16), kind


@pytest.mark.parametrize(
    ("image", "advice"),
    [
        (IMAGE[0], r"The batch dimension is missing: image.unsqueeze\(0\)"),
        (IMAGE.permute(0, 2, 3, 1), r"image.permute\(0, 3, 1, 2\)"),
        (IMAGE[0].permute(1, 2, 0), r"image.permute\(2, 0, 1\).unsqueeze\(0\)"),
        (IMAGE[:, :1], r"image.expand\(-1, 3, -1, -1\)"),
        (IMAGE.repeat(1, 2, 1, 1)[:, :4], r"image\[:, :3\]"),
        (IMAGE * 255, "Divide pixels of 0 to 255 by 255"),
        ((IMAGE - 0.5) / 0.2, "seem to be normalized already"),
    ],
)
def test_images_of_another_shape_or_range_are_told_what_to_do(image: Tensor, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        GradCAM()(tiny_cnn(), image)


def test_a_bare_network_is_told_to_be_wrapped() -> None:
    for explainer in (GradCAM(), OptiCAM()):
        with pytest.raises(TypeError, match=r"an optcam_pl.Classifier, but got Staged: wrap the network, Classifier\("):
            explainer(Staged(), IMAGE)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"an optcam_pl.Classifier, but got Staged"):
            explainer.check(Staged())  # type: ignore[arg-type]


def test_a_class_may_be_named() -> None:
    classifier = of(Staged(), class_names=["cat", "dog", "dog"])
    assert GradCAM()(classifier, IMAGE, "cat").target.tolist() == [0, 0]
    named = of(Staged(), class_names=["cat", "dog", "owl"])
    explained = GradCAM()(named, IMAGE, ["owl", "dog"])
    assert explained.target.tolist() == [2, 1]
    assert torch.equal(explained.saliency, GradCAM()(named, IMAGE, torch.tensor([2, 1])).saliency)
    with pytest.raises(ValueError, match="Unknown class 'dgo'. The nearest are: 'dog'"):
        GradCAM()(named, IMAGE, "dgo")
    with pytest.raises(ValueError, match=r"the classes \[1, 2\] are all called 'dog'"):
        GradCAM()(classifier, IMAGE, "dog")
    with pytest.raises(ValueError, match="a class's number, as Staged has no `class_names`, but got the name 'dog'"):
        GradCAM()(of(Staged()), IMAGE, "dog")


# From the command line ------------------------------------------------------------------------------------------------


def test_the_command_tells_a_networks_error_in_one_sentence(photos: Path, tmp_path: Path) -> None:
    tiny = str(Path(__file__).parents[1] / "conf" / "tiny.yaml")
    words = ["test", "--config", tiny, f"--data.root={photos}", f"--run_dir={tmp_path / 'run'}"]
    for more, message in (
        (["--model.classifier.network=timm/vit_tiny_patch16_224"], "VisionTransformer|fails on|`input_size`"),
        (["--trainer.accelerator=gpu"], "No supported gpu backend found"),
    ):
        if "gpu" in more[0] and torch.cuda.is_available():
            continue
        done = subprocess.run(
            [sys.executable, "-m", "optcam_pl", *words, *more], capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert any(part in done.stderr for part in message.split("|")), done.stderr


def test_a_check_that_a_network_breaks_off_skips_one_method(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model(compare.SaliencyTask):
        def __init__(self) -> None:
            super().__init__(tiny_cnn(), GradCAM())

    def broken(*_: object) -> None:
        raise NetworkError("Staged raised KeyError")

    monkeypatch.setattr(GradCAM, "check", broken)
    outcome = compare.Outcome()
    monkeypatch.setattr(compare, "OptcamCLI", lambda *_, **__: type("Made", (), {"model": Model()}))
    assert not compare._usable(compare.Method("GradCAM", "GradCAM", asked=False), [], [], outcome)
    assert outcome.skipped == {"GradCAM": "Staged raised KeyError"}
