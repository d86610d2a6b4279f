"""Finding the logits in a network's output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from optcam_pl.network.layers import heads


def logits_of(output: Any, name: str) -> Tensor:
    """The logits in a network's output: a tensor, an object or mapping with `logits`, or a tuple that begins so."""
    if not isinstance(output, Tensor):
        if isinstance(output, Mapping):
            output = output["logits"] if "logits" in output else _first(list(output.values()), name)
        elif isinstance(output, (tuple, list)):
            named = getattr(output, "_fields", ())
            output = output[named.index("logits")] if "logits" in named else _first(output, name)
        else:
            output = getattr(output, "logits", None)
    if not isinstance(output, Tensor):
        raise TypeError(
            "Expected the network to return logits: a tensor, or an object, mapping or tuple that has them."
        )
    return output


def _first(outputs: Sequence[Any], name: str) -> Any:
    """The first of several outputs, unless another output could equally be the logits."""
    shapes = [tuple(value.shape) for value in outputs if isinstance(value, Tensor) and value.ndim == 2]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"Expected {name} to return its logits, but it returns several tensors with two dimensions, of the shapes "
            f"{', '.join(map(str, shapes))}: which are the logits? Let it return them alone, or as `logits` of a "
            "mapping."
        )
    return outputs[0] if outputs else None


def misshapen(name: str, shape: tuple[int, ...], images: int) -> str:
    """A message about what is wrong with the shape of the logits for this number of images."""
    found = (
        f"Expected {name} to return logits (B, C), but got the shape {shape} for {images} image{'s' * (images != 1)}"
    )
    if len(shape) == 4 and shape[0] == images:
        if shape[2] == shape[3] == 1:
            return f"{found}. Take the places away: torch.nn.Sequential(network, torch.nn.Flatten())."
        mean = "torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()"
        return f"{found}. If it scores each place, average over them: torch.nn.Sequential(network, {mean})."
    if shape == (images,):
        return f"{found}. If that is one logit z an image, let it return two, (B, 2): [0, z]."
    return f"{found}."


def stated_classes(network: nn.Module, name: str) -> int:
    """The class count that timm's networks state; for torchvision and transformers, the width of the final head."""
    if name.startswith(("torchvision/", "transformers/")):
        weight: Tensor = heads(network)[0].get_parameter("weight")
        return weight.shape[0]
    classes = int(getattr(network, "num_classes", 0))
    if classes < 1:
        raise ValueError(f"{name} puts out features, not classes. Give `num_classes` to get a new head.")
    return classes
