"""From entries to samples to batches; a broken image affects its own row only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from optcam_pl.data.blocks import PADDING
from optcam_pl.data.masks import check_mask_size
from optcam_pl.data.transforms import transform_image
from optcam_pl.photos.decode import ImageReadError, read_image
from optcam_pl.photos.preprocessing import Preprocessing

OnError = Literal["raise", "record"]
Annotation = Literal["boxes", "masks"]
Box = tuple[float, float, float, float]


class Entry(NamedTuple):
    """One image of a dataset, before it is read.

    Attributes:
        id: name of the image, the same on every machine: its POSIX path relative to the data's root.
        path: the source of the image: its file, or anything else that the dataset's reader understands.
        target: class index; -1 if there is no label.
        boxes: xyxy boxes in the pixels of the upright image; None if the dataset has none or its reader provides them.
        frame: width and height of the image on which the boxes were drawn, if that may be a resized version of this
            one.
    """

    id: str
    path: str
    target: int = -1
    boxes: tuple[Box, ...] | None = None
    frame: tuple[int, int] | None = None


class Item(NamedTuple):
    """One image as it was read, before it is resized.

    Attributes:
        image: RGB, or floating-point pixels (3,h,w) in [0,1].
        boxes: xyxy in its pixels.
        mask: gray image of the same size, not 0 on the object; None if there is none.
        target: class index, if only reading the image reveals it; None means the entry's.
        inputs: the network's other inputs for this image, by name; None if there are none.
    """

    image: Image.Image | Tensor
    boxes: Sequence[Sequence[float]] = ()
    mask: Image.Image | None = None
    target: int | None = None
    inputs: dict[str, Tensor] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, as Pillow gives them."""
        image = self.image
        return image.size if isinstance(image, Image.Image) else (image.shape[2], image.shape[1])


Reader = Callable[[Entry], Item]


def read_entry(entry: Entry) -> Item:
    """Read an entry's image from its file; scale its boxes from the frame on which they were drawn.

    Raises:
        ImageReadError: the image cannot be read, or its aspect ratio differs from the frame's by more than 2 %.
    """
    image = read_image(entry.path)
    boxes = entry.boxes or ()
    if not boxes or entry.frame is None or entry.frame == image.size:
        return Item(image, boxes)
    (w, h), (frame_w, frame_h) = image.size, entry.frame
    if min(frame_w, frame_h) < 1 or abs(w * frame_h - h * frame_w) > 0.02 * w * frame_h:
        reason = f"its boxes were drawn on {frame_w} x {frame_h} pixels, but it has {w} x {h}"
        raise ImageReadError(f"Cannot use the boxes of the image {entry.path!r}: {reason}.", reason)
    scale = (w / frame_w, h / frame_h) * 2
    return Item(image, [[value * factor for value, factor in zip(box, scale, strict=True)] for box in boxes])


class Sample(TypedDict, total=False):
    """One image as the network expects it; `boxes` and `mask` only if the dataset has them."""

    image: Tensor  # (3,H,W) float32 in [0,1]
    target: int  # -1: no label
    id: str
    index: int  # -1: padding
    error: str  # "": none
    boxes: Tensor  # (n,4) float32 xyxy in the pixels of `image`, n may be 0
    mask: Tensor  # (H,W) bool
    inputs: dict[str, Tensor]


class Batch(TypedDict, total=False):
    """B samples; `boxes` and `mask` only if the dataset has them."""

    image: Tensor  # (B,3,H,W) float32 in [0,1]
    target: Tensor  # (B,) int64
    id: list[str]
    index: Tensor  # (B,) int64
    error: list[str]
    boxes: list[Tensor]  # B tensors (n,4)
    mask: Tensor  # (B,H,W) bool
    inputs: list[dict[str, Tensor]]  # the network's other inputs of each image


class ImageTable(Dataset[Sample]):
    """The samples of a list of entries. Index -1 is the padding sample: black, without id, target or error.

    Args:
        entries: the images.
        preprocessing: how each becomes a tensor.
        reader: reads an entry; raises ImageReadError if that fails.
        on_error: "raise" raises the ImageReadError; "record" returns a black sample that keeps its id and target and
            holds the reason in `error`.
        annotations: which of "boxes" and "masks" the samples have.
        transform: torchvision v2 transform of the image with its boxes and mask, before the preprocessing. A random
            transform depends on `seed`, the epoch and the index; it neither reads nor changes any other random state.
        seed: seed of the transform.
        class_map: the class for each label, -1 for none; None means the label itself.
        channels: the images' channels: pictures of one are gray; of more than three, the reader has to give tensors.

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
        reader: Reader = read_entry,
        on_error: OnError = "raise",
        annotations: Sequence[Annotation] = (),
        transform: Callable[..., Any] | None = None,
        seed: int = 0,
        class_map: Sequence[int] | None = None,
        channels: int = 3,
    ) -> None:
        self.entries = entries
        self.preprocessing = preprocessing
        self.reader = reader
        self.on_error = on_error
        self.annotations = tuple(annotations)
        self.transform = transform
        self.seed = seed
        self.class_map = class_map
        self.channels = channels

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index)

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The sample at an index; `epoch` matters only to a random transform."""
        if index == PADDING:
            return self._sample(Entry("", ""), PADDING, None, "")
        if not 0 <= index < len(self.entries):
            raise IndexError(f"Expected an index from 0 to {len(self) - 1} or -1 for padding, but got {index}.")
        entry = self.entries[index]
        try:
            item = self.reader(entry)
            _check_mask(entry, item)
        except ImageReadError as fault:
            if self.on_error == "raise":
                raise
            return self._sample(entry, index, None, fault.reason)
        if self.transform is not None:
            mask = item.mask
            if mask is not None and mask.size != item.size:
                mask = mask.resize(item.size, Image.Resampling.NEAREST)
            changed = transform_image(self.transform, item.image, item.boxes, mask, (self.seed, epoch, index))
            item = item._replace(image=changed[0], boxes=changed[1], mask=changed[2])
        return self._sample(entry, index, item, "")

    def _sample(self, entry: Entry, index: int, item: Item | None, error: str) -> Sample:
        """The sample of an item that was read; a black sample if there is no item."""
        prepare = self.preprocessing
        image = self._pixels(entry, item)
        label = entry.target if item is None or item.target is None else item.target
        target = label if label < 0 or self.class_map is None else self.class_map[label]
        sample = Sample(image=image, target=target, id=entry.id, index=index, error=error)
        if "boxes" in self.annotations:
            sample["boxes"] = prepare.boxes(item.boxes, item.size) if item else torch.zeros(0, 4, dtype=torch.float32)
        if "masks" in self.annotations:
            mask = item.mask if item else None
            sample["mask"] = prepare.mask(mask) if mask else torch.zeros(prepare.size, dtype=torch.bool)
        if item is not None and item.inputs is not None:
            sample["inputs"] = item.inputs
        return sample

    def _pixels(self, entry: Entry, item: Item | None) -> Tensor:
        """(channels,H,W); black if there is no item."""
        if item is None:
            return torch.zeros(self.channels, *self.preprocessing.size, dtype=torch.float32)
        image = item.image
        if self.channels == 1 and isinstance(image, Image.Image):
            return self.preprocessing(image.convert("L").convert("RGB"))[:1]
        pixels = self.preprocessing(image)
        if len(pixels) != self.channels:
            raise ValueError(
                f"Expected images of {self.channels} channels, as the network takes, but {entry.id!r} has "
                f"{len(pixels)}. Give the classifier `channels` (or `mean` and `std` of that length), or other images."
            )
        return pixels


def _check_mask(entry: Entry, item: Item) -> None:
    """Raises ImageReadError if the mask has another shape than the image; another resolution is right."""
    if item.mask is None:
        return
    try:
        check_mask_size(item.mask.size, item.size)
    except ValueError as fault:
        raise ImageReadError(f"Cannot use the mask of the image {entry.id!r}: {fault}.", str(fault)) from fault


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
    if any("inputs" in sample for sample in samples):
        batch["inputs"] = [sample.get("inputs", {}) for sample in samples]
    return batch
