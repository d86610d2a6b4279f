"""Passes in bfloat16 or float16 on the CPU: maps and numbers stay close to those of float32, and `fit` works."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from explainer_cases import correlation, tiny_cnn
from lightning.pytorch.plugins import MixedPrecision
from PIL import Image
from safetensors.torch import load_file
from test_explainers_properties import NAMES, make, suitable
from torch import Tensor

from optcam_pl import Classifier, OptiCAM, SaliencyTask
from optcam_pl.data import ImagePaths
from optcam_pl.evaluate.probes import Probes
from optcam_pl.explainers import CallableExplainer
from optcam_pl.metrics import AverageDrop, AverageGain, Deletion, ImageMetric, Insertion
from optcam_pl.tasks.base import without_scaler

# The smallest correlation of a map with float32's. A map of small differences shows more of the rounding: those between
# the evidence for two classes (FinerCAM) or of scores of a few segments (LIME), and masks that are found by steps.
LEAST = {"FinerCAM": 0.7, "LIME": 0.9, "MeaningfulPerturbation": 0.9}
# Their maps of this tiny network with random weights are nearly flat: test_explainers_attention.py looks at them.
ATTENTION = {"AttentionRollout", "RawAttention", "TIBAV"}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ATTENTION])
def test_a_map_under_autocast_is_like_that_of_float32(name: str) -> None:
    torch.manual_seed(0)
    explainer = make(name)
    classifier, image = suitable(explainer), torch.rand(2, 3, 16, 16)
    right = explainer(classifier, image, 1).saliency
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = explainer(classifier, image, 1).saliency
    for one, other in zip(found, right, strict=True):
        assert torch.equal(one, other) or correlation(one, other) > LEAST.get(name, 0.985)


def measured(classifier: Classifier, image: Tensor, metrics: list[ImageMetric]) -> Tensor:
    """Scores (M,B) of a fixed map."""
    explainer = CallableExplainer(lambda _classifier, image, _target: image.mean(1))
    with torch.no_grad():
        logits, explanation = classifier(image), explainer(classifier, image, 1)
        batch = {"image": image, "id": ["a", "b"], "index": torch.arange(2), "error": ["", ""]}
        probes = Probes(classifier, explainer, batch, logits, explanation)  # type: ignore[arg-type]
        return torch.stack([metric.score(**probes.evidence(metric.needs())) for metric in metrics])


def test_numbers_under_autocast_are_those_of_float32_up_to_its_rounding() -> None:
    torch.manual_seed(0)
    classifier, image = tiny_cnn(), torch.rand(2, 3, 16, 16)
    metrics = [AverageDrop(), AverageGain(), Insertion(steps=8), Deletion(steps=8)]
    right = measured(classifier, image, metrics)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = measured(classifier, image, metrics)
    assert found.dtype == right.dtype
    assert not torch.equal(found, right)  # the passes were in bfloat16
    torch.testing.assert_close(found, right, atol=1.0, rtol=0)  # of 100


def fitted(folder: Path, photographs: Path, scaler: torch.amp.GradScaler) -> tuple[dict[str, Tensor], L.Trainer]:
    """Weights that `fit` stores under float16's mixed precision."""
    torch.manual_seed(0)
    task = SaliencyTask(tiny_cnn(), OptiCAM(max_iter=3), target="predicted")
    task.run_dir = folder
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False, inference_mode=False,
        plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)], enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(task, datamodule=ImagePaths(str(photographs), size=16, batch_size=2))
    (file,) = (folder / "weights").glob("*.safetensors")
    return load_file(file), trainer


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*smaller than the logging interval",
    "ignore:.*LeafSpec.*:FutureWarning",  # Lightning 2.6 with torch 2.14
    r"ignore:.*module\(s\) in eval mode",  # the explained network stays as it is
)
def test_fit_in_float16_does_without_the_scaler_of_losses_and_gives_it_back(tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    for i in range(2):
        Image.new("RGB", (16, 16), (200, 40 + i, 90)).save(tmp_path / "photographs" / f"{i}.png")
    scaler = torch.amp.GradScaler("cpu")
    found, trainer = fitted(tmp_path / "with", tmp_path / "photographs", scaler)
    right, _ = fitted(tmp_path / "without", tmp_path / "photographs", torch.amp.GradScaler("cpu", enabled=False))
    assert trainer.global_step > 0
    plugin = trainer.precision_plugin
    assert isinstance(plugin, MixedPrecision)
    assert plugin.scaler is scaler
    assert found.keys() == right.keys()
    assert all(torch.equal(found[key], right[key]) for key in right)


def test_the_scaler_comes_back_after_an_error() -> None:
    scaler = torch.amp.GradScaler("cpu")
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    seen = []

    def fail() -> None:
        with without_scaler(plugin):
            seen.append(plugin.scaler)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [None]
    assert plugin.scaler is scaler
