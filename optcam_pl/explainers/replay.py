"""Opti-CAM's inner fit loop with its iteration captured as a CUDA graph, for all batches of one shape."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from optcam_pl.explainers.ascent import Watch
from optcam_pl.explainers.presets import factor
from optcam_pl.explainers.steps import tell
from optcam_pl.network.classifier import Classifier
from optcam_pl.network.speed import FasterNetwork, first_line, uncached_autocast

if TYPE_CHECKING:
    from optcam_pl.explainers.opticam import OptiCAM, Problem

_logger = logging.getLogger(__name__)
_WARM = 3  # iterations before a capture, as torch.cuda.graph asks for


class Replay(Protocol):
    """What a capture returns: `torch.cuda.CUDAGraph`, or anything that repeats the captured work."""

    def replay(self) -> None:
        """Repeat it, in the same memory."""


def climb(explainer: OptiCAM, classifier: Classifier, problem: Problem) -> tuple[Tensor, Tensor] | None:
    """The inner fit loop by replays.

    Returns:
        The objective (T+1,B) and the final weights (B,K). None where passes are not replayed, or this problem's cannot
        be; then one line of the log says why.
    """
    fast = classifier.fast
    if fast is None or not fast.replays(problem.image):
        return None
    key = _key(explainer, problem)
    with fast.borrowed(key) as kept:
        if not kept:
            kept.append(_captured(explainer, classifier, problem, fast))
        captured = kept[0]
        return captured.run(problem, explainer.max_iter, explainer.watch) if isinstance(captured, Captured) else None


def _captured(explainer: OptiCAM, classifier: Classifier, problem: Problem, fast: FasterNetwork) -> Captured | None:
    fast.forget()  # there is memory for one
    try:
        return Captured(explainer, classifier, problem)
    except torch.OutOfMemoryError:
        reason = "there is not enough memory for a CUDA graph."
    except Exception as error:  # a capture may fail in any way
        reason = f"the iteration cannot be a CUDA graph: {first_line(error)}"
    _logger.warning("Opti-CAM's iterations on %s are not replayed: %s", classifier.name, reason)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return None


class Captured:
    """One iteration on tensors that stay where they are; each batch of this shape is copied into them.

    1. A few plain iterations create the optimizer's state and the gradients.
    2. One iteration is captured: F_c, stop rule, gradient, and step.
    3. It is proved: the replay and a plain iteration from the same state have to give the same F_c and nearly the same
       step (atomic additions on a GPU change the last digits of gradients).

    Args:
        explainer: its settings are those of the capture.
        classifier: the network.
        problem: the first batch.

    Raises:
        ValueError: the optimizer cannot be captured, or a replay differs from a plain iteration.
        Exception: the capture fails.
    """

    def __init__(self, explainer: OptiCAM, classifier: Classifier, problem: Problem) -> None:
        self.problem = _copied(problem)
        u = explainer.parameters_of(self.problem)
        self.optimizer = explainer.make_optimizer(u)
        _make_capturable(self.optimizer)
        self.ascent = explainer.ascent(classifier, self.problem, u, self.optimizer)
        self._explainer, self._classifier = explainer, classifier
        self.F, self.weights = torch.zeros_like(problem.logit), torch.zeros_like(self.ascent.weights())
        with uncached_autocast(problem.image.device):
            self._graph: Replay = capture(self._iterate, problem.image.device)
            self._prove()

    def _iterate(self) -> None:
        weights = self.ascent.weights()
        F = self.ascent.objective(weights)
        self.F.copy_(F.detach())
        self.weights.copy_(weights.detach())
        self.ascent.judge(self.F)
        self.ascent.step(F)

    def run(self, problem: Problem, max_iter: int, watch: Watch | None) -> tuple[Tensor, Tensor]:
        """As `Ascent.run`, for a problem of the same shape; also returns the final weights."""
        self._load(problem)
        trace = self.F.new_empty(max_iter + 1, len(self.F))
        for t in range(max_iter):
            self.ascent.take(factor(self.ascent.schedule, t, max_iter))
            self._graph.replay()
            trace[t] = self.F
            tell("iteration", t, max_iter, trace[t])
            if watch is not None:
                watch(t, trace[t].clone(), self.weights.clone())
            if self.ascent.stopped(t):
                trace[t + 1 :] = trace[t]
                break
        else:
            with torch.no_grad():
                trace[max_iter] = self.ascent.objective(self.ascent.weights())
            if watch is not None:
                watch(max_iter, trace[max_iter].clone(), self.ascent.weights().detach())
        return trace, self.ascent.weights().detach().clone()

    def _load(self, problem: Problem) -> None:
        for own, given in zip(_tensors(self.problem), _tensors(problem), strict=True):
            own.copy_(given)
        self.ascent.size.copy_(problem.logit.abs())
        self.ascent.restart(self._explainer.begin(self.problem))
        _reset(self.optimizer)

    def _prove(self) -> None:
        """Step 3 of the class."""
        before = [tensor.detach().clone() for tensor in self._state()]
        self._iterate()
        F, u = self.F.clone(), [parameter.detach().clone() for parameter in self.ascent.u]
        self._restore(before)
        start = [parameter.detach().clone() for parameter in self.ascent.u]
        self._graph.replay()
        bound = 8 * self.ascent.eps * float(F.abs().max())
        if not float((F - self.F).abs().max()) <= bound:
            raise ValueError(f"its objective differs from a plain iteration's by more than rounding ({bound:.2g}).")
        for plain, replayed, first in zip(u, self.ascent.u, start, strict=True):
            if not (plain - replayed.detach()).abs().mean() <= 0.1 * (plain - first).abs().mean():
                raise ValueError("its step differs from a plain iteration's by more than a tenth.")

    def _state(self) -> list[Tensor]:
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return [*self.ascent.state(), *(value for value in moments if isinstance(value, Tensor))]

    def _restore(self, values: list[Tensor]) -> None:
        for tensor, value in zip(self._state(), values, strict=True):
            tensor.detach().copy_(value)


def capture(work: Callable[[], None], device: torch.device) -> Replay:
    """A CUDA graph of some work on tensors that stay where they are, after a few plain calls."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM):
            work()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # loaders of data work in threads meanwhile
        work()
    return graph


def _make_capturable(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        if "capturable" not in group:
            raise ValueError(f"{type(optimizer).__name__} has no `capturable`.")
        group["capturable"] = True


def _reset(optimizer: Optimizer) -> None:
    """The state of an optimizer of Adam's kind before its first step, in the same memory."""
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()


def _key(explainer: OptiCAM, problem: Problem) -> object:
    image = problem.image
    autocast = torch.is_autocast_enabled(image.device.type) and torch.get_autocast_dtype(image.device.type)
    shapes = tuple((tuple(tensor.shape), tensor.dtype) for tensor in _tensors(problem))
    return type(explainer), repr(explainer.settings()), shapes, image.device, autocast


def _copied(problem: Problem) -> Problem:
    values: dict[str, Any] = {}
    for field in fields(problem):
        value = getattr(problem, field.name)
        values[field.name] = [A.clone() for A in value] if isinstance(value, list) else _clone(value)
    return type(problem)(**values)


def _clone(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.clone()


def _tensors(problem: Problem) -> list[Tensor]:
    found: list[Tensor] = []
    for field in fields(problem):
        value = getattr(problem, field.name)
        found += value if isinstance(value, list) else [] if value is None else [value]
    return found
