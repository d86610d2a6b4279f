"""A row of results for each box of an image, instead of one for the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torchvision.transforms import v2

from optcam_pl.checks import check_choice
from optcam_pl.data.base import ImageDataModule
from optcam_pl.data.batch import Box, Entry, ImageTable, Reader, Sample
from optcam_pl.data.blocks import PADDING
from optcam_pl.photos.decode import ImageReadError
from optcam_pl.photos.preprocessing import Interpolation, Preprocessing

BoxSource: TypeAlias = Literal["dataset", "network"]
FindBoxes: TypeAlias = Callable[[Tensor], Sequence[tuple[Tensor, Tensor]]]
"""Images (B,3,H,W) to each image's boxes (n,4) in their pixels and classes (n,)."""

Found: TypeAlias = tuple[Box, int]
"""A box and its class."""

_CHUNK = 8  # images in one pass of the network that looks for boxes


@dataclass(frozen=True)
class _Row:
    """One row: which image it shows, and which of its boxes.

    Attributes:
        image: number in the table of images.
        entry: the row's own name, label and box.
        number: the dataset's box; None where the row has a box of its own, or none.
    """

    image: int
    entry: Entry
    number: int | None = None


class EachBox(ImageDataModule):
    """Each box of each image of a dataset as a row of its own, with the id "path#box3" (boxes are numbered from 1).

    It is for scores that refer to a box, ``Detection(references="boxes")``. A batch has the row's image, in ``boxes``
    the one box, and in ``target`` its class. An image without a box has one row, with its own id, which is counted as a
    row without scores.

    Args:
        data: the dataset; its settings (block size, limit, resize ...) hold here, too.
        boxes: "dataset": the dataset's own boxes, with the image's label as their class. The images are read once
            before the run, to count them. "network": the detections of the network that is explained, before anything
            is masked: its `Detection` scores say above which probability. They are looked for before the run, with one
            pass for each image, which all processes share.

    Raises:
        TypeError: `data` is no `ImageDataModule`.
        ValueError: the dataset has no boxes, and `boxes` is dataset.

    Example:
        >>> from optcam_pl.data import TorchData
        >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [4.0, 4.0, 8.0, 8.0]])
        >>> data = EachBox(TorchData([{"image": torch.rand(3, 8, 8), "target": 1, "boxes": boxes}], size=8))
        >>> data.setup()
        >>> [(sample["id"], sample["boxes"].tolist()) for sample in map(data.table.sample, range(2))]
        [('0#box1', [[0.0, 0.0, 4.0, 4.0]]), ('0#box2', [[4.0, 4.0, 8.0, 8.0]])]
    """

    def __init__(self, data: ImageDataModule, boxes: BoxSource = "dataset") -> None:
        if not isinstance(data, ImageDataModule):
            raise TypeError(f"Expected `data` of EachBox to be an ImageDataModule, but got {type(data).__name__}.")
        self.boxes: BoxSource = check_choice("boxes", boxes, BoxSource)
        if boxes == "dataset" and "boxes" not in data.annotations:
            raise ValueError(
                f"Expected a dataset with boxes, as `boxes` of EachBox is dataset, but {data.name} has none. With "
                "`boxes` network, they are the detections of the network."
            )
        super().__init__(
            batch_size=data.batch_size,
            num_workers=data._options["num_workers"],
            timeout=data._options["timeout"],
            on_error=data.on_error,
            max_errors=data.max_errors,
            transform=data.transform,  # the dataset's table applies it; it is named in the fingerprint here, too
        )
        self.data = data
        self.name = f"{data.name}_boxes"
        self.annotations = ("boxes", *(kind for kind in data.annotations if kind != "boxes"))
        self._rows: list[_Row] | None = None
        self._find: FindBoxes | None = None
        self._network: object = None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The dataset's; None where the rows' classes are the network's own."""
        return None if self.boxes == "network" else self.data.class_names

    @property
    def preprocessing(self) -> Preprocessing:
        """The dataset's."""
        return self.data.preprocessing

    def setup(self, stage: str | None = None) -> None:
        """List the images; their boxes are listed when the rows are first asked for."""
        self.data.setup(stage)

    def match_network(
        self, size: tuple[int, int], interpolation: Interpolation, crop_fraction: float, channels: int = 3
    ) -> None:
        """See `ImageDataModule`; a crop may change which boxes there are."""
        before = self.preprocessing
        self.data.match_network(size, interpolation, crop_fraction, channels)
        self.channels = channels
        if self.preprocessing != before:
            self._forget()

    def match_classes(self, names: Sequence[str] | None, network: str, *, used: bool = True) -> bool:
        """See `ImageDataModule`."""
        before = self.data.class_map
        known = self.data.match_classes(names, network, used=used)
        self.class_map, self._labels_used = self.data.class_map, used
        if self.class_map != before and self.boxes == "dataset":
            self._forget()
        return known

    def match_boxes(self, find: FindBoxes, network: object = None) -> None:
        """Look for the boxes of all images, for `boxes` network; only once for each network.

        Args:
            find: the network's detections in images.
            network: the network; another one has other boxes.
        """
        if self._find is None or network is not self._network:
            self._forget()
            self._find, self._network = find, network

    def _forget(self) -> None:
        self._rows = None
        self._entries.clear()

    def looked_for(self) -> str:
        """See `ImageDataModule`."""
        return self.data.looked_for()

    def entries(self) -> list[Entry]:
        """One for each box, and one for each image without any."""
        return [row.entry for row in self._listed()]

    def reader(self) -> Reader:
        """The dataset's; the rows' boxes and labels are added by the table."""
        return self.data.reader()

    def source(self) -> dict[str, Any]:
        """The dataset's source and where the boxes are from."""
        return {**self.data.source(), "each_box": self.boxes}

    def _listed(self) -> list[_Row]:
        if self._rows is None:
            images = self.data.table
            numbers = range(len(images.entries))
            if self.boxes == "dataset":
                self._rows = [row for i in numbers for row in self._of_dataset(i, images)]
            elif self._find is None:  # before the network is known
                return [_Row(i, entry) for i, entry in enumerate(images.entries)]
            else:
                found = self._search(images, self._find)
                self._rows = [row for i in numbers for row in _of_network(i, images.entries[i], found[i])]
        return self._rows

    def _of_dataset(self, image: int, images: ImageTable) -> list[_Row]:
        entry, sample = images.entries[image], images.sample(image)
        own = entry._replace(boxes=None, frame=None)
        boxes = _numbers(sample["boxes"])
        rows = [_Row(image, own._replace(id=f"{own.id}#box{k}", boxes=(box,)), k - 1) for k, box in enumerate(boxes, 1)]
        return rows or [_Row(image, own)]

    def _search(self, images: ImageTable, find: FindBoxes) -> list[list[Found]]:
        """Each image's boxes and classes; the processes of a run share the work.

        Raises:
            ImageReadError: on all processes, where one of them cannot read an image.
        """
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        starts = range(0, len(images.entries), _CHUNK)  # the same chunks for any number of processes
        own: dict[int, list[Found]] | ImageReadError
        try:
            own = _found_in(images, find, starts[rank::world])
        except ImageReadError as fault:
            own = fault
        parts: list[Any] = [own]
        if world > 1:
            parts = [None] * world
            dist.all_gather_object(parts, own)
        for part in parts:
            if isinstance(part, ImageReadError):
                raise part
        return [whole for _, whole in sorted({i: part[i] for part in parts for i in part}.items())]

    def _table(
        self, part: Literal["all", "train", "val"], preprocessing: Preprocessing, transform: v2.Transform | None
    ) -> ImageTable:
        return _BoxTable(self.data.table, self._list(part), self._listed(), self.boxes == "dataset")


def _found_in(images: ImageTable, find: FindBoxes, starts: Sequence[int]) -> dict[int, list[Found]]:
    """The boxes and classes of the images of some chunks, by the images' numbers."""
    own: dict[int, list[Found]] = {}
    for start in starts:
        samples = [images.sample(i) for i in range(start, min(start + _CHUNK, len(images.entries)))]
        found = find(torch.stack([sample["image"] for sample in samples]))
        for sample, (boxes, labels) in zip(samples, found, strict=True):
            named: list[Found] = list(zip(_numbers(boxes), labels.tolist(), strict=True))
            own[sample["index"]] = [] if sample["error"] else named
    return own


class _BoxTable(ImageTable):
    """The samples of rows: each is its image's, with the row's id, box and label."""

    def __init__(self, images: ImageTable, entries: Sequence[Entry], rows: Sequence[_Row], of_dataset: bool) -> None:
        super().__init__(entries, images.preprocessing, annotations=images.annotations, on_error=images.on_error)
        self.images, self.rows, self.of_dataset = images, rows, of_dataset

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """See `ImageTable.sample`."""
        if index == PADDING:
            sample = self.images.sample(PADDING)
            sample["boxes"] = torch.zeros(0, 4)
            return sample
        if not 0 <= index < len(self.rows):
            return super().sample(index, epoch)  # which says what is wrong
        row = self.rows[index]
        sample = self.images.sample(row.image, epoch)
        sample["id"], sample["index"] = row.entry.id, index
        if self.of_dataset and row.number is not None:
            sample["boxes"] = sample["boxes"][row.number : row.number + 1]
        else:
            sample["boxes"] = torch.tensor(row.entry.boxes or ()).reshape(-1, 4).float()
        if not self.of_dataset:
            sample["target"] = row.entry.target
        return sample


def _of_network(image: int, entry: Entry, found: Sequence[Found]) -> list[_Row]:
    own = entry._replace(boxes=None, frame=None)
    named = [own._replace(id=f"{own.id}#box{k}", target=label, boxes=(box,)) for k, (box, label) in enumerate(found, 1)]
    return [_Row(image, row) for row in named or [own._replace(target=-1)]]


def _numbers(boxes: Tensor) -> list[Box]:
    """Boxes as numbers, rounded to a hundredth of a pixel, as a fingerprint needs them."""
    rows = boxes.double().cpu().tolist()
    return [(round(a, 2), round(b, 2), round(c, 2), round(d, 2)) for a, b, c, d in rows]
