"""`optcam_pl.evaluate`: explainers measured on images, in this process, without a run folder."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from optcam_pl.checks import check_choice
from optcam_pl.data import Batch, ImageDataModule, TorchData
from optcam_pl.data.torch_data import in_memory
from optcam_pl.evaluate.block import Target, check_target, evaluate_block
from optcam_pl.evaluate.probes import check_needs
from optcam_pl.evaluate.subject import (
    Subject,
    all_metrics,
    check_annotations,
    check_probabilities,
    chooses_chunk_size,
    default_metrics,
    match,
)
from optcam_pl.explainers import Explainer
from optcam_pl.explainers.base import check_classifier
from optcam_pl.explainers.chunk_size import ChunkSize, automatic, check_chunk_size, decided
from optcam_pl.figures.fonts import legible
from optcam_pl.maps import Baseline, check_baseline
from optcam_pl.metrics import ImageMetric
from optcam_pl.metrics.functional.localization import Region
from optcam_pl.network.allocator import advise_to_keep_memory
from optcam_pl.network.classifier import Classifier
from optcam_pl.photos.advice import conversion
from optcam_pl.reports.statistics import Method
from optcam_pl.reports.summary import Run, summarize
from optcam_pl.reports.tables import Format, Summary, table
from optcam_pl.runs.manifest import check_metric_keys
from optcam_pl.runs.rows import Row, Rows

Images: TypeAlias = (
    "Tensor | Batch | Iterable[Batch] | ImageDataModule | Dataset[Any] | DataLoader[Any] | Sequence[tuple[Any, ...]]"
)


@dataclass(frozen=True)
class Result:
    """The scores of explainers on images.

    Attributes:
        runs: explainer -> its rows and manifest, as in a run folder.
    """

    runs: dict[str, Run]

    @property
    def rows(self) -> dict[str, tuple[Row, ...]]:
        """Explainer -> one row for each image, in the images' order."""
        return {name: tuple(run.rows) for name, run in self.runs.items()}

    def summary(self, intervals: Method | None = "bca") -> dict[str, Summary]:
        """Explainer -> its numbers.

        Args:
            intervals: the method for the 95 % bootstrap intervals of the means, "bca" or "percentile"; None makes none.
        """
        return {name: summarize(run, intervals) for name, run in self.runs.items()}

    def table(self, format: Format = "text", intervals: Method | None = "bca") -> str:
        """The numbers of all explainers as "text", "markdown", "csv", "latex" or "json"."""
        return table(list(self.summary(intervals).values()), format)

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with one line per explainer and image: the row's entries, and one column per metric.

        A score that consists of several numbers is a list in its cell.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(
                "`Result.to_pandas` needs pandas: pip install pandas. `Result.rows` does without."
            ) from error
        lines = [{"explainer": name, **_flat(row)} for name, rows in self.rows.items() for row in rows]
        return pd.DataFrame(lines)

    def plot(self, intervals: Method | None = "bca") -> Figure:
        """A figure to show or save: one panel per metric, with the explainers' values and their 95 % intervals."""
        summaries = self.summary(intervals)
        info = {key: i for summary in summaries.values() for key, i in summary.metric_info.items()}
        figure = Figure(figsize=(3 * max(1, len(info)), 1 + 0.4 * len(summaries)), layout="constrained")
        panels = figure.subplots(1, max(1, len(info)), squeeze=False, sharey=True)[0]
        for panel, (key, described) in zip(panels, info.items(), strict=False):
            for place, summary in enumerate(summaries.values()):
                estimate = summary.metrics[key]
                if estimate.value is None:
                    continue
                ends = (estimate.value if end is None else end for end in (estimate.low, estimate.high))
                low, high = (abs(estimate.value - end) for end in ends)
                panel.errorbar(estimate.value, place, xerr=[[low], [high]], fmt="o", color="C0", capsize=3)
            arrow = {True: " ↑", False: " ↓", None: ""}[described.higher_is_better]
            panel.set(title=described.label + (f" ({described.unit})" if described.unit else "") + arrow)
            panel.set(yticks=range(len(summaries)), yticklabels=list(summaries), ylim=(len(summaries) - 0.5, -0.5))
        return legible(figure)


def evaluate(
    classifier: Classifier,
    explainers: Explainer | Sequence[Explainer] | Mapping[str, Explainer],
    images: Images,
    metrics: Sequence[ImageMetric] | Literal["all"] | None = None,
    *,
    target: Target | int | Tensor | Sequence[int] | None = None,
    labels: Tensor | Sequence[int] | None = None,
    batch_size: int | None = None,
    baseline: Baseline | None = None,
    region: Region = "map",
    chunk_size: ChunkSize = 64,
) -> Result:
    """Measure explainers on images in this process, without writing anything to disk.

    With the same images, settings and block size, the numbers equal those of `optcam test` to the last digit.

    Args:
        classifier: the network, on the device to use.
        explainers: one, several, or several by name. Two of one class in a list are told apart by a number.
        images: pixels in [0,1] that are not normalized. A tensor (B,3,H,W), a dict with ``image`` and optionally
            ``target``, ``id``, ``boxes``, ``mask`` and ``inputs`` (the network's other inputs, by name), or an iterable
            of such dicts is used without resizing. The images of a data module, or of a Dataset or DataLoader as in
            `optcam_pl.data.TorchData`, are resized to the network's input.
        metrics: the metrics to measure. None means Average Drop, Average Gain and Average Increase; "all" means every
            metric of the package for which the images have the annotations and are large enough.
        target: the class that is explained and measured: the image's ``label``, the ``predicted`` class, the ``second``
            most probable or the ``least`` probable class; one class for all images; or one class for each image. None
            means the label if the first image has one, otherwise the predicted class.
        labels: (B,) classes of the images, if `images` is a tensor.
        batch_size: the number of images in a block; None means that of the data module or DataLoader, otherwise 8.
        baseline: what replaces the image where a map is 0, for the metrics and for explainers that mask; None keeps
            each explainer's own.
        region: the part of the map that is measured; see `SaliencyTask`.
        chunk_size: the number of images in one pass of the network, for metrics that need many passes per image; or
            "auto": on a GPU what a short probe finds best, on a CPU 64 (see `optcam_pl.explainers.chunk_size`).

    Raises:
        ValueError: settings contradict each other, or images are not valid; the message explains the problem.
        TypeError: likewise, or `classifier` is a bare network.

    Example:
        >>> import optcam_pl
        >>> from optcam_pl.explainers import FakeCAM, GradCAM
        >>> head = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2))
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), *head)
        >>> classifier = optcam_pl.Classifier(network, mean=(0, 0, 0), std=(1, 1, 1), input_size=8)
        >>> images, labels = torch.rand(5, 3, 8, 8), [0, 1, 0, 1, 1]
        >>> result = optcam_pl.evaluate(classifier, [FakeCAM(), GradCAM()], images, labels=labels)
        >>> [(name, len(rows)) for name, rows in result.rows.items()]
        [('FakeCAM', 5), ('GradCAM', 5)]
        >>> list(result.summary()["GradCAM"].metrics)
        ['average_drop', 'average_gain', 'average_increase']
    """
    check_classifier(classifier)
    methods = by_name(explainers)
    data = _data_of(images, labels, batch_size)
    data.match_network(classifier.input_size, classifier.interpolation, classifier.crop_fraction, classifier.channels)
    check_choice("region", region, Region)
    check_chunk_size(chunk_size)
    data.setup("test")
    advise_to_keep_memory(classifier.mean.device.type)
    chosen = _check_classes(_default_target(data, classifier) if target is None else target, classifier, data)
    for explainer in methods.values():
        match(classifier, explainer, data, chosen)
    measured = _metrics_of(metrics, classifier, data, region)
    for part in (*methods.values(), *measured):
        part.to(classifier.mean.device)
    options = (measured, region, chunk_size)
    passes = None
    if any(chooses_chunk_size(explainer, chunk_size, "test") for explainer in methods.values()):
        passes = automatic(classifier, data.preprocessing.size, classifier.mean.device)
    with _one_baseline(methods.values(), baseline), decided(passes):
        rows = _rows(classifier, methods, data, chosen, *options)
        manifests = _manifests(classifier, methods, data, chosen, *options, passes)
    if isinstance(explainers, Mapping):  # show the names that the user gave
        manifests = {name: {**manifest, "explainer": name} for name, manifest in manifests.items()}
    by_key = {metric.key: metric for metric in measured}
    return Result({name: Run(Path(name), manifests[name], Rows(tuple(rows[name])), by_key) for name in methods})


def _rows(
    classifier: Classifier,
    explainers: Mapping[str, Explainer],
    data: ImageDataModule,
    target: Target | int | Tensor,
    metrics: Sequence[ImageMetric],
    region: Region,
    chunk_size: ChunkSize,
) -> dict[str, list[Row]]:
    """The rows of each explainer; every image is read only once."""
    rows: dict[str, list[Row]] = {name: [] for name in explainers}
    for block in _blocks(data, classifier.mean.device):
        classes = target[block["index"].cpu().clamp(min=0)] if isinstance(target, Tensor) else target
        for name, explainer in explainers.items():
            what = (classifier, explainer, block, classes, metrics)
            options: dict[str, Any] = {"region": region, "chunk_size": chunk_size}
            rows[name] += evaluate_block(*what, **options, on_error=data.on_error).rows
    return rows


def _manifests(
    classifier: Classifier,
    explainers: Mapping[str, Explainer],
    data: ImageDataModule,
    target: Target | int | Tensor,
    metrics: Sequence[ImageMetric],
    region: Region,
    chunk_size: ChunkSize,
    passes: int | None,
) -> dict[str, dict[str, Any]]:
    """The manifest of each run, as if read from a run folder, so that the tables are the same."""
    own = "given" if isinstance(target, Tensor) else target
    kind = classifier.mean.device.type
    found = {}
    for name, explainer in explainers.items():
        of_this = passes if chooses_chunk_size(explainer, chunk_size, "test") else None
        what = (classifier, explainer, data, metrics, own, region)
        subject = Subject(*what, precision="32-true", device=kind, chunk_size=of_this)
        found[name] = json.loads(json.dumps(subject.manifest("test", name)))
    return found


def by_name(explainers: Explainer | Sequence[Explainer] | Mapping[str, Explainer]) -> dict[str, Explainer]:
    """Explainers by the names that tables and pictures show.

    Raises:
        ValueError: there is none.
        TypeError: an object is no explainer.
    """
    if isinstance(explainers, (Explainer, str)) or not isinstance(explainers, Iterable):
        explainers = [explainers]  # or what is refused below
    if isinstance(explainers, Mapping):
        named = dict(explainers)
    else:
        named, seen = {}, Counter[str]()
        for explainer in explainers:
            title = str(getattr(explainer, "title", explainer))
            seen[title] += 1
            named[title if seen[title] == 1 else f"{title} {seen[title]}"] = explainer
    if not named:
        raise ValueError("Expected `explainers` to have an explainer at least, but got none.")
    for given in cast("Mapping[str, object]", named).values():
        if not isinstance(given, Explainer):
            raise TypeError(f"Expected `explainers` to be objects of Explainer, but got {given!r}.{_to_make(given)}")
    return named


def _to_make(given: object) -> str:
    """What to do about a class, or the name of one, in the place of an object, with a space before it."""
    name = given.__name__ if isinstance(given, type) else given if isinstance(given, str) else None
    return f" Make one of the class: {name}()." if name else ""


def _data_of(images: Any, labels: Tensor | Sequence[int] | None, batch_size: int | None) -> ImageDataModule:
    if labels is not None and not isinstance(images, Tensor):
        kind = type(images).__name__
        raise ValueError(f"Expected `labels` only where `images` is a tensor, but it is a {kind}, which has its own.")
    if labels is not None and images.ndim == 4 and len(labels) != len(images):
        raise ValueError(
            f"Expected `labels` to have one entry for each of {len(images)} images, but got {len(labels)}."
        )
    if isinstance(images, (str, os.PathLike)):
        raise TypeError(
            f"Expected `images` to be images or a data module, but got the path {str(images)!r}. The classes "
            "ImagePaths and ImageFolder (of class folders) of optcam_pl.data read files: "
            f"ImagePaths({str(images)!r})."
        )
    if isinstance(images, ImageDataModule):
        if batch_size not in (None, images.batch_size):
            raise ValueError(
                f"Expected `batch_size` to be None, as the data module has its own, {images.batch_size}, but got "
                f"{batch_size}."
            )
        return images
    batches = _batches_of(images, labels)
    if batches is None:
        return TorchData(images, batch_size=batch_size)
    return in_memory(batches, batch_size=8 if batch_size is None else batch_size)


def _batches_of(images: Any, labels: Tensor | Sequence[int] | None) -> list[Batch] | None:
    """The batches in memory; None if the images come from a dataset."""
    if isinstance(images, Tensor):
        batch = {"image": images} if labels is None else {"image": images, "target": labels}
        return [cast(Batch, batch)]
    if isinstance(images, Mapping):
        if "image" not in images:
            raise ValueError(
                f"Expected `images` to have an `image`, but got a dict with {', '.join(map(str, images))}."
            )
        return [cast(Batch, images)]
    if isinstance(images, DataLoader):  # without a batch size, its elements are batches: a data module's own loader
        return list(images) if images.batch_size is None and images.batch_sampler is None else None
    if isinstance(images, Dataset):
        return None
    if not isinstance(images, Iterable):
        raise TypeError(
            "Expected `images` as a tensor (B,3,H,W), a batch or several, a data module, a Dataset or a DataLoader, "
            f"but got {type(images).__name__}."
        )
    if isinstance(images, Sequence):
        return cast("list[Batch]", list(images)) if all(map(_is_batch, images)) else None
    found = [] if isinstance(images, np.ndarray) else list(images)
    if isinstance(images, np.ndarray) or not all(isinstance(item, Mapping) and "image" in item for item in found):
        raise TypeError(
            f"Expected `images` as a tensor (B,3,H,W), or as batches, dicts with an `image`, but got a "
            f"{type(images).__name__} of something else.{conversion(images)}"
        )
    return cast("list[Batch]", found)


def _is_batch(item: Any) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("image"), Tensor) and item["image"].ndim == 4


def _default_target(data: ImageDataModule, classifier: Classifier) -> Target:
    """The label, if the first image that can be read has one, and the scores are of classes."""
    if not classifier.has_probabilities or classifier.scores.per_image:
        return "predicted"
    samples = map(data.table.sample, range(len(data.table)))
    first = next((sample for sample in samples if not sample["error"]), None)
    return "label" if first is not None and first["target"] >= 0 else "predicted"


def _check_classes(target: Any, classifier: Classifier, data: ImageDataModule) -> Target | int | Tensor:
    """A word, a class, or a tensor (B,) of the images' classes."""
    images = len(data.table)
    if isinstance(target, (np.ndarray, np.generic)):
        target = torch.as_tensor(target)
    if isinstance(target, Tensor) and not target.ndim:
        target = target.item()
    if isinstance(target, (str, int)) or not isinstance(target, (Tensor, Sequence)):
        check_target(target, classifier.num_classes)
        return cast("Target | int", target)
    classes = torch.as_tensor(target).cpu()
    if classes.shape != (images,):
        raise ValueError(
            f"Expected `target` to be one class, or one for each of the {images} images, but got shape "
            f"{tuple(classes.shape)}."
        )
    return classes


def _metrics_of(metrics: Any, classifier: Classifier, data: ImageDataModule, region: Region) -> list[ImageMetric]:
    if isinstance(metrics, str):
        check_choice("metrics", metrics, Literal["all"])
        metrics = all_metrics(data, classifier)
    measured = default_metrics(classifier) if metrics is None else list(metrics)
    for metric in measured:
        if not isinstance(metric, ImageMetric):
            given = _to_make(metric)
            raise TypeError(f"Expected `metrics` to be objects of ImageMetric, but got {metric!r}.{given}")
    check_metric_keys([metric.key for metric in measured])
    check_needs(measured)
    check_annotations(data, measured, region)
    check_probabilities(classifier, measured)
    return measured


@contextmanager
def _one_baseline(explainers: Iterable[Explainer], baseline: Baseline | None) -> Iterator[None]:
    """Use one baseline for explainers and metrics; afterwards the explainers get their own back."""
    before = [(explainer, explainer.baseline) for explainer in explainers]
    try:
        for explainer, own in before:
            explainer.baseline = own if baseline is None else check_baseline(baseline)
        yield
    finally:
        for explainer, own in before:
            explainer.baseline = own


def _blocks(data: ImageDataModule, device: torch.device) -> Iterator[Batch]:
    """All blocks of the data, on the device, regardless of what an earlier run left to do."""
    todo, data.todo = data.todo, None
    try:
        loader = data.test_dataloader()
    finally:
        data.todo = todo
    for block in loader:
        yield cast(Batch, {key: _moved(value, device) for key, value in block.items()})


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _moved(part, device) for name, part in value.items()}
    if isinstance(value, list):
        return [_moved(part, device) for part in value]
    return value.to(device) if isinstance(value, Tensor) else value


def _flat(row: Row) -> dict[str, Any]:
    entries = asdict(row)
    scores = entries.pop("scores")
    return {**entries, **scores}
