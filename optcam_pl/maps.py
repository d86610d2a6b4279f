"""Tensor math that explainers and probes share: combine, upsample, normalize, baselines, masking.

Shape letters, the same in every file: B images, C classes, K channels, h x w feature grid, H x W image, T steps.
Everything here is differentiable, works on any device, and stays on that device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

Baseline: TypeAlias = Literal["black", "mean", "blur"] | tuple[float, float, float]
Normalizer: TypeAlias = Literal["range", "max", "sigmoid"]

_BLUR_KERNEL, _BLUR_SIGMA = 11, 5.0
_ROUNDING = 4  # in units of the format's eps; see _speaks


def combine(weights: Tensor, features: Tensor) -> Tensor:
    """Weighted sum of feature maps, ``S = sum_k w_k A_k``.

    Args:
        weights: (B,K) one weight per channel.
        features: (B,K,h,w) feature maps A.

    Returns:
        (B,1,h,w).

    >>> combine(torch.tensor([[0.25, 0.75]]), torch.tensor([[[[4.0]], [[8.0]]]]))
    tensor([[[[7.]]]])
    """
    # A separate matrix product for each image, so that its result does not depend on the other images. Autocast would
    # round the weights, but Opti-CAM's optimizer moves them by less than bfloat16 can resolve.
    with torch.autocast(weights.device.type, enabled=False):
        maps = torch.bmm(weights.unsqueeze(1), features.flatten(2))
    return maps.view(features.shape[0], 1, *features.shape[2:])


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear upsampling to the image's resolution, corners not aligned.

    Args:
        maps: (B,K,h,w).
        size: (H,W) in pixels.

    Returns:
        (B,K,H,W).

    >>> upsample(torch.tensor([[[[0.0, 4.0]]]]), (1, 4))
    tensor([[[[0., 1., 3., 4.]]]])
    """
    if maps.is_cuda and maps.requires_grad and torch.is_grad_enabled() and maps.dtype in (torch.float32, torch.float64):
        upsampled: Tensor = Upsampled.apply(maps, size)
        return upsampled
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


class Upsampled(torch.autograd.Function):
    """Bilinear upsampling whose gradient is two matrix products.

    On a GPU, PyTorch adds the gradient up with atomic additions, hundreds of pixels into each cell. That takes as long
    as a fifth of a ResNet50's passes, and the sum's last digits change from call to call.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """See `upsample`."""
        ctx.cells = (maps.shape[2], maps.shape[3])
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """See `upsampled_gradient`."""
        return upsampled_gradient(gradients[0], ctx.cells), None


def upsampled_gradient(gradient: Tensor, cells: tuple[int, int]) -> Tensor:
    """The gradient of `upsample`, (B,K,H,W) -> (B,K,h,w), in float32 or float64.

    Args:
        gradient: of a function with respect to the upsampled maps.
        cells: (h,w).
    """
    (h, w), (B, K, H, W) = cells, gradient.shape
    rows, columns = (_interpolation(*sides, gradient.dtype, gradient.device) for sides in ((h, H), (w, W)))
    with torch.autocast(gradient.device.type, enabled=False):
        narrow = (gradient.reshape(B * K * H, W) @ columns.mT).view(B * K, H, w)
        return torch.bmm(rows.expand(B * K, h, H), narrow).view(B, K, h, w)


@functools.cache  # captured passes go on to read it, so that nothing may be dropped
def _interpolation(cells: int, side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(cells,side): the weight of each cell for each pixel of one axis."""
    with torch.inference_mode(False), torch.no_grad():
        eye = torch.eye(cells, dtype=dtype, device=device).unsqueeze(0)
        return F.interpolate(eye, size=side, mode="linear", align_corners=False)[0].contiguous()


def degenerate(maps: Tensor, how: Normalizer = "range") -> Tensor:
    """Which maps say nothing: constant up to rounding, or with a value that is not finite.

    Check a map *before* it is upsampled: interpolation turns a constant into rounding noise. A map is constant if its
    largest and smallest values differ by at most four rounding units of its largest magnitude, so its scale does not
    matter. A spread below the smallest normal number counts as zero.

    Args:
        maps: (B,K,H,W) or (B,H,W).
        how: the normalizer that follows; for `max`, a map without a positive value says nothing either.

    Returns:
        (B,) bool.

    >>> degenerate(torch.tensor([[[[1.0, 2.0]]], [[[3.0, 3.0]]], [[[0.0, float("nan")]]], [[[1e6, 1e6 + 1]]]]))
    tensor([False,  True,  True, False])
    """
    flat = maps.detach().flatten(1)
    return ~_speaks(flat.amin(1), flat.amax(1), how)


def _speaks(low: Tensor, high: Tensor, how: Normalizer) -> Tensor:
    """Whether maps with these extremes say something."""
    info = torch.finfo(low.dtype)
    span = high - low
    # Bilinear interpolation of a constant errs by up to 3.5 eps relative to it (tried on many sizes), the mean of six
    # views by 2.5; hence 4. The relative distance of neighboring numbers is eps / 2 to eps: a signal of more than eight
    # steps of the format is kept, no matter how large its offset is.
    noise = _ROUNDING * info.eps * torch.maximum(low.abs(), high.abs())
    speaks = torch.isfinite(span) & (span > noise) & (span > info.tiny)
    return speaks & (high > info.tiny) if how == "max" else speaks


def level(maps: Tensor, features: Tensor) -> Tensor:
    """Remove from a combination of feature maps what comes from rounding alone.

    If all feature maps of an image are constant, so is every weighted sum of them. The computed sum is not quite
    constant: it runs over many channels that may cancel, and its rounding differs from position to position.

    Args:
        maps: (B,1,h,w).
        features: (B,K,h,w) from which `maps` was computed.

    Returns:
        (B,1,h,w): `maps`; for an image whose features are all constant, its first value everywhere.

    >>> level(torch.tensor([[[[1e-8, 2e-8]]]]), torch.tensor([[[[3.0, 3.0]], [[-3.0, -3.0]]]]))
    tensor([[[[1.0000e-08, 1.0000e-08]]]])
    """
    return torch.where(constant(features).view(-1, 1, 1, 1), maps[:, :, :1, :1], maps)


def constant(features: Tensor) -> Tensor:
    """(B,K,h,w) -> (B,): whether every channel of an image is finite and constant up to rounding."""
    low, high = features.detach().flatten(2).aminmax(dim=2)
    noise = _ROUNDING * torch.finfo(low.dtype).eps * torch.maximum(low.abs(), high.abs())
    return (torch.isfinite(high - low) & (high - low <= noise)).all(1)


def normalize(maps: Tensor, how: Normalizer = "range", silent: Tensor | None = None) -> Tensor:
    """Bring each map into [0,1]: the n of PROTOCOL's ``s(x; u) = n(up(S(x; u)))``.

    ========  ==========================================
    range     (A - min)/(max - min)
    max       max(A, 0)/max
    sigmoid   1/(1 + exp(-A))
    ========  ==========================================

    The extremes are those of the single map (of each channel of an image), never those of the batch. A map becomes
    zeros if it is constant up to rounding (see `degenerate`), if it has a value that is not finite, or, for `max`, if
    it has no positive value. Gradients there are also zero, never NaN.

    Args:
        maps: (B,K,H,W).
        how: the normalizer.
        silent: bool, broadcasts to (B,K,1,1): maps that are known to say nothing; they also become zeros.

    Returns:
        (B,K,H,W) in [0,1].

    >>> normalize(torch.tensor([[[[1.0, 2.0, 5.0]]]]))
    tensor([[[[0.0000, 0.2500, 1.0000]]]])
    >>> normalize(torch.tensor([[[[1.0, 2.0, 5.0]]]]), "max")
    tensor([[[[0.2000, 0.4000, 1.0000]]]])
    >>> normalize(torch.full((1, 1, 1, 2), 7.0), "sigmoid")
    tensor([[[[0., 0.]]]])
    """
    with torch.no_grad():
        low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
        valid = _speaks(low, high, how)
        if silent is not None:
            valid = valid & ~silent
    # Invalid maps are replaced before anything else, so that no NaN can come back through a gradient.
    maps = torch.where(valid, maps, 0)
    if how == "sigmoid":
        return torch.where(valid, maps.sigmoid(), 0)
    if torch.is_grad_enabled() and maps.requires_grad:  # the extremes again, as the gradient goes through them
        low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    high = torch.where(valid, high, 1)
    if how == "range":
        low = torch.where(valid, low, 0)
        return (maps - low) / (high - low)
    if how == "max":
        return maps.clamp(min=0) / high
    raise ValueError(f"Expected `how` to be one of {get_args(Normalizer)}, but got {how!r}.")


def check_baseline(baseline: object) -> Baseline:
    """Check a baseline and return it.

    Raises:
        ValueError: it is neither a known name nor three numbers in [0,1].

    >>> check_baseline([0, 0.5, 1])
    (0.0, 0.5, 1.0)
    """
    if baseline == "black" or baseline == "mean" or baseline == "blur":  # noqa: PLR1714 (mypy narrows only this form)
        return baseline
    if isinstance(baseline, (tuple, list)) and len(baseline) == 3:
        red, green, blue = (float(value) for value in baseline)
        if all(0 <= value <= 1 for value in (red, green, blue)):
            return red, green, blue
    raise ValueError(
        f"Expected `baseline` to be 'black', 'mean', 'blur' or three numbers in [0, 1] (RGB), but got {baseline!r}."
    )


@functools.cache
def _blur_kernel() -> Tensor:
    """The kernel of RISE's program: a Gaussian filter's response to one point on an 11 x 11 grid, borders reflected."""
    point = torch.zeros(_BLUR_KERNEL, dtype=torch.float64, device="cpu")
    point[_BLUR_KERNEL // 2] = 1
    return torch.from_numpy(gaussian_filter(point.numpy(), _BLUR_SIGMA))


def blur(image: Tensor, border: Tensor) -> Tensor:
    """Gaussian blur, 11 x 11 pixels, sigma 5 (Petsiuk et al., RISE, 2018: the start of insertion).

    Args:
        image: (B,3,H,W).
        border: (3,) the color outside of the image. RISE pads the normalized image with zeros, that is with the
            network's mean color.

    Returns:
        (B,3,H,W).
    """
    return separable_blur(image, _blur_kernel(), border)


def separable_blur(image: Tensor, kernel: Tensor, border: Tensor) -> Tensor:
    """Convolution of each channel with one kernel along the columns, then along the rows.

    Args:
        image: (B,3,H,W).
        kernel: (n,) weights, n odd.
        border: (3,) the color that lies outside of the image.

    Returns:
        (B,3,H,W).
    """
    pad, border, C = len(kernel) // 2, border.to(image).view(1, -1, 1, 1), image.shape[1]
    kernel = kernel.to(image).view(1, 1, -1, 1).expand(C, 1, -1, 1)
    columns = F.conv2d(F.pad(image - border, (0, 0, pad, pad)), kernel, groups=C)
    return F.conv2d(F.pad(columns, (pad, pad, 0, 0)), kernel.mT, groups=C) + border


def baseline_image(image: Tensor, baseline: Baseline, mean: Tensor) -> Tensor:
    """The image that appears where the mask is 0.

    Args:
        image: (B,3,H,W) in [0,1].
        baseline: "black" (pixel 0), "mean" (the network's mean color), "blur", or an RGB triple in [0,1].
        mean: (3,) the network's mean color.

    Returns:
        A tensor that broadcasts to (B,3,H,W).

    >>> baseline_image(torch.ones(1, 3, 2, 2), (0.0, 0.5, 1.0), torch.zeros(3)).flatten()
    tensor([0.0000, 0.5000, 1.0000])
    """
    if baseline == "black":
        return image.new_zeros(1, image.shape[1], 1, 1)
    if baseline == "mean":
        return mean.to(image).view(1, -1, 1, 1)
    if baseline == "blur":
        return blur(image, mean)
    if image.shape[1] != 3:
        raise ValueError(
            f"Expected `baseline` to be black, mean or blur for images of {image.shape[1]} channels, but got "
            f"{baseline}."
        )
    return image.new_tensor(check_baseline(baseline)).view(1, 3, 1, 1)


def of_class(scores: Tensor, target: Tensor) -> Tensor:
    """The score of each image's class, in the precision of the scores.

    Args:
        scores: (B,C) logits or probabilities.
        target: (B,) classes.

    Returns:
        (B,).

    >>> of_class(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 0]))
    tensor([2., 3.])
    """
    return scores.gather(1, target.unsqueeze(1)).squeeze(1)


def wide(values: Tensor) -> Tensor:
    """The tensor in float64 if it is in that, else in float32, whatever precision a network ran in."""
    return values.double() if values.element_size() > 4 else values.float()


def uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Random numbers in [0,1), float32 on the CPU: they depend on the generator alone, not on torch's default type."""
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float32, device="cpu")


def normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Random numbers of the standard normal distribution; otherwise as `uniform`."""
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32, device="cpu")


def mask_image(image: Tensor, saliency: Tensor, reference: Tensor | None = None) -> Tensor:
    """``x . s``: the salient part stays, the rest fades into the reference.

    Args:
        image: (B,3,H,W) in [0,1], *before* mean/std.
        saliency: (B,1,H,W) in [0,1].
        reference: broadcasts to (B,3,H,W); None is black.

    Returns:
        (B,3,H,W): ``reference + (image - reference) * saliency``.

    >>> mask_image(torch.full((1, 3, 1, 1), 0.5), torch.full((1, 1, 1, 1), 0.5), torch.ones(1, 3, 1, 1)).flatten()
    tensor([0.7500, 0.7500, 0.7500])
    """
    if reference is None:
        return image * saliency
    return reference + (image - reference) * saliency


def finite_range(values: Tensor) -> tuple[float, float]:
    """Smallest and largest value in one pass; NaN if any value is NaN.

    >>> finite_range(torch.tensor([1.0, 3.0]))
    (1.0, 3.0)
    """
    if values.numel() == 0:
        return math.nan, math.nan
    low, high = torch.aminmax(values.detach())
    return float(low), float(high)
