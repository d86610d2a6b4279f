"""What scores, link and checks cost on the usual path: a classifier's class logits beside the bare network's.

    python benchmarks/class_logits.py [--batch 4] [--calls 50] [--rounds 9]

Both do the same normalization of the same images, so what differs is the package's own. The tiny network takes a
millisecond, so that every microsecond around it shows; ResNet-18 is what users have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from common import Claim, Contestant, Table, arguments, finish, race
from torch import Tensor, nn
from torchvision.models import resnet18

from optcam_pl import Classifier

MEAN, STD = 0.45, 0.25


def tiny() -> nn.Sequential:
    """Two convolutions, a mean over places, a linear layer."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )


def bare(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network with its normalization, as a script writes it."""
    mean, std = (torch.full((3, 1, 1), value) for value in (MEAN, STD))

    def call(image: Tensor) -> Tensor:
        logits: Tensor = network((image - mean.to(image)) / std.to(image))
        return logits

    return call


def repeated(call: Callable[[Tensor], Tensor], image: Tensor, count: int) -> Callable[[], None]:
    """The call `count` times, without a gradient."""

    def calls() -> None:
        with torch.no_grad():
            for _ in range(count):
                call(image)

    return calls


def measure(name: str, network: nn.Module, size: int, calls: int, bound: float, options: Any) -> Table:
    """Logits and probabilities of one network."""
    network = network.eval().to(options.device)
    classifier = Classifier(network, mean=MEAN, std=STD, input_size=size).to(options.device)
    image = torch.rand(options.batch, 3, size, size, device=options.device)
    plain = bare(network)
    sides = {
        "bare network": plain,
        "classifier, logits": classifier,
        "bare network, softmax": lambda x: plain(x).softmax(1),
        "classifier, probabilities": classifier.probabilities,
    }
    roles = {"bare network": "limit"}
    contestants = [
        Contestant(side, repeated(call, image, calls), roles.get(side, "ours"), calls) for side, call in sides.items()
    ]
    table = race(f"{name}, {options.batch} images of {size} x {size}", "a call", contestants, options.rounds)
    table.shows += [
        Claim("classifier, logits", "bare network", bound),
        Claim("classifier, probabilities", "bare network, softmax", bound),
    ]
    return table


def main() -> None:
    options = arguments(__doc__, batch=4, calls=50, rounds=9)
    tables = [
        measure("a tiny network", tiny(), 64, options.calls, 1.25, options),
        measure("ResNet-18", resnet18(weights=None), 224, max(1, options.calls // 25), 1.03, options),
    ]
    finish("class_logits", tables, options)


if __name__ == "__main__":
    main()
