from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_report import a_row, a_run

from optcam_pl.cli.verify import verify_command
from optcam_pl.reports.report import load_run, summarize
from optcam_pl.reports.tables import as_dict
from optcam_pl.reports.verify import verify
from optcam_pl.runs.rows import RowWriter
from optcam_pl.runs.tensors import save_tensors


@pytest.fixture
def run(tmp_path: Path) -> Path:
    a_run(tmp_path / "run", [a_row(i, float(i)) for i in range(6)], fingerprint={"baseline": "black"}, files=2)
    return tmp_path / "run"


def edit_manifest(run: Path, **changes) -> None:
    path = run / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_complete_run_is_sound(run):
    save_tensors(run / "weights" / "0.safetensors", {"u": torch.zeros(3)})
    (run / "summary.json").write_text(json.dumps(as_dict(summarize(load_run(run)))))
    assert verify(run) == []
    assert verify_command([str(run)]) == 0


def test_a_flipped_bit_is_found_and_healed_by_doing_the_image_again(run):
    file = run / "rows" / "a0001-r00000.jsonl"
    file.write_bytes(file.read_bytes().replace(b"2.png", b"3.png"))
    problems = verify(run)
    assert problems[0] == "1 of 6 images have no row: 2"
    assert "line 2: its checksum does not match" in problems[1]
    with RowWriter(run) as writer:
        writer.write([a_row(2, 2.0)])
    assert verify(run) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"images": 5}, "rows beyond the dataset's 5 images: 5"),
        ({"images": 9}, "3 of 9 images have no row: 6-8"),
        ({"metrics": ["average_drop", "deletion"]}, "a score is missing: images 0-5 (0.png, 1.png, 2.png, ...)"),
        ({"metrics": ["average_drop", "average_drop"]}, "the manifest names a metric twice"),
        ({"fingerprint": {"baseline": "mean"}}, "baseline is 'black', but 'mean' in its fingerprint"),
        ({"fingerprint": {"data": {"images": 7}}}, "data.images is 6, but 7 in its fingerprint"),
        ({"format": 7}, "is not a manifest of format 1"),
        ({"images": "six"}, "not of the kind that it has to be"),
        ({"settings": []}, "not of the kind that it has to be"),
    ],
)
def test_a_manifest_that_does_not_fit_is_named(run, changes, problem):
    edit_manifest(run, **changes)
    assert any(problem in found for found in verify(run)), verify(run)


def test_contradicting_rows_wrong_probabilities_and_silent_errors_are_named(run):
    with RowWriter(run) as writer:
        writer.write([a_row(0, 99.0)])
    assert "Two different rows of image 0" in verify(run)[0]
    (run / "rows" / "a0002-r00000.jsonl").unlink()
    with RowWriter(run) as writer:
        writer.write([a_row(6, p=1.5), a_row(7, status="error")])
    edit_manifest(run, images=8)
    assert verify(run) == ["p or o is no probability: images 6 (6.png)", "an error without a reason: images 7 (7.png)"]


def test_scores_without_a_probability_may_be_any_number(tmp_path: Path) -> None:
    a_run(tmp_path / "run", [a_row(0, p=7.5), a_row(1, p=-3.0)], settings={"link": "identity"})
    assert verify(tmp_path / "run") == []


def test_damaged_tensors_and_another_summary_are_named(run):
    save_tensors(run / "weights" / "0.safetensors", {"u": torch.zeros(30)})
    path = run / "weights" / "0.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    stored = as_dict(summarize(load_run(run)))
    stored["metrics"]["average_drop"]["value"] += 1.0
    (run / "summary.json").write_text(json.dumps(stored))
    first, second = verify(run)
    assert "0.safetensors" in first
    assert second.endswith("metrics.average_drop is 3.5, but the rows give 2.5")
    (run / "summary.json").write_text("{")
    assert "cannot read" in verify(run)[1]


def test_the_command_names_runs_and_problems_and_fails(run, capsys):
    a_run(run.parent / "other", [], images=3)
    assert verify_command([str(run.parent)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{run.parent / 'other'}: 1 problem(s)",
        "  3 of 3 images have no row: 0-2",
        f"{run}: sound",
    ]
    assert verify_command([str(run.parent / "nowhere")]) == 1
    assert "but there is no folder" in capsys.readouterr().err
