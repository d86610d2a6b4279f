"""The inner fit loop: one iteration for all images of a batch as tensor arithmetic that never waits for the device.

Shape letters: B images, K channels, T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from optcam_pl import kernels
from optcam_pl.explainers.presets import Schedule, factor
from optcam_pl.explainers.steps import tell
from optcam_pl.maps import wide

Objective: TypeAlias = Callable[[Tensor], Tensor]
"""Weights (B,K) -> the objective of each image (B,), differentiable."""

Watch: TypeAlias = Callable[[int, Tensor, Tensor], None]
"""Gets the number of the iteration, its objective (B,) and the weights (B,K) that have it, without any graph.

Both tensors are on the device, and they are the watcher's own: reading a number from them waits for the device, keeping
them does not.
"""

_PATIENCE = 25  # iterations; see StopRule
_ASK_EVERY = 10  # iterations on a GPU, where a question makes the host wait
# Gradients of a pass in float16 may be below its smallest number. A power of two changes no other digit.
_GRADIENT_SCALE = {torch.float16: 256.0}


class Stepper(Protocol):
    """What the inner fit loop needs from an optimizer: torch's own, or Lightning's wrapper that counts steps."""

    def step(self) -> object:
        """Move the parameters along their ``.grad``; leave parameters without one unchanged."""


@dataclass(frozen=True)
class StopRule:
    """When an image has stopped: its objective F_c has moved by less than a threshold for `patience` iterations.

    The paper's rule is a threshold of `tol` and a patience of 1: F_c changes by less than `tol` from one iteration to
    the next. It needs numbers that are finer than a step. Logits of bfloat16 are 0.06 apart around 10, and half of all
    single steps change nothing there. So in less than float32 an image stops only when its objective cannot be told
    apart from an earlier one for `patience` iterations: the threshold is half of ``eps |g|``, which is between a half
    and the whole of the distance of neighboring numbers at the logit g.

    Attributes:
        tol: the threshold; 0 never stops.
        eps: the precision's relative distance of neighboring numbers, where it is coarser than float32; otherwise 0.
        patience: iterations without movement.
    """

    tol: float
    eps: float = 0.0
    patience: int = 1

    @classmethod
    def of(cls, tol: float, dtype: torch.dtype) -> StopRule:
        """The rule for passes of a precision.

        >>> StopRule.of(1e-10, torch.float32)
        StopRule(tol=1e-10, eps=0.0, patience=1)
        >>> StopRule.of(1e-10, torch.bfloat16)
        StopRule(tol=1e-10, eps=0.0078125, patience=25)
        """
        eps = torch.finfo(dtype).eps
        if tol == 0 or eps <= torch.finfo(torch.float32).eps:
            return cls(tol)
        return cls(tol, eps, _PATIENCE)

    def threshold(self, size: Tensor) -> Tensor | float:
        """Below which a movement counts as none, for logits of size |g| (B,)."""
        return (self.eps / 2 * size).clamp(min=self.tol) if self.eps else self.tol


class Ascent:
    """One gradient ascent per image, all at once.

    An iteration is

    1. F_c of the weights ``softmax(u)``,
    2. the stop rule, which makes an image inactive for good,
    3. the part of the optimizer's step up the gradient of F_c that `schedule` takes, and none of it for the images that
       are inactive.

    Everything is arithmetic with tensors of a fixed shape, in memory that is reused, so the host need not wait for the
    device. A stopped image is computed along: without it, the passes would have another batch size, and the last digits
    of its neighbors would depend on it.

    Args:
        objective: F_c of weights.
        u: parameters; their rows, one after the other, are those of the B images: one (B,K), or B times (K,).
        optimizer: steps `u`; it must not mix rows.
        rule: when an image stops.
        size: (B,) |g|, the size of the logits, for the rule.
        dtype: the precision of the passes.
        errors: what surrounds a backward pass, to explain its errors.
        schedule: the part of each step that is taken; see `Climb`.
        fused: let one kernel do step 2, see `optcam_pl.kernels`.
    """

    def __init__(
        self,
        objective: Objective,
        u: Sequence[nn.Parameter],
        optimizer: Stepper,
        rule: StopRule,
        size: Tensor,
        dtype: torch.dtype = torch.float32,
        errors: Callable[[], AbstractContextManager[None]] = nullcontext,
        schedule: Schedule = "constant",
        fused: bool = False,
    ) -> None:
        self.objective, self.u, self.optimizer, self.rule = objective, list(u), optimizer, rule
        self._together = self.u[0].ndim == 2
        self._errors, self._scale = errors, _GRADIENT_SCALE.get(dtype, 1.0)
        self.size, self._fused = size, fused and size.dtype == torch.float32
        self._up = torch.full_like(size, -self._scale)  # the optimizer descends
        self.active = torch.ones_like(size, dtype=torch.bool)
        self.eps = torch.finfo(dtype).eps
        self._fresh = torch.ones((), dtype=torch.bool, device=size.device)  # nothing to compare with yet
        self._kept = torch.zeros_like(size)  # the objective from which movements count
        self._still = torch.zeros_like(size, dtype=torch.int32)  # iterations without one
        self._before = [parameter.detach().clone() for parameter in self.u]
        self.schedule: Schedule = schedule
        self._part = self._before[0].new_ones(())  # of the step; a tensor, so that a captured step can read it

    def restart(self, start: Tensor) -> None:
        """Begin again, in the same memory; the optimizer's state is the caller's business.

        Args:
            start: (B,K) where u begins.
        """
        for parameter, rows in zip(self.u, [start] if self._together else start, strict=True):
            parameter.detach().copy_(rows)
        self.active.fill_(True)
        self._fresh.fill_(True)
        self._still.zero_()

    def state(self) -> list[Tensor]:
        """Everything that an iteration changes, besides the optimizer's state."""
        return [*self.u, self.active, self._fresh, self._kept, self._still]

    def take(self, t: int, max_iter: int) -> None:
        """Take the part of step t that `schedule` says."""
        if self.schedule != "constant":
            self._part.fill_(factor(self.schedule, t, max_iter))

    def weights(self) -> Tensor:
        """``softmax(u)`` (B,K), in float32 or float64."""
        rows = self.u[0] if self._together else torch.stack(tuple(self.u))
        return torch.softmax(wide(rows), dim=1)

    def judge(self, F: Tensor) -> None:
        """Step 2, for an objective (B,) without a graph; the first one has nothing to be compared with."""
        if self._fused:
            state = F, self._kept, self._still, self.active, self._fresh
            kernels.judge(state, self.size, self.rule.tol, self.rule.eps, self.rule.patience)
            return
        movement = (F - self._kept).abs()
        moved = movement >= self.rule.threshold(torch.maximum(self.size, F.abs()))
        moved |= self._fresh
        self._still.add_(1).masked_fill_(moved, 0)
        self._kept.copy_(torch.where(moved, F, self._kept))
        # A NaN also stops the image: no step leads anywhere from there.
        self.active &= (self._still < self.rule.patience) & ~movement.isnan() | self._fresh
        self._fresh.fill_(False)

    def step(self, F: Tensor) -> None:
        """Step 3."""
        with self._errors():
            gradients = torch.autograd.grad(F, self.u, self._up)
        for parameter, gradient, before in zip(self.u, gradients, self._before, strict=True):
            parameter.grad = gradient if self._scale == 1 else gradient / self._scale
            before.copy_(parameter.detach())
        self.optimizer.step()
        rows = [self.active.unsqueeze(1)] if self._together else self.active.unbind()
        for parameter, before, goes_on in zip(self.u, self._before, rows, strict=True):
            stepped = parameter.detach()
            after = stepped if self.schedule == "constant" else torch.lerp(before, stepped, self._part)
            stepped.copy_(torch.where(goes_on, after, before))

    def stopped(self, iteration: int) -> bool:
        """Whether all images have stopped; a GPU is asked only in every tenth iteration."""
        due = self.active.device.type == "cpu" or (self.rule.tol > 0 and iteration % _ASK_EVERY == 0)
        return due and not bool(self.active.any())

    def run(self, max_iter: int, watch: Watch | None = None) -> Tensor:
        """At most `max_iter` iterations.

        Args:
            max_iter: T.
            watch: sees every objective and its weights.

        Returns:
            (T+1,B): F_c before the first step, ..., after the last. After all images have stopped, their last values
            are repeated.
        """
        trace = self.size.new_empty(max_iter + 1, len(self.size))
        for t in range(max_iter):
            weights = self.weights()
            F = self.objective(weights)
            trace[t] = F.detach()
            self.judge(trace[t])
            tell("iteration", t, max_iter, trace[t])
            if watch is not None:
                watch(t, trace[t].clone(), weights.detach())
            if self.stopped(t):
                trace[t + 1 :] = trace[t]
                break
            self.take(t, max_iter)
            self.step(F)
        else:
            with torch.no_grad():
                weights = self.weights()
                trace[max_iter] = self.objective(weights)
            if watch is not None:
                watch(max_iter, trace[max_iter].clone(), weights)
        for parameter in self.u:
            parameter.grad = None
        return trace
