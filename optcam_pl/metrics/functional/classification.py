"""How a class probability changes when only the salient part of the image remains, or only the rest.

Arguments, for B images: `original`, the softmax probability p of the class of interest for the whole image, `masked`,
o for the image masked by its saliency map, and `deleted`, d for the image masked by the map's complement; all (B,),
floating point, in [0, 1].

Results are in percent and float32 (float64 if an argument is): a scalar with `reduction` "mean", (B,) with "none".

All functions raise TypeError for an argument that is no floating-point tensor, and ValueError for shapes that differ
and for values outside [0, 1], including NaN.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from optcam_pl.checks import check_choice

Reduction = Literal["mean", "none"]


def average_drop(original: Tensor, masked: Tensor, reduction: Reduction = "mean") -> Tensor:
    r"""Average Drop, :math:`AD = \frac{100}{N} \sum_i \frac{[p_i - o_i]_+}{p_i}`, in [0, 100]; lower is better.

    The share of its confidence that the network loses on average (Chattopadhay et al., "Grad-CAM++", WACV 2018). An
    image with p = 0 has nothing to lose and counts as 0.

    Example:
        >>> average_drop(torch.tensor([0.5, 0.8, 0.0]), torch.tensor([0.25, 0.9, 0.5]), reduction="none")
        tensor([50.,  0.,  0.])
        >>> average_drop(torch.tensor([0.5, 0.8]), torch.tensor([0.25, 0.9]))
        tensor(25.)
    """
    p, o = _probabilities(original=original, masked=masked)
    return _reduce(100 * (p - o).clamp(min=0) / p.where(p > 0, 1), reduction)


def average_gain(original: Tensor, masked: Tensor, reduction: Reduction = "mean") -> Tensor:
    r"""Average Gain, :math:`AG = \frac{100}{N} \sum_i \frac{[o_i - p_i]_+}{1 - p_i}`, in [0, 100]; higher is better.

    The share of its missing confidence that the network gains on average: the symmetric partner of Average Drop (Zhang
    et al., "Opti-CAM", CVIU 2024, section 4). An image with p = 1 has nothing to gain and counts as 0.

    Example:
        >>> average_gain(torch.tensor([0.5, 0.8, 1.0]), torch.tensor([0.75, 0.7, 1.0]), reduction="none")
        tensor([50.,  0.,  0.])
    """
    p, o = _probabilities(original=original, masked=masked)
    return _reduce(100 * (o - p).clamp(min=0) / (1 - p).where(p < 1, 1), reduction)


def average_increase(original: Tensor, masked: Tensor, reduction: Reduction = "mean") -> Tensor:
    r"""Average Increase, :math:`AI = \frac{100}{N} \sum_i 1[p_i < o_i]`, in [0, 100]; higher is better.

    The share of images for which the network is strictly more certain after masking (Chattopadhay et al., "Grad-CAM++",
    WACV 2018, where it is called Increase in Confidence).

    Example:
        >>> average_increase(torch.tensor([0.5, 0.8, 1.0]), torch.tensor([0.75, 0.7, 1.0]), reduction="none")
        tensor([100.,   0.,   0.])
    """
    p, o = _probabilities(original=original, masked=masked)
    return _reduce(100 * (p < o).to(p.dtype), reduction)


def average_drop_deletion(
    original: Tensor, deleted: Tensor, signed: bool = True, reduction: Reduction = "mean"
) -> Tensor:
    r"""Average Drop in Deletion, :math:`ADD = \frac{100}{N} \sum_i \frac{p_i - d_i}{p_i}`; higher is better.

    The share of its confidence that the network loses without the salient part (Jung and Oh, "Towards better
    explanations of class activation mapping", ICCV 2021). An image with p = 0 counts as 0. So does one whose p is
    subnormal, which many devices take for 0, and one whose p is so small that its share is larger than any number.

    Args:
        original: p.
        deleted: d.
        signed: whether a rise counts as a negative drop, as in the source, where a small p makes it arbitrarily large,
            or as 0, as in Average Drop.
        reduction: "mean" or "none".

    Example:
        >>> average_drop_deletion(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.75, 0.5]), reduction="none")
        tensor([ 50., -50.,   0.])
    """
    p, d = _probabilities(original=original, deleted=deleted)
    drop = p - d if signed else (p - d).clamp(min=0)
    known = p >= torch.finfo(p.dtype).tiny
    share = 100 * drop.where(known, 0) / p.where(known, 1)
    return _reduce(share.where(share.isfinite(), 0), reduction)


def _probabilities(**named: Tensor) -> list[Tensor]:
    """The arguments in their common wide dtype, after checking that they are probabilities of the same images."""
    for name, value in named.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = f"dtype {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"Expected `{name}` to be a floating-point tensor, but got {got}.")
        if value.ndim != 1:
            raise ValueError(f"Expected `{name}` to have shape (B,), but got {tuple(value.shape)}.")
        wrong = ~((value >= 0) & (value <= 1))  # written so that NaN is wrong too
        if wrong.any():
            raise ValueError(
                f"Expected `{name}` to hold probabilities in [0, 1], but got {value[wrong][0].item():g} "
                f"at index {int(wrong.nonzero()[0])}."
            )
    shapes = {name: tuple(value.shape) for name, value in named.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"Expected one probability per image in every argument, but got the shapes {shapes}.")
    wide = torch.float64 if any(value.dtype == torch.float64 for value in named.values()) else torch.float32
    return [value.to(wide) for value in named.values()]


def _reduce(scores: Tensor, reduction: Reduction) -> Tensor:
    check_choice("reduction", reduction, Reduction)
    return scores.mean() if reduction == "mean" else scores
