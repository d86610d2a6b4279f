"""Opti-CAM's loop beside the bare passes, a loop like the authors' program's, and bnnr's Opti-CAM.

    python benchmarks/opticam.py [--networks demo/efficientnet_lite0 torchvision/resnet50 torchvision/vgg16_bn
        timm/vit_base_patch16_224] [--batch 8] [--iterations 4]

All do the same number of iterations on the same images. The limit is what cannot be left out: a forward pass and a
backward pass to the image for each iteration, and a forward pass before the first and after the last; of the network as
it is (for "Opti-CAM, plain") and with folded batch norms and channels last (for "Opti-CAM", which is `speed="folded"`).
"auto" is the fastest that `speed` has, and "bfloat16" its `weights_dtype`, which needs a processor that has this type.
The loop like the authors' is written from the paper: one batch of images, Adam on the channels' weights, a backward
pass that also makes the gradients of the network's own parameters, as in a network that nobody has frozen. It runs
twice: here, and in a process of its own with the C library's habits, because `keep_freed_memory` holds for a whole
process. Then the growth with the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from common import (
    Claim,
    Contestant,
    Table,
    apart,
    arguments,
    at_speed,
    classifier_of,
    finish,
    folded,
    passes,
    photographs,
    race,
    unfrozen,
)
from torch import Tensor, nn

from optcam_pl import OptiCAM

try:
    from bnnr.xai import OptiCAMExplainer as Bnnr
except ImportError:
    Bnnr = None


def authors_style(network: nn.Module, layer: nn.Module, image: Tensor, target: Tensor, iterations: int) -> Tensor:
    """Maps (B,1,H,W): the paper's equations, as directly as they can be written."""
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _module, _args, output: kept.append(output.detach()))
    network(image)
    handle.remove()
    A = kept[0]
    w = torch.zeros(*A.shape[:2], 1, 1, device=image.device, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=0.1)
    rows = torch.arange(len(image), device=image.device)

    def saliency() -> Tensor:
        combined = (torch.softmax(w, 1) * A).sum(1, keepdim=True)
        full = F.interpolate(combined, size=image.shape[2:], mode="bilinear", align_corners=False)
        low, high = full.amin((2, 3), keepdim=True), full.amax((2, 3), keepdim=True)
        return (full - low) / (high - low)

    before = network(image)[rows, target].detach()
    previous = None
    for _ in range(iterations):
        optimizer.zero_grad()
        loss = (before - network(image * saliency())[rows, target]).sum()
        loss.backward()
        optimizer.step()
        if previous is not None and abs(previous - float(loss)) < 1e-10:
            break
        previous = float(loss)
    return saliency().detach()


def climb_passes(network: Callable[[Tensor], Tensor], image: Tensor, iterations: int) -> Callable[[], None]:
    """The passes of a climb: one forward for the features, one with a gradient an iteration, one for the last map."""
    ends, steps = passes(network, image, 2, backward=False), passes(network, image, iterations)
    return lambda: (ends(), steps())[1]


def alone(options: Any, name: str) -> Callable[[], Any]:
    """The authors' style in a process of its own."""
    classifier = classifier_of(name, options)
    image = photographs(options, classifier, options.batch)
    target, network = classifier(image).argmax(1), unfrozen(classifier)
    layer = network.layer(classifier.target_layers[0])
    return partial(authors_style, network, layer, image, target, options.iterations)


def measure(name: str, options: Any) -> Table:
    """The race of one network."""
    classifier = classifier_of(name, options)
    image = photographs(options, classifier, options.batch)
    target = classifier(image).argmax(1)
    n, network = options.iterations, unfrozen(classifier)
    layer = network.layer(classifier.target_layers[0])
    last = image.contiguous(memory_format=torch.channels_last)
    explainer, fast = OptiCAM(max_iter=n, tol=0), at_speed(classifier, "folded")
    auto, half = at_speed(classifier, "auto"), at_speed(classifier, "auto", weights_dtype="bfloat16")
    contestants = [
        Contestant("bare passes", climb_passes(classifier, image, n), "limit"),
        Contestant("bare passes, folded, channels last", climb_passes(folded(classifier), last, n), "limit"),
        Contestant("Opti-CAM, plain", lambda: explainer(classifier, image, target)),
        Contestant("Opti-CAM", lambda: explainer(fast, image, target)),
        Contestant("Opti-CAM, auto", lambda: explainer(auto, image, target)),
        Contestant("Opti-CAM, auto, bfloat16", lambda: explainer(half, image, target)),
        Contestant("authors' style", lambda: authors_style(network, layer, image, target, n), "peer"),
    ]
    if Bnnr is not None:
        peer = Bnnr(n_iters=n)
        call = partial(peer.explain, classifier, image, target, [classifier.layer(classifier.target_layers[0])])
        contestants.append(Contestant("bnnr", call, "peer"))
    title = f"{classifier.name}, {options.batch} images a batch, {n} iterations"
    with apart(alone, options, name) as ask:
        contestants.append(Contestant("authors' style, C library's own habits", ask, "peer"))
        contestants = [Contestant(c.name, c.call, c.role, n * options.batch) for c in contestants]
        return race(title, "an image and iteration", contestants, options.rounds)


def growth(name: str, options: Any) -> Table:
    """Time an image and iteration for several batch sizes."""
    classifier, n = at_speed(classifier_of(name, options), "folded"), options.iterations
    explainer = OptiCAM(max_iter=n, tol=0)
    contestants = []
    for batch in options.batches:
        image = photographs(options, classifier, batch)
        contestants.append(
            Contestant(f"batch {batch}", lambda image=image: explainer(classifier, image, 0), work=n * batch)
        )
    return race(f"{classifier.name}, growth with the batch", "an image and iteration", contestants, options.rounds)


def main() -> None:
    networks = ["demo/efficientnet_lite0", "torchvision/resnet50"]
    options = arguments(__doc__, networks=networks, batch=4, batches=[1, 4, 16], iterations=4, rounds=5)
    tables = [measure(name, options) for name in options.networks]
    for table in tables:
        peer, half = "authors' style, C library's own habits", "Opti-CAM, auto, bfloat16"
        table.shows.append(Claim(peer, half, 3.0, at_most=False))
        table.shows.append(Claim("Opti-CAM, plain", "bare passes", 1.08))
        table.shows.append(Claim("Opti-CAM", "bare passes, folded, channels last", 1.08))
    finish("opticam", [*tables, growth(options.networks[0], options)], options)


if __name__ == "__main__":
    main()
