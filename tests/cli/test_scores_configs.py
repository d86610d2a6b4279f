"""Every block in configs/scores runs from the command to the table, and its row, settings and fingerprint say it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from data_cases import make_tree

from optcam_pl.cli import main
from optcam_pl.reports.report import load_run

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TINY = str(CONFIGS.parent / "tests" / "conf" / "tiny.yaml")
DROPS = {"average_drop", "average_gain", "average_increase"}
# config -> the network and other words, the link, the metrics in its table
CASES: dict[str, tuple[list[str], str, set[str]]] = {
    "binary": (["network=scores_cases.one_logit"], "sigmoid", DROPS),
    "multi_label": (
        ["network=scores_cases.three_logits"],
        "sigmoid",
        DROPS,
    ),
    "head": (["network=scores_cases.two_heads"], "softmax", DROPS),
    "regression": (["network=scores_cases.one_logit"], "identity", {"insertion", "deletion"}),
    "regression_keep": (["network=scores_cases.one_logit"], "identity", {"insertion", "deletion"}),
    "function": (
        ["network=scores_cases.three_logits"],
        "sigmoid",
        DROPS,
    ),
}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's protobuf classes


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("my_module.py").write_text("from scores_cases import lead\n")


@pytest.mark.parametrize("name", CASES)
def test_a_scores_block_goes_the_whole_way(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, link, metrics = CASES[name]
    make_tree(Path("data"), ["ant", "bee"], {"": 4})
    own = [f"--model.classifier.{word}" for word in ["weights=default", *words]]
    run = ["test", "--config", TINY, "--config", str(CONFIGS / "scores" / f"{name}.yaml"), *own, "--run_dir=run"]
    assert main([*run, "--data.root=data", "--model.target=predicted"]) == 0
    out = capsys.readouterr().out
    found = load_run("run")
    settings, fingerprint = found.manifest["settings"], found.manifest["fingerprint"]["classifier"]
    assert settings["link"] == fingerprint["link"] == link
    assert settings["scores"] == fingerprint["scores"]
    assert f"link {link}" in out or f"link: {link}" in out, out
    assert set(found.manifest["metrics"]) == metrics
    assert all(row.scores[key] is not None for row in found.rows for key in metrics)


def test_metrics_of_a_probability_refuse_scores_without_one() -> None:
    make_tree(Path("data"), ["ant", "bee"], {"": 4})
    own: list[Any] = ["--model.classifier.network=scores_cases.one_logit", "--model.classifier.weights=default"]
    run = ["test", "--config", TINY, "--config", str(CONFIGS / "scores" / "regression.yaml"), *own, "--data.root=data"]
    with pytest.raises(ValueError, match=r"have none \(`link` is identity\), but average_drop needs one. Insertion"):
        main([*run, "--model.metrics=[AverageDrop]"])
    assert main([*run, "--model.metrics=all", "--run_dir=all"]) == 0
    keys = set(load_run("all").manifest["metrics"])
    assert {"insertion", "deletion", "aopc", "road", "infidelity", "complexity"} <= keys
    assert not keys & {"average_drop", "average_gain", "selectivity_drop"}


def test_every_block_has_a_case() -> None:
    assert {path.stem for path in (CONFIGS / "scores").glob("*.yaml")} >= set(CASES)
