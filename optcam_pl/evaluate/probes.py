"""Measurements with the network for a batch of explanations: the evidence that the metrics need."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from optcam_pl.checks import nearest
from optcam_pl.data import Batch
from optcam_pl.explainers.base import Explainer, Explanation
from optcam_pl.explainers.batching import Chunks
from optcam_pl.explainers.chunk_size import ChunkSize, check_chunk_size, images_in_pass
from optcam_pl.maps import Baseline, baseline_image, mask_image, of_class, uniform, wide
from optcam_pl.metrics.base import ImageMetric, Need
from optcam_pl.metrics.functional import (
    imputed_images,
    patch_rank,
    perturbed_images,
    pixel_rank,
    replaced,
    road_counts,
    step_counts,
)
from optcam_pl.network.classifier import Classifier
from optcam_pl.network.link import probabilities_of

Evidence: TypeAlias = "Tensor | list[Tensor]"
Probe: TypeAlias = Callable[..., Evidence]
"""A function that takes `Probes` and options and measures something for each image of the batch."""


def check_needs(metrics: Iterable[ImageMetric]) -> None:
    """Check that everything that the metrics need can be measured together.

    Raises:
        ValueError: no probe measures a need, `score` does not take it, or `needs` does not give what `score` takes; or
            two metrics want a named probe with different options.
        TypeError: a need is neither options nor a function with its options.
    """
    wanted: dict[str, tuple[str, dict[str, Any]]] = {}
    for metric in metrics:
        needs = metric.needs()
        _check_names(metric, needs)
        for name, need in needs.items():
            probe, options = _resolve(metric.key, name, need)
            _check_hashable(metric.key, name, probe, options)
            if probe is not _PROBES.get(name):  # the metric's own probe: another metric may use the same name
                continue
            first, before = wanted.setdefault(name, (metric.key, options))
            if before != options:
                raise ValueError(
                    f"Expected metrics to agree on how {name!r} is measured, but {first!r} wants {before} "
                    f"and {metric.key!r} wants {options}: measure them in two runs."
                )


def _check_hashable(metric: str, name: str, probe: Probe, options: Mapping[str, Any]) -> None:
    try:
        hash(_key(probe, options))
    except TypeError as error:
        raise TypeError(
            f"Expected metric {metric!r} to give options of {name!r} that are numbers, text, tuples, lists or dicts of "
            f"them, but got {dict(options)}."
        ) from error


def _check_names(metric: ImageMetric, needs: Mapping[str, Need]) -> None:
    """Check that `needs` gives what `score` takes."""
    if not isinstance(needs, Mapping):
        raise TypeError(
            f"Expected `needs` of metric {metric.key!r} to return a dict, evidence -> options, such as "
            f'{{"original": {{}}}}, but got {needs!r}.'
        )
    takes = inspect.signature(type(metric).score).parameters
    required = [name for name in metric.evidence() if takes[name].default is inspect.Parameter.empty]
    if absent := [name for name in required if name not in needs]:
        raise ValueError(
            f"Expected `needs` of metric {metric.key!r} to give all that `score` takes, but {absent[0]!r} is missing."
        )
    if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        for name in needs:
            if name not in takes:
                raise ValueError(
                    f"Expected `score` of metric {metric.key!r} to take {name!r}, which its `needs` gives."
                )


def _resolve(metric: str, name: str, need: Need) -> tuple[Probe, dict[str, Any]]:
    """The function that measures a need, and its options."""
    if isinstance(need, tuple) and len(need) == 2 and callable(need[0]) and isinstance(need[1], Mapping):
        return need[0], dict(need[1])
    if not isinstance(need, Mapping):
        raise TypeError(
            f"Expected `needs` of metric {metric!r} to give a dict of options or (function, options) for {name!r}, but "
            f"got {need!r}."
        )
    if name not in _PROBES:
        raise ValueError(
            f"Metric {metric!r} needs {name!r}, which no probe measures. The nearest are: {nearest(name, _PROBES)}. A "
            f"probe of its own is given in `needs`, as {{{name!r}: (function, options)}}."
        )
    return _PROBES[name], dict(need)


def _key(probe: Probe, options: Mapping[str, Any]) -> Hashable:
    """A key that is equal for the same function and options, so that each is measured only once."""

    def frozen(value: Any) -> Hashable:
        if isinstance(value, Mapping):
            return tuple(sorted((key, frozen(item)) for key, item in value.items()))
        return tuple(map(frozen, value)) if isinstance(value, (list, tuple)) else value

    return probe, frozen(options)


class Probes:
    """What metrics need for B images. Each quantity is measured on first use and at most once.

    A metric may define its own probe, see `ImageMetric`: a function that gets this object and returns a tensor or a
    list with one entry for each of the B images. The function can use all attributes below and `original`, `masked`,
    `masked_image`, `score` and `evidence`.

    The probes of an image do not depend on the other images of its batch: random values are drawn from `seed` and the
    image's id.

    Args:
        classifier: the network.
        explainer: makes maps of other images (masked or perturbed ones) for the probes that need them.
        batch: B images, with boxes and masks where the dataset has them.
        logits: (B,C) the network's output for them, which the caller already has.
        explanation: the explanation that is measured.
        chunk_size: the number of images in one pass of the network, for probes that need many passes, or "auto".
        seed: the seed of perturbations.
    """

    def __init__(
        self,
        classifier: Classifier,
        explainer: Explainer,
        batch: Batch,
        logits: Tensor,
        explanation: Explanation,
        *,
        chunk_size: ChunkSize = 64,
        seed: int = 0,
    ) -> None:
        self.classifier, self.explainer, self.batch = classifier, explainer, batch
        self.image, self.logits, self.explanation = batch["image"], logits, explanation
        self.chunk_size, self.seed = check_chunk_size(chunk_size), seed
        self._found: dict[Hashable, Evidence] = {}

    @property
    def baseline(self) -> Baseline:
        """What replaces the image where the map is 0; the explainer masks with the same baseline."""
        return self.explainer.baseline

    def evidence(self, needs: Mapping[str, Need], metric: str = "") -> dict[str, Evidence]:
        """Measure what a metric needs, by name, on the image's device.

        Args:
            needs: the value of `ImageMetric.needs`.
            metric: the name of the metric, for messages.

        Raises:
            ValueError: no probe measures one of the names, or a metric's own probe does not return one entry per image.
        """
        return {name: self._measure(name, *_resolve(metric, name, need)) for name, need in needs.items()}

    def _measure(self, name: str, probe: Probe, options: Mapping[str, Any]) -> Evidence:
        key = _key(probe, options)
        if key not in self._found:
            found = probe(self, **options)
            if not isinstance(found, (Tensor, list)) or (isinstance(found, Tensor) and not found.ndim):
                raise TypeError(f"Expected the probe of {name!r} to return a tensor or list, but got {found!r}.")
            if len(found) != len(self.image):
                raise ValueError(
                    f"Expected the probe of {name!r} to measure each of the {len(self.image)} images, but got "
                    f"{len(found)} entries."
                )
            self._found[key] = found
        return self._found[key]

    def take(self, each: Sequence[Probes]) -> None:
        """Take over what was measured for each of the B images by itself, so that it is not measured again."""
        for key in each[0]._found:
            found = [probes._found[key] for probes in each if key in probes._found]
            if len(found) == len(each):
                tensors = [value for value in found if isinstance(value, Tensor)]
                lists = [value for value in found if isinstance(value, list)]
                self._found[key] = torch.cat(tensors) if tensors else [part for value in lists for part in value]

    # One pass ------------------------------------------------------------------------------------------------------

    @property
    def original(self) -> Tensor:
        """(B,) p: the probability of the explained class for the image."""
        return self._tensor("original")

    @property
    def masked(self) -> Tensor:
        """(B,) o: the probability of the explained class for the image masked by its map."""
        return self._tensor("masked")

    @property
    def predicted(self) -> Tensor:
        """(B,) the column with the highest score; the image's own one where each image has its own reference."""
        return self.explanation.target if self.classifier.scores.per_image else self.logits.argmax(1)

    @property
    def masked_image(self) -> Tensor:
        """(B,3,H,W) ``x . s``."""
        return self._tensor("masked_image")

    def _tensor(self, name: str) -> Tensor:
        found = self._measure(name, _PROBES[name], {})
        assert isinstance(found, Tensor)
        return found

    def _saliency(self) -> Tensor:
        return self.explanation.saliency.to(self.image.dtype)

    def _masked_image(self) -> Tensor:
        return self._mask(self._saliency())

    def _held_out(self, baseline: Baseline | None) -> Tensor:
        """(B,) the probability of the image masked with another baseline than the run's."""
        other: Baseline = ("mean" if self.baseline == "blur" else "blur") if baseline is None else baseline
        reference, own = baseline_image(self.image, other, self.classifier.mean), self._reference()
        if other == self.baseline or (reference.shape == own.shape and torch.equal(reference, own)):
            raise ValueError(
                f"Expected a held-out `baseline` other than the run's own, with which maps are made and measured, but "
                f"both are {other}."
            )
        return self.score(self.classifier(mask_image(self.image, self._saliency(), reference)))

    def _mask(self, saliency: Tensor) -> Tensor:
        return mask_image(self.image, saliency, None if self.baseline == "black" else self._reference())

    def _deleted(self) -> Tensor:
        return self.score(self.classifier(self._mask(1 - self._saliency())))

    def score(self, logits: Tensor, output: str = "probability", target: Tensor | None = None) -> Tensor:
        """The "probability" or "logit" of each image's class, at least in float32 whatever the network's dtype.

        Args:
            logits: (B,C).
            output: "probability" or "logit".
            target: (B,) classes; None means the explained classes.

        Returns:
            (B,).
        """
        scores = wide(logits)
        values = probabilities_of(scores, self.classifier.link) if output == "probability" else scores
        return of_class(values, self.explanation.target if target is None else target)

    def _reference(self) -> Tensor:
        return baseline_image(self.image, self.baseline, self.classifier.mean)

    # Many passes ---------------------------------------------------------------------------------------------------

    def _scores(
        self, images: Callable[[slice], Tensor], steps: int, output: str, target: Tensor | None = None
    ) -> Tensor:
        """(B,S) class scores of S variants of each image; `images` makes those for a slice of steps, (B,s,3,H,W)."""
        return self._scores_of(lambda part: self.classifier(images(part).flatten(0, 1)), steps, output, target)

    def _scores_of(
        self, logits: Callable[[slice], Tensor], steps: int, output: str, target: Tensor | None = None
    ) -> Tensor:
        """As `_scores`, of the logits (B s,C) that the variants for a slice of steps have."""
        B = len(self.image)
        classes = self.explanation.target if target is None else target

        def step(part: slice) -> Tensor:
            found = logits(part)
            count = len(found) // B
            return self.score(found, output, classes.repeat_interleave(count)).view(B, count)

        return Chunks(images_in_pass(self.chunk_size, self.classifier, self.image), B).cat(step, steps)

    def _curve(self, rank: Tensor, counts: Tensor, before: Tensor, after: Tensor, output: str, of: Tensor) -> Tensor:
        """(B,T) scores of the images after each number of replacements; the unchanged image is not run again."""
        known = [self.score(self.logits, output, of).unsqueeze(1)]
        first, last = before is self.image, after is self.image
        todo = counts.to(self.image.device)[int(first) : len(counts) - int(last)]
        fused = self.classifier.fuses(self.image)

        def logits(part: slice) -> Tensor:
            if not fused:
                return self.classifier(perturbed_images(before, after, rank, todo[part]).flatten(0, 1))  # type: ignore[no-any-return]
            changed = replaced(rank, todo[part]).squeeze(2)
            if first:
                return self.classifier.masked(self.image, (~changed).float(), after)
            return self.classifier.masked(after, changed.float(), before)

        measured = self._scores_of(logits, len(todo), output, of)
        return torch.cat([*known * first, measured, *known * last], dim=1)

    def _area_curve(self, kind: Literal["in", "out"], steps: int, patch: int, output: str, target: str) -> Tensor:
        saliency = self.explanation.saliency
        rank = pixel_rank(saliency) if patch == 1 else patch_rank(saliency, patch)
        counts = step_counts(int(rank[0].max()) + 1, steps)
        of = self.predicted if target == "predicted" else self.explanation.target
        if kind == "in":
            return self._curve(
                rank, counts, baseline_image(self.image, "blur", self.classifier.mean), self.image, output, of
            )
        return self._curve(rank, counts, self.image, self._reference(), output, of)

    def _aopc_curve(self, regions: int, patch: int, output: str) -> Tensor:
        rank = patch_rank(self.explanation.saliency, patch)
        patches = int(rank[0].max()) + 1
        if regions > patches:
            raise ValueError(
                f"Expected `regions` of AOPC to be at most {patches}, the number of patches of {patch} x {patch} "
                f"pixels, but got {regions}."
            )
        counts = torch.arange(regions + 1, device="cpu")
        return self._curve(rank, counts, self.image, self._reference(), output, self.explanation.target)

    def _road_curve(self, sign: int, percentiles: Sequence[int], output: str) -> Tensor:
        rank = pixel_rank(sign * self.explanation.saliency)
        counts = road_counts(rank[0].numel(), percentiles)
        image = self.image if self.image.dtype == torch.float64 else self.image.float()

        def imputed(part: slice) -> Tensor:
            return imputed_images(image, rank, counts[part], seed=self.seed).clamp(0, 1).to(self.image.dtype)

        return self._scores(imputed, len(counts), output)

    def _selectivity_curve(self, alphas: Sequence[float]) -> Tensor:
        powers = self.image.new_tensor(alphas).view(1, -1, 1, 1, 1)
        reference = self._reference().unsqueeze(1)

        def masked(part: slice) -> Tensor:
            saliency = self._saliency().unsqueeze(1) ** powers[:, part]
            return reference + (self.image.unsqueeze(1) - reference) * saliency

        return self._scores(masked, len(alphas), "probability")

    # Other images' maps --------------------------------------------------------------------------------------------

    def _explain(self, image: Tensor) -> Tensor:
        explanation: Explanation = self.explainer(self.classifier, image, self.explanation.target)
        return explanation.saliency

    def _masked_saliency(self) -> Tensor:
        return self._explain(self.masked_image)

    def _perturbed_saliency(self, radius: float, samples: int) -> Tensor:
        width = radius * self.classifier.std.view(1, -1, 1, 1).to(self.image)
        noise = [uniform((samples, *self.image.shape[1:]), rng) for rng in self._generators("noise")]
        maps = []
        for sample in range(samples):
            shift = torch.stack([field[sample] for field in noise]).to(self.image)
            maps.append(self._explain((self.image + width * (2 * shift - 1)).clamp(0, 1)))
        return torch.stack(maps, dim=1)

    def _generators(self, purpose: str) -> list[torch.Generator]:
        """One generator per image, seeded from its id: the same in any batch, on any machine."""
        texts = (f"{purpose}/{self.seed}/{image_id}" for image_id in self.batch["id"])
        seeds = (hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:7] for text in texts)
        return [torch.Generator().manual_seed(int.from_bytes(seed, "big")) for seed in seeds]

    def _input_norm(self) -> Tensor:
        mean, std = (part.view(1, -1, 1, 1).to(self.image) for part in (self.classifier.mean, self.classifier.std))
        norm: Tensor = torch.linalg.vector_norm(((self.image - mean) / std).float(), dim=(1, 2, 3))
        return norm

    # Infidelity ----------------------------------------------------------------------------------------------------

    def _squares(self, samples: int, patch: int) -> Tensor:
        """(B,S,1,H,W) bool: a random square for each image and sample, entirely inside the image."""
        H, W = self.image.shape[2:]
        if patch > min(H, W):
            raise ValueError(f"Expected `patch` of infidelity to be at most {min(H, W)} pixels, but got {patch}.")
        corners = [uniform((samples, 2), rng) for rng in self._generators("squares")]
        room = torch.tensor([H - patch + 1, W - patch + 1], device="cpu")
        top, left = (torch.stack(corners) * room).long().to(self.image.device).unbind(-1)

        def inside(start: Tensor, side: int) -> Tensor:
            offset = torch.arange(side, device=self.image.device) - start.unsqueeze(-1)
            return (offset >= 0) & (offset < patch)

        return (inside(top, H).unsqueeze(-1) & inside(left, W).unsqueeze(-2)).unsqueeze(2)

    def _dot_products(self, samples: int, patch: int) -> Tensor:
        taken = (self.image - self._reference()).sum(1, keepdim=True) * self._saliency()
        products: Tensor = (self._squares(samples, patch) * taken.unsqueeze(1)).flatten(2).sum(2)
        return products

    def _score_differences(self, samples: int, patch: int, output: str) -> Tensor:
        squares, reference = self._squares(samples, patch), self._reference().unsqueeze(1)
        image = self.image.unsqueeze(1)
        scores = self._scores(lambda part: torch.where(squares[:, part], reference, image), samples, output)
        return self.score(self.logits, output).unsqueeze(1) - scores

    # What the dataset has ------------------------------------------------------------------------------------------

    def _annotation(self, name: Literal["boxes", "mask"]) -> Evidence:
        if name not in self.batch:
            raise ValueError(f"Expected a dataset with {name}, which a metric needs, but this one has none.")
        return self.batch[name]


_PROBES: dict[str, Probe] = {
    "original": lambda probes: probes.score(probes.logits),
    "masked": lambda probes: probes.score(probes.classifier(probes.masked_image)),
    "masked_image": Probes._masked_image,
    "deleted": Probes._deleted,
    "held_out": Probes._held_out,
    "saliency": lambda probes: probes.explanation.saliency,
    "predicted": lambda probes: probes.predicted,
    "target": lambda probes: probes.batch["target"],
    "insertion_curve": lambda probes, **options: probes._area_curve("in", **options),
    "deletion_curve": lambda probes, **options: probes._area_curve("out", **options),
    "aopc_curve": Probes._aopc_curve,
    "road_most_curve": lambda probes, **options: probes._road_curve(1, **options),
    "road_least_curve": lambda probes, **options: probes._road_curve(-1, **options),
    "selectivity_curve": Probes._selectivity_curve,
    "masked_saliency": Probes._masked_saliency,
    "perturbed_saliency": Probes._perturbed_saliency,
    "input_norm": Probes._input_norm,
    "dot_products": Probes._dot_products,
    "score_differences": Probes._score_differences,
    "boxes": lambda probes: probes._annotation("boxes"),
    "mask": lambda probes: probes._annotation("mask"),
}
