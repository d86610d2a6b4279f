"""Many passes through a network in pieces that fit into memory."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from optcam_pl.explainers.steps import tell
from optcam_pl.network.speed import without_captures

_logger = logging.getLogger(__name__)


class Chunks:
    """Cuts a long row of passes into chunks; halves them from then on when a GPU runs out of memory.

    A chunk holds the same part of the row for every image, or belongs to a single image. The cuts depend on the number
    of images in the batch, never on its contents.

    Args:
        size: number of images in one pass, over the whole batch.
        batch: how many images each item of the row stands for.

    >>> Chunks(4, batch=2).cat(lambda part: torch.arange(part.start, part.stop).view(1, -1), 5)
    tensor([[0, 1, 2, 3, 4]])
    """

    def __init__(self, size: int, batch: int = 1) -> None:
        self.size = max(1, size // batch)

    def each(self, step: Callable[[slice], None], total: int) -> None:
        """Call `step` for each slice of 0..total in turn; a call that runs out of memory is repeated with less.

        First it is repeated as it was, if anything is captured that can give back its memory.

        Args:
            step: must not change any state before its last line that can run out of memory.
            total: items in the row.

        Raises:
            torch.OutOfMemoryError: even a single item does not fit.
        """
        start = 0
        while start < total:
            part = slice(start, min(start + self.size, total))
            try:
                without_captures(partial(step, part))
            except torch.OutOfMemoryError:
                if self.size == 1:
                    raise
            else:
                start = part.stop
                tell("pass", start, total)
                continue
            # Outside of the except block the exception is gone, and so is the memory that its frames held.
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
    """Warn once for each size. The next batch starts again at `size`: no result depends on earlier batches."""
    _logger.warning(
        "The GPU ran out of memory with %d items in a pass; continuing with %d. A smaller `chunk_size` avoids this."
        " The last digits of the results may differ.",
        size,
        smaller,
    )
