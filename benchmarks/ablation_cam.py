"""Ablation-CAM of one image: seconds and map beside pytorch-grad-cam's.

    python benchmarks/ablation_cam.py [--networks demo/efficientnet_lite0 torchvision/resnet50]

Needs the extras `demo` and `peers`. The peer has its default batch size of 32 and runs once, as it takes minutes. The
limit is the upper part of the network, run once for every channel.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from common import Claim, Contestant, Table, arguments, at_speed, classifier_of, finish, photographs, race
from pytorch_grad_cam import AblationCAM as Peer
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor

from optcam_pl import Classifier
from optcam_pl.explainers import AblationCAM
from optcam_pl.explainers.upper_part import UpperPart

CORRELATION, CHUNK = 0.999, 64


def upper_passes(classifier: Classifier, image: Tensor) -> None:
    """One whole pass, and as many of the upper part as there are channels."""
    upper = UpperPart(classifier, classifier.target_layers[0], image)
    copies = upper.activation.repeat(CHUNK, *[1] * (upper.activation.ndim - 1))
    for _ in range(-(-upper.activation.shape[1] // CHUNK)):
        upper(copies)


def measure(name: str, options: Any) -> Table:
    """The race of one network."""
    classifier = classifier_of(name, options)
    image = photographs(options, classifier, 1)
    target = int(classifier(image).argmax())
    layer = classifier.layer(classifier.target_layers[0])
    maps: dict[str, Tensor] = {}

    def ours(network: Classifier) -> None:
        maps["ours"] = AblationCAM(chunk_size=CHUNK)(network, image, target).saliency[0, 0].cpu()

    def peers() -> None:
        # The classifier itself is the peer's model: mean and std are inside it in both cases.
        with Peer(model=classifier, target_layers=[layer]) as cam:
            found = cam(input_tensor=image, targets=[ClassifierOutputTarget(target)])
            maps["peer"] = torch.from_numpy(found[0])

    fast = at_speed(classifier, "auto")
    contestants = [
        Contestant("upper passes", lambda: upper_passes(classifier, image), "limit"),
        Contestant("upper passes, auto", lambda: upper_passes(fast, image), "limit"),
        Contestant("Ablation-CAM, plain", lambda: ours(classifier)),
        Contestant("Ablation-CAM, auto", lambda: ours(fast)),
        Contestant("pytorch-grad-cam", peers, "peer", rounds=1),
    ]
    table = race(f"{classifier.name}, one image", "an image", contestants, options.rounds)
    correlation = float(torch.corrcoef(torch.stack([maps["ours"].flatten(), maps["peer"].flatten()]).double())[0, 1])
    assert correlation >= CORRELATION, f"The maps correlate by {correlation:.6f}."
    table.values["correlation of the two maps"] = round(correlation, 6)
    table.shows.append(Claim("pytorch-grad-cam", "Ablation-CAM, plain", 200.0, at_most=False))
    return table


def main() -> None:
    options = arguments(__doc__, networks=["demo/efficientnet_lite0"], rounds=5)
    warnings.simplefilter("ignore")
    finish("ablation_cam", [measure(name, options) for name in options.networks], options)


if __name__ == "__main__":
    main()
