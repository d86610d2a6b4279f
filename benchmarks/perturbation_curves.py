"""Insertion and deletion beside the bare passes over as many images, and deletion beside quantus' PixelFlipping.

    python benchmarks/perturbation_curves.py [--images 2] [--steps 32] [--chunk 32]

All have the same photographs, maps, number of steps and threads, and float32 weights, but for the one that names
bfloat16. What is above the bare passes is the making of the images. quantus makes one pass a step with all images in
it; its step has to divide the number of pixels. It runs with the network as it is in a process of its own, which is
what its users have (`keep_freed_memory` holds for a whole process), and here with the same network and with our folded
one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import quantus
import torch
from common import (
    GRAPHED,
    Claim,
    Contestant,
    apart,
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

from optcam_pl import Classifier, GradCAM
from optcam_pl.data import Batch
from optcam_pl.evaluate.probes import Probes
from optcam_pl.metrics import Deletion, Insertion


def quantus_flips(options: Any, image: Tensor, target: Tensor, maps: Tensor, network: Classifier) -> None:
    """The peer's curve."""
    peer = quantus.PixelFlipping(
        features_in_step=image[0, 0].numel() // options.steps, perturb_baseline=0.0, disable_warnings=True
    )
    given = {"x_batch": image.cpu().numpy(), "y_batch": target.cpu().numpy(), "a_batch": maps.cpu().numpy()}
    peer(model=network, **given, device=options.device, softmax=True)


def alone(options: Any) -> Callable[[], Any]:
    """The same in a process of its own."""
    warnings.simplefilter("ignore")
    classifier = classifier_of(options.network, options)
    image = photographs(options, classifier, options.images)
    with torch.no_grad():
        target, maps = classifier(image).argmax(1), GradCAM()(classifier, image).saliency
    return partial(quantus_flips, options, image, target, maps, classifier)


def main() -> None:
    options = arguments(__doc__, network="demo/efficientnet_lite0", images=2, steps=32, chunk=32, rounds=5)
    warnings.simplefilter("ignore")
    n, steps = options.images, options.steps
    classifier = classifier_of(options.network, options)
    image = photographs(options, classifier, n)
    batch = Batch(image=image, id=[str(i) for i in range(n)], index=torch.arange(n), error=[""] * n)
    with torch.no_grad():
        logits, explanation = classifier(image), GradCAM()(classifier, image)
    gpu = on_gpu(options)
    seldom = 1 if gpu else 0
    fast, half = at_speed(classifier, "folded"), at_speed(classifier, "auto", weights_dtype="bfloat16")

    def curves(network: Classifier, *metrics: Any) -> None:
        with torch.no_grad():
            probes = Probes(network, GradCAM(), batch, logits, explanation, chunk_size=options.chunk)
            for metric in metrics:
                metric.update(**probes.evidence(metric.needs()))

    flips = partial(quantus_flips, options, image, logits.argmax(1), explanation.saliency)
    many = image.repeat(-(-options.chunk // n), 1, 1, 1)[: options.chunk]
    count, work = n * steps // len(many), n * steps
    last = many.contiguous(memory_format=torch.channels_last)
    both = Insertion(steps), Deletion(steps)
    contestants = [
        Contestant("bare passes", passes(classifier, many, count, backward=False), "limit", work),
        Contestant("bare passes, folded, channels last", passes(folded(classifier), last, count, False), "limit", work),
        Contestant("insertion and deletion, plain", lambda: curves(classifier, *both), "ours", 2 * work),
        Contestant("insertion and deletion", lambda: curves(fast, *both), "ours", 2 * work),
        Contestant("deletion", lambda: curves(fast, Deletion(steps)), "ours", work),
        Contestant("deletion, auto, bfloat16", lambda: curves(half, Deletion(steps)), "ours", work),
        Contestant("quantus PixelFlipping", lambda: flips(classifier), "peer", work, rounds=seldom),
    ]
    if not gpu:
        contestants.append(Contestant("quantus PixelFlipping, our folded network", lambda: flips(fast), "peer", work))
    title = f"{classifier.name}, {n} photographs, {steps} steps, {len(many)} images a pass"
    with apart(alone, options) if not gpu else nullcontext() as ask:
        if ask is not None:
            contestants.append(Contestant("quantus PixelFlipping, C library's own habits", ask, "peer", work))
        else:
            limit, name = graphed(classifier, many, count, backward=False), "insertion and deletion, auto, bfloat16"
            contestants.insert(2, Contestant(GRAPHED, limit, "limit", work))
            contestants.append(Contestant(name, lambda: curves(half, *both), "ours", 2 * work))
        table = race(title, "an image and step", contestants, options.rounds)
    if gpu:
        table.shows.append(Claim("insertion and deletion, auto, bfloat16", GRAPHED, 1.08))
    else:
        table.shows.append(Claim("insertion and deletion, plain", "bare passes", 1.08))
        table.shows.append(Claim("insertion and deletion", "bare passes, folded, channels last", 1.08))
        peer = "quantus PixelFlipping, C library's own habits"
        table.shows.append(Claim(peer, "deletion, auto, bfloat16", 5.0, at_most=False))
    finish("perturbation_curves", [table], options)


if __name__ == "__main__":
    main()
