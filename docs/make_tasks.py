"""Makes the pictures of docs/tasks.md and prints its numbers: small networks, trained here on made-up images.

    python docs/make_tasks.py [FOLDER]

It takes about a minute and a half on one core. The folder is docs/ by default.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import optcam_pl
from optcam_pl import Classifier, Explainer, GradCAM, OptiCAM
from optcam_pl.data import MultiLabel
from optcam_pl.figures import column, overlay, picture, row
from optcam_pl.maps import normalize
from optcam_pl.metrics import AverageDrop, AverageGain, Deletion, Insertion, StandardPointingGame
from optcam_pl.network.scores import Regression

SHAPES = ("circle", "square", "triangle")


class Drawn(NamedTuple):
    """Images (N,3,S,S) in [0,1], multi-hot labels (N,C), and the present shapes' numbers and boxes by image."""

    images: Tensor
    labels: Tensor
    present: list[list[int]]
    boxes: list[list[list[float]]]


def several_shapes(count: int, side: int = 32, seed: int = 0) -> Drawn:
    """Images with one to three different shapes of random colors, each in a quarter of its own."""
    rng = torch.Generator().manual_seed(seed)
    images = 0.35 + 0.15 * torch.rand(count, 3, side, side, generator=rng)
    labels = torch.zeros(count, len(SHAPES))
    present: list[list[int]] = []
    boxes: list[list[list[float]]] = []
    for i in range(count):
        kinds = torch.randperm(len(SHAPES), generator=rng)[: 1 + int(torch.randint(3, (), generator=rng))]
        quarters = torch.randperm(4, generator=rng)
        present.append(kinds.tolist())
        boxes.append([])
        for kind, quarter in zip(kinds.tolist(), quarters.tolist(), strict=False):
            corner = torch.tensor([quarter % 2, quarter // 2]) * (side // 2)
            mask, box = _shape(kind, side, corner, rng)
            images[i, :, mask] = torch.rand(3, 1, generator=rng) * 0.3 + 0.7 * (torch.rand(3, 1, generator=rng) > 0.5)
            labels[i, kind] = 1
            boxes[i].append(box)
    return Drawn(images.clamp(0, 1), labels, present, boxes)


def _shape(kind: int, side: int, corner: Tensor, rng: torch.Generator) -> tuple[Tensor, list[float]]:
    """A shape's pixels (S,S) and its box, somewhere in the quarter at `corner`."""
    radius = side * (0.13 + 0.08 * float(torch.rand((), generator=rng)))
    x, y = (corner + radius + (side / 2 - 2 * radius) * torch.rand(2, generator=rng)).tolist()
    at = torch.arange(side) + 0.5
    u, v = (at[None, :] - x) / radius, (at[:, None] - y) / radius
    inside = (
        u**2 + v**2 < 1,
        torch.maximum(u.abs(), v.abs()) < 0.9,
        (v < 0.8) & (v > 2 * u.abs() - 1),
    )[kind]
    return inside, [x - radius, y - radius, x + radius, y + radius]


def two_blobs(count: int, side: int = 32, seed: int = 0) -> tuple[Tensor, Tensor, list[list[list[float]]]]:
    """Images with a red and a blue disc; the number (N,1) to estimate is ten times the red one's share of the area."""
    rng = torch.Generator().manual_seed(seed)
    images = 0.3 + 0.2 * torch.rand(count, 3, side, side, generator=rng)
    areas, boxes = torch.zeros(count, 1), []
    for i in range(count):
        quarters = torch.randperm(4, generator=rng)[:2]
        for color, quarter in zip((0, 2), quarters.tolist(), strict=True):
            corner = torch.tensor([quarter % 2, quarter // 2]) * (side // 2)
            mask, box = _shape(0, side, corner, rng)
            images[i, :, mask] = 0.1
            images[i, color, mask] = 0.9
            if color == 0:
                areas[i], kept = 10 * mask.float().mean(), box
        boxes.append([kept])
    return images, areas, boxes


class BestPlaces(nn.Module):
    """(B,K,h,w) -> (B,K): ``log(mean exp(r z)) / r`` over places, between their mean and their maximum.

    After a mean, a square may be seen by cells beside it, which see a corner, or nothing else. The best place for a
    network of this kind is the one that sees all of the shape.
    """

    def __init__(self, sharpness: float = 0.2) -> None:
        super().__init__()
        self.sharpness = sharpness

    def forward(self, z: Tensor) -> Tensor:
        """See the class."""
        best: Tensor = (self.sharpness * z).flatten(2).logsumexp(2) - math.log(z.shape[2] * z.shape[3])
        return best / self.sharpness


def network(dilations: Sequence[int], *end: nn.Module, seed: int = 0) -> nn.Sequential:
    """A convolution of the pixels, more of them on a grid of 16 x 16 with these dilations, then the end.

    Pooling by 2 and odd kernels keep a cell's center where the map shows it, and replicated borders are no edges.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inside, dilation in zip((3, 16, 32, 32), (1, *dilations), strict=False):
            outside = 16 if inside == 3 else 32
            around: Any = {"padding": dilation, "dilation": dilation, "padding_mode": "replicate"}
            layers += [nn.Conv2d(inside, outside, 3, **around), nn.BatchNorm2d(outside), nn.ReLU()]
        layers.insert(3, nn.MaxPool2d(2))
        return nn.Sequential(*layers, *end)


def train(
    made: nn.Module, images: Tensor, wanted: Tensor, loss: Callable[[Tensor, Tensor], Tensor], steps: int
) -> nn.Module:
    """Adam on random batches of 64; afterwards the network is in eval mode."""
    optimizer, rng = torch.optim.Adam(made.parameters(), lr=3e-3), torch.Generator().manual_seed(0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    made.train()
    for _ in range(steps):
        chosen = torch.randint(len(images), (64,), generator=rng)
        optimizer.zero_grad()
        loss(made(images[chosen]), wanted[chosen]).backward()
        optimizer.step()
        schedule.step()
    return made.eval()


def partly_hidden(drawn: Drawn, seed: int = 2) -> Drawn:
    """Half of the images behind random smooth masks, as those of explainers are; a shape that is hidden does not count.

    A network that has never seen a masked image answers at random to some.
    """
    images, labels = drawn.images.clone(), drawn.labels.clone()
    coarse = torch.rand(len(images), 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    masks = normalize(F.interpolate(coarse, images.shape[2:], mode="bicubic", align_corners=False))
    for i in range(0, len(images), 2):
        images[i] *= masks[i]
        for kind, (x0, y0, x1, y1) in zip(drawn.present[i], drawn.boxes[i], strict=True):
            seen = masks[i, 0, round(y0) : round(y1), round(x0) : round(x1)].mean()
            labels[i, kind] = float(seen > 0.5)
    return drawn._replace(images=images, labels=labels)


def multi_label(steps: int = 600, images: int = 3000, tests: int = 60) -> tuple[Classifier, MultiLabel, Drawn]:
    """A network that has learned which shapes are there, and test images with a row for each shape."""
    drawn = partly_hidden(several_shapes(images))
    made = network((1, 1, 2), nn.Conv2d(32, len(SHAPES), 1), BestPlaces())  # a cell sees 20 x 20 pixels: all of a shape
    learned = train(made, drawn.images, drawn.labels, F.binary_cross_entropy_with_logits, steps)
    classifier = Classifier(
        learned, mean=0, std=1, input_size=32, class_names=list(SHAPES), link="sigmoid", target_layer="12"
    )
    test = several_shapes(tests, seed=1)
    items: list[Any] = list(zip(test.images, test.present, test.boxes, strict=True))
    return classifier, MultiLabel(items, class_names=SHAPES, name="several_shapes", batch_size=16), test


def regression(
    steps: int = 300, images: int = 1000, tests: int = 40
) -> tuple[Classifier, Tensor, list[list[list[float]]]]:
    """A network that has learned the red disc's area, and test images with its boxes."""
    seen, areas, _ = two_blobs(images)
    made = network((1,), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 1))
    learned = train(made, seen, areas, F.mse_loss, steps)
    classifier = Classifier(learned, mean=0, std=1, input_size=32, scores=Regression("up"), target_layer="6")
    test, _, boxes = two_blobs(tests, seed=1)
    return classifier, test, boxes


def on_white(pictures: Sequence[Any], titles: Sequence[str], scale: int = 4) -> Any:
    """The pictures side by side, enlarged, each under its title."""
    return row([p.repeat(scale, 0).repeat(scale, 1) for p in pictures], titles)


def maps_of_labels(classifier: Classifier, explainer: Explainer, drawn: Drawn, count: int) -> Any:
    """One line an image with all shapes: the image, and the map of each shape."""
    lines = []
    for i in [i for i, present in enumerate(drawn.present) if len(present) == len(SHAPES)][:count]:
        image = drawn.images[i]
        p = classifier.probabilities(image[None])[0]
        maps = [explainer(classifier, image[None], c).saliency[0] for c in range(len(SHAPES))]
        titles = [f"{classifier.target_name(c)} {float(p[c]):.2f}" for c in range(len(SHAPES))]
        lines.append(on_white([picture(image), *(overlay(image, s) for s in maps)], ["image", *titles]))
    return column(lines)


def maps_of_estimates(classifier: Classifier, explainer: Explainer, images: Tensor, count: int) -> Any:
    """One line an image: the image with its estimate, what makes it higher, and what it needs to stay."""
    keep = Classifier(classifier.network, mean=0, std=1, input_size=32, scores=Regression("keep"), target_layer="6")
    lines = []
    for image in images[:count]:
        y = float(classifier(image[None]))
        up = explainer(classifier, image[None], 0).saliency[0]
        with keep.references({"image": image[None]}) as found:
            kept = explainer(keep, image[None], 0).saliency[0]
        assert found is not None
        titles = [f"estimate {y:.2f}", classifier.target_name(0), found.names[0]]
        lines.append(on_white([picture(image), overlay(image, up), overlay(image, kept)], titles))
    return column(lines)


def main(folder: Path) -> None:
    """Train, measure, draw."""
    classifier, data, drawn = multi_label()
    explainers = {"Grad-CAM": GradCAM(), "Opti-CAM": OptiCAM(), "Opti-CAM contrast": OptiCAM(objective="contrast")}
    metrics = [AverageDrop(), AverageGain(), StandardPointingGame()]
    print(optcam_pl.evaluate(classifier, explainers, data, metrics).table())
    Image.fromarray(maps_of_labels(classifier, GradCAM(), drawn, 3)).save(folder / "tasks_labels.png")

    estimator, images, boxes = regression()
    curves = [Insertion(32, output="logit"), Deletion(32, output="logit"), StandardPointingGame()]
    batch: Any = {"image": images, "boxes": [torch.tensor(box) for box in boxes]}
    print(optcam_pl.evaluate(estimator, {"Grad-CAM": GradCAM(), "Opti-CAM": OptiCAM()}, batch, curves).table())
    Image.fromarray(maps_of_estimates(estimator, OptiCAM(), images, 3)).save(folder / "tasks_estimate.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
