"""Opti-CAM's loop beside the bare passes, a loop like the authors' program's, and bnnr's Opti-CAM.

    python benchmarks/opticam.py [--networks demo/efficientnet_lite0 torchvision/resnet50 torchvision/vgg16_bn
        timm/vit_base_patch16_224] [--batch 8 64] [--iterations 4]

All do the same number of iterations on the same images. The limit is what cannot be left out: a forward pass and a
backward pass to the image for each iteration, and a forward pass before the first and after the last; of the network as
it is (for "Opti-CAM, plain") and with folded batch norms and channels last (for "Opti-CAM", which is `speed="folded"`).
"auto" is the fastest that `speed` has, and "bfloat16" its `weights_dtype`, which needs a processor that has this type.
The loop like the authors' is written from the paper: one batch of images, Adam on the channels' weights, a backward
pass that also makes the gradients of the network's own parameters, as in a network that nobody has frozen. It runs
twice: here, and in a process of its own with the C library's habits, because `keep_freed_memory` holds for a whole
process. Then the growth with the batch.

On a GPU the limit is the folded network in bfloat16 whose passes are replayed as a CUDA graph, and the paper's quality
by `preset="fast"` is timed, too.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from common import (
    GRAPHED,
    Claim,
    Contestant,
    Table,
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
    unfrozen,
)
from torch import Tensor, nn

from optcam_pl import Classifier, OptiCAM

try:
    from bnnr.xai import OptiCAMExplainer as Bnnr
except ImportError:
    Bnnr = None

HALF, PEER = "Opti-CAM, auto, bfloat16", "authors' style, C library's own habits"
SLOW = ("bare passes, folded, channels last", "Opti-CAM", "Opti-CAM, plain")
CPU_CLAIMS = [
    Claim(PEER, HALF, 3.0, at_most=False),
    Claim("Opti-CAM, plain", "bare passes", 1.08),
    Claim("Opti-CAM", "bare passes, folded, channels last", 1.08),
]


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


def alone(options: Any, name: str, batch: int) -> Callable[[], Any]:
    """The authors' style in a process of its own."""
    classifier = classifier_of(name, options)
    image = photographs(options, classifier, batch)
    target, network = classifier(image).argmax(1), unfrozen(classifier)
    layer = network.layer(classifier.target_layers[0])
    return partial(authors_style, network, layer, image, target, options.iterations)


def measure(name: str, batch: int, options: Any) -> Table:
    """The race of one network."""
    classifier = classifier_of(name, options)
    image = photographs(options, classifier, batch)
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
    if on_gpu(options):  # the slow ones are known, and time on a GPU is dear
        contestants = [c for c in contestants if c.name not in SLOW]
    if Bnnr is not None:
        peer = Bnnr(n_iters=n)
        call = partial(peer.explain, classifier, image, target, [classifier.layer(classifier.target_layers[0])])
        contestants.append(Contestant("bnnr", call, "peer"))
    title = f"{classifier.name}, {batch} images a batch, {n} iterations"
    with apart(alone, options, name, batch) if not on_gpu(options) else nullcontext() as ask:
        if ask is not None:
            contestants.append(Contestant(PEER, ask, "peer"))
        else:
            contestants.insert(1, Contestant(GRAPHED, graphed_climb(classifier, image, n), "limit"))
        contestants = [Contestant(c.name, c.call, c.role, n * batch) for c in contestants]
        table = race(title, "an image and iteration", contestants, options.rounds)
    table.shows += gpu_claims(batch) if on_gpu(options) else CPU_CLAIMS
    return table


def graphed_climb(classifier: Classifier, image: Tensor, iterations: int) -> Callable[[], None]:
    """As `climb_passes`, replayed."""
    ends, steps = graphed(classifier, image, 2, backward=False), graphed(classifier, image, iterations)
    return lambda: (ends(), steps())[1]


def fast_preset(name: str, batch: int, options: Any) -> Table:
    """What one image costs at the paper's quality, on a GPU."""
    plain = classifier_of(name, options)
    image, explainer = photographs(options, plain, batch), OptiCAM(preset="fast")
    classifier, target = at_speed(plain, "auto", weights_dtype="bfloat16"), plain(image).argmax(1)
    contestants = [
        Contestant(GRAPHED, graphed_climb(plain, image, explainer.max_iter), "limit", batch),
        Contestant(HALF, lambda: explainer(classifier, image, target), work=batch),
    ]
    table = race(f"{plain.name}, {batch} images, preset fast", "an image", contestants, options.rounds)
    cost = 1000 * statistics.median(table.seconds[HALF])
    table.values["an image"] = f"{cost:.2f} ms (at most 4: {'yes' if cost <= 4 else 'NO'})"
    return table


def gpu_claims(batch: int) -> list[Claim]:
    """What the numbers of a GPU have to show."""
    return [Claim(HALF, GRAPHED, 1.10), Claim("authors' style", HALF, 8.0 if batch <= 8 else 3.5, at_most=False)]


def growth(name: str, options: Any) -> Table:
    """Time an image and iteration for several batch sizes."""
    speed = {"speed": "auto", "weights_dtype": "bfloat16"} if on_gpu(options) else {"speed": "folded"}
    classifier, n = at_speed(classifier_of(name, options), **speed), options.iterations
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
    options = arguments(__doc__, networks=networks, batch=[4], batches=[1, 4, 16], iterations=4, rounds=5)
    tables = [measure(name, batch, options) for name in options.networks for batch in options.batch]
    if on_gpu(options):
        tables += [fast_preset(name, max(options.batch), options) for name in options.networks]
    finish("opticam", [*tables, growth(options.networks[0], options)], options)


if __name__ == "__main__":
    main()
