"""How the threads of one process wait for one another: spinning on a free machine, asleep on a busy one.

Threads of GCC's OpenMP, which PyTorch comes with, spin for milliseconds by default. On free cores that is some
30 % faster than to sleep. Where another program has one of the cores, they hold the core that the thread they wait for
needs, and a step takes ten times longer, and more. Results do not depend on it. It imports no network, as OpenMP is
told by the environment before PyTorch is loaded.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_LOAD = Path("/proc/loadavg")
_LOOKS, _PAUSE = 6, 0.01  # a program that runs at each of so many looks, so many seconds apart, holds a core


def wait_as_fits() -> None:
    """Let threads sleep while they wait, if other programs hold cores that this process would use.

    Whatever the user's environment says of it stays. Processes that this one starts inherit it.
    """
    if any(name in os.environ for name in _SETTINGS):
        return
    cores = os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    wanted = int(threads) if threads.isdecimal() else cores
    if wanted > 1 and others_running() + wanted > cores:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def others_running() -> int:
    """How many threads of other programs hold a core now; 0 where the system does not tell."""
    counts = []
    for look in range(_LOOKS):
        if look:
            time.sleep(_PAUSE)
        try:
            counts.append(int(_LOAD.read_text().split()[3].partition("/")[0]) - 1)  # this one runs, too
        except (OSError, ValueError, IndexError):
            return 0
    return max(0, min(counts))
