"""The processes that work on one run, and the messages between them."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from optcam_pl.private import default_store
from optcam_pl.runs.files import RunFolderError
from optcam_pl.runs.signals import requested

TOO_MANY_ERRORS, FAILED = 0, -1
"""Reasons to stop that are no signals: more errors than `max_errors`; an exception in one of the processes."""


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RunFolderError(f"Another process of this run has ended: {error}") from error


class Processes:
    """The processes of one run. They exchange messages through the store of their process group.

    A collective inside the loop would wait for the slowest process. A collective after the loop would run into the
    group's timeout if one process is much slower than the others. The store answers at once, or fails when its process
    is dead.

    Args:
        rank: number of this process.
        size: number of processes.
        store: store of a process group (`torch.distributed.Store`); None: that of the default group, if any.
    """

    _runs = itertools.count()  # every process counts the same runs

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None) -> None:
        self.rank, self.size = rank, size
        self._told: int | None = None
        self._numbers: Counter[str] = Counter()
        if store is None and size > 1 and dist.is_available() and dist.is_initialized():
            default = default_store()
            store = dist.PrefixStore(f"optcam/{next(Processes._runs)}", default)  # type: ignore[attr-defined]
        self._store = store

    def stop(self, reason: int) -> None:
        """Tell all processes to leave the loop after their block; `reason` is a signal or one of the constants."""
        self._told = reason
        if self._store is not None:
            self._store.set("stop", str(reason))

    def stopped(self) -> int | None:
        """The reason that any process has given to `stop`, or None."""
        if self._told is None and self._store is not None and self._store.check(["stop"]):
            self._told = int(self._store.get("stop"))
        return self._told

    def add(self, name: str, number: int) -> int:
        """Add to a number that all processes share, and return the sum."""
        if self._store is not None:
            return int(self._store.add(name, number))
        self._numbers[name] += number
        return self._numbers[name]

    def leave(self) -> int | None:
        """Wait until every process has left the loop, then return the result of `stopped`.

        Raises:
            RunFolderError: the process that holds the store has died.
        """
        with _store_errors():
            self.add("left", 1)
            while self.add("left", 0) < self.size and self.heed() != FAILED:
                time.sleep(0.05)
            reason = self.stopped()
            self.add("seen", 1)
            # The store ends with its process, so this one stays until the others have their answer.
            patience = time.monotonic() + 10
            while self.rank == 0 and self.add("seen", 0) < self.size and time.monotonic() < patience:
                time.sleep(0.05)
        return reason

    def heed(self) -> int | None:
        """Forward a signal that this process has received, and return `stopped`; raises what `leave` raises."""
        signum = requested()
        with _store_errors():
            if signum is not None and self._told is None:
                self.stop(signum)
            return self.stopped()
