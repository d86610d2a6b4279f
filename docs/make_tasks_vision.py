"""Train a tiny network on Shapes that segments and detects, explain its regions and boxes, and draw them.

    python docs/make_tasks_vision.py

It takes a few minutes on one core. The network is trained on single objects and explained on pairs of two objects of
different classes beside each other, so it is known where the map of a box or of a region has to lie.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou, complete_box_iou_loss, sigmoid_focal_loss

import optcam_pl
from optcam_pl import Classifier, GradCAM, OptiCAM
from optcam_pl.data import EachBox, Shapes, TorchData
from optcam_pl.data.shapes import CLASSES
from optcam_pl.explainers import RISE, Explainer, HiResCAM
from optcam_pl.metrics import AverageDrop, AverageGain, EnergyPointingGame, StandardPointingGame
from optcam_pl.network.detection import Detection
from optcam_pl.network.segmentation import Region

SIDE, STRIDE = 64, 8
HERE = Path(__file__).parent


class ShapesNetwork(nn.Module):
    """Segments and detects: "out" (B,7,h,w) with class 0 for the surroundings; "boxes" (B,N,4), "logits" (B,N,6)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in ((3, 24, 2), (24, 48, 2), (48, 96, 2), (96, 96, 1), (96, 96, 1)):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.segment = nn.Conv2d(96, 7, 1)
        self.score = nn.Conv2d(96, 6, 1)
        self.sides = nn.Conv2d(96, 4, 1)
        nn.init.constant_(self.score.bias, -3.0)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Scores of each cell of 8 x 8 pixels, and the box that each cell proposes."""
        A = self.features(image)
        h, w = A.shape[2:]
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        center = (torch.stack([x, y], dim=2).flatten(0, 1).to(A) + 0.5) * STRIDE
        near, far = (self.sides(A).flatten(2).transpose(1, 2).exp() * STRIDE).split(2, dim=2)
        return {
            "out": self.segment(A),
            "boxes": torch.cat([center - near, center + far], dim=2),
            "logits": self.score(A).flatten(2).transpose(1, 2),
        }


def stacked(data: Shapes) -> dict[str, Tensor]:
    """All images of a dataset, with the mask, class and box of each."""
    data.setup()
    samples = [data.table.sample(i) for i in range(len(data.table))]
    return {
        "image": torch.stack([s["image"] for s in samples]),
        "mask": torch.stack([s["mask"] for s in samples]),
        "target": torch.tensor([s["target"] for s in samples]),
        "boxes": torch.stack([s["boxes"][0] for s in samples]),
    }


def loss_of(network: nn.Module, image: Tensor, mask: Tensor, target: Tensor, boxes: Tensor) -> Tensor:
    """Cross entropy of cells, focal loss of cells whose center lies in the object, and the boxes of those cells."""
    found = network(image)
    area = F.avg_pool2d(mask.float().unsqueeze(1), STRIDE)[:, 0] > 0.5
    loss = F.cross_entropy(found["out"], torch.where(area, target.view(-1, 1, 1) + 1, 0))
    n = found["logits"].shape[1]
    y, x = torch.meshgrid(*[torch.arange(int(n**0.5))] * 2, indexing="ij")
    center = (torch.stack([x, y], dim=2).flatten(0, 1) + 0.5) * STRIDE
    inside = ((center > boxes[:, None, :2]) & (center < boxes[:, None, 2:])).all(2)  # (B,N)
    wanted = F.one_hot(target, 6).unsqueeze(1) * inside.unsqueeze(2)
    loss = loss + sigmoid_focal_loss(found["logits"], wanted.float(), reduction="sum") / inside.sum().clamp(min=1)
    whole = boxes.unsqueeze(1).expand(-1, n, 4)[inside]
    return loss + complete_box_iou_loss(found["boxes"][inside], whole, reduction="mean")


def train(images: int = 2400, epochs: int = 10, batch: int = 32) -> ShapesNetwork:
    """The trained network, in eval mode."""
    torch.manual_seed(0)
    data, network = stacked(Shapes(images, split="train", train_images=images)), ShapesNetwork()
    steps = epochs * (images // batch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for step in range(steps):
        if step % (images // batch) == 0:
            order = torch.randperm(images)
        chosen = order[step % (images // batch) * batch :][:batch]
        loss = loss_of(network, *(data[key][chosen] for key in ("image", "mask", "target", "boxes")))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def pairs(count: int) -> list[dict[str, Any]]:
    """Pictures of 64 x 128: two test images of different classes beside each other, with both boxes."""
    one = stacked(Shapes(2 * count))
    shift = torch.tensor([SIDE, 0, SIDE, 0])
    return [
        {
            "image": torch.cat([one["image"][2 * i], one["image"][2 * i + 1]], dim=2),
            "boxes": torch.stack([one["boxes"][2 * i], one["boxes"][2 * i + 1] + shift]),
            "mask": torch.cat([one["mask"][2 * i], torch.zeros_like(one["mask"][2 * i])], dim=1),
            "target": int(one["target"][2 * i]),
        }
        for i in range(count)
    ]


def methods() -> list[Explainer]:
    """The methods that are compared."""
    return [HiResCAM(), GradCAM(), OptiCAM(max_iter=50), RISE(num_masks=500, cells=8)]


def boxes_of(network: nn.Module, items: list[dict[str, Any]]) -> None:
    """A table of how often a map's peak lies in its own box; a picture of the maps of both boxes of one image."""
    settings: dict[str, Any] = {"mean": 0, "std": 1, "input_size": (SIDE, 2 * SIDE), "target_layer": "features"}
    settings["class_names"] = list(CLASSES)
    classifier = Classifier(network, scores=Detection("boxes", threshold=0.4), **settings)
    plain = [{key: item[key] for key in ("image", "boxes")} for item in items]
    data = EachBox(TorchData(plain, size=(SIDE, 2 * SIDE), batch_size=16), "network")
    metrics = [AverageDrop(), AverageGain(), StandardPointingGame(), EnergyPointingGame()]
    print(optcam_pl.evaluate(classifier, methods(), data, metrics=metrics).table())
    rows = [data.table.sample(i) for i in range(len(data.table))]
    truth = [
        (box_iou(row["boxes"], items[int(row["id"].split("#")[0])]["boxes"]).max() > 0.5)
        for row in rows
        if len(row["boxes"])
    ]
    print(f"{len(rows)} rows of {len(items)} images; {sum(map(bool, truth))} boxes overlap an object by more than half")
    by_image: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        by_image.setdefault(row["id"].split("#")[0], []).append(i)
    two = next(
        numbers
        for numbers in by_image.values()
        if len(numbers) == 2 and rows[numbers[0]]["target"] != rows[numbers[1]]["target"]
    )
    batch: Any = {
        "image": torch.stack([rows[i]["image"] for i in two]),
        "boxes": [rows[i]["boxes"] for i in two],
        "target": torch.tensor([rows[i]["target"] for i in two]),
        "id": [rows[i]["id"] for i in two],
    }
    draw(classifier, batch, HERE / "tasks_detection.png")


def region_of(network: nn.Module, items: list[dict[str, Any]]) -> None:
    """The same for the region in which the network itself sees a class."""
    settings: dict[str, Any] = {"mean": 0, "std": 1, "input_size": (SIDE, 2 * SIDE), "target_layer": "features"}
    names = ["surroundings", *CLASSES]
    classifier = Classifier(network, scores=Region(region="mask"), class_names=names, **settings)
    left = [{**item, "target": item["target"] + 1, "boxes": item["boxes"][:1]} for item in items]
    data = TorchData(left, size=(SIDE, 2 * SIDE), batch_size=16, class_names=names)
    metrics = [AverageDrop(), AverageGain(), StandardPointingGame(), EnergyPointingGame()]
    print(optcam_pl.evaluate(classifier, methods(), data, metrics=metrics).table())
    batch: Any = {
        key: torch.stack([torch.as_tensor(item[key]) for item in left[:2]]) for key in ("image", "mask", "target")
    }
    draw(classifier, batch, HERE / "tasks_region.png")


def draw(classifier: Classifier, batch: Any, path: Path) -> None:
    """Each row of the batch: the image with its reference, and its maps."""
    explainers = methods()
    figure, axes = plt.subplots(2, 1 + len(explainers), figsize=(3.2 * (1 + len(explainers)), 4.2), squeeze=False)
    with classifier.references(batch) as references:
        assert references is not None
        maps = [explainer(classifier, batch["image"], target=[0, 1]).saliency for explainer in explainers]
    for i in range(2):
        image = batch["image"][i].permute(1, 2, 0)
        for axis, saliency, name in zip(axes[i], [None, *maps], ["", *(e.title for e in explainers)], strict=True):
            axis.imshow(image)
            if saliency is not None:
                axis.imshow(saliency[i, 0], cmap="jet", alpha=0.5, vmin=0, vmax=1)
            if references.boxes is not None:
                x1, y1, x2, y2 = references.boxes[i][0].tolist()
                axis.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color="white", lw=2))
            if references.masks is not None:
                axis.contour(references.masks[i].float(), [0.5], colors="white", linewidths=2)
            axis.set_title(name or references.names[i], fontsize=10)
            axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    trained = train()
    held_out = pairs(24)
    boxes_of(trained, held_out)
    region_of(trained, held_out)
