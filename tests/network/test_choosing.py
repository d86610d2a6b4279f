"""Which layer is explained where nobody names one, and what is said of one that cannot be."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning
import pytest
import timm
import torch
import torchvision
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import optcam_pl
from optcam_pl import Classifier
from optcam_pl.explainers import (
    AblationCAM,
    AttentionRollout,
    EigenCAM,
    Explainer,
    FullGrad,
    GradCAM,
    HiResCAM,
    LayerCAM,
    OptiCAM,
    RawAttention,
    ScoreCAM,
)
from optcam_pl.network.capture import LayerError, LayerNotCalledError
from optcam_pl.network.layers import heads, known_prefix, members
from optcam_pl.private import uncompiled

IMAGE = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def lively(network: nn.Module) -> nn.Module:
    """Biases, norms and scales that differ, so that a random network is not constant."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim <= 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.5)
    return network.eval()


def vit() -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    return lively(VisionTransformer(**sizes, num_classes=3, init_values=1.0))


class Normalize(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return (image - 0.5) / 0.25


class Mine(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.backbone = network

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.backbone(image)
        return out


class Lit(lightning.LightningModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.net = network

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.net(image)
        return out


class Adapted(nn.Module):
    """Held as adapters of large networks hold theirs: two modules around it, and a layer in it exchanged."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = network

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.base_model.model(image)
        return out


def compiled(network: nn.Module) -> nn.Module:
    return torch.compile(network, backend="eager")  # type: ignore[return-value]


def compiled_in_place(network: nn.Module) -> nn.Module:
    network.compile(backend="eager")
    return network


WRAPPERS: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "bare": (lambda network: network, ""),
    "Sequential": (lambda network: nn.Sequential(nn.Identity(), network), "1."),
    "DataParallel": (nn.DataParallel, "module."),
    "own module in DataParallel": (lambda network: nn.DataParallel(Mine(network)), "module.backbone."),
    "LightningModule": (Lit, "net."),
    "adapter": (Adapted, "base_model.model."),
    "compiled": (compiled, ""),
    "compiled inside": (lambda network: nn.Sequential(nn.Identity(), compiled(network)), "1."),
    "compiled in place": (compiled_in_place, ""),
    "all of it": (lambda n: compiled(nn.DataParallel(nn.Sequential(Mine(compiled(n))))), "module.0.backbone."),
}  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_family_is_found_in_any_wrapper_and_its_maps_are_those_of_the_bare_network(wrapper: str) -> None:
    wrap, prefix = WRAPPERS[wrapper]
    bare, classifier = Classifier(vit(), input_size=32), Classifier(wrap(vit()), input_size=32)
    assert classifier.target_layers == (f"{prefix}blocks.1.norm1",)
    assert classifier.prefix_tokens == 1
    for explainer in (GradCAM(), HiResCAM(), LayerCAM(), OptiCAM(max_iter=2), FullGrad()):
        explainer.check(classifier)
        expected, found = (explainer(c, IMAGE, 2) for c in (bare, classifier))
        assert not bool(found.degenerate.any())
        torch.testing.assert_close(found.saliency, expected.saliency)


@pytest.mark.parametrize("explainer", [RawAttention(), AttentionRollout()])
def test_attention_of_a_compiled_network_is_that_of_the_network(explainer: Explainer) -> None:
    expected = explainer(Classifier(vit(), input_size=32), IMAGE, 1)
    found = explainer(Classifier(compiled(vit()), input_size=32), IMAGE, 1)
    torch.testing.assert_close(found.saliency, expected.saliency)


def test_what_was_compiled_stays_compiled_for_its_owner() -> None:
    inner = compiled(vit())
    outer = nn.Sequential(Normalize(), inner)
    twin = uncompiled(outer)
    assert outer[1] is inner
    assert isinstance(twin, nn.Sequential)
    assert isinstance(twin[1], VisionTransformer)
    assert twin[0] is outer[0]
    in_place = compiled_in_place(nn.Sequential(nn.ReLU()))
    assert uncompiled(in_place)._compiled_call_impl is None
    assert in_place._compiled_call_impl is not None
    plain = vit()
    assert uncompiled(plain) is plain
    assert Classifier(inner, input_size=32).name == "VisionTransformer"


def test_layers_are_named_with_or_without_what_wrappers_put_before() -> None:
    parallel, plain = Classifier(nn.DataParallel(vit()), input_size=32), Classifier(compiled(vit()), input_size=32)
    for name in (
        "module.blocks.-1.norm1",
        "blocks.1.norm1",
        "_orig_mod.module.blocks[1].norm1",
        "module.blocks.1.norm1",
    ):
        assert parallel.layer(name) is parallel.network.module.blocks[1].norm1
        assert plain.layer(name) is plain.network.blocks[1].norm1
    with pytest.raises(ValueError, match="Unknown layer 'module'"):
        plain.layer("module")
    with pytest.raises(ValueError, match=r"Unknown layer 'blocks.1.norm1' of Mine. .* are: 'backbone.blocks.1.norm1'"):
        Classifier(Mine(vit()), input_size=32).layer("blocks.1.norm1")


def test_what_is_known_of_a_family_is_known_inside_a_wrapper() -> None:
    distilled = torchvision.models.SwinTransformer([4, 4], 24, [2], [1], [7, 7], num_classes=2)
    swin = Classifier(nn.Sequential(Normalize(), distilled), input_size=64)
    cube = torch.rand(1, 8, 8, 8)
    assert torch.equal(swin.to_grid(cube, (64, 64), "1.norm"), cube.permute(0, 3, 1, 2))
    two = nn.ModuleList([torchvision.models.resnet18(), nn.ModuleDict({"it": vit()})])
    assert [name for name, _ in members(two)] == ["0", "1.it"]
    assert (known_prefix(two, "1.it.norm"), known_prefix(two, "0.layer4")) == (1, None)
    network = vit()
    assert heads(nn.DataParallel(network)) == (network.head,)
    headless = nn.Sequential(network, nn.ReLU(), nn.Linear(3, 2))
    assert heads(headless) == (headless[2],)


class ClassToken(nn.Module):
    """A transformer of nobody's family: the head reads the class token behind the last norm."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.scores = nn.Softmax(-1)
        self.mlp, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patches(image).flatten(2).mT
        x = torch.cat([patches.new_ones(len(image), 1, 8), patches], 1)
        y = self.norm1(x)
        q, k, v = self.q(y), self.k(y), self.v(y)
        x = x + self.scores(q @ k.mT) @ v
        x = self.norm2(x + self.mlp(x))
        out: Tensor = self.head(x[:, 0])
        return out


class Windows(nn.Module):
    """Features, then windows of them in the batch dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inside, self.head = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 1), nn.Linear(8, 3)
        self.twice = nn.ReLU()

    def forward(self, image: Tensor) -> Tensor:
        x = self.twice(self.stem(image))
        windows = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        y = self.twice(self.inside(windows)).mean((2, 3)).unflatten(0, (len(image), -1)).mean(1)
        out: Tensor = self.head(y)
        return out


class Busy(nn.Module):
    """A backbone with an attention gate, another task's decoder, and heads x tokens, all behind its last features."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 8, 4, 4)
        self.gate = nn.Conv2d(8, 1, 1)
        self.split, self.decoder, self.head = nn.Unflatten(1, (2, 4)), nn.Conv2d(8, 5, 1), nn.Linear(8, 3)
        self.heads = nn.Tanh()
        self.unused = nn.Conv2d(3, 8, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.features(image)
        x = x * self.gate(x).sigmoid()
        y = self.heads(self.split(x).flatten(3).mT)  # (B,2,64,4)
        out = self.head(y.mean(2).flatten(1))
        return out, self.decoder(x)


def test_a_layer_is_chosen_only_if_a_gradient_reaches_its_grid_of_every_image() -> None:
    torch.manual_seed(0)
    for network, layer in ((ClassToken(), "norm1"), (Windows(), "stem"), (Busy(), "features")):
        classifier = Classifier(network, input_size=32)
        assert classifier.target_layers == (layer,)
        GradCAM().check(classifier)
        assert sum(len(module._forward_hooks) for module in network.modules()) == 0


SENTENCES = [  # network, layer, whether a gradient is needed, what is said
    (ClassToken, "norm2", True, r"Layer 'norm2' gets no gradient .* Use 'norm1' instead"),
    (ClassToken, "head", False, r"Layer 'head' outputs the shape \(2, 3\), which is no grid"),
    (Windows, "inside", False, r"Layer 'inside' outputs .* for 2 images: its batch dimension is not .* Use 'stem'"),
    (Windows, "twice", False, r"Layer 'twice' was called 2 times in one forward pass.* Use 'stem' instead"),
    (Busy, "unused", False, r"Layer 'unused' was not called in the network's forward pass.* Use 'features' instead"),
    (Busy, "heads", True, r"Layer 'heads' outputs the shape \(2, 2, 64, 4\), which is no grid"),
    (Busy, "decoder", True, r"Layer 'decoder' gets no gradient of a score .* Use 'features' instead"),
    (Busy, "decoders", True, r"Unknown layer 'decoders' of Busy. The nearest are: 'decoder'"),
]


@pytest.mark.parametrize(("make", "layer", "gradient", "words"), SENTENCES, ids=[case[1] for case in SENTENCES])
def test_a_named_layer_that_would_not_do_is_told_before_a_run(
    make: type[nn.Module], layer: str, gradient: bool, words: str
) -> None:
    torch.manual_seed(0)
    classifier = Classifier(make(), input_size=32)
    for explainer in (GradCAM(layer), *(() if gradient else (EigenCAM(layer), OptiCAM(layer), ScoreCAM(layer)))):
        with pytest.raises(ValueError, match=words):
            explainer.check(classifier)
    if gradient and "no gradient" in words:
        OptiCAM(layer).check(classifier)  # needs the features alone


def test_an_unknown_layer_is_told_when_a_run_is_set_up() -> None:
    with pytest.raises(ValueError, match="Unknown layer 'feature' of Busy. The nearest are: 'features'"):
        optcam_pl.evaluate(Classifier(Busy(), input_size=32), GradCAM("feature"), IMAGE)


def test_what_is_recorded_is_checked_in_every_call() -> None:
    torch.manual_seed(0)
    busy, windows = Classifier(Busy(), input_size=32), Classifier(Windows(), input_size=32)
    for kind in (GradCAM, EigenCAM, OptiCAM):
        with pytest.raises(LayerNotCalledError, match="Layer 'unused' was not called"):
            kind(["features", "unused"])(busy, IMAGE)
        with pytest.raises(LayerError, match="'twice' to be called once .* called 2 times"):
            kind("twice")(windows, IMAGE)
        with pytest.raises(
            LayerError, match=r"'inside' to output .* each of 2 images, but got the shape \(8, 8, 4, 4\)"
        ):
            kind("inside")(windows, IMAGE)
    with pytest.raises(LayerError, match="one activation for one image"):
        AblationCAM("inside")(windows, IMAGE)
    with pytest.raises(ValueError, match=r"may be heads x tokens. Choose another layer, or give `layout"):
        GradCAM("heads")(busy, IMAGE)


@pytest.mark.parametrize("kind", ["no_grad", "zero head"])
def test_where_no_gradient_goes_anywhere_the_last_grid_is_taken(kind: str) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    if kind == "no_grad":
        network[1].forward = torch.no_grad()(network[1].forward)  # type: ignore[method-assign]
        network[4].forward = torch.no_grad()(network[4].forward)  # type: ignore[method-assign]
    else:
        nn.init.zeros_(network[4].weight)
    assert Classifier(network, input_size=16).target_layers == ("1",)


def test_a_network_that_takes_one_image_at_a_time_has_a_layer() -> None:
    class One(Mine):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image.view(1, 3, 16, 16))

    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert Classifier(One(inner), input_size=16).target_layers == ("backbone.0",)


def test_choosing_a_layer_in_training_leaves_the_running_means_alone() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    classifier = Classifier(network, input_size=16)
    network.train()
    assert classifier.target_layers == ("1",)
    assert not network[1].running_mean.any()
    assert all(module.training for module in network.modules())


def test_a_windowed_transformer_keeps_its_layer() -> None:
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 8}
    network = lively(SwinTransformer(**sizes, depths=(2, 2), num_heads=(1, 2), num_classes=3))
    classifier = Classifier(Mine(network), input_size=32)
    assert classifier.target_layers == ("backbone.norm",)
    with pytest.raises(
        ValueError, match="'backbone.layers.0.blocks.0.attn' outputs .*batch dimension is not the images'"
    ):
        GradCAM("backbone.layers.0.blocks.0.attn").check(classifier)


@pytest.fixture(scope="module")
def sweep() -> ModuleType:
    path = Path(__file__).parents[2] / "docs" / "make_networks.py"
    spec = importlib.util.spec_from_file_location("make_networks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


SOME = ["timm/efficientvim_m1", "timm/mobilevit_xxs", "timm/pit_ti_224", "timm/coat_lite_tiny", "transformers/Pvt"]
SOME += ["transformers/Cvt", "transformers/CLIP", "transformers/Swin", "transformers/Dinov2WithRegisters"]


@pytest.mark.parametrize("network", SOME)
def test_some_of_the_sweep(sweep: ModuleType, network: str) -> None:
    source, _, name = network.partition("/")
    if source == "transformers":
        pytest.importorskip("transformers")
    elif not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} does not have it")
    row = sweep.try_network(network)
    assert row.right, row


def test_the_page_is_what_the_script_writes(sweep: ModuleType) -> None:
    names = [*(f"timm/{name}" for name in sweep.TIMM), *(f"transformers/{name}" for name in sweep.TRANSFORMERS)]
    text = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
    assert [line.split()[1] for line in text.splitlines() if line.startswith(("| timm/", "| transformers/"))] == names
    assert len(sweep.TIMM) >= 150
    row = sweep.Row("timm/x", "96", "a", "3 x 3", True, True, False, False, "b|c")
    assert sweep.page([row]).splitlines()[-1] == "| timm/x | 96 | `a` | 3 x 3 | yes | yes | no | no | b/c |"
