"""The experiments of the paper: which configs each of them is, and what it costs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from optcam_pl.checks import nearest
from optcam_pl.cli import words
from optcam_pl.cli.grid import points, read_axes
from optcam_pl.reports.grids import aligned
from optcam_pl.reports.published import networks_of, published_seconds

CONFIGS = words.CONFIGS / "paper"
Kind = Literal["table", "grid", "selectivity", "sanity"]

# Passes of the network that a metric takes of an image; those of a map again for Max-Sensitivity are told apart.
_PASSES = {
    **{"AverageDrop": 1, "Insertion": 225, "Deletion": 225, "AOPC": 11, "ADCC": 2},
    **{"SelectivityDrop": 10},  # Gain and Increase measure the same images
}
_IMAGES = {"ImageNet": 50_000, "ChestXRay": 624, "Kvasir": 1000}


@dataclass(frozen=True)
class Experiment:
    """A table or a figure of the paper.

    Attributes:
        name: what `optcam paper` calls it.
        title: what it is about.
        table: its name in `published.csv`; "" for a figure, which has no numbers there.
        configs: network -> the configs that make it, without their ending. A second config has methods of its own that
            the command line does not choose.
        kind: what is drawn beside the table: nothing, the grid, the curves against alpha, or the sanity check.
    """

    name: str
    title: str
    table: str
    configs: Mapping[str, tuple[str, ...]]
    kind: Kind = "table"

    def files(self, network: str) -> list[Path]:
        """The configs of a network."""
        return [CONFIGS / f"{stem}.yaml" for stem in self.configs[network]]


def _of(name: str, networks: Iterable[str], *also: str) -> dict[str, tuple[str, ...]]:
    return {network: (f"{name}_{network}", *(f"{name}_{network}_{word}" for word in also)) for network in networks}


_CNNS, _VITS = ("resnet50", "vgg16_bn"), ("vit_base", "deit_base")
_MEDICAL = tuple(f"{data}_{network}" for data in ("chest_xray", "kvasir") for network in _CNNS)
_FAITHFUL = "Average Drop, Gain and Increase"
_VGG = ("vgg16_bn",)

EXPERIMENTS = {
    found.name: found
    for found in (
        Experiment("table1", f"{_FAITHFUL}, CNNs", "1", _of("table1", _CNNS)),
        Experiment("table2", f"{_FAITHFUL}, transformers", "2", _of("table2", _VITS)),
        Experiment("table3", "insertion and deletion", "3", _of("table3", (*_CNNS, *_VITS))),
        Experiment("table4", "AOPC, Max-Sensitivity, ADCC", "4", _of("table4", _CNNS)),
        Experiment("table5", "bounding-box study", "5", _of("table5", _VGG, "box")),
        Experiment("table6", "objective x normalizer", "6", _of("table6", _VGG), "grid"),
        Experiment("tableA7", "localization, CNNs", "A.7", _of("tableA7", _CNNS)),
        Experiment("tableA8", "localization, transformers", "A.8", _of("tableA8", _VITS)),
        Experiment("tableA9", "maps of other classes; misclassified images", "A.9", _of("tableA9", ("resnet50",))),
        Experiment("tableA10", f"{_FAITHFUL}, medical images", "A.10", {name: (name,) for name in _MEDICAL}),
        Experiment("tableA11", "insertion and deletion, medical images", "A.11", _of("tableA11", _MEDICAL)),
        Experiment("tableA12", "objectives with the masked-out image", "A.12", _of("tableA12", _VGG), "grid"),
        Experiment("tableA13", "layers", "A.13", _of("tableA13", _VGG), "grid"),
        Experiment("tableA14", f"{_FAITHFUL} without normalization", "A.14", _of("tableA14", _CNNS)),
        Experiment("figureA4", "selectivity: the map to the power of alpha", "", _of("figureA4", _VGG), "selectivity"),
        Experiment("figureA5", "iterations x learning rate", "", _of("figureA5", _VGG), "grid"),
        Experiment("figureA6", "sanity check", "", _of("figureA6", ("resnet50",)), "sanity"),
    )
}
"""Name -> experiment, in the order of the paper."""


def find_experiment(name: str) -> Experiment:
    """The experiment of a name; "table A.7", "A7" and "tableA7" are the same.

    Raises:
        ValueError: there is none; the message lists the nearest names.

    Example:
        >>> find_experiment("A.13").title
        'layers'
    """
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    for found in EXPERIMENTS.values():
        whole = found.name.lower()
        if plain and plain in (whole, whole.removeprefix("table"), whole.removeprefix("figure")):
            return found
    raise ValueError(
        f"Expected a table or figure of the paper, but got {name!r}. "
        f"The nearest are: {nearest(name, list(EXPERIMENTS))}; `optcam paper --list` shows all."
    )


def list_text() -> str:
    """The experiments with their networks, and what each costs."""
    heads = ["name", "about", "networks", "runs", "images", "maps, GPU hours*", "passes to measure"]
    body = [[found.name, found.title, *cost(found)] for found in EXPERIMENTS.values()]
    return "\n".join(
        [
            *aligned(heads, body, 3),
            "* On one GPU of the paper's authors, from the seconds in its tables 1 and 2; `--limit N` takes N images,",
            "  and the cost falls in proportion. Passes of the network an image, beside those of the maps.",
            "Medical images need networks that are fine-tuned first: optcam fit --config configs/paper/..._fit.yaml.",
            "",
        ]
    )


def cost(of: Experiment) -> list[str]:
    """What an experiment costs, as in `list_text`: networks, runs, images, hours for the maps, passes to measure."""
    files = [(network, read_config(file)) for network in of.configs for file in of.files(network)]
    images = max(_images(config) for _, config in files)
    names = ", ".join(of.configs) if len(of.configs) < 4 else f"{len(of.configs)}: {next(iter(of.configs))} ..."
    runs = sum(len(_methods(config)) * len(points(read_axes([], config.get("grid")))) for _, config in files)
    hours = sum(_hours(network, config) for network, config in files)
    if of.kind == "sanity":
        hours *= len(files[0][1]["stages"]) + 1
    passes = sum(_PASSES.get(name, 0) for name in _metrics(files[0][1]))
    return [
        names,
        str(runs),
        str(images),
        f"{hours:.0f}" if hours >= 10 else f"{hours:.2g}",
        "-" if of.kind == "sanity" else str(passes),
    ]


def read_config(file: Path) -> dict[str, Any]:
    """A config as it is written."""
    config: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return config


def _images(config: Mapping[str, Any]) -> int:
    data = config["data"]
    return int(data["init_args"].get("limit") or _IMAGES[data["class_path"]])


def _metrics(config: Mapping[str, Any]) -> list[str]:
    return [m if isinstance(m, str) else m["class_path"] for m in config["model"]["init_args"]["metrics"]]


def _methods(config: Mapping[str, Any]) -> list[str]:
    listed = config.get("explainers") or ["OptiCAM"]
    return [entry if isinstance(entry, str) else entry["class_path"] for entry in listed]


def _hours(network: str, config: Mapping[str, Any]) -> float:
    """Hours on the authors' GPU for the maps: Opti-CAM's seconds are those of 100 iterations."""
    init = config["model"]["init_args"]
    iterations = init["explainer"]["init_args"]["max_iter"]
    axes = read_axes([], config.get("grid"))
    own = next((values for key, values in axes.items() if key.endswith("max_iter")), None)
    each = len(points(axes)) if own is None else len(points(axes)) // len(own)
    share = iterations / 100 if own is None else sum(map(int, own)) / 100
    seconds = 0.0
    for method in _methods(config):
        seconds += _seconds(method, network) * each * (share if method == "OptiCAM" else 1)
    again = 11 if "MaxSensitivity" in _metrics(config) else 1
    return seconds / 8 * _images(config) * again / 3600


def _seconds(method: str, network: str) -> float:
    """The authors' seconds for 8 images; 0 for a method without a time."""
    for table in ("1", "2"):
        for name in networks_of(table):
            if network.endswith(name.removesuffix("_patch16_224")):
                return published_seconds(method, name, table) or 0.0
    return 0.0


def short_network(name: str) -> str:
    """A network's name in the names of the configs.

    Example:
        >>> short_network("timm/vit_base_patch16_224"), short_network("resnet50")
        ('vit_base', 'resnet50')
    """
    return name.rpartition("/")[2].removesuffix("_patch16_224")


def unknown_network(name: str, own: Sequence[str]) -> ValueError:
    """The error for a network that is none of the configs' and has no source."""
    return ValueError(
        f"Expected `--network` to be one of {', '.join(own)}, or another one with its source (timm/resnet18), but got "
        f"{name!r}. The nearest are: {nearest(name, list(own))}."
    )


def instead(network: str) -> list[str]:
    """The words that put another network in the place of a config's; its layer is the usual one of its family."""
    return [f"--model.classifier.{word}" for word in (f"network={network}", "weights=default")]
