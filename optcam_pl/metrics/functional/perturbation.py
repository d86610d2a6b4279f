"""How the class score changes while pixels are replaced in the order of a saliency map, and numbers from its curve.

The way from a map to a number: `pixel_rank` or `patch_rank` says when each pixel is replaced. `perturbed_images` (or
`imputed_images`) makes the images of many steps at once. The caller's network scores them. `curve_area` or `aopc_score`
turns the curve into one number per image.

Shapes: B images of H x W, S steps of a chunk, T points of a curve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from optcam_pl.checks import check_choice, check_positive
from optcam_pl.maps import normal, wide
from optcam_pl.metrics.functional.checks import check_maps

Area = Literal["mean", "trapezoid"]

_TOLERANCE = 1e-6  # of the residual, relative to its start: a few 1e-5 in the pixels of a 224 x 224 image
_CHECK_EVERY = 16  # iterations between two checks of the residuals, which wait for the device


def pixel_rank(saliency: Tensor) -> Tensor:
    """The rank at which each pixel is replaced: 0 for the most salient one.

    Equal pixels come in reading order (rows from the top, each from the left) on every device. For the order "least
    salient first" use `pixel_rank(-saliency)`.

    Args:
        saliency: (B,1,H,W), finite.

    Returns:
        (B,1,H,W) int32, each of 0 .. H*W-1 once per image.

    Example:
        >>> pixel_rank(torch.tensor([[[[0.5, 0.9], [0.1, 0.5]]]]))
        tensor([[[[1, 0],
                  [3, 2]]]], dtype=torch.int32)
    """
    check_maps(saliency)
    return _inverse(saliency.flatten(1).sort(dim=1, descending=True, stable=True).indices).view(saliency.shape)


def patch_rank(saliency: Tensor, patch: int) -> Tensor:
    """The rank at which each pixel is replaced in square patches, those with the largest sum of saliency first.

    The patches tile the image from its top left corner and are cropped at the opposite borders. Equal patches come in
    reading order.

    Args:
        saliency: (B,1,H,W), finite.
        patch: side of a patch in pixels.

    Returns:
        (B,1,H,W) int32: 0 for the pixels of the first patch, up to the number of patches - 1.

    Example:
        >>> patch_rank(torch.tensor([[[[0.0, 0.1, 0.9, 0.0], [0.0, 0.0, 0.0, 0.2]]]]), patch=2)
        tensor([[[[1, 1, 0, 0],
                  [1, 1, 0, 0]]]], dtype=torch.int32)
    """
    check_maps(saliency)
    check_positive("patch", patch)
    H, W = saliency.shape[2:]
    sums = F.avg_pool2d(F.pad(wide(saliency), (0, -W % patch, 0, -H % patch)), patch, divisor_override=1)
    return pixel_rank(sums).repeat_interleave(patch, 2).repeat_interleave(patch, 3)[..., :H, :W]


def patch_count(size: tuple[int, int], patch: int) -> int:
    """The number of square patches that tile an image of (H,W), those that are cropped at its borders included.

    Example:
        >>> patch_count((32, 32), 14), patch_count((32, 32), 1)
        (9, 1024)
    """
    return math.prod(-(-side // patch) for side in size)


def step_counts(total: int, steps: int) -> Tensor:
    """How many of `total` pixels are replaced after each of `steps` equal steps, from none to all.

    Args:
        total: number of pixels (or patches).
        steps: number of steps, at most `total`.

    Returns:
        (steps + 1,) int64; if `total` is no multiple of `steps`, the shares are rounded down.

    Example:
        >>> step_counts(10, 4)
        tensor([ 0,  2,  5,  7, 10])
        >>> step_counts(224 * 224, 224)[1:3]
        tensor([224, 448])
    """
    if not 0 < steps <= total:
        raise ValueError(f"Expected `steps` to be in 1 .. {total}, the number of pixels, but got {steps}.")
    return torch.arange(steps + 1, device="cpu") * total // steps


def perturbed_images(image: Tensor, reference: Tensor, rank: Tensor, steps: Tensor | Sequence[int]) -> Tensor:
    """The images of a chunk of steps: after n replacements, pixels with a rank below n come from the reference.

    Deletion replaces the image's pixels by a baseline; insertion replaces a blurred image's pixels by those of the
    image.

    Args:
        image: (B,3,H,W) the state before the first step.
        reference: the state after the last step; anything that broadcasts to (B,3,H,W).
        rank: (B,1,H,W) from `pixel_rank` or `patch_rank`.
        steps: (S,) numbers n of replaced pixels (or patches).

    Returns:
        (B,S,3,H,W) in the dtype of `image`.

    Example:
        >>> image, rank = torch.ones(1, 3, 1, 3), torch.tensor([[[[1, 0, 2]]]])
        >>> perturbed_images(image, torch.zeros(()), rank, [0, 1, 2])[0, :, 0, 0]
        tensor([[1., 1., 1.],
                [1., 0., 1.],
                [0., 0., 1.]])
    """
    reference = reference.to(image).expand_as(image)
    return torch.where(replaced(rank, steps), reference.unsqueeze(1), image.unsqueeze(1))


@torch.no_grad()
def imputed_images(
    image: Tensor, rank: Tensor, steps: Tensor | Sequence[int], noise: float = 0.01, seed: int = 0
) -> Tensor:
    """The images of a chunk of steps whose replaced pixels are guessed from their surroundings: ROAD's imputation.

    Each replaced pixel becomes the weighted mean of its neighbors, with weights 1/6 for adjacent and 1/12 for diagonal
    pixels (rescaled at the border). All replaced pixels of an image are solved together: one linear system per image,
    step and channel, all at once, by conjugate gradients on the image's device. Noise then keeps a network from reading
    the shape of the replaced area (Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution
    Methods", ICML 2022). The noise depends only on the seed and the size, so that no image depends on its batch.

    Args:
        image: (B,3,H,W), float32 or float64.
        rank: (B,1,H,W) from `pixel_rank`.
        steps: (S,) numbers of replaced pixels; if all pixels are replaced, none is left to guess from, and the result
            is 0.
        noise: standard deviation of the noise, in the image's units.
        seed: of the noise.

    Returns:
        (B,S,3,H,W), without a gradient.

    Example:
        >>> image = torch.tensor([0.0, 7.0, 0.5]).expand(1, 3, 1, 3)
        >>> imputed_images(image, torch.tensor([[[[1, 0, 2]]]]), [1], noise=0.0)[0, 0, 0]
        tensor([[0.0000, 0.2500, 0.5000]])
    """
    unknown = replaced(rank, steps)
    known = torch.where(unknown, 0, image.unsqueeze(1))
    solved = known + _solve(unknown.to(image.dtype), known)
    if noise:
        generator = torch.Generator().manual_seed(seed)
        field = noise * normal(image.shape[1:], generator)
        solved = solved + unknown * field.to(image)
    return solved


def curve_area(curve: Tensor, area: Area = "mean") -> Tensor:
    """The area under a curve whose points are equally spaced over [0, 1].

    Args:
        curve: (B,T) scores after 0, 1, ... T-1 steps.
        area: "mean" of all T points, or "trapezoid" rule, as in RISE's program (the end points count half).

    Returns:
        (B,).

    Example:
        >>> curve_area(torch.tensor([[1.0, 0.5, 0.0, 0.0]]))
        tensor([0.3750])
        >>> curve_area(torch.tensor([[1.0, 0.5, 0.0, 0.0]]), "trapezoid")
        tensor([0.3333])
    """
    check_choice("area", area, Area)
    return curve.mean(1) if area == "mean" else torch.trapezoid(curve, dim=1) / (curve.shape[1] - 1)


def aopc_score(curve: Tensor, origin: bool = False) -> Tensor:
    r"""Area over the perturbation curve, :math:`\frac{1}{L} \sum_{k=1}^{L} f(x_0) - f(x_k)`.

    Samek et al., "Evaluating the visualization of what a deep neural network has learned", TNNLS 2017, also count k = 0
    and divide by L + 1; Quantus, which the paper used, leaves out k = 0.

    Args:
        curve: (B,L+1) scores f(x_0) ... f(x_L) of the image after 0 .. L replaced regions.
        origin: whether k = 0 counts.

    Returns:
        (B,).

    Example:
        >>> aopc_score(torch.tensor([[0.75, 0.5, 0.25]])), aopc_score(torch.tensor([[0.75, 0.5, 0.25]]), origin=True)
        (tensor([0.3750]), tensor([0.2500]))
    """
    return (curve[:, :1] - curve)[:, 0 if origin else 1 :].mean(1)


def road_counts(total: int, percentiles: Sequence[int]) -> Tensor:
    """How many pixels lie at or above each percentile; ROAD replaces these.

    Args:
        total: number of pixels.
        percentiles: each in 1 .. 99; 80 replaces a fifth of the pixels.

    Returns:
        (S,) int64.

    Example:
        >>> road_counts(101, [20, 80])
        tensor([81, 21])
    """
    return torch.tensor([total + (-percentile * (total - 1)) // 100 for percentile in percentiles], device="cpu")


def replaced(rank: Tensor, steps: Tensor | Sequence[int]) -> Tensor:
    """(B,S,1,H,W) bool: the pixels that are replaced at each step."""
    return rank.unsqueeze(1) < torch.as_tensor(steps, device=rank.device).view(1, -1, 1, 1, 1)


def _inverse(order: Tensor) -> Tensor:
    """The inverse of each row's permutation, int32."""
    places = torch.arange(order.shape[1], dtype=torch.int32, device=order.device).expand_as(order)
    return torch.empty_like(places).scatter_(1, order, places)


def _neighbors(framed: Tensor) -> Tensor:
    """Weighted sum of the eight neighbors of maps in a frame of zeros, (...,H+2,W+2) -> (...,H,W).

    It is written with shifts because a convolution may compute in TF32, which is too coarse for the solver.
    """
    rows = torch.add(framed[..., :-2, :], framed[..., 1:-1, :], alpha=2).add_(framed[..., 2:, :])
    sums = torch.add(rows[..., :-2], rows[..., 1:-1], alpha=2).add_(rows[..., 2:])
    return sums.sub_(framed[..., 1:-1, 1:-1], alpha=4).div_(12)


def _solve(unknown: Tensor, known: Tensor) -> Tensor:
    """(D - W) v = W known on the unknown pixels (B,S,1,H,W), for known ones (B,S,3,H,W); D are the sums of weights W.

    On a CPU one image and step comes after the other, so that what is worked on stays in the cache.
    """
    if known.device.type != "cpu":
        return _conjugate_gradients(unknown, known)
    solved = torch.empty_like(known)
    for found, *system in zip(solved.flatten(0, 1), unknown.flatten(0, 1), known.flatten(0, 1), strict=True):
        found.copy_(_conjugate_gradients(*system))
    return solved


def _conjugate_gradients(unknown: Tensor, known: Tensor) -> Tensor:
    """Solve systems (...,3,H,W), all at the same time; see `_solve`.

    With D the matrix is symmetric and, as long as a single pixel is known, positive definite. A system that has
    converged stays unchanged, so that no system depends on the others.
    """
    frame = (1, 1, 1, 1)
    degree = _neighbors(F.pad(torch.ones_like(unknown), frame))
    v, spare = torch.zeros_like(known), torch.empty_like(known)
    residual = unknown * _neighbors(F.pad(known, frame))
    framed = F.pad(residual, frame)
    direction = framed[..., 1:-1, 1:-1]
    square = residual.square().sum((-2, -1), keepdim=True)
    enough = _TOLERANCE**2 * square
    for iteration in range(10 * sum(known.shape[-2:])):
        running = square > enough
        if iteration % _CHECK_EVERY == 0 and not running.any():
            break
        image = (degree * direction).sub_(_neighbors(framed)).mul_(unknown)
        curvature = torch.mul(direction, image, out=spare).sum((-2, -1), keepdim=True)
        length = torch.where(running, square / curvature, 0)
        v += torch.mul(length, direction, out=spare)
        residual -= torch.mul(length, image, out=spare)
        before, square = square, torch.where(running, residual.square().sum((-2, -1), keepdim=True), square)
        direction.mul_(torch.where(running, square / before, 0)).add_(residual)
    return v
