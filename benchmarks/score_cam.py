"""Score-CAM beside the bare passes of its masked images, and its peers.

    python benchmarks/score_cam.py [--networks demo/efficientnet_lite0] [--layers blocks.2.1]

One pass for each channel: the default layer is one of few channels (40), so that a round takes seconds. All have the
same number of images in a pass. On a GPU the limit is the folded network in bfloat16, its passes replayed as a CUDA
graph.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
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
from pytorch_grad_cam import ScoreCAM as Jacobs
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torchcam.methods import ScoreCAM as TorchCam

from optcam_pl import ScoreCAM


def measure(name: str, layer: str, options: Any) -> Table:
    """The race of one network."""
    classifier = classifier_of(name, options, target_layer=layer)
    image = photographs(options, classifier, 1)
    target, module = int(classifier(image).argmax()), classifier.layer(layer)
    with torch.no_grad(), ScoreCAM().recording(classifier) as record:
        classifier(image)
        channels = record[layer].shape[1]
    size = options.chunk
    many = image.repeat(size, 1, 1, 1)
    count = -(-channels // size)

    def jacobs() -> None:
        with Jacobs(model=classifier, target_layers=[module]) as cam:
            cam.batch_size = size
            cam(input_tensor=image, targets=[ClassifierOutputTarget(target)])

    def torchcam() -> None:
        with torch.no_grad(), TorchCam(classifier, target_layer=module, batch_size=size) as cam:
            cam(target, classifier(image))

    last = many.contiguous(memory_format=torch.channels_last)
    ours, fast = ScoreCAM(chunk_size=size), at_speed(classifier, "folded")
    contestants = [
        Contestant("bare passes", passes(classifier, many, count, backward=False), "limit"),
        Contestant("bare passes, folded, channels last", passes(folded(classifier), last, count, False), "limit"),
        Contestant("Score-CAM, plain", lambda: ours(classifier, image, target)),
        Contestant("Score-CAM", lambda: ours(fast, image, target)),
        Contestant("pytorch-grad-cam", jacobs, "peer"),
        Contestant("torchcam", torchcam, "peer"),
    ]
    title = f"{classifier.name}, layer {layer}, {channels} channels, {size} images a pass"
    claims = [Claim("Score-CAM, plain", "bare passes", 1.1)]
    claims.append(Claim("Score-CAM", "bare passes, folded, channels last", 1.1))
    if on_gpu(options):
        half = at_speed(classifier, "auto", weights_dtype="bfloat16")
        contestants.insert(2, Contestant(GRAPHED, graphed(classifier, many, count, backward=False), "limit"))
        contestants.append(Contestant("Score-CAM, auto, bfloat16", lambda: ours(half, image, target)))
        claims = [Claim("Score-CAM, auto, bfloat16", GRAPHED, 1.08)]
    table = race(title, "an image", contestants, options.rounds)
    table.shows += claims
    return table


def main() -> None:
    options = arguments(__doc__, networks=["demo/efficientnet_lite0"], layers=["blocks.2.1"], chunk=20, rounds=5)
    warnings.simplefilter("ignore")
    pairs = zip(options.networks, options.layers, strict=True)
    finish("score_cam", [measure(name, layer, options) for name, layer in pairs], options)


if __name__ == "__main__":
    main()
