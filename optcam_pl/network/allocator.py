"""How the C library hands out the memory of tensors on the CPU."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # names of glibc's malloc.h
_PAD = 64 * 2**20


def keep_freed_memory() -> bool:
    """Let this process keep the memory of tensors that are gone, for the next ones.

    By default glibc takes every large tensor's memory from the kernel and gives it back at once, so that each page is
    filled with zeros anew, pass after pass: on a CPU that may cost more time than the network itself
    (benchmarks/allocator.py measures it). The process's size stays at its largest need. Results do not change.

    It holds for the whole process, so that the console command does it, and a library must not by itself.

    Returns:
        Whether it is so now; False where the C library is not glibc.

    Example:
        >>> isinstance(keep_freed_memory(), bool)
        True
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_TOP_PAD, _PAD)])
