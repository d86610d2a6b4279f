"""Loaders whose elements are whole blocks: one to measure on, one to train on that can go on within an epoch."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from optcam_pl.data.batch import Batch, ImageTable, collate
from optcam_pl.data.blocks import Block, BlockSampler, ShuffleSampler


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
    """Make a loader process outlive what ends the run: only its parent, which has a block to finish, may end it.

    Ctrl-C and a cluster's signals go to all processes of a job. A SIGTERM from the parent still has to work: it is how
    a process that hangs is ended.
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
    """What both kinds of loader are given."""

    num_workers: int
    timeout: float


def _arguments(table: ImageTable, sampler: Sampler[Any], options: LoaderOptions) -> dict[str, Any]:
    workers = options["num_workers"]
    return {
        "dataset": _Blocks(table),
        # A block is one element, not a batch sampler's: Lightning takes those apart when it predicts.
        "batch_size": None,
        "sampler": sampler,
        "collate_fn": _as_is,
        "num_workers": workers,
        "timeout": options["timeout"] if workers else 0,
        "persistent_workers": workers > 0,
        "worker_init_fn": _leave_signals_to_parent,
        "pin_memory": torch.cuda.is_available(),
        "generator": torch.Generator().manual_seed(0),  # else starting a loader moves the global random state
    }


def block_loader(
    table: ImageTable, block_size: int, shares: tuple[int, int], todo: Sequence[int] | None, options: LoaderOptions
) -> DataLoader[Batch]:
    """Every image once, in order, in blocks.

    Args:
        table: the images.
        block_size: images in a block.
        shares: rank and number of processes.
        todo: numbers of the blocks that are still to do, None for all.
        options: of the loader processes.
    """
    return DataLoader(**_arguments(table, BlockSampler(len(table), block_size, *shares, todo), options))


class TrainingLoader(DataLoader[Batch]):
    """Shuffled full blocks that differ from epoch to epoch. Lightning stores where it is, and it goes on from there.

    Where it is cannot be counted here, as loader processes read ahead; it is asked from the trainer.

    Args:
        table: the images, with a transform that augments them; its seed is the order's too.
        block_size: images in a block.
        shares: rank and number of processes.
        progress: returns how many blocks this rank has been trained on so far, and how many make an epoch.
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
        """Begin the epoch that the training had come to where it had come to."""
        self.shuffle.start = divmod(state["done"], max(1, state["per_epoch"]))
        self.set_epoch(self.shuffle.start[0])

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of an epoch."""
        self.shuffle.set_epoch(epoch)
