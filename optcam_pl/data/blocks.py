"""Which images a process sees, and in which order: blocks for measuring, shuffled blocks for training, subsets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar, cast

import torch
from torch.utils.data import Dataset, DistributedSampler

from optcam_pl.checks import check_count, check_positive

PADDING = -1
"""Index of the samples that fill up the last block."""


class Block(NamedTuple):
    """The images of one batch: their indices, -1 for padding, and the epoch, on which random augmentation depends."""

    indices: list[int]
    epoch: int = 0


class BlockSampler(DistributedSampler[list[int]]):
    """Cuts the indices 0 ... n-1 into blocks of one size and distributes the blocks over the processes.

    Block k holds the indices from k * block_size on; the last block is filled up with -1. The block at position p of
    `todo` belongs to rank p mod world_size. Every rank yields the same number of blocks, at least one; missing blocks
    consist of -1 only. The class is a DistributedSampler because Lightning replaces any other kind of sampler under
    ddp.

    Args:
        n: number of images.
        block_size: images in a block.
        rank: this process.
        world_size: number of processes.
        todo: numbers of the blocks that remain to be done, None for all.

    Example:
        >>> [list(BlockSampler(5, block_size=2, rank=rank, world_size=2)) for rank in (0, 1)]
        [[[0, 1], [4, -1]], [[2, 3], [-1, -1]]]
        >>> list(BlockSampler(5, block_size=2, todo=[2]))
        [[4, -1]]
    """

    def __init__(
        self, n: int, block_size: int, rank: int = 0, world_size: int = 1, todo: Sequence[int] | None = None
    ) -> None:
        _check_shares(n, block_size, rank, world_size)
        blocks = -(-n // block_size)
        todo = range(blocks) if todo is None else todo
        if any(not 0 <= block < blocks for block in todo) or len(set(todo)) < len(todo):
            raise ValueError(f"Expected `todo` to name blocks from 0 to {blocks - 1}, each once, but got {list(todo)}.")
        super().__init__(cast("Dataset[list[int]]", range(n)), world_size, rank, shuffle=False)
        self.n = n
        self.block_size = block_size
        self.blocks = todo[rank::world_size]
        self.length = max(1, -(-len(todo) // world_size))

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[int]]:
        for block in self.blocks:
            first = block * self.block_size
            yield [index if index < self.n else PADDING for index in range(first, first + self.block_size)]
        for _ in range(self.length - len(self.blocks)):
            yield [PADDING] * self.block_size


class ShuffleSampler(DistributedSampler[Block]):
    """Shuffled full blocks for training, the same for the same seed and epoch; an epoch can start in its middle.

    Every image is in at least one block of some rank. The first images of the shuffled order are repeated at its end,
    so that all blocks are full and all ranks have the same number of blocks.

    Args:
        n: number of images, at least 1.
        block_size: images in a block.
        seed: seed of the order; the epoch is added to it.
        rank: this process.
        world_size: number of processes.

    Attributes:
        epoch: set by Lightning through `set_epoch`.
        start: an epoch, and how many of its blocks are already done: iterating over that epoch skips these.

    Example:
        >>> sampler = ShuffleSampler(3, block_size=2, seed=0)
        >>> [block.indices for block in sampler], len(sampler)
        ([[2, 0], [1, 2]], 2)
        >>> sampler.start = (0, 1)
        >>> [block.indices for block in sampler]
        [[1, 2]]
    """

    def __init__(self, n: int, block_size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        _check_shares(n, block_size, rank, world_size)
        check_positive("n", n)
        super().__init__(cast("Dataset[Block]", range(n)), world_size, rank, seed=seed)
        self.n = n
        self.block_size = block_size
        self.length = -(-n // (block_size * world_size))
        self.start = (0, 0)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Block]:
        # Not a generator: the epoch is read when the iteration begins, not when the first block is requested.
        order = torch.randperm(self.n, generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        total, size = self.length * self.num_replicas, self.block_size
        order = [order[i % self.n] for i in range(total * size)]
        done = self.start[1] if self.start[0] == self.epoch else 0
        mine = range(self.rank, total, self.num_replicas)[done:]
        return iter([Block(order[block * size : (block + 1) * size], self.epoch) for block in mine])


def _check_shares(n: int, block_size: int, rank: int, world_size: int) -> None:
    check_count("n", n)
    check_positive("block_size", block_size)
    if not 0 <= rank < world_size:
        raise ValueError(f"Expected `rank` to lie in 0 ... world_size - 1, but got {rank} of {world_size}.")


def seeded_order(names: Sequence[str], seed: int) -> list[int]:
    """Positions of `names` in a random order that depends only on the names and the seed, on every machine.

    Example:
        >>> seeded_order(["a", "b", "c"], 0), seeded_order(["c", "b", "a"], 0)
        ([0, 2, 1], [2, 0, 1])
    """
    digests = [hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest() for name in names]
    return sorted(range(len(names)), key=digests.__getitem__)


T = TypeVar("T")


def choose(items: Sequence[T], names: Sequence[str], limit: int | None, seed: int | None = None) -> list[T]:
    """At most `limit` items in their order: evenly spread, or with `seed` chosen at random by their names.

    Example:
        >>> choose(range(10), "abcdefghij", 4), choose(range(10), "abcdefghij", 4, seed=0)
        ([0, 2, 5, 7], [3, 5, 6, 7])
    """
    n = len(items)
    if limit is None or limit >= n:
        return list(items)
    if seed is None:
        return [items[i * n // limit] for i in range(limit)]
    return [items[i] for i in sorted(seeded_order(names, seed)[:limit])]
