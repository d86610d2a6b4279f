"""Runs the network from a layer upwards, without repeating the part below."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from optcam_pl.network.capture import LayerError, LayerNotCalledError, tensor_of
from optcam_pl.network.classifier import Classifier
from optcam_pl.threads import changing, hook_input, hook_output

_logger = logging.getLogger(__name__)


@dataclass
class _Tape:
    """The calls that have finished when the layer's last call finishes, in order; none is part of another.

    Attributes:
        below: each call's module and a copy of its output, in the order in which the calls finished; the layer's comes
            last.
        layer_calls: how often the layer was called until then, including calls inside other modules.
    """

    below: list[tuple[nn.Module, Any]] = field(default_factory=list)
    layer_calls: int = 0

    def answers(self) -> dict[nn.Module, list[Any]]:
        """The outputs of each module, call by call."""
        answers: dict[nn.Module, list[Any]] = {}
        for module, output in self.below:
            answers.setdefault(module, []).append(output)
        return answers


class UpperPart:
    """A network from one layer upwards, for one image: activations of the layer in, logits out.

    1. The network runs once. The output of every module that finishes before the layer (and is not part of another such
       module) is kept; the modules around the layer are still running then.
    2. A call runs the network again, but each of those modules returns its kept output, repeated for the number of
       activations, instead of computing it. Only the code of the modules around the layer and everything after it still
       runs. Residual connections past the layer stay right, no matter which Python code joins them.
    3. This is tried once with the layer's own activations. If it does not give the logits of step 1 (for example
       because the network folds images into other dimensions, or writes into kept outputs), the whole network runs for
       every call, with the layer's output replaced. The results are the same.

    Nothing is traced or compiled, and the network is unchanged between calls. Other threads may use it meanwhile; their
    calls of step 2 wait.

    Args:
        classifier: the network.
        layer: dotted name of the layer.
        image: (1,3,H,W) in [0,1].
        partial: False runs the whole network in any case.

    Attributes:
        activation: (1,...) the layer's output, in its own layout.
        logits: (1,C).
        partial: whether the lower part is left out.

    Raises:
        LayerNotCalledError: the network did not use the layer.
        LayerError: the first dimension of the layer's output is not that of the images.
    """

    def __init__(self, classifier: Classifier, layer: str, image: Tensor, *, partial: bool = True) -> None:
        self._classifier, self._image, self._layer = classifier, image, classifier.layer(layer)
        with torch.no_grad(), _taping(classifier.network, self._layer) as tape:
            self.logits = classifier(image)
        if not tape.below:
            raise LayerNotCalledError(f"Layer {layer!r} was not called in the network's forward pass.")
        self._tape = tape
        self.activation = tensor_of(tape.below[-1][1])
        if self.activation.shape[:1] != (1,):
            raise LayerError(
                f"Expected layer {layer!r} to output one activation for one image, but got the shape"
                f" {tuple(self.activation.shape)}: windows, patches or tokens lie in its batch dimension."
            )
        self.partial = partial and self._works()

    @torch.no_grad()
    def __call__(self, activation: Tensor) -> Tensor:
        """Logits (n,C) for n activations (n,...) in place of the layer's output; the network may write into them."""
        return self._run(activation, self.partial)

    def _works(self) -> bool:
        try:
            with torch.no_grad():
                logits = self._run(torch.cat([self.activation] * 2), partial=True)
        except Exception as error:  # the network's code may raise anything on repeated rows
            _logger.info("Every pass runs the whole network, as its upper part does not work alone: %s", error)
            return False
        tolerance = 1e-3 * float(self.logits.abs().max())
        return logits.shape == (2, self.logits.shape[1]) and torch.allclose(
            logits, self.logits.expand_as(logits), rtol=0, atol=tolerance
        )

    def _run(self, activation: Tensor, partial: bool) -> Tensor:
        count, answers = activation.shape[0], self._tape.answers()
        position = len(answers[self._layer]) if partial else self._tape.layer_calls
        with ExitStack() as stack:
            stack.callback(hook_output(self._layer, _replacing(activation, position)))
            if not partial:
                return self._classifier(self._image.repeat(count, 1, 1, 1))  # type: ignore[no-any-return]
            stack.enter_context(changing(self._classifier.network))
            for module, outputs in answers.items():
                stack.enter_context(_answering(module, outputs, count))

            # After the classifier's own arithmetic, so that one image is normalized, not `count` of them.
            def expand(_module: nn.Module, args: Any) -> Any:
                return _repeated(args, count)

            stack.callback(hook_input(self._classifier.network, expand))
            return self._classifier(self._image)  # type: ignore[no-any-return]


@contextmanager
def _taping(network: nn.Module, layer: nn.Module) -> Iterator[_Tape]:
    """Fill a `_Tape` while the network runs."""
    tape = _Tape()
    finished: list[tuple[nn.Module, Any]] = []
    begun: list[int] = []

    def before(_module: nn.Module, _args: Any) -> None:
        begun.append(len(finished))

    def after(module: nn.Module, _args: Any, output: Any) -> None:
        del finished[begun.pop() :]  # calls inside this one are not needed to repeat it
        finished.append((module, _map(output, torch.clone)))  # a later layer may modify it in place
        if module is layer:
            tape.below, tape.layer_calls = list(finished), tape.layer_calls + 1

    with ExitStack() as stack:
        for module in network.modules():
            stack.callback(hook_input(module, before))
            stack.callback(hook_output(module, after))
        yield tape


@contextmanager
def _answering(module: nn.Module, outputs: list[Any], count: int) -> Iterator[None]:
    """Lets the module's first calls return the kept outputs; later calls, after the layer, compute.

    All calls of other threads compute, too. Enter this while `changing` is held.
    """
    pending, compute, thread = iter(outputs), module.forward, get_ident()
    own = {"forward": compute} if "forward" in module.__dict__ else {}
    nothing = object()

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = next(pending, nothing) if get_ident() == thread else nothing
        return compute(*args, **kwargs) if output is nothing else _repeated(output, count)

    try:
        module.__dict__["forward"] = forward  # an instance's attribute takes precedence over the class's method
        yield
    finally:
        del module.__dict__["forward"]
        module.__dict__.update(own)


def _replacing(activation: Tensor, position: int) -> Callable[[nn.Module, Any, Any], Any]:
    """A forward hook that replaces the output of the layer's call number `position`."""
    calls = 0

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != position:
            return None
        return (activation, *output[1:]) if isinstance(output, (tuple, list)) else activation

    return hook


def _repeated(output: Any, count: int) -> Any:
    """Turn the output for one image into that for `count` equal images."""

    def repeat(value: Tensor) -> Tensor:
        if value.ndim == 0:
            return value
        if value.shape[0] == 1:
            return value.expand(count, *value.shape[1:])
        return value.repeat(count, *[1] * (value.ndim - 1))  # for example windows of one image: repeat all of them

    return _map(output, repeat)


def _map(output: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply `function` to every tensor of a module's output."""
    if isinstance(output, (tuple, list)):
        return tuple(_map(item, function) for item in output)
    return function(output) if isinstance(output, Tensor) else output
