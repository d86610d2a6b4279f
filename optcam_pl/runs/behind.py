"""Writes a run's files in a thread of its own, so that nobody waits for the disk while the next block is computed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeAlias

_logger = logging.getLogger(__name__)

Job: TypeAlias = Callable[[], object]
"""Writes something; it holds all that it needs, on the CPU."""


_MOST_HELPERS = 4


def helpers() -> int:
    """How many threads write the files of a block: a quarter of the cores to use, at most 4.

    A map and an overlay take 20 ms of a core, and a GPU makes one in 4.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_HELPERS, cores // 4))


class WriteBehind:
    """A thread that writes blocks in their order, at most one block behind.

    A block is handed over when the one before it is on the disk. So memory holds one block more, and a process that is
    killed loses at most the block in hand and the one that is being written; they are computed again. What was handed
    over is written before the process ends in any other way, also after an exception.

    This is a context manager; leaving it waits for the thread. The thread starts with the first block, so processes
    that are forked before (the loaders of data) do not know of it.

    Args:
        threads: how many threads write the files of a block.

    Example:
        >>> done = []
        >>> with WriteBehind() as writing:
        ...     writing.hand_over([lambda: done.append("map")], lambda: done.append("row"))
        ...     writing.settle()
        >>> done
        ['map', 'row']
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self._thread: ThreadPoolExecutor | None = None  # only inside: what has one can be neither copied nor pickled
        self._helpers: ThreadPoolExecutor | None = None
        self._block: Future[None] | None = None

    def hand_over(self, files: Sequence[Job], rows: Job | None = None) -> None:
        """Wait until everything before is written, then begin with a block's jobs and return.

        Args:
            files: jobs that may be done in any order and at the same time.
            rows: what is done when all of them are.

        Raises:
            Exception: what a job of the block before has raised. Then nothing is handed over, and the rows of the block
                are not written: no row is without its files.
        """
        self.settle()
        assert self._thread is not None  # see __enter__
        self._block = self._thread.submit(self._do, tuple(files), rows)

    def settle(self) -> None:
        """Wait until everything that was handed over is written.

        Raises:
            Exception: what a job has raised; raised once.
        """
        if self._block is not None:
            block = self._block
            block.exception()  # an interrupt while it waits leaves the block where it is
            self._block = None
            block.result()

    def __enter__(self) -> WriteBehind:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="optcam-writes")
        if self.threads > 1:
            self._helpers = ThreadPoolExecutor(self.threads, thread_name_prefix="optcam-files")
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the thread. An error that nobody has heard of is logged: the run has ended for another reason."""
        if self._thread is not None:
            self._thread.shutdown()
        if self._helpers is not None:
            self._helpers.shutdown()
        self._thread, self._helpers, block, self._block = None, None, self._block, None
        if block is not None and (error := block.exception()) is not None:
            _logger.error("The last block could not be written; the next start computes it again: %s", error)

    def _do(self, files: Sequence[Job], rows: Job | None) -> None:
        if self._helpers is None:
            for job in files:
                job()
        else:
            begun = [self._helpers.submit(job) for job in files]
            wait(begun)  # all of them, also after a failure: nothing is written behind the run's back
            for done in begun:
                done.result()
        if rows is not None:
            rows()
