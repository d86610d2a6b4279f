"""What is measured with the network for a batch of explanations: the evidence that the metrics ask for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor

from optcam_pl.classifier import Classifier
from optcam_pl.data import Batch
from optcam_pl.explainers.base import Explainer, Explanation
from optcam_pl.explainers.chunks import Chunks
from optcam_pl.metrics.functional import (
    imputed_images,
    patch_rank,
    perturbed_images,
    pixel_rank,
    road_counts,
    step_counts,
)
from optcam_pl.saliency import Baseline, baseline_image, mask_image

Needs: TypeAlias = dict[str, dict[str, Any]]
"""Evidence by name, each with the settings that it is measured with."""
Evidence: TypeAlias = "Tensor | list[Tensor]"


def merge_needs(named: Iterable[tuple[str, Mapping[str, Mapping[str, Any]]]]) -> Needs:
    """What several metrics need, together.

    Args:
        named: (the metric's name, what it `needs`).

    Raises:
        ValueError: an evidence that nothing measures, or two metrics want it with different settings.

    >>> merge_needs([("deletion", {"deletion_curve": {"steps": 8}}), ("average_drop", {"original": {}, "masked": {}})])
    {'deletion_curve': {'steps': 8}, 'original': {}, 'masked': {}}
    """
    merged: Needs = {}
    first: dict[str, str] = {}
    for metric, needs in named:
        for name, options in needs.items():
            if name not in _PROBES:
                raise ValueError(f"Metric {metric!r} needs {name!r}, which no probe measures.")
            if name in merged and merged[name] != dict(options):
                raise ValueError(
                    f"Expected metrics to agree on how {name!r} is measured, but {first[name]!r} wants {merged[name]} "
                    f"and {metric!r} wants {dict(options)}: measure them in two runs."
                )
            merged[name] = dict(options)
            first.setdefault(name, metric)
    return merged


class Probes:
    """Quantities by name, each measured when it is first asked for and at most once.

    No probe of an image depends on the other images of its batch: what is random is drawn from `seed` and the image's
    id.

    Args:
        classifier: the network.
        explainer: where a probe wants maps of other images (masked or perturbed ones).
        batch: B images, with boxes and masks where the dataset has them.
        logits: (B,C) the network's answer to them, which the caller has anyway.
        explanation: what is measured.
        chunk_size: images in one pass of the network, where a probe needs many.
        seed: of perturbations.
    """

    def __init__(
        self,
        classifier: Classifier,
        explainer: Explainer,
        batch: Batch,
        logits: Tensor,
        explanation: Explanation,
        *,
        chunk_size: int = 64,
        seed: int = 0,
    ) -> None:
        self.classifier, self.explainer, self.batch = classifier, explainer, batch
        self.image, self.logits, self.explanation = batch["image"], logits, explanation
        self.chunk_size, self.seed = chunk_size, seed
        self._found: dict[str, Evidence] = {}

    @property
    def baseline(self) -> Baseline:
        """What stands where the map is 0, the same one that the explainer masks with."""
        return self.explainer.baseline

    def evidence(self, needs: Mapping[str, Mapping[str, Any]]) -> dict[str, Evidence]:
        """The named quantities, on the image's device."""
        return {name: self._get(name, **options) for name, options in needs.items()}

    def only(self, chosen: list[int]) -> Probes:
        """The probes of some of the images, by position; p, o and the masked images are those of the whole batch."""
        if len(chosen) == len(self.image):
            return self
        explanation = self.explanation
        part = Probes(
            self.classifier,
            self.explainer,
            cast(Batch, {key: _at(value, chosen) for key, value in self.batch.items()}),
            self.logits[chosen],
            replace(
                explanation,
                saliency=explanation.saliency[chosen],
                target=explanation.target[chosen],
                degenerate=explanation.degenerate[chosen],
                reasons=tuple(explanation.reasons[i] for i in chosen) if explanation.reasons else (),
            ),
            chunk_size=self.chunk_size,
            seed=self.seed,
        )
        part._found = {name: self._tensor(name)[chosen] for name in ("original", "masked", "masked_image")}
        return part

    def _get(self, name: str, **options: Any) -> Evidence:
        if name not in self._found:
            self._found[name] = _PROBES[name](self, **options)
        return self._found[name]

    # One pass ------------------------------------------------------------------------------------------------------

    @property
    def original(self) -> Tensor:
        """(B,) p, the probability of the explained class for the image."""
        return self._tensor("original")

    @property
    def masked(self) -> Tensor:
        """(B,) o, the same for the image masked by its map."""
        return self._tensor("masked")

    @property
    def masked_image(self) -> Tensor:
        """(B,3,H,W) ``x . s``."""
        return self._tensor("masked_image")

    def _tensor(self, name: str) -> Tensor:
        found = self._get(name)
        assert isinstance(found, Tensor)
        return found

    def _saliency(self) -> Tensor:
        return self.explanation.saliency.to(self.image.dtype)

    def _masked_image(self) -> Tensor:
        return self._mask(self._saliency())

    def _mask(self, saliency: Tensor) -> Tensor:
        return mask_image(self.image, saliency, None if self.baseline == "black" else self._reference())

    def _deleted(self) -> Tensor:
        return self._score(self.classifier(self._mask(1 - self._saliency())))

    def _score(self, logits: Tensor, output: str = "probability", target: Tensor | None = None) -> Tensor:
        """(B,C) -> (B,): in float32 at least, whatever precision the network runs in."""
        wide = logits if logits.dtype == torch.float64 else logits.float()
        values = wide.softmax(1) if output == "probability" else wide
        return values.gather(1, (self.explanation.target if target is None else target).unsqueeze(1)).squeeze(1)

    def _reference(self) -> Tensor:
        return baseline_image(self.image, self.baseline, self.classifier.mean)

    # Many passes ---------------------------------------------------------------------------------------------------

    def _scores(
        self, images: Callable[[slice], Tensor], steps: int, output: str, target: Tensor | None = None
    ) -> Tensor:
        """(B,S) class scores of S variants of each image; `images` gives those of a slice of the steps, (B,s,3,H,W)."""
        B = len(self.image)
        classes = self.explanation.target if target is None else target

        def step(part: slice) -> Tensor:
            variants = images(part)
            count = variants.shape[1]
            logits = self.classifier(variants.flatten(0, 1))
            return self._score(logits, output, classes.repeat_interleave(count)).view(B, count)

        return Chunks(self.chunk_size, B).cat(step, steps)

    def _curve(self, rank: Tensor, counts: Tensor, before: Tensor, after: Tensor, output: str, of: Tensor) -> Tensor:
        """(B,T) scores of the images after each count of replacements; the untouched photograph is not run again."""
        known = [self._score(self.logits, output, of).unsqueeze(1)]
        first, last = before is self.image, after is self.image
        todo = counts.to(self.image.device)[int(first) : len(counts) - int(last)]
        measured = self._scores(lambda part: perturbed_images(before, after, rank, todo[part]), len(todo), output, of)
        return torch.cat([*known * first, measured, *known * last], dim=1)

    def _area_curve(self, kind: Literal["in", "out"], steps: int, patch: int, output: str, target: str) -> Tensor:
        saliency = self.explanation.saliency
        rank = pixel_rank(saliency) if patch == 1 else patch_rank(saliency, patch)
        counts = step_counts(int(rank[0].max()) + 1, steps)
        of = self.logits.argmax(1) if target == "predicted" else self.explanation.target
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
        counts = torch.arange(regions + 1)
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
        width = radius * self.classifier.std.view(1, 3, 1, 1).to(self.image)
        noise = [torch.rand((samples, *self.image.shape[1:]), generator=rng) for rng in self._generators("noise")]
        maps = []
        for sample in range(samples):
            shift = torch.stack([field[sample] for field in noise]).to(self.image)
            maps.append(self._explain((self.image + width * (2 * shift - 1)).clamp(0, 1)))
        return torch.stack(maps, dim=1)

    def _generators(self, purpose: str) -> list[torch.Generator]:
        """One an image, from its id: the same in any batch, on any machine."""
        texts = (f"{purpose}/{self.seed}/{image_id}" for image_id in self.batch["id"])
        seeds = (hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:7] for text in texts)
        return [torch.Generator().manual_seed(int.from_bytes(seed, "big")) for seed in seeds]

    def _input_norm(self) -> Tensor:
        mean, std = (part.view(1, 3, 1, 1).to(self.image) for part in (self.classifier.mean, self.classifier.std))
        norm: Tensor = torch.linalg.vector_norm(((self.image - mean) / std).float(), dim=(1, 2, 3))
        return norm

    # Infidelity ----------------------------------------------------------------------------------------------------

    def _squares(self, samples: int, patch: int) -> Tensor:
        """(B,S,1,H,W) bool: a random square of each image and sample, wholly inside."""
        H, W = self.image.shape[2:]
        if patch > min(H, W):
            raise ValueError(f"Expected `patch` of infidelity to be at most {min(H, W)} pixels, but got {patch}.")
        corners = [torch.rand((samples, 2), generator=rng) for rng in self._generators("squares")]
        room = torch.tensor([H - patch + 1, W - patch + 1])
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
        return self._score(self.logits, output).unsqueeze(1) - scores

    # What the dataset has ------------------------------------------------------------------------------------------

    def _annotation(self, name: Literal["boxes", "mask"]) -> Evidence:
        if name not in self.batch:
            raise ValueError(f"Expected a dataset with {name}, which a metric needs, but this one has none.")
        return self.batch[name]


def _at(value: Any, chosen: list[int]) -> Any:
    return value[chosen] if isinstance(value, Tensor) else [value[i] for i in chosen]


_PROBES: dict[str, Callable[..., Evidence]] = {
    "original": lambda probes: probes._score(probes.logits),
    "masked": lambda probes: probes._score(probes.classifier(probes.masked_image)),
    "masked_image": Probes._masked_image,
    "deleted": Probes._deleted,
    "saliency": lambda probes: probes.explanation.saliency,
    "predicted": lambda probes: probes.logits.argmax(1),
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
