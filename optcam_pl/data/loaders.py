"""Loaders whose elements are whole blocks: one for measuring, and one for training that can resume within an epoch."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from optcam_pl.checks import check_count
from optcam_pl.data.batch import Batch, ImageTable, collate
from optcam_pl.data.blocks import Block, BlockSampler, ShuffleSampler

Workers: TypeAlias = int | Literal["auto"]
_AUTO = 4  # more gain little: a block is read while the network is at work on the one before it


def count_workers(asked: int | str) -> int:
    """The number of loader processes: as asked for, or for "auto" as many as there are cores to use, at most 4.

    Raises:
        ValueError, TypeError: it is neither "auto" nor zero or a positive integer.

    Example:
        >>> count_workers(3), 1 <= count_workers("auto") <= 4
        (3, True)
    """
    if isinstance(asked, str):
        if asked != "auto":
            raise ValueError(f"Expected `num_workers` to be a number or 'auto', but got {asked!r}.")
        return min(_AUTO, _cores())
    return check_count("num_workers", asked)


def _cores() -> int:
    """The cores that this process may use: fewer than the machine has, where a cluster or a container says so."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    return len(os.sched_getaffinity(0))


class _Blocks(Dataset[Batch]):
    """A table's batches, by their block of indices."""

    def __init__(self, table: ImageTable) -> None:
        self.table = table

    def __getitem__(self, block: Block | list[int]) -> Batch:
        indices, epoch = block if isinstance(block, Block) else (block, 0)
        return collate([self.table.sample(index, epoch) for index in indices])

    def __len__(self) -> int:
        return len(self.table)


def _as_is(batch: Any) -> Any:
    return batch


def _leave_signals_to_parent(_: int) -> None:
    """Let a loader process ignore the signals that end the run: only its parent, which finishes its block, may end it.

    Ctrl-C and a cluster's signals go to all processes of a job. A SIGTERM from the parent must still work, because it
    ends a process that hangs.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "linux":
        return
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait_for_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait_for_parent, daemon=True).start()


class LoaderOptions(TypedDict):
    """The arguments of both kinds of loader."""

    num_workers: int
    timeout: float


def _arguments(table: ImageTable, sampler: Sampler[Any], options: LoaderOptions) -> dict[str, Any]:
    workers = options["num_workers"]
    return {
        "dataset": _Blocks(table),
        # A block is one element, not the batch of a batch sampler, which Lightning takes apart when it predicts.
        "batch_size": None,
        "sampler": sampler,
        "collate_fn": _as_is,
        "num_workers": workers,
        "timeout": options["timeout"] if workers else 0,
        "persistent_workers": workers > 0,
        "worker_init_fn": _leave_signals_to_parent,
        "pin_memory": torch.cuda.is_available(),
        "generator": torch.Generator().manual_seed(0),  # otherwise starting a loader changes the global random state
    }


def block_loader(
    table: ImageTable, block_size: int, shares: tuple[int, int], todo: Sequence[int] | None, options: LoaderOptions
) -> DataLoader[Batch]:
    """Every image once, in order, in blocks.

    Args:
        table: the images.
        block_size: images in a block.
        shares: rank and number of processes.
        todo: numbers of the blocks that remain to be done, None for all.
        options: of the loader processes.
    """
    return DataLoader(**_arguments(table, BlockSampler(len(table), block_size, *shares, todo), options))


class TrainingLoader(DataLoader[Batch]):
    """Shuffled full blocks that differ from epoch to epoch. Lightning stores the position and resumes from it.

    The position cannot be counted here, because loader processes read ahead; the trainer is asked for it.

    Args:
        table: the images, with a transform that augments them; its seed is also the seed of the order.
        block_size: images in a block.
        shares: rank and number of processes.
        progress: returns how many blocks this rank has trained on so far, and how many blocks an epoch has.
        options: of the loader processes.
    """

    def __init__(
        self,
        table: ImageTable,
        block_size: int,
        shares: tuple[int, int],
        progress: Callable[[], tuple[int, int]],
        options: LoaderOptions,
    ) -> None:
        shuffle = ShuffleSampler(len(table), block_size, table.seed, *shares)
        super().__init__(**_arguments(table, shuffle, options))
        self.shuffle = shuffle
        self.progress = progress

    def state_dict(self) -> dict[str, int]:
        """How far the training has come."""
        done, per_epoch = self.progress()
        return {"done": done, "per_epoch": per_epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume the epoch that the training had reached, at the block that it had reached."""
        self.shuffle.start = divmod(state["done"], max(1, state["per_epoch"]))
        self.set_epoch(self.shuffle.start[0])

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.shuffle.set_epoch(epoch)
