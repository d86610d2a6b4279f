"""`evaluate_block` and `optcam_pl.evaluate`: the numbers of `optcam test`, without Lightning and without a file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import optcam_pl
from optcam_pl import Classifier, FakeCAM, GradCAM, OptiCAM, SaliencyTask, evaluate
from optcam_pl.data import ImageFolder, ImageReadError, Shapes, TorchData
from optcam_pl.evaluate.block import evaluate_block
from optcam_pl.evaluate.result import Result
from optcam_pl.evaluate.sanity import check
from optcam_pl.explainers import Explainer, Explanation
from optcam_pl.metrics import AverageDrop, AverageGain, ImageMetric, Insertion
from optcam_pl.reports.report import load_run, report, summarize
from optcam_pl.reports.tables import table
from optcam_pl.runs.rows import Row

pytestmark = pytest.mark.filterwarnings(
    # tensorboard's protobuf classes and torch's own writer, https://github.com/pytorch/pytorch/issues/134958
    "ignore::DeprecationWarning",
    # Lightning 2.6 calls what torch 2.14 deprecates
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
    "ignore:.*does not have many workers.*",
)


class Light(ImageMetric):
    """A metric of people's own, with a probe of its own and two numbers an image."""

    key, label, unit, higher_is_better = "light", "Light", "lx", False

    def __init__(self) -> None:
        super().__init__(shape=(2,))

    def needs(self) -> dict[str, Any]:
        return {"light": (lambda probes: probes.image.mean((1, 2, 3)), {}), "masked": {}}

    def score(self, light: Tensor, masked: Tensor) -> Tensor:
        return torch.stack([light, masked + 1], dim=1)

    @classmethod
    def of_means(cls, means: Tensor) -> Tensor:
        return means[..., 0] / means[..., 1]


def metrics() -> list[ImageMetric]:
    return [AverageDrop(), AverageGain(), Insertion(steps=3), Light()]


def tiny(classes: int = 6) -> Classifier:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    )
    return Classifier(network, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), input_size=16)


def timeless(rows: Any) -> list[Row]:
    return [replace(row, seconds=0.0) for row in rows]


def lightning_run(task: SaliencyTask, data: Any, folder: Path) -> Any:
    """The run of a test through Lightning."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    task.run_dir = folder  # type: ignore[assignment]
    L.Trainer(accelerator="cpu", inference_mode=False, **quiet).test(task, data, verbose=False)
    return load_run(folder, metrics())


@pytest.mark.parametrize("target", ["label", "predicted", "least", 2])
def test_evaluate_and_test_give_equal_numbers(target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    classifier, explainers = tiny(), [OptiCAM(max_iter=3), GradCAM()]
    got = optcam_pl.evaluate(classifier, explainers, Shapes(7, side=16, batch_size=3), metrics(), target=target)
    assert list(tmp_path.iterdir()) == []  # nothing is written
    for explainer in explainers:
        task = SaliencyTask(classifier, explainer, target=target, metrics=metrics())
        run = lightning_run(task, Shapes(7, side=16, batch_size=3), tmp_path / explainer.title)
        mine = got.runs[explainer.title]
        assert timeless(run.rows) == timeless(mine.rows)
        for key in ("settings", "fingerprint", "metric_info", "explainer_settings", "images", "data"):
            assert run.manifest[key] == mine.manifest[key]
        theirs, ours = summarize(run, "bca"), got.summary()[explainer.title]
        assert ours.metrics == theirs.metrics
        assert list(ours.metrics) == ["average_drop", "average_gain", "insertion", "light"]
        assert theirs.metrics["light"].low is not None


def test_the_command_gives_these_numbers_too(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from optcam_pl.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = str(Path(__file__).parents[1] / "conf" / "tiny.yaml")
    assert main(["test", "--config", config, f"--data.root={photos}", "--run_dir=run", "--seed_everything=3"]) == 0
    torch.manual_seed(3)
    run = load_run("run")
    classifier = Classifier("timm/test_resnet", weights=None, input_size=64)
    assert classifier.weight_hash() == run.manifest["fingerprint"]["classifier"]["hash"]
    got = optcam_pl.evaluate(
        classifier, OptiCAM(max_iter=4), ImageFolder(str(photos), batch_size=3), target="predicted"
    )
    assert timeless(got.rows["OptiCAM"]) == timeless(run.rows)


def test_a_region_without_a_box_has_no_score(tmp_path: Path) -> None:
    image, classifier = torch.rand(3, 3, 16, 16), tiny()
    boxes = [torch.tensor([[2.0, 2.0, 9.0, 9.0]]), torch.zeros(0, 4), torch.tensor([[0.0, 0.0, 16.0, 16.0]])]
    block = evaluate_block(classifier, GradCAM(), {"image": image, "boxes": boxes}, 1, metrics(), region="inside_box")
    assert [row.reason for row in block.rows] == ["", "the image has no box", ""]
    assert block.measurable.tolist() == [True, False, True]
    assert block.scores["average_drop"].isnan().tolist() == [False, True, False]
    assert block.curves["insertion"].shape[0] == 3
    outside = block.explanation.saliency[0, 0].clone()
    outside[2:9, 2:9] = 0
    assert not outside.any()


def test_padding_and_broken_images_never_reach_the_network() -> None:
    image = torch.rand(4, 3, 16, 16)
    image[1] = torch.nan
    batch: Any = {
        "image": image, "target": torch.tensor([0, 1, 2, -1]), "id": ["a", "b", "c", ""],
        "index": torch.tensor([4, 5, 6, -1]), "error": ["", "it is damaged", "", ""],
    }  # fmt: skip
    block = evaluate_block(tiny(), GradCAM(), batch, [3, 4, 5, 0], [AverageDrop()])
    assert [(row.index, row.id, row.status, row.target) for row in block.rows] == [
        (4, "a", "ok", 3), (5, "b", "error", 1), (6, "c", "ok", 5),
    ]  # fmt: skip
    assert len(block.logits) == len(block.scores["average_drop"]) == 2
    nothing = evaluate_block(tiny(), GradCAM(), {**batch, "error": ["x", "x", "x", ""]}, "label", [AverageDrop()])
    assert [row.status for row in nothing.rows] == ["error"] * 3
    assert nothing.logits.shape == (0, 6)


class Overflows(nn.Sequential):
    """A network whose scores of bright images are not finite, as of numbers that 16 bits do not hold."""

    def forward(self, input: Tensor) -> Tensor:
        scores: Tensor = super().forward(input)
        return torch.where(input.mean((1, 2, 3)).view(-1, 1) > 0.9, torch.inf, scores)


@pytest.mark.parametrize("explainer", [GradCAM(), OptiCAM(max_iter=2)], ids=lambda explainer: explainer.title)
def test_an_image_without_finite_scores_is_named_or_has_a_row_that_says_so(explainer: Explainer) -> None:
    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    classifier = Classifier(Overflows(*layers), input_size=8, mean=0, std=1, target_layer="1")
    image = torch.rand(3, 3, 8, 8)
    image[1] = 1.0
    batch: Any = {"image": image, "id": ["a", "b", "c"]}
    with pytest.raises(ImageReadError, match="those for the image 'b' are not.*`--trainer.precision 32-true`"):
        evaluate_block(classifier, explainer, batch, 1, [AverageDrop()])
    block = evaluate_block(classifier, explainer, batch, [0, 1, 2], [AverageDrop()], on_error="record")
    assert [(row.id, row.status, row.target) for row in block.rows] == [
        ("a", "ok", 0),
        ("b", "error", -1),
        ("c", "ok", 2),
    ]
    assert block.rows[1].reason == "the network's scores for it are not finite"
    assert len(block.scores["average_drop"]) == 2
    found = evaluate(classifier, explainer, TorchData([*image], size=8, on_error="record"), target=1)
    assert [row.status for row in found.rows[explainer.title]] == ["ok", "error", "ok"]


def test_maps_may_come_from_elsewhere() -> None:
    classifier, image = tiny(), torch.rand(2, 3, 16, 16)
    stored = FakeCAM()(classifier, image, 1)
    asked: list[list[int]] = []

    def recall(batch: Any, target: Tensor) -> Any:
        asked.append(target.tolist())
        return stored

    block = evaluate_block(classifier, GradCAM(), {"image": image}, 1, [AverageDrop()], explain=recall)
    assert asked == [[1, 1]]
    assert block.explanation is stored


class Own(Explainer):
    """A method of one's own that returns what a function makes of its arguments."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def explain(self, classifier: Classifier, image: Tensor, target: Tensor) -> Any:
        return self.function(self, image, target)


def test_an_own_method_may_return_a_mask() -> None:
    own = Own(lambda self, image, target: self.finish(image[:, :1] > 0.5, image, target))
    image = torch.rand(2, 3, 4, 4)
    assert torch.equal(own(tiny(), image).saliency, (image[:, :1] > 0.5).float())


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (
            lambda self, image, target: image.mean(1, keepdim=True),
            TypeError,
            "`explain` of Own to return an Explanation",
        ),
        (lambda self, image, target: self.finish(image.numpy(), image, target), TypeError, "tensor .* but got ndarray"),
        (lambda self, image, target: self.finish(image, image, target), ValueError, r"got \(2, 3, 4, 4\).*raw.sum\(1"),
        (lambda self, image, target: self.finish(image[:1, :1], image, target), ValueError, "one for each of 2 images"),
        (
            lambda self, image, target: Explanation(image, target, target < 0),
            ValueError,
            r"Expected maps \(2, 1, 4, 4\)",
        ),
        (lambda self, image, target: Explanation(3 * image[:, :1], target, target < 0), ValueError, r"lie in \[0, 1\]"),
    ],
)
def test_what_an_own_method_returns_is_checked(function: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        optcam_pl.evaluate(tiny(), Own(function), torch.rand(2, 3, 4, 4))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("label", "Expected a label in 0..5 for image '0', but it has none: if the dataset has no labels"),
        (torch.tensor([1, 6]), r"Expected a class in 0..5 for image '1', but `target` has 6\."),
        ([1], r"Expected `target` to be a class for each of the 2 images"),
    ],
)
def test_classes_that_cannot_be_are_refused(target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_block(tiny(), GradCAM(), {"image": torch.rand(2, 3, 16, 16)}, target, [])


def test_images_in_memory_in_every_form_give_the_same_rows() -> None:
    classifier, image, labels = tiny(), torch.rand(5, 3, 16, 16), [0, 1, 2, 3, 4]
    batches = [{"image": image[:2], "target": labels[:2]}, {"image": image[2:], "target": torch.tensor(labels[2:])}]
    pairs = list(zip(image, labels, strict=True))
    forms: list[Any] = [
        {"image": image, "target": labels}, batches, iter(batches), pairs,
        torch.utils.data.TensorDataset(image, torch.tensor(labels)), torch.utils.data.DataLoader(pairs, batch_size=3),
    ]  # fmt: skip
    want = optcam_pl.evaluate(classifier, GradCAM(), image, labels=labels, batch_size=3)
    for form in forms:
        got = optcam_pl.evaluate(classifier, GradCAM(), form, batch_size=3)
        assert timeless(got.rows["GradCAM"]) == timeless(want.rows["GradCAM"])
    assert [row.target for row in want.rows["GradCAM"]] == labels
    predicted = [row.predicted for row in want.rows["GradCAM"]]
    unlabeled = optcam_pl.evaluate(classifier, GradCAM(), image)
    assert [row.target for row in unlabeled.rows["GradCAM"]] == predicted
    given = optcam_pl.evaluate(classifier, GradCAM(), image, target=labels[::-1], batch_size=2)
    assert [row.target for row in given.rows["GradCAM"]] == labels[::-1]
    assert given.summary()["GradCAM"].settings["target"] == "given"


def test_what_a_result_shows() -> None:
    pandas = pytest.importorskip("pandas")
    classifier, image = tiny(), torch.rand(6, 3, 16, 16)
    one = {"plain": GradCAM(), "sharp": GradCAM()}
    one["sharp"].selectivity = 2.0
    result = evaluate(classifier, one, image, metrics(), baseline="mean")
    assert isinstance(result, Result)
    assert {explainer.baseline for explainer in one.values()} == {"black"}  # they have their own back
    summary = result.summary()["plain"]
    assert summary.settings["baseline"] == "mean"
    drop = summary.metrics["average_drop"]
    assert drop.low is not None
    assert drop.low <= drop.value <= drop.high  # type: ignore[operator]
    text = result.table()
    assert text == table(list(result.summary().values()))
    assert "plain" in text
    assert "Light (lx) ↓" in text
    assert [line["explainer"] for line in json.loads(result.table("json"))] == ["plain", "sharp"]
    frame = result.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.shape[0] == 12
    assert frame[frame.explainer == "plain"].average_drop.mean() == pytest.approx(drop.value)
    figure = result.plot()
    assert isinstance(figure, Figure)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["AD (%) ↓", "AG (%) ↑", "Ins (%) ↑", "Light (lx) ↓"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["plain", "sharp"]
    numbered = evaluate(classifier, [GradCAM(), GradCAM()], image)
    assert list(numbered.rows) == ["GradCAM", "GradCAM 2"]


def test_without_pandas_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    result = evaluate(tiny(), FakeCAM(), torch.rand(1, 3, 16, 16))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="needs pandas: pip install pandas"):
        result.to_pandas()


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            {"images": torch.rand(2, 3, 16, 16) * 4 - 2},
            ValueError,
            r"Item 0 of `images` .* in \[0, 1\].*normalized already",
        ),
        ({"images": torch.rand(3, 16, 16)}, ValueError, r"shape \(B,3,H,W\), but got \(3, 16, 16\)"),
        ({"images": 3}, TypeError, "Expected `images` as a tensor .* but got int"),
        (
            {"images": np.zeros((2, 3, 16, 16))},
            TypeError,
            r"got a ndarray of something else. Convert it: torch.from_num",
        ),
        (
            {"images": iter([torch.rand(3, 16, 16)])},
            TypeError,
            "dicts with an `image`, but got a list_iterator of some",
        ),
        ({"classifier": torch.nn.Flatten()}, TypeError, "optcam_pl.Classifier, but got Flatten: wrap the network"),
        ({"images": []}, ValueError, "Expected `images` to have an image at least"),
        ({"labels": [1]}, ValueError, "Expected `labels` to have one entry for each of 2 images, but got 1"),
        ({"images": Shapes(2, side=16), "labels": [1, 1]}, ValueError, "Expected `labels` only where"),
        ({"images": Shapes(2, side=16), "batch_size": 4}, ValueError, "as the data module has its own, 8, but got 4"),
        ({"explainers": []}, ValueError, "Expected `explainers` to have an explainer at least"),
        ({"explainers": GradCAM}, TypeError, r"is not iterable|Expected `explainers` to be objects"),
        ({"explainers": [GradCAM]}, TypeError, r"Make one of the class: GradCAM\(\)"),
        ({"metrics": [AverageDrop]}, TypeError, r"objects of ImageMetric, .* Make one of the class: AverageDrop\(\)"),
        ({"metrics": ["AverageGain"]}, TypeError, r"objects of ImageMetric, .* Make one of the class: AverageGain\(\)"),
        ({"images": "photos"}, TypeError, r"but got the path 'photos'. .* read files: ImagePaths\('photos'\)"),
        ({"images": Path("photos")}, TypeError, r"but got the path 'photos'"),
        ({"metrics": "some"}, ValueError, "Expected `metrics`"),
        ({"target": "first"}, ValueError, "Expected `target` to be one of label, predicted"),
        ({"target": [1, 2, 3]}, ValueError, r"or one for each of the 2 images, but got shape \(3,\)"),
        ({"region": "box"}, ValueError, "Expected a dataset with boxes"),
        ({"baseline": "gray"}, ValueError, "Expected `baseline`"),
    ],
)
def test_what_cannot_be_is_told_in_words(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"explainers": GradCAM(), "images": torch.rand(2, 3, 16, 16), **change}
    with pytest.raises(kind, match=message):
        evaluate(**{"classifier": tiny(), **arguments})


@pytest.mark.parametrize(("target", "classes"), [(np.array([1, 2]), [1, 2]), (np.int64(1), [1, 1])])
def test_the_classes_may_be_of_numpy(target: Any, classes: list[int]) -> None:
    rows = evaluate(tiny(), GradCAM(), torch.rand(2, 3, 16, 16), target=target).rows["GradCAM"]
    assert [row.target for row in rows] == classes


def test_all_metrics_are_those_that_the_images_have_the_annotations_for() -> None:
    image = torch.rand(1, 3, 64, 64)
    without = evaluate(tiny(), FakeCAM(), image, "all").summary(None)["FakeCAM"].metrics
    boxes = {"image": image, "boxes": [torch.tensor([[1.0, 1.0, 9.0, 9.0]])]}
    added = set(evaluate(tiny(), FakeCAM(), boxes, "all").summary(None)["FakeCAM"].metrics) - set(without)  # type: ignore[arg-type]
    assert added
    assert all({"boxes"} & set(optcam_pl.metrics.METRICS[key].evidence()) for key in added)


def test_the_sanity_check_explains_the_same_classes() -> None:
    asked: list[list[int]] = []

    class Asked(Explainer):
        """Notes what it is asked for."""

        def explain(self, classifier: Classifier, image: Tensor, target: Tensor) -> Any:
            asked.append(target.tolist())
            return FakeCAM().explain(classifier, image, target)

    classifier, data = tiny(), Shapes(3, side=16, batch_size=3)
    rows = evaluate(classifier, FakeCAM(), data, target="second").rows["FakeCAM"]
    pytest.importorskip("skimage")
    check(classifier, Asked(), data, "second", names=["4"])
    assert asked == [[row.target for row in rows]] * 2


def test_the_package_is_the_function_whatever_was_imported_before() -> None:
    code = (
        "import optcam_pl, inspect; assert callable(optcam_pl.evaluate); import optcam_pl.evaluate.block; "
        "from optcam_pl import evaluate; assert evaluate is optcam_pl.evaluate; "
        "assert evaluate.block is optcam_pl.evaluate.block; print(list(inspect.signature(evaluate).parameters)[:3])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['classifier', 'explainers', 'images']"


def test_type_checkers_know_the_function(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    snippet = tmp_path / "snippet.py"
    snippet.write_text(
        "import torch\n"
        "import optcam_pl\n"
        "import optcam_pl.evaluate.block\n"
        "from optcam_pl import Classifier, GradCAM, evaluate\n"
        "from optcam_pl.evaluate.block import evaluate_block\n"
        "result = optcam_pl.evaluate(Classifier('demo/x'), GradCAM(), torch.rand(1, 3, 8, 8), target='predicted')\n"
        "text: str = evaluate(Classifier('demo/x'), [GradCAM()], [(torch.rand(3, 8, 8), 1)]).table()\n"
        "reveal_type(result)\n"
        "optcam_pl.evaluate(Classifier('demo/x'))\n"
    )
    config = Path(optcam_pl.__file__).parent.parent / "pyproject.toml"
    words = ["--strict", "--config-file", str(config), "--cache-dir", str(config.parent / ".mypy_cache"), str(snippet)]
    done = subprocess.run([sys.executable, "-m", "mypy", *words], capture_output=True, text=True, check=False)
    told = [line for line in done.stdout.splitlines() if "snippet.py" in line]
    assert len(told) == 2, done.stdout
    assert 'Revealed type is "optcam_pl.evaluate.result.Result"' in told[0]
    assert "snippet.py:9" in told[1]
    assert "Missing positional arguments" in told[1]


def test_reports_of_both_ways_are_the_same(tmp_path: Path) -> None:
    classifier = tiny()
    lightning_run(
        SaliencyTask(classifier, GradCAM(), metrics=metrics()), Shapes(4, side=16, batch_size=4), tmp_path / "run"
    )
    ours = evaluate(classifier, GradCAM(), Shapes(4, side=16, batch_size=4), metrics()).table("json")
    (mine,), (theirs,) = json.loads(ours), json.loads(report([tmp_path / "run"], "json", intervals="bca"))
    for told in (mine, theirs):
        del told["seconds_per_image"], told["run"]
    assert mine == theirs


def test_all_metrics_of_small_images_are_those_that_can_be_measured_on_them() -> None:
    found = {
        side: set(evaluate(tiny(), FakeCAM(), torch.rand(1, 3, side, side), "all").rows["FakeCAM"][0].scores)
        for side in (16, 32, 64)
    }
    assert found[64] - found[32] == {"aopc", "infidelity"}
    assert found[32] == found[16]
    assert not Insertion(steps=224).fits((8, 8))  # more steps than pixels
    assert Insertion(steps=4, patch=4).fits((8, 8))
    assert not Insertion(steps=5, patch=4).fits((8, 8))
