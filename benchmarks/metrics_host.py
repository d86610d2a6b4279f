"""What the host does for each image beside the network: metrics, probes, rows and files, for images of 224 x 224.

    python benchmarks/metrics_host.py --threads 1 [--images 4]

The evidence of the metrics is made up, and the probes and files belong to a network that costs nothing (the mean of
each color), so that what is measured is our own. The maps are smooth, 7 x 7 cells upsampled, as most methods make them;
boxes at 100 thresholds are also found in maps of noise. The peer labels each thresholded map with scipy. A forward pass
of a network stands above each table for comparison. Probes are tensors' work, which a GPU does where there is one;
everything else is done by the processor.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Claim, Contestant, arguments, classifier_of, finish, passes, race
from scipy import ndimage
from torch import Tensor, nn

from optcam_pl import Classifier, FakeCAM
from optcam_pl.callbacks import MapWriter
from optcam_pl.callbacks.inspection import panel
from optcam_pl.data import Batch
from optcam_pl.evaluate.block import evaluate_block
from optcam_pl.evaluate.probes import Probes
from optcam_pl.explainers import Explanation
from optcam_pl.maps import normalize, upsample
from optcam_pl.metrics import METRICS, BoxAccuracy, HeldOutDrop, ImageMetric
from optcam_pl.metrics.functional import box_hits
from optcam_pl.runs.rows import RowWriter
from optcam_pl.runs.thumbnails import save_thumbnails
from optcam_pl.tasks import SaliencyTask

SIDE, CELLS, THRESHOLDS = 224, 7, 100


class Mean(nn.Module):
    """Logits (B,3): the mean colors."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """(B,3,H,W) -> (B,3)."""
        return self.features(image).mean((2, 3))


class Made(FakeCAM):
    """An explainer that costs nothing: smooth maps that are already there."""

    def __init__(self, saliency: Tensor) -> None:
        super().__init__()
        self.saliency = saliency

    def explain(self, classifier: Classifier, image: Tensor, target: Tensor) -> Explanation:
        """The same maps for all images."""
        return Explanation(self.saliency[: len(image)].to(image), target, torch.zeros_like(target, dtype=torch.bool))


def labeled(saliency: Tensor) -> list[Any]:
    """The box of the largest component at each threshold, one after the other."""
    found = []
    for scores in saliency[:, 0].double().numpy():
        for k in range(THRESHOLDS):
            labels, number = ndimage.label(scores > k / THRESHOLDS, np.ones((3, 3)))
            if number:
                largest = np.bincount(labels.ravel())[1:].argmax()
                found.append(ndimage.find_objects(labels)[largest])
    return found


def evidence(saliency: Tensor) -> dict[str, Any]:
    """Made-up evidence for all metrics."""
    n, draw = len(saliency), torch.Generator().manual_seed(0)
    corners = torch.rand(n, 2, 2, generator=draw) * SIDE / 2
    lengths = {"original": 0, "masked": 0, "deleted": 0, "held_out": 0, "input_norm": 0, "insertion_curve": 225}
    lengths |= {"deletion_curve": 225, "aopc_curve": 11, "road_most_curve": 4, "road_least_curve": 4}
    lengths |= {"selectivity_curve": 10, "dot_products": 32, "score_differences": 32}
    drawn = {name: torch.rand((n, k) if k else (n,), generator=draw) for name, k in lengths.items()}
    return {
        **drawn,
        "saliency": saliency, "masked_saliency": saliency.flip(3),
        "perturbed_saliency": saliency[:, None].repeat(1, 10, 1, 1, 1),
        "boxes": list(torch.cat([corners, corners + SIDE / 2], 2)), "mask": (saliency[:, 0] > 0.5).long(),
        "predicted": torch.arange(n), "target": torch.arange(n),
    }  # fmt: skip


def of_metrics(made_up: dict[str, Any], n: int) -> list[Contestant]:
    """What `update` of each metric takes."""
    found = []
    for kind in (*METRICS.values(), HeldOutDrop):
        metric: ImageMetric = kind()
        call = partial(metric.update, **{name: made_up[name] for name in metric.evidence()})
        found.append(Contestant(kind.__name__, call, "ours", n))
    return found


def of_boxes(saliency: dict[str, Tensor], boxes: list[Tensor]) -> list[Contestant]:
    """Boxes at all thresholds."""
    found = []
    for kind, maps in saliency.items():
        for convention in ("pixels", "wsol"):
            for contours in ("largest", "all"):
                call = partial(box_hits, maps, boxes, convention=convention, contours=contours)
                found.append(Contestant(f"{kind} maps, {convention}, {contours}", call, "ours", len(maps)))
        by_labels = partial(labeled, maps)
        found.append(Contestant(f"{kind} maps, labeled at each threshold", by_labels, "peer", len(maps)))
    return found


def of_probes(classifier: Classifier, image: Tensor, saliency: Tensor) -> list[Contestant]:
    """What the probes take, each by itself."""
    n = len(image)
    batch = Batch(image=image, id=[str(i) for i in range(n)], index=torch.arange(n), error=[""] * n)
    logits = classifier(image)
    target = logits.argmax(1)
    explanation = Explanation(saliency.to(image), target, torch.zeros_like(target, dtype=torch.bool))

    def measured(name: str, need: Any) -> None:
        with torch.no_grad():
            Probes(classifier, Made(saliency), batch, logits, explanation).evidence({name: need})

    needs: dict[str, Any] = {}
    for kind in (*METRICS.values(), HeldOutDrop):
        needs |= kind().needs()
    for name in ("saliency", "predicted", "target", "boxes", "mask"):  # are there already
        del needs[name]
    return [Contestant(name, partial(measured, name, need), "ours", n) for name, need in needs.items()]


def of_files(classifier: Classifier, image: Tensor, saliency: Tensor, folder: Path) -> list[Contestant]:
    """What a block, its rows and its files take."""
    n, explainer = len(image), Made(saliency)
    task = SaliencyTask(classifier, explainer, target="predicted")
    task.run_dir = folder
    corners = torch.rand(n, 2, 2) * SIDE / 2
    boxes = list(torch.cat([corners, corners + SIDE / 2], 2))
    batch = Batch(image=image, id=[f"ILSVRC2012_val_{i:08}.JPEG" for i in range(n)], boxes=boxes)
    result = evaluate_block(classifier, explainer, batch, "predicted", [BoxAccuracy()])
    writer = RowWriter(folder).__enter__()
    trainer: Any = None

    def files(**kinds: bool) -> Callable[[], None]:
        return lambda: MapWriter(**kinds).on_block(trainer, task, result)

    def block() -> None:
        evaluate_block(classifier, explainer, batch, "predicted", [])

    return [
        Contestant("a block without metrics", block, "ours", n),
        Contestant("rows with the 300 hits of BoxAccuracy", lambda: writer.write(result.rows), "ours", n),
        Contestant("thumbnails", lambda: save_thumbnails(folder, 0, range(n), image, saliency), "ours", n),
        Contestant("MapWriter, maps", files(maps=True, overlays=False), "ours", n),
        Contestant("MapWriter, overlays", files(maps=False, overlays=True), "ours", n),
        Contestant("panels of TensorBoard", lambda: [panel(result, i)() for i in range(n)], "ours", n),
    ]


def main() -> None:
    options = arguments(__doc__, network="demo/efficientnet_lite0", images=4, rounds=3)
    warnings.simplefilter("ignore")
    n = options.images
    large = classifier_of(options.network, options)
    draw = torch.Generator().manual_seed(0)
    smooth = normalize(upsample(torch.rand(n, 1, CELLS, CELLS, generator=draw), (SIDE, SIDE)))
    noise = torch.rand(n, 1, SIDE, SIDE, generator=draw)
    image = torch.rand(n, 3, SIDE, SIDE, generator=draw).to(options.device)
    none = Classifier(Mean(), target_layer="features", mean=(0.5,) * 3, std=(0.5,) * 3, input_size=SIDE)
    none = none.to(options.device)
    made_up = evidence(smooth)
    limit = Contestant(f"forward pass of {options.network}", passes(large, image, 1, backward=False), "limit", n)
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            f"Boxes at {THRESHOLDS} thresholds": of_boxes({"smooth": smooth, "noisy": noise}, made_up["boxes"]),
            "Metrics, from evidence that is there": of_metrics(made_up, n),
            "Probes, with a network that costs nothing": of_probes(none, image, smooth),
            "Rows, files and pictures": of_files(none, image, smooth, Path(folder)),
        }
        tables = [race(title, "an image", [limit, *each], options.rounds) for title, each in sides.items()]
    for kind, bound in (("smooth", 5.0), ("noisy", 1.0)):
        peer, ours = f"{kind} maps, labeled at each threshold", f"{kind} maps, pixels, largest"
        tables[0].shows.append(Claim(peer, ours, bound, at_most=False))
    finish("metrics_host", tables, options)


if __name__ == "__main__":
    main()
