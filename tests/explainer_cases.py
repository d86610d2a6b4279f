"""What the tests of the explainers share: networks (stored and tiny), correlation, and a guard against traces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optcam_pl.network.classifier import Classifier

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
VIT_LAYER = "blocks.3.norm1"
on_both = pytest.mark.parametrize("images", ["made", "photographs"])


def stored_case(
    golden: Callable[..., Path], which: str, layer: str | list[str], images: str = "photographs"
) -> tuple[Classifier, Tensor, Tensor]:
    """The network "cnn" or "vit" of the reference values, four images (4,3,64,64) and targets.

    The `images` are "photographs", or "made": drawn by formulas, and part of the project.
    """
    classifier = stored_network(golden, which, layer)
    with np.load(golden("made_inputs.npz" if images == "made" else "inputs.npz")) as stored:
        target = stored[f"{which}_target" if images == "made" else "target"]
        return classifier, torch.from_numpy(stored["pixels_u8"]).float() / 255, torch.from_numpy(target)


def made_case(golden: Callable[..., Path], which: str, layer: str | list[str]) -> tuple[Classifier, Tensor, Tensor]:
    """The network with the four drawn images, for programs that the test runs itself."""
    return stored_case(golden, which, layer, "made")


def reference(golden: Callable[..., Path], name: str, images: str) -> dict[str, Tensor]:
    """What another program computed on the images of `stored_case`: all arrays of the file `name`.npz."""
    return stored_values(golden(f"made_{name}.npz") if images == "made" else golden(f"{name}.npz", photographs=True))


def stored_network(golden: Callable[..., Path], which: str, layer: str | list[str]) -> Classifier:
    """The network "cnn" or "vit" of the reference values."""
    from timm.models.resnet import BasicBlock, ResNet
    from timm.models.vision_transformer import VisionTransformer

    network: nn.Module
    if which == "cnn":
        network = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=10, channels=(16, 24, 32, 48), output_stride=8)
    else:
        network = VisionTransformer(img_size=64, patch_size=8, embed_dim=48, depth=4, num_heads=3, num_classes=10)
    with np.load(golden("models.npz")) as stored:
        keys = [key for key in stored.files if key.startswith(f"{which}.")]
        network.load_state_dict({key.removeprefix(f"{which}."): torch.from_numpy(stored[key]) for key in keys})
    return Classifier(network, target_layer=layer, mean=MEAN, std=STD, input_size=64)


def stored_values(path: Path) -> dict[str, Tensor]:
    """All arrays of a reference file."""
    with np.load(path) as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files}


def correlation(ours: Tensor, theirs: Tensor) -> Tensor:
    """Pearson's, one value an image."""
    a, b = (maps.detach().double().flatten(1) for maps in (ours, theirs))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def enlarged(raw: Tensor, size: int = 64) -> Tensor:
    """Maps (B,h,w) of a program that does not upsample, upsampled as ours are: (B,1,H,W)."""
    return F.interpolate(raw.unsqueeze(1), size=size, mode="bilinear", align_corners=False)


def aligned_upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """The upsampling of programs that align corners."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)


def tiny_cnn(channels: int = 6, classes: int = 5, size: int = 16) -> Classifier:
    """Conv, batch norm, ReLU, twice; average pooling; a linear layer."""
    network = nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1, stride=2),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels + 1, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels + 1, classes),
    )
    for module in network:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return Classifier(network, target_layer="4", mean=MEAN, std=STD, input_size=size)


def tiny_vgg(size: int = 16) -> Classifier:
    """Shaped like a VGG: the features are flattened in front of the head, not averaged."""
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(6 * (size // 4) ** 2, 5)
    )
    return Classifier(network, target_layer="1", input_size=size)


def tiny_vit(classes: int = 5, size: int = 16) -> Classifier:
    """Two blocks, a class token; layer norms with weights, or their outputs would add up to 0 at every token."""
    from timm.models.vision_transformer import VisionTransformer

    network = VisionTransformer(
        img_size=size, patch_size=4, embed_dim=12, depth=2, num_heads=2, num_classes=classes, dynamic_img_size=True
    )
    nn.init.normal_(network.head.weight, std=0.5)
    nn.init.uniform_(network.blocks[1].norm1.weight, 0.5, 1.5)
    nn.init.normal_(network.blocks[1].norm1.bias, std=0.5)
    return Classifier(network, target_layer="blocks.1.norm1", mean=MEAN, std=STD, input_size=size)


@contextmanager
def leaves_no_trace(classifier: Classifier) -> Iterator[None]:
    """Fails where hooks, gradients, modes, `requires_grad` or attributes of a module differ afterwards."""
    before = _state(classifier)
    try:
        yield
    finally:
        assert _state(classifier) == before


def _state(classifier: Classifier) -> list[object]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    state: list[object] = [torch.is_grad_enabled()]
    for name, module in classifier.named_modules():
        attributes = sorted(key for key in vars(module) if key not in ("_layers", "_classes", "_hash"))
        state.append((name, module.training, attributes, [list(getattr(module, hook)) for hook in hooks]))
    state += [(n, p.requires_grad, p.grad is None, p._version) for n, p in classifier.named_parameters()]
    return state + [(name, buffer._version) for name, buffer in classifier.named_buffers()]
