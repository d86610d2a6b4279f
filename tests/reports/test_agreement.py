"""Kendall's tau between metrics: against SciPy, on orders that are known, and from the command line."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import kendalltau

from optcam_pl.cli import main
from optcam_pl.metrics import METRICS
from optcam_pl.reports.agreement import agreement, taus
from optcam_pl.reports.summary import Run, load_run
from optcam_pl.runs.files import RunFolderError
from optcam_pl.runs.manifest import write_manifest
from optcam_pl.runs.rows import Row, RowWriter

KEYS = ("average_drop", "average_gain", "deletion", "aopc")


def a_run(folder: Path, scores: dict[str, np.ndarray], **changes) -> Run:
    """A run whose images have these scores; NaN is none."""
    count = len(next(iter(scores.values())))
    info = {key: asdict(METRICS[key]().describe()) for key in scores}
    manifest = {"stage": "test", "run": folder.name, "data": "d", "classifier": "c", "explainer": folder.name}
    manifest |= {"images": count, "metrics": list(scores), "metric_info": info, "settings": {"target": "label"}}
    write_manifest(folder, {**manifest, "fingerprint": {}, "created": "now", **changes})
    rows = [
        Row(index=i, id=f"{i}", status="ok", target=0, predicted=0, p=0.5, o=0.5, seconds=1.0,
            scores={key: float(value[i]) for key, value in scores.items()})
        for i in range(count)
    ]  # fmt: skip
    with RowWriter(folder, 0) as writer:
        writer.write(rows)
    return load_run(folder)


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """Five methods on 40 images; AG is AD's opposite, deletion is worst where AD is best, AOPC is noise."""
    rng = np.random.default_rng(0)
    found = []
    for number, name in enumerate("abcde"):
        drop = 10 * number + rng.normal(size=40)
        noise = rng.normal(size=40)
        noise[number] = np.nan
        scores = dict(zip(KEYS, (drop, -drop, 100 - drop, noise), strict=True))
        found.append(a_run(tmp_path / "runs" / name, scores))
    return found


def test_orders_that_are_known(runs: list[Run]) -> None:
    found = agreement(runs, resamples=300)
    assert found.methods == tuple("abcde")
    assert found.metrics == ("AD ↓", "AG ↑", "Del ↓", "AOPC ↑")
    assert found.order[:3] == (tuple("abcde"), tuple("abcde"), tuple("edcba"))
    assert found.tau[0, :3].tolist() == pytest.approx([1, 1, -1])
    assert (found.low[0, 1], found.high[0, 2]) == pytest.approx((1, -1))
    assert (found.tau == found.tau.T).all()
    noise = [np.nanmean([row.scores["aopc"] for row in run.rows if row.scores["aopc"] is not None]) for run in runs]
    assert found.tau[1, 3] == pytest.approx(kendalltau([5, 4, 3, 2, 1], noise).statistic)
    assert found.low[1, 3] < 0 < found.high[1, 3]
    sentences = found.sentences()
    assert sentences[0] == "agree: AD ↓ and AG ↑"
    assert sentences[1] == "contradict each other: AD ↓ and Del ↓, AG ↑ and Del ↓"
    assert sentences[2].startswith("neither, by these images: AD ↓ and AOPC ↑")
    grid = found.grid()
    assert grid.header == ["", *found.metrics[1:]]
    assert grid.body[0][:3] == ["AD ↓", "+1.00 [+1.00, +1.00]", "-1.00 [-1.00, -1.00]"]
    assert grid.body[1][:2] == ["AG ↑", ""]


def test_tau_is_scipys_also_with_ties() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.integers(0, 4, (50, 6)).astype(float), rng.integers(0, 4, (50, 6)).astype(float)
    theirs[0] = 1.0
    expected = [kendalltau(a, b).statistic for a, b in zip(ours, theirs, strict=True)]
    np.testing.assert_allclose(taus(ours, theirs), expected, rtol=0, atol=1e-12)
    assert np.isnan(expected[0])


def test_the_interval_is_that_of_the_drawn_images(runs: list[Run]) -> None:
    """Drawn one by one, with other draws than the module's: the same distribution."""
    found = agreement(runs, resamples=2000)
    table = np.array([[[np.nan if (s := row.scores[key]) is None else s for row in run.rows] for run in runs]
                      for key in ("average_gain", "aopc")])  # fmt: skip
    rng = np.random.default_rng(5)
    drawn = []
    for _ in range(400):
        means = np.nanmean(table[:, :, rng.integers(0, 40, 40)], axis=2)
        drawn.append(kendalltau(*means).statistic)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert abs(found.low[1, 3] - low) <= 0.2  # tau over five methods goes in steps of 0.2
    assert abs(found.high[1, 3] - high) <= 0.2


def test_runs_that_have_no_order_are_refused(runs: list[Run], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least three runs"):
        agreement(runs[:2])
    scores = {key: np.arange(40.0) for key in KEYS}
    other = a_run(tmp_path / "other", scores, settings={"target": "predicted"})
    with pytest.raises(RunFolderError, match="their target is"):
        agreement([*runs, other])
    single = a_run(tmp_path / "single", {"average_drop": np.arange(40.0)})
    with pytest.raises(RunFolderError, match="1 metrics and 40 images in common"):
        agreement([*runs, single])
    nowhere = {"average_drop": np.arange(40.0), "average_gain": np.full(40, np.nan)}
    without = a_run(tmp_path / "without", nowhere)
    with pytest.raises(RunFolderError, match="a value for each run, .* 1 metrics and 40 images in common"):
        agreement([*runs, without])


def test_the_command_prints_and_draws_it(runs: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["report", str(tmp_path / "runs"), "--intervals=none", "--agreement"]
    assert main([*words, f"--figure={tmp_path / 'new' / 'tau.png'}"]) == 0
    out = capsys.readouterr().out
    assert "Kendall's tau between metrics over 5 methods, 40 images:" in out
    assert "agree: AD ↓ and AG ↑" in out
    with Image.open(tmp_path / "new" / "tau.png") as figure:
        assert figure.width > 400
    assert main([*words, "--format=markdown"]) == 0
    assert "| AD ↓ | +1.00 \\[+1.00, +1.00\\]" in capsys.readouterr().out
    for wrong in ([*words, "--format=json"], ["report", str(tmp_path / "runs"), "--figure=a.png"]):
        with pytest.raises(SystemExit, match="2"):
            main(wrong)
