"""A frozen network on a CPU, where a gradient is only ever taken to the image.

PyTorch's layers have to serve training, too. For a network that is explained, four things cost time without need:

1. With one thread and fewer than 16 images, a convolution of 1x1 is a plain matrix product with copies around it.
   oneDNN does the same faster.
2. For a depthwise convolution with a stride, oneDNN has no fast backward kernel in bfloat16: the backward pass takes 10
   to 100 times as long as the forward pass. But the gradient to the input of a convolution is a convolution itself: of
   the output's gradient, with zeros between its cells where there is a stride, with weights that are turned by 180
   degrees and whose input and output channels are exchanged. Dense convolutions are left alone: their zeros would cost
   more than they bring.
3. The gradient to the image itself has few channels, for which oneDNN's backward kernel was not made. With a stride s,
   each of s*s kinds of pixels sees other weights; a convolution with s*s times as many output channels makes them all.
4. A clamp in place keeps a copy of its input for the backward pass, although its output tells as much. SiLU and
   Hardswish in place keep a copy, too, and are as good out of place while there is a gradient.

The outputs are the same but for the order of sums. Where a layer does not fit (another device or type, autocast,
oneDNN switched off), it is PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optcam_pl.private import forward_hooks, forward_pre_hooks

_Kind: TypeAlias = Literal["pointwise", "depthwise", "stem"]

_FEW = 4
"""Input channels of a stem."""
_SAME = ("timm.layers.conv2d_same", "Conv2dSame")  # module and class; importing it takes seconds


def use_onednn(network: nn.Module) -> int:
    """Replace, in place, the layers of a frozen network that are faster as this module has them.

    Args:
        network: nobody else's; it keeps its modules' names, parameters and buffers. Layers with hooks stay.

    Returns:
        How many layers were replaced.
    """
    found = 0
    for name, module in list(network.named_modules()):
        better = None if forward_hooks(module) or forward_pre_hooks(module) else _better(module)
        if better is not None:
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, better.train(module.training))
            found += 1
    return found


def _better(module: nn.Module) -> nn.Module | None:
    kind = type(module)
    if kind in (nn.ReLU6, nn.Hardtanh) and getattr(module, "inplace", False):
        return Clamp(module.min_val, module.max_val)  # type: ignore[arg-type]
    if kind in _ACTIVATIONS and getattr(module, "inplace", False):
        return Activation(kind)
    same = (kind.__module__, kind.__name__) == _SAME
    if not (kind is nn.Conv2d or same) or not isinstance(module, nn.Conv2d):
        return None
    how = _kind(module)
    return None if how is None else ConvolutionToInput(module, how, same)


def _kind(module: nn.Conv2d) -> _Kind | None:
    """What makes a convolution's gradient to its input a faster convolution; None where nothing does."""
    if isinstance(module.padding, str) or module.padding_mode != "zeros" or module.transposed:
        return None
    if module.groups == module.in_channels == module.out_channels > 1:
        return "depthwise" if min(_backward_padding(module, module.padding)) >= 0 else None
    if module.groups > 1:
        return None
    if module.in_channels <= _FEW and module.stride[0] == module.stride[1] > 1 and set(module.dilation) == {1}:
        return "stem"
    alone = module.stride == (1, 1) and module.padding == (0, 0)
    return "pointwise" if module.kernel_size == (1, 1) and alone else None


def _backward_padding(module: nn.Conv2d, padding: tuple[int, ...]) -> tuple[int, ...]:
    """What a convolution with turned weights has to be padded with, so that its output has the size of the image."""
    sizes = zip(module.kernel_size, module.dilation, padding, strict=True)
    return tuple(dilation * (kernel - 1) - pad for kernel, dilation, pad in sizes)


class ConvolutionToInput(nn.Conv2d):
    """A convolution whose backward pass makes the gradient to the input alone, as a convolution.

    Args:
        module: the layer to be replaced; its parameters are used, not copied.
        kind: what is done in the backward pass.
        same: whether it pads the image as TensorFlow's "same" does, which timm has a layer for.
    """

    turned: Tensor
    """The weights of the backward pass."""

    def __init__(self, module: nn.Conv2d, kind: _Kind, same: bool = False) -> None:
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        arguments: dict[str, Any] = {name: getattr(module, name) for name in names}
        with torch.device("meta"):  # no weights are made only to be thrown away
            super().__init__(**arguments, bias=module.bias is not None)
        self.weight, self.bias, self._kind, self._same = module.weight, module.bias, kind, same
        with torch.inference_mode(False), torch.no_grad():
            turned = _TURN[kind](module.weight.detach(), self.stride[0]).clone(memory_format=torch.contiguous_format)
            self.register_buffer("turned", turned, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """(B,C,H,W), as `torch.nn.Conv2d`."""
        image = self._padded(input) if self._same else input
        padding: Any = (0, 0) if self._same else self.padding
        if not self._by_onednn(image):
            return F.conv2d(image, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
        back = _backward_padding(self, padding)
        how = _How(self._kind, self.stride, padding, self.dilation, self.groups, self.kernel_size, back)
        image = image.contiguous(memory_format=torch.channels_last)
        output: Tensor = _Convolve.apply(image, self.weight, self.bias, self.turned, how)
        return output

    def _by_onednn(self, image: Tensor) -> bool:
        if image.device.type != "cpu" or image.ndim != 4 or not image.numel() or image.dtype != self.weight.dtype:
            return False
        if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or not _supported(image.dtype):
            return False
        if not (torch.is_grad_enabled() and image.requires_grad):
            return self._kind == "pointwise" and image.dtype == torch.float32  # PyTorch gives it all others itself
        # In float32, oneDNN's own backward kernel of a depthwise convolution is fast where there is a stride.
        return self._kind != "depthwise" or image.dtype == torch.bfloat16 or self.stride == (1, 1)

    def _padded(self, image: Tensor) -> Tensor:
        pads: list[int] = []
        for axis in (1, 0):  # torch pads the last axis first
            size, kernel = image.shape[2 + axis], self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            stride = self.stride[axis]
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [missing // 2, missing - missing // 2]
        return F.pad(image, pads) if any(pads) else image


def _phases(weight: Tensor, stride: int) -> Tensor:
    """(inputs*s*s,outputs,m,m): every s-th cell in both directions has its own m x m of the turned weights."""
    outputs, inputs, *kernel = weight.shape
    m = [-(-size // stride) for size in kernel]
    whole = F.pad(weight, (0, m[1] * stride - kernel[1], 0, m[0] * stride - kernel[0]))
    split = whole.view(outputs, inputs, m[0], stride, m[1], stride).permute(1, 3, 5, 0, 2, 4)
    return split.reshape(inputs * stride * stride, outputs, *m).flip(2, 3)


_TURN: dict[_Kind, Callable[[Tensor, int], Tensor]] = {
    "pointwise": lambda weight, stride: weight.transpose(0, 1),
    "depthwise": lambda weight, stride: weight.flip(2, 3),
    "stem": _phases,
}


class _How(NamedTuple):
    """What a pass has to know of the layer."""

    kind: _Kind
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    kernel: tuple[int, ...]
    back: tuple[int, ...]
    """The padding of the backward pass."""


class _Convolve(torch.autograd.Function):
    """A convolution of a frozen layer by oneDNN, and the gradient to its input by the same forward kernels."""

    @staticmethod
    def forward(image: Tensor, weight: Tensor, bias: Tensor | None, turned: Tensor, how: _How) -> Tensor:
        del turned
        return torch.mkldnn_convolution(image, weight, bias, how.padding, how.stride, how.dilation, how.groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        image, _, _, turned, how = inputs
        ctx.save_for_backward(turned)
        ctx.how, ctx.size = how, tuple(image.shape[2:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradients[0] is None:  # no gradient, which is not a gradient of zeros
            return (None,) * 5
        (turned,), how = ctx.saved_tensors, ctx.how
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        to_input = _by_phases if how.kind == "stem" else _by_turned
        return to_input(gradient, turned, how, ctx.size), None, None, None, None


def _by_turned(gradient: Tensor, turned: Tensor, how: _How, size: tuple[int, int]) -> Tensor:
    """The gradient at the size that the output would have without a stride, zero between its cells, convolved."""
    if how.stride != (1, 1):
        full = [size[i] + 2 * how.padding[i] - how.dilation[i] * (how.kernel[i] - 1) for i in (0, 1)]
        shape, between = (*gradient.shape[:2], *full), gradient
        gradient = torch.empty(shape, dtype=between.dtype, memory_format=torch.channels_last).zero_()
        gradient[:, :, :: how.stride[0], :: how.stride[1]] = between
    return torch.mkldnn_convolution(gradient, turned, None, how.back, (1, 1), how.dilation, how.groups)


def _by_phases(gradient: Tensor, turned: Tensor, how: _How, size: tuple[int, int]) -> Tensor:
    """See `_phases`: one convolution for all s*s kinds of cells, which are then put beside each other."""
    m = turned.shape[2:]
    parts = torch.mkldnn_convolution(gradient, turned, None, (m[0] - 1, m[1] - 1), (1, 1), (1, 1), 1)
    padded = F.pixel_shuffle(parts, how.stride[0])
    # Negative pads cut off what belongs to the padding of the image; cells that no output has seen are zero.
    (H, W), (top, left) = size, how.padding
    return F.pad(padded, (-left, W + left - padded.shape[3], -top, H + top - padded.shape[2]))


@lru_cache(None)
def _kernels(dtype: torch.dtype) -> bool:
    """Whether this CPU has oneDNN's kernels for a type."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        one = torch.ones(1, 1, 1, 1, dtype=dtype)
        torch.mkldnn_convolution(one, one, None, (0, 0), (1, 1), (1, 1), 1)
    except RuntimeError:  # bfloat16 needs instructions that older processors lack
        return False
    return True


def _supported(dtype: torch.dtype) -> bool:
    return bool(torch.backends.mkldnn.enabled) and _kernels(dtype)


class Clamp(nn.Module):
    """ReLU6 or Hardtanh in place that keeps nothing but its output."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, image: Tensor) -> Tensor:
        """The image itself, between `low` and `high` now."""
        if not torch.is_grad_enabled() or not image.requires_grad or torch.compiler.is_compiling():
            return F.hardtanh(image, self.low, self.high, inplace=True)
        clamped: Tensor = _ClampInPlace.apply(image, self.low, self.high)
        return clamped

    def extra_repr(self) -> str:
        """What is printed."""
        return f"{self.low}, {self.high}"


class _ClampInPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, low: float, high: float) -> Tensor:
        clamped = image.clamp_(low, high)
        ctx.mark_dirty(image)
        ctx.save_for_backward(clamped)
        ctx.limits = low, high
        ctx.set_materialize_grads(False)
        return clamped

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradients[0] is None:
            return None, None, None
        # Where the output lies at a limit, the input lay there or beyond, and the derivative is 0.
        (clamped,), (low, high) = ctx.saved_tensors, ctx.limits
        return torch.ops.aten.hardtanh_backward(gradients[0], clamped, low, high), None, None


_ACTIVATIONS = {nn.SiLU: F.silu, nn.Hardswish: F.hardswish}


class Activation(nn.Module):
    """SiLU or Hardswish that is in place only where no gradient is taken, because its derivative needs the input.

    Args:
        kind: which of them.
    """

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, image: Tensor) -> Tensor:
        """The image itself where no gradient is taken, otherwise another tensor."""
        return _ACTIVATIONS[self.kind](image, inplace=not torch.is_grad_enabled())

    def extra_repr(self) -> str:
        """What is printed."""
        return self.kind.__name__
