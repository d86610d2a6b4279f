"""In which precision a network's passes run, whatever type its logits have in the end."""

from __future__ import annotations

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
