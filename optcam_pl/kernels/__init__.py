"""What surrounds a network's pass on a GPU, in one kernel instead of ten: masks, normalization, the stop rule.

A pass of eight images takes two milliseconds on a large GPU, and a small operation on a tensor one or two
microseconds. An iteration of Opti-CAM has a hundred and forty of them around its pass; with these kernels, thirty.

They are used by the fast speeds (see `optcam_pl.network.speed`), never by "plain". `usable` proves them once on each
device against the functions of `optcam_pl.maps`; where Triton or a compiler is missing, or a number differs, those
functions do the work, and one line of the log says why.

Shape letters: B images, C channels of an image, k masks of each, h x w feature grid, H x W image.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optcam_pl.maps import degenerate, mask_image, normalize, upsample, upsampled_gradient

_logger = logging.getLogger(__name__)
_BLOCK = 1024  # numbers that a program writes
_FEW = 1024  # cells of a map that every program may look at
_ROUNDING = 4  # as in `maps.degenerate`
_TOLERANCE = 1e-4  # of the proof, relative to the largest value
_lock = threading.Lock()
_proved: dict[torch.device, bool] = {}


def current(device: torch.device) -> bool:
    """Whether it is the GPU on which this thread launches kernels and captures, as `torch.cuda.set_device` sets it.

    On another one neither works, and PyTorch's own operations do the work.
    """
    if device.type != "cuda":
        return False
    if device.index in (None, torch.cuda.current_device()):
        return True
    _tell_other(device)
    return False


@functools.cache
def _tell_other(device: torch.device) -> None:
    _logger.warning(
        "Passes on %s are neither replayed nor fused, because this thread's current GPU is cuda:%d: call"
        " torch.cuda.set_device(%d) first.",
        *(device, torch.cuda.current_device(), device.index),
    )


def usable(device: torch.device) -> bool:
    """Whether the kernels run on a device and give the right numbers; they are tried once.

    Inside a capture nothing can be tried, and the answer is False for a device that was not tried before.
    """
    if not current(device):
        return False
    with _lock:
        if device not in _proved:
            if torch.cuda.is_current_stream_capturing():
                return False
            _proved[device] = _works(device)
        return _proved[device]


def masked_input(
    image: Tensor, masks: Tensor, under: Tensor | None, mean: Tensor, std: Tensor, dtype: torch.dtype
) -> Tensor:
    """Masked images as a network takes them: ``((reference + (x - reference) m) - mean) / std``.

    Args:
        image: (B,C,H,W) float32.
        masks: (B,k,H,W) float32; a gradient goes to them alone, and only if they are not broadcast.
        under: what masking fades into, broadcasts to (B,C,H,W); None is black.
        mean: (C,) float32.
        std: (C,) float32.
        dtype: of the result.

    Returns:
        (B k,C,H,W) in channels-last order, without a gradient to the image.
    """
    result: Tensor = _Masked.apply(masks, image, under, mean, std, dtype)
    return result


def stretched(maps: Tensor, size: tuple[int, int], silent: Tensor) -> tuple[Tensor, Tensor]:
    """Maps upsampled to the image's size and brought into [0,1] by their range.

    Args:
        maps: (B,1,h,w) float32.
        size: (H,W) in pixels.
        silent: (B,) bool: maps that are known to say nothing.

    Returns:
        (B,1,H,W), zeros where a map says nothing; and (B,) bool, whether the map before upsampling did.
    """
    mapped, says_nothing = _Stretched.apply(maps, size, silent)
    return mapped, says_nothing


def judge(state: Sequence[Tensor], size: Tensor, tol: float, eps: float, patience: int) -> None:
    """The stop rule of `optcam_pl.explainers.ascent.Ascent.judge`, in place.

    Args:
        state: F (B,) float32, what it is compared with (B,) float32, iterations without movement (B,) int32, which
            images are active (B,) bool, and whether nothing was compared yet () bool.
        size: (B,) the size of the logits.
        tol: see `StopRule`.
        eps: see `StopRule`.
        patience: see `StopRule`.
    """
    value, kept, still, active, fresh = state
    block = _power(len(value))
    _code().judge[(1,)](
        value, size, kept, still, active.view(torch.int8), fresh.view(torch.int8), tol, eps / 2, len(value), patience,
        EPS=eps > 0, BLOCK=block,
    )  # fmt: skip


class _Masked(torch.autograd.Function):
    """See `masked_input`."""

    @staticmethod
    def forward(
        ctx: Any, masks: Tensor, image: Tensor, under: Tensor | None, mean: Tensor, std: Tensor, dtype: torch.dtype
    ) -> Tensor:
        B, k, H, W = masks.shape
        C, image = image.shape[1], image.contiguous()
        if masks.stride()[2:] != (W, 1):
            masks = masks.contiguous()
        below, strides = _below(under, image)
        out = torch.empty(B * k, C, H, W, dtype=dtype, device=image.device, memory_format=torch.channels_last)
        _code().masked[B * k, _blocks(H * W * C, _BLOCK)](
            image, masks, below, mean, std, out, H * W, k, image.stride(0), masks.stride(0), masks.stride(1), *strides,
            CHANNELS=C, UNDER=under is not None, BLOCK=_BLOCK,
        )  # fmt: skip
        ctx.save_for_backward(image, below, std)
        ctx.masks, ctx.strides, ctx.under = masks.shape, strides, under is not None
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (image, below, std), (B, k, H, W), C = ctx.saved_tensors, ctx.masks, ctx.saved_tensors[0].shape[1]
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        out = image.new_empty(B, k, H, W)
        _code().masked_gradient[B * k, _blocks(H * W, _BLOCK)](
            gradient, image, below, std, out, H * W, k, image.stride(0), *ctx.strides,
            CHANNELS=C, UNDER=ctx.under, BLOCK=_BLOCK,
        )  # fmt: skip
        return out, None, None, None, None, None


class _Stretched(torch.autograd.Function):
    """See `stretched`."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, size: tuple[int, int], silent: Tensor) -> tuple[Tensor, Tensor]:
        full = upsample(maps, size).contiguous()
        low, high = full.flatten(1).aminmax(dim=1)
        mapped, says_nothing = torch.empty_like(full), torch.empty_like(silent)
        few = maps.flatten(1).contiguous()
        if few.shape[1] > _FEW:  # its extremes say as much
            few = torch.stack(few.aminmax(dim=1), 1)
        pixels, cells = full[0].numel(), few.shape[1]
        _code().stretch[len(full), _blocks(pixels, _BLOCK)](
            full, low, high, few, silent.view(torch.int8), mapped, says_nothing.view(torch.int8),
            pixels, cells, *_limits(full.dtype), CELLS=_power(cells), BLOCK=_BLOCK,
        )  # fmt: skip
        ctx.save_for_backward(full, low, high, mapped)
        ctx.size = (maps.shape[2], maps.shape[3])
        ctx.mark_non_differentiable(says_nothing)
        return mapped, says_nothing

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        full, low, high, mapped = ctx.saved_tensors
        gradient, pixels = gradients[0].contiguous(), full[0].numel()
        blocks = _blocks(pixels, _BLOCK)
        out, sums = torch.empty_like(full), full.new_empty(len(full), blocks, 8)
        _code().stretch_sums[len(full), blocks](gradient, full, low, high, mapped, sums, pixels, blocks, BLOCK=_BLOCK)
        _code().stretch_gradient[len(full), blocks](
            gradient, full, low, high, sums, out, pixels, blocks, BLOCKS=_power(blocks), BLOCK=_BLOCK
        )
        return upsampled_gradient(out, ctx.size), None, None


def _below(under: Tensor | None, image: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """The reference, and its strides over images, channels and pixels."""
    if under is None:
        return image, (0, 0, 0)
    if under.shape[2:] == (1, 1):
        expanded = under.to(image).expand(*image.shape[:2], 1, 1)
        return expanded, (expanded.stride(0), expanded.stride(1), 0)
    whole = under.to(image).expand_as(image).contiguous()
    return whole, (whole.stride(0), whole.stride(1), 1)


def _limits(dtype: torch.dtype) -> tuple[float, float]:
    info = torch.finfo(dtype)
    return _ROUNDING * info.eps, info.tiny


def _blocks(numbers: int, block: int) -> int:
    return -(-numbers // block)


def _power(count: int) -> int:
    """The smallest power of two that holds so many."""
    return 1 << max(count - 1, 0).bit_length()


@functools.cache
def _code() -> Any:
    """The kernels; importing them takes a moment."""
    from optcam_pl.kernels import code

    return code


def _works(device: torch.device) -> bool:
    try:
        with torch.cuda.device(device), torch.inference_mode(False), torch.autocast("cuda", enabled=False):
            prove(device)
    except Exception as error:  # a compiler may fail in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        _logger.info("Images are masked by PyTorch's own operations on %s, not by one kernel, as %s", device, reason)
        return False
    return True


def prove(device: torch.device) -> None:
    """Compare the kernels with the functions that they replace, on noise.

    Raises:
        ValueError: a number differs by more than rounding.
        Exception: they cannot be compiled.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu").to(device)

    maps, image, mean, std = noise(3, 1, 3, 5), noise(3, 3, 33, 41), noise(3), noise(3) + 0.5
    maps[2] = 1.0  # says nothing
    silent = torch.zeros(3, dtype=torch.bool, device=device)
    seed = noise(3, 3, 33, 41)
    for under in (None, noise(3).view(1, 3, 1, 1), noise(3, 3, 33, 41)):
        found, known = maps.clone().requires_grad_(), maps.clone().requires_grad_()
        with torch.enable_grad():
            mapped, nothing = stretched(found, (33, 41), silent)
            ours = masked_input(image, mapped, under, mean, std, torch.float32)
            right_map = normalize(upsample(known, (33, 41)), silent=degenerate(known).view(-1, 1, 1, 1))
            right = (mask_image(image, right_map, under) - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
            pairs = [(mapped, right_map), (ours, right), (nothing.float(), degenerate(known).float())]
            pairs.append((torch.autograd.grad(ours, found, seed)[0], torch.autograd.grad(right, known, seed)[0]))
        for a, b in pairs:
            if not float((a - b).detach().abs().max()) <= _TOLERANCE * float(b.detach().abs().max()):
                raise ValueError("a number differs by more than rounding.")
    value, active, fresh = noise(3), torch.ones_like(silent), silent[0].clone()
    kept, still = value + noise(3).new_tensor([0.0, 0.5, 0.0]), torch.zeros_like(value, dtype=torch.int32)
    judge((value, kept, still, active, fresh), value, 0.1, 0.0, 1)
    if active.tolist() != [False, True, False] or still.tolist() != [1, 0, 1] or not torch.equal(kept, value):
        raise ValueError("the stop rule differs.")
