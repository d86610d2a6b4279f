r"""A learned start of Opti-CAM: a network predicts the weights from which the climb begins.

    python benchmarks/studies/learned_start.py train --root FOLDER --weights START.pth [--epochs 8]
    python benchmarks/studies/learned_start.py climb --root FOLDER --weights START.pth --part tune --images 24 \
        --passes 10 --log LOG.jsonl
    python benchmarks/studies/learned_start.py study --root FOLDER [--images 200] [--epochs 4]

It shares its images, its climb and its log with fewer_passes.py, whose page tells the result. `study` trains the
network anew with all of its inputs and without each kind of them, on the objective and on stored weights, climbs from
each, and writes benchmarks/results/learned_start.md and .json. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from fewer_passes import PARTS, RESULTS, VARIANTS, Climb, Curves, begin, photographs, scorer, write
from torch import Tensor, nn

from optcam_pl import Classifier, OptiCAM
from optcam_pl.explainers.presets import balanced
from optcam_pl.maps import of_class

STATISTICS, PLACES, SHOWN, TINY, BATCH = 7, 6, 4, 1e-12, 8
INPUTS = ("gradient", "statistics", "places")
Photographs = tuple[list[str], Tensor, Tensor]


class StartNetwork(nn.Module):
    """Predicts the logits u of Opti-CAM's weights from the feature maps and the class's gradient at them.

    All channels share one network, so that it serves layers of any number of channels, grids of any size and any class:

    1. Places: from what each cell of the grid holds (the evidence for the class, the mean and the norm of the features,
       the same averaged over the neighbors, the distance from the center), one network for all cells makes a few maps
       in (0,1).
    2. Channels: from each channel's own statistics (range, mean, spread, gradient, contribution to the logit) and the
       part of its activation that lies in each of these maps, one network for all channels makes one number, knowing
       the mean over all channels.
    3. That number is added to the balanced start; a new network adds 0.

    Args:
        width: hidden units.
        maps: maps of step 1.
        without: kinds of inputs that are left out (they are 0): the "gradient" (and with it the contribution to the
            logit: above the last layer of features the gradient is the head's weight), each channel's "statistics", or
            "places", where on the grid it lies.
    """

    def __init__(self, width: int = 64, maps: int = 8, without: Collection[str] = ()) -> None:
        super().__init__()
        self.without = frozenset(without)
        self.places = nn.Sequential(nn.Linear(2 * PLACES - 1, width), nn.GELU(), nn.Linear(width, maps))
        self.channel = nn.Linear(STATISTICS + SHOWN + maps, width)
        self.context, self.hidden, self.last = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, A: Tensor, G: Tensor) -> Tensor:
        """Logits u (B,K) for features A (B,K,h,w) and the gradient G of the class's logit at them."""
        if "gradient" in self.without:
            G = torch.zeros_like(G)
        low, high = A.flatten(2).aminmax(dim=2)
        size = (high - low).maximum(1e-3 * (high - low).amax(1, keepdim=True)).clamp(min=TINY)
        above = A.flatten(2) - low.unsqueeze(2)
        share = above / above.sum(2, keepdim=True).clamp(min=TINY)
        places = cells(A, G)
        inputs = [
            statistics_of(A, G, size) * ("statistics" not in self.without),
            share @ places[:, :, :SHOWN] * ("places" not in self.without),
            share @ self.places(places).sigmoid() * ("places" not in self.without),
        ]
        hidden = F.gelu(self.channel(torch.cat(inputs, 2)))
        hidden = F.gelu(self.hidden(hidden) + self.context(hidden.mean(1, keepdim=True)))
        predicted: Tensor = self.last(hidden).squeeze(2)
        return predicted + balanced(A)


def cells(A: Tensor, G: Tensor) -> Tensor:
    """What each cell holds, (B,n,2 * PLACES - 1); each input is standardized over the grid."""
    evidence = A * G
    positive, negative = evidence.clamp(min=0).sum(1), evidence.clamp(max=0).sum(1)
    seen = torch.stack([evidence.sum(1), positive, A.mean(1), A.norm(dim=1), negative], 1)
    seen = torch.cat([seen, F.avg_pool2d(seen, 3, 1, 1, count_include_pad=False)], 1)
    seen = (seen - seen.mean((2, 3), keepdim=True)) / seen.std((2, 3), keepdim=True).clamp(min=TINY)
    y, x = (torch.linspace(-1, 1, side, device=A.device) for side in A.shape[2:])
    center = (y.view(-1, 1) ** 2 + x**2).expand(len(A), 1, *A.shape[2:])
    return torch.cat([seen, center], 1).flatten(2).mT


def statistics_of(A: Tensor, G: Tensor, size: Tensor) -> Tensor:
    """Each channel's statistics, (B,K,STATISTICS)."""
    flat, slope = A.flatten(2), G.flatten(2)
    low, gradient = flat.amin(2), slope.mean(2)
    logs = size.log()
    found = [
        (logs - logs.mean(1, keepdim=True)) / logs.std(1, keepdim=True).clamp(min=TINY),
        (flat.mean(2) - low) / size,
        flat.std(2) / size,
        *(scaled(x) for x in (gradient, gradient * size, (flat * slope).sum(2))),
        ((flat - low.unsqueeze(2)) > 0.5 * size.unsqueeze(2)).float().mean(2),
    ]
    return torch.stack(found, 2)


def scaled(x: Tensor) -> Tensor:
    """Divided by its root mean square over the channels, and kept within +-5."""
    return (x / x.square().mean(1, keepdim=True).sqrt().clamp(min=TINY)).clamp(-5, 5)


def inputs_of(classifier: Classifier, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Features and gradient, (B,K,h,w) each: a forward pass and a backward pass of the layers above."""
    name = classifier.target_layers[0]
    with OptiCAM().recording(classifier, cut=True) as record:
        logit = of_class(classifier(image), target).sum()
        (gradient,) = torch.autograd.grad(logit, [record[name]])
        return record[name].detach(), gradient


def optimize(network: StartNetwork, loss: Callable[[Tensor], Tensor], images: int, epochs: int) -> None:
    """Minimize `loss(index)`, a mean over the images with these numbers."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-3)
    blocks = epochs * (images // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=blocks + 1, pct_start=0.1)
    for epoch in range(epochs):
        reached = []
        for index in torch.randperm(images)[: images // BATCH * BATCH].split(BATCH):
            value = loss(index)
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            reached.append(float(value.detach()))
        print(f"epoch {epoch}: mean loss {sum(reached) / len(reached):.3f}", flush=True)


def train(options: argparse.Namespace) -> None:
    """Climb the objective of the training photographs by the network's parameters."""
    torch.manual_seed(0)
    classifier, network = Classifier(options.network), StartNetwork()
    score = scorer(classifier)
    _, images, labels = photographs(options.root, classifier, "train", options.images)

    def loss(index: Tensor) -> Tensor:
        A, G = inputs_of(classifier, images[index], labels[index])
        return -Climb(score, A, images[index], labels[index]).value(network(A, G))[0].mean()

    optimize(network, loss, len(images), options.epochs)
    torch.save(network.state_dict(), options.weights)


def climb(options: argparse.Namespace) -> None:
    """The fast preset's climb from the network's start, into the log of fewer_passes.py."""
    classifier, network = Classifier(options.network), StartNetwork()
    network.load_state_dict(torch.load(options.weights, weights_only=True))
    score, variant = scorer(classifier), replace(VARIANTS["fast"], lr=options.lr)
    ids, images, labels = photographs(options.root, classifier, options.part, options.images)
    for first in range(0, len(ids), BATCH):
        block = slice(first, first + BATCH)
        A, G = inputs_of(classifier, images[block], labels[block])
        with torch.no_grad():
            u, whole = network(A, G), of_class(score(images[block]).softmax(1), labels[block])
        logits, masked, _ = Climb(score, A, images[block], labels[block]).run(variant, options.passes, u)
        name = f"fast from the learned start{'' if options.lr == 1 else f', lr {options.lr:g}'}"
        write(Path(options.log), options.part, name, ids[block], 0.0, whole, logits, masked)


class Study:
    """What the trainings of the study share: photographs, their features, the network's passes."""

    def __init__(self, options: argparse.Namespace) -> None:
        classifier = Classifier(options.network)
        self.options, self.score = options, scorer(classifier)
        self.trained = photographs(options.root, classifier, "train", options.images)
        self.tested = photographs(options.root, classifier, "tune", options.tested)
        self.A, self.G = self.features(classifier, self.trained)
        self.A_tested, self.G_tested = self.features(classifier, self.tested)

    def features(self, classifier: Classifier, given: Photographs) -> tuple[Tensor, Tensor]:
        """Features and gradients of all photographs."""
        blocks = zip(given[1].split(BATCH), given[2].split(BATCH), strict=True)
        found = [inputs_of(classifier, image, label) for image, label in blocks]
        return torch.cat([A for A, _ in found]), torch.cat([G for _, G in found])

    def on_objective(self, without: Collection[str] = ()) -> StartNetwork:
        """A network that is trained on the logit of the masked image."""
        torch.manual_seed(0)
        network, (_, images, labels) = StartNetwork(without=without), self.trained

        def loss(index: Tensor) -> Tensor:
            climb = Climb(self.score, self.A[index], images[index], labels[index])
            return -climb.value(network(self.A[index], self.G[index]))[0].mean()

        optimize(network, loss, len(images), self.options.epochs)
        return network

    def on_stored_weights(self) -> StartNetwork:
        """A network that is trained on the weights that the fast preset's 20 passes have found: their cross-entropy."""
        torch.manual_seed(0)
        network, (_, images, labels) = StartNetwork(), self.trained
        found = []
        for index in torch.arange(len(images)).split(BATCH):
            climb = Climb(self.score, self.A[index], images[index], labels[index])
            found.append(climb.run(VARIANTS["fast"], 20)[2].softmax(1))
        stored = torch.cat(found)

        def loss(index: Tensor) -> Tensor:
            return -(stored[index] * network(self.A[index], self.G[index]).log_softmax(1)).sum(1).mean()

        optimize(network, loss, len(images), 4 * self.options.epochs)  # an epoch costs nearly nothing
        return network

    @torch.no_grad()
    def starts(self, network: StartNetwork | None) -> Tensor:
        """The start u (n,K) of the tested photographs; without a network the balanced one."""
        return balanced(self.A_tested) if network is None else network(self.A_tested, self.G_tested)

    def climbed(self, u: Tensor) -> Curves:
        """The fast preset's climb of so many passes, from u."""
        ids, images, labels = self.tested
        F, o, p = [], [], []
        for index in torch.arange(len(ids)).split(BATCH):
            climb = Climb(self.score, self.A_tested[index], images[index], labels[index])
            logits, masked, _ = climb.run(VARIANTS["fast"], self.options.passes, u[index])
            with torch.no_grad():
                p.append(of_class(self.score(images[index]).softmax(1), labels[index]))
            F.append(logits.T)
            o.append(masked.T)
        return Curves(ids, *(torch.cat(part).double() for part in (p, o, F)))


def study(options: argparse.Namespace) -> None:
    """Train, climb, and write the page."""
    begun, shared = time.process_time(), Study(options)
    networks: dict[str, Callable[[], StartNetwork | None]] = {
        "balanced start": lambda: None,
        "learned start": shared.on_objective,
        **{f"learned without {kind}": lambda kind=kind: shared.on_objective([kind]) for kind in INPUTS},
        "learned from stored weights": shared.on_stored_weights,
    }
    scores: dict[str, list[float]] = {}
    for name, network in networks.items():
        print(name, flush=True)
        found = shared.climbed(shared.starts(network()))
        scores[name] = [round(float(found.scores(t)["AG"].mean()), 2) for t in range(options.passes + 1)]
    stored = {"network": options.network, "trained_on": len(shared.trained[0]), "epochs": options.epochs}
    stored |= {"tested_on": shared.tested[0], "core_minutes": round((time.process_time() - begun) / 60, 1)}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "learned_start.json").write_text(json.dumps({**stored, "AG_after_passes": scores}, indent=1) + "\n")
    page = learned_page(stored, scores)
    (RESULTS / "learned_start.md").write_text(page)
    print(page)


def learned_page(stored: dict[str, object], scores: dict[str, list[float]]) -> str:
    """The Markdown page of the study."""
    shown = [t for t in (0, 1, 2, 5, 10) if t < len(next(iter(scores.values())))]
    tested = stored["tested_on"]
    assert isinstance(tested, list)
    lines = [
        "## A learned start: AG against passes",
        "",
        f"{stored['network']}, each network trained anew on {stored['trained_on']} photographs, {stored['epochs']} "
        f"epochs; AG in percent on {len(tested)} others, after so many passes of the fast preset's climb.",
        "",
        f"| start | {' | '.join(map(str, shown))} |",
        f"|---|{'---:|' * len(shown)}",
        *(f"| {name} | {' | '.join(f'{values[t]:.1f}' for t in shown)} |" for name, values in scores.items()),
        "",
        "Trained on the logit of the masked image, except for the last row: on the weights that the fast preset's 20 "
        "passes have found, in four times as many epochs.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, call in (("train", train), ("climb", climb), ("study", study)):
        command = commands.add_parser(name)
        command.add_argument("--root", required=True)
        command.add_argument("--network", default="demo/efficientnet_lite0")
        command.add_argument("--images", type=int, default=200 if name == "study" else None)
        command.set_defaults(call=call)
        if name != "study":
            command.add_argument("--weights", required=True)
        if name != "climb":
            command.add_argument("--epochs", type=int, default=4 if name == "study" else 8)
        if name != "train":
            command.add_argument("--passes", type=int, default=10)
        if name == "study":
            command.add_argument("--tested", type=int, default=24)
        if name == "climb":
            command.add_argument("--part", choices=PARTS, default="tune")
            command.add_argument("--lr", type=float, default=1.0)
            command.add_argument("--log", required=True)
    begin(parser)


if __name__ == "__main__":
    main()
