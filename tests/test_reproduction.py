"""docs/reproduction.md shows what its rows say, and each of its commands is one."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from optcam_pl.cli.experiments import EXPERIMENTS
from optcam_pl.reports.report import find_runs, report
from optcam_pl.reports.sweeps import selectivity_figure
from optcam_pl.reports.verify import verify

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def made() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reproduction", DOCS / "make_reproduction.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def unpacked(made: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    made.unpack(folder)
    return folder


def test_the_page_is_what_the_rows_say(made: ModuleType) -> None:
    assert made.main(["--check"]) == 0, "run python docs/make_reproduction.py"


def test_a_changed_digit_is_found(made: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = made.PAGE.read_text()
    place = re.search(r"<!-- rows: table6 -->.*?\| (\d+\.\d\d) ", text, re.DOTALL)
    assert place is not None
    changed = text[: place.end(1) - 1] + str((int(place[1][-1]) + 1) % 10) + text[place.end(1) :]
    page = tmp_path / "reproduction.md"
    page.write_text(changed)
    monkeypatch.setattr(made, "PAGE", page)
    assert made.main(["--check"]) == 1
    assert page.read_text() == changed


def test_every_table_has_one_place_and_every_archive_is_there(made: ModuleType) -> None:
    places = re.findall(r"<!-- rows: (\w+) -->", made.PAGE.read_text())
    assert sorted(places) == sorted(made.TABLES)
    assert {path.name for path in made.RESULTS.glob("*.tar.gz")} == {f"{name}.tar.gz" for name in made.ARCHIVES}
    assert sum(path.stat().st_size for path in made.RESULTS.iterdir()) < 3_000_000


def test_the_runs_are_whole_and_name_no_folder_of_a_machine(unpacked: Path) -> None:
    runs = find_runs([unpacked])
    for run in runs:
        assert verify(run) == []
    for path in unpacked.rglob("*"):
        if path.suffix in (".json", ".yaml"):
            assert not re.search(r"(^|[\"' ])/(home|work|tmp|root)/", path.read_text()), path
    assert "AG" in report([runs[0]])


def test_the_same_runs_make_the_same_archive(
    made: ModuleType, unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(unpacked)
    made.collect(tmp_path / "again.tar.gz", [Path(folder) for folder in made.ARCHIVES["table6"]])
    assert (tmp_path / "again.tar.gz").read_bytes() == (made.RESULTS / "table6.tar.gz").read_bytes()


def test_the_figure_of_the_selectivity_has_the_metrics_in_their_order(made: ModuleType, unpacked: Path) -> None:
    figure = selectivity_figure([(run.path.name, run.path) for run in made.runs_in(unpacked, made.SELECTIVITY)])
    assert [axes.get_title() for axes in figure.axes] == ["AD^a ↓", "AG^a ↑", "AI^a ↑"]
    (legend,) = figure.legends
    assert "OptiCAM" in [text.get_text() for text in legend.get_texts()]


def test_each_table_stands_below_the_command_that_made_it(made: ModuleType) -> None:
    text = made.PAGE.read_text()
    for line in "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ").splitlines():
        words = shlex.split(line)
        assert words[:2] in (["optcam", "paper"], ["optcam", "compare"], ["optcam", "report"], ["tar", "-xzf"])
        assert words[1] != "paper" or words[2] in EXPERIMENTS
        for word in words:
            assert not word.endswith((".yaml", ".gz")) or (DOCS.parent / word).is_file(), word
    sections = re.split(r"\n### ", text)[1:]
    for section in sections:
        above, place, _ = section.partition("<!-- rows:")
        assert not place or "```sh\noptcam" in above, section.splitlines()[0]
