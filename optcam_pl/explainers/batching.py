"""Many passes through a network in pieces that fit into memory."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

_logger = logging.getLogger(__name__)


class Chunks:
    """Cuts a long row of passes into chunks; where a GPU runs out of memory, into halves of them from then on.

    A chunk holds the same part of the row for every image, or belongs to a single image: where the cuts lie never
    depends on what is in the batch, only on how many images it has.

    Args:
        size: images in one pass, all of the batch's together.
        batch: how many images each item of the row stands for.

    >>> Chunks(4, batch=2).cat(lambda part: torch.arange(part.start, part.stop).view(1, -1), 5)
    tensor([[0, 1, 2, 3, 4]])
    """

    def __init__(self, size: int, batch: int = 1) -> None:
        self.size = max(1, size // batch)

    def each(self, step: Callable[[slice], None], total: int) -> None:
        """Call `step` for one slice of 0..total after the other; a call that runs out of memory is repeated smaller.

        Args:
            step: must not change anything before the last line that can run out of memory.
            total: items in the row.

        Raises:
            torch.OutOfMemoryError: a single item is too much.
        """
        start = 0
        while start < total:
            part = slice(start, min(start + self.size, total))
            try:
                step(part)
            except torch.OutOfMemoryError:
                if self.size == 1:
                    raise
            else:
                start = part.stop
                continue
            # Out here the exception is gone, and with it what its frames had kept in memory.
            torch.cuda.empty_cache()
            _tell(self.size, self.size // 2)
            self.size //= 2

    def cat(self, step: Callable[[slice], Tensor], total: int) -> Tensor:
        """The tensors that `step` gives for the slices, side by side in dimension 1."""
        parts: list[Tensor] = []
        self.each(lambda part: parts.append(step(part)), total)
        return torch.cat(parts, dim=1)


@functools.cache
def _tell(size: int, smaller: int) -> None:
    """Once for each size: the next batch tries anew, so that a result never depends on earlier ones."""
    _logger.warning(
        "The GPU ran out of memory with %d items in a pass; going on with %d. A smaller `chunk_size` saves the attempt."
        " The last digits of the results may differ.",
        size,
        smaller,
    )
