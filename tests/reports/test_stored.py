"""Summaries of large runs are kept, and never after anything has changed that their numbers follow from."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from optcam_pl.metric_info import OWN_KEYS
from optcam_pl.metrics import METRICS, AverageDrop, MetricInfo
from optcam_pl.reports import stored
from optcam_pl.reports.report import report
from optcam_pl.reports.summary import load_run, summarize
from optcam_pl.runs.manifest import MANIFEST, write_manifest
from optcam_pl.runs.rows import Row, RowWriter

INFO = asdict(AverageDrop().describe())


def a_run(folder: Path, drops: list[float], images: int | None = None, **info: object) -> Path:
    values = {"stage": "test", "run": folder.name, "data": "d", "classifier": "c", "explainer": folder.name}
    described = {"average_drop": INFO | info}
    values |= {"images": len(drops) if images is None else images, "metrics": ["average_drop"], "settings": {}}
    write_manifest(folder, {**values, "metric_info": described, "fingerprint": {}, "created": "2024-01-01"})
    add_rows(folder, 0, drops)
    return folder


def add_rows(folder: Path, first: int, drops: list[float]) -> None:
    with RowWriter(folder) as writer:
        values = {"status": "ok", "target": 1, "predicted": 1, "p": 0.5, "o": 0.5, "seconds": 0.5}
        writer.write(
            Row(index=i, id=f"{i}.png", scores={"average_drop": drop}, **values) for i, drop in enumerate(drops, first)
        )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder; every run is large enough for it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(stored, "LEAST", 1)
    return tmp_path / "cache" / "optcam_pl" / "summaries"


def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, no run can be read."""

    def fail(path: Path) -> None:
        raise AssertionError(f"read {path}")

    monkeypatch.setattr(stored, "load_run", fail)


def test_a_second_report_is_the_same_and_reads_no_row(tmp_path, cache, monkeypatch):
    runs = [a_run(tmp_path / "A", [1.0, 2.5, 4.0]), a_run(tmp_path / "B", [2.0, 3.5, 7.0])]
    formats = ("text", "json", "csv")
    first = [report(runs, name, intervals="bca") for name in formats]
    assert len(list(cache.iterdir())) == 2
    assert sorted(path.name for path in runs[0].iterdir()) == [MANIFEST, "rows"]
    unread(monkeypatch)
    assert [report(runs, name, intervals="bca") for name in formats] == first
    with pytest.raises(AssertionError, match="read"):
        report(runs, intervals="percentile")


@pytest.mark.parametrize("change", ["row", "manifest", "code"])
def test_whatever_changes_makes_new_numbers(tmp_path, monkeypatch, change):
    run = a_run(tmp_path / "A", [1.0, 2.0])
    assert json.loads(report([run], "json"))[0]["metrics"]["average_drop"]["value"] == 1.5
    if change == "row":
        (file,) = (run / "rows").iterdir()
        file.unlink()
        add_rows(run, 0, [1.0, 4.0])
        assert json.loads(report([run], "json"))[0]["metrics"]["average_drop"]["value"] == 2.5
        return
    if change == "manifest":
        (run / MANIFEST).write_text((run / MANIFEST).read_text().replace("2024-01-01", "2024-01-02"))
    else:
        monkeypatch.setattr(stored, "_code", lambda: b"other")
    unread(monkeypatch)
    with pytest.raises(AssertionError, match="read"):
        report([run], "json")


@pytest.mark.parametrize("kind", ["incomplete", "foreign", "small"])
def test_what_may_change_or_costs_nothing_is_not_kept(tmp_path, cache, monkeypatch, kind):
    if kind == "small":
        monkeypatch.setattr(stored, "LEAST", 2**20)
    foreign = {"aggregate": "of_means", "path": "elsewhere.Metric"} if kind == "foreign" else {}
    report([a_run(tmp_path / "A", [1.0, 2.0], 3 if kind == "incomplete" else None, **foreign)])
    assert not cache.exists()


def test_a_run_that_has_just_ended_is_kept(tmp_path, cache, monkeypatch):
    run = load_run(a_run(tmp_path / "A", [1.0, 2.0, 7.0]))
    summary = summarize(run, "bca")
    stored.keep_summary(run, summary, "bca")
    unread(monkeypatch)
    assert stored.summaries_of([run.path], "bca") == [summary]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"metrics": 3}', '{"metrics": {"average_drop": {"x": 1}}}'])
def test_a_spoiled_entry_is_made_anew(tmp_path, cache, content):
    run = a_run(tmp_path / "A", [1.0, 2.0])
    text = report([run])
    (entry,) = cache.iterdir()
    good = entry.read_text()
    entry.write_text(content)
    assert report([run]) == text
    assert entry.read_text() == good


def test_a_cache_that_cannot_be_written_is_no_fault(tmp_path, cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file")
    assert report([a_run(tmp_path / "A", [1.0, 2.0])])


def test_the_oldest_entries_go(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(stored, "_MOST", 2)
    for drop in range(4):
        report([a_run(tmp_path / f"{drop}", [1.0, float(drop)])])
    assert len(list(cache.iterdir())) == 2


def test_the_known_keys_are_those_of_the_metrics():
    assert set(METRICS) == OWN_KEYS
    assert MetricInfo is type(AverageDrop().describe())


def test_a_report_of_described_runs_loads_no_pytorch(tmp_path):
    run = a_run(tmp_path / "A", [1.0, 2.0, 4.0])
    code = (
        "import sys; from optcam_pl.cli import main; code = main(['report', sys.argv[1]]); "
        "sys.exit(code or 9 * bool({'torch', 'scipy.stats', 'matplotlib', 'lightning'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2.33" in done.stdout
