"""Where a network's feature maps are and how they lie in memory: default layers, layers by name, token grids.

Shape letters: B images, K channels (D in a transformer), h x w feature grid, H x W image, N tokens.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from optcam_pl.threads import hook_output

Layout: TypeAlias = Literal["auto", "channels_first", "channels_last", "tokens"]

# (source, class) -> the layer to explain; a negative index counts from a container's end. Networks with a class token
# are taken at the input of their last attention, as no gradient reaches the patches behind it.
DEFAULT_LAYERS: dict[tuple[str, str], str] = {
    ("torchvision", "AlexNet"): "features.-2",  # the ReLU before the last pool
    ("torchvision", "ConvNeXt"): "features.-1",
    ("torchvision", "DenseNet"): "features.norm5",
    ("torchvision", "EfficientNet"): "features.-1",
    ("torchvision", "GoogLeNet"): "inception5b",
    ("torchvision", "Inception3"): "Mixed_7c",
    ("torchvision", "MaxVit"): "blocks.-1",
    ("torchvision", "MNASNet"): "layers.-1",
    ("torchvision", "MobileNetV2"): "features.-1",
    ("torchvision", "MobileNetV3"): "features.-1",
    ("torchvision", "RegNet"): "trunk_output.-1",
    ("torchvision", "ResNet"): "layer4.-1",
    ("torchvision", "ShuffleNetV2"): "conv5",
    ("torchvision", "SqueezeNet"): "features.-1",
    ("torchvision", "SwinTransformer"): "norm",
    ("torchvision", "VGG"): "features.-2",  # the ReLU before the last pool
    ("torchvision", "VisionTransformer"): "encoder.layers.-1.ln_1",
    ("transformers", "SwinForImageClassification"): "swin.layernorm",
    ("transformers", "Swinv2ForImageClassification"): "swinv2.layernorm",
    ("timm", "Beit"): "blocks.-1.norm1",
    ("timm", "ConvNeXt"): "stages.-1",
    ("timm", "ConVit"): "blocks.-1.norm1",
    ("timm", "DenseNet"): "features.norm5",
    ("timm", "EfficientNet"): "bn2",
    ("timm", "Eva"): "blocks.-1.norm1",
    ("timm", "HighResolutionNet"): "final_layer",
    ("timm", "MobileNetV3"): "blocks.-1",
    ("timm", "ResNet"): "layer4.-1",
    ("timm", "SwinTransformer"): "norm",
    ("timm", "SwinTransformerV2"): "norm",
    ("timm", "TNT"): "blocks.-1.norm_out",
    ("timm", "VGG"): "features.-2",  # the ReLU before the last pool
    ("timm", "VisionTransformer"): "blocks.-1.norm1",
    ("timm", "VisionTransformerRelPos"): "blocks.-1.norm1",
}
# Families whose 4-D activations are (B,h,w,K); asked only where the shape alone fits both ways.
_CHANNELS_LAST = {("torchvision", "SwinTransformer"), ("timm", "SwinTransformer"), ("timm", "SwinTransformerV2")}
_MAX_PREFIX = 8  # class, distillation and register tokens together: DINOv2 with registers has 5


class TracedLayer(NamedTuple):
    """What one module put out in a traced pass."""

    name: str
    shape: tuple[int, ...]


def families(network: nn.Module) -> list[tuple[str, str]]:
    """(source, class) of a network, most derived class first: how the tables of this module are asked."""
    return [(cls.__module__.partition(".")[0], cls.__name__) for cls in type(network).__mro__]


def nearest(name: str, known: Iterable[str], count: int = 5) -> str:
    """The known names most like `name`, as words for an error message.

    Example:
        >>> nearest("layer4.7", ["layer3.0", "layer4.0", "layer4.1", "fc"], count=2)
        "'layer4.1', 'layer4.0'"
    """
    known = list(known)
    return ", ".join(repr(match) for match in difflib.get_close_matches(name, known, count, 0.3) or known[:count])


def canonical_name(network: nn.Module, name: str) -> str:
    """The dotted name of a layer, with negative and bracketed indices resolved.

    Args:
        network: where the layer is.
        name: `layer4.2.conv1`, `layer4.-1` or `layer4[-1]`.

    Raises:
        TypeError: the name is no string.
        ValueError: there is no such layer; the message lists the nearest names.

    Example:
        >>> canonical_name(nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), nn.Tanh())), "1[-1]")
        '1.1'
    """
    if not isinstance(name, str):
        raise TypeError(f"Expected a layer's name, but got {type(name).__name__}.")
    parts: list[str] = []
    module = network
    for part in re.sub(r"\[(-?\d+)\]", r".\1", name).split("."):
        # Not named_children(), which lists a module that stands in two places once.
        children = {key: child for key, child in module._modules.items() if child is not None}
        index = int(part) if re.fullmatch(r"-\d+", part) else 0
        resolved = list(children)[index] if -len(children) <= index < 0 else part
        if resolved not in children:
            names = [known for known, _ in network.named_modules() if known]
            raise ValueError(
                f"Unknown layer {name!r} of {type(network).__name__}. The nearest are: {nearest(name, names)}."
            )
        parts.append(resolved)
        module = children[resolved]
    return ".".join(parts)


def family_layer(network: nn.Module) -> str | None:
    """The default layer by the network's family, else by timm's `feature_info`; None where neither knows."""
    candidates = [DEFAULT_LAYERS[family] for family in families(network) if family in DEFAULT_LAYERS]
    if any(source == "timm" for source, _ in families(network)):
        info: Any = getattr(network, "feature_info", None)
        candidates += [info[-1]["module"]] if info else []
    if any(source == "transformers" for source, _ in families(network)):
        # Where the blocks are differs between its versions; what a block's first norm is called does not.
        norms = [name for name, _ in network.named_modules() if name.endswith((".layernorm_before", ".norm1"))]
        candidates += norms[-1:]
    for candidate in candidates:
        try:
            name = canonical_name(network, candidate)
        except ValueError:  # a variant of the family that is built otherwise: ask the next
            continue
        if not isinstance(network.get_submodule(name), (nn.ModuleList, nn.ModuleDict)):  # those are never called
            return name
    return None


def heads(network: nn.Module) -> tuple[nn.Module, ...]:
    """The layers that put out the logits: what timm's networks say (two in a distilled one), else the last linear or
    convolutional layer.

    Raises:
        ValueError: the network has no such layer.

    Example:
        >>> [head.out_features for head in heads(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))]
        [2]
    """
    if any(source == "timm" for source, _ in families(network)):
        stated: Any = network
        found = stated.get_classifier()
        return tuple(found) if isinstance(found, (tuple, list)) else (found,)
    last = [module for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1:]
    if not last:
        raise ValueError(f"Found no head in {type(network).__name__}: it has no linear or convolutional layer.")
    return tuple(last)


def trace(network: nn.Module, run: Callable[[], object]) -> list[TracedLayer]:
    """Run once and list the modules in the order in which they finish, with the shapes that they put out.

    Modules that are called several times are left out (their name means no single activation), and so are those that
    only hand on what they get. The hooks are gone on return, also after an exception; other
    threads' passes are not listed.

    Args:
        network: its modules are listed, by their names in it.
        run: called without arguments; has to run the network once.
    """
    calls: dict[str, list[tuple[int, ...]]] = {}
    order: list[str] = []

    def record(name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        output = output[0] if isinstance(output, (tuple, list)) and output else output
        if isinstance(output, Tensor):
            order.append(name)
            calls.setdefault(name, []).append(tuple(output.shape))

    with ExitStack() as stack:
        for name, module in network.named_modules():
            if name and not isinstance(module, (nn.Identity, nn.Dropout)):
                stack.callback(hook_output(module, functools.partial(record, name)))
        run()
    return [TracedLayer(name, calls[name][0]) for name in order if len(calls[name]) == 1]


def last_spatial(network: nn.Module, traced: list[TracedLayer], image_size: tuple[int, int]) -> str | None:
    """The name of the last module that put out a grid of more than one cell, or tokens that lie on one."""
    for name, shape in reversed(traced):
        grid: tuple[int, ...] = (1,)
        if len(shape) == 4:
            grid = shape[1:3] if _is_channels_last(shape, image_size, network) else shape[2:]
        elif len(shape) == 3:
            grid = (token_grid(shape[1], image_size, None) or (0, 1, 1))[1:]
        if math.prod(grid) > 1:
            return name
    return None


def known_prefix(network: nn.Module) -> int | None:
    """How many class, distillation and register tokens stand before the patches; None where the family is unknown."""
    for family in families(network):
        if family == ("torchvision", "VisionTransformer"):
            return 1
        if family[0] == "timm":
            count = getattr(network, "num_prefix_tokens", None)  # timm's own attribute of every token network
            return None if count is None else int(count)
    return None


@functools.lru_cache(maxsize=256)
def token_grid(tokens: int, image_size: tuple[int, int], prefix: int | None) -> tuple[int, int, int] | None:
    """How N tokens lie on the image: (prefix, h, w) with N = prefix + h * w.

    The grid has the image's aspect ratio: exactly, or, for images that are not square, to one cell. The known prefix is
    tried before the smallest that fits, as a layer before the class token has none.

    Args:
        tokens: N.
        image_size: (H,W).
        prefix: the expected number of tokens that are no patches; None if unknown.

    Returns:
        None if no grid with at most 8 prefix tokens fits.

    Example:
        >>> token_grid(197, (224, 224), None), token_grid(198, (224, 224), 2), token_grid(99, (224, 112), 1)
        ((1, 14, 14), (2, 14, 14), (1, 14, 7))
    """
    prefixes = [*([] if prefix is None else [prefix]), *range(_MAX_PREFIX + 1)]
    for slack in (0, 1):
        for count in prefixes:
            shape = _grid_of(tokens - count, image_size, slack)
            if shape is not None:
                return (count, *shape)
    return None


def _grid_of(cells: int, image_size: tuple[int, int], slack: int) -> tuple[int, int] | None:
    """The (h,w) with h * w cells and the image's shape, to `slack` cells; None if there is none."""
    if cells < 1:
        return None
    height, width = image_size
    shapes = [(h, cells // h) for h in range(1, cells + 1) if cells % h == 0]
    best = min(shapes, key=lambda shape: abs(shape[0] * width - shape[1] * height))
    return best if _fits(best, image_size, slack) else None


def _fits(grid: tuple[int, int], image_size: tuple[int, int], slack: int = 1) -> bool:
    height, width = image_size
    # Strides round each side by itself, but both alike where the image is square.
    tolerance = slack * max(height, width) if height != width else 0
    return abs(grid[0] * width - grid[1] * height) <= tolerance


def to_grid(
    activation: Tensor, image_size: tuple[int, int], layout: Layout, network: nn.Module, layer: str = "layer"
) -> Tensor:
    """A layer's activations as feature maps (B,K,h,w), without a copy.

    Args:
        activation: (B,K,h,w), (B,h,w,K) or tokens (B,N,D).
        image_size: (H,W) of the images that it belongs to.
        layout: what the activation is. "auto": three dimensions are tokens; of four, those two are h and w that have
            the image's aspect ratio; where both orders have it (K = h = w), Swin-like families are channels-last,
            everything else channels-first.
        network: whose family decides what the shape leaves open.
        layer: name for the message.

    Returns:
        (B,K,h,w), a view; class, distillation and register tokens are dropped.

    Raises:
        ValueError: the activation has no grid, or is not what `layout` says.
    """
    if activation.ndim == 3 and layout in ("auto", "tokens"):
        grid = token_grid(activation.shape[1], tuple(image_size), known_prefix(network))
        if grid is None:
            raise ValueError(
                f"Expected the {activation.shape[1]} tokens of {layer!r} to be a grid shaped like the {image_size[0]} x"
                f" {image_size[1]} image with at most {_MAX_PREFIX} tokens before it, but there is none."
            )
        prefix, height, width = grid
        patches = activation[:, prefix:].transpose(1, 2)
        return patches.view(*patches.shape[:2], height, width)
    if activation.ndim == 4 and layout != "tokens":
        last = (
            _is_channels_last(activation.shape, image_size, network) if layout == "auto" else layout == "channels_last"
        )
        return activation.permute(0, 3, 1, 2) if last else activation
    raise ValueError(
        f"Expected {layer!r} to put out feature maps (B,K,h,w), (B,h,w,K) or tokens (B,N,D) with layout {layout!r}, but"
        f" got the shape {tuple(activation.shape)}. Choose a layer before the network pools its features."
    )


def _is_channels_last(shape: Sequence[int], image_size: tuple[int, int], network: nn.Module) -> bool:
    _, a, b, c = shape
    first, last = _fits((b, c), image_size), _fits((a, b), image_size)
    return last and (not first or any(family in _CHANNELS_LAST for family in families(network)))


def zeros_for(network: nn.Module, image_size: tuple[int, int]) -> Tensor:
    """One black image (1,3,H,W) of the network's dtype, on its device."""
    like = next((value for value in network.parameters() if value.is_floating_point()), torch.empty(0))
    return torch.zeros(1, 3, *image_size, dtype=like.dtype, device=like.device)
