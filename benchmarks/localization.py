"""The localization metrics of 224 x 224 maps beside a forward pass of the network, and beside a loop over regions.

    python benchmarks/localization.py [--images 16]

The metrics need no network: what a user pays for them is their time beside that of the pass. The peer finds the largest
component's box by scikit-image's `regionprops`, one image at a time.
"""

from __future__ import annotations

import numpy as np
import torch
from common import Claim, Contestant, arguments, classifier_of, finish, passes, photographs, race
from skimage.measure import label, regionprops
from torch import Tensor

from optcam_pl import GradCAM
from optcam_pl.metrics import METRICS, ImageMetric
from optcam_pl.metrics.functional.localization import localization_error


def by_regions(saliency: Tensor, boxes: list[Tensor]) -> list[float]:
    """Localization error as a reader of the paper would write it."""
    errors = []
    for s, wanted in zip(saliency[:, 0].numpy(), boxes, strict=True):
        region = max(regionprops(label(s > s.mean(), connectivity=2)), key=lambda found: found.area)
        y0, x0, y1, x1 = region.bbox
        ious = []
        for left, top, right, bottom in wanted.tolist():
            inter = max(0.0, min(x1, right) - max(x0, left)) * max(0.0, min(y1, bottom) - max(y0, top))
            ious.append(inter / ((x1 - x0) * (y1 - y0) + (right - left) * (bottom - top) - inter))
        errors.append(100.0 * (max(ious) < 0.5))
    return errors


def main() -> None:
    options = arguments(__doc__, network="demo/efficientnet_lite0", images=16, rounds=7)
    classifier = classifier_of(options.network, options)
    image, n = photographs(options, classifier, options.images), options.images
    explanation = GradCAM()(classifier, image)
    saliency = explanation.saliency.cpu()
    corners = torch.from_numpy(np.random.default_rng(0).uniform(0, 112, (n, 2, 2))).float()
    boxes = [torch.cat([pair, pair + 100], 1) for pair in corners]
    evidence = {"saliency": saliency, "boxes": boxes, "original": torch.full((n,), 0.5)}
    evidence |= {"predicted": explanation.target.cpu(), "target": explanation.target.cpu()}
    contestants = [
        Contestant("forward pass", passes(classifier, image, 1, backward=False), "limit", n),
        Contestant("localization error", lambda: localization_error(saliency, boxes), "ours", n),
        Contestant("localization error by regionprops", lambda: by_regions(saliency, boxes), "peer", n),
    ]
    for kind in METRICS.values():
        metric: ImageMetric = kind()
        needed = {name: evidence[name] for name in metric.evidence() if name in evidence}
        if "boxes" in needed and len(needed) == len(metric.evidence()):
            call = lambda metric=metric, needed=needed: metric.update(**needed)  # noqa: E731
            contestants.append(Contestant(type(metric).__name__, call, "ours", n))
    table = race(f"{n} maps of 224 x 224 with two boxes each", "an image", contestants, options.rounds)
    table.shows.append(Claim("localization error", "forward pass", 0.2))
    finish("localization", [table], options)


if __name__ == "__main__":
    main()
