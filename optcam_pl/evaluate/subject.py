"""The parts of a run: network, method, data and metrics that fit together, and the manifest that describes them."""

from __future__ import annotations

import inspect
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor

from optcam_pl.data import EachBox, ImageDataModule
from optcam_pl.explainers import Explainer
from optcam_pl.explainers.chunk_size import ChunkSize
from optcam_pl.metrics import (
    METRICS,
    AverageDrop,
    AverageGain,
    AverageIncrease,
    Deletion,
    ImageMetric,
    Insertion,
)
from optcam_pl.metrics.functional.localization import Region
from optcam_pl.network.classifier import Classifier
from optcam_pl.network.detection import Detection
from optcam_pl.runs.manifest import flatten

Stage = Literal["fit", "validate", "test", "predict"]


def default_metrics(classifier: Classifier | None = None) -> list[ImageMetric]:
    """The metrics that are measured by default; for scores without a probability, the curves of the scores."""
    if classifier is None or classifier.has_probabilities:
        return [AverageDrop(), AverageGain(), AverageIncrease()]
    return [Insertion(output="logit", target="explained"), Deletion(output="logit", target="explained")]


def all_metrics(data: ImageDataModule, classifier: Classifier | None = None) -> list[ImageMetric]:
    """Every metric for which the dataset has the annotations and the size, and the network the probabilities.

    Args:
        data: the images, matched with the network.
        classifier: the network; None if its scores have probabilities.
    """
    lacking = {"boxes", "mask"} - _annotations(data)
    kinds = [kind for kind in METRICS.values() if not lacking & set(kind.evidence())]
    if classifier is None or classifier.has_probabilities:
        made = [kind() for kind in kinds]
    else:
        made = [metric for metric in map(_of_scores, kinds) if not metric.needs_probability]
    return [metric for metric in made if metric.fits(data.preprocessing.size)]


def _of_scores(kind: type[ImageMetric]) -> ImageMetric:
    """A metric of the explained score itself, if it has such options."""
    takes = inspect.signature(kind.__init__).parameters
    wanted: dict[str, Any] = {"output": "logit", "target": "explained"}
    return kind(**{name: value for name, value in wanted.items() if name in takes})


def check_probabilities(classifier: Classifier, metrics: Sequence[ImageMetric]) -> None:
    """Check that no metric needs a probability where the scores have none.

    Raises:
        ValueError: one does; the message names those that work.
    """
    refused = [] if classifier.has_probabilities else [metric for metric in metrics if metric.needs_probability]
    if refused:
        raise ValueError(
            f"Expected `metrics` that need no probability, as the scores of {classifier.scores.describe()} have none "
            f"(`link` is identity), but {refused[0].key} needs one. Insertion, Deletion, AOPC, Road, RoadMost, "
            'RoadLeast and Infidelity measure the scores themselves with output="logit", and metrics of the map alone '
            "or of boxes work as they are; or give the classifier a `link` of your own, an increasing function onto"
            " [0, 1]."
        )


def match(classifier: Classifier, explainer: Explainer, data: ImageDataModule, target: Any) -> None:
    """Match data and network before any image is read.

    Raises:
        ValueError: the network's head is new; the network lacks the explainer's layer; or the data do not fit.
    """
    if classifier.new_head:
        raise ValueError(
            f"Expected a trained network, but {classifier.name} has a new, random head for {classifier.num_classes} "
            "classes. Fine-tune it (`optcam fit` with a ClassificationTask) and give its checkpoint as `weights`; "
            "or leave `num_classes` open."
        )
    if explainer.layer is not None:
        explainer.layers(classifier)  # report an unknown name now, not when the first image is explained
    data.match_network(classifier.input_size, classifier.interpolation, classifier.crop_fraction, classifier.channels)
    used = isinstance(target, str) and target == "label" and not classifier.scores.per_image
    data.match_classes(classifier.class_names, classifier.name, used=used)
    classifier.check_function(data.preprocessing.size)
    if isinstance(data, EachBox):
        _match_boxes(classifier, data)


def _match_boxes(classifier: Classifier, data: EachBox) -> None:
    """Let the network look for the boxes, where these are its own detections."""
    scores = classifier.scores
    if not isinstance(scores, Detection) or scores.which != "boxes":
        raise ValueError(
            f"Expected a classifier with the scores Detection(references=boxes) for EachBox, whose rows are boxes, but "
            f"got {scores.describe()}."
        )

    def find(image: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(each.boxes, each.labels) for each in scores.detect(classifier, image.to(classifier.mean.device))]

    if data.boxes == "network":
        data.match_boxes(find, classifier)


def chooses_chunk_size(explainer: Explainer, chunk_size: ChunkSize, stage: Stage) -> bool:
    """Whether a run has to decide what "auto" means: for its explainer, or for what it measures with the network."""
    own = (value for key, value in flatten(explainer.settings()) if key.rpartition(".")[2] == "chunk_size")
    return "auto" in own or (chunk_size == "auto" and stage in ("validate", "test"))


def check_annotations(data: ImageDataModule, metrics: Sequence[ImageMetric], region: Region) -> None:
    """Check that the dataset has the annotations that the metrics and the region need.

    Raises:
        ValueError: it does not.
    """
    has = _annotations(data)
    needs = [(metric.key, name, need) for metric in metrics for name, need in metric.needs().items()]
    wanted = {name: "metric " + key for key, name, need in needs if not isinstance(need, tuple)}
    wanted |= {"boxes": f"`region` {region}"} if region != "map" else {}
    for name in ("boxes", "mask"):
        if name in wanted and name not in has:
            raise ValueError(f"Expected a dataset with {name}, which {wanted[name]} needs, but {data.name} has none.")


def _annotations(data: ImageDataModule) -> set[str]:
    return {{"boxes": "boxes", "masks": "mask"}[name] for name in data.annotations}


@dataclass(frozen=True)
class Subject:
    """Everything that a run's numbers depend on.

    Attributes:
        classifier: the network.
        explainer: the method.
        data: the images.
        metrics: the metrics that are measured.
        target: which class is explained, in its JSON form.
        region: the part of the map that is measured.
        precision: the precision, by its Lightning name.
        device: the kind of device: "cpu", "cuda".
        chunk_size: the number that a `chunk_size` "auto" means; None if no setting is "auto".
    """

    classifier: Classifier
    explainer: Explainer
    data: ImageDataModule
    metrics: Sequence[ImageMetric]
    target: Any
    region: Region
    precision: str
    device: str
    chunk_size: int | None = None

    def manifest(self, stage: Stage, run: str) -> dict[str, Any]:
        """Describe the run: its names, the settings printed with its numbers, and its fingerprint.

        Args:
            stage: the stage: what the run does.
            run: the name of the run: its folder, if it has one.
        """
        network = self.classifier.describe()
        explainer = {"class": type(self.explainer).__name__, **self.explainer.settings()}
        measured = self.metrics if stage in ("validate", "test") else []
        return {
            "stage": stage,
            "run": run,
            "data": self.data.name,
            "classifier": network["classifier"],
            "explainer": self.explainer.title,
            "explainer_settings": explainer,
            "images": len(self.data.table),
            "metrics": [metric.key for metric in measured],
            "metric_info": {metric.key: asdict(metric.describe()) for metric in measured},
            "settings": self._settings(network),
            "device": self.device,
            "fingerprint": self._fingerprint(network, explainer),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **({"class_names": list(names)} if (names := self.classifier.class_names) else {}),
        }

    def settings(self) -> dict[str, Any]:
        """The settings that are printed with its numbers, as JSON values by name."""
        return self._settings(self.classifier.describe())

    def _settings(self, network: dict[str, Any]) -> dict[str, Any]:
        preprocessing = self.data.preprocessing
        settings = {
            **network,
            "layer": self.explainer.layer or network["layer"],
            "input": f"{preprocessing.size[0]}x{preprocessing.size[1]} {preprocessing.resize}, "
            f"{preprocessing.interpolation}",
            "baseline": self.explainer.baseline,
            "target": self.target,
            "precision": self.precision,
        }
        if self.region != "map":
            settings["region"] = self.region
        if self.chunk_size is not None:
            settings["chunk_size"] = self.chunk_size
        for metric in self.metrics:
            settings.update(metric.settings())
        return settings

    def _fingerprint(self, network: dict[str, Any], explainer: dict[str, Any]) -> dict[str, Any]:
        return {
            "classifier": {**network, "hash": self.classifier.weight_hash()},
            "explainer": explainer,
            "target": self.target,
            "baseline": self.explainer.baseline,
            "region": self.region,
            "metrics": {metric.key: metric.settings() for metric in self.metrics},
            "data": self.data.fingerprint(),
            "block_size": self.data.batch_size,
            **({} if self.chunk_size is None else {"chunk_size": self.chunk_size}),
            "precision": self.precision,
            "device": self.device,
            "threads": torch.get_num_threads(),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
            },
        }
