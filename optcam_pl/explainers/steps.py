"""How far a long computation inside one block is: methods tell it, and whoever shows progress listens.

Nothing is computed where nobody listens. A listener gets the objective as a tensor and decides when to read it, so that
an iteration on a GPU never waits for the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, TypeAlias

from torch import Tensor


class Step(NamedTuple):
    """One step of a computation inside a block.

    Attributes:
        what: what is counted, for example "iteration" or "pass".
        done: number of steps done.
        total: number of all steps.
        objective: (B,) the value that is maximized, on the images' device; None if nothing is.
    """

    what: str
    done: int
    total: int
    objective: Tensor | None = None


Listener: TypeAlias = Callable[[Step], None]
_listener: ContextVar[Listener | None] = ContextVar("_listener", default=None)


def tell(what: str, done: int, total: int, objective: Tensor | None = None) -> None:
    """Tell the listener of this thread, if there is one, that a step is done; see `Step`."""
    listener = _listener.get()
    if listener is not None:
        listener(Step(what, done, total, objective))


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Let a function hear of every step that is done in this thread; None lets nobody hear of it.

    Example:
        >>> with listening(print):
        ...     tell("pass", 1, 2)
        Step(what='pass', done=1, total=2, objective=None)
        >>> tell("pass", 2, 2)
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
