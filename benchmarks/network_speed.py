"""The frozen network at every `speed`: bare passes, and Opti-CAM on it beside the bare passes of the folded network.

    python benchmarks/network_speed.py [--networks demo/efficientnet_lite0 torchvision/resnet50] [--batch 4]
        [--iterations 30] [--speeds plain folded onednn graph compile auto] [--dtypes float32]

The limit is an independent copy: batch norms folded by torch's own function, channels last, called without anything
around it. Add `--dtypes float32 bfloat16` on a GPU, or on a CPU that has this type. On a CPU, "graph" is "folded" and
"auto" is "onednn": they are left out there; torch.compile is left out by default, because it takes its time. Below each
table: how far logits and maps are from the plain network's, how many batch norms are folded, and how long the first
pass took.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from common import (
    Claim,
    Contestant,
    Table,
    arguments,
    at_speed,
    classifier_of,
    finish,
    folded,
    passes,
    photographs,
    race,
)
from torch import Tensor

from optcam_pl import Classifier, OptiCAM


def variants(options: Any) -> list[tuple[str, dict[str, Any]]]:
    """The settings of `Classifier` to be measured, by name."""
    known = {"cpu": ["plain", "folded", "onednn"], "cuda": ["plain", "folded", "graph", "auto"]}[options.device]
    speeds = [speed for speed in options.speeds or known if speed]
    found = []
    for dtype in options.dtypes:
        for speed in speeds:
            if speed == "plain" and dtype != "float32":
                continue
            half = {} if dtype == "float32" else {"weights_dtype": dtype}
            found.append((f"{speed}{'' if dtype == 'float32' else ', ' + dtype}", {"speed": speed, **half}))
    return found


def first_pass(classifier: Classifier, image: Tensor) -> float:
    """Seconds: a capture or a compilation happens here."""
    start = time.perf_counter()
    with torch.no_grad():
        classifier(image)
    if image.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def distance(ours: Tensor, right: Tensor) -> str:
    """The largest difference, relative to the largest magnitude."""
    return f"{float((ours - right).abs().max() / right.abs().max()):.1e}"


def measure(name: str, options: Any) -> list[Table]:
    """Bare forward passes, then Opti-CAM, of one network."""
    plain = classifier_of(name, options)
    image = photographs(options, plain, options.batch)
    n, last = options.iterations, image.contiguous(memory_format=torch.channels_last)
    target, right = plain(image).argmax(1), plain(image).detach()
    limit, explainer = folded(plain), OptiCAM(max_iter=n, tol=0)
    forwards = [Contestant("bare, folded, channels last", passes(limit, last, 8, backward=False), "limit")]
    loops = [
        Contestant("bare passes", passes(plain.network, image, n), "limit"),
        Contestant("bare passes, folded, channels last", passes(limit, last, n), "limit"),
    ]
    values: dict[str, Any] = {}
    for label, settings in variants(options):
        classifier = plain if settings["speed"] == "plain" else at_speed(plain, **settings)
        seconds = first_pass(classifier, image)
        logits = classifier(image).detach()
        values[f"{label}: logits"] = f"{distance(logits, right)} from plain, first pass {seconds:.2f} s"
        if classifier.fast is not None:
            values[f"{label}: batch norms folded"] = classifier.fast.pairs
        forwards.append(Contestant(label, passes(classifier, image, 8, backward=False)))
        loops.append(Contestant(f"Opti-CAM, {label}", lambda c=classifier: explainer(c, image, target)))
    forwards = [Contestant(c.name, c.call, c.role, 8 * options.batch) for c in forwards]
    loops = [Contestant(c.name, c.call, c.role, n * options.batch) for c in loops]
    first = race(f"{plain.name}, forward passes, {options.batch} images", "an image", forwards, options.rounds)
    first.values = values
    second = race(
        f"{plain.name}, Opti-CAM, {options.batch} images, {n} iterations",
        "an image and iteration",
        loops,
        options.rounds,
    )
    second.shows.append(Claim("Opti-CAM, folded", "bare passes, folded, channels last", 1.08))
    return [first, second]


def main() -> None:
    networks = ["demo/efficientnet_lite0", "torchvision/resnet50"]
    options = arguments(__doc__, networks=networks, batch=4, iterations=30, rounds=3, speeds=[""], dtypes=["float32"])
    options.speeds = [speed for speed in options.speeds if speed]
    finish("network_speed", [table for name in options.networks for table in measure(name, options)], options)


if __name__ == "__main__":
    main()
