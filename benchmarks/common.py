"""What all benchmarks share: contestants that take turns in one process, and the page that their times become.

A script makes `Contestant`s, of which one is the limit (the bare passes of the network that no program can avoid). It
lets them take turns (`race`) and hands the `Table`s to `finish`, which prints and stores them in results/<machine>/. A
ratio is the median of the ratios of the same round, so that a change of the machine's pace meets both sides.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import gc
import itertools
import json
import multiprocessing as mp
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import performance_page
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from optcam_pl import Classifier
from optcam_pl.data import ImageDataModule, ImagePaths, SamplePhotos
from optcam_pl.network.allocator import keep_freed_memory

RESULTS = Path(__file__).parent / "results"
GRAPHED = "bare passes, folded, channels last, bfloat16, graphed"  # the limit on a GPU, see `graphed`
PACKAGES = ("torch", "torchvision", "timm", "lightning", "grad-cam", "torchcam", "captum", "quantus", "bnnr")


@dataclass(frozen=True)
class Contestant:
    """One side of a race.

    Attributes:
        name: in the table.
        call: does the work once; if it returns a number, this is the seconds that count.
        role: "limit", "ours" or "peer".
        work: units of work in one call, such as images; a time is given for one unit.
        rounds: take part in only so many rounds, for what takes minutes; 0 for all.
    """

    name: str
    call: Callable[[], Any]
    role: str = "ours"
    work: float = 1.0
    rounds: int = 0


@dataclass
class Table:
    """The times of one race.

    Attributes:
        title: what was done.
        unit: what one unit of work is.
        seconds: by contestant, one number for each round, for one unit of work.
        roles: by contestant.
        shows: what the numbers have to show, see `Claim`.
        notes: sentences below the table.
        values: other numbers, by name.
    """

    title: str
    unit: str
    seconds: dict[str, list[float]]
    roles: dict[str, str]
    shows: list[Claim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def limit(self) -> str:
        """The contestant that the others are compared with: the last limit, or the first contestant; "" without any."""
        limits = [name for name, role in self.roles.items() if role == "limit"]
        return limits[-1] if limits else next(iter(self.roles), "")

    def ratio(self, name: str, base: str) -> float:
        """The median, over the rounds that both took part in, of how many times longer `name` took than `base`."""
        return statistics.median(a / b for a, b in zip(self.seconds[name], self.seconds[base], strict=False))


@dataclass(frozen=True)
class Claim:
    """A ratio of two contestants that must not be above (or below) a bound."""

    above: str
    below: str
    bound: float
    at_most: bool = True

    def words(self, table: Table) -> tuple[str, bool]:
        """A sentence with the measured ratio, and whether it holds."""
        found = table.ratio(self.above, self.below)
        holds = found <= self.bound if self.at_most else found >= self.bound
        sign = "at most" if self.at_most else "at least"
        return f"{self.above} / {self.below}: {found:.2f} ({sign} {self.bound:g}: {'yes' if holds else 'NO'})", holds


def arguments(doc: str | None, **defaults: Any) -> argparse.Namespace:
    """The options that all scripts have, and a script's own with their defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--machine", help="the folder in results/; default: cpu-N-cores, or the name of the GPU")
    parser.add_argument("--images-from", help="a folder of photographs; default: those that scikit-image ships")
    for name, value in defaults.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, list):
            parser.add_argument(flag, nargs="+", default=value, type=type(value[0]))
        else:
            parser.add_argument(flag, default=value, type=type(value))
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return options


def photographs(options: argparse.Namespace, classifier: Classifier, n: int) -> Tensor:
    """(n,3,H,W), an even choice of the folder's, or the sample photographs over and over."""
    data: ImageDataModule = SamplePhotos() if options.images_from is None else ImagePaths(options.images_from, limit=n)
    data.match_network(classifier.input_size, classifier.interpolation, classifier.crop_fraction)
    data.setup()
    table = data.table
    return torch.stack([table[i % len(table)]["image"] for i in range(n)]).to(options.device)


def classifier_of(name: str, options: argparse.Namespace, **settings: Any) -> Classifier:
    """The network on its device: with its weights if a package brings them, otherwise with random ones."""
    weights = "default" if name.startswith("demo/") else None
    return Classifier(name, weights=weights, **settings).to(options.device)


def at_speed(plain: Classifier, speed: str, **settings: Any) -> Classifier:
    """The same network with the same settings at another `speed`."""
    kept = ("target_layer", "mean", "std", "input_size", "interpolation", "crop_fraction")
    same = {key: value for key, value in plain.settings().items() if key in kept}
    return Classifier(plain.network, speed=speed, **same, **settings)


def race(title: str, unit: str, contestants: Sequence[Contestant], rounds: int, warm: bool = True) -> Table:
    """Let all take turns, each round beginning with another; times are for one unit of work."""
    gc.collect()
    gc.freeze()  # what is here now stays: the collection before each call need not look at it again
    for one in contestants:
        if warm and one.rounds == 0:
            timed(one.call)
    table = Table(title, unit, {one.name: [] for one in contestants}, {one.name: one.role for one in contestants})
    for number in range(rounds):
        first = number % len(contestants)
        for one in [*contestants[first:], *contestants[:first]]:
            if one.rounds == 0 or number < one.rounds:
                table.seconds[one.name].append(timed(one.call) / one.work)
    gc.unfreeze()
    return table


def timed(call: Callable[[], Any]) -> float:
    """Seconds of one call, everything on the device finished."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    own = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return own if isinstance(own, float) else time.perf_counter() - start


def passes(network: Callable[[Tensor], Tensor], image: Tensor, count: int, backward: bool = True) -> Callable[[], None]:
    """The bare passes: forward, and the gradient with respect to the image, `count` times."""

    def call() -> None:
        for _ in range(count):
            given = image.detach().requires_grad_(backward)
            with torch.set_grad_enabled(backward):
                score = network(given)[:, 0].sum()
            if backward:
                torch.autograd.grad(score, given)

    return call


def graphed(classifier: Classifier, image: Tensor, count: int, backward: bool = True) -> Callable[[], None]:
    """The bare passes on a GPU at their fastest: folded, channels last, bfloat16, replayed as a CUDA graph."""
    network = folded(classifier).to(torch.bfloat16)
    given = (image - classifier.mean.view(-1, 1, 1)) / classifier.std.view(-1, 1, 1)
    given = given.to(torch.bfloat16).contiguous(memory_format=torch.channels_last).requires_grad_(backward)
    work, graph, side = passes(network, given, 1, backward), torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        work()

    def call(kept: object = work) -> None:  # the graph itself keeps neither the network nor the images
        for _ in range(count):
            graph.replay()

    return call


def on_gpu(options: argparse.Namespace) -> bool:
    """Whether the benchmark runs on a GPU, where the limit is another."""
    return str(options.device).startswith("cuda")


@contextmanager
def apart(
    prepare: Callable[..., Callable[[], Any]], options: argparse.Namespace, *args: Any
) -> Iterator[Callable[[], None]]:
    """A call in a process of its own, with the C library's habits: `keep_freed_memory` holds for a whole process.

    Args:
        prepare: a function of a module, which gets the options and arguments there and returns what is to be called.
        options: those of the script.
        args: more arguments.
    """
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, prepare, options, *args), daemon=True)
    process.start()
    theirs.close()  # so that a process that fails is noticed

    def ask() -> None:
        ours.send(True)
        ours.recv()

    try:
        yield ask
    finally:
        ours.close()  # which ends it
        process.join()


def _serve(
    pipe: Connection, prepare: Callable[..., Callable[[], Any]], options: argparse.Namespace, *args: Any
) -> None:
    """In the process of `apart`."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    call = prepare(options, *args)
    with suppress(EOFError):
        while pipe.recv():
            call()
            pipe.send(True)


def folded(classifier: Classifier) -> nn.Module:
    """A copy with batch norms folded into convolutions, channels last: the fastest plain form of the same network."""
    network = copy.deepcopy(classifier.network)
    for module in list(network.modules()):
        children = list(module.named_children())
        for (first, convolution), (second, norm) in itertools.pairwise(children):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, first, fuse_conv_bn_eval(convolution, norm))
                setattr(module, second, getattr(norm, "act", nn.Identity()))
    return network.requires_grad_(False).eval().to(memory_format=torch.channels_last)


def unfrozen(classifier: Classifier) -> Classifier:
    """A copy whose parameters want gradients, as those of a network that nobody has frozen."""
    network = copy.deepcopy(classifier)
    for parameter in network.network.parameters():
        parameter.requires_grad_()
    return network


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on."""
    found: dict[str, Any] = {
        "name": options.machine or machine_name(options.device),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver()) or 'no glibc'}",
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "versions": {name: found for name in PACKAGES if (found := installed(name))},
    }
    if options.device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def machine_name(device: str) -> str:
    """The folder of results for this machine."""
    if device == "cuda":
        return torch.cuda.get_device_name().lower().replace(" ", "-")
    return f"cpu-{os.cpu_count()}-cores"


def processor() -> str:
    """The CPU's model."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def installed(name: str) -> str | None:
    """A package's version."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def finish(subject: str, tables: Sequence[Table], options: argparse.Namespace) -> None:
    """Print and write the tables and docs/performance.md, and exit with 1 where a claim does not hold."""
    made_on = machine(options)
    folder = RESULTS / made_on["name"]
    folder.mkdir(parents=True, exist_ok=True)
    page = markdown(subject, tables, made_on)
    settings = {key: value for key, value in vars(options).items() if key not in ("images_from", "machine")}
    stored = {
        "subject": subject,
        "machine": made_on,
        "settings": settings,
        "tables": [
            {
                "title": table.title, "unit": table.unit, "limit": table.limit, "roles": table.roles,
                "seconds": {name: [round(value, 7) for value in values] for name, values in table.seconds.items()},
                "claims": [claim.words(table)[0] for claim in table.shows], "notes": table.notes,
                "values": table.values,
            }
            for table in tables
        ],
    }  # fmt: skip
    (folder / f"{subject}.json").write_text(json.dumps(stored, indent=1) + "\n")
    (folder / f"{subject}.md").write_text(page)
    performance_page.write()
    print(page)
    sys.exit(0 if all(claim.words(table)[1] for table in tables for claim in table.shows) else 1)


def markdown(subject: str, tables: Sequence[Table], made_on: dict[str, Any]) -> str:
    """The page of one subject."""
    versions = ", ".join(f"{name} {found}" for name, found in made_on["versions"].items())
    where = f"{made_on['processor']}, {made_on['cores']} cores, {made_on['threads']} threads"
    where += f", {made_on['gpu']}" if "gpu" in made_on else ""
    lines = [f"# {subject}", "", f"{made_on['date']}, {where}, Python {made_on['python']}, {versions}.", ""]
    for table in tables:
        lines += [f"## {table.title}", "", *rows(table), ""]
        lines += [f"- {claim.words(table)[0]}" for claim in table.shows]
        lines += [f"- {name}: {value}" for name, value in table.values.items()]
        lines += [f"- {note}" for note in table.notes]
        lines += [""] if table.shows or table.notes or table.values else []
    return "\n".join(lines)


def rows(table: Table) -> list[str]:
    """The Markdown table of a race."""
    if not table.seconds:
        return []
    limit = table.limit
    found = [f"| | {table.unit} | middle half | of the limit | rounds |", "|---|---:|---:|---:|---:|"]
    for name, values in table.seconds.items():
        low, high = quartiles(values)
        share = f"{table.ratio(name, limit):.2f}"
        role = {"limit": " (limit)", "peer": " (peer)"}.get(table.roles[name], "")
        found.append(
            f"| {name}{role} | {human(statistics.median(values))} | {human(low)} to {human(high)} | {share} |"
            f" {len(values)} |"
        )
    return found


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The middle half of the values."""
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def human(seconds: float) -> str:
    """Seconds with three digits and a fitting unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
