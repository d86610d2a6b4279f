"""How many images go through the network in one pass where `chunk_size` is "auto".

On a GPU it is a power of two that a short probe of the network chooses: as many as a share of the free memory holds,
but no more than make the passes faster. Elsewhere it is 64, the default: on a CPU, passes of fewer images are as fast
or slower. A run chooses once, on its first process, and stores the number; its last digits depend on it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import nn

from optcam_pl.checks import check_positive
from optcam_pl.network.bound import Bound
from optcam_pl.network.classifier import Classifier
from optcam_pl.network.speed import forget_captured
from optcam_pl.threads import unseen

ChunkSize: TypeAlias = int | Literal["auto"]
"""Images in one pass of the network, or "auto"."""

_ELSEWHERE = 64
_FIRST, _LARGEST = 8, 1024
_SHARE = 0.5  # of the free memory; a method's masks and masked images need some, too
_FASTER = 1.05  # twice the images in a pass have to make it so many times as fast
_TIMES = 3  # timed passes of a size, of which the fastest counts

_decided = Bound()
_known: WeakKeyDictionary[nn.Module, dict[object, int]] = WeakKeyDictionary()


def check_chunk_size(value: Any) -> ChunkSize:
    """Return the value if it is a positive integer or "auto".

    Raises:
        TypeError: it is neither an integer nor a text.
        ValueError: it is another number or text.

    Example:
        >>> check_chunk_size("Auto")
        Traceback (most recent call last):
        ValueError: Expected `chunk_size` to be a positive integer or auto, but got 'Auto'.
    """
    if isinstance(value, str):
        if value != "auto":
            raise ValueError(f"Expected `chunk_size` to be a positive integer or auto, but got {value!r}.")
        return "auto"
    return check_positive("chunk_size", value)


def decided(number: int | None) -> AbstractContextManager[None]:
    """In here, and in this thread, "auto" is this number; with None it is chosen where it is first needed."""
    return _decided.to(number)


def images_in_pass(chunk_size: ChunkSize, classifier: Classifier, image: torch.Tensor) -> int:
    """The number of images in one pass that a setting means.

    Args:
        chunk_size: the setting.
        classifier: the network.
        image: (B,3,H,W) the images that are explained.
    """
    if chunk_size != "auto":
        return chunk_size
    number: int | None = _decided.value
    return automatic(classifier, (image.shape[2], image.shape[3]), image.device) if number is None else number


def automatic(classifier: Classifier, size: tuple[int, int], device: torch.device) -> int:
    """The number that "auto" means for a network; chosen once in a process, so it is the same in every call.

    Args:
        classifier: the network, on the device.
        size: (H,W) of the images.
        device: where they are.
    """
    if device.type != "cuda":
        return _ELSEWHERE
    autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
    known = _known.setdefault(classifier.network, {})
    key = (size, device, autocast)
    if key not in known:
        known.setdefault(key, choose(_CudaProbe(classifier, size, device)))
        forget_captured()  # passes of all the sizes that were tried
    return known[key]


class Probe(ABC):
    """What is asked of a device: how much memory is free, and what a pass costs."""

    @abstractmethod
    def free(self) -> int:
        """Bytes that can be had."""

    @abstractmethod
    def measure(self, count: int) -> tuple[float, int]:
        """Seconds and bytes of a pass of so many images; torch.OutOfMemoryError where they do not fit."""


def choose(probe: Probe) -> int:
    """The smallest power of two beyond which passes are hardly faster, or the largest that fits.

    Example:
        >>> class Made(Probe):
        ...     def free(self):
        ...         return 1000
        ...
        ...     def measure(self, count):
        ...         return max(count, 32), count  # seconds: up to 32 images take the time of 32; a byte for each image
        >>> choose(Made())
        32
    """
    count = _FIRST
    free = probe.free()
    try:
        seconds, used = probe.measure(count)
        while 2 * count <= _LARGEST and 2 * used <= _SHARE * free:
            longer, used = probe.measure(2 * count)
            if 2 * seconds < _FASTER * longer:
                break
            count, seconds = 2 * count, longer
    except torch.OutOfMemoryError:  # of the first pass: `Chunks` halves it further
        pass
    return count


class _CudaProbe(Probe):
    """Forward passes of gray images, without a gradient."""

    def __init__(self, classifier: Classifier, size: tuple[int, int], device: torch.device) -> None:
        self._classifier, self._size, self._device = classifier, size, device

    def free(self) -> int:
        forget_captured()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self._device)[0]

    def measure(self, count: int) -> tuple[float, int]:
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        with unseen(), torch.no_grad():
            image = torch.full((count, self._classifier.channels, *self._size), 0.5, device=self._device)
            self._classifier(image)  # the first one of a size prepares kernels, and captures a graph
            seconds = min(self._seconds(image) for _ in range(_TIMES))
        return seconds, torch.cuda.max_memory_allocated(self._device) - before

    def _seconds(self, image: torch.Tensor) -> float:
        torch.cuda.synchronize(self._device)
        start = time.perf_counter()
        self._classifier(image)
        torch.cuda.synchronize(self._device)
        return time.perf_counter() - start
