"""Opti-CAM's inner fit loop with its iteration captured as a CUDA graph, for all batches of one shape."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from optcam_pl.explainers.ascent import Watch
from optcam_pl.explainers.explanation import Explanation
from optcam_pl.explainers.steps import tell
from optcam_pl.network.classifier import Classifier
from optcam_pl.network.speed import FasterNetwork, Replay, capture, first_line, uncached_autocast

if TYPE_CHECKING:
    from optcam_pl.explainers.opticam import OptiCAM, Problem

_logger = logging.getLogger(__name__)
_SIZES = 3  # of a batch that are kept captured; each keeps the memory of an iteration


class Plain:
    """Work that is repeated by doing it."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.replay = work


def climb(explainer: OptiCAM, classifier: Classifier, image: Tensor, target: Tensor) -> Explanation | None:
    """The inner fit loop by replays.

    A capture takes as long as a climb or two. So with the speed "auto" a batch of a new size is plain, and is captured
    when its size comes again; a run's last block, which is smaller, stays plain. A replay launches the kernels of the
    plain iteration, on the same number of images: which of both a block has got shall leave no trace in its digits,
    because that depends on the blocks before it, and so on restarts and the number of processes.

    Returns:
        None where passes are not replayed, not yet, or cannot be; then one line of the log says why.
    """
    fast = classifier.fast
    # What is bound for a while, a method's own scores or each image's references, would stay in the capture.
    if classifier.transform.value is not None or classifier.scores.per_image:
        return None
    if fast is None or not fast.replays(image):
        return None
    with fast.borrowed(_key(explainer, classifier, image)) as kept:
        if not kept:
            kept.append(_Sizes())
        captured = kept[0].get(explainer, classifier, image, target)
        return None if captured is None else captured.run(image, target, explainer.max_iter, explainer.watch)


class _Sizes:
    """The captures of one explainer for several sizes of a batch, the last used at the end."""

    def __init__(self) -> None:
        self.captured: dict[int, Captured] = {}
        self.seen: set[int] = set()
        self.refused: set[int] = set()

    def get(self, explainer: OptiCAM, classifier: Classifier, image: Tensor, target: Tensor) -> Captured | None:
        """The capture of the batch's size, made now if it has to be."""
        count, fast = len(image), classifier.fast
        assert fast is not None  # see climb
        if (found := self.captured.pop(count, None)) is not None:
            self.captured[count] = found
            return found
        new = fast.speed == "auto" and count not in self.seen
        self.seen.add(count)
        if new or count in self.refused:
            return None
        made = self._make(explainer, classifier, image, target, fast)
        if made is None:
            self.refused.add(count)
            return None
        for oldest in [*self.captured][: 1 - _SIZES]:
            del self.captured[oldest]
        self.captured[count] = made
        return made

    def _make(
        self, explainer: OptiCAM, classifier: Classifier, image: Tensor, target: Tensor, fast: FasterNetwork
    ) -> Captured | None:
        made = _try(explainer, classifier, image, target)
        if made is None:  # with all the memory that captures hold, it may work
            self.captured.clear()
            fast.forget()
            torch.cuda.empty_cache()
            made = _try(explainer, classifier, image, target)
        if isinstance(made, Captured):
            return made
        reason = made or "there is not enough memory for a CUDA graph."
        _logger.warning("Opti-CAM's iterations on %s are not replayed: %s", classifier.name, reason)
        return None


def _try(explainer: OptiCAM, classifier: Classifier, image: Tensor, target: Tensor) -> Captured | str | None:
    """A capture, the reason why there can be none, or None where memory ran out."""
    reason = None
    try:
        return Captured(explainer, classifier, image, target)
    except torch.OutOfMemoryError:
        pass
    except Exception as error:  # a capture may fail in any way
        reason = f"the iteration cannot be a CUDA graph: {first_line(error)}"
    # Outside of the except block the exception is gone, and so is the memory that its frames held.
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return reason


class Captured:
    """A whole climb on tensors that stay where they are; each batch of this shape is copied into them.

    1. A few plain iterations create the optimizer's state and the gradients.
    2. One iteration is captured: F_c, stop rule, gradient, and step.
    3. It is proved: the replay and a plain iteration from the same state have to give the same F_c and nearly the same
       step (atomic additions on a GPU change the last digits of gradients).
    4. What comes before the first iteration (the pass that records the features) and after the last one (F_c once more,
       and the map) is captured and proved, too. Where it cannot be, it is plain.

    Args:
        explainer: its settings are those of the capture.
        classifier: the network.
        image: (B,3,H,W) the first batch.
        target: (B,) its classes.

    Raises:
        ValueError: the optimizer cannot be captured, or a replay differs from a plain iteration.
        Exception: the capture fails.
    """

    def __init__(self, explainer: OptiCAM, classifier: Classifier, image: Tensor, target: Tensor) -> None:
        self.image, self.target = image.clone(), target.clone()
        self.problem = _copied(explainer.problem(classifier, self.image, self.target), self.image, self.target)
        u = explainer.parameters_of(self.problem)
        self.optimizer = explainer.make_optimizer(u)
        _make_capturable(self.optimizer)
        self.ascent = explainer.ascent(classifier, self.problem, u, self.optimizer)
        self._explainer, self._classifier = explainer, classifier
        self.F, self.weights = torch.zeros_like(self.problem.logit), torch.zeros_like(self.ascent.weights())
        with torch.no_grad():
            saliency, silent, full = explainer.map_of(self.ascent.weights(), self.problem)
        self.made = saliency.clone(), silent.clone(), full.clone()
        with uncached_autocast(image.device):
            self._step = capture(self._iterate, image.device)
            self._prove()
            self._begin = self._end_part(self._load, [*_tensors(self.problem)[2:], *self.ascent.u])
            self._end = self._end_part(self._finish, [self.F, self.weights, *self.made])

    def _load(self) -> None:
        """Everything before the first iteration."""
        new = self._explainer.problem(self._classifier, self.image, self.target)
        for own, given in zip(_tensors(self.problem), _tensors(new), strict=True):
            own.copy_(given)
        self.ascent.size.copy_(self.problem.logit.abs())
        self.ascent.restart(self._explainer.begin(self.problem))
        _reset(self.optimizer)

    def _iterate(self) -> None:
        weights = self.ascent.weights()
        F = self.ascent.objective(weights)
        self.F.copy_(F.detach())
        self.weights.copy_(weights.detach())
        self.ascent.judge(self.F)
        self.ascent.step(F)

    @torch.no_grad()
    def _finish(self) -> None:
        """Everything after the last iteration."""
        weights = self.ascent.weights()
        self.F.copy_(self.ascent.objective(weights))
        self.weights.copy_(weights)
        for own, given in zip(self.made, self._explainer.map_of(weights, self.problem), strict=True):
            own.copy_(given)

    def run(self, image: Tensor, target: Tensor, max_iter: int, watch: Watch | None) -> Explanation:
        """The explanation of a batch of the captured shape."""
        self.image.copy_(image)
        self.target.copy_(target)
        self._begin.replay()
        trace = self.F.new_empty(max_iter + 1, len(image))
        for t in range(max_iter):
            self.ascent.take(t, max_iter)
            self._step.replay()
            self._note(trace, t, max_iter, watch)
            if self.ascent.stopped(t):
                trace[t + 1 :] = trace[t]
                self._end.replay()
                break
        else:
            self._end.replay()
            self._note(trace, max_iter, max_iter, watch)
        return self._explanation(trace)

    def _note(self, trace: Tensor, t: int, max_iter: int, watch: Watch | None) -> None:
        trace[t] = self.F
        if t < max_iter:
            tell("iteration", t, max_iter, trace[t])
        if watch is not None:
            watch(t, trace[t].clone(), self.weights.clone())

    def _explanation(self, trace: Tensor) -> Explanation:
        saliency, silent, full = self.made
        found = self._explainer.explanation(self.weights.clone(), self.problem, (saliency.clone(), silent, full))
        return replace(found, target=found.target.clone(), objective=trace)

    def _end_part(self, work: Callable[[], None], results: Sequence[Tensor]) -> Replay:
        """Step 4 of the class, for one of the two parts and the tensors that it fills."""
        work()
        right = [tensor.detach().clone() for tensor in results]
        try:
            replay = capture(work, self.image.device)
            for tensor in results:
                tensor.detach().zero_()
            replay.replay()
            if all(_near(tensor, value, self.ascent.eps) for tensor, value in zip(results, right, strict=True)):
                return replay
            reason = "its result differs from a plain one by more than rounding."
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a capture may fail in any way
            reason = first_line(error)
        torch.cuda.synchronize()
        _logger.info("What surrounds Opti-CAM's iterations on %s is not replayed: %s", self._classifier.name, reason)
        return Plain(work)

    def _prove(self) -> None:
        """Step 3 of the class."""
        before = [tensor.detach().clone() for tensor in self._state()]
        self._iterate()
        F, u = self.F.clone(), [parameter.detach().clone() for parameter in self.ascent.u]
        self._restore(before)
        start = [parameter.detach().clone() for parameter in self.ascent.u]
        self._step.replay()
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


def fuse(optimizer: Optimizer) -> None:
    """Let Adam step by two kernels instead of twelve; replayed and plain iterations have to have the same ones."""
    if type(optimizer) is Adam:
        for group in optimizer.param_groups:
            group.update(fused=True, foreach=False)


def _make_capturable(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        if "capturable" not in group:
            raise ValueError(f"{type(optimizer).__name__} has no `capturable`.")
        group["capturable"] = True
    fuse(optimizer)


def _reset(optimizer: Optimizer) -> None:
    """The state of an optimizer of Adam's kind before its first step, in the same memory."""
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()


def _key(explainer: OptiCAM, classifier: Classifier, image: Tensor) -> object:
    autocast = torch.is_autocast_enabled(image.device.type) and torch.get_autocast_dtype(image.device.type)
    shape = (tuple(image.shape[1:]), image.dtype, image.device)
    return type(explainer), repr(explainer.settings()), classifier, shape, autocast


def _near(ours: Tensor, right: Tensor, eps: float) -> bool:
    """Whether tensors are equal up to the rounding of passes."""
    ours, right = ours.detach().double(), right.double()
    return bool(((ours - right).abs() <= 8 * eps * right.abs().max()).all())


def _copied(problem: Problem, image: Tensor, target: Tensor) -> Problem:
    """The problem in memory of its own, but for its images and classes."""
    values: dict[str, Any] = {}
    for field in fields(problem):
        value = getattr(problem, field.name)
        several = isinstance(value, list)
        values[field.name] = [A.clone() for A in value] if several else None if value is None else value.clone()
    return type(problem)(**{**values, "image": image, "target": target})


def _tensors(problem: Problem) -> list[Tensor]:
    found: list[Tensor] = []
    for field in fields(problem):
        value = getattr(problem, field.name)
        found += value if isinstance(value, list) else [] if value is None else [value]
    return found
