"""RISE and extremal perturbation beside the bare passes of their masked images.

    python benchmarks/masks.py [--network demo/efficientnet_lite0] [--num-masks 128] [--max-iter 6]

RISE needs a forward pass for each mask, extremal perturbation a forward and a backward pass for each step. The numbers
of masks and steps are small, because the time for each does not depend on them. The peer is a RISE written as its paper
describes it: the masks are made at once by upsampling and cropping, and the passes have the same number of images. On a
GPU the limit is the folded network in bfloat16, its passes replayed as a CUDA graph.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from common import (
    GRAPHED,
    Claim,
    Contestant,
    Table,
    arguments,
    at_speed,
    classifier_of,
    finish,
    folded,
    graphed,
    on_gpu,
    passes,
    photographs,
    race,
)
from torch import Tensor

from optcam_pl import Classifier
from optcam_pl.explainers import RISE, ExtremalPerturbation

CELLS = 7


def written_down(classifier: Classifier, image: Tensor, target: int, n: int, chunk: int) -> Tensor:
    """RISE as in its paper, (H,W)."""
    H, W = image.shape[2:]
    cell = math.ceil(H / CELLS), math.ceil(W / CELLS)
    grids = (torch.rand(n, 1, CELLS, CELLS) < 0.5).float().to(image)
    large = F.interpolate(grids, ((CELLS + 1) * cell[0], (CELLS + 1) * cell[1]), mode="bilinear", align_corners=False)
    masks = torch.empty(n, 1, H, W, device=image.device)
    for i, (y, x) in enumerate(zip(torch.randint(cell[0], (n,)), torch.randint(cell[1], (n,)), strict=True)):
        masks[i] = large[i, :, y : y + H, x : x + W]
    with torch.no_grad():
        p = torch.cat([classifier(image * part).softmax(1)[:, target] for part in masks.split(chunk)])
    return (p @ masks.flatten(1)).view(H, W) / (n * 0.5)


def rise(classifier: Classifier, options: Any) -> Table:
    """The race of RISE."""
    image, n, chunk = photographs(options, classifier, 1), options.num_masks, options.chunk
    many, target, count = image.repeat(chunk, 1, 1, 1), int(classifier(image).argmax()), n // chunk
    last, ours = many.contiguous(memory_format=torch.channels_last), RISE(num_masks=n, chunk_size=chunk)
    fast = at_speed(classifier, "folded")
    contestants = [
        Contestant("bare passes", passes(classifier, many, count, backward=False), "limit", n),
        Contestant("bare passes, folded, channels last", passes(folded(classifier), last, count, False), "limit", n),
        Contestant("RISE, plain", lambda: ours(classifier, image, target), "ours", n),
        Contestant("RISE", lambda: ours(fast, image, target), "ours", n),
        Contestant(
            "RISE as its paper writes it",
            lambda: written_down(classifier, image, target, n, chunk),
            *("peer", n, 2 if on_gpu(options) else 0),
        ),
    ]
    claims = [Claim("RISE, plain", "bare passes", 1.08), Claim("RISE", "bare passes, folded, channels last", 1.08)]
    if on_gpu(options):
        half = at_speed(classifier, "auto", weights_dtype="bfloat16")
        contestants.insert(2, Contestant(GRAPHED, graphed(classifier, many, count, backward=False), "limit", n))
        contestants.append(Contestant("RISE, auto, bfloat16", lambda: ours(half, image, target), "ours", n))
        claims = [Claim("RISE, auto, bfloat16", GRAPHED, 1.08)]
    table = race(f"RISE, {classifier.name}, {n} masks, {chunk} a pass", "a mask", contestants, options.rounds)
    table.shows += claims
    return table


def extremal(classifier: Classifier, options: Any) -> Table:
    """The race of extremal perturbation."""
    n, image = options.max_iter, photographs(options, classifier, 4)
    last, ours = image.contiguous(memory_format=torch.channels_last), ExtremalPerturbation(max_iter=n)
    work = n * len(image)
    fast = at_speed(classifier, "folded")
    contestants = [
        Contestant("bare passes", passes(classifier, image, n), "limit", work),
        Contestant("bare passes, folded, channels last", passes(folded(classifier), last, n), "limit", work),
        Contestant("extremal perturbation, plain", lambda: ours(classifier, image, 0), "ours", work),
        Contestant("extremal perturbation", lambda: ours(fast, image, 0), "ours", work),
    ]
    title = f"Extremal perturbation, {classifier.name}, {len(image)} images a batch, {n} steps"
    return race(title, "an image and step", contestants, options.rounds)


def main() -> None:
    options = arguments(
        __doc__, network="demo/efficientnet_lite0", num_masks=128, chunk=32, max_iter=6, rounds=5,
        parts=["rise", "extremal"],
    )  # fmt: skip
    classifier = classifier_of(options.network, options)
    tables = [rise(classifier, options)]
    if "extremal" in options.parts:
        tables.append(extremal(classifier, options))
    finish("masks", tables, options)


if __name__ == "__main__":
    main()
