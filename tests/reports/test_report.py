from __future__ import annotations

import csv
import io
import json
import math
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from optcam_pl.cli.report import report_command
from optcam_pl.metrics import METRICS
from optcam_pl.reports import tables as report_tables
from optcam_pl.reports.report import find_runs, load_run, report, summarize, table
from optcam_pl.reports.statistics import bootstrap_interval, paired_difference
from optcam_pl.runs.files import RunFolderError
from optcam_pl.runs.manifest import write_manifest
from optcam_pl.runs.rows import Row, RowWriter

METRIC_NAMES = ["average_drop", "average_gain", "average_increase"]


def a_row(index: int, drop: float | None = 0.0, gain: float = 0.0, **changes) -> Row:
    scores = {"average_drop": drop, "average_gain": gain, "average_increase": 100.0 * (gain > 0)}
    values = {"id": f"{index}.png", "status": "ok", "target": 1, "predicted": 1, "p": 0.5, "o": 0.5, "seconds": 0.5}
    return Row(index=index, **{**values, "scores": scores, **changes})


def a_run(folder: Path, rows: list[Row], images: int | None = None, files: int = 1, **manifest) -> Path:
    values = {
        "stage": "test",
        "run": folder.name,
        "data": "photos",
        "classifier": "timm/tiny_1",
        "explainer": folder.name,
        "images": len(rows) if images is None else images,
        "metrics": METRIC_NAMES,
        "settings": {"baseline": "black"},
        "fingerprint": {},
        "created": "2024-01-01",
    }
    write_manifest(folder, {**values, **manifest})
    for rank in range(files):
        with RowWriter(folder, rank) as writer:
            writer.write(rows[rank::files])
    return folder


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two runs of two images, all values by hand."""
    options = {"class": "OptiCAM", "baseline": "black", "max_iter": 9, "optimizer": None}
    a_run(tmp_path / "OptiCAM", [a_row(0, 0.0, 50.0), a_row(1, 5.0, 0.0)], explainer_settings=options)
    a_run(tmp_path / "GradCAM", [a_row(0, 12.345678, 10.0), a_row(1, 7.0, 0.0, seconds=1.0)])
    return tmp_path


def test_the_text_table_as_a_person_would_write_it(two):
    assert report([two / "OptiCAM", two / "GradCAM"]).splitlines() == [
        "method   AD ↓   AG ↑   AI ↑  s/image  images",
        "-------  ----  -----  -----  -------  ------",
        "OptiCAM  2.50  25.00  50.00   0.5000       2",
        "GradCAM  9.67   5.00  50.00   0.7500       2",
        "baseline: black; classifier: timm/tiny_1; data: photos; OptiCAM(max_iter=9)",
    ]


def test_the_markdown_table(two):
    assert report([two / "GradCAM"], "markdown").splitlines() == [
        "| method | AD ↓ | AG ↑ | AI ↑ | s/image | images |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| GradCAM | 9.67 | 5.00 | 50.00 | 0.7500 | 2 |",
        "",
        r"- baseline: black; classifier: timm/tiny\_1; data: photos",
    ]


def test_the_latex_table(two):
    assert report([two / "GradCAM"], "latex").splitlines() == [
        r"% needs \usepackage{booktabs}",
        r"\begin{tabular}{lrrrrr}",
        r"\toprule",
        r"method & AD $\downarrow$ & AG $\uparrow$ & AI $\uparrow$ & s/image & images \\",
        r"\midrule",
        r"GradCAM & 9.67 & 5.00 & 50.00 & 0.7500 & 2 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\par{\footnotesize baseline: black; classifier: timm/tiny\_1; data: photos\par}",
    ]


def test_the_csv_table_has_every_digit_and_every_setting(two):
    assert report([two], "csv").splitlines() == [
        "run,stage,data,classifier,explainer,baseline,max_iter,optimizer,images,ok,degenerate,error,missing,seconds_per_image,"
        "average_drop,average_gain,average_increase",
        "GradCAM,test,photos,timm/tiny_1,GradCAM,black,,,2,2,0,0,0,0.75,9.672839,5.0,50.0",
        "OptiCAM,test,photos,timm/tiny_1,OptiCAM,black,9,null,2,2,0,0,0,0.5,2.5,25.0,50.0",
    ]


def test_the_csv_table_has_each_column_once():
    old = Path(__file__).parents[1] / "old" / "complete"  # a manifest that names the classifier among the settings, too
    header = next(csv.reader(io.StringIO(report([old], "csv"))))
    assert len(set(header)) == len(header)


def test_the_json_report_is_a_list_with_an_object_a_run(two):
    first, second = json.loads(report([two], "json"))
    assert second["run"] == "OptiCAM"
    assert second["options"] == {"max_iter": 9, "optimizer": None}
    assert first == {
        "run": "GradCAM",
        "stage": "test",
        "data": "photos",
        "classifier": "timm/tiny_1",
        "explainer": "GradCAM",
        "settings": {"baseline": "black"},
        "options": {},
        "images": 2,
        "statuses": {"ok": 2, "degenerate": 0, "error": 0, "missing": 0},
        "seconds_per_image": 0.75,
        "metrics": {
            "average_drop": {"value": 9.672839, "label": "AD", "unit": "%", "higher_is_better": False},
            "average_gain": {"value": 5.0, "label": "AG", "unit": "%", "higher_is_better": True},
            "average_increase": {"value": 50.0, "label": "AI", "unit": "%", "higher_is_better": True},
        },
        "notes": [],
    }


def test_the_numbers_do_not_depend_on_how_rows_lie_in_files(tmp_path):
    draw = random.Random(0)
    rows = [a_row(i, draw.uniform(0, 1e3), draw.uniform(0, 1e-3), seconds=draw.random()) for i in range(101)]
    texts = set()
    for files in (1, 2, 7):
        draw.shuffle(rows)
        folder = a_run(tmp_path / str(files), rows, files=files, run="r", explainer="e")
        texts.add(report([folder], "json"))
    assert len(texts) == 1
    value = json.loads(texts.pop())[0]["metrics"]["average_drop"]["value"]
    assert value == math.fsum(row.scores["average_drop"] for row in rows) / 101


def test_missing_images_are_said(tmp_path):
    a_run(tmp_path, [a_row(i) for i in range(24) if i not in (4, 5, 6, 20)], images=24)
    summary = summarize(load_run(tmp_path))
    assert summary.notes == ("incomplete: 4 of 24 images missing: 4-6, 20",)
    assert summary.statuses == {"ok": 20, "degenerate": 0, "error": 0, "missing": 4}
    assert "20/24" in table([summary])


def test_errors_are_counted_and_named_and_in_no_mean(tmp_path):
    bad = {"status": "error", "reason": "cannot identify image file", "scores": {}, "seconds": 99.0}
    rows = [a_row(0, 10.0), *(a_row(i, id=f"bad{i}.jpg", **bad) for i in range(1, 6))]
    summary = summarize(load_run(a_run(tmp_path, rows)))
    assert summary.metrics["average_drop"].value == 10.0
    assert summary.seconds_per_image == 0.5
    assert summary.statuses["error"] == 5
    reason = "(cannot identify image file)"
    assert summary.notes == (
        f"errors (5), not counted: bad1.jpg {reason}; bad2.jpg {reason}; bad3.jpg {reason}; and 2 more",
    )


def test_undefined_scores_are_counted_apart_and_degenerate_images_named(tmp_path):
    rows = [a_row(0, 10.0), a_row(1, math.nan, status="degenerate", reason="constant map"), a_row(2, None)]
    summary = summarize(load_run(a_run(tmp_path, rows)))
    assert summary.metrics["average_drop"] == report_tables.Estimate(10.0, undefined=2)
    assert summary.metrics["average_gain"].undefined == 0
    assert summary.notes == (
        "degenerate (1): 1.png (constant map)",
        "average_drop is undefined for 2 of 3 images, left out of its mean",
    )
    drop = json.loads(table([summary], "json"))[0]["metrics"]["average_drop"]
    assert (drop["value"], drop["undefined"]) == (10.0, 2)


@pytest.mark.parametrize("format", ["text", "markdown", "csv", "latex", "json"])
def test_a_run_without_any_score_has_no_number(tmp_path, format):
    text = report([a_run(tmp_path, [], images=2, explainer="FakeCAM")], format)
    assert "nan" not in text.lower().replace("missing", "")
    if format == "text":
        assert text.splitlines()[2].split() == ["FakeCAM", "-", "-", "-", "-", "0/2"]
    assert table([], format)


def test_damaged_rows_and_rows_beyond_the_dataset_are_said(tmp_path):
    a_run(tmp_path, [a_row(0, 10.0), a_row(1), a_row(7, 70.0)], images=2)
    file = tmp_path / "rows" / "a0001-r00000.jsonl"
    file.write_bytes(file.read_bytes().replace(b"1.png", b"8.png"))
    summary = summarize(load_run(tmp_path))
    assert summary.notes[0] == "incomplete: 1 of 2 images missing: 1"
    assert "line 2: its checksum does not match" in summary.notes[1]
    assert summary.notes[2] == "not counted: rows beyond the 2 images of the dataset: 7"
    assert summary.metrics["average_drop"].value == 10.0


def test_a_metric_that_is_not_known_is_left_out_and_said(tmp_path):
    summary = summarize(load_run(a_run(tmp_path, [a_row(0)], metrics=["average_drop", "own_metric"])))
    assert list(summary.metrics) == ["average_drop"]
    assert summary.notes == ("left out, neither described by the run nor metrics of this package: own_metric",)


def test_settings_that_differ_are_columns_and_runs_are_named_where_nothing_else_differs(tmp_path):
    for run, baseline in (("one", "black"), ("two", "mean"), ("three", "mean")):
        a_run(
            tmp_path / run, [a_row(0)], explainer="GradCAM", settings={"probe": {"baseline": baseline}, "layer": ["a"]}
        )
    lines = report([tmp_path / "one", tmp_path / "two"]).splitlines()
    assert lines[0].split()[:2] == ["method", "probe.baseline"]
    assert lines[2].split()[:2] == ["GradCAM", "black"]
    assert "baseline" not in lines[-1]
    assert lines[-1].startswith("layer: a; ")
    lines = report([tmp_path / "two", tmp_path / "three"]).splitlines()
    assert lines[0].split()[:2] == ["run", "method"]
    assert [line.split()[0] for line in lines[2:4]] == ["two", "three"]


def test_a_methods_own_settings_are_columns_where_its_runs_differ_and_not_where_methods_do(tmp_path):
    a_run(tmp_path / "1", [a_row(0)], explainer="OptiCAM", explainer_settings={"max_iter": 50, "lr": 0.1, "chunk": 1})
    a_run(tmp_path / "2", [a_row(0)], explainer="OptiCAM", explainer_settings={"max_iter": 100, "lr": 0.1, "chunk": 1})
    a_run(tmp_path / "3", [a_row(0)], explainer="ScoreCAM", explainer_settings={"chunk": 32})
    lines = report([tmp_path]).splitlines()
    assert [line.split()[:2] for line in (lines[0], *lines[2:5])] == [
        ["method", "max_iter"],
        ["OptiCAM", "50"],
        ["OptiCAM", "100"],
        ["ScoreCAM", "-"],
    ]
    assert lines[5].endswith("data: photos; OptiCAM(lr=0.1, chunk=1); ScoreCAM(chunk=32)")


def test_a_setting_that_only_one_run_of_a_method_has_is_not_shared(tmp_path):
    a_run(tmp_path / "1", [a_row(0)], explainer="OptiCAM", explainer_settings={"lr": 1.0, "layer": None})
    a_run(tmp_path / "2", [a_row(0)], explainer="OptiCAM", explainer_settings={"lr": 1.0, "schedule": "linear"})
    lines = report([tmp_path]).splitlines()
    assert [line.split()[:2] for line in (lines[0], *lines[2:4])] == [
        ["method", "schedule"],
        ["OptiCAM", "-"],
        ["OptiCAM", "linear"],
    ]
    assert lines[4].endswith("data: photos; OptiCAM(lr=1.0)")


NASTY = "<b>a|b</b> & 50%_\n\x1b[31m\\cmd{}日本\udcff"


def test_odd_names_break_no_format(tmp_path):
    bad = a_row(0, id=NASTY, status="error", reason=NASTY)
    run = a_run(tmp_path / "run", [bad], run=NASTY, explainer=NASTY, settings={NASTY: NASTY}, data="=cmd()")
    for format in ("text", "markdown", "csv", "latex"):
        text = report([run], format)
        text.encode()
        assert "\x1b" not in text
        assert "\na|b" not in text
    assert "&lt;b&gt;a\\|b&lt;/b&gt; &amp; 50%\\_\\\\n" in report([run], "markdown")
    assert r"\textless{}b\textgreater{}a\textbar{}b" in report([run], "latex")
    assert r"\& 50\%\_\textbackslash{}n" in report([run], "latex")
    assert next(csv.DictReader(io.StringIO(report([run], "csv"))))["data"] == "'=cmd()"
    assert json.loads(report([run], "json"))[0]["explainer"] == NASTY


def test_wide_characters_are_aligned(tmp_path):
    a_run(tmp_path / "a", [a_row(0)], explainer="日本")
    a_run(tmp_path / "b", [a_row(0)], explainer="abcd")
    first, second = report([tmp_path]).splitlines()[2:4]
    assert first.replace("日本", "abcd") == second


def test_runs_below_a_folder_are_found_in_natural_order_each_once(tmp_path):
    for name in ("b/version_10", "b/version_2", "a/version_0"):
        a_run(tmp_path / name, [])
    a_run(tmp_path / "a" / "version_0" / "maps" / "inner", [])
    names = ["a/version_0", "b/version_2", "b/version_10"]
    assert find_runs([tmp_path]) == [tmp_path / name for name in names]
    assert find_runs([tmp_path / "b/version_10", tmp_path / "b" / ".." / "b"]) == [
        tmp_path / "b/version_10",
        tmp_path / "b" / ".." / "b" / "version_2",
    ]


def test_a_folder_without_a_run_is_an_error_in_words(tmp_path, capsys):
    with pytest.raises(RunFolderError, match=r"There is no run in .*: no manifest.json in it or below it"):
        find_runs([tmp_path])
    assert report_command([str(tmp_path / "nowhere")]) == 1
    expected = "optcam report: Expected a run folder, or a folder with runs below it, but "
    assert capsys.readouterr().err == f"{expected}there is no folder {tmp_path / 'nowhere'}.\n"
    (tmp_path / "file").touch()
    assert report_command([str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err == f"{expected}{tmp_path / 'file'} is a file.\n"


def test_the_command_prints_or_writes_what_report_returns(two, capsys):
    assert report_command([str(two), "--format", "json"]) == 0
    assert capsys.readouterr().out == report([two], "json", intervals="bca")
    assert report_command([str(two), "--format", "json", "--intervals", "none"]) == 0
    assert capsys.readouterr().out == report([two], "json")
    assert report_command([str(two), "--output", str(two / "out" / "table.txt")]) == 0
    assert (two / "out" / "table.txt").read_text("utf-8") == report([two], intervals="bca")
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit, match="2"):
        report_command([str(two), "--format", "html"])


@pytest.mark.parametrize("format", ["text", "markdown", "csv", "latex", "json"])
def test_a_difference_on_one_image_has_no_interval(tmp_path, format):
    a_run(tmp_path / "GradCAM", [a_row(0, 1.0), a_row(1, 2.0)])
    a_run(tmp_path / "OptiCAM", [a_row(0, 3.0)], images=2)
    text = report([tmp_path / "GradCAM"], format, against=tmp_path / "OptiCAM")
    assert "nan" not in text.lower()
    if format == "json":
        pair = json.loads(text)[0]["metrics"]["average_drop"]["against"]
        assert (pair["difference"], pair["low"], pair["high"], pair["p"], pair["images"]) == (-2.0, None, None, 1.0, 1)
    if format == "text":
        assert "[-, -]" in text


def test_negative_numbers_stay_numbers_in_csv_and_formulas_do_not(tmp_path):
    settings = {"seed": -1, "shift": "-1.5e-3", "name": "-cmd", "other": "=1+1"}
    a_run(tmp_path / "GradCAM", [a_row(0)], settings=settings)
    (row,) = csv.DictReader(io.StringIO(report([tmp_path], "csv")))
    assert [row[key] for key in settings] == ["-1", "-1.5e-3", "'-cmd", "'=1+1"]


def test_a_latex_row_does_not_begin_with_an_argument_of_the_row_before(tmp_path):
    a_run(tmp_path / "a", [a_row(0)], explainer="[1] mine")
    a_run(tmp_path / "b", [a_row(0)], explainer="*")
    text = report([tmp_path], "latex")
    assert "\n{[}1] mine & " in text
    assert "\n{*} & " in text


def test_one_run_is_compared_with_and_not_the_first_of_several(two, capsys):
    with pytest.raises(RunFolderError, match="Expected one run to compare with, but .* holds 2: .*GradCAM, .*OptiCAM"):
        report([two], against=two)
    assert report_command([str(two), "--against", str(two)]) == 1
    assert "holds 2" in capsys.readouterr().err
    alone = two / "GradCAM"
    assert report_command([str(alone), "--against", str(alone)]) == 1
    assert "Expected another run than " in capsys.readouterr().err
    assert report_command([str(two), "--against", str(alone)]) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--html", "page", "--format", "csv"], "--format is of the table"),
        (["--html", "page", "--output", "table.txt"], "--output is of the table"),
        (["--html", "page", "--published"], "--published is of the table"),
        (["--html", "page", "--agreement"], "--agreement is of the table"),
        (["--limit", "3"], "--limit is of the page's gallery: it needs --html"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(two, words, told, capsys):
    with pytest.raises(SystemExit):
        report_command([str(two), *words])
    assert told in capsys.readouterr().err


def test_published_values_stand_beside_ours_when_asked_for(two, capsys):
    assert report_command([str(two), "--published"]) == 0
    out = capsys.readouterr().out
    assert "OptiCAM: the paper has no value for the network tiny_1" in out
    assert out == report([two], beside_paper=True, intervals="bca")


def test_an_unknown_format_is_an_error_in_words():
    with pytest.raises(
        ValueError, match="Expected `format` to be one of text, markdown, csv, latex, json, but got 'x'"
    ):
        table([], "x")


def test_the_command_prints_where_arrows_cannot_be(two):
    code = "import sys; from optcam_pl.cli.report import report_command; sys.exit(report_command(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", code, two], env={"PYTHONIOENCODING": "ascii"}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert b"AD ?" in done.stdout
    assert b"\x1b" not in done.stdout


def test_importing_the_report_loads_neither_lightning_nor_a_network():
    code = (
        "import sys, optcam_pl.reports.report; print([m for m in ('lightning', 'timm', 'captum') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_metric_can_stand_in_a_table(tmp_path):
    run = a_run(tmp_path, [a_row(0, scores={})], metrics=list(METRICS))
    assert all(METRICS[key].label in report([run]) for key in METRICS)


def test_intervals_and_paired_differences_stand_in_every_format(two):
    summary = summarize(load_run(two / "GradCAM"))
    pair = report_tables.Paired("other", 2, difference=-1.5, low=-2.0, high=-0.25, p=0.03125)
    drop = report_tables.Estimate(9.672839, low=7.0, high=12.5, against=pair)
    summary = replace(summary, metrics={"average_drop": drop})
    lines = table([summary]).splitlines()
    assert lines[2].split()[:4] == ["GradCAM", "9.67", "[7.00,", "12.50]"]
    assert lines[-4] == "Difference to other, on the images of both:"
    assert lines[-1].split() == ["GradCAM", "AD", "↓", "-1.50", "[-2.00,", "-0.25]", "0.031", "2"]
    assert json.loads(table([summary], "json"))[0]["metrics"]["average_drop"] == {
        **{"value": 9.672839, "label": "AD", "unit": "%", "higher_is_better": False},
        "low": 7.0,
        "high": 12.5,
        "against": {"run": "other", "images": 2, "difference": -1.5, "low": -2.0, "high": -0.25, "p": 0.03125},
    }
    cells = next(csv.DictReader(io.StringIO(table([summary], "csv"))))
    assert {key: cells[f"average_drop_{key}"] for key in ("low", "high", "against", "against_low", "against_p")} == {
        **{"low": "7.0", "high": "12.5", "against": "-1.5", "against_low": "-2.0", "against_p": "0.03125"}
    }
    assert r"\par Difference to other" in table([summary], "latex")
    assert "| GradCAM | AD ↓ | -1.50 | \\[-2.00, -0.25\\] | 0.031 | 2 |" in table([summary], "markdown")


def a_pair(folder: Path, shift: float, **manifest) -> Path:
    """A run of twelve images whose gain is their number, and one more."""
    rows = [a_row(i, gain=i + shift, drop=None if i == 3 else 1.0) for i in range(12)]
    return a_run(folder, rows, **manifest)


def test_intervals_are_those_of_the_rows(tmp_path):
    run = a_pair(tmp_path / "OptiCAM", 0.0)
    found = summarize(load_run(run), "bca").metrics
    want = bootstrap_interval([float(i) for i in range(12)])
    assert (found["average_gain"].low, found["average_gain"].high) == (want.low, want.high)
    assert found["average_gain"].value == want.value == 5.5
    assert found["average_drop"].undefined == 1
    many = [a_row(i, scores={"box_accuracy": [float(i % 2)] * 300}) for i in range(8)]
    box = summarize(load_run(a_run(tmp_path / "box", many, metrics=["box_accuracy"])), "percentile")
    assert box.metrics["box_accuracy"].low < box.metrics["box_accuracy"].value == 50 < box.metrics["box_accuracy"].high


def test_two_runs_are_compared_image_by_image(tmp_path, capsys):
    ours, theirs = a_pair(tmp_path / "OptiCAM", 2.0), a_pair(tmp_path / "GradCAM", 0.0)
    (summary,) = json.loads(report([ours], "json", against=theirs))
    gain = summary["metrics"]["average_gain"]["against"]
    assert (gain["run"], gain["difference"], gain["images"]) == ("GradCAM", 2.0, 12)
    scores = [[i + shift for i in range(12)] for shift in (2.0, 0.0)]
    alone = paired_difference(*scores)
    assert alone.p_value < gain["p"] == pytest.approx(3 * alone.p_value)  # three metrics were compared
    assert summary["metrics"]["average_drop"]["against"]["images"] == 11
    both = json.loads(report([ours, theirs], "json", against=theirs))
    assert "against" not in both[1]["metrics"]["average_gain"]
    assert report_command([str(ours), "--against", str(theirs)]) == 0
    assert "Difference to GradCAM, on the images of both:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "others"}, "their data are photos and others"),
        ({"settings": {"baseline": "blur"}}, "their baseline is 'black' and 'blur'"),
        ({"settings": {"baseline": "black", "average_gain_of": "x"}}, "their average_gain_of is None and 'x'"),
    ],
)
def test_runs_that_were_not_measured_alike_are_not_compared(tmp_path, changes, message):
    ours, theirs = a_pair(tmp_path / "OptiCAM", 2.0), a_pair(tmp_path / "GradCAM", 0.0, **changes)
    with pytest.raises(RunFolderError, match=message):
        report([ours], against=theirs)


def test_runs_without_a_common_image_are_not_compared(tmp_path):
    ours, theirs = a_pair(tmp_path / "a", 2.0), a_run(tmp_path / "b", [a_row(99)], images=100)
    with pytest.raises(RunFolderError, match="no image in common"):
        report([ours], against=theirs)


def test_a_table_too_wide_to_read_has_its_metrics_below_each_other(tmp_path):
    keys = list(METRICS)
    run = a_run(tmp_path / "OptiCAM", [a_row(0, scores={"average_drop": 1.0})], metrics=keys)
    lines = report([run]).splitlines()
    assert lines[0].split() == ["metric", "OptiCAM"]
    assert [line for line in lines if line.startswith("AD ↓")] == [lines[2 + keys.index("average_drop")]]
    assert all(len(line) <= 120 for line in lines)
