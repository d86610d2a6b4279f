"""Any Dataset or DataLoader of PyTorch as ours, and images that are in memory already."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from optcam_pl.data.base import ImageDataModule
from optcam_pl.data.batch import Annotation, Batch, Entry, Item, Reader
from optcam_pl.data.boxes import check_box
from optcam_pl.data.loaders import Workers
from optcam_pl.data.masks import object_mask
from optcam_pl.data.text import class_number
from optcam_pl.photos.decode import ImageReadError, to_rgb

_SLACK = 1e-4  # resampling in float32 may step over [0,1] by rounding
_NAMES = {"image": ("image", "pixel_values"), "target": ("target", "label"), "boxes": ("boxes",), "mask": ("mask",)}
_OWN = {"id": ("id",), "inputs": ("inputs",)}


class TorchReader:
    """Reads an item of a dataset: the entry's path is its number.

    Args:
        dataset: gives an image; (image, label); (image, label, boxes); or a dict of ``image`` and perhaps ``target``
            (or ``label``), ``boxes``, ``mask``, ``id``.
        classes: number of classes; None where it is unknown.
    """

    def __init__(self, dataset: Any, classes: int | None = None) -> None:
        self.dataset, self.classes = dataset, classes

    def __call__(self, entry: Entry) -> Item:
        """Read the item.

        Raises:
            ImageReadError: its file is damaged or missing.
            TypeError: it is none of these kinds.
            ValueError: its pixels, label, boxes or mask are not as they have to be.
        """
        parts = read_parts(self.dataset, int(entry.path))
        try:
            return self.item(entry, parts)
        except (TypeError, ValueError) as fault:
            name = "`images`" if isinstance(self.dataset, _Samples) else type(self.dataset).__name__
            raise type(fault)(f"Item {entry.path} of {name} is wrong: {fault}") from fault

    def item(self, entry: Entry, parts: Mapping[str, Any]) -> Item:
        """The checked item of its parts (`parts_of`)."""
        image, boxes = _pixels(parts["image"]), _boxes(parts.get("boxes"))
        label, inputs = _label(parts.get("target"), self.classes), _inputs(parts.get("inputs"))
        return Item(image, boxes, _mask(parts.get("mask")), label, inputs)


def read_parts(dataset: Any, number: int) -> dict[str, Any]:
    """`parts_of` an item of a dataset.

    Raises:
        ImageReadError: its file is damaged or missing.
        TypeError: the item is none of the kinds that `TorchReader` reads.
    """
    try:
        item = dataset[number]
    except (OSError, SyntaxError, Image.DecompressionBombError) as fault:  # what Pillow raises on damaged files
        reason = f"the file cannot be read ({type(fault).__name__}: {' '.join(str(fault).split())})"
        raise ImageReadError(f"Cannot read item {number} of {type(dataset).__name__}: {reason}.", reason) from fault
    return parts_of(item)


def parts_of(item: Any) -> dict[str, Any]:
    """The parts of a dataset's item by our names: image, target, boxes, mask, id.

    Raises:
        TypeError: the item is none of the kinds that `TorchReader` reads.

    Example:
        >>> parts_of(("pixels", 3)), parts_of({"image": "pixels", "label": 3, "id": "a"})
        ({'image': 'pixels', 'target': 3}, {'image': 'pixels', 'target': 3, 'id': 'a'})
    """
    if isinstance(item, Mapping):
        found = {name: item[key] for name, keys in {**_NAMES, **_OWN}.items() for key in keys if key in item}
        if "image" not in found:
            raise TypeError(
                f"Expected dicts with an `image`, but got one with {', '.join(map(str, item)) or 'nothing'}."
            )
        return found
    if isinstance(item, (tuple, list)) and 1 <= len(item) <= 3:
        return dict(zip(("image", "target", "boxes"), item, strict=False))
    if isinstance(item, (Tensor, np.ndarray, Image.Image)):
        return {"image": item}
    raise TypeError(
        f"Expected items to be an image, (image, label), (image, label, boxes) or a dict, but got "
        f"{type(item).__name__}{f' of {len(item)} parts' if isinstance(item, (tuple, list)) else ''}."
    )


def _pixels(image: Any) -> Image.Image | Tensor:
    """An RGB image of 8 bits, or float pixels (3,h,w) in [0,1]."""
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if not isinstance(image, Tensor):
        raise TypeError(f"Expected the image to be a tensor (3,H,W) or a PIL image, but got {type(image).__name__}.")
    if image.ndim != 3 or not image.numel():
        raise ValueError(f"Expected the image to be of shape (3,H,W), but got {tuple(image.shape)}.")
    if image.dtype == torch.uint8 and len(image) != 3:
        return image.float().cpu() / 255
    if image.dtype == torch.uint8:
        return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))
    if not image.is_floating_point():
        raise TypeError(f"Expected pixels as uint8 or floating point, but got {image.dtype}.")
    pixels = image.detach().float().cpu()
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -_SLACK and high <= 1 + _SLACK):  # also true of NaN
        raise ValueError(f"Expected pixels in [0, 1], but they lie in [{low:.4g}, {high:.4g}].{_advice(low, high)}")
    return pixels.clamp(0, 1)


def _advice(low: float, high: float) -> str:
    if low >= 0 and 1 < high <= 255:
        return " Divide pixels of 0 to 255 by 255, or give them as uint8."
    if -10 < low < 0 < high < 10:
        return (
            " They seem to be normalized already: leave Normalize out of the dataset's transform, as the Classifier "
            "applies its own mean and std."
        )
    return ""


def _label(label: Any, classes: int | None) -> int:
    """A class, -1 for none."""
    if isinstance(label, (Tensor, np.ndarray)):
        if label.ndim or (isinstance(label, Tensor) and label.is_complex()):
            raise ValueError(f"Expected the label to be one number, but got a tensor of shape {tuple(label.shape)}.")
        label = label.item()
    number = class_number(label)
    if number is None:
        raise ValueError(f"Expected the label to be a class's number (-1: none), but got {label!r}.")
    if classes is not None and number >= classes:
        raise ValueError(f"Expected a label in 0..{classes - 1} (-1: none), but got {label}.")
    return number


def _boxes(boxes: Any) -> list[list[float]]:
    """Boxes [[left, top, right, bottom], ...] in the image's pixels."""
    found = torch.as_tensor([] if boxes is None else boxes, dtype=torch.float64)
    if found.numel() and (found.ndim > 2 or found.shape[-1] != 4):
        raise ValueError(f"Expected boxes (n,4), xyxy in the image's pixels, but got shape {tuple(found.shape)}.")
    own: list[list[float]] = found.reshape(-1, 4).tolist()
    for box in own:
        check_box(box)
    return own


def _inputs(inputs: Any) -> dict[str, Tensor] | None:
    """The network's other inputs for this image, by name."""
    if inputs is None:
        return None
    if not isinstance(inputs, Mapping):
        raise TypeError(f"Expected `inputs` to be a dict of tensors, but got {type(inputs).__name__}.")
    return {str(name): torch.as_tensor(value) for name, value in inputs.items()}


def each_input(inputs: Any, count: int) -> list[dict[str, Tensor]]:
    """A batch's other inputs, by image: from a list of dicts, or a dict of tensors (B,...).

    Example:
        >>> each_input({"age": torch.tensor([[3.0], [4.0]])}, 2)
        [{'age': tensor([3.])}, {'age': tensor([4.])}]
    """
    if not isinstance(inputs, Mapping):
        return list(inputs)
    columns = {str(name): torch.as_tensor(value) for name, value in inputs.items()}
    for name, column in columns.items():
        if not column.ndim or len(column) != count:
            raise ValueError(
                f"Expected `inputs` {name!r} to have one entry for each of {count} images, but got the shape "
                f"{tuple(column.shape)}."
            )
    return [{name: column[i] for name, column in columns.items()} for i in range(count)]


def _mask(mask: Any) -> Image.Image | None:
    """A mask (H,W), not 0 on the object, as a gray image."""
    if mask is None:
        return None
    if isinstance(mask, Image.Image):
        return object_mask(mask)
    pixels = torch.as_tensor(mask)
    if pixels.ndim != 2:
        raise ValueError(f"Expected the mask to be of shape (H,W), but got {tuple(pixels.shape)}.")
    return Image.fromarray((pixels != 0).cpu().numpy().astype(np.uint8) * np.uint8(255))


class TorchData(ImageDataModule):
    """A Dataset of PyTorch, or a DataLoader's, as a data module: for `evaluate` and for a Trainer.

    An item is an image; (image, label); (image, label, boxes); or a dict of ``image`` and perhaps ``target`` (or
    ``label``), ``boxes``, ``mask``, ``id``, and ``inputs`` (a dict of the network's
    other inputs). The image is a tensor (3,H,W), floating point in [0,1] or uint8, or a PIL
    image; it must not be normalized, as the `Classifier` applies the network's mean and std. A label is a number, -1 or
    None for none; boxes are (n,4) xyxy in the pixels of the image; a mask is (H,W), not 0 on the object.

    Images are resized to the network's input like those of every dataset; one that has this size already stays as it
    is, bit for bit. An image's id is its number in the dataset, "0", "1", ..., or the dict's own ``id``; the dataset is
    read once to find the ids then. The dataset must give the same image for the same number at every time: a run that
    goes on, or several processes, rely on it.

    Of a DataLoader only its dataset is taken: `batch_size` and `num_workers` are the loader's where they are not given.
    One that shuffles is read in the dataset's order, which a warning says; one with another sampler of its own is
    refused, as the sampler may leave images out.

    Args:
        data: the Dataset or DataLoader.
        name: of the dataset in run folders and tables; None: the dataset's class in lower case.
        class_names: names of the classes by index; None: the dataset's ``classes``, where it has them.
        batch_size: images in a block; None: the loader's, or 8.
        num_workers: loader processes, see `ImageDataModule`; None: the loader's, or 0.
        **kwargs: of ImageDataModule. A `transform` sees images of 8 bits; floating-point pixels are rounded for it.

    Raises:
        TypeError: it is neither, or an IterableDataset.
        ValueError: a sampler of the loader's own, or (in `setup`) a dataset without images.

    Example:
        >>> pairs = [(torch.rand(3, 8, 8), 1), (torch.rand(3, 8, 8), 0)]
        >>> data = TorchData(pairs, name="pairs", size=8)
        >>> data.setup()
        >>> batch = next(iter(data.test_dataloader()))
        >>> batch["id"][:2], batch["target"][:2].tolist(), torch.equal(batch["image"][0], pairs[0][0])
        (['0', '1'], [1, 0], True)
    """

    def __init__(
        self,
        data: Dataset[Any] | DataLoader[Any] | Sequence[Any],
        *,
        name: str | None = None,
        class_names: Sequence[str] | None = None,
        batch_size: int | None = None,
        num_workers: Workers | None = None,
        **kwargs: Any,
    ) -> None:
        loader = data if isinstance(data, DataLoader) else None
        dataset: Any = data if loader is None else loader.dataset
        _check_dataset(dataset)
        if loader is not None:
            _check_order(loader)
        if batch_size is None:
            batch_size = loader.batch_size if loader is not None and loader.batch_size else 8
        if num_workers is None:
            num_workers = loader.num_workers if loader is not None else 0
        super().__init__(batch_size=batch_size, num_workers=num_workers, **kwargs)
        self.dataset = dataset
        self.name = name or ("images" if isinstance(dataset, (list, tuple)) else type(dataset).__name__.lower())
        names = getattr(dataset, "classes", None) if class_names is None else class_names
        self._class_names = tuple(map(str, names)) if isinstance(names, (list, tuple)) and names else None
        first = next(filter(None, map(self._parts, range(len(dataset)))), {})
        kinds: dict[str, Annotation] = {"boxes": "boxes", "mask": "masks"}
        self.annotations = tuple(kind for key, kind in kinds.items() if key in first)
        self._has_ids = "id" in first

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes by index, where they were given or the dataset has them."""
        return self._class_names

    def entries(self) -> list[Entry]:
        """The numbers of the items; what is in them comes with the image."""
        numbers = range(len(self.dataset))
        ids = [str(self._parts(i).get("id", i)) for i in numbers] if self._has_ids else list(map(str, numbers))
        return [Entry(own, str(number)) for own, number in zip(ids, numbers, strict=True)]

    def _parts(self, number: int) -> dict[str, Any]:
        """The parts of an item; with ``on_error="record"`` nothing of one whose file cannot be read."""
        try:
            return read_parts(self.dataset, number)
        except ImageReadError:
            if self.on_error == "raise":
                raise
            return {}

    def looked_for(self) -> str:
        """The dataset."""
        return f"items of the {type(self.dataset).__name__}, whose length is {len(self.dataset)}"

    def reader(self) -> Reader:
        """What asks the dataset for an item."""
        return TorchReader(self.dataset, None if self._class_names is None else len(self._class_names))

    def source(self) -> dict[str, Any]:
        """The dataset's class: what is in it is not known."""
        return {"dataset": type(self.dataset).__name__}


def _check_dataset(dataset: Any) -> None:
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            f"Expected a dataset whose items have numbers, but {type(dataset).__name__} is an IterableDataset: its "
            "images have no fixed place, so that no run could go on after a stop. Collect them in a list, or write a "
            "Dataset with `__len__` and `__getitem__`."
        )
    if not (isinstance(dataset, Sized) and hasattr(dataset, "__getitem__")):
        raise TypeError(
            f"Expected a Dataset with `__len__` and `__getitem__`, or a DataLoader of one, but got "
            f"{type(dataset).__name__}."
        )


def _check_order(loader: DataLoader[Any]) -> None:
    """The order of the dataset is the run's; whatever a loader says of order is told or refused."""
    own_batches = loader.batch_size is None and loader.batch_sampler is not None
    sampler = loader.batch_sampler if own_batches else loader.sampler
    if isinstance(sampler, SequentialSampler):
        return
    if (
        isinstance(sampler, RandomSampler)
        and not sampler.replacement
        and sampler.num_samples == len(sampler.data_source)
    ):
        warnings.warn(
            "The DataLoader shuffles, but images are evaluated in the dataset's order, the same at every start.",
            stacklevel=3,
        )
        return
    raise ValueError(
        f"Expected a DataLoader that reads its dataset in order, but it has a {type(sampler).__name__}, which may "
        "leave images out or repeat them. Give the dataset itself, or a torch.utils.data.Subset of it."
    )


class _Samples(Dataset[dict[str, Any]]):
    """Batches in memory, image by image."""

    def __init__(self, samples: list[dict[str, Any]]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.samples[index]


def in_memory(batches: Sequence[Batch], *, batch_size: int) -> TorchData:
    """Images that are in memory already, as they are: nothing is resized.

    Args:
        batches: of ``image`` (B,3,H,W) in [0,1], all of one size, and perhaps ``target``, ``id``, ``boxes``, ``mask``.
            Padding (an ``index`` of -1) and images with an ``error`` are left out.
        batch_size: images in a block.

    Raises:
        TypeError: an image is no tensor of floating point or uint8.
        ValueError: there is none; they are not of one size; or an entry has not one value for each image.
    """
    samples: list[dict[str, Any]] = []
    for batch in batches:
        samples += _split(batch)
    if not samples:
        raise ValueError("Expected `images` to have an image at least, but got none.")
    sizes = {tuple(sample["image"].shape[1:]) for sample in samples}
    if len(sizes) > 1:
        raise ValueError(f"Expected `images` of one size, but got {', '.join(map(str, sorted(sizes)))}.")
    height, width = sizes.pop()
    return TorchData(_Samples(samples), name="images", batch_size=batch_size, size=(height, width))


def _split(batch: Batch) -> list[dict[str, Any]]:
    image = batch["image"]
    if not isinstance(image, Tensor):
        raise TypeError(f"Expected `images` as a tensor (B,3,H,W), but got {type(image).__name__}.")
    if image.ndim != 4:
        raise ValueError(f"Expected `images` of shape (B,3,H,W), but got {tuple(image.shape)}.")
    known = ("image", "target", "id", "boxes", "mask")
    columns: dict[str, Any] = {key: value for key, value in batch.items() if key in known}
    if "inputs" in batch:
        columns["inputs"] = each_input(batch["inputs"], len(image))
    for key, column in columns.items():
        if len(column) != len(image):
            raise ValueError(
                f"Expected `{key}` to have one entry for each of {len(image)} images, but got {len(column)}."
            )
    read = [
        ("index" not in batch or int(batch["index"][i]) >= 0) and not ("error" in batch and batch["error"][i])
        for i in range(len(image))
    ]
    return [{key: column[i] for key, column in columns.items()} for i, kept in enumerate(read) if kept]
