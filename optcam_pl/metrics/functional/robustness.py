"""How a map changes when its image changes, and how simple the map is.

Maps are (B,1,H,W); all scores are (B,), in float32, or in float64 if an input is.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.linalg import vector_norm

from optcam_pl.maps import wide


def sensitivities(saliency: Tensor, perturbed_saliency: Tensor, scale: Tensor | None = None) -> Tensor:
    r"""The distance of each perturbed image's map from the image's map, :math:`\|S(x) - S(x + \delta_s)\|_2 / scale`.

    The largest over the samples is Max-Sensitivity, the mean is Average Sensitivity (Yeh et al., "On the (in)fidelity
    and sensitivity of explanations", NeurIPS 2019). Quantus divides by the norm of the network's input, Captum by the
    norm of the map.

    Args:
        saliency: (B,1,H,W) maps S(x).
        perturbed_saliency: (B,S,1,H,W) maps of S perturbations of each image.
        scale: (B,) the divisor; None means the norm of S(x).

    Returns:
        (B,S); NaN where the scale is 0.

    Example:
        >>> maps, moved = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[[3.0, 5.0]]], [[[0.0, 0.0]]]]])
        >>> sensitivities(maps, moved)
        tensor([[0.2000, 1.0000]])
    """
    if perturbed_saliency.ndim != 5 or saliency.shape != perturbed_saliency[:, 0].shape:
        raise ValueError(
            "Expected `saliency` (B,1,H,W) and `perturbed_saliency` (B,S,1,H,W) of the same maps, but got the shapes "
            f"{tuple(saliency.shape)} and {tuple(perturbed_saliency.shape)}."
        )
    maps, moved = wide(saliency).flatten(1), wide(perturbed_saliency).flatten(2)
    norm: Tensor = vector_norm(maps, dim=1) if scale is None else wide(scale)
    distance: Tensor = vector_norm(moved - maps[:, None], dim=2)
    return distance / norm.where(norm > 0, torch.nan)[:, None]


def coherency(saliency: Tensor, masked_saliency: Tensor) -> Tensor:
    """Correlation of the image's map and the masked image's, (Pearson + 1) / 2 in percent; higher is better.

    Poppi et al., "Revisiting the evaluation of class activation mapping for explainability", CVPRW 2021. A constant map
    correlates with nothing, so it scores 50.

    Args:
        saliency: (B,1,H,W) map S(x) of the image.
        masked_saliency: (B,1,H,W) map S(x . S(x)) of the image masked by it.

    Example:
        >>> maps = torch.tensor([[[[0.0, 1.0]]]]).repeat(3, 1, 1, 1)
        >>> coherency(maps, torch.tensor([[[[0.0, 0.5]]], [[[1.0, 0.0]]], [[[0.1, 0.1]]]])).round()
        tensor([100.,   0.,  50.])
    """
    if saliency.shape != masked_saliency.shape:
        raise ValueError(
            f"Expected maps of the same shape, but got {tuple(saliency.shape)} and {tuple(masked_saliency.shape)}."
        )
    pair = torch.stack([wide(saliency).flatten(1), wide(masked_saliency).flatten(1)])
    varied = (pair.amax(2) > pair.amin(2)).all(0)  # compares values, because rounding may leave a variance
    centered = pair - pair.mean(2, keepdim=True)
    unit: Tensor = centered / vector_norm(centered, dim=2, keepdim=True).where(varied[:, None], 1)
    pearson = unit.prod(0).sum(1).clamp(-1, 1)
    return 50 * (pearson.where(varied, 0) + 1)


def complexity(saliency: Tensor) -> Tensor:
    """Mean of the map's absolute values, in percent of the highest possible mean; lower is better (Poppi et al. 2021).

    Example:
        >>> complexity(torch.tensor([[[[0.0, 0.5]]]]))
        tensor([25.])
    """
    return 100 * wide(saliency).abs().flatten(1).mean(1)


def harmonic_mean(parts: Tensor) -> Tensor:
    """Harmonic mean of non-negative numbers over the last dimension; 0 if one of them is 0.

    ADCC is the harmonic mean of coherency, 100 - complexity and 100 - average drop, in percent (Poppi et al. 2021).

    Example:
        >>> harmonic_mean(torch.tensor([[50.0, 100.0, 100.0], [50.0, 0.0, 100.0]]))
        tensor([75.,  0.])
    """
    # 1/x of a subnormal is infinite, as for 0 itself, and an infinite sum gives the desired 0.
    return parts.shape[-1] / parts.reciprocal().sum(-1)


def sparseness(saliency: Tensor) -> Tensor:
    """Gini index of the map's absolute values, 0 (all equal) to almost 1 (one pixel has all); higher is better.

    Chalasani et al., "Concise explanations of neural networks using adversarial training", ICML 2020. A map of zeros
    scores 0.

    Example:
        >>> sparseness(torch.tensor([[[[0.0, 0.0, 0.0, 1.0]]], [[[0.5, 0.5, 0.5, 0.5]]]]))
        tensor([0.7500, 0.0000])
    """
    values = _sorted(wide(saliency).abs().flatten(1))
    n = values.shape[1]
    weights = torch.arange(1 - n, n, 2, device=values.device).to(values) / n
    total = values.sum(1)
    return (values * weights).sum(1) / total.where(total > 0, 1)


def infidelity(dot_products: Tensor, score_differences: Tensor, normalize: bool = False) -> Tensor:
    r"""Mean over perturbations of :math:`(I_s^\top S - (f(x) - f(x - I_s)))^2`; lower is better (Yeh et al. 2019).

    Args:
        dot_products: (B,S) sum of perturbation times map, for S perturbations I_s of each image.
        score_differences: (B,S) how much each perturbation lowers the class score.
        normalize: multiply the map by the factor that makes the result smallest, so that its scale does not matter.

    Example:
        >>> infidelity(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 4.0]]))
        tensor([2.5000])
        >>> infidelity(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 4.0]]), normalize=True)
        tensor([0.])
    """
    if dot_products.ndim != 2 or dot_products.shape != score_differences.shape:
        raise ValueError(
            "Expected `dot_products` and `score_differences` of the same shape (B,S), but got "
            f"{tuple(dot_products.shape)} and {tuple(score_differences.shape)}."
        )
    products, differences = wide(dot_products), wide(score_differences)
    if normalize:
        power = products.square().mean(1, keepdim=True)
        products = products * (products * differences).mean(1, keepdim=True) / power.where(power > 0, 1)
    return (products - differences).square().mean(1)


def _sorted(values: Tensor) -> Tensor:
    """(B,n) in ascending order; on a CPU by numpy, which finds no indices and takes a third of the time."""
    if values.device.type != "cpu" or values.requires_grad:
        return values.sort(dim=1).values
    return torch.from_numpy(np.sort(values.numpy(), axis=1))
