"""Metrics of people's own, from a module of their own: measured, stored, shown everywhere, and reported without it."""

from __future__ import annotations

import csv
import importlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from optcam_pl.cli import main
from optcam_pl.cli.report import report_command
from optcam_pl.evaluate.probes import Probes
from optcam_pl.metrics import METRICS, AverageDrop, ImageMetric
from optcam_pl.reports.report import load_run, report, summarize
from optcam_pl.reports.statistics import bootstrap_interval
from optcam_pl.reports.verify import verify
from optcam_pl.runs import manifest as manifests
from optcam_pl.runs.files import RunFolderError
from optcam_pl.runs.manifest import read_manifest
from optcam_pl.runs.rows import read_rows

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "tests" / "conf" / "tiny.yaml")
MODULE = """
import torch
from optcam_pl.metrics import ImageMetric

CALLS = []


def brightness(probes, power):
    CALLS.append(len(probes.image))
    return 10 * probes.image.mean((1, 2, 3)) ** power


class Light(ImageMetric):
    key, label, unit, higher_is_better = "light", "Light", "lx", False

    def needs(self):
        return {"brightness": (brightness, {"power": 2.0})}

    def score(self, brightness):
        return brightness


class Certain(ImageMetric):
    key, unit, digits = "certain", "%", 1
    higher_is_better = True

    def needs(self):
        return {"original": {}, "light": (brightness, {"power": 2.0})}

    def score(self, original, light):
        return 100 * original


class Ratio(ImageMetric):
    key, label, higher_is_better = "ratio", "o/p", True

    def __init__(self):
        super().__init__(shape=(2,))

    @classmethod
    def of_means(cls, means):
        return means[..., 0] / means[..., 1]

    def score(self, original, masked):
        return torch.stack([masked, original], dim=1)
"""

pytestmark = pytest.mark.filterwarnings(
    # tensorboard's protobuf classes and torch's own writer, https://github.com/pytorch/pytorch/issues/134958
    "ignore::DeprecationWarning",
)


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The user's module, importable in this process alone."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "people_metrics.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield importlib.import_module("people_metrics")
    sys.modules.pop("people_metrics", None)


def words(photos: Path, *more: str) -> list[str]:
    names = ["AverageDrop", *(f"people_metrics.{name}" for name in ("Light", "Certain", "Ratio"))]
    return ["test", "--config", TINY, f"--data.root={photos}", f"--model.metrics={json.dumps(names)}", *more]


def test_own_metrics_go_all_the_way_to_every_report(photos: Path, own: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(photos, "--run_dir=runs/a", "--model.explainer=GradCAM")) == 0
    printed = capsys.readouterr().out
    heads = ("AD ↓", "Light (lx) ↓", "certain (%) ↑", "o/p ↑")
    assert all(head in printed for head in heads)
    assert own.CALLS == [3, 3, 1]  # once a block, for both metrics that need it
    rows = read_rows("runs/a")
    scores = [row.scores["light"] for row in rows]
    low, high = bootstrap_interval(scores)[1:]
    value = sum(scores) / 7
    assert f"{value:.4f} [{low:.4f}, {high:.4f}]" in printed
    assert f"{sum(100 * (row.p or 0) for row in rows) / 7:.1f} [" in printed
    stored = json.loads(Path("runs/a/summary.json").read_text())["metrics"]
    assert stored["light"]["value"] == pytest.approx(value)
    assert {key: stored["light"][key] for key in ("label", "unit", "higher_is_better")} == {
        **{"label": "Light", "unit": "lx", "higher_is_better": False}
    }
    sys.modules.pop("people_metrics")
    again = report(["runs/a"], intervals="bca").splitlines()
    assert all(line in printed for line in again[:-2])  # without the class, to the last digit
    assert again[-2].startswith(
        "GradCAM: ratio is shown as the run itself stored it: only its class people_metrics.Ratio"
    )
    cells = next(csv.DictReader(io.StringIO(report(["runs/a"], "csv"))))
    assert float(cells["light"]) == stored["light"]["value"]
    assert float(cells["ratio"]) == pytest.approx(sum(row.o or 0 for row in rows) / sum(row.p or 0 for row in rows))
    assert json.loads(report(["runs/a"], "json"))[0]["metrics"]["certain"]["unit"] == "%"
    for format, want in (("markdown", "Light (lx) ↓"), ("latex", r"Light (lx) $\downarrow$")):
        assert want in report(["runs/a"], format)  # type: ignore[arg-type]
    assert verify("runs/a") == []


def test_runs_are_compared_by_own_metrics_too(photos: Path, own: Any, capsys: pytest.CaptureFixture[str]) -> None:
    explainers = ["--explainers", "GradCAM", "FakeCAM", "--run_dir=both"]
    assert main(["compare", *words(photos)[1:], *explainers]) == 0
    table = capsys.readouterr().out.rpartition("method")[2]
    assert all(head in table for head in ("Light (lx) ↓", "certain (%) ↑", "o/p ↑"))
    arguments = ["both/GradCAM", "--against", "both/FakeCAM"]
    assert report_command(arguments) == 0
    assert "GradCAM  o/p ↑" in capsys.readouterr().out.partition("Difference to")[2]
    sys.modules.pop("people_metrics")
    assert report_command(arguments) == 0
    before, _, after = capsys.readouterr().out.partition("Difference to")
    assert "Light (lx) ↓" in after
    assert "o/p" not in after  # its value is made by its class alone
    assert "only its class people_metrics.Ratio" in before
    assert "`optcam report --import" in before
    assert report_command([*arguments, "--import", "people_metrics"]) == 0
    assert "GradCAM  o/p ↑" in capsys.readouterr().out.partition("Difference to")[2]
    assert report_command([*arguments, "--import", "nobodys_metrics"]) == 1
    assert "No module named 'nobodys_metrics'" in capsys.readouterr().err


def test_the_trainer_returns_and_tensorboard_shows_own_metrics(photos: Path, own: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(words(photos, "--run_dir=r", "--model.explainer=FakeCAM")) == 0
    accumulator = EventAccumulator("r")
    accumulator.Reload()
    assert {"test/light", "test/certain", "test/ratio"} <= set(accumulator.Tags()["scalars"])


def test_a_run_without_descriptions_goes_on_and_is_reported(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["test", "--config", TINY, f"--data.root={photos}", "--model.explainer=FakeCAM", "--run_dir=r"]
    assert main(words) == 0
    path = Path("r/manifest.json")
    manifest = json.loads(path.read_text())
    described = manifest.pop("metric_info")
    assert list(described) == manifest["metrics"]
    before = report(["r"], intervals="bca")
    path.write_text(json.dumps(manifest))
    next(Path("r/rows").iterdir()).unlink()
    capsys.readouterr()
    assert main(words) == 0
    strip = [line.rpartition("]")[0] for line in before.splitlines()[:3]]  # the seconds are others
    assert [line.rpartition("]")[0] for line in report(["r"], intervals="bca").splitlines()[:3]] == strip
    assert "metric_info" not in read_manifest("r")
    assert verify("r") == []


def test_the_rows_are_read_once_when_the_last_block_is_done(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = Path.read_bytes

    def counting(path: Path) -> bytes:
        if path.suffix == ".jsonl":
            read.append(path.name)
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", counting)
    data = ["--data=Shapes", "--data.images=16", "--data.batch_size=4", "--model.classifier.num_classes=6"]
    writer = '--trainer.callbacks+={"class_path": "optcam_pl.callbacks.MapWriter"}'
    for subcommand in ("test", "predict", "fit"):
        read.clear()
        assert main([subcommand, "--config", TINY, *data, writer, f"--run_dir={subcommand}"]) == 0
        assert read == ["a0001-r00000.jsonl"]
    assert main(["compare", "--config", TINY, *data, "--explainers", "FakeCAM", "GradCAM", "--run_dir=all"]) == 0
    assert read == ["a0001-r00000.jsonl"] * 3


def test_lightning_modules_and_callbacks_know_nothing_of_the_paper() -> None:
    code = "import sys, optcam_pl.tasks, optcam_pl.callbacks; print([m for m in sys.modules if 'published' in m])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_update_and_compute_give_the_number_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[tuple[str, dict[str, Any]]] = []
    real = Probes.evidence

    def kept(self: Probes, needs: Any, metric: str = "") -> Any:
        batches.append((metric, real(self, needs, metric)))
        return batches[-1][1]

    monkeypatch.setattr(Probes, "evidence", kept)
    data = ["--data=Shapes", "--data.images=7", "--data.batch_size=3", "--model.target=label"]
    more = ["--model.metrics=all", "--model.classifier.num_classes=6", "--model.classifier.input_size=56"]
    assert main(["test", "--config", TINY, *data, *more, "--model.explainer=GradCAM", "--run_dir=r"]) == 0
    summary = summarize(load_run("r"))
    assert list(summary.metrics) == list(METRICS)
    for key, estimate in summary.metrics.items():
        metric = METRICS[key]()
        for name, evidence in batches:
            if name == key:
                metric.update(**evidence)
        assert metric.compute().item() == pytest.approx(estimate.value, rel=1e-12, nan_ok=True), key


def test_a_metric_gets_its_own_evidence_from_a_collection(own: Any) -> None:
    collection = MetricCollection([own.Light(), own.Certain(), AverageDrop()], compute_groups=False)
    p = torch.tensor([0.5, 0.25])
    collection.update(brightness=p * 8, original=p, light=p, masked=p, unrelated=torch.zeros(3))
    found = {key: value.item() for key, value in collection.compute().items()}
    assert found == {"Light": 3.0, "Certain": 37.5, "AverageDrop": 0.0}


class Untitled(ImageMetric):
    """A metric without a name."""

    def score(self, original: Tensor) -> Tensor:
        return original


class Pair(Untitled):
    """Two numbers an image, and nothing that is made of them."""

    key = "pair"

    def __init__(self) -> None:
        super().__init__(shape=(2,))


class Named(Untitled):
    """A metric of any name and any scores."""

    key = "named"

    def __init__(self, key: str = "named", scores: Any = None) -> None:
        self.key = key  # type: ignore[misc]
        super().__init__()
        self.scores = scores

    def score(self, original: Tensor) -> Tensor:
        return self.scores


def test_what_a_metric_lacks_is_told_when_it_is_made() -> None:
    with pytest.raises(TypeError, match="Expected Untitled to have a `key`"):
        Untitled()
    with pytest.raises(ValueError, match=r"Expected Pair to define `of_means`, as its scores are of shape \(2,\)"):
        Pair()
    for scores, error in ((torch.zeros(()), r"\('B',\)"), (torch.zeros(2, 3), r"\('B',\)")):
        with pytest.raises(ValueError, match=f"Expected `score` of Named to return scores of shape {error}"):
            Named(scores=scores).update(torch.zeros(2))
    with pytest.raises(TypeError, match="Expected `score` of Named to return a tensor, but got list"):
        Named(scores=[1.0]).update(torch.zeros(2))
    with pytest.raises(ValueError, match=r"of shape \(3,\), one for each image, but got \(2,\)"):
        Named().check_scores(torch.zeros(2), 3)
    counted = Named(scores=torch.tensor([True, False]))
    counted.update(torch.zeros(2))
    assert counted.compute().item() == 0.5


@pytest.mark.parametrize("key", ["seconds", "status", "p", "seconds_per_image", "explainer", "missing"])
def test_keys_that_mean_something_else_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=f"keys that are no entries of rows and reports, but got '{key}'"):
        manifests.check_metric_keys(["average_drop", key])


def test_a_description_that_is_none_is_an_error_in_words(photos: Path) -> None:
    assert main(words(photos, "--run_dir=r", "--model.explainer=FakeCAM")) == 0
    path = Path("r/manifest.json")
    manifest = json.loads(path.read_text())
    for change in ({"digits": "2$"}, {"label": None}, {"more": 1}):
        light = {**manifest["metric_info"]["light"], **change}
        path.write_text(json.dumps({**manifest, "metric_info": {"light": light}}))
        with pytest.raises(RunFolderError, match="does not describe the metric 'light' as it has to"):
            report(["r"])
        assert "does not describe the metric 'light'" in verify("r")[0]
