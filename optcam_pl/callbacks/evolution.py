"""How maps and their weights change while Opti-CAM fits them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from optcam_pl.callbacks.boards import Board
from optcam_pl.evaluate.block import repeated
from optcam_pl.explainers import OptiCAM
from optcam_pl.figures import Picture, card, overlay, picture
from optcam_pl.tasks import BlockResult, SaliencyTask

_PICTURES = 10  # of an image: TensorBoard keeps no more unless it is told to
_LARGEST = 5  # weights of an image that are named


class _Part:
    """What is noted of the images of one inner fit loop: a block's, or one image of it."""

    def __init__(self) -> None:
        self.entropy: list[Tensor] = []  # (b,) each
        self.largest: list[Tensor] = []
        self.weights: dict[int, Tensor] = {}  # (b,K) of the iterations to show

    @property
    def images(self) -> int:
        return len(self.largest[0])

    def curves(self, last: int) -> Tensor:
        """(2,T+1,b) entropy and largest weight; images that have all stopped early keep their last values."""
        known = torch.stack([torch.stack(self.entropy), torch.stack(self.largest)]).double().cpu()
        return torch.cat([known, known[:, -1:].expand(-1, last + 1 - known.shape[1], -1)], dim=1)


class Evolution:
    """Watches the inner fit loop of a task's `fit`: maps of the first images, entropy and largest weights of all.

    Args:
        task: the task; its explainer is watched until `close`.
        images: number of images whose maps are shown.
    """

    def __init__(self, task: SaliencyTask, images: int) -> None:
        assert isinstance(task.explainer, OptiCAM)  # as `fit` demands
        self._task, self._explainer, self._left = task, task.explainer, images
        self._at = {*iterations(task.explainer.max_iter)}
        self._parts: list[_Part] = []
        self._sums: Tensor | None = None  # (2,T+1)
        self._count = 0
        self._rows: list[str] = []
        self._before, task.explainer.watch = task.explainer.watch, self._watch

    def close(self) -> None:
        """Watch no longer."""
        self._explainer.watch = self._before

    def _watch(self, iteration: int, objective: Tensor, weights: Tensor) -> None:
        """Note what is needed of the weights (B,K) of an iteration, without waiting for the device."""
        if self._before is not None:
            self._before(iteration, objective, weights)
        if iteration == 0:  # images with inputs of their own are fitted one by one
            self._parts.append(_Part())
        part = self._parts[-1]
        part.entropy.append(-(weights * weights.clamp(min=torch.finfo(weights.dtype).tiny).log2()).sum(1))
        part.largest.append(weights.max(1).values)
        if self._left and iteration in self._at:
            part.weights[iteration] = weights

    def pictures(self, result: BlockResult) -> Iterator[tuple[str, Picture, int]]:
        """End a block: the id, the picture and the iteration of each picture to show."""
        parts, self._parts = self._parts, []
        self._add(parts)
        own = [{t: of_part[i] for t, of_part in part.weights.items()} for part in parts for i in range(part.images)]
        for i in range(min(self._left, len(own))):
            self._left -= 1
            self._name_largest(result, i)
            yield from self._of_image(result, i, own[i])

    def _add(self, parts: Sequence[_Part]) -> None:
        """Add a block's curves."""
        for part in parts:
            total = part.curves(self._explainer.max_iter).sum(2)
            self._sums = total if self._sums is None else self._sums + total
            self._count += part.images

    def _of_image(self, result: BlockResult, i: int, weights: dict[int, Tensor]) -> Iterator[tuple[str, Picture, int]]:
        """One pass of the network, for the maps of all chosen iterations; `weights` has the image's (K,) of each."""
        image, n, classifier = result.batch["image"][i], len(weights), self._task.classifier
        batch = repeated(result.batch, i, n)
        inputs = batch["inputs"][0] if batch.get("inputs") else {}
        with torch.no_grad(), classifier.inputs.bound_to(inputs), classifier.references(batch) as references:
            # Scores of references have a column for each image.
            target = result.explanation.target[i].expand(n) if references is None else torch.arange(n)
            found = self._explainer.from_weights(
                classifier, batch["image"], target.to(image.device), torch.stack([*weights.values()])
            )
        objective, image_id, shown = result.explanation.objective, result.batch["id"][i], classifier.shown(image)
        assert objective is not None  # OptiCAM gives it
        for saliency, iteration in zip(found.saliency, weights, strict=True):
            head = [image_id, f"map of {result.target_name(i)}"]
            head.append(f"iteration {iteration}, objective {float(objective[iteration, i]):.3f}")
            yield image_id, card([picture(shown), overlay(shown, saliency)], ["image", "overlay"], head), iteration

    def _name_largest(self, result: BlockResult, i: int) -> None:
        weights = result.explanation.weights
        assert weights is not None  # OptiCAM gives them
        values, channels = weights[i].topk(min(_LARGEST, weights.shape[1]))
        named = ", ".join(f"{c}: {v:.3f}" for c, v in zip(channels.tolist(), values.tolist(), strict=True))
        self._rows.append(f"| {result.batch['id'][i].replace('|', '/')} | {named} |")

    def finish(self, boards: Sequence[Board]) -> None:
        """Show the curves of the images of this process."""
        if self._sums is None:
            return
        for t, (entropy, largest) in enumerate((self._sums / self._count).T.tolist()):
            for board in boards:
                board.scalars({"fit/entropy": entropy, "fit/largest_weight": largest}, t)
        head = "| image | channels with the largest weights |\n|---|---|\n"
        for board in boards:
            board.text("largest weights", head + "\n".join(self._rows))


def iterations(last: int) -> list[int]:
    """At most ten iterations from 0 to the last, denser at the start, where a map changes most.

    >>> iterations(4), iterations(100)
    ([0, 1, 2, 3, 4], [0, 1, 2, 3, 6, 10, 18, 32, 56, 100])
    """
    steps = np.geomspace(1, last, _PICTURES - 1).round().astype(int).tolist()
    return sorted({0, *steps})
