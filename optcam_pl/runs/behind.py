"""Writes a run's files in a thread of its own, so that nobody waits for the disk while the next block is computed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

_logger = logging.getLogger(__name__)

Job: TypeAlias = Callable[[], object]
"""Writes something; it holds all that it needs, on the CPU."""


class WriteBehind:
    """One thread that writes blocks in their order, at most one block behind.

    A block is handed over when the one before it is on the disk. So memory holds one block more, and a process that is
    killed loses at most the block in hand and the one that is being written; they are computed again. What was handed
    over is written before the process ends in any other way, also after an exception.

    This is a context manager; leaving it waits for the thread. The thread starts with the first block, so processes
    that are forked before (the loaders of data) do not know of it.

    Example:
        >>> done = []
        >>> with WriteBehind() as writing:
        ...     writing.hand_over([lambda: done.append("map"), lambda: done.append("row")])
        ...     writing.settle()
        >>> done
        ['map', 'row']
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None  # only inside: what has one can be neither copied nor pickled
        self._block: Future[None] | None = None

    def hand_over(self, jobs: Sequence[Job]) -> None:
        """Wait until everything before is written, then begin with a block's jobs and return.

        Raises:
            Exception: what a job of the block before has raised. Then nothing is handed over: the jobs behind a failed
                one are not done, so that no row is written whose files are not.
        """
        self.settle()
        assert self._thread is not None  # see __enter__
        self._block = self._thread.submit(_do, tuple(jobs))

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
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the thread. An error that nobody has heard of is logged: the run has ended for another reason."""
        if self._thread is not None:
            self._thread.shutdown()
        self._thread, block, self._block = None, self._block, None
        if block is not None and (error := block.exception()) is not None:
            _logger.error("The last block could not be written; the next start computes it again: %s", error)


def _do(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job()
