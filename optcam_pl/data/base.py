"""What all datasets share: entries, faults kept to their own image, blocks for any number of processes, loaders."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, Literal, NamedTuple, TypedDict, cast

import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from optcam_pl.data.decode import ImageReadError, read_image
from optcam_pl.data.transforms import Interpolation, Preprocessing, Resize

OnError = Literal["raise", "record"]
PADDING = -1
"""Index of the samples that fill up the last block."""


class Entry(NamedTuple):
    """One image of a dataset, before it is read.

    Attributes:
        id: name of the image, the same on every machine: its POSIX path relative to the data's root.
        path: where the image is read from: its file, or whatever else the dataset's reader understands.
        target: class index, -1 without a label.
        boxes: xyxy boxes in the pixels of the image; None where the dataset has no boxes or its reader brings them.
    """

    id: str
    path: str
    target: int = -1
    boxes: tuple[tuple[float, float, float, float], ...] | None = None


class Item(NamedTuple):
    """One image as it was read, before it is resized: RGB, with xyxy boxes in its pixels and a mask of its size."""

    image: Image.Image
    boxes: Sequence[Sequence[float]] = ()
    mask: Image.Image | None = None


def read_entry(entry: Entry) -> Item:
    """Read an entry's image from its file, with the boxes that the entry lists."""
    return Item(read_image(entry.path), entry.boxes or ())


class Sample(TypedDict, total=False):
    """One image as the network wants it; `boxes` and `mask` only where the dataset has them."""

    image: Tensor  # (3,H,W) float32 in [0,1]
    target: int  # -1: no label
    id: str
    index: int  # -1: padding
    error: str  # "": none
    boxes: Tensor  # (n,4) float32 xyxy in the pixels of `image`, n may be 0
    mask: Tensor  # (H,W) bool


class Batch(TypedDict, total=False):
    """B samples; `boxes` and `mask` only where the dataset has them."""

    image: Tensor  # (B,3,H,W) float32 in [0,1]
    target: Tensor  # (B,) int64
    id: list[str]
    index: Tensor  # (B,) int64
    error: list[str]
    boxes: list[Tensor]  # B tensors (n,4)
    mask: Tensor  # (B,H,W) bool


class ImageTable(Dataset[Sample]):
    """The samples of a list of entries. Index -1 is the padding sample: black, without id, target or error.

    Args:
        entries: the images.
        preprocessing: how each becomes a tensor.
        reader: reads an entry; raises ImageReadError where that fails.
        on_error: "raise" lets an ImageReadError through; "record" returns a black sample that keeps its id and target
            and holds the reason in `error`.
        annotations: which of "boxes" and "masks" the samples have.

    Example:
        >>> table = ImageTable([Entry("a.png", "/nowhere/a.png", 3)], Preprocessing((2, 2)), on_error="record")
        >>> sample = table[0]
        >>> sample["error"], sample["target"], sample["image"].sum().item(), table[-1]["id"]
        ('there is no such file', 3, 0.0, '')
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        preprocessing: Preprocessing,
        *,
        reader: Callable[[Entry], Item] = read_entry,
        on_error: OnError = "raise",
        annotations: Sequence[Literal["boxes", "masks"]] = (),
    ) -> None:
        self.entries = entries
        self.preprocessing = preprocessing
        self.reader = reader
        self.on_error = on_error
        self.annotations = tuple(annotations)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        if index == PADDING:
            return self._sample(Entry("", ""), PADDING, None, "")
        if not 0 <= index < len(self.entries):
            raise IndexError(f"Expected an index from 0 to {len(self) - 1} or -1 for padding, but got {index}.")
        entry = self.entries[index]
        try:
            return self._sample(entry, index, self.reader(entry), "")
        except ImageReadError as fault:
            if self.on_error == "raise":
                raise
            return self._sample(entry, index, None, fault.reason)

    def _sample(self, entry: Entry, index: int, item: Item | None, error: str) -> Sample:
        """The sample of an item that was read, a black one without an item."""
        transform = self.preprocessing
        image = transform(item.image) if item else torch.zeros(3, *transform.size)
        sample = Sample(image=image, target=entry.target, id=entry.id, index=index, error=error)
        if "boxes" in self.annotations:
            sample["boxes"] = transform.boxes(item.boxes, item.image.size) if item else torch.zeros(0, 4)
        if "masks" in self.annotations:
            mask = item.mask if item else None
            sample["mask"] = transform.mask(mask) if mask else torch.zeros(transform.size, dtype=torch.bool)
        return sample


def collate(samples: Sequence[Sample]) -> Batch:
    """Put samples together into a batch.

    Example:
        >>> table = ImageTable([], Preprocessing((2, 2)))
        >>> batch = collate([table[-1], table[-1]])
        >>> batch["image"].shape, batch["target"].tolist(), batch["id"], batch["index"].tolist(), "boxes" in batch
        (torch.Size([2, 3, 2, 2]), [-1, -1], ['', ''], [-1, -1], False)
    """
    batch = Batch(
        image=torch.stack([sample["image"] for sample in samples]),
        target=torch.tensor([sample["target"] for sample in samples]),
        id=[sample["id"] for sample in samples],
        index=torch.tensor([sample["index"] for sample in samples]),
        error=[sample["error"] for sample in samples],
    )
    if "boxes" in samples[0]:
        batch["boxes"] = [sample["boxes"] for sample in samples]
    if "mask" in samples[0]:
        batch["mask"] = torch.stack([sample["mask"] for sample in samples])
    return batch


class BlockSampler(DistributedSampler[list[int]]):
    """Cuts the indices 0 ... n-1 into blocks of one size and deals the blocks out to the processes.

    Block k holds the indices from k * block_size on; the last one is filled up with -1. The block at position p of
    `todo` belongs to rank p mod world_size. Every rank yields the same number of blocks, at least one; where there are
    not enough, blocks of nothing but -1. It is a DistributedSampler so that Lightning, which under ddp puts its own
    sampler in the place of any other kind, leaves it alone.

    Args:
        n: number of images.
        block_size: images in a block.
        rank: this process.
        world_size: number of processes.
        todo: numbers of the blocks that are still to do, None for all.

    Example:
        >>> [list(BlockSampler(5, block_size=2, rank=rank, world_size=2)) for rank in (0, 1)]
        [[[0, 1], [4, -1]], [[2, 3], [-1, -1]]]
        >>> list(BlockSampler(5, block_size=2, todo=[2]))
        [[4, -1]]
    """

    def __init__(
        self, n: int, block_size: int, rank: int = 0, world_size: int = 1, todo: Sequence[int] | None = None
    ) -> None:
        if n < 0:
            raise ValueError(f"Expected `n` to be a non-negative integer, but got {n}.")
        if block_size < 1:
            raise ValueError(f"Expected `block_size` to be a positive integer, but got {block_size}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"Expected `rank` to lie in 0 ... world_size - 1, but got {rank} of {world_size}.")
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


class _Blocks(Dataset[Batch]):
    """A table's batches, by their list of indices."""

    def __init__(self, table: ImageTable) -> None:
        self.table = table

    def __getitem__(self, block: list[int]) -> Batch:
        return collate([self.table[index] for index in block])

    def __len__(self) -> int:
        return len(self.table)


def _as_is(batch: Any) -> Any:
    return batch


class ImageDataModule(LightningDataModule, ABC):
    """A dataset to explain and to measure on: every stage sees the same images once each, in the same order, in blocks.

    A subclass says what its images are (`entries`), perhaps what its classes are called (`class_names`), and which
    annotations it has. Its loaders deal the blocks out to the trainer's processes by themselves.

    Args:
        batch_size: images in a block; fixed for a run, as results depend on it in the last digits.
        num_workers: loader processes, 0 to read in this one.
        size: side, or height and width, of the network's input in pixels; None for what the network was made for
            (`match_network`), 224 where that is unknown.
        resize: "stretch" to this size (the paper) or "crop" its middle.
        interpolation: "bilinear" or "bicubic"; None for the network's own, "bilinear" where that is unknown.
        limit: use that many images only, spread evenly over the dataset: index i * n // limit.
        seed: with `limit`, a random choice of images instead; the same for the same seed on every machine.
        on_error: "raise" ends the run at an image that cannot be read; "record" goes on with a black image whose
            reason is in the batch's `error`.
        timeout: seconds to wait for a loader process before the run ends with an error; 0 waits for ever.

    Attributes:
        name: name of the dataset in run folders and tables; the class's name in snake case where it has no better one.
        todo: numbers of the blocks that are still to do, None for all; set it to resume a run.
    """

    annotations: tuple[Literal["boxes", "masks"], ...] = ()

    def __init__(
        self,
        *,
        batch_size: int = 8,
        num_workers: int = 0,
        size: int | tuple[int, int] | None = None,
        resize: Resize = "stretch",
        interpolation: Interpolation | None = None,
        limit: int | None = None,
        seed: int | None = None,
        on_error: OnError = "raise",
        timeout: float = 120,
    ) -> None:
        super().__init__()
        _check_count("batch_size", batch_size, 1)
        _check_count("num_workers", num_workers, 0)
        if limit is not None:
            _check_count("limit", limit, 1)
        if seed is not None and limit is None:
            raise ValueError("Expected `limit` to be given with `seed`: `seed` chooses `limit` images at random.")
        if on_error not in ("raise", "record"):
            raise ValueError(f"Expected `on_error` to be 'raise' or 'record', but got {on_error!r}.")
        if timeout < 0:
            raise ValueError(f"Expected `timeout` to be 0 or more seconds, but got {timeout}.")
        self.name: str = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.limit = limit
        self.seed = seed
        self.on_error: OnError = on_error
        self.timeout = timeout
        self.todo: Sequence[int] | None = None
        self._size = (size, size) if isinstance(size, int) else size and (size[0], size[1])
        self._interpolation = interpolation
        self._preprocessing = Preprocessing(self._size or (224, 224), resize, interpolation=interpolation or "bilinear")
        self._entries: list[Entry] | None = None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes by index, None where the dataset has no labels."""
        return None

    @abstractmethod
    def entries(self) -> list[Entry]:
        """All images of the dataset in their fixed order, before `limit`."""

    @abstractmethod
    def looked_for(self) -> str:
        """What `entries` searches and where, in words, for the message that there is none."""

    def reader(self) -> Callable[[Entry], Item]:
        """What reads an entry; by default `read_entry`. It is sent to the loader processes, so it must be picklable."""
        return read_entry

    def match_network(self, size: tuple[int, int], interpolation: Interpolation, crop_fraction: float) -> None:
        """Preprocess as the network wants it wherever the user left it open; to be called before loaders are made.

        Args:
            size: the network's input height and width.
            interpolation: the interpolation that it was trained or is evaluated with.
            crop_fraction: its share of the shorter side, for ``resize="crop"``.
        """
        self._preprocessing = Preprocessing(
            self._size or (size[0], size[1]),
            self._preprocessing.resize,
            crop_fraction,
            self._interpolation or interpolation,
        )

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become tensors."""
        return self._preprocessing

    def setup(self, stage: str | None = None) -> None:
        """List the images, once.

        Raises:
            ValueError: there is none, two have the same id, or a label lies outside the classes.
        """
        if self._entries is None:
            entries = self.entries()
            self._check(entries)
            self._entries = choose(entries, self.limit, self.seed)

    def _check(self, entries: list[Entry]) -> None:
        if not entries:
            raise ValueError(f"{type(self).__name__} found no image: looked for {self.looked_for()}.")
        seen: set[str] = set()
        for entry in entries:
            if entry.id in seen:
                raise ValueError(f"Expected every image to have its own id, but {entry.id!r} occurs twice.")
            seen.add(entry.id)
        classes = self.class_names
        wrong = next((e for e in entries if e.target < -1 or (classes and e.target >= len(classes))), None)
        if wrong:
            known = f"lie in 0 ... {len(classes) - 1}" if classes else "not be negative"
            raise ValueError(f"Expected labels to {known} (-1: none), but {wrong.id!r} has {wrong.target}.")

    @property
    def table(self) -> ImageTable:
        """The chosen images, preprocessed; the index of a sample is its position here."""
        self.setup()
        assert self._entries is not None
        return ImageTable(
            self._entries,
            self.preprocessing,
            reader=self.reader(),
            on_error=self.on_error,
            annotations=self.annotations,
        )

    @property
    def num_blocks(self) -> int:
        """Number of blocks that the chosen images make."""
        return -(-len(self.table) // self.batch_size)

    def fingerprint(self) -> dict[str, Any]:
        """What a result depends on: the dataset's name, its images and labels (as SHA-256), the preprocessing."""
        digest = hashlib.sha256()
        table = self.table
        for entry in table.entries:
            digest.update(json.dumps([entry.id, entry.target]).encode() + b"\n")
        return {
            "name": self.name,
            "images": len(table),
            "sha256": digest.hexdigest(),
            "preprocessing": asdict(self.preprocessing),
        }

    def train_dataloader(self) -> DataLoader[Batch]:
        """The block loader."""
        return self._block_loader()

    def val_dataloader(self) -> DataLoader[Batch]:
        """The block loader."""
        return self._block_loader()

    def test_dataloader(self) -> DataLoader[Batch]:
        """The block loader."""
        return self._block_loader()

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The block loader."""
        return self._block_loader()

    def _block_loader(self) -> DataLoader[Batch]:
        table = self.table
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = BlockSampler(len(table), self.batch_size, rank, world_size, self.todo)
        # A block is one element (batch_size=None), not a batch sampler's: Lightning rebuilds those when it predicts.
        return DataLoader(
            cast("Dataset[Batch]", _Blocks(table)),
            batch_size=None,
            sampler=sampler,
            collate_fn=_as_is,
            num_workers=self.num_workers,
            timeout=self.timeout if self.num_workers else 0,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(0),  # else starting a loader moves the global random state
        )


def _check_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"Expected `{name}` to be an integer, but got {value!r}.")
    if value < least:
        raise ValueError(
            f"Expected `{name}` to be a {'positive' if least else 'non-negative'} integer, but got {value}."
        )


def choose(entries: Sequence[Entry], limit: int | None, seed: int | None = None) -> list[Entry]:
    """At most `limit` entries in their order: evenly spread, or with `seed` those with the smallest seeded hash of id.

    Example:
        >>> entries = [Entry(str(i), "") for i in range(10)]
        >>> [entry.id for entry in choose(entries, 4)], [entry.id for entry in choose(entries, 4, seed=0)]
        (['0', '2', '5', '7'], ['3', '4', '7', '9'])
    """
    n = len(entries)
    if limit is None or limit >= n:
        return list(entries)
    if seed is None:
        return [entries[i * n // limit] for i in range(limit)]
    order = sorted(range(n), key=lambda i: hashlib.sha256(f"{seed}:{entries[i].id}".encode()).digest())
    return [entries[i] for i in sorted(order[:limit])]
