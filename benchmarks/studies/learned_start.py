r"""A learned start of Opti-CAM: a network predicts the weights from which the climb begins.

    python benchmarks/studies/learned_start.py train --root FOLDER --weights START.pth [--epochs 8]
    python benchmarks/studies/learned_start.py climb --root FOLDER --weights START.pth --part tune --images 24 \
        --passes 10 --log LOG.jsonl

It shares its images, its climb and its log with fewer_passes.py, whose page tells the result. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from fewer_passes import PARTS, VARIANTS, Climb, photographs, scorer, write
from torch import Tensor, nn

from optcam_pl import Classifier, OptiCAM
from optcam_pl.explainers.presets import balanced
from optcam_pl.maps import of_class
from optcam_pl.network.allocator import keep_freed_memory

STATISTICS, PLACES, SHOWN, TINY, BATCH = 7, 6, 4, 1e-12, 8


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
    """

    def __init__(self, width: int = 64, maps: int = 8) -> None:
        super().__init__()
        self.places = nn.Sequential(nn.Linear(2 * PLACES - 1, width), nn.GELU(), nn.Linear(width, maps))
        self.channel = nn.Linear(STATISTICS + SHOWN + maps, width)
        self.context, self.hidden, self.last = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, A: Tensor, G: Tensor) -> Tensor:
        """Logits u (B,K) for features A (B,K,h,w) and the gradient G of the class's logit at them."""
        low, high = A.flatten(2).aminmax(dim=2)
        size = (high - low).maximum(1e-3 * (high - low).amax(1, keepdim=True)).clamp(min=TINY)
        above = A.flatten(2) - low.unsqueeze(2)
        share = above / above.sum(2, keepdim=True).clamp(min=TINY)
        places = cells(A, G)
        inputs = [statistics_of(A, G, size), share @ places[:, :, :SHOWN], share @ self.places(places).sigmoid()]
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


def train(options: argparse.Namespace) -> None:
    """Climb the objective of the training photographs by the network's parameters."""
    torch.manual_seed(0)
    classifier, network = Classifier(options.network), StartNetwork()
    score = scorer(classifier)
    _, images, labels = photographs(options.root, classifier, "train", options.images)
    blocks = options.epochs * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=blocks + 1, pct_start=0.1)
    for epoch in range(options.epochs):
        reached = []
        for index in torch.randperm(len(images))[: len(images) // BATCH * BATCH].split(BATCH):
            A, G = inputs_of(classifier, images[index], labels[index])
            logits, _ = Climb(score, A, images[index], labels[index]).value(network(A, G))
            optimizer.zero_grad()
            (-logits.mean()).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            reached.append(float(logits.mean()))
        print(f"epoch {epoch}: mean logit {sum(reached) / len(reached):.3f}", flush=True)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, call in (("train", train), ("climb", climb)):
        command = commands.add_parser(name)
        command.add_argument("--root", required=True)
        command.add_argument("--network", default="demo/efficientnet_lite0")
        command.add_argument("--weights", required=True)
        command.add_argument("--images", type=int)
        command.set_defaults(call=call)
        if name == "train":
            command.add_argument("--epochs", type=int, default=8)
        else:
            command.add_argument("--part", choices=PARTS, default="tune")
            command.add_argument("--passes", type=int, default=10)
            command.add_argument("--lr", type=float, default=1.0)
            command.add_argument("--log", required=True)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    options.call(options)


if __name__ == "__main__":
    main()
