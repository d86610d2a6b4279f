from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from optcam_pl.imagenet import imagenet_names
from optcam_pl.network.capture import capture
from optcam_pl.network.classifier import Classifier
from optcam_pl.network.layers import family_candidates, token_grid


class Patches(nn.Module):
    """A tiny transformer's skeleton: mean color of 8 x 8 patches as tokens, behind `prefix` others of value -1."""

    def __init__(self, prefix: int = 0, channels: int = 3) -> None:
        super().__init__()
        self.prefix = prefix
        self.tokens = nn.Flatten(2)
        self.block = nn.Linear(channels, channels)
        self.head = nn.Linear(channels, 4)
        with torch.no_grad():
            self.block.weight.copy_(torch.eye(channels))
            self.block.bias.zero_()

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.tokens(F.avg_pool2d(image, 8)).transpose(1, 2)
        extra = -torch.ones(len(image), self.prefix, tokens.shape[2])
        out: Tensor = self.head(self.block(torch.cat([extra, tokens], 1)).mean(1))
        return out


def small(width: int = 4, classes: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    )


def activation(classifier: Classifier, size: tuple[int, int], name: str | None = None) -> tuple[Tensor, Tensor]:
    """The raw activation of a layer for one image, and its grid."""
    name = name or classifier.target_layers[0]
    with torch.no_grad(), capture({name: classifier.layer(name)}) as record:
        classifier(torch.rand(1, 3, *size))
    return record[name], classifier.to_grid(record[name], size, name)


def hook_count(module: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(part, kind)) for part in module.modules() for kind in kinds)


FAMILIES = [  # network, image side, its default layer, (K,h,w)
    ("torchvision/alexnet", 64, "features.11", (256, 3, 3)),
    ("torchvision/convnext_tiny", 64, "features.7", (768, 2, 2)),
    ("torchvision/densenet121", 64, "features.norm5", (1024, 2, 2)),
    ("torchvision/efficientnet_b0", 64, "features.8", (1280, 2, 2)),
    ("torchvision/googlenet", 64, "inception5b", (1024, 2, 2)),
    ("torchvision/inception_v3", 107, "Mixed_7c", (2048, 2, 2)),
    ("torchvision/maxvit_t", 224, "blocks.3", (512, 7, 7)),
    ("torchvision/mnasnet0_5", 64, "layers.16", (1280, 2, 2)),
    ("torchvision/mobilenet_v2", 64, "features.18", (1280, 2, 2)),
    ("torchvision/mobilenet_v3_small", 64, "features.12", (576, 2, 2)),
    ("torchvision/regnet_y_400mf", 64, "trunk_output.block4", (440, 2, 2)),
    ("torchvision/resnet18", 64, "layer4.1", (512, 2, 2)),
    ("torchvision/resnet50", 64, "layer4.2", (2048, 2, 2)),
    ("torchvision/shufflenet_v2_x0_5", 64, "conv5", (1024, 2, 2)),
    ("torchvision/squeezenet1_1", 64, "features.12", (512, 3, 3)),
    ("torchvision/swin_t", 64, "norm", (768, 2, 2)),
    ("torchvision/vgg16_bn", 64, "features.42", (512, 4, 4)),
    ("torchvision/vit_b_16", 224, "encoder.layers.encoder_layer_11.ln_1", (768, 14, 14)),
    ("timm/cait_xxs24_224", 224, "blocks.23", (192, 14, 14)),
    ("timm/coat_tiny", 224, None, None),
    ("timm/convit_tiny", 224, "blocks.11.norm1", (192, 14, 14)),
    ("timm/convnext_atto", 64, "stages.3", (320, 2, 2)),
    ("timm/deit_tiny_distilled_patch16_224", 224, "blocks.11.norm1", (192, 14, 14)),
    ("timm/deit_tiny_patch16_224", 224, "blocks.11.norm1", (192, 14, 14)),
    ("timm/densenet121", 64, "features.norm5", (1024, 2, 2)),
    ("timm/hrnet_w18_small", 64, "final_layer", (2048, 2, 2)),
    ("timm/inception_v3", 107, "Mixed_7c", (2048, 2, 2)),
    ("timm/mobilenetv2_035", 64, "bn2", (1280, 2, 2)),
    ("timm/mobilenetv3_small_050", 64, "blocks.5", (288, 2, 2)),
    ("timm/regnetx_002", 64, "s4", (368, 2, 2)),
    ("timm/resnet18.a1_in1k", 64, "layer4.1", (512, 2, 2)),
    ("timm/sequencer2d_s", 224, "stages.3", (384, 16, 16)),
    ("timm/swin_tiny_patch4_window7_224", 224, "norm", (768, 7, 7)),
    ("timm/swinv2_tiny_window8_256", 256, "norm", (768, 8, 8)),
    ("timm/tf_efficientnet_lite0", 64, "bn2", (1280, 2, 2)),
    ("timm/tnt_s_legacy_patch16_224", 224, "blocks.11.norm_out", (384, 14, 14)),
    ("timm/vit_wee_patch16_reg1_gap_256", 256, "blocks.13.norm1", (256, 16, 16)),
    ("timm/xcit_nano_12_p16_224", 224, "blocks.11", (128, 14, 14)),
]


@pytest.mark.parametrize(("network", "side", "layer", "shape"), FAMILIES, ids=[family[0] for family in FAMILIES])
def test_default_layer_of_every_family_is_a_spatial_grid(
    network: str, side: int, layer: str | None, shape: tuple[int, int, int] | None
) -> None:
    source, _, name = network.partition("/")
    if source == "timm" and not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} does not have it")
    classifier = Classifier(network, weights=None, input_size=side)
    raw, grid = activation(classifier, (side, side))
    assert grid.shape[1:] == (shape or grid.shape[1:])
    assert grid.shape[2] == grid.shape[3] > 1
    assert classifier.target_layers == ((layer,) if layer else classifier.target_layers)
    assert grid.untyped_storage().data_ptr() == raw.untyped_storage().data_ptr()  # a view, no copy
    assert classifier.num_classes == 1000
    assert classifier.class_names == imagenet_names()
    assert hook_count(classifier) == 0


def test_the_paper_s_layers_need_no_setting() -> None:
    expected = {
        "torchvision/resnet50": "layer4.2",
        "timm/resnet50": "layer4.2",
        "torchvision/vgg16_bn": "features.42",
        "timm/vgg16_bn": "features.42",
        "timm/deit_base_patch16_224": "blocks.11.norm1",
    }
    for network, layer in expected.items():
        assert Classifier(network, weights=None).target_layers == (layer,)


def test_a_network_of_features_alone_needs_a_number_of_classes() -> None:
    with pytest.raises(ValueError, match=r"puts out features, not classes. Give `num_classes`"):
        Classifier("timm/eva02_tiny_patch14_224", weights=None)
    classifier = Classifier("timm/eva02_tiny_patch14_224", weights=None, num_classes=3)
    assert (classifier.num_classes, classifier.class_names) == (3, None)
    assert classifier.target_layers == ("blocks.11.norm1",)
    assert activation(classifier, (224, 224))[1].shape[1:] == (192, 16, 16)


def test_a_layer_that_had_another_name_in_an_earlier_version_is_found() -> None:
    made = type("SegformerForSemanticSegmentation", (nn.Module,), {"__module__": "transformers.models.segformer"})
    network = made()
    norms = nn.ModuleList([nn.LayerNorm(4), nn.LayerNorm(8)])
    network.segformer = nn.ModuleDict({"encoder": nn.ModuleDict({"layer_norm": norms})})
    assert family_candidates(network) == ["segformer.encoder.layer_norm.1"]


def test_a_module_of_a_known_family_gets_its_default_layer_without_a_pass() -> None:
    network = timm.models.resnet.ResNet(timm.models.resnet.BasicBlock, (1, 1, 1, 1), channels=(4, 4, 4, 8))
    network.forward = None  # type: ignore[method-assign]
    assert Classifier(network).target_layers == ("layer4.0",)


def test_an_unknown_module_is_explained_at_its_last_grid_in_execution_order() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.Conv2d(4, 5, 3)
            self.first = nn.Conv2d(3, 4, 3)
            self.twice = nn.ReLU()
            self.head = nn.Linear(5, 2)

        def forward(self, image: Tensor) -> Tensor:
            out: Tensor = self.head(self.twice(self.second(self.twice(self.first(image)))).mean((2, 3)))
            return out

    classifier = Classifier(Backwards(), input_size=16)
    assert classifier.target_layers == ("second",)
    assert (classifier.num_classes, classifier.prefix_tokens) == (2, 0)
    assert hook_count(classifier) == 0


def test_an_unknown_module_is_asked_only_when_needed_and_a_failing_pass_leaves_no_hook() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 1)

        def forward(self, image: Tensor) -> Tensor:
            self.layer(image)
            raise RuntimeError("broken")

    classifier = Classifier(Broken(), input_size=(8, 16))
    with pytest.raises(
        RuntimeError, match=r"fails on a black image of 8 x 16 pixels \(RuntimeError: broken\).*`input_size`"
    ):
        _ = classifier.target_layers
    assert hook_count(classifier) == 0


def test_a_network_without_grid_works_until_a_layer_is_asked_for() -> None:
    class PixelSum(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.sum((2, 3))

    classifier = Classifier(PixelSum(), input_size=2)
    torch.testing.assert_close(classifier(torch.ones(1, 3, 2, 2)), torch.full((1, 3), 4.0), rtol=0, atol=0)
    assert (classifier.num_classes, classifier.prefix_tokens) == (3, 0)
    assert classifier.describe()["layer"] == []
    with pytest.raises(ValueError, match=r"Found no layer of PixelSum .* Name one with `target_layer`"):
        _ = classifier.target_layers


def test_layers_are_found_by_dotted_bracketed_and_negative_names() -> None:
    classifier = Classifier("torchvision/resnet18", weights=None, target_layer=["layer3", "layer4[-1].conv2"])
    assert classifier.target_layers == ("layer3", "layer4.1.conv2")
    for name in ("layer4.-1", "layer4[-1]", "layer4.1", "layer4[1]"):
        assert classifier.layer(name) is classifier.network.layer4[1]


def test_a_layer_that_stands_in_two_places_has_both_names() -> None:
    network = small()
    network.add_module("again", network[0])
    assert Classifier(network).layer("again") is Classifier(network).layer("0") is network[0]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("layer5", r"Unknown layer 'layer5' of ResNet. The nearest are: 'layer\d'"),
        ("layer4.-3", "Unknown layer 'layer4.-3' .*'layer4.1'"),
        ("", "Unknown layer ''"),
        ([], "name one layer or several different ones"),
        (["layer4.1", "layer4.-1"], "name one layer or several different ones"),
    ],
)
def test_an_unknown_layer_is_refused_with_the_nearest_names(layer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classifier("torchvision/resnet18", weights=None, target_layer=layer)


def test_a_layer_that_is_no_string_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="Expected a layer's name or module, but got int"):
        Classifier(small(), target_layer=[3])  # type: ignore[list-item]


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (32, 80)])
def test_patch_i_j_lands_at_i_j(prefix: int, size: tuple[int, int]) -> None:
    classifier = Classifier(Patches(prefix), target_layer="block", input_size=size)
    image = torch.rand(2, 3, *size)
    with capture({"block": classifier.layer("block")}) as record:
        classifier(image)
    grid = classifier.to_grid(record["block"], size, "block")
    torch.testing.assert_close(grid, F.avg_pool2d(image, 8))
    assert classifier.prefix_tokens == prefix


@pytest.mark.parametrize(
    ("network", "layer", "side", "patch"),
    [
        ("timm/deit_tiny_patch16_224", "blocks.0.norm1", 224, 16),
        ("timm/deit_tiny_distilled_patch16_224", "blocks.0.norm1", 224, 16),
        ("timm/vit_wee_patch16_reg1_gap_256", "blocks.0.norm1", 256, 16),
        ("timm/vit_wee_patch16_reg1_gap_256", "patch_embed", 256, 16),  # before class and register tokens
        ("torchvision/vit_b_16", "encoder.layers.0.ln_1", 224, 16),
        ("torchvision/swin_t", "features.0", 64, 4),  # (B,h,w,K)
        ("torchvision/swin_t", "features.0.0", 64, 4),  # (B,K,h,w) in the same network
        ("timm/swin_tiny_patch4_window7_224", "patch_embed", 224, 4),
    ],
)
def test_a_changed_patch_changes_its_own_cell_alone(network: str, layer: str, side: int, patch: int) -> None:
    classifier = Classifier(network, weights=None, target_layer=layer.replace("layers.0", "layers.encoder_layer_0"))
    image = torch.rand(1, 3, side, side)
    changed = image.clone()
    changed[..., 2 * patch : 3 * patch, 5 * patch : 6 * patch] = 0
    grids = []
    for x in (image, changed):
        with torch.no_grad(), capture({"it": classifier.layer(classifier.target_layers[0])}) as record:
            classifier(x)
        grids.append(classifier.to_grid(record["it"], (side, side), layer))
    difference = (grids[0] - grids[1]).abs().amax(1)[0] > 1e-6
    assert difference.shape == (side // patch, side // patch)
    assert difference.nonzero().tolist() == [[2, 5]]


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("timm/deit_tiny_distilled_patch16_224", 2),
        ("timm/vit_wee_patch16_reg1_gap_256", 1),
        ("torchvision/vit_b_16", 1),
        ("torchvision/squeezenet1_1", 0),
    ],
)
def test_prefix_tokens_counts_class_distillation_and_register_tokens(network: str, expected: int) -> None:
    assert Classifier(network, weights=None, input_size=None).prefix_tokens == expected


def test_grids_are_differentiable() -> None:
    tokens = torch.rand(1, 5, 2, requires_grad=True)
    Classifier(Patches()).to_grid(tokens, (8, 8), "block")[..., 1, 0].sum().backward()
    assert tokens.grad is not None
    assert tokens.grad[0].tolist() == [[0, 0], [0, 0], [0, 0], [1, 1], [0, 0]]


def test_an_ambiguous_shape_is_decided_by_the_family_and_the_layout() -> None:
    cube = torch.rand(1, 8, 8, 8)
    swin = Classifier(torchvision.models.SwinTransformer([4, 4], 24, [2], [1], [7, 7], num_classes=2))
    assert torch.equal(swin.to_grid(cube, (64, 64), "norm"), cube.permute(0, 3, 1, 2))
    assert torch.equal(Classifier(small()).to_grid(cube, (64, 64), "0"), cube)
    last = Classifier(small(), layout="channels_last")
    assert torch.equal(last.to_grid(cube, (64, 64), "0"), cube.permute(0, 3, 1, 2))


def test_channels_last_is_seen_by_its_shape_in_any_network() -> None:
    classifier = Classifier(small())
    assert classifier.to_grid(torch.rand(2, 4, 6, 16), (64, 96), "x").shape == (2, 16, 4, 6)
    assert classifier.to_grid(torch.rand(2, 16, 4, 6), (64, 96), "x").shape == (2, 16, 4, 6)
    assert classifier.to_grid(torch.rand(2, 16, 7, 10), (224, 313), "x").shape == (2, 16, 7, 10)  # rounded strides


def test_what_has_no_grid_is_refused() -> None:
    classifier = Classifier(small())
    with pytest.raises(ValueError, match=r"Expected 'fc' to output feature maps .* got the shape \(1, 10\)"):
        classifier.to_grid(torch.rand(1, 10), (64, 64), "fc")
    with pytest.raises(ValueError, match="Expected the 61 tokens of 'text' to be a grid shaped like the 64 x 64 image"):
        classifier.to_grid(torch.rand(1, 61, 4), (64, 64), "text")
    with pytest.raises(ValueError, match="with layout 'tokens'"):
        Classifier(small(), layout="tokens").to_grid(torch.rand(1, 4, 8, 8), (64, 64), "0")


def test_the_known_prefix_yields_to_an_exact_grid() -> None:
    assert token_grid(196, (224, 224), 1) == (0, 14, 14)
    assert token_grid(5, (64, 64), 4) == (4, 1, 1)
    assert token_grid(61, (64, 64), None) is None
    assert token_grid(0, (64, 64), None) is None


@pytest.mark.parametrize("patch", [8, 14, 16])
def test_a_known_prefix_leaves_no_doubt_about_the_grid_of_an_image_that_is_no_multiple_of_the_patch(patch: int) -> None:
    for height, width in ((96, 144), (192, 96), (106, 144), (100, 190), (224, 300)):
        h, w = height // patch, width // patch
        for prefix in (1, 5):
            assert token_grid(h * w + prefix, (height, width), prefix) == (prefix, h, w)
        assert token_grid(h * w, (height, width), 1) == (0, h, w)  # a layer before the class token
