"""One network in many threads: whose hooks are called, and which thread waits.

1. A hook of this package belongs to the thread that installed it: it does not record, cut or change passes of other
   threads through the same network, by the classifier or directly. Methods that only record never wait.
2. Only one thread at a time replaces attributes of modules (`changing`), and the replacements let passes of other
   threads through.
3. While other people's code puts its own hooks on the network (`alone`), passes of other threads through a `Classifier`
   wait until it is done. Passes that bypass the classifier cannot be made to wait.
4. The random generators that torch, numpy and Python share among all threads have one user at a time (`process_wide`).
   Numbers that other code draws meanwhile in another thread come from the borrowed generators.

Order of the locks, first to last: `process_wide`, then one network's `changing` or `alone`, then a pass. A thread that
holds a later lock never asks for an earlier one. All locks are re-entrant, and released after an exception, including
KeyboardInterrupt. They belong to the network, not to the classifier, which can be copied and pickled and may share its
network.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from threading import get_ident
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from optcam_pl.private import forward_hooks, forward_pre_hooks, in_backward

_NUMBERS = itertools.count(1)


class OwnHook:
    """A forward hook or forward pre-hook that does nothing in threads other than the one that created it.

    Only these hooks need it: on a GPU autograd runs backward hooks in threads of its own, but those belong to the graph
    of one pass. `nn.DataParallel` over several GPUs also runs parts of the batch in threads of its own. A layer's
    output there is only a part and is not recorded, so the layer counts as not called, which gives a clear error.
    """

    __slots__ = ("_hook", "_thread")

    def __init__(self, hook: Callable[..., Any]) -> None:
        self._hook, self._thread = hook, get_ident()

    def __call__(self, *args: Any) -> Any:
        """See the class."""
        return self._hook(*args) if get_ident() == self._thread and not _own.unseen else None


class _OwnState(threading.local):
    """Whether this thread's passes are hidden from its own hooks."""

    unseen = False


_own = _OwnState()


@contextmanager
def unseen() -> Iterator[None]:
    """Passes of this thread in here call none of this package's hooks: they are no passes of the explained images.

    >>> layer, seen = nn.Identity(), []
    >>> undo = hook_output(layer, lambda module, args, output: seen.append(output))
    >>> with unseen():
    ...     _ = layer(1)
    >>> _ = layer(2), undo()
    >>> seen
    [2]
    """
    before, _own.unseen = _own.unseen, True
    try:
        yield
    finally:
        _own.unseen = before


def hook_output(
    module: nn.Module, hook: Callable[[nn.Module, Any, Any], Any], *, first: bool = False
) -> Callable[[], object]:
    """`nn.Module.register_forward_hook` for this thread alone.

    Args:
        module: it is hung on.
        hook: gets the module, its arguments and its output.
        first: whether it is called before the hooks that are there.

    Returns:
        A function that removes the hook again.

    >>> layer, seen = nn.Identity(), []
    >>> undo = hook_output(layer, lambda module, args, output: seen.append(output))
    >>> _ = layer(1), undo(), layer(2)
    >>> seen
    [1]
    """
    return _install(forward_hooks(module), hook, first)


def hook_input(
    module: nn.Module, hook: Callable[[nn.Module, Any], Any], *, first: bool = False
) -> Callable[[], object]:
    """`nn.Module.register_forward_pre_hook` for this thread alone; see `hook_output`."""
    return _install(forward_pre_hooks(module), hook, first)


def _install(hooks: OrderedDict[int, Any], hook: Callable[..., Any], first: bool) -> Callable[[], object]:
    # Not through register_forward_hook: there the handles of two threads may get the same number (torch counts them
    # without a lock), and the second hook then replaces the first one. Torch's own numbers are never negative.
    number = -next(_NUMBERS)
    hooks[number] = OwnHook(hook)
    if first:
        hooks.move_to_end(number, last=False)
    return partial(hooks.pop, number, None)


class _Gate:
    """Which threads are in a pass of one network, which one changes it, and which one wants it alone."""

    def __init__(self) -> None:
        self._changing = threading.RLock()
        self._state = threading.Condition()
        self._passes: dict[int, int] = {}  # thread -> how many nested passes it is in
        self._alone: int | None = None

    @contextmanager
    def passing(self) -> Iterator[None]:
        me = get_ident()
        depth = self._passes.get(me, 0)  # no other thread writes it
        try:
            with self._state:
                # In a backward pass, checkpointing repeats a pass for a thread that waits for it, maybe while holding
                # `alone`.
                if self._alone not in (None, me) and not depth and not in_backward():
                    self._state.wait_for(lambda: self._alone in (None, me))
                self._passes[me] = depth + 1
            yield
        finally:
            self._count(me, depth)

    @contextmanager
    def changing(self) -> Iterator[None]:
        me = get_ident()
        depth = self._passes.get(me, 0)
        if depth:  # requested in the middle of a pass; the thread that holds the lock must not wait for it
            self._count(me, 0)
        with self._changing:
            if depth:
                self._count(me, depth)
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        me = get_ident()
        with self.changing():
            before = self._alone
            try:
                with self._state:
                    self._alone = me
                    self._state.wait_for(lambda: self._passes.keys() <= {me})
                yield
            finally:
                with self._state:
                    self._alone = before
                    self._state.notify_all()

    def _count(self, thread: int, depth: int) -> None:
        with self._state:
            if depth:
                self._passes[thread] = depth
            else:
                self._passes.pop(thread, None)
                if self._alone is not None:
                    self._state.notify_all()


def passing(network: nn.Module) -> AbstractContextManager[None]:
    """A pass of this thread through the network; it waits while another thread has the network `alone`."""
    return _gate(network).passing()


def changing(network: nn.Module) -> AbstractContextManager[None]:
    """No other thread replaces attributes of the network's modules meanwhile. Passes continue."""
    return _gate(network).changing()


def alone(network: nn.Module) -> AbstractContextManager[None]:
    """`changing`, and no other thread is in a pass: it waits for passes that have begun; new passes wait for it.

    Threads that the holder itself starts count as other threads: waiting for them in here is a deadlock.
    """
    return _gate(network).alone()


def process_wide() -> AbstractContextManager[object]:
    """No other thread of this process is in here: for what all threads share, such as global random generators."""
    return _process


def _gate(network: nn.Module) -> _Gate:
    gate = _gates.get(network)
    if gate is None:
        with _making:
            gate = _gates.setdefault(network, _Gate())
    return gate


def _begin() -> None:
    global _process, _making, _gates
    _process, _making, _gates = threading.RLock(), threading.Lock(), WeakKeyDictionary()


_process = threading.RLock()
_making = threading.Lock()
_gates: WeakKeyDictionary[nn.Module, _Gate] = WeakKeyDictionary()
if os.name == "posix":
    os.register_at_fork(after_in_child=_begin)  # threads that held a lock do not exist in the child
