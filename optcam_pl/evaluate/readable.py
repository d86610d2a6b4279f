"""The images of a block that there is something to do for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor

from optcam_pl.data import Batch
from optcam_pl.runs.rows import Row


def readable(batch: Batch) -> Batch:
    """The images of a block that could be read; the others are padding, or have an error."""
    chosen = [i for i, index in enumerate(batch["index"].tolist()) if index >= 0 and not batch["error"][i]]
    if len(chosen) == len(batch["id"]):
        return batch
    return cast(Batch, {key: _at(value, chosen) for key, value in batch.items()})


def _at(value: Any, chosen: list[int]) -> Any:
    return value[chosen] if isinstance(value, Tensor) else [value[i] for i in chosen]


def in_order(block: Batch, rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows of the images that could be read, with those of the others, which took no time, in the block's order."""
    errors = [
        Row(index=index, id=block["id"][i], status="error", reason=block["error"][i], target=int(block["target"][i]),
            predicted=-1, p=None, o=None, seconds=0.0)
        for i, index in enumerate(block["index"].tolist()) if index >= 0 and block["error"][i]
    ]  # fmt: skip
    return tuple(sorted([*rows, *errors], key=lambda row: row.index))
