"""`optcam paper check`: does the set-up measure what the paper measures, and if not, what would that move?"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from optcam_pl.checks import expanded_path
from optcam_pl.cli.experiments import EXPERIMENTS, instead, short_network, unknown_network
from optcam_pl.cli.grid import points
from optcam_pl.cli.lightning_cli import OptcamCLI
from optcam_pl.cli.methods import Method
from optcam_pl.cli.output import show, tell
from optcam_pl.cli.points import Job, print_failed, run_all
from optcam_pl.data import ImageDataModule
from optcam_pl.explainers import CAM
from optcam_pl.network.classifier import Classifier
from optcam_pl.reports.calibration import (
    TIMM_ACCURACY,
    Finding,
    accuracy,
    findings_grid,
    findings_text,
    localization,
    resizing,
    saliency_metric,
    same_maps,
)
from optcam_pl.reports.grids import render
from optcam_pl.reports.summary import Run, load_run
from optcam_pl.runs.files import write_file
from optcam_pl.runs.folders import REPORT, check_no_others
from optcam_pl.tasks import SaliencyTask

_RUNS = {
    "FakeCAM": ("FakeCAM", "stretch"),
    "GradCAM": ("GradCAM", "stretch"),
    "HiResCAM": ("HiResCAM", "stretch"),
    "XGradCAM": ("XGradCAM", "stretch"),
    "FakeCAM_crop": ("FakeCAM", "crop"),
    "GradCAM_crop": ("GradCAM", "crop"),
}
_METRICS = ["AverageDrop", "AverageGain", "AverageIncrease"]
_OF_BOXES = ["LocalizationError", "SaliencyMetric"]


def paper_check(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """`optcam paper check ...`; returns the exit code: 1 if a check is off or a run broke off.

    Args:
        options: those of the command line.
        rest: the words for `optcam test`.
    """
    words = [*_config(options.network), *rest, *([f"--data.limit={options.limit}"] if options.limit else [])]
    size = f"_limit{options.limit}" if options.limit else ""
    folder = expanded_path(options.run_dir) / "check" / f"{options.network.rpartition('/')[2]}{size}"
    check_no_others(folder)
    task, data = _parts(["test", *words, "--model.explainer=FakeCAM"])
    metrics = _METRICS + (_OF_BOXES if "boxes" in data.annotations else [])
    todo = [_job(name, words, metrics, folder) for name in _RUNS]
    outcome = run_all(todo, "optcam paper check")
    if not outcome.leader:
        return outcome.exit_code
    runs = {job.folder.name: load_run(job.folder) for job in todo if job.name not in outcome.failed}
    if not runs:
        print_failed(outcome)
        return outcome.exit_code
    findings = _findings(runs, published_accuracy(task.classifier), pooled=_pools(task.classifier))
    images = next(iter(runs.values())).manifest["images"]
    title = f"Checks of {task.classifier.name} on {images} images of {data.name}:"
    write_file(folder / REPORT / "check.md", render(findings_grid(findings, title), "markdown"))
    show(findings_text(findings, title) + "\n")
    if "boxes" not in data.annotations:
        tell("Fake-CAM's LE and SM need boxes: --data.boxes FILE.")
    print_failed(outcome)
    return max(outcome.exit_code, int(any(finding.verdict == "off" for finding in findings)))


def _config(network: str) -> list[str]:
    """The words that choose the config of table 1 or 2, and the network."""
    for name in ("table1", "table2"):
        if short_network(network) in EXPERIMENTS[name].configs:
            return ["--config", str(EXPERIMENTS[name].files(short_network(network))[0])]
    if not any(mark in network for mark in "/.:"):
        raise unknown_network(network, [*EXPERIMENTS["table1"].configs, *EXPERIMENTS["table2"].configs])
    return ["--config", str(EXPERIMENTS["table1"].files("resnet50")[0]), *instead(network)]


def _parts(words: Sequence[str]) -> tuple[SaliencyTask, ImageDataModule]:
    """The task and the data that words describe."""
    cli = OptcamCLI(words, dry=True)
    if not isinstance(cli.model, SaliencyTask):
        raise TypeError(f"Expected a SaliencyTask to check, but got {type(cli.model).__name__}.")
    data: ImageDataModule = cli.datamodule
    return cli.model, data


def _job(name: str, words: Sequence[str], metrics: Sequence[str], folder: Path) -> Job:
    explainer, resize = _RUNS[name]
    method, (point,) = Method(name, explainer, complete=True), points({})
    own = [f"--data.resize={resize}", f"--model.metrics={json.dumps(list(metrics))}"]
    return Job(point, method, ("test", *method.added_to(words), *own, f"--run_dir={folder / name}"), folder / name)


def published_accuracy(classifier: Classifier) -> float | None:
    """The top-1 accuracy in percent that the source of a network's weights states; None if it is not known.

    Torchvision states it with its weights. For timm's, `TIMM_ACCURACY` has those of the paper's networks and the demo.
    """
    source, _, name = classifier.name.partition("/")
    if source == "torchvision":
        from torchvision.models import get_model_weights

        sets = get_model_weights(name)
        chosen = sets.DEFAULT if classifier.weights == "default" else getattr(sets, classifier.weights, None)
        found = None if chosen is None else chosen.meta["_metrics"].get("ImageNet-1K", {}).get("acc@1")
        return None if found is None else float(found)
    if classifier.weights != "default":
        return None
    if source == "timm" and "." not in name:
        from timm import get_pretrained_cfg

        own = get_pretrained_cfg(name)
        name = f"{name}.{own.tag}" if own is not None and own.tag else name
    return TIMM_ACCURACY.get({"demo": "tf_efficientnet_lite0.in1k"}.get(source, name))


def _pools(classifier: Classifier) -> bool:
    """Whether the head is average pooling and one linear layer, which is where CAM works."""
    try:
        CAM()(classifier, torch.zeros(1, 3, *classifier.input_size, device=classifier.mean.device))
    except ValueError:
        return False
    return True


def _findings(runs: dict[str, Run], published: float | None, *, pooled: bool) -> list[Finding]:
    """What the runs that came to their end say."""
    found: list[Finding | None] = []
    if "FakeCAM_crop" in runs:
        found.append(accuracy(runs["FakeCAM_crop"], published))
    if "FakeCAM" in runs:
        found += [localization(runs["FakeCAM"]), saliency_metric(runs["FakeCAM"])]
    for other in ("HiResCAM", "XGradCAM"):
        if {other, "GradCAM"} <= runs.keys():
            found.append(same_maps(runs["GradCAM"], runs[other], pooled=pooled))
    if {"GradCAM", "GradCAM_crop"} <= runs.keys():
        found.append(resizing(runs["GradCAM"], runs["GradCAM_crop"]))
    return [finding for finding in found if finding is not None]
