"""How few passes Opti-CAM needs: variants of its climb side by side on photographs, tuned on some, reported on others.

    python benchmarks/studies/fewer_passes.py run --root FOLDER --part tune --passes 20 --images 24 --log LOG.jsonl
    python benchmarks/studies/fewer_passes.py run --root FOLDER --part report --variants paper --passes 100 --log ...
    python benchmarks/studies/fewer_passes.py run --root FOLDER --part report --variants fast --passes 20 --log ...
    python benchmarks/studies/fewer_passes.py report --log LOG.jsonl

FOLDER holds one folder for each class, named by its wnid. Images are drawn with one fixed seed: 48 to tune on, 128 to
report on, 300 to train a learned start on; no image is in two of the parts. Every variant and block of images adds a
line to LOG with the logit and the probability of the label after each pass, so that a stopped run goes on where it was,
and so that each rule of stopping, and the best of the iterates, can be read from the same lines. `report` makes
benchmarks/results/fewer_passes.md and .json from them. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from optcam_pl import Classifier, OptiCAM
from optcam_pl.data import ImageFolder
from optcam_pl.explainers.presets import balanced
from optcam_pl.maps import combine, mask_image, normalize, of_class, upsample
from optcam_pl.network.allocator import keep_freed_memory

PARTS = {"tune": (0, 48), "report": (48, 176), "train": (176, 476)}
RESULTS = Path(__file__).parents[1] / "results"
NOTES = Path(__file__).with_suffix(".md")


@dataclass(frozen=True)
class Variant:
    """One way to climb the objective; the defaults are the paper's.

    Attributes:
        lr: the learning rate.
        betas: Adam's.
        start: u = 0 ("uniform"); the package's "balanced"; or minus the logarithm of each channel's "max", "range",
            "spread" (standard deviation), "mean" or "lift" (mean above the minimum). With a normalizer that ignores the
            scale of a map, the latter is the same as dividing the channels by that number.
        power: the factor of that start.
        floor: the smallest number that a channel is divided by, of the largest.
        optimizer: "adam", "nadam", "rmsprop", "lion", "sgd" (the gradient divided by its norm), "eg" (exponentiated
            gradient, divided by its spread), "adam-eg" (Adam on the exponentiated gradient).
        schedule: the factor of `lr` at step t of T: "constant", "cosine", "linear" or "sqrt".
        clusters: move all channels of a cluster together, in so many clusters; 0 moves each channel by itself.
        search: lengths of the step that a line search tries with further forward passes; () for none.
    """

    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    start: str = "uniform"
    power: float = 1.0
    floor: float = 1e-3
    optimizer: str = "adam"
    schedule: str = "constant"
    clusters: int = 0
    search: tuple[float, ...] = ()


A = Variant(lr=0.5, betas=(0.7, 0.8), start="max")
B = replace(A, lr=1.0, schedule="linear", start="mean")
C = replace(B, betas=(0.5, 0.5))
VARIANTS = {
    "paper": Variant(),
    "lr 0.5": Variant(lr=0.5),
    "lr 0.5, betas .8 .9": Variant(lr=0.5, betas=(0.8, 0.9)),
    "lr 0.5, max": Variant(lr=0.5, start="max"),
    "A": A,
    "A, lr 0.3": replace(A, lr=0.3),
    "A, lr 0.7": replace(A, lr=0.7),
    "A, lr 1": replace(A, lr=1.0),
    "A, betas .5 .5": replace(A, betas=(0.5, 0.5)),
    "A, betas .7 .9": replace(A, betas=(0.7, 0.9)),
    "A, betas .8 .8": replace(A, betas=(0.8, 0.8)),
    "A, betas .9 .9": replace(A, betas=(0.9, 0.9)),
    "A, range": replace(A, start="range"),
    "A, spread": replace(A, start="spread"),
    "A, mean": replace(A, start="mean"),
    "A, max 1.5": replace(A, power=1.5),
    "A, lr 1, cosine": replace(A, lr=1.0, schedule="cosine"),
    "A, lr 1, linear": replace(A, lr=1.0, schedule="linear"),
    "A, lr 1, sqrt": replace(A, lr=1.0, schedule="sqrt"),
    "nadam": replace(A, optimizer="nadam"),
    "rmsprop .8": replace(A, optimizer="rmsprop", betas=(0.0, 0.8)),
    "lion": replace(A, optimizer="lion", lr=0.3),
    "eg 0.3": replace(A, optimizer="eg", lr=0.3, betas=(0.5, 0.0)),
    "eg 1": replace(A, optimizer="eg", lr=1.0, betas=(0.5, 0.0)),
    "sgd": replace(A, optimizer="sgd", lr=10.0, betas=(0.7, 0.0)),
    "adam-eg": replace(A, optimizer="adam-eg"),
    "clusters 64": replace(A, clusters=64),
    "clusters 256": replace(A, clusters=256),
    "search": replace(A, search=(0.5, 1.0, 2.0)),
    "B": B,
    "B, mean, power 1.5": replace(B, power=1.5),
    "B, lr 0.7": replace(B, lr=0.7),
    "B, lr 1.5": replace(B, lr=1.5),
    "B, nadam": replace(B, optimizer="nadam"),
    "B, betas .8 .9": replace(B, betas=(0.8, 0.9)),
    "B, betas .6 .9": replace(B, betas=(0.6, 0.9)),
    "B, betas .9 .9": replace(B, betas=(0.9, 0.9)),
    "B, lion": replace(B, optimizer="lion", lr=0.7),
    "B, spread": replace(B, start="spread"),
    "B, max": replace(B, start="max"),
    "B, max, power 1.5": replace(B, start="max", power=1.5),
    "B, adam-eg": replace(B, optimizer="adam-eg"),
    "B, betas .5 .5": C,
    "B, betas .3 .3": replace(B, betas=(0.3, 0.3)),
    "B, betas .3 .6": replace(B, betas=(0.3, 0.6)),
    "B, betas .5 .7": replace(B, betas=(0.5, 0.7)),
    "B, betas .5 .5, lr 1.5": replace(C, lr=1.5),
    "B, betas .5 .5, lr 0.7": replace(C, lr=0.7),
    "B, betas .5 .5, power 1.25": replace(C, power=1.25),
    "B, betas .5 .5, power 0.8": replace(C, power=0.8),
    "B, betas .5 .5, cosine": replace(C, schedule="cosine"),
    "B, betas .5 .5, nadam": replace(C, optimizer="nadam"),
    "fast, constant channels kept": replace(C, start="lift"),
    "fast, constant channels kept, floor 1e-4": replace(C, start="lift", floor=1e-4),
    "fast, constant channels kept, floor 1e-2": replace(C, start="lift", floor=1e-2),
    "fast": replace(C, start="balanced"),
}


def photographs(root: str, classifier: Classifier, part: str, images: int | None) -> tuple[list[str], Tensor, Tensor]:
    """Ids, images (n,3,H,W) and labels (n,) of a part."""
    data = ImageFolder(root, classes="imagenet")
    data.match_network(classifier.input_size, classifier.interpolation, classifier.crop_fraction)
    data.match_classes(classifier.class_names, classifier.name)
    data.setup()
    first, last = PARTS[part]
    order = torch.randperm(len(data.table), generator=torch.Generator().manual_seed(0))[first:last].tolist()[:images]
    samples = [data.table[i] for i in order]
    labels = torch.tensor([data.network_class(int(sample["target"])) for sample in samples])
    return [sample["id"] for sample in samples], torch.stack([sample["image"] for sample in samples]), labels


def scorer(classifier: Classifier) -> Callable[[Tensor], Tensor]:
    """Images to logits, by a copy of the network with each batch norm in its convolution, channels last."""
    network = copy.deepcopy(classifier.network)
    for module in list(network.modules()):
        for (first, convolution), (second, norm) in pairwise(list(module.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, first, fuse_conv_bn_eval(convolution, norm))
                setattr(module, second, getattr(norm, "act", nn.Identity()))
    network = network.requires_grad_(False).eval().to(memory_format=torch.channels_last)
    mean, std = classifier.mean.view(3, 1, 1), classifier.std.view(3, 1, 1)

    def score(image: Tensor) -> Tensor:
        logits: Tensor = network(((image - mean) / std).contiguous(memory_format=torch.channels_last))
        return logits

    return score


class Climb:
    """The climbs of one block of images.

    Args:
        score: images (n,3,H,W) to logits (n,C).
        features: (B,K,h,w).
        image: (B,3,H,W).
        target: (B,).
    """

    def __init__(self, score: Callable[[Tensor], Tensor], features: Tensor, image: Tensor, target: Tensor) -> None:
        self.score, self.features, self.image, self.target = score, features, image, target

    def value(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Logit and probability of the class under the map of the logits u (B,K); (B,) each."""
        full = upsample(combine(torch.softmax(u, 1), self.features), (self.image.shape[2], self.image.shape[3]))
        logits = self.score(mask_image(self.image, normalize(full)))
        return of_class(logits, self.target), of_class(logits.detach().softmax(1), self.target)

    def start(self, variant: Variant) -> Tensor:
        """Where u begins, (B,K)."""
        flat = self.features.flatten(2)
        if variant.start == "uniform":
            return torch.zeros_like(flat[:, :, 0])
        if variant.start == "balanced":
            return balanced(self.features)
        size = {
            "max": flat.amax(2), "range": flat.amax(2) - flat.amin(2), "spread": flat.std(2), "mean": flat.mean(2),
            "lift": flat.mean(2) - flat.amin(2),
        }[variant.start]  # fmt: skip
        return -variant.power * size.maximum(variant.floor * size.amax(1, keepdim=True)).log()

    def run(self, variant: Variant, passes: int, u: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits and probabilities (passes+1,B), and the last u (B,K)."""
        u = self.start(variant) if u is None else u
        step, logits, probabilities = Step(variant, u), [], []
        spread = groups(self.features, variant.clusters) if variant.clusters else None
        for t in range(passes):
            u = u.detach().requires_grad_()
            F, p = self.value(u)
            logits.append(F.detach())
            probabilities.append(p)
            gradient = torch.autograd.grad(F.sum(), u)[0]
            if spread is not None:  # the same step for all channels of a cluster
                gradient = (gradient.unsqueeze(1) @ spread @ spread.mT).squeeze(1)
            move = step(gradient, u.detach()) * variant.lr * pace(variant.schedule, t, passes)
            u = self.search(u.detach(), move, variant.search) if variant.search else u.detach() + move
        with torch.no_grad():
            F, p = self.value(u)
        return torch.stack([*logits, F]), torch.stack([*probabilities, p]), u.detach()

    @torch.no_grad()
    def search(self, u: Tensor, move: Tensor, lengths: tuple[float, ...]) -> Tensor:
        """The best of several lengths of the step, for each image."""
        tried = torch.stack([u + length * move for length in lengths])
        F = torch.stack([self.value(one)[0] for one in tried])
        return tried[F.argmax(0), torch.arange(len(u))]


class Step:
    """An optimizer's direction of ascent for all images at once, element-wise or made for each image."""

    def __init__(self, variant: Variant, u: Tensor) -> None:
        self.variant, self.t = variant, 0
        self.m, self.v = torch.zeros_like(u), torch.zeros_like(u)

    def __call__(self, gradient: Tensor, u: Tensor) -> Tensor:
        """The step (B,K) for a learning rate of 1."""
        name, (first, second) = self.variant.optimizer, self.variant.betas
        self.t += 1
        if name in ("eg", "adam-eg"):
            gradient = gradient / torch.softmax(u, 1).clamp(min=1e-12)
        if name in ("eg", "sgd"):
            self.m = first * self.m + (1 - first) * gradient
            scale = self.m.std(1, keepdim=True) if name == "eg" else self.m.norm(dim=1, keepdim=True)
            return self.m / scale.clamp(min=1e-20)
        if name == "lion":
            direction = (first * self.m + (1 - first) * gradient).sign()
            self.m = second * self.m + (1 - second) * gradient
            return direction
        self.m = first * self.m + (1 - first) * gradient
        self.v = second * self.v + (1 - second) * gradient**2
        m, v = self.m / (1 - first**self.t), self.v / (1 - second**self.t)
        if name == "nadam":
            m = first * self.m / (1 - first ** (self.t + 1)) + (1 - first) * gradient / (1 - first**self.t)
        return m / (v.sqrt() + 1e-8)


def pace(schedule: str, t: int, passes: int) -> float:
    """The factor of the learning rate at step t."""
    return {
        "constant": 1.0,
        "cosine": 0.5 * (1 + math.cos(math.pi * t / passes)),
        "linear": 1 - t / passes,
        "sqrt": 1 / math.sqrt(t + 1),
    }[schedule]


def groups(features: Tensor, clusters: int, rounds: int = 8) -> Tensor:
    """(B,K,clusters): k-means of each image's channels by the shape of their maps; 1 where a channel belongs."""
    flat = features.flatten(2)
    flat = flat / flat.norm(dim=2, keepdim=True).clamp(min=1e-12)
    centers = flat[:, torch.linspace(0, flat.shape[1] - 1, clusters).long()]
    for _ in range(rounds):
        one = nn.functional.one_hot((flat @ centers.mT).argmax(2), clusters).to(flat)
        centers = one.mT @ flat
        centers = centers / centers.norm(dim=2, keepdim=True).clamp(min=1e-12)
    return one


def run(options: argparse.Namespace) -> None:
    """Climb with every variant on every block, and write a line for each."""
    classifier, log = Classifier(options.network), Path(options.log)
    score = scorer(classifier)
    ids, images, labels = photographs(options.root, classifier, options.part, options.images)
    names = list(VARIANTS) if options.variants == ["all"] else options.variants
    finished = {(line["part"], line["variant"], line["passes"], line["id"][0]) for line in read(log)}
    for first in range(0, len(ids), options.batch):
        block = slice(first, first + options.batch)
        todo = [name for name in names if (options.part, name, options.passes, ids[first]) not in finished]
        if not todo:
            continue
        features, _ = OptiCAM().features(classifier, images[block], labels[block])
        climb = Climb(score, features[0], images[block], labels[block])
        with torch.no_grad():
            whole = of_class(score(images[block]).softmax(1), labels[block])
        for name in todo:
            begun = time.perf_counter()
            logits, probabilities, _ = climb.run(VARIANTS[name], options.passes)
            seconds = time.perf_counter() - begun
            write(log, options.part, name, ids[block], seconds, whole, logits, probabilities)


def write(
    log: Path, part: str, name: str, ids: list[str], seconds: float, p: Tensor, logits: Tensor, masked: Tensor
) -> None:
    """Add a line: p (B,) of the whole image, logits and probabilities (T+1,B) of the masked one."""
    line = {"part": part, "variant": name, "passes": len(logits) - 1, "id": ids, "seconds": round(seconds, 2)}
    line |= {"p": rounded(p), "o": rounded(masked.T), "F": rounded(logits.T)}
    with log.open("a") as file:
        file.write(json.dumps(line) + "\n")


def rounded(values: Tensor) -> list[Any]:
    return [rounded(value) for value in values] if values.ndim > 1 else [round(v, 6) for v in values.tolist()]


def read(log: Path) -> Iterator[dict[str, Any]]:
    yield from (json.loads(line) for line in (log.read_text().splitlines() if log.exists() else []))


@dataclass
class Curves:
    """A variant's traces: ids, p (n,), o and F (n,T+1)."""

    ids: list[str]
    p: Tensor
    o: Tensor
    F: Tensor

    def at(self, t: int, best: bool = False) -> Tensor:
        """The masked images' probabilities (n,) after t passes, or at the largest logit until then."""
        t = min(t, self.o.shape[1] - 1)
        index = self.F[:, : t + 1].argmax(1, keepdim=True) if best else torch.full((len(self.o), 1), t)
        return self.o.gather(1, index).squeeze(1)

    def scores(self, t: int, best: bool = False) -> dict[str, Tensor]:
        """The terms (n,) of AG, AD and AI in percent, and the logit."""
        o = self.at(t, best)
        F = self.F[:, : t + 1].amax(1) if best else self.F[:, min(t, self.F.shape[1] - 1)]
        gain, drop = (o - self.p).clamp(min=0) / (1 - self.p), (self.p - o).clamp(min=0) / self.p
        return {"AG": 100 * gain, "AD": 100 * drop, "AI": 100 * (o > self.p).double(), "logit": F}


def curves(log: Path, part: str) -> dict[tuple[str, int], Curves]:
    """By variant and passes, sorted by image."""
    found: dict[tuple[str, int], dict[str, tuple[float, list[float], list[float]]]] = {}
    for line in read(log):
        if line["part"] == part:
            rows = found.setdefault((line["variant"], line["passes"]), {})
            rows.update(zip(line["id"], zip(line["p"], line["o"], line["F"], strict=True), strict=True))
    return {
        key: Curves(
            sorted(rows), *(torch.tensor([rows[i][j] for i in sorted(rows)], dtype=torch.float64) for j in range(3))
        )
        for key, rows in found.items()
    }


def interval(difference: Tensor, draws: int = 10_000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of paired differences."""
    index = torch.randint(len(difference), (draws, len(difference)), generator=torch.Generator().manual_seed(0))
    low, high = difference[index].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=difference.dtype)).tolist()
    return low, high


def tuned(found: dict[tuple[str, int], Curves]) -> list[str]:
    """The table of all variants, by how many images they stayed in and by AG."""
    lines = [
        "| variant | passes | images | AG 5 | AG 10 | AG at the end | best of the iterates | AD | logit |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]

    def rank(item: tuple[tuple[str, int], Curves]) -> tuple[float, ...]:
        (_, passes), curve = item
        return -passes, -len(curve.p), -float(curve.scores(passes)["AG"].mean())

    for (name, passes), curve in sorted(found.items(), key=rank):
        end, best = curve.scores(passes), curve.scores(passes, best=True)
        early = [f"{curve.scores(t)['AG'].mean():.1f}" for t in (5, 10)]
        late = [f"{v.mean():.1f}" for v in (end["AG"], best["AG"], end["AD"])]
        cells = [name, str(passes), str(len(curve.p)), *early, *late, f"{end['logit'].mean():.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def reported(found: dict[tuple[str, int], Curves]) -> tuple[list[str], dict[str, Any]]:
    """The table of the report, and the same as values: each beside the paper's climb after 100 passes."""
    base = found["paper", 100]
    shown = [("paper", 100, t) for t in (10, 20, 40, 100)]
    shown += [(name, passes, passes) for name, passes in sorted(found, key=str) if name != "paper"]
    lines = [
        "| climb | passes | AG | AD | AI | logit | AG - paper's | AD - paper's |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    values = {}
    for name, key, t in shown:
        curve = found[name, key]
        assert curve.ids == base.ids, f"{name} was not run on all images of the report."
        own, paper = curve.scores(t), base.scores(100)
        differences = {score: own[score] - paper[score] for score in ("AG", "AD", "AI", "logit")}
        spans = {score: interval(value) for score, value in differences.items()}
        said = [f"{differences[k].mean():+.2f} [{spans[k][0]:+.2f}, {spans[k][1]:+.2f}]" for k in ("AG", "AD")]
        means = [f"{own[score].mean():.2f}" for score in ("AG", "AD", "AI", "logit")]
        lines.append(f"| {name} | {t} | {' | '.join(means + said)} |")
        values[f"{name} {t}"] = {
            score: {
                "mean": round(float(own[score].mean()), 4),
                "difference": round(float(differences[score].mean()), 4),
                "interval": [round(end, 4) for end in spans[score]],
            }
            for score in own
        }
    return lines, values


def report(options: argparse.Namespace) -> None:
    """Write and print the page."""
    found = curves(Path(options.log), "report")
    table, values = reported(found)
    images = len(found["paper", 100].p)
    title = f"## Fewer passes for the same quality\n\n{images} photographs that no variant was tuned on, "
    title += f"{options.network}. In brackets: 95 % bootstrap intervals of the paired differences from the paper's 100 "
    title += "passes.\n"
    rest = ["", NOTES.read_text(), "### All variants", "", *tuned(curves(Path(options.log), "tune"))]
    page = "\n".join([title, *table, *rest]) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "fewer_passes.md").write_text(page)
    stored = {"network": options.network, "images": images, "ids": found["paper", 100].ids, "climbs": values}
    (RESULTS / "fewer_passes.json").write_text(json.dumps(stored, indent=1) + "\n")
    print(page)


def begin(parser: argparse.ArgumentParser) -> None:
    """Do what the command line says, in one thread."""
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    options.call(options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="demo/efficientnet_lite0")
    commands = parser.add_subparsers(required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--root", required=True)
    runs.add_argument("--part", choices=PARTS, default="tune")
    runs.add_argument("--images", type=int)
    runs.add_argument("--variants", nargs="+", default=["all"], choices=["all", *VARIANTS])
    runs.add_argument("--passes", type=int, default=20)
    runs.add_argument("--batch", type=int, default=4)
    runs.add_argument("--log", required=True)
    runs.set_defaults(call=run)
    reports = commands.add_parser("report")
    reports.add_argument("--log", required=True)
    reports.set_defaults(call=report)
    begin(parser)


if __name__ == "__main__":
    main()
