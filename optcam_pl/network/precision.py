"""In which precision a network's passes run, whatever type its logits have in the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_WIDE = torch.float32


def pass_dtype(weights: torch.dtype | None, device: torch.device) -> torch.dtype:
    """The coarsest floating-point type that a pass through a network works in.

    A classifier returns float32 logits even if the network computes them in less, so their type does not tell how fine
    they are.

    Args:
        weights: the type of the network's weights; None if it has none.
        device: where the pass runs; autocast is switched on for a kind of device.

    Returns:
        The type of the weights or, if autocast is on, autocast's type, whichever is coarser.

    >>> pass_dtype(torch.float32, torch.device("cpu"))
    torch.float32
    >>> with torch.autocast("cpu", dtype=torch.bfloat16):
    ...     pass_dtype(torch.float32, torch.device("cpu"))
    torch.bfloat16
    """
    dtypes = [_WIDE if weights is None else weights]
    if torch.is_autocast_enabled(device.type):
        dtypes.append(torch.get_autocast_dtype(device.type))
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


@contextmanager
def exact_products() -> Iterator[None]:
    """Convolutions and matrix products of float32 numbers on a GPU in float32, not in TF32, whatever the process uses.

    TF32 is PyTorch's default for convolutions. It rounds a thousand times as coarsely, so that two ways to compute the
    same thing differ by more than a proof of their equality may allow. The setting holds for the whole process, other
    threads too, until the end of the `with`.
    """
    places: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    name, exact = "allow_tf32", False
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # from torch 2.9 on; the two kinds do not mix
        places, name, exact = [torch.backends.cudnn.conv, torch.backends.cuda.matmul], "fp32_precision", "ieee"  # type: ignore[attr-defined,assignment]
    before = [getattr(place, name) for place in places]
    try:
        for place in places:
            setattr(place, name, exact)
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            setattr(place, name, value)
