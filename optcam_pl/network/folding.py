"""A copy of a frozen network in which batch norms are part of the convolutions before them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized

from optcam_pl.network.copies import copied
from optcam_pl.network.errors import input_channels
from optcam_pl.network.layers import fixed_noise, zeros_for
from optcam_pl.network.precision import exact_products
from optcam_pl.private import forward_hooks, forward_pre_hooks
from optcam_pl.threads import hook_output

TOLERANCE = 1e-4
"""The largest difference of outputs that folding may make, relative to their largest magnitude. Float32 makes 3e-6."""

Run: TypeAlias = Callable[[nn.Module, Tensor], Any]

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_WITH_ACTIVATION = ("timm.layers.norm_act", "BatchNormAct2d")  # module and class; importing it takes seconds


@dataclass(frozen=True)
class Pair:
    """A convolution and the batch norm that takes its output, by their dotted names."""

    convolution: str
    norm: str


class Folded:
    """A copy of a network that gives the same outputs with fewer layers.

    1. One pass of noise shows which batch norms take exactly the output of a convolution; both must be called once.
       Other layers, layers with hooks and parametrized layers are left alone.
    2. ``y = g (W x + b - m) / s + h`` is one convolution with the weights ``g W / s`` and the bias ``g (b - m) / s +
       h``, computed in float64. The batch norm becomes an identity; timm's keeps its activation. All modules keep their
       names, so layers are found and recorded as before. Only the output of a folded convolution is another.
    3. The outputs of noise are compared with the network's own (`TOLERANCE`). Where they differ, for example because
       the convolution's output is used elsewhere, too, halves of the pairs are tried until the culprits are found.

    Args:
        network: it stays as it is.
        size: (H,W) of images in pixels.
        keep: names of layers whose outputs are recorded; their own convolution stays as it is.
        run: calls a network with images, where ``network(image)`` is not how it is used, and returns what of its output
            is explained; that is what is compared.

    Attributes:
        network: the copy.
        pairs: what is folded.
    """

    def __init__(
        self, network: nn.Module, size: tuple[int, int], keep: Iterable[str] = (), run: Run = nn.Module.__call__
    ) -> None:
        self.network, self._run = copied(network), run
        self._parts: dict[Pair, tuple[nn.Module, nn.Module]] = {}
        like = zeros_for(network, (1, 1))
        noise = fixed_noise(2, input_channels(network) or 3, *size).to(like)
        kept = set(keep)
        with torch.inference_mode(False), torch.no_grad(), exact_products():
            pairs, called = _pairs(self.network, noise, run)
            with _calls(network) as own:
                right = _tensors(run(network, noise))
            _check_copy(network, own, called)
            self._try([pair for pair in pairs if pair.convolution not in kept], noise, right)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The folded pairs, in the order of the network's calls."""
        return tuple(self._parts)

    def unfold(self, layer: str) -> bool:
        """Take a convolution and its batch norm apart again, because its own output is wanted.

        Returns:
            Whether this layer was folded.
        """
        found = [pair for pair in self._parts if pair.convolution == layer]
        for pair in found:
            self._undo(pair)
        return bool(found)

    def _try(self, pairs: Sequence[Pair], noise: Tensor, right: list[Tensor]) -> None:
        """Step 3."""
        for pair in pairs:
            self._fold(pair)
        if not pairs or _same(_tensors(self._run(self.network, noise)), right):
            return
        for pair in pairs:
            self._undo(pair)
        if len(pairs) > 1:
            half = len(pairs) // 2
            self._try(pairs[:half], noise, right)
            self._try(pairs[half:], noise, right)

    def _fold(self, pair: Pair) -> None:
        """Step 2."""
        convolution, norm = (self.network.get_submodule(name) for name in (pair.convolution, pair.norm))
        assert isinstance(convolution, nn.Conv2d)  # see _pairs
        assert isinstance(norm, _NORMS)  # timm's class is one, too
        self._parts[pair] = (convolution, norm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        w, b, m, v, g, h = (
            None if value is None else value.detach().double()
            for value in (
                *(convolution.weight, convolution.bias),
                *(norm.running_mean, norm.running_var, norm.weight, norm.bias),
            )
        )
        weight, bias = fuse_conv_bn_weights(w, b, m, v, norm.eps, g, h)  # type: ignore[arg-type]
        fused = copy.deepcopy(convolution)
        fused.weight = nn.Parameter(weight.to(convolution.weight), requires_grad=False)
        fused.bias = nn.Parameter(bias.to(convolution.weight), requires_grad=False)
        rest = [(name, child) for name, child in norm.named_children() if name in ("drop", "act")]
        self._put(pair.convolution, fused)
        self._put(pair.norm, nn.Sequential(OrderedDict(rest)).eval() if rest else nn.Identity().eval())

    def _undo(self, pair: Pair) -> None:
        convolution, norm = self._parts.pop(pair)
        like = self.network.get_submodule(pair.convolution).get_parameter("weight")  # it may have been moved meanwhile
        self._put(pair.convolution, convolution.to(like))
        self._put(pair.norm, norm.to(like))

    def _put(self, name: str, module: nn.Module) -> None:
        parent, _, own = name.rpartition(".")
        setattr(self.network.get_submodule(parent), own, module)


def _pairs(network: nn.Module, image: Tensor, run: Run) -> tuple[list[Pair], set[str]]:
    """Step 1 of `Folded`, and the names of the modules that are called."""
    outputs: dict[int, tuple[str, Tensor]] = {}
    inputs: list[tuple[str, Any]] = []
    calls: dict[str, int] = {}
    with _watching(network, outputs, inputs, calls), _calls(network) as called:  # hooked layers are not folded
        run(network, image)
    pairs = []
    for norm, given in inputs:
        convolution, output = outputs.get(id(given), ("", None))
        if output is given and calls[norm] == calls[convolution] == 1:
            pairs.append(Pair(convolution, norm))
    return pairs, called


@contextmanager
def _calls(network: nn.Module) -> Iterator[set[str]]:
    """The names of the modules that are called meanwhile."""
    called: set[str] = set()
    with ExitStack() as stack:
        for name, module in network.named_modules():
            stack.callback(hook_output(module, partial(_note, called, name)))
        yield called


def _note(called: set[str], name: str, *_given: Any) -> None:
    called.add(name)


def _check_copy(network: nn.Module, own: set[str], of_copy: set[str]) -> None:
    """Check that a copy runs its own modules.

    Raises:
        ValueError: it runs those that it was copied from, which somebody has bound into a function.
    """
    if missing := [name for name, _ in network.named_modules() if name in own - of_copy]:
        raise ValueError(
            f"Expected {type(network).__name__} to be a network that can be copied, as every `speed` but plain needs, "
            f"but the copy does not run its own {missing[0]!r}: the forward of a part around it is a function that "
            "holds the original, as after `network.forward = function`. Give `speed` plain, or put the function into a "
            "torch.nn.Module around the network."
        )


class _watching:  # noqa: N801 (used like a function, as contextlib's own)
    """Hooks that note the outputs of convolutions and the inputs of batch norms; gone on exit."""

    def __init__(
        self,
        network: nn.Module,
        outputs: dict[int, tuple[str, Tensor]],
        inputs: list[tuple[str, Any]],
        calls: dict[str, int],
    ) -> None:
        self._network, self._outputs, self._inputs, self._calls = network, outputs, inputs, calls
        self._undo: list[Callable[[], object]] = []

    def __enter__(self) -> None:
        for name, module in list(_foldable(self._network)):
            self._calls[name] = 0
            self._undo.append(hook_output(module, self._hook(name)))

    def __exit__(self, *error: object) -> None:
        for undo in self._undo:
            undo()

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._calls[name] += 1
            if isinstance(module, nn.Conv2d):
                self._outputs[id(output)] = (name, output)  # kept, so that no other tensor gets its id
            elif args:
                self._inputs.append((name, args[0]))

        return hook


def _foldable(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The convolutions and batch norms that may be folded, each by its only name."""
    for name, module in network.named_modules():
        hooked = forward_hooks(module) or forward_pre_hooks(module) or "forward" in vars(module)
        kind = type(module)
        known = kind in _NORMS or (kind.__module__, kind.__name__) == _WITH_ACTIVATION
        norm = known and getattr(module, "running_mean", None) is not None
        if (norm or isinstance(module, nn.Conv2d)) and not (hooked or is_parametrized(module) or module.training):
            yield name, module


def _tensors(output: Any) -> list[Tensor]:
    """All tensors of a network's output."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if is_dataclass(output):
        output = [getattr(output, field.name) for field in fields(output)]
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in _tensors(value)]
    return [tensor for value in output for tensor in _tensors(value)] if isinstance(output, (tuple, list)) else []


def _same(ours: list[Tensor], right: list[Tensor]) -> bool:
    """Whether outputs are equal but for rounding; without any tensor nothing is proved."""
    compared = [b for b in right if b.numel()]
    return bool(compared) and all(
        a.shape == b.shape
        and (not b.numel() or bool((a - b).abs().max() <= max(TOLERANCE, 8 * torch.finfo(b.dtype).eps) * b.abs().max()))
        for a, b in zip(ours, right, strict=True)
    )
