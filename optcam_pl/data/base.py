"""The abstract dataset: subclasses say what it contains; this module says how it is served."""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal, TypeVar

from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from optcam_pl.checks import check_choice, check_count, check_positive
from optcam_pl.data.batch import Annotation, Batch, Entry, ImageTable, OnError, Reader, read_entry
from optcam_pl.data.blocks import choose
from optcam_pl.data.files import hidden
from optcam_pl.data.loaders import LoaderOptions, TrainingLoader, Workers, block_loader, count_workers
from optcam_pl.data.names import contradiction, match_names
from optcam_pl.data.transforms import augmentation
from optcam_pl.photos.preprocessing import Interpolation, Preprocessing, Resize

Given = TypeVar("Given")


class ImageDataModule(LightningDataModule, ABC):
    """A dataset to explain and to measure on: every stage sees each image once, in the same order, in blocks.

    A subclass says what its images are (`entries`), optionally what its classes are called (`class_names`), and which
    annotations it has. The loaders distribute the blocks over the trainer's processes by themselves.

    A dataset that can train a network also lists its training and validation images (`training_entries`). A task that
    fine-tunes a network sets `training`: then `fit` gets shuffled and augmented training images, and validation gets
    its own images.

    Args:
        batch_size: images in a block; fixed for a run, because the last digits of the results depend on it.
        num_workers: number of loader processes; 0 reads in the main process; "auto" takes as many as there are cores to
            use, at most 4. The results do not depend on it.
        size: side, or height and width, of the network's input in pixels; None for the size that the network was made
            for (`match_network`), 224 if that is unknown.
        resize: "stretch" to this size (as in the paper) or "crop" the middle.
        interpolation: "bilinear" or "bicubic"; None for the network's own, "bilinear" if that is unknown.
        limit: use only this many images, spread evenly over the dataset: index i * n // limit.
        seed: with `limit`, choose the images at random instead; the same seed gives the same choice on every machine.
        on_error: "raise" ends the run at an image that cannot be read, or whose scores by the network are not finite;
            "record" continues: of the former the batch has a black image, with the reason in its `error`, and the rows
            of both give the reason.
        max_errors: with "record", end the run when there are more of these images; None sets no limit.
        timeout: seconds to wait for a loader process before the run ends with an error; 0 waits forever.
        transform: torchvision v2 transform of every image with its boxes and mask, before the resize; a random
            transform gives the same result in every run.
        augment: torchvision v2 transform of training images; it replaces the default, a random crop of at least half
            the image and a flip of every second image.

    Attributes:
        name: name of the dataset in run folders and tables; by default the class's name in snake case.
        annotations: which of "boxes" and "masks" the batches have.
        todo: numbers of the blocks that remain to be done, None for all; set it to resume a run.
        training: whether `fit` trains a network; the task sets it before the loaders are made.
        class_map: the network's class for each class of the dataset, -1 if there is none, as found by `match_classes`
            from the names; None if the classes are the same.
    """

    def __init__(
        self,
        *,
        batch_size: int = 8,
        num_workers: Workers = 0,
        size: int | tuple[int, int] | None = None,
        resize: Resize = "stretch",
        interpolation: Interpolation | None = None,
        limit: int | None = None,
        seed: int | None = None,
        on_error: OnError = "raise",
        max_errors: int | None = None,
        timeout: float = 120,
        transform: v2.Transform | None = None,
        augment: v2.Transform | None = None,
    ) -> None:
        super().__init__()
        check_positive("batch_size", batch_size)
        if limit is not None:
            check_positive("limit", limit)
        if seed is not None and limit is None:
            raise ValueError("Expected `limit` to be given with `seed`: `seed` chooses `limit` images at random.")
        check_choice("on_error", on_error, OnError)
        if max_errors is not None:
            check_count("max_errors", max_errors)
            if on_error != "record":
                raise ValueError("Expected `on_error` to be 'record' with `max_errors`, but got 'raise'.")
        if timeout < 0:
            raise ValueError(f"Expected `timeout` to be 0 or more seconds, but got {timeout}.")
        self.name: str = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()
        self.batch_size = batch_size
        self.limit = limit
        self.seed = seed
        self.on_error: OnError = on_error
        self.max_errors = max_errors
        self.transform = transform
        self.augment = augment
        self.annotations: tuple[Annotation, ...] = ()
        self.todo: Sequence[int] | None = None
        self.training = False
        self.class_map: tuple[int, ...] | None = None
        self._labels_used = True
        self.channels = 3
        self.workers = count_workers(num_workers)
        self._options = LoaderOptions(num_workers=self.workers, timeout=timeout)
        self._size = (size, size) if isinstance(size, int) else size and (size[0], size[1])
        self._interpolation = interpolation
        self._preprocessing = Preprocessing(self._size or (224, 224), resize, interpolation=interpolation or "bilinear")
        self._entries: dict[str, list[Entry]] = {}

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes by index; None if the dataset has no labels."""
        return None

    @abstractmethod
    def entries(self) -> list[Entry]:
        """All images of the dataset in their fixed order, before `limit`."""

    def looked_for(self) -> str:
        """A phrase that says what `entries` searches and where, for the message that nothing was found."""
        return f"what its `entries` list, in {type(self).__module__}"

    def training_entries(self, split: Literal["train", "val"]) -> list[Entry]:
        """The images to train on or to validate with.

        Raises:
            ValueError: the dataset has none.
        """
        raise ValueError(f"{type(self).__name__} has no {split} images, so no network can be trained on it.")

    @staticmethod
    def check_trainable(name: str, value: Given | None) -> Given:
        """The argument that says which images are for training. Raises ValueError where it is None."""
        if value is None:
            raise ValueError(
                f"Expected `{name}` to be given to train a network, whose test images must be others, but got None."
            )
        return value

    def reader(self) -> Reader:
        """The function that reads an entry; by default `read_entry`. It must be picklable for the loader processes."""
        return read_entry

    def source(self) -> dict[str, Any]:
        """What the images depend on besides their ids and labels, as JSON, for the fingerprint; by default nothing."""
        return {}

    def match_network(
        self, size: tuple[int, int], interpolation: Interpolation, crop_fraction: float, channels: int = 3
    ) -> None:
        """Use the network's preprocessing for all settings that the user left open; call this before loaders are made.

        Args:
            size: the network's input height and width.
            interpolation: the interpolation with which it was trained or is evaluated.
            crop_fraction: the crop's share of the shorter side, for ``resize="crop"``.
            channels: of the network's images.
        """
        self.channels = channels
        self._preprocessing = Preprocessing(
            self._size or (size[0], size[1]),
            self._preprocessing.resize,
            crop_fraction,
            self._interpolation or interpolation,
        )

    def match_classes(self, names: Sequence[str] | None, network: str, *, used: bool = True) -> bool:
        """From now on give labels as the network's classes with the same names (`names.match_names`).

        If the names on either side are unknown, labels stay unchanged.

        Args:
            names: names of the network's classes.
            network: the network's name, for the message.
            used: whether labels matter to the task. If not, a label whose class the network does not name becomes -1,
                and the meaning of labels is not part of the fingerprint.

        Returns:
            Whether every class of the dataset is known to be a class of the network.

        Raises:
            ValueError: labels matter, but the network lacks some of the dataset's classes; the message names those of
                both sides.
        """
        own = self.class_names
        self.class_map, self._labels_used = None, used
        if own is None or names is None:
            return False
        found = match_names(own, names)
        if -1 in found and used:
            raise ValueError(contradiction(self.name, own, network, names))
        if found != tuple(range(len(own))):
            self.class_map = found
        return -1 not in found and len(own) <= len(names)

    def network_class(self, label: int) -> int:
        """The network's class for a label of `entries`; -1 if there is none."""
        return label if label < 0 or self.class_map is None else self.class_map[label]

    @staticmethod
    def of(trainer: Trainer) -> ImageDataModule:
        """The data module of a trainer.

        Raises:
            TypeError: it is of another kind, or missing.
        """
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, ImageDataModule):
            raise TypeError(
                f"Expected the trainer's `datamodule` to be an ImageDataModule, whose blocks show every image exactly "
                f"once, but got {type(data).__name__}."
            )
        return data

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become tensors."""
        return self._preprocessing

    def setup(self, stage: str | None = None) -> None:
        """List the images; done only once.

        Raises:
            ValueError: there is no image, two images have the same id, or a label lies outside the classes.
        """
        self._list("train" if self.training and stage == "fit" else "all")

    def _list(self, part: Literal["all", "train", "val"]) -> list[Entry]:
        if part not in self._entries:
            entries = self.entries() if part == "all" else self.training_entries(part)
            self._check(entries)
            self._entries[part] = choose(entries, [entry.id for entry in entries], self.limit, self.seed)
        return self._entries[part]

    def _check(self, entries: list[Entry]) -> None:
        if not entries:
            raise ValueError(f"{type(self).__name__} found no image: looked for {self.looked_for()}.")
        seen: set[str] = set()
        for entry in entries:
            if entry.id in seen:
                raise ValueError(f"Expected every image to have its own id, but {entry.id!r} occurs twice.")
            seen.add(entry.id)
        classes = self.class_names
        foreign = [name for name in classes or () if name and hidden(name)]
        if foreign:
            raise ValueError(
                f"Expected names of classes, but {foreign[0]!r} is what a file manager calls a folder of its own. Move "
                "it out of the images' folder, or use ImageFolder, which skips it."
            )
        wrong = next((e for e in entries if e.target < -1 or (classes and e.target >= len(classes))), None)
        if wrong:
            known = f"lie in 0 ... {len(classes) - 1}" if classes else "not be negative"
            raise ValueError(f"Expected labels to {known} (-1: none), but {wrong.id!r} has {wrong.target}.")

    @property
    def table(self) -> ImageTable:
        """The chosen images, preprocessed; the index of a sample is its position here."""
        return self._table("all", self.preprocessing, self.transform)

    def _table(
        self, part: Literal["all", "train", "val"], preprocessing: Preprocessing, transform: v2.Transform | None
    ) -> ImageTable:
        return ImageTable(
            self._list(part),
            preprocessing,
            reader=self.reader(),
            on_error=self.on_error,
            annotations=self.annotations,
            transform=transform,
            seed=run_seed() if part == "train" else 0,
            class_map=self.class_map,
            channels=self.channels,
        )

    @property
    def num_blocks(self) -> int:
        """Number of blocks of the chosen images."""
        return -(-len(self._list("all")) // self.batch_size)

    def fingerprint(self) -> dict[str, Any]:
        """What a result depends on: name, images, labels and boxes (SHA-256), source, transform, preprocessing."""
        return self._fingerprint("all")

    def training_fingerprint(self) -> dict[str, Any]:
        """All that a fit depends on: `fingerprint` of the training images, their blocks, augmentation and order."""
        order = {"batch_size": self.batch_size, "augment": repr(self.augment), "seed": run_seed()}
        return self._fingerprint("train") | order

    def _fingerprint(self, part: Literal["all", "train"]) -> dict[str, Any]:
        digest = hashlib.sha256()
        entries = self._list(part)
        for entry in entries:
            row = [entry.id, entry.target] if entry.boxes is None else [entry.id, entry.target, entry.boxes]
            digest.update(json.dumps(row).encode() + b"\n")
        mapped = self._labels_used and self.class_map is not None
        return {
            **({"class_map": self.class_map} if mapped else {}),
            "name": self.name,
            "images": len(entries),
            "sha256": digest.hexdigest(),
            "source": self.source(),
            "transform": repr(self.transform),
            "preprocessing": asdict(self.preprocessing),
        }

    def train_dataloader(self) -> DataLoader[Batch]:
        """The block loader; if a network is `training`, the shuffled and augmented training images."""
        if not self.training:
            return self._block_loader()
        size = self.preprocessing.size
        augment = self.augment if self.augment is not None else augmentation(size)
        transform = augment if self.transform is None else v2.Compose([self.transform, augment])
        prepare = Preprocessing(size, "stretch", interpolation=self.preprocessing.interpolation)
        table = self._table("train", prepare, transform)
        loader = TrainingLoader(table, self.batch_size, self._shares(), self._progress, self._options)
        if self.trainer:  # Lightning starts iterating before it sets the epoch, which may not be the first
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            loader.set_epoch(progress.processed)
        return loader

    def val_dataloader(self) -> DataLoader[Batch]:
        """The block loader; if a network is `training`, over the validation images."""
        if not self.training:
            return self._block_loader()
        table = self._table("val", self.preprocessing, self.transform)
        return block_loader(table, self.batch_size, self._shares(), None, self._options)

    def test_dataloader(self) -> DataLoader[Batch]:
        """The block loader."""
        return self._block_loader()

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The block loader."""
        return self._block_loader()

    def _block_loader(self) -> DataLoader[Batch]:
        return block_loader(self.table, self.batch_size, self._shares(), self.todo, self._options)

    def _shares(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _progress(self) -> tuple[int, int]:
        """Number of blocks trained on so far, and number of blocks in an epoch."""
        assert self.trainer is not None
        total: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        return total.processed, int(self.trainer.num_training_batches)


def run_seed() -> int:
    """The run's seed, as set by Lightning's `seed_everything`."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))
