"""Ablation-CAM of one image: seconds and map beside pytorch-grad-cam's, in the same process.

    python benchmarks/ablation_cam.py [--threads 1] [--networks demo/efficientnet_lite0 torchvision/resnet50]

Needs the extras `demo` and `peers`. The peer runs with its default batch size of 32 and is timed once, as it takes
minutes; ours is timed five times (median). Both get the image of a cat that scikit-image ships. Exits with 1 where ours
is less than 50 times as fast, or its map correlates with the peer's by less than 0.999.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import sys
import time
import warnings

import skimage.data
import torch
import torch.nn.functional as F
from pytorch_grad_cam import AblationCAM as Peer
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor

from optcam_pl.explainers import AblationCAM
from optcam_pl.network.classifier import Classifier

SPEED, CORRELATION = 50.0, 0.999


def photograph(classifier: Classifier) -> Tensor:
    pixels = torch.from_numpy(skimage.data.chelsea().copy()).permute(2, 0, 1).unsqueeze(0) / 255
    return F.interpolate(pixels, size=classifier.input_size, mode="bilinear", antialias=True)


def ours(classifier: Classifier, image: Tensor, repeats: int = 5) -> tuple[Tensor, float]:
    explainer, seconds = AblationCAM(), []
    for _ in range(repeats):
        start = time.perf_counter()
        explanation = explainer(classifier, image)
        seconds.append(time.perf_counter() - start)
    return explanation.saliency[0, 0], statistics.median(seconds)


def peers(classifier: Classifier, image: Tensor) -> tuple[Tensor, float]:
    target = int(classifier(image).argmax())
    layer = classifier.layer(classifier.target_layers[0])
    # The classifier itself is the peer's model: mean and std are inside it in both cases.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Peer(model=classifier, target_layers=[layer]) as cam:
            start = time.perf_counter()
            saliency = cam(input_tensor=image, targets=[ClassifierOutputTarget(target)])
            seconds = time.perf_counter() - start
    return torch.from_numpy(saliency[0]), seconds


def measure(name: str) -> dict[str, object]:
    torch.manual_seed(0)
    weights = "default" if name.startswith("demo/") else None
    classifier = Classifier(name, weights=weights)
    image = photograph(classifier)
    saliency, own_seconds = ours(classifier, image)
    peer, peer_seconds = peers(classifier, image)
    correlation = float(torch.corrcoef(torch.stack([saliency.flatten(), peer.flatten()]).double())[0, 1])
    return {
        "network": name,
        "layer": classifier.target_layers[0],
        "seconds": round(own_seconds, 4),
        "peer_seconds": round(peer_seconds, 2),
        "times_as_fast": round(peer_seconds / own_seconds, 1),
        "correlation": round(correlation, 6),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["demo/efficientnet_lite0", "torchvision/resnet50"])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"# {datetime.date.today().isoformat()}, torch {torch.__version__}, {options.threads} thread(s), "
        f"{platform.machine()}"
    )
    good = True
    for name in options.networks:
        result = measure(name)
        print(json.dumps(result), flush=True)
        good &= float(str(result["times_as_fast"])) >= SPEED and float(str(result["correlation"])) >= CORRELATION
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
