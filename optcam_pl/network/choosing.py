"""Chooses the layer to explain if the user names none, and says what is wrong with a layer that the user names.

A layer can be explained if one pass calls it once, if its output is a grid (or tokens that lie on one) of more than one
cell for each image, and if a gradient of the scores reaches that grid. After a transformer's last attention the
gradient reaches only the class token; after the decoder of another task it reaches nothing at all.

Shape letters: B images, C classes, K channels, h x w feature grid, H x W image, N tokens.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optcam_pl.checks import nearest
from optcam_pl.network.capture import capture, own_grad_mode
from optcam_pl.network.errors import NetworkError, backward_error
from optcam_pl.network.layers import Layout, family_candidates, fixed_noise, to_grid, zeros_for
from optcam_pl.threads import hook_output

_ROUND = 16  # layers per gradient pass: their activations are in memory at the same time
_BORDER = 4  # cells
_IMAGES = 2  # a single image would hide that its one window or patch lies in the batch dimension


@dataclass(frozen=True)
class TracedLayer:
    """The output of one module in a traced pass.

    Attributes:
        name: dotted name in the network.
        shape: shape of the output of its first call.
        calls: how often it was called.
        source: the module whose output, unchanged, is its input; None if there is none.
    """

    name: str
    shape: tuple[int, ...]
    calls: int = 1
    source: str | None = None


@dataclass(frozen=True)
class Probe:
    """A network to examine: the function of images to explain, and the layout of its activations.

    Attributes:
        run: images (B,3,H,W) -> scores (B,C).
        network: the module that the layers belong to.
        size: (H,W).
        layout: see `optcam_pl.network.layers.to_grid`.
        channels: the images' channels.
    """

    run: Callable[[Tensor], Tensor]
    network: nn.Module
    size: tuple[int, int]
    layout: Layout = "auto"
    channels: int = 3

    @property
    def images(self) -> Tensor:
        """Fixed images of noise: two different ones, or one for a network that takes only one image at a time."""
        return self._pass[0]

    @property
    def traced(self) -> dict[str, TracedLayer]:
        """Name -> layer, in the order in which the calls finish."""
        return self._pass[1]

    @functools.cached_property
    def _pass(self) -> tuple[Tensor, dict[str, TracedLayer]]:
        like = zeros_for(self.network, (1, 1))
        with torch.inference_mode(False):
            images = fixed_noise(_IMAGES, self.channels, *self.size).to(like)
        try:
            return images, self._trace(images)
        except Exception:  # any exception of a network that takes one image at a time
            return images[:1], self._trace(images[:1])

    def _trace(self, images: Tensor) -> dict[str, TracedLayer]:
        with torch.inference_mode(False), torch.no_grad(), _evaluating(self.network):
            return {layer.name: layer for layer in trace(self.network, lambda: self.run(images))}

    def grid(self, name: str) -> tuple[int, int, int] | None:
        """(K,h,w) of a traced layer's output; None if it has no grid."""
        try:
            shape = torch.empty(self.traced[name].shape, device="meta")
            grid = to_grid(shape, self.size, self.layout, self.network, name).shape
        except ValueError:
            return None
        return (grid[1], grid[2], grid[3])

    def fault(self, name: str) -> str | None:
        """Why a layer cannot be explained, as the end of a sentence that begins with its name; None if it can be."""
        layer = self.traced.get(name)
        if layer is None:
            return "was not called in the network's forward pass, or outputs no tensor"
        if layer.calls > 1:
            return f"was called {layer.calls} times in one forward pass, so it has no single activation"
        if len(layer.shape) in (3, 4) and layer.shape[0] != len(self.images):
            return (
                f"outputs the shape {layer.shape} for {len(self.images)} images: its batch dimension is not the"
                " images' (windows, patches or tokens lie there)"
            )
        grid = self.grid(name)
        if grid is None:
            return f"outputs the shape {layer.shape}, which is no grid of features for images of this size"
        return None

    def reached(self, names: Sequence[str]) -> dict[str, bool]:
        """Whether a gradient of the scores reaches each layer's grid: more than one cell where there are several."""
        modules = {name: self.network.get_submodule(name) for name in names}
        with own_grad_mode(), _evaluating(self.network), capture(modules, cut=True) as record:
            scores = self.run(self.images)
            # All classes, with different weights: the plain sum of probabilities is 1, whatever the features are.
            generator = torch.Generator().manual_seed(0)
            weights = torch.randn(scores.shape[1], generator=generator, dtype=torch.float32, device="cpu").to(scores)
            found = [name for name in names if name in record]
            if not scores.requires_grad or not found:
                return dict.fromkeys(names, False)
            try:
                gradients = torch.autograd.grad((scores @ weights).sum(), [record[n] for n in found], allow_unused=True)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # such as gradient checkpointing
                raise backward_error(error, type(self.network).__name__, self.network) from error
        reached = dict(zip(found, map(self._reaches, gradients, found), strict=True))
        return {name: reached.get(name, False) for name in names}

    def _reaches(self, gradient: Tensor | None, name: str) -> bool:
        if gradient is None:
            return False
        cells = (to_grid(gradient, self.size, self.layout, self.network, name) != 0).any(1).flatten(1)
        return int(cells.sum(1).max()) >= min(2, cells.shape[1])


def trace(network: nn.Module, run: Callable[[], object]) -> list[TracedLayer]:
    """Run once and list the modules in the order in which they finish, with the shapes of their outputs.

    Modules whose output is no tensor are left out. The hooks are removed on return, also after an exception.

    Args:
        network: the network whose modules are listed, by their names in it.
        run: called without arguments; it must run the network once.
    """
    calls: dict[str, list[tuple[tuple[int, ...], str | None]]] = {}
    made: dict[int, tuple[str, weakref.ref[Tensor]]] = {}  # a freed tensor's id may be reused

    def maker(tensor: object) -> str | None:
        name, made_by_it = made.get(id(tensor), ("", None))
        return name if made_by_it is not None and made_by_it() is tensor else None

    def record(name: str, module: nn.Module, args: Any, output: Any) -> None:
        output = output[0] if isinstance(output, (tuple, list)) and output else output
        if not isinstance(output, Tensor):
            return
        source = maker(args[0]) if isinstance(module, nn.Linear) and args else None
        calls.setdefault(name, []).append((tuple(output.shape), source))
        if maker(output) is None:  # a container returns the output of its last module
            made[id(output)] = (name, weakref.ref(output))

    with ExitStack() as stack:
        for name, module in network.named_modules():
            if name:
                stack.callback(hook_output(module, functools.partial(record, name)))
        run()
    return [TracedLayer(name, seen[0][0], len(seen), seen[0][1]) for name, seen in calls.items()]


def choose(probe: Probe) -> str | None:
    """The default layer of a network: the first candidate that a gradient reaches; None if no layer has a grid.

    Candidates are first the known layers of the families inside, then all layers with a grid, from the last to the
    first. If no layer gets any gradient, because the network cuts its graph or its head is zero, the first candidate is
    used.
    """
    good = [name for name in probe.traced if _is_candidate(probe, name)]
    order = [name for name in family_candidates(probe.network) if name in good]
    order += [name for name in reversed(good) if name not in order]
    for start in range(0, len(order), _ROUND):
        names = order[start : start + _ROUND]
        try:
            reached = probe.reached(list(dict.fromkeys([*names, good[0]])))
        except NetworkError:  # methods without a gradient may work; the others will say why they do not
            break
        for name in names:
            if reached[name]:
                return _before_projection(probe, name)
        if not reached[good[0]]:
            break
    return order[0] if order else None


def nothing_found(name: str, network: nn.Module, size: tuple[int, int]) -> str:
    """The message for a network without any layer to explain."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        return (
            f"Expected {name} as it was before it became TorchScript, which hides what its layers put out: pass that "
            "network, or use a method without layers (RISE, ExtremalPerturbation, GradientSHAP)."
        )
    return (
        f"Found no layer of {name} that puts out a grid of features, (B,K,h,w) or tokens, for an image of {size[0]} x "
        f"{size[1]}. Name one with `target_layer`."
    )


def check(probe: Probe, name: str, *, gradient: bool) -> None:
    """Make sure that a layer can be explained.

    Args:
        probe: the probe of the network.
        name: dotted name of the layer.
        gradient: whether the method needs a gradient there.

    Raises:
        ValueError: it cannot; the message says why and names the nearest layer that can.
    """
    fault = probe.fault(name)
    if fault is None and gradient and not probe.reached([name])[name]:
        fault = "gets no gradient of a score on its grid (only a class token, or nothing, leads on to the scores)"
    if fault is None:
        return
    better = _nearest_good(probe, name, gradient)
    advice = f"Use {better!r} instead" if better else "No layer of this network is suitable"
    raise ValueError(f"Layer {name!r} {fault}. {advice}.")


def _nearest_good(probe: Probe, name: str, gradient: bool) -> str | None:
    """A suitable layer of the same block, or else the suitable layer that finishes next to it."""
    good = [other for other in probe.traced if other != name and _is_candidate(probe, other)]
    position = {other: place for place, other in enumerate(probe.traced)}
    if name in position:
        good.sort(key=lambda other: abs(position[other] - position[name]))
    elif good:
        near = nearest(name, good, _ROUND)
        good.sort(key=lambda other: repr(other) not in near)
    good = good[:_ROUND]
    default = None if not gradient or name == (chosen := choose(probe)) else chosen
    reached = probe.reached(good) if gradient and good else dict.fromkeys(good, True)
    found = next((other for other in good if reached[other]), default)
    return found and _before_projection(probe, found)


def _is_candidate(probe: Probe, name: str) -> bool:
    """Whether a layer may be chosen: a grid of several cells and channels, from a layer that computes something."""
    module, layer = probe.network.get_submodule(name), probe.traced[name]
    if isinstance(module, (nn.Identity, nn.Dropout)) or probe.fault(name) is not None:
        return False
    channels, h, w = probe.grid(name) or (0, 0, 0)
    # Attention gates have one channel; attention maps (B,heads,N,N) are finer than any feature grid.
    return channels > 1 and h * w > 1 and (len(layer.shape) == 3 or _is_strided((h, w), probe.size))


def _is_strided(grid: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a grid fits the image divided by a whole stride, apart from cells lost at unpadded borders."""
    return all(
        abs(side / max(round(side / cells), 1) - cells) <= _BORDER for cells, side in zip(grid, size, strict=True)
    )


def _before_projection(probe: Probe, name: str) -> str:
    """The layer itself; for projections of tokens inside a block, the layer that they read: the block's features."""
    source = probe.traced[name].source
    return source if source is not None and _is_candidate(probe, source) else name


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode for one pass, so that a network in training keeps its running means; then restore the modes."""
    training = [module for module in network.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
