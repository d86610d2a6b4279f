"""One block of images: predicted, explained, measured. Needs no Lightning or disk; every evaluation builds on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor

from optcam_pl.data import Batch
from optcam_pl.data.batch import OnError
from optcam_pl.data.labels import check_labels
from optcam_pl.evaluate.probes import Probes
from optcam_pl.explainers import Explainer, Explanation
from optcam_pl.explainers.base import joined
from optcam_pl.explainers.chunk_size import ChunkSize
from optcam_pl.maps import finite_range
from optcam_pl.metrics import CurveMetric, ImageMetric
from optcam_pl.metrics.functional import region_map
from optcam_pl.metrics.functional.localization import Region
from optcam_pl.network.classifier import Classifier
from optcam_pl.network.scores import References
from optcam_pl.photos.decode import ImageReadError
from optcam_pl.reports.summary import NO_BOX
from optcam_pl.runs.rows import Row

_SLACK = 1e-4  # rounding may leave [0,1]

Target: TypeAlias = Literal["label", "predicted", "second", "least"]
"""Which class is explained: the image's label, or the most, second most or least probable class."""
Explain: TypeAlias = Callable[[Batch, Tensor], Explanation]
"""A function that makes the maps of the readable images from these images and their classes (B,)."""


@dataclass(frozen=True)
class BlockResult:
    """The results for one block.

    Padding (``index`` -1) and images that could not be read never reach the network. Everything except `rows` refers to
    the B images that could be read, in the block's order. B may be 0.

    Attributes:
        batch: the B images.
        logits: (B,C) the network's scores for them.
        explanation: the maps.
        probes: the measurements.
        rows: one for each image of the dataset in the block, in the block's order, including images that could not be
            read. To find a row's image in `batch`, use its ``index``.
        scores: (B,) or (B,k) by metric; NaN where an image has no defined score.
        curves: (B,T) for each `CurveMetric`.
        measurable: (B,) on the CPU; false for an image without a box if `region` needs one, and without a reference if
            the network's scores need one. Such an image has no scores, and its curves are meaningless.
        references: what each image's score refers to, if the network's scores are `per_image`.
    """

    batch: Batch
    logits: Tensor
    explanation: Explanation
    probes: Probes
    rows: tuple[Row, ...]
    scores: dict[str, Tensor] = field(default_factory=dict)
    curves: dict[str, Tensor] = field(default_factory=dict)
    measurable: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool, device="cpu"))
    references: References | None = None

    def target_name(self, i: int) -> str:
        """What is explained of the i-th of the B images, in words: a class's name, "box 3: person 0.91"."""
        if self.references is not None:
            return self.references.names[i]
        return self.probes.classifier.target_name(int(self.explanation.target[i]))

    def predicted_name(self, i: int) -> str:
        """What the network says of the i-th image, in words; "" where each image has its own reference."""
        if self.references is not None:
            return ""
        return self.probes.classifier.target_name(int(self.probes.predicted[i]))


def evaluate_block(
    classifier: Classifier,
    explainer: Explainer,
    batch: Batch,
    target: Target | int | Tensor | Sequence[int],
    metrics: Sequence[ImageMetric],
    *,
    region: Region = "map",
    chunk_size: ChunkSize = 64,
    seed: int = 0,
    explain: Explain | None = None,
    on_error: OnError = "raise",
) -> BlockResult:
    """Predict, explain, measure and score one block of images.

    Args:
        classifier: the network, on the images' device.
        explainer: the method.
        batch: the block. Only ``image`` is required. Without ``target``, no image has a label; without ``id`` and
            ``index``, the images are numbered from 0; without ``error``, all images count as readable.
        target: the classes that are explained and measured; see `explained_classes`.
        metrics: the metrics to measure; their states are not changed.
        region: the part of the map that is measured; see `SaliencyTask`.
        chunk_size: the number of images in one pass of the network, for metrics that need many passes per image; or
            "auto": on a GPU what a short probe finds best, on a CPU 64 (see `optcam_pl.explainers.chunk_size`).
        seed: the seed of random perturbations.
        explain: a function that supplies the maps instead of the explainer, for stored or fitted maps.
        on_error: "record" gives an image whose scores are not finite a row that says so, as one that cannot be read.

    Returns:
        The scores and the row of each image, and the data that they were computed from.

    Raises:
        NotFiniteError: the network's scores for an image are not finite, and `on_error` is "raise".
        ValueError: an image has no label that the network knows, and `target` is "label"; or a metric needs something
            that the batch does not contain.

    Example:
        >>> from optcam_pl import Classifier, FakeCAM
        >>> from optcam_pl.metrics import AverageDrop
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> classifier = Classifier(network, mean=(0, 0, 0), std=(1, 1, 1), input_size=8)
        >>> result = evaluate_block(classifier, FakeCAM(), {"image": torch.rand(2, 3, 8, 8)}, 1, [AverageDrop()])
        >>> [row.id for row in result.rows], result.scores["average_drop"].shape, result.explanation.saliency.shape
        (['0', '1'], torch.Size([2]), torch.Size([2, 1, 8, 8]))
    """
    block = _completed(batch)
    measure = _Measure(classifier, explainer, metrics, region, chunk_size, seed)
    while True:
        try:
            return _evaluated(measure, block, target, explain)
        except NotFiniteError as fault:
            if on_error == "raise":
                raise
            pairs = zip(block["id"], block["error"], strict=True)
            errors = [fault.reason if name in fault.ids else error for name, error in pairs]
            block = cast(Batch, {**block, "error": errors})


class NotFiniteError(ImageReadError):
    """The network's scores for some images of a block are not finite.

    Attributes:
        ids: the images.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        super().__init__(
            f"Expected finite scores of the network, but those for the image {ids[0]!r} are not. Its weights are "
            "damaged, or a precision of 16 bits is too small for its numbers (`--trainer.precision 32-true`).",
            "the network's scores for it are not finite",
        )
        self.ids = frozenset(ids)


def _evaluated(
    measure: _Measure, block: Batch, target: Target | int | Tensor | Sequence[int], explain: Explain | None
) -> BlockResult:
    chosen = [i for i, index in enumerate(block["index"].tolist()) if index >= 0 and not block["error"][i]]
    batch = _part(block, chosen)
    if not chosen:
        return measure.nothing(block, batch)
    if not isinstance(target, (str, int)):
        target = _chosen(target, block, chosen)
    if batch.get("inputs"):
        return _one_by_one(measure, block, batch, target, explain)
    return _together(measure, block, batch, target, explain)


def _one_by_one(
    measure: _Measure, block: Batch, batch: Batch, target: Target | int | Tensor, explain: Explain | None
) -> BlockResult:
    """Images whose networks' other inputs differ: each is predicted, explained and measured by itself."""
    results = []
    for i in range(len(batch["id"])):
        alone = _part(batch, [i], copy=True)
        own = target[i : i + 1] if isinstance(target, Tensor) else target
        with measure.classifier.inputs.bound_to(alone["inputs"][0]):
            results.append(_together(measure, alone, alone, own, explain))
    return measure.joined(block, batch, results)


def _together(
    measure: _Measure, block: Batch, batch: Batch, target: Target | int | Tensor, explain: Explain | None
) -> BlockResult:
    classifier, explainer = measure.classifier, measure.explainer
    with torch.no_grad(), classifier.references(batch) as references:
        logits = classifier(batch["image"])
        if references is None:
            _check_finite(logits, batch["id"])
        classes = explained_classes(target, batch, logits, own=references is not None)
        start = _now(batch["image"])
        explanation = explain(batch, classes) if explain else explainer(classifier, batch["image"], classes)
        seconds = (_now(batch["image"]) - start) / len(batch["id"])
        _check_maps(explanation, explainer.title)
        return measure(block, batch, logits, explanation, seconds, references)


def _check_maps(explanation: Explanation, title: str) -> None:
    """Refuse maps that would not mask an image.

    Raises:
        ValueError: a value is not in [0,1].
    """
    low, high = finite_range(explanation.saliency)
    if not (low >= -_SLACK and high <= 1 + _SLACK):
        raise ValueError(
            f"Expected the maps of {title} to lie in [0, 1], but got values from {low:.4g} to {high:.4g}. "
            "`self.finish(raw, image, target)` normalizes raw maps."
        )


def _check_finite(logits: Tensor, ids: Sequence[str]) -> None:
    """Raise a NotFiniteError that names the images of these scores (B,C) whose largest one is not finite."""
    broken = [name for name, known in zip(ids, logits.amax(1).isfinite().tolist(), strict=True) if not known]
    if broken:
        raise NotFiniteError(broken)


def explained_classes(
    target: Target | int | Tensor | Sequence[int], batch: Batch, logits: Tensor, *, own: bool = False
) -> Tensor:
    """Choose the classes to explain for B images that could be read.

    Args:
        target: the images' ``label``, the ``predicted`` class, the ``second`` most probable or the ``least`` probable
            class; or one class for all images; or one class for each image, (B,).
        batch: the images, with their labels.
        logits: (B,C) the network's scores for them. Every link is increasing, so that the "predicted" class, the most
            probable one, is the one with the highest score: with "sigmoid" the column with the highest probability,
            with scores Binary the likelier answer, with "identity" the highest number.
        own: whether each image has a column of its own, image i the column i; then `target` must be a word, and all
            words mean this column.

    Returns:
        (B,) int64 on the images' device.

    Raises:
        ValueError: the network does not have one of the classes; this includes the labels of images.

    Example:
        >>> batch = {"id": ["a", "b"], "target": torch.tensor([0, 2])}
        >>> logits = torch.tensor([[1.0, 3.0, 2.0], [0.0, 1.0, 2.0]])
        >>> words = ("label", "predicted", "second", "least")
        >>> {word: explained_classes(word, batch, logits).tolist() for word in words}
        {'label': [0, 2], 'predicted': [1, 2], 'second': [2, 1], 'least': [0, 0]}
        >>> explained_classes(1, batch, logits).tolist(), explained_classes([2, 0], batch, logits).tolist()
        ([1, 1], [2, 0])
    """
    if own:
        if not isinstance(target, str):
            raise ValueError(
                "Expected `target` to be left open (None, label or predicted), as each image is explained for its own "
                f"reference, but got {target!r}."
            )
        return torch.arange(len(logits), device=logits.device)
    if target == "predicted":
        return logits.argmax(1)
    if target in ("second", "least") and logits.shape[1] == 1:
        raise ValueError(
            f"Expected `target` to be predicted or 0, as the network has one score for an image, but got {target!r}."
        )
    if target == "second":
        return logits.topk(2, dim=1).indices[:, 1]
    if target == "least":
        return logits.argmin(1)
    label = batch["target"]
    if isinstance(target, int):
        return torch.full_like(label, target)
    if not isinstance(target, str):
        label = torch.as_tensor(target, device=logits.device).long()
    what = "" if isinstance(target, str) else "target"
    advice = "if the dataset has no labels, set `target` to predicted"
    check_labels(label, logits.shape[1], batch["id"], what, advice)
    return label


def check_target(target: Any, classes: int) -> None:
    """Check that `target` is one of the words for a class, or a class of the network.

    Raises:
        ValueError: it is neither.
    """
    number = isinstance(target, int) and not isinstance(target, bool) and 0 <= target < classes
    if not (number or (isinstance(target, str) and target in get_args(Target))):
        raise ValueError(
            f"Expected `target` to be one of {', '.join(get_args(Target))} or a class in 0..{classes - 1}, but got "
            f"{target!r}."
        )


def readable(batch: Batch) -> Batch:
    """The images of a block that could be read; the others are padding or have an error."""
    return _part(batch, [i for i, index in enumerate(batch["index"].tolist()) if index >= 0 and not batch["error"][i]])


def in_order(block: Batch, rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows of all images in the block's order: readable ones, and the others, which took no time."""
    errors = [
        Row(index=index, id=block["id"][i], status="error", reason=block["error"][i], target=int(block["target"][i]),
            predicted=-1, p=None, o=None, seconds=0.0)
        for i, index in enumerate(block["index"].tolist()) if index >= 0 and block["error"][i]
    ]  # fmt: skip
    return tuple(sorted([*rows, *errors], key=lambda row: row.index))


@dataclass(frozen=True)
class _Measure:
    """The measurements to make and their settings."""

    classifier: Classifier
    explainer: Explainer
    metrics: Sequence[ImageMetric]
    region: Region
    chunk_size: ChunkSize
    seed: int

    def __call__(
        self,
        block: Batch,
        batch: Batch,
        logits: Tensor,
        explanation: Explanation,
        seconds: float,
        references: References | None = None,
    ) -> BlockResult:
        if self.region != "map":
            saliency = region_map(explanation.saliency, batch["boxes"], self.region)
            explanation = replace(explanation, saliency=saliency)
        probes = self._probes(batch, logits, explanation)
        images = range(len(batch["id"]))
        missing = references.missing if references is not None and references.missing else ("",) * len(images)
        no_box = [self.region != "map" and not len(batch["boxes"][i]) for i in images]
        reasons = [missing[i] or NO_BOX * no_box[i] for i in images]
        measurable = torch.tensor([not reason for reason in reasons], device="cpu")
        scores, curves = self._scores(probes, measurable)
        rows = self._rows(probes, scores, reasons, seconds)
        if references is not None:  # its columns are numbered by the block: a row names the reference's own class
            classes = references.classes or (0,) * len(rows)
            rows = [replace(row, target=c, predicted=c) for row, c in zip(rows, classes, strict=True)]
        all_rows = in_order(block, rows)
        return BlockResult(batch, logits, explanation, probes, all_rows, scores, curves, measurable, references)

    def joined(self, block: Batch, batch: Batch, results: Sequence[BlockResult]) -> BlockResult:
        """The result of a block whose images were measured one by one."""
        logits = torch.cat([result.logits for result in results])
        explanation = joined([result.explanation for result in results])
        probes = self._probes(batch, logits, explanation)
        probes.take([result.probes for result in results])
        first = results[0]
        return BlockResult(
            batch, logits, explanation, probes, in_order(block, [row for r in results for row in r.rows]),
            {key: torch.cat([result.scores[key] for result in results]) for key in first.scores},
            {key: torch.cat([result.curves[key] for result in results]) for key in first.curves},
            torch.cat([result.measurable for result in results]),
            _joined_references([r.references for r in results if r.references is not None]),
        )  # fmt: skip

    def nothing(self, block: Batch, batch: Batch) -> BlockResult:
        """The result of a block in which no image could be read: B = 0."""
        image, target = batch["image"], batch["target"]
        logits = image.new_zeros(0, self.classifier.num_classes)
        explanation = Explanation(image[:, :1], target, target.bool())
        return BlockResult(batch, logits, explanation, self._probes(batch, logits, explanation), in_order(block, ()))

    def _probes(self, batch: Batch, logits: Tensor, explanation: Explanation) -> Probes:
        made_of = (self.classifier, self.explainer, batch, logits, explanation)
        return Probes(*made_of, chunk_size=self.chunk_size, seed=self.seed)

    def _scores(self, probes: Probes, measurable: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The images' scores by metric, and the curves that the scores are computed from."""
        left_out = measurable.logical_not().nonzero().flatten()
        scores: dict[str, Tensor] = {}
        curves: dict[str, Tensor] = {}
        for metric in self.metrics:
            evidence = probes.evidence(metric.needs(), metric.key)
            score = metric.check_scores(metric.score(**evidence), len(measurable))
            scores[metric.key] = score.index_fill(0, left_out.to(score.device), torch.nan)
            if isinstance(metric, CurveMetric):
                curves[metric.key] = metric.curves(**evidence).float()
        return scores, curves

    @staticmethod
    def _rows(probes: Probes, scores: dict[str, Tensor], unmeasurable: Sequence[str], seconds: float) -> list[Row]:
        """One row for each image that could be read; `seconds` were spent on each.

        `unmeasurable` says why an image has no scores, and "" where it has some.
        """
        batch, explanation = probes.batch, probes.explanation
        predicted, target = probes.predicted.tolist(), explanation.target.tolist()
        p, o = probes.original.tolist(), probes.masked.tolist()
        degenerate, reasons = explanation.degenerate.tolist(), explanation.reasons
        values = {key: score.tolist() for key, score in scores.items()}
        rows = []
        for i, index in enumerate(batch["index"].tolist()):
            reason = ""
            if degenerate[i]:
                reason = (reasons[i] if reasons else "") or "the map is constant or not finite"
            reason = unmeasurable[i] or reason
            rows.append(
                Row(
                    index=index, id=batch["id"][i], status="degenerate" if reason else "ok", reason=reason,
                    target=target[i], predicted=predicted[i], p=p[i], o=o[i],
                    scores={key: value[i] for key, value in values.items()}, seconds=seconds,
                )
            )  # fmt: skip
        return rows


def _joined_references(each: Sequence[References]) -> References | None:
    if not each:
        return None
    classes = [(r.classes or (0,))[0] for r in each]
    missing = [(r.missing or ("",))[0] for r in each]
    boxes = None if each[0].boxes is None else [r.boxes[0] for r in each if r.boxes is not None]
    masks = None if each[0].masks is None else torch.cat([r.masks for r in each if r.masks is not None])
    return References(tuple(r.names[0] for r in each), tuple(classes), tuple(missing), boxes, masks)


def _completed(batch: Batch) -> Batch:
    """A batch with everything that a row needs."""
    image = batch["image"]
    B, device = len(image), image.device
    own: dict[str, Any] = {
        "target": torch.full((B,), -1, device=device),
        "id": [str(i) for i in range(B)],
        "index": torch.arange(B, device=device),
        "error": [""] * B,
    }
    return cast(Batch, {**own, **batch})


def _part(batch: Batch, chosen: list[int], copy: bool = False) -> Batch:
    if len(chosen) == len(batch["id"]) and not copy:
        return batch
    return cast(Batch, {key: _at(value, chosen) for key, value in batch.items()})


def repeated(batch: Batch, i: int, n: int) -> Batch:
    """The i-th image of a batch with all that belongs to it, n times."""
    return _part(batch, [i] * n, copy=True)


def _at(value: Any, chosen: list[int]) -> Any:
    return value[chosen] if isinstance(value, Tensor) else [value[i] for i in chosen]


def _chosen(target: Tensor | Sequence[int], block: Batch, chosen: list[int]) -> Tensor:
    """The classes of the images that could be read, selected from one class per image of the block."""
    classes = torch.as_tensor(target, device=None if isinstance(target, Tensor) else "cpu")
    if classes.shape != (len(block["id"]),) or classes.is_floating_point() or classes.dtype == torch.bool:
        raise ValueError(
            f"Expected `target` to be a class for each of the {len(block['id'])} images, integers (B,), but got "
            f"{classes.dtype} of shape {tuple(classes.shape)}."
        )
    return classes[chosen]


def _now(image: Tensor) -> float:
    """The time in seconds after the GPU has finished its work, so that not only the launch is timed."""
    if image.device.type == "cuda":
        torch.cuda.synchronize(image.device)
    return time.perf_counter()
