"""Ending a run from outside: after a signal it finishes the block in hand; processes end with their parent.

A cluster asks for its machine by SIGTERM or SIGUSR1, a person by Ctrl-C. Inside `stop_signals` these signals are only
noted. The run looks at them (`requested`) after every block and ends with `Stopped`. A second signal ends the process
at once, which loses no more than the block in hand.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

LAUNCHER = "OPTCAM_LAUNCHER"
"""Environment variable with the process id of the process that started the others of its machine."""

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
# A cluster may signal each process, and a launcher pass its own signal on: what comes so soon is the same request.
_ECHO_SECONDS = 1.0


class Stopped(BaseException):
    """The run ended because it was told to, with everything written that it had done.

    It is not an Exception, so that code that continues after errors does not continue after this.

    Attributes:
        exit_code: exit code of the command: 130 after SIGINT, 143 after the others, as in shells after SIGTERM.

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
    """The first signal that came, and its time."""

    signum: int | None = None
    since = 0.0

    def note(self, signum: int, _: FrameType | None) -> None:
        if self.signum is None:
            self.signum, self.since = signum, time.monotonic()
            words = "finishing the block in hand; once more ends at once"
            os.write(2, f"\noptcam: {signal.Signals(signum).name}: {words}\n".encode())  # print may be interrupted
        elif time.monotonic() - self.since > _ECHO_SECONDS:
            os._exit(_exit_code(signum))


_request = _Request()


def requested() -> int | None:
    """The signal that told the run to end, or None."""
    return _request.signum


@contextmanager
def stop_signals() -> Iterator[None]:
    """Note SIGINT, SIGTERM and SIGUSR1 instead of ending the process; the old handlers are restored at the end.

    Only the main thread may set handlers; in another thread this does nothing.
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
    """In a process that was started as one of several on this machine: end when the one that started it ends.

    Otherwise the others would wait for a dead first process, with their memory and their GPUs. Every process has to
    call this first.

    Returns:
        Whether Lightning started this process: then the first process speaks for the run, and gives its exit code.
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
