"""What a run shows in TensorBoard and other loggers: bounded, once, the same as the table, and comparable."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from torch import nn
from vision_cases import ColorDetector, squares

from optcam_pl import Classifier, FakeCAM, GradCAM, OptiCAM
from optcam_pl.callbacks import TensorBoardPanels, write_comparison
from optcam_pl.callbacks.inspection import panel
from optcam_pl.callbacks.running import Chosen, most_points
from optcam_pl.data import EachBox, Shapes, TorchData
from optcam_pl.evaluate.block import evaluate_block
from optcam_pl.network.detection import Detection
from optcam_pl.reports.report import load_run, summarize
from optcam_pl.tasks import SaliencyTask

pytestmark = pytest.mark.filterwarnings(
    # tensorboard's protobuf classes and torch's own writer, https://github.com/pytorch/pytorch/issues/134958
    "ignore::DeprecationWarning",
    # Lightning 2.6 calls what torch 2.14 deprecates
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
    "ignore:.*does not have many workers.*",
    "ignore:.*in eval mode at the start of training.*",
    "ignore:.*is smaller than the logging interval.*",
)
K = 6


def run(stage: str, logger: Any, folder: Path, explainer: Any, images: int = 7, shown: int = 3) -> L.Trainer:
    torch.manual_seed(0)
    features = (nn.Conv2d(3, K, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = nn.Sequential(*features, nn.Linear(K, 6))
    task = SaliencyTask(Classifier(network, input_size=16, target_layer="1"), explainer, target="predicted")
    task.run_dir = folder
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=logger, callbacks=[TensorBoardPanels(images=shown)],
        inference_mode=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    options = {} if stage == "fit" else {"verbose": False}
    getattr(trainer, stage)(task, datamodule=Shapes(images=images, batch_size=3), **options)
    return trainer


def board(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "histograms": 0, "tensors": 0})
    found.Reload()
    return found


def tensorboard(folder: Path) -> TensorBoardLogger:
    return TensorBoardLogger(folder, name="", version="")


def test_a_test_shows_running_means_that_end_in_the_table(tmp_path: Path) -> None:
    run("test", tensorboard(tmp_path), tmp_path, GradCAM())
    found, summary = board(tmp_path), summarize(load_run(tmp_path), intervals="bca")
    tags = found.Tags()
    assert "epoch" not in tags["scalars"]
    assert min(tags["scalars"]).startswith("test/")
    for key, estimate in summary.metrics.items():
        points = found.Scalars(f"test/{key}")
        assert [point.step for point in points] == list(range(1, 8))
        assert points[-1].value == pytest.approx(estimate.value, rel=1e-6, abs=1e-6)
        for end in ("low", "high"):
            ends = found.Scalars(f"test_intervals/{key}_{end}")
            assert [point.step for point in ends] == [point.step for point in points]  # or the chart shows an error
            assert ends[-1].value == pytest.approx(getattr(estimate, end), rel=1e-6, abs=1e-6)
    assert {f"test_examples/{kind}" for kind in ("best", "worst", "random")} == set(tags["images"])
    assert all(len(found.Images(tag)) == 3 for tag in tags["images"])
    assert {f"test_histograms/{name}" for name in ("p", "o", "o - p")} == set(tags["histograms"])
    assert found.Histograms("test_histograms/p")[0].histogram_value.num == 7


def test_a_test_tells_its_own_settings_and_arranges_its_charts(tmp_path: Path) -> None:
    run("test", tensorboard(tmp_path), tmp_path, OptiCAM(max_iter=3, lr=0.25))
    settings = yaml.safe_load((tmp_path / "hparams.yaml").read_text())
    assert (settings["explainer"], settings["explainer.max_iter"], settings["explainer.lr"]) == ("OptiCAM", 3, 0.25)
    found = board(tmp_path)
    metadata = found.SummaryMetadata("_hparams_/session_start_info")
    shown = plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content).session_start_info.hparams
    assert shown["explainer.max_iter"].number_value == 3
    # With an experiment, TensorBoard would show the settings of one run only.
    assert "_hparams_/experiment" not in found.Tags()["tensors"]
    assert "custom_scalars__config__" in found.Tags()["tensors"]
    assert [point.step for point in found.Scalars("test_objective/mean")] == [0, 1, 2, 3]


def test_a_fit_shows_how_maps_and_weights_change(tmp_path: Path) -> None:
    run("fit", tensorboard(tmp_path), tmp_path, OptiCAM(max_iter=4, lr=1.0))
    found = board(tmp_path)
    maps = [tag for tag in found.Tags()["images"] if tag.startswith("fit_evolution/")]
    assert len(maps) == 3
    for tag in maps:
        assert [image.step for image in found.Images(tag)] == [0, 1, 2, 3, 4]
    entropy, largest = found.Scalars("fit/entropy"), found.Scalars("fit/largest_weight")
    assert [point.step for point in entropy] == [0, 1, 2, 3, 4]
    assert entropy[0].value == pytest.approx(math.log2(K))  # equal weights
    assert largest[0].value == pytest.approx(1 / K)
    assert entropy[-1].value < entropy[0].value
    assert largest[-1].value > largest[0].value
    objective = [point.value for point in found.Scalars("fit_objective/mean")]
    assert objective[-1] > objective[0]


def fitted(classifier: Classifier, data: Any, folder: Path, explainer: Any) -> EventAccumulator:
    task = SaliencyTask(classifier, explainer, target="predicted")
    task.run_dir = folder
    L.Trainer(
        accelerator="cpu", max_epochs=1, logger=tensorboard(folder), callbacks=[TensorBoardPanels()],
        inference_mode=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        use_distributed_sampler=False,
    ).fit(task, datamodule=data)  # fmt: skip
    return board(folder)


class Bright(nn.Module):
    """Logits that grow with a number that comes with the image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, K, 3), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(K, 3))

    def forward(self, image: torch.Tensor, light: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.features(image)) * (1 + light)
        return logits


def test_a_fit_of_images_with_inputs_of_their_own_is_shown(tmp_path: Path) -> None:
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    items = [{"image": x, "inputs": {"light": torch.tensor([float(i)])}} for i, x in enumerate(images)]
    classifier = Classifier(Bright(), input_size=8, inputs={"light": [0.0]}, mean=0, std=1)
    explainer = OptiCAM("features", max_iter=3, lr=1.0)
    found = fitted(classifier, TorchData(items, batch_size=3, size=8), tmp_path, explainer)
    assert [[event.step for event in found.Images(f"fit_evolution/{i}")] for i in range(4)] == [[0, 1, 2, 3]] * 4
    curves = []
    for i, item in enumerate(items):
        seen: list[float] = []
        explainer.watch = lambda t, F, weights, seen=seen: seen.append(float(weights.max()))
        with classifier.inputs.bound_to(item["inputs"]):  # type: ignore[arg-type]
            explainer(classifier, images[i : i + 1])
        curves.append(seen)
    largest = [event.value for event in found.Scalars("fit/largest_weight")]
    assert largest == pytest.approx(torch.tensor(curves).mean(0).tolist(), rel=1e-4)


def test_a_fit_of_boxes_is_shown(tmp_path: Path) -> None:
    image = squares(("red", 0, 0), ("blue", 2, 3))
    scores = Detection("boxes")
    classifier = Classifier(ColorDetector(), mean=0, std=1, input_size=32, scores=scores, class_names=["red", "blue"])
    data = EachBox(TorchData([image], size=32), "network")
    found = fitted(classifier, data, tmp_path, OptiCAM("features", max_iter=2))
    maps = [tag for tag in found.Tags()["images"] if tag.startswith("fit_evolution/")]
    assert sorted(maps) == ["fit_evolution/0#box1", "fit_evolution/0#box2"]


def test_a_fit_that_breaks_off_leaves_the_explainer_unwatched(tmp_path: Path) -> None:
    class Broken(Shapes):
        def reader(self) -> Any:
            def read(_: Any) -> Any:
                raise ArithmeticError("out of order")

            return read

    explainer = OptiCAM(max_iter=2)
    network = nn.Sequential(nn.Conv2d(3, K, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(K, 6))
    with pytest.raises(ArithmeticError, match="out of order"):
        fitted(Classifier(network, input_size=16, target_layer="1"), Broken(images=2), tmp_path, explainer)
    assert explainer.watch is None


def test_panels_show_the_chosen_channels(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(5, K, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(K, 6))
    image = torch.zeros(1, 5, 16, 16)
    image[:, 4] = 1
    classifier = Classifier(network, input_size=16, channels=5, rgb_channels=(4, 0, 0))
    result = evaluate_block(classifier, FakeCAM(), {"image": image}, 0, [])
    assert panel(result, 0)().reshape(-1, 3).tolist().count([255, 0, 0]) > 100


def test_what_is_shown_is_bounded_whatever_the_number_of_images(tmp_path: Path) -> None:
    run("test", tensorboard(tmp_path), tmp_path, FakeCAM(), images=230, shown=2)
    found = board(tmp_path)
    assert len(found.Scalars("test/average_drop")) == most_points(230) <= 100
    assert [len(found.Images(tag)) for tag in found.Tags()["images"]] == [2, 2, 2]
    assert sum(file.stat().st_size for file in tmp_path.glob("events*")) < 1e6


def test_a_panel_is_drawn_only_for_images_that_are_kept() -> None:
    drawn: list[int] = []
    chosen = Chosen(2)
    for block in ([0.5, 0.4, 0.1], [0.2, 0.45, 0.9]):
        for value in block:
            index = int(10 * value)
            chosen.offer(value, index, lambda index=index: lambda: drawn.append(index) or index)  # type: ignore[misc]
        for draw in chosen.drawings():
            draw()
    assert sorted(drawn) == [4, 5, 9]  # 0.45 was among them only until its block's end
    assert not chosen.drawings()
    assert [shown.rank for shown in chosen.best()] == [(0.9, 9), (0.5, 5)]
    assert [shown.panel for shown in chosen.best()] == [9, 5]
    assert Chosen(0).best() == []


def test_a_csv_logger_gets_numbers_settings_and_pictures(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="csv", version="")
    run("test", logger, tmp_path / "run", GradCAM())
    lines = list(csv.DictReader(Path(logger.log_dir, "metrics.csv").read_text().splitlines()))
    assert float(lines[-1]["test/average_drop"] or lines[-2]["test/average_drop"]) >= 0
    assert "explainer: GradCAM" in Path(logger.log_dir, "hparams.yaml").read_text()
    pictures = sorted(path.name for path in Path(logger.log_dir, "pictures", "test_examples").iterdir())
    assert pictures == [f"{kind}-{step}.png" for kind in ("best", "random", "worst") for step in (1, 2, 3)]
    with Image.open(Path(logger.log_dir, "pictures", "test_examples", "best-3.png")) as picture:
        assert picture.width > 3 * 250


@pytest.mark.filterwarnings("ignore")  # of their packages
def test_mlflow_gets_numbers_settings_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", exc_type=ImportError)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger("explain", tracking_uri=(tmp_path / "mlruns").as_uri())
    run("test", logger, tmp_path / "run", GradCAM())
    stored = logger.experiment.get_run(logger.run_id).data
    summary = summarize(load_run(tmp_path / "run"))
    assert stored.metrics["test/average_drop"] == pytest.approx(summary.metrics["average_drop"].value)
    assert stored.params["explainer"] == "GradCAM"
    images = [path for path in (tmp_path / "mlruns").rglob("*.png") if "test_examples" in path.name]
    assert len([path for path in images if "best" in path.name]) == 3
    assert list((tmp_path / "mlruns").rglob("table.md"))


@pytest.mark.filterwarnings("ignore")  # of their packages
def test_wandb_gets_numbers_settings_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", exc_type=ImportError)
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger("explain", save_dir=tmp_path, offline=True)
    run("test", logger, tmp_path / "run", GradCAM())
    summary, config = dict(logger.experiment.summary), dict(logger.experiment.config)
    logger.experiment.finish()
    assert config["explainer"] == "GradCAM"
    expected = summarize(load_run(tmp_path / "run")).metrics["average_drop"].value
    assert summary["test/average_drop"] == pytest.approx(expected)
    assert summary["test_examples/best"]["count"] == 1
    assert len([path for path in tmp_path.rglob("*.png") if "test_examples" in str(path)]) == 9


def test_the_best_of_many_methods_lies_inside_of_the_charts(tmp_path: Path) -> None:
    run("test", tensorboard(tmp_path / "one"), tmp_path / "one", FakeCAM())
    one = summarize(load_run(tmp_path / "one"), intervals="bca")
    values = [float(i) for i in range(29)] + [1000.0]
    summaries = {}
    for i, value in enumerate(values):
        estimate = type(one.metrics["average_gain"])(value)
        summaries[f"m{i}"] = type(one)(**{**one.__dict__, "metrics": {"average_gain": estimate}, "explainer": f"m{i}"})
    folder = write_comparison(tmp_path, summaries)
    assert folder == tmp_path / "comparison_0"
    lines = {
        which: [p.value for p in board(folder / which).Scalars("test/average_gain")] for which in ("best", "worst")
    }
    points = sorted([*values * most_points(7), *lines["best"], *lines["worst"]])
    assert set(lines["best"]) == {1000.0}
    assert points[int((len(points) - 1) * 0.95)] == 1000.0  # where TensorBoard's axis ends
    assert points[math.ceil((len(points) - 1) * 0.05)] == 0.0
    shown = board(folder)
    assert "test_plots/average_gain" in shown.Tags()["images"]
    text = shown.Tensors("table/text_summary")[0].tensor_proto.string_val[0].decode()
    assert all(name in text for name in summaries)
    assert write_comparison(tmp_path, summaries).name == "comparison_1"
