"""The preprocessing settings that a user's module carries, and whether the module normalizes images itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from optcam_pl.network.layers import families, members


class NormalizationWarning(UserWarning):
    """A network gets pixels in [0,1] without normalization, and nothing shows that it was trained with such pixels."""


def carried_settings(network: nn.Module) -> dict[str, Any]:
    """The preprocessing that a module states: timm's networks state all of it, transformers' networks the image size.

    The network may be inside wrappers. If several networks inside the module disagree, no setting is used.

    Returns:
        Some of the fields `mean`, `std`, `input_size`, `interpolation`, `crop_fraction`. `mean` and `std` are left out
        if a layer in front of the network already normalizes.

    Example:
        >>> carried_settings(nn.Sequential(nn.Conv2d(3, 2, 1)))
        {}
    """
    if isinstance(transform := getattr(network, "transform", None), GeneralizedRCNNTransform):
        return detector_settings(transform)
    if tower := _of_vision_tower(getattr(network, "visual", None)):
        return tower
    found = [_of_member(member) for _, member in members(network)]
    if not found or any(other != found[0] for other in found[1:]):
        return {}
    settings = found[0]
    if normalizes_itself(network):
        settings = {key: value for key, value in settings.items() if key not in ("mean", "std")}
    return settings


def _of_member(member: Any) -> dict[str, Any]:
    sources = {source for source, _ in families(member)}
    if "timm" in sources and getattr(member, "pretrained_cfg", None):
        return timm_settings(member)
    if "transformers" in sources:
        size = getattr(member.config, "image_size", None)
        sides = (size, size) if isinstance(size, int) else tuple(size or ())
        return {"input_size": sides} if len(sides) == 2 else {}
    return {}


def detector_settings(transform: Any) -> dict[str, Any]:
    """The preprocessing that a detector of torchvision does itself, which `predictions.predict` leaves to us.

    The detector enlarges the shorter side of an image to `min_size`, or stretches it to `fixed_size`.
    """
    side = max(transform.min_size)
    height, width = (side, side) if transform.fixed_size is None else reversed(transform.fixed_size)  # width first
    return {"mean": transform.image_mean, "std": transform.image_std, "input_size": (height, width)}


def _of_vision_tower(tower: Any) -> dict[str, Any]:
    """What open_clip states at the vision tower of its networks; {} for others."""
    stated = getattr(tower, "preprocess_cfg", None)
    if not isinstance(stated, dict) or not stated:
        return {}
    size = stated["size"]
    return {
        "mean": stated["mean"],
        "std": stated["std"],
        "input_size": (size, size) if isinstance(size, int) else tuple(size),
        "interpolation": stated.get("interpolation", "bicubic"),
        "crop_fraction": 1.0,
    }


def timm_settings(network: nn.Module) -> dict[str, Any]:
    """The preprocessing that timm's evaluation applies to images for this network."""
    from timm.data.config import resolve_data_config

    config: dict[str, Any] = resolve_data_config(model=network)  # type: ignore[no-untyped-call, unused-ignore]
    height, width = config["input_size"][1:]
    return {
        "mean": config["mean"],
        "std": config["std"],
        "input_size": (height, width),
        # timm also knows "lanczos" and "random"; bicubic is the nearest one that its evaluation uses.
        "interpolation": config["interpolation"] if config["interpolation"] == "bilinear" else "bicubic",
        "crop_fraction": config["crop_pct"],
    }


def normalizes_itself(network: nn.Module) -> bool:
    """Whether anything before the first weights shows that the network normalizes its images itself.

    Signs of this are a module with "norm" in its class name (`Normalize`, `BatchNorm2d`), a buffer or parameter named
    after a mean or a standard deviation, or a module without weights that does not come from a known library. Known
    networks are not searched, because they expect normalized images.

    Example:
        >>> normalizes_itself(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)))
        True
        >>> normalizes_itself(nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)))
        False
    """
    known = {member for _, member in members(network)}
    for module in network.modules():
        if _names_statistics(module):
            return True
        if module in known:
            return False
        if "norm" in type(module).__name__.lower() or _is_own_step(module):
            return True
        if next(module.parameters(recurse=False), None) is not None:
            return False
    return False


def _names_statistics(module: nn.Module) -> bool:
    names = [name for name, _ in _own_tensors(module)]
    return any("mean" in name.lower() or "std" in name.lower() for name in names)


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from module.named_buffers(recurse=False)
    yield from module.named_parameters(recurse=False)


def _is_own_step(module: nn.Module) -> bool:
    """Whether this is a custom module, written for this network, without parts and weights."""
    source = type(module).__module__.partition(".")[0]
    bare = next(module.children(), None) is None and next(module.parameters(), None) is None
    return bare and source not in ("torch", "torchvision", "timm", "transformers")


def normalization_advice(name: str) -> str:
    """The message of `NormalizationWarning`."""
    return (
        f"{name} carries no mean and std, and its first layers show no normalization of their own: it gets pixels in "
        "[0, 1] as they are. Give what it was trained with, `mean=` and `std=` (most networks trained on ImageNet: "
        "mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]), or mean=0, std=1 to say that none is right."
    )
