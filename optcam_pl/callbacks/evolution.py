"""How maps and their weights change while Opti-CAM fits them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from optcam_pl.callbacks.boards import Board
from optcam_pl.explainers import OptiCAM
from optcam_pl.figures import Picture, card, overlay, picture
from optcam_pl.tasks import BlockResult, SaliencyTask

_PICTURES = 10  # of an image: TensorBoard keeps no more unless it is told to
_LARGEST = 5  # weights of an image that are named


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
        self._weights: dict[int, Tensor] = {}
        self._entropy: list[Tensor] = []
        self._largest: list[Tensor] = []
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
        self._entropy.append(-(weights * weights.clamp(min=torch.finfo(weights.dtype).tiny).log2()).sum(1))
        self._largest.append(weights.max(1).values)
        if self._left and iteration in self._at:
            self._weights[iteration] = weights

    def pictures(self, result: BlockResult) -> Iterator[tuple[str, Picture, int]]:
        """End a block: the id, the picture and the iteration of each picture to show."""
        self._add(self._explainer.max_iter)
        weights, self._weights = self._weights, {}
        for i in range(min(self._left, len(result.batch["id"]))):
            self._left -= 1
            self._name_largest(result, i)
            yield from self._of_image(result, i, weights)

    def _add(self, last: int) -> None:
        """Add a block's curves; images that have all stopped early keep their last values."""
        if not self._entropy:
            return
        curves = torch.stack([torch.stack(self._entropy), torch.stack(self._largest)]).double().cpu()  # (2,t,B)
        self._entropy, self._largest = [], []
        rest = curves[:, -1:].expand(-1, last + 1 - curves.shape[1], -1)
        total = torch.cat([curves, rest], dim=1).sum(2)
        self._sums = total if self._sums is None else self._sums + total
        self._count += curves.shape[2]

    def _of_image(self, result: BlockResult, i: int, weights: dict[int, Tensor]) -> Iterator[tuple[str, Picture, int]]:
        """One pass of the network, for the maps of all chosen iterations."""
        image, target = result.batch["image"][i], result.explanation.target[i]
        n, classifier = len(weights), self._task.classifier
        found = self._explainer.from_weights(
            classifier,
            image.expand(n, -1, -1, -1),
            target.expand(n),
            torch.stack([of_block[i] for of_block in weights.values()]),
        )
        objective, image_id = result.explanation.objective, result.batch["id"][i]
        assert objective is not None  # OptiCAM gives it
        for saliency, iteration in zip(found.saliency, weights, strict=True):
            head = [image_id, f"map of {result.target_name(i)}"]
            head.append(f"iteration {iteration}, objective {float(objective[iteration, i]):.3f}")
            yield image_id, card([picture(image), overlay(image, saliency)], ["image", "overlay"], head), iteration

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
