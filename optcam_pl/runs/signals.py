"""Ends a run from outside: after a signal it finishes the current block; processes end with their parent.

A cluster ends a job by SIGTERM or SIGUSR1, a person by Ctrl-C. Inside `stop_signals`, these signals are only recorded.
The run checks for them (`requested`) after every block and ends with `Stopped`. A second signal ends the process at
once, which loses at most the current block and the one that is being written.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

LAUNCHER = "OPTCAM_LAUNCHER"
"""Environment variable with the process id of the process that started the others of its machine."""

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
# A cluster may signal each process, and a launcher may forward its own signal: soon after the first, it is the same
# request.
_ECHO_SECONDS = 1.0


class Stopped(BaseException):
    """The run ended because it was told to; everything that it had done is written.

    This is not an Exception, so that code that continues after errors does not continue after it.

    Attributes:
        exit_code: the exit code of the command: 130 after SIGINT, 143 after the other signals, as in shells.

    Example:
        >>> Stopped(signal.SIGINT).exit_code, Stopped(signal.SIGTERM).exit_code
        (130, 143)
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = _exit_code(signum)


def _exit_code(signum: int) -> int:
    return 128 + (signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM)


class _Request:
    """The first signal that was received, and its time."""

    signum: int | None = None
    since = 0.0

    def note(self, signum: int, _: FrameType | None) -> None:
        if self.signum is None:
            self.signum, self.since = signum, time.monotonic()
            words = "finishing the block in hand; once more ends at once"
            with suppress(OSError):  # a `tee` that Ctrl-C has ended before
                os.write(2, f"\noptcam: {signal.Signals(signum).name}: {words}\n".encode())  # print may be interrupted
        elif time.monotonic() - self.since > _ECHO_SECONDS:
            os._exit(_exit_code(signum))


_request = _Request()


def requested() -> int | None:
    """The signal that asked the run to end, or None."""
    return _request.signum


@contextmanager
def stop_signals() -> Iterator[None]:
    """Record SIGINT, SIGTERM and SIGUSR1 instead of ending the process; restore the old handlers at the end.

    Only the main thread can set handlers; in another thread this does nothing.
    """
    global _request  # noqa: PLW0603 - handlers belong to the process, and so does what they note
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _request = _Request()
    before: dict[int, Any] = {signum: signal.getsignal(signum) for signum in _SIGNALS}
    try:
        for signum in _SIGNALS:
            signal.signal(signum, _request.note)
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
        _request = _Request()


def follow_launcher() -> bool:
    """Let this process end when the launcher that started it on this machine ends.

    Otherwise the processes would wait for a dead first process and keep their memory and GPUs. Every process must call
    this first.

    Returns:
        Whether Lightning started this process. If so, the first process reports for the run and gives the exit code.
    """
    mine, launcher = str(os.getpid()), os.environ.get(LAUNCHER)
    rank = os.environ.get("LOCAL_RANK")
    if rank is None or launcher == mine:
        os.environ[LAUNCHER] = mine
        return False
    started_here = launcher is not None and rank != "0" and "TORCHELASTIC_RUN_ID" not in os.environ
    _end_with_parent(int(launcher) if started_here and launcher else os.getppid())
    return started_here


def _end_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: the kernel sees to it
    elif os.name == "posix":

        def watch() -> None:
            while os.getppid() == parent:
                time.sleep(1)
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
    if os.name == "posix" and os.getppid() != parent:  # it had ended before
        os._exit(1)
