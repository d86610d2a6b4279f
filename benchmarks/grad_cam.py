"""Grad-CAM beside what it cannot do without, one forward pass and a backward pass of the layers above, and its peers.

python benchmarks/grad_cam.py [--networks demo/efficientnet_lite0 torchvision/resnet50] [--batch 8]
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from common import Claim, Contestant, Table, arguments, at_speed, classifier_of, finish, photographs, race, unfrozen
from pytorch_grad_cam import GradCAM as Jacobs
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor
from torchcam.methods import GradCAM as TorchCam

from optcam_pl import Classifier, GradCAM


def limit(classifier: Classifier, image: Tensor, target: Tensor) -> Callable[[], None]:
    """A forward pass, and the gradient of the class's logit with respect to the layer's output."""
    layer = classifier.layer(classifier.target_layers[0])

    def call() -> None:
        kept: list[Tensor] = []

        def cut(_module: Any, _args: Any, output: Tensor) -> Tensor:
            kept.append(output.detach().requires_grad_())
            return kept[0].clone()

        handle = layer.register_forward_hook(cut)
        score = classifier(image).gather(1, target[:, None]).sum()
        handle.remove()
        torch.autograd.grad(score, kept[0])

    return call


def jacobs(classifier: Classifier, image: Tensor, target: Tensor) -> Callable[[], None]:
    """pytorch-grad-cam."""
    targets = [ClassifierOutputTarget(int(c)) for c in target]

    def call() -> None:
        with Jacobs(model=classifier, target_layers=[classifier.layer(classifier.target_layers[0])]) as cam:
            cam(input_tensor=image, targets=targets)

    return call


def torchcam(classifier: Classifier, image: Tensor, target: Tensor) -> Callable[[], None]:
    """torchcam, whose maps are not upsampled."""

    def call() -> None:
        with TorchCam(classifier, target_layer=classifier.layer(classifier.target_layers[0])) as cam:
            scores = classifier(image.detach().requires_grad_())
            cam(target.tolist(), scores)

    return call


def measure(name: str, options: Any) -> Table:
    """The race of one network."""
    classifier = classifier_of(name, options)
    image = photographs(options, classifier, options.batch)
    target, ours, network = classifier(image).argmax(1), GradCAM(), unfrozen(classifier)
    fast, n = at_speed(classifier, "folded"), len(image)
    contestants = [
        Contestant("forward and upper backward pass", limit(classifier, image, target), "limit", n),
        Contestant("the same, folded", limit(fast, image, target), "limit", n),
        Contestant("Grad-CAM, plain", lambda: ours(classifier, image, target), "ours", n),
        Contestant("Grad-CAM", lambda: ours(fast, image, target), "ours", n),
        Contestant("pytorch-grad-cam", jacobs(network, image, target), "peer", len(image)),
        Contestant("torchcam", torchcam(network, image, target), "peer", len(image)),
    ]
    table = race(f"{classifier.name}, {len(image)} images a batch", "an image", contestants, options.rounds)
    table.shows.append(Claim("Grad-CAM, plain", "forward and upper backward pass", 1.1))
    table.shows.append(Claim("Grad-CAM", "the same, folded", 1.1))
    return table


def main() -> None:
    options = arguments(__doc__, networks=["demo/efficientnet_lite0", "torchvision/resnet50"], batch=8, rounds=9)
    warnings.simplefilter("ignore")
    finish("grad_cam", [measure(name, options) for name in options.networks], options)


if __name__ == "__main__":
    main()
