"""The paper's numbers, for comparison with ours.

`published.csv` holds every number of the tables of Zhang, Torres, Sicre, Avrithis and Ayache, "Opti-CAM: Optimizing
saliency maps for interpretability", Computer Vision and Image Understanding 248 (2024) 104101,
doi 10.1016/j.cviu.2024.104101. Its columns are table, dataset, network, variant (the settings that differ from the
paper's usual ones), method, metric, which direction is better, and value. Values are in percent, except for the maximum
sensitivity, the saliency metric and the seconds. They were read from one text extraction of the article and checked
against a second one, not against the publisher's PDF. Seconds are not compared, because they were measured on another
machine.
"""

from __future__ import annotations

import csv
import functools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any, get_type_hints

from optcam_pl.reports.tables import Estimate, PaperValue, Summary, own_metrics

METHODS = {
    "AblationCAM": "Ablation-CAM",
    "AttentionRollout": "Rollout",
    "ExtremalPerturbation": "ExPerturbation",
    "FakeCAM": "Fake-CAM",
    "GradCAM": "Grad-CAM",
    "GradCAMPlusPlus": "Grad-CAM++",
    "GradientSHAP": "GradientShap",
    "HiResCAM": "HiRes-CAM",
    "LayerCAM": "Layer-CAM",
    "OptiCAM": "Opti-CAM",
    "RawAttention": "RawAtt",
    "ScoreCAM": "Score-CAM",
    "XGradCAM": "XGrad-CAM",
}
"""Our method names -> the paper's, where the two differ. LIME and TIBAV, for example, have the same name in both."""

_MAPS_OF_BOXES = {"box": "box", "complement": "box_complement"}  # `region` of a run with any explainer: table 5

# The settings that the paper's runs share, overall or for a dataset or network: all values with the same meaning.
_IMAGENET = ("imagenetval", "imagenet", "imagenet1k", "ilsvrc2012", "ilsvrc2012val", "imagenetval1000")
_DATA = {
    "imagenet_val": (_IMAGENET, 50_000),
    "imagenet_val_1000": (_IMAGENET, 1000),
    "chest_xray": (("chestxray",), 624),
    "kvasir": (("kvasir", "kvasirv2"), 1000),
}
_VIT_LAYERS = ("blocks.11.norm1", "blocks.-1.norm1")
_LAYERS = {
    "resnet50": ("layer4.2", "layer4.-1", "layer4"),
    "vgg16_bn": ("features.42", "features.-2"),
    "vit_base_patch16_224": _VIT_LAYERS,
    "deit_base_patch16_224": _VIT_LAYERS,
}
_COMMON = {
    "baseline": "black",
    "input_size": [224, 224],
    "resize": "stretch",
    "target": "label",
    "selectivity": 1.0,
    "augment": False,
    "input_normalization": "the network's",
}
# On ImageNet. Torchvision's usual weights of ResNet50 are newer than the paper's, and 4.7 points better.
_WEIGHTS = {"resnet50": "IMAGENET1K_V1", "vgg16_bn": "IMAGENET1K_V1"}
_OPTICAM = {
    **{"objective": "mask", "normalizer": "range", "max_iter": 100, "lr": 0.1, "tol": 1e-10, "optimizer": "Adam"},
    **{"start": "uniform", "schedule": "constant", "betas": [0.9, 0.999]},  # a run names them where they are others
}
_TARGETS = {"label": "label", "top1": "predicted", "top2": "second", "last": "least"}
MISCLASSIFIED = "top1_misclassified"
"""The target of the part of a run with the predicted class whose images have another label (table A.9)."""

_NOT_PERCENT = ("max_sensitivity", "saliency_metric", "seconds_per_batch_of_8")


@dataclass(frozen=True)
class Published:
    """A number from the paper; see the module docstring."""

    table: str
    dataset: str
    network: str
    variant: str
    method: str
    metric: str
    better: str
    value: float


@functools.cache
def published() -> tuple[Published, ...]:
    """Return every number in the paper's tables.

    Example:
        >>> [row.value for row in published() if row.table == "1" and row.network == "resnet50"
        ...  and row.method == "Opti-CAM" and row.metric == "average_gain"]
        [68.8]
    """
    kinds = get_type_hints(Published)
    text = (files("optcam_pl.reports") / "published.csv").read_text("utf-8")
    return tuple(
        Published(**{key: kinds[key](cell) for key, cell in row.items()}) for row in csv.DictReader(text.splitlines())
    )


def _variant(row: Published) -> dict[str, str]:
    return dict(setting.split("=") for setting in row.variant.split(";")) if row.variant else {}


def _wanted(row: Published) -> dict[str, tuple[Any, ...]]:
    """The settings behind a published number: name -> our values with the same meaning."""
    names, images = _DATA[row.dataset]
    usual = {**_COMMON, **(_OPTICAM if row.method == "Opti-CAM" else {})}
    wanted: dict[str, tuple[Any, ...]] = {key: (value,) for key, value in usual.items()}
    wanted |= {"data": (row.dataset, *names), "images": (images,), "layer": _LAYERS[row.network]}
    wanted["weights"] = (_WEIGHTS.get(row.network, "pretrained") if names is _IMAGENET else "fine-tuned",)
    if row.table in ("5", "A.13") and row.method == "Opti-CAM":
        wanted["max_iter"] = (50,)  # the captions do not say so, but the numbers are those of table 6
    for key, value in _variant(row).items():
        wanted[key] = (int(value) if value.isdigit() else _TARGETS.get(value, value),)
    if wanted["target"] == (MISCLASSIFIED,):
        del wanted["images"]  # their number is a result
    return wanted


def _facts(summary: Summary) -> dict[str, Any]:
    """A run's settings, under the names that `_wanted` uses."""
    facts = {"region": "S", **summary.options, **summary.settings, "images": summary.images}
    plain = re.sub(r"[^a-z0-9]", "", summary.data.lower())
    if facts["region"] in ("map", *_MAPS_OF_BOXES):
        facts["region"] = "S"
    facts["data"] = plain if any(plain in names for names, _ in _DATA.values()) else summary.data
    if "mean" in facts and "std" in facts:
        none = not any(facts["mean"]) and all(value == 1 for value in facts["std"])
        facts["input_normalization"] = "none" if none else "the network's"
    if "weights" in facts:
        facts["weights"] = _weights(summary.classifier, str(facts["weights"]), facts["data"])
    if len(words := str(facts.get("input", "")).replace(",", "").split()) > 1:
        facts["resize"] = words[1]  # "224x224 stretch, bilinear"
    if missing := summary.statuses["missing"]:
        facts["images"] = f"{summary.images - missing} of {summary.images}"
    if isinstance(facts.get("layer"), list) and len(facts["layer"]) == 1:
        facts["layer"] = facts["layer"][0]
    return facts


def _weights(classifier: str, weights: str, data: str) -> str:
    """A run's weights under the names that `_wanted` uses."""
    network, plain = network_of(classifier), re.sub(r"[^a-z0-9]", "", data.lower())
    if weights == "random":
        return weights
    if any(plain in names for names, _ in _DATA.values() if names is not _IMAGENET):
        return "fine-tuned"
    if network == "vgg16_bn" and weights == "default":  # torchvision has no others
        return _WEIGHTS[network]
    return weights if network in _WEIGHTS else "pretrained"


def _differences(row: Published, facts: dict[str, Any]) -> tuple[str, ...]:
    """The differences from the paper. A usual setting that the run lacks (another method's) is not a difference."""
    wanted = _wanted(row)
    metric = {key: (value,) for key, value in own_metrics()[row.metric]().settings().items()}
    required = _variant(row)
    return tuple(
        f"{key} {_shown(facts.get(key, 'not set'))}, not {_shown(values[0])}"
        for key, values in {**metric, **wanted}.items()
        if (key in facts or key in required) and facts.get(key) not in values
    )


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def network_of(classifier: str) -> str:
    """A classifier's network, as the paper's values name it.

    Example:
        >>> network_of("timm/vit_base_patch16_224.augreg_in1k")
        'vit_base_patch16_224'
    """
    return classifier.rpartition("/")[2].partition(".")[0]


def _closest(rows: Iterable[Published], facts: dict[str, Any]) -> tuple[Published, tuple[str, ...]] | None:
    return min(((row, _differences(row, facts)) for row in rows), key=lambda found: len(found[1]), default=None)


def beside_published(summary: Summary, table: str | None = None, network: str | None = None) -> Summary:
    """Add the paper's values to a run's summary.

    Args:
        summary: the run's numbers.
        table: take values of this table only, and of its variants (objectives, layers, classes ...) only the run's own.
        network: the network whose values are taken, as `networks_of` names it; None is the run's own.

    Returns:
        The summary with `Estimate.published` set wherever the paper reports this method on this network. If the paper
        has several values, the one with the closest settings is taken, and the differences are listed. If the paper has
        no value, a note says so.
    """
    method = METHODS.get(summary.explainer, summary.explainer)
    method = _MAPS_OF_BOXES.get(str(summary.settings.get("region")), method)
    if table is not None:
        return _beside_table(summary, table, method, network or network_of(summary.classifier))
    network = network_of(summary.classifier)
    rows = [row for row in published() if row.network == network and row.method == method]
    if not rows:
        absent = [f"the network {network}"] if network not in _LAYERS else []
        absent += [f"the method {method}"] if method not in {row.method for row in published()} else []
        note = f"the paper has no value for {' and '.join(absent) or f'{method} on {network}'}"
        return replace(summary, notes=(*summary.notes, note))
    return _with_values(summary, rows)


def networks_of(table: str) -> list[str]:
    """The networks for which a table of the paper has values, in its order.

    Example:
        >>> networks_of("2")
        ['vit_base_patch16_224', 'deit_base_patch16_224']
    """
    return list(dict.fromkeys(row.network for row in published() if row.table == table))


def published_seconds(explainer: str, network: str, table: str) -> float | None:
    """The paper's seconds for a batch of 8 images; None where the table has none.

    Args:
        explainer: our name of the method.
        network: as `networks_of` names it.
        table: the table's name.

    Example:
        >>> published_seconds("OptiCAM", "vgg16_bn", "1")
        3.94
    """
    wanted = ("seconds_per_batch_of_8", table, METHODS.get(explainer, explainer), network)
    found = (row.value for row in published() if (row.metric, row.table, row.method, row.network) == wanted)
    return next(found, None)


def _beside_table(summary: Summary, table: str, method: str, network: str) -> Summary:
    """The summary with the values of one table for one network; those of another network are never comparable."""
    own, facts = network_of(summary.classifier), _facts(summary)
    rows = [row for row in published() if (row.table, row.method, row.network) == (table, method, network)]
    rows = [row for row in rows if all(facts.get(key) in _wanted(row)[key] for key in _variant(row))]
    found = _with_values(summary, rows)
    if own == network:
        return found
    metrics = {
        key: replace(estimate, published=replace(paper, differences=(f"network {own}, not {network}",)))
        if (paper := estimate.published)
        else estimate
        for key, estimate in found.metrics.items()
    }
    return replace(found, metrics=metrics)


def _with_values(summary: Summary, rows: Sequence[Published]) -> Summary:
    """The summary with the value of each metric that has the closest settings."""
    facts = _facts(summary)
    metrics: dict[str, Estimate] = {}
    for key, estimate in summary.metrics.items():
        metrics[key] = estimate
        info = summary.info(key)
        if not info.path.startswith("optcam_pl."):  # a user's own metric with the same key as one in the paper
            continue
        if found := _closest((row for row in rows if row.metric == key), facts):
            row, differences = found
            per = 100 if key not in _NOT_PERCENT and info.unit != "%" else 1
            metrics[key] = replace(estimate, published=PaperValue(row.value / per, row.table, differences))
    return replace(summary, metrics=metrics)
