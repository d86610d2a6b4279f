"""Where a network's feature maps are, and their memory layout: default layers, layers by name, token grids.

Shape letters: B images, K channels (D in a transformer), h x w feature grid, H x W image, N tokens.
"""

from __future__ import annotations

import functools
import re
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from optcam_pl.checks import nearest
from optcam_pl.private import children_of

if TYPE_CHECKING:
    OneLayer: TypeAlias = str | nn.Module
    Layers: TypeAlias = str | nn.Module | Sequence[str | nn.Module]
else:
    # What a configuration may give: names. (See `Network` in weights.py for why this is asked from another file.)
    OneLayer = str
    Layers = str | list[str]
Layout: TypeAlias = Literal["auto", "channels_first", "channels_last", "tokens"]

# (source, class) -> the layer to explain; a negative index counts from a container's end. Networks with a class token
# are explained at the input of their last attention, because no gradient reaches the patches after it.
DEFAULT_LAYERS: dict[tuple[str, str], str] = {
    ("torchvision", "AlexNet"): "features.-2",  # the ReLU before the last pool
    ("torchvision", "ConvNeXt"): "features.-1",
    ("torchvision", "DenseNet"): "features.norm5",
    ("torchvision", "DeepLabV3"): "backbone.-1",
    ("torchvision", "EfficientNet"): "features.-1",
    ("torchvision", "FCN"): "backbone.-1",
    ("torchvision", "FCOS"): "backbone.body.-1",
    ("torchvision", "FasterRCNN"): "backbone.body.-1",
    ("torchvision", "GoogLeNet"): "inception5b",
    ("torchvision", "Inception3"): "Mixed_7c",
    ("torchvision", "MaxVit"): "blocks.-1",
    ("torchvision", "LRASPP"): "backbone.-1",
    ("torchvision", "MNASNet"): "layers.-1",
    ("torchvision", "MobileNetV2"): "features.-1",
    ("torchvision", "MobileNetV3"): "features.-1",
    ("torchvision", "RegNet"): "trunk_output.-1",
    ("torchvision", "ResNet"): "layer4.-1",
    ("torchvision", "RetinaNet"): "backbone.body.-1",
    ("torchvision", "SSDFeatureExtractorVGG"): "features",  # the finest grid of predictions, on which all others stand
    ("torchvision", "SSDLiteFeatureExtractorMobileNet"): "features.0",
    ("torchvision", "ShuffleNetV2"): "conv5",
    ("torchvision", "SqueezeNet"): "features.-1",
    ("torchvision", "SwinTransformer"): "norm",
    ("torchvision", "VGG"): "features.-2",  # the ReLU before the last pool
    ("torchvision", "VisionTransformer"): "encoder.layers.-1.ln_1",
    ("transformers", "DetrForObjectDetection"): "model.encoder.layers.-1",
    ("transformers", "SegformerForSemanticSegmentation"): "segformer.stages.-1.layer_norm",
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
# The same layer's name in earlier versions of the source.
_EARLIER_NAMES = {("transformers", "SegformerForSemanticSegmentation"): "segformer.encoder.layer_norm.-1"}  # before 5
# Families whose 4-D activations are (B,h,w,K); used only if the shape fits both layouts.
_CHANNELS_LAST = {("torchvision", "SwinTransformer"), ("timm", "SwinTransformer"), ("timm", "SwinTransformerV2")}
_MAX_PREFIX = 8  # class, distillation and register tokens together: DINOv2 with registers has 5


def families(network: nn.Module) -> list[tuple[str, str]]:
    """(source, class) of a network, most derived class first: the keys for the tables of this module."""
    return [(cls.__module__.partition(".")[0], cls.__name__) for cls in type(network).__mro__]


def canonical_name(network: nn.Module, name: str) -> str:
    """The dotted name of a layer, with negative and bracketed indices resolved.

    Args:
        network: where the layer is.
        name: `layer4.2.conv1`, `layer4.-1` or `layer4[-1]`. The prefixes of DataParallel and torch.compile (`module.`,
            `_orig_mod.`) may be given or left out, whatever the network has.

    Raises:
        TypeError: the name is not a string.
        ValueError: there is no such layer; the message lists the nearest names.

    Example:
        >>> canonical_name(nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), nn.Tanh())), "1[-1]")
        '1.1'
    """
    if not isinstance(name, str):
        raise TypeError(f"Expected a layer's name or module, but got {type(name).__name__}.")
    parts: list[str] = []
    module = network
    for part in re.sub(r"\[(-?\d+)\]", r".\1", name).split("."):
        children = children_of(module)
        while list(children) == ["module"] and part not in children:  # a parallel wrapper that the name leaves out
            parts.append("module")
            module = children["module"]
            children = children_of(module)
        if part in ("module", "_orig_mod") and part not in children:  # a wrapper that is gone
            continue
        index = int(part) if re.fullmatch(r"-\d+", part) else 0
        resolved = list(children)[index] if -len(children) <= index < 0 else part
        if resolved not in children:
            raise _unknown(network, name)
        parts.append(resolved)
        module = children[resolved]
    if not parts:
        raise _unknown(network, name)
    return ".".join(parts)


def layer_name(network: nn.Module, layer: OneLayer) -> str:
    """The dotted name of a layer that is named or is the module itself.

    Raises:
        TypeError: it is neither.
        ValueError: the network has no such layer, or the module is no part of it.

    Example:
        >>> network = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), nn.Tanh()))
        >>> layer_name(network, network[1][1]), layer_name(network, "1.-1")
        ('1.1', '1.1')
    """
    if not isinstance(layer, nn.Module):
        return canonical_name(network, layer)
    name: str | None = next((name for name, module in network.named_modules() if module is layer), None)
    if not name:
        what = "the whole network, no layer in it" if name == "" else f"no part of {type(network).__name__}"
        raise ValueError(
            f"Expected a layer of the network, but the {type(layer).__name__} that was given is {what}. Take the layer "
            "from the module that the Classifier was made of, or name it, as network.named_modules() lists it."
        )
    return name


def layer_list(layer: Any) -> list[Any]:
    """One layer or several as a list; a module is one layer, also where it can be iterated."""
    return list(layer) if isinstance(layer, (list, tuple)) else [layer]


def _unknown(network: nn.Module, name: str) -> ValueError:
    names = [known for known, _ in network.named_modules() if known]
    # The name inside a wrapper is nearer than any that merely looks alike.
    inner = [known for known in names if name and known.endswith(f".{name}")]
    near = ", ".join(map(repr, inner[:5])) or nearest(name, names)
    return ValueError(
        f"Unknown layer {name!r} of {type(network).__name__}. The nearest are: {near}. Where no layer is named, "
        "one that suits the network is taken."
    )


def members(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The networks of known families in a module: the module itself, or the outermost ones in it, with dotted names.

    Everything around them is a wrapper: a `Sequential` that normalizes first, DataParallel, a LightningModule, an
    adapter, the user's own module. The name of the module itself is "".

    Example:
        >>> from torchvision.models import AlexNet
        >>> [name for name, _ in members(nn.Sequential(nn.Identity(), nn.DataParallel(AlexNet())))]
        ['1.module']
    """
    found: list[tuple[str, nn.Module]] = []
    waiting = deque([("", network)])
    while waiting:
        name, module = waiting.popleft()
        if _is_family(type(module)):  # type: ignore[arg-type]  # torch's stubs call the class unhashable
            found.append((name, module))
        else:
            waiting.extend((_join(name, key), child) for key, child in children_of(module).items())
    return found


def family_member(network: nn.Module, layer: str = "") -> nn.Module:
    """The known network in `network` that contains a layer; without a layer the first one; `network` if there is none.

    Example:
        >>> from torchvision.models import AlexNet
        >>> type(family_member(nn.Sequential(nn.Identity(), AlexNet()), "1.features.0")).__name__
        'AlexNet'
    """
    found = members(network)
    around = [module for name, module in found if not name or layer.startswith(f"{name}.")]
    return (around or [module for _, module in found] or [network])[0]


@functools.cache
def _is_family(cls: type) -> bool:
    """Whether a class is a whole network that timm, torchvision or transformers define, or is derived from one."""
    for base in cls.__mro__:
        source = base.__module__.partition(".")[0]
        if base.__name__.startswith("TimmWrapper"):  # the class in which transformers holds a network of timm
            return False
        if (source, base.__name__) in DEFAULT_LAYERS or (source, base.__name__) == ("transformers", "PreTrainedModel"):
            return True
        if base.__module__.startswith("timm.models.") and "get_classifier" in vars(base):
            return True
    return False


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def family_layer(network: nn.Module) -> str | None:
    """The default layer of a network whose family is in the table; None for all others and for wrapped networks."""
    return next(iter(_named_layers(network, _names_of_family(network))), None)


def _names_of_family(network: nn.Module) -> list[str]:
    tables = (DEFAULT_LAYERS, _EARLIER_NAMES)
    return [table[family] for family in families(network) for table in tables if family in table]


def family_candidates(network: nn.Module) -> list[str]:
    """Layers to try first: of each known network inside, the table's, timm's `feature_info`, a last block's norm."""
    candidates: list[str] = []
    for prefix, member in members(network):
        sources = {source for source, _ in families(member)}
        named = _names_of_family(member)
        info: Any = getattr(member, "feature_info", None) if "timm" in sources else None
        named += [info[-1]["module"]] if info else []
        if "transformers" in sources:
            # The place of the blocks differs between versions; the name of a block's first norm does not.
            named += [name for name, _ in member.named_modules() if name.endswith((".layernorm_before", ".norm1"))][-1:]
        candidates += [_join(prefix, name) for name in _named_layers(member, named)]
    return candidates


def _named_layers(network: nn.Module, names: Iterable[str]) -> list[str]:
    """The full names of those that the network has; variants of a family may differ, and lists are never called."""
    found: list[str] = []
    for candidate in names:
        try:
            name = canonical_name(network, candidate)
        except ValueError:
            continue
        if not isinstance(network.get_submodule(name), (nn.ModuleList, nn.ModuleDict)):
            found.append(name)
    return found


def heads(network: nn.Module) -> tuple[nn.Module, ...]:
    """The layers that output the logits: as timm's networks declare (two if distilled), else the last linear or
    convolutional layer.

    Raises:
        ValueError: the network has no such layer.

    Example:
        >>> [head.out_features for head in heads(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))]
        [2]
    """
    last = [module for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1:]
    for name, member in members(network):
        if any(source == "timm" for source, _ in families(member)):
            stated: Any = member
            found = stated.get_classifier()
            found = tuple(found) if isinstance(found, (tuple, list)) else (found,)
            if not name or set(last) & set(found):  # otherwise the wrapper has a head of its own
                return found
    if not last:
        raise ValueError(f"Found no head in {type(network).__name__}: it has no linear or convolutional layer.")
    return tuple(last)


def known_prefix(network: nn.Module, layer: str = "") -> int | None:
    """How many class, distillation and register tokens come before the patches; None if the family is unknown.

    Args:
        network: this network, or the known network in it that contains `layer`, gives the number.
        layer: dotted name in `network`.
    """
    member = family_member(network, layer)
    for family in families(member):
        if family == ("torchvision", "VisionTransformer"):
            return 1
        if family[0] == "timm":
            count = getattr(member, "num_prefix_tokens", None)  # timm's own attribute of every token network
            return None if count is None else int(count)
    return None


@functools.lru_cache(maxsize=256)
def token_grid(tokens: int, image_size: tuple[int, int], prefix: int | None) -> tuple[int, int, int] | None:
    """How N tokens are arranged on the image: (prefix, h, w) with N = prefix + h * w.

    The grid has the image's aspect ratio: exactly, or to within one cell for images that are not square. The known
    prefix is tried first, then none, because a layer before the class token has no prefix, then the smallest that fits.

    Args:
        tokens: N.
        image_size: (H,W).
        prefix: the expected number of tokens that are not patches; None if unknown.

    Returns:
        None if no grid with at most 8 prefix tokens fits.

    Example:
        >>> token_grid(197, (224, 224), None), token_grid(198, (224, 224), 2), token_grid(99, (224, 112), 1)
        ((1, 14, 14), (2, 14, 14), (1, 14, 7))
    """
    likely = [] if prefix is None else [prefix, 0]
    for prefixes in (likely, range(_MAX_PREFIX + 1)):
        for slack in (0, 1):
            for count in prefixes:
                shape = _grid_of(tokens - count, image_size, slack)
                if shape is not None:
                    return (count, *shape)
    return None


def _likely_prefix(network: nn.Module, layer: str, tokens: int, image_size: tuple[int, int]) -> int | None:
    """The known prefix, or what is left of N tokens beside one for each whole patch of transformers' `patch_size`."""
    known = known_prefix(network, layer)
    if known is not None:
        return known
    member: Any = family_member(network, layer)
    if "transformers" not in {source for source, _ in families(member)}:
        return None
    sides = getattr(member.config, "patch_size", None)
    sides = (sides, sides) if isinstance(sides, int) else sides
    if not isinstance(sides, (tuple, list)) or len(sides) != 2:
        return None
    left = tokens - (image_size[0] // int(sides[0])) * (image_size[1] // int(sides[1]))
    return left if 0 <= left <= _MAX_PREFIX else None


def _grid_of(cells: int, image_size: tuple[int, int], slack: int) -> tuple[int, int] | None:
    """The (h,w) with h * w cells and the image's shape, to within `slack` cells; None if there is none."""
    if cells < 1:
        return None
    height, width = image_size
    shapes = [(h, cells // h) for h in range(1, cells + 1) if cells % h == 0]
    best = min(shapes, key=lambda shape: abs(shape[0] * width - shape[1] * height))
    return best if _fits(best, image_size, slack) else None


def _fits(grid: tuple[int, int], image_size: tuple[int, int], slack: int = 1) -> bool:
    height, width = image_size
    # Strides round each side separately, but equally if the image is square.
    tolerance = slack * max(height, width) if height != width else 0
    return abs(grid[0] * width - grid[1] * height) <= tolerance


def to_grid(
    activation: Tensor, image_size: tuple[int, int], layout: Layout, network: nn.Module, layer: str = "layer"
) -> Tensor:
    """A layer's activations as feature maps (B,K,h,w), without a copy.

    Args:
        activation: (B,K,h,w), (B,h,w,K) or tokens (B,N,D).
        image_size: (H,W) of the images.
        layout: the layout of the activation. "auto": three dimensions mean tokens; of four dimensions, h and w are the
            two that have the image's aspect ratio. If both orders have it (K = h = w), Swin-like families are
            channels-last and everything else is channels-first.
        network: its family decides what the shape leaves open.
        layer: name for the message.

    Returns:
        (B,K,h,w), a view; class, distillation and register tokens are dropped.

    Raises:
        ValueError: the activation has no grid, or is not what `layout` says.
    """
    if activation.ndim == 3 and layout in ("auto", "tokens"):
        tokens, size = activation.shape[1], (image_size[0], image_size[1])
        grid = token_grid(tokens, size, _likely_prefix(network, layer, tokens, size))
        if grid is None:
            raise ValueError(
                f"Expected the {activation.shape[1]} tokens of {layer!r} to be a grid shaped like the {image_size[0]} x"
                f" {image_size[1]} image with at most {_MAX_PREFIX} tokens before it, but there is none."
            )
        prefix, height, width = grid
        patches = activation[:, prefix:].transpose(1, 2)
        return patches.view(*patches.shape[:2], height, width)
    if activation.ndim == 4 and layout != "tokens":
        if layout == "channels_last" or (
            layout == "auto" and _is_channels_last(activation.shape, image_size, network, layer)
        ):
            return activation.permute(0, 3, 1, 2)
        if layout == "channels_first" or _fits((activation.shape[2], activation.shape[3]), image_size, slack=3):
            return activation
        raise ValueError(
            f"Expected {layer!r} to output feature maps with the aspect ratio of the {image_size[0]} x {image_size[1]}"
            f" image, (B,K,h,w) or (B,h,w,K), but got the shape {tuple(activation.shape)}, which may be heads x tokens."
            ' Choose another layer, or give `layout="channels_first"` if the last two dimensions are h and w.'
        )
    raise ValueError(
        f"Expected {layer!r} to output feature maps (B,K,h,w), (B,h,w,K) or tokens (B,N,D) with layout {layout!r}, but"
        f" got the shape {tuple(activation.shape)}. Choose a layer before the network pools its features."
    )


def _is_channels_last(shape: Sequence[int], image_size: tuple[int, int], network: nn.Module, layer: str) -> bool:
    _, a, b, c = shape
    first, last = _fits((b, c), image_size), _fits((a, b), image_size)
    return last and (not first or any(f in _CHANNELS_LAST for f in families(family_member(network, layer))))


def fixed_noise(*shape: int) -> Tensor:
    """Images of random pixels in [0,1), always the same, float32 on the CPU whatever torch's defaults are."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")


def zeros_for(network: nn.Module, image_size: tuple[int, int], channels: int = 3) -> Tensor:
    """One black image (1,channels,H,W) in the network's dtype, on its device."""
    like = next((value for value in network.parameters() if value.is_floating_point()), torch.empty(0, device="cpu"))
    return torch.zeros(1, channels, *image_size, dtype=like.dtype, device=like.device)
