"""How the C library manages the memory of tensors on the CPU."""

from __future__ import annotations

import ctypes
import logging
import sys

_logger = logging.getLogger(__name__)
_settled: set[str] = set()  # "advice": whoever has the setting, or has been told of it, needs none
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # names of glibc's malloc.h
_PAD = 64 * 2**20


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors for the next ones.

    By default glibc gets the memory of every large tensor from the kernel and returns it at once, so the kernel fills
    every page with zeros again in each pass. On a CPU that may cost more time than the network itself
    (benchmarks/allocator.py measures it). The process's size stays at its largest need. Results do not change.

    The setting holds for the whole process: the console command makes it, but a library must not do so by itself.

    Returns:
        Whether the setting took effect; False if the C library is not glibc.

    Example:
        >>> isinstance(keep_freed_memory(), bool)
        True
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    _settled.add("advice")
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_TOP_PAD, _PAD)])


def advise_to_keep_memory(device: str) -> None:
    """Say once in a process that computes on a CPU that `keep_freed_memory` may make it faster.

    Args:
        device: the kind of device that passes run on, "cpu" or another.
    """
    if device == "cpu" and sys.platform == "linux" and "advice" not in _settled:
        _settled.add("advice")
        _logger.info(
            "On a CPU, passes may take half the time if the process keeps freed memory: call "
            "optcam_pl.network.allocator.keep_freed_memory() once. Results do not change."
        )
