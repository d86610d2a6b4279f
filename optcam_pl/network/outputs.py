"""Finding the logits in a network's output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from optcam_pl.checks import nearest
from optcam_pl.network.layers import heads


def logits_of(output: Any) -> Tensor:
    """The logits in a network's output: a tensor, an object or mapping with `logits`, or a tuple that begins so."""
    if not isinstance(output, Tensor):
        if isinstance(output, Mapping):
            output = output["logits"] if "logits" in output else _first(list(output.values()))
        elif isinstance(output, (tuple, list)):
            named = getattr(output, "_fields", ())
            output = output[named.index("logits")] if "logits" in named else _first(output)
        else:
            output = getattr(output, "logits", None)
    if not isinstance(output, Tensor):
        raise TypeError(
            "Expected the network to return logits: a tensor, or an object, mapping or tuple that has them. For "
            "anything else, `scores` says what is explained."
        )
    return output


def part_of(output: Any, part: str | int) -> Tensor:
    """One of a network's several outputs: by key, attribute or number.

    Raises:
        ValueError: there is no such output; the message lists those that there are.
        TypeError: it is not a tensor.

    Example:
        >>> import torch
        >>> part_of((torch.zeros(2, 3), torch.zeros(2, 5)), 1).shape
        torch.Size([2, 5])
    """
    parts = _parts(output)
    if part not in parts:
        known = ", ".join(map(repr, parts)) or f"none, as it is a {type(output).__name__}"
        raise ValueError(f"Expected `output` to name one of the network's outputs ({known}), but got {part!r}.")
    found = parts[part]
    if not isinstance(found, Tensor):
        raise TypeError(f"Expected the network's output {part!r} to be a tensor, but got {type(found).__name__}.")
    return found


def _parts(output: Any) -> dict[str | int, Any]:
    if isinstance(output, Tensor):
        return {}
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, (tuple, list)):
        named = zip(getattr(output, "_fields", ()), output, strict=False)
        return {**dict(named), **dict(enumerate(output))}
    if is_dataclass(output):  # which may have slots
        return {field.name: getattr(output, field.name) for field in fields(output)}
    return {key: value for key, value in getattr(output, "__dict__", {}).items() if not key.startswith("_")}


def _first(outputs: Sequence[Any]) -> Any:
    """The first of several outputs, unless another output could equally be the logits."""
    shapes = [tuple(value.shape) for value in outputs if isinstance(value, Tensor) and value.ndim == 2]
    if len(set(shapes)) > 1:
        raise ValueError(
            "Expected the network to return its logits, but it returns several tensors with two dimensions, of the "
            f"shapes {', '.join(map(str, shapes))}: which are the logits? Say it by `scores`, as in "
            'ClassLogits(output="head_name") or ClassLogits(output=1).'
        )
    return outputs[0] if outputs else None


def misshapen(name: str, shape: tuple[int, ...], images: int, scores: str = "ClassLogits") -> str:
    """A message about what is wrong with the shape of the scores for this number of images."""
    what = f"{name} to return logits" if scores == "ClassLogits" else f"`scores` {scores} to return scores"
    found = f"Expected {what} (B, C), but got the shape {shape} for {images} image{'s' * (images != 1)}"
    if scores != "ClassLogits":
        return f"{found}."
    if len(shape) == 4 and shape[0] == images:
        if shape[2] == shape[3] == 1:
            return f"{found}. Take the places away: torch.nn.Sequential(network, torch.nn.Flatten())."
        mean = "torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()"
        return f"{found}. If it scores each place, average over them: torch.nn.Sequential(network, {mean})."
    if shape == (images,):
        return f"{found}. If that is one logit z an image, give `scores`: Binary(); if it is an estimate, Regression()."
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


def index_of(name: str, names: Sequence[str] | None, network: str) -> int:
    """The number of a class by its name.

    Raises:
        ValueError: no class or several classes of the network have this name, or no names are known.

    Example:
        >>> index_of("dog", ["cat", "dog"], "the network")
        1
    """
    if names is None:
        raise ValueError(f"Expected a class's number, as {network} has no `class_names`, but got the name {name!r}.")
    found = [index for index, known in enumerate(names) if known == name]
    if not found:
        raise ValueError(f"Unknown class {name!r}. The nearest are: {nearest(name, names)}.")
    if len(found) > 1:
        raise ValueError(f"Expected the number of a class, as the classes {found} are all called {name!r}.")
    return found[0]
