"""Help and lists come at once: what they import, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from optcam_pl.cli import waiting
from optcam_pl.cli.main import COMMANDS

HEAVY = ("captum", "lightning", "matplotlib", "numpy", "scipy", "timm", "torch", "torchmetrics", "torchvision")
CODE = """
import sys
from optcam_pl.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stopped:
    code = stopped.code
print("loaded:", *sorted({name.partition(".")[0] for name in sys.modules}))
sys.exit(code)
"""


def loaded(*words: str, code: int = 0) -> tuple[str, set[str]]:
    """What a command prints, and the packages that its process has loaded in the end."""
    done = subprocess.run([sys.executable, "-c", CODE, *words], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    out, _, names = done.stdout.rpartition("loaded: ")
    return out + done.stderr, set(names.split())


@pytest.mark.parametrize("command", ["", *COMMANDS, "paper check"])
def test_help_loads_no_network(command: str) -> None:
    out, names = loaded(*command.split(), "--help")
    assert out.startswith(f"usage: optcam {command}")
    # The choices of the report's intervals are those of its statistics, which count with these two.
    assert names & set(HEAVY) <= ({"numpy", "scipy"} if command in ("report", "verify") else set())


def test_the_list_of_the_paper_loads_no_network() -> None:
    out, names = loaded("paper", "--list")
    assert "tableA13" in out
    assert not names & set(HEAVY)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["paper", "tabel1"], "ValueError: Expected a table or figure of the paper, but got 'tabel1'"),
        (["paper"], "ValueError: Expected a table or figure: table1"),
    ],
)
def test_a_mistake_in_a_table_is_told_before_a_network_is_loaded(words: list[str], told: str) -> None:
    out, _ = loaded(*words, code=1)
    assert told in out


def test_a_wrong_choice_is_told_before_a_network_is_loaded() -> None:
    out, names = loaded("sweep", "--config", "demo", "--format", "tex", code=2)
    assert "invalid choice: 'tex'" in out
    assert not names & set(HEAVY)


def test_each_command_that_runs_the_network_has_a_parser_that_loads_none() -> None:
    from optcam_pl.cli.parsers import _PARSERS

    assert {*_PARSERS, "paper"} == {name for name, command in COMMANDS.items() if command.several}


CONSOLE = """
import os, sys
from optcam_pl.cli import main
module = sys.modules["optcam_pl.cli.main"]
module.wait_as_fits = lambda: print("looked before torch:", "torch" not in sys.modules)
sys.argv = ["optcam", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize(("command", "looks"), [("compare", True), ("sanity", True), ("report", False), ("", False)])
def test_the_console_command_looks_for_busy_cores_before_it_loads_a_network(command: str, looks: bool) -> None:
    words = [sys.executable, "-c", CONSOLE, *command.split(), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert ("looked before torch: True" in done.stdout) == looks


@pytest.mark.parametrize(
    ("running", "given", "passive"),
    [
        (0, {}, False),
        (1, {}, True),
        (1, {"OMP_NUM_THREADS": "2"}, False),
        (3, {"OMP_NUM_THREADS": "2"}, True),
        (9, {"OMP_NUM_THREADS": "1"}, False),  # one thread waits for none
        (9, {"GOMP_SPINCOUNT": "100"}, False),
        (9, {"OMP_WAIT_POLICY": "ACTIVE"}, False),
    ],
)
def test_threads_sleep_where_others_hold_the_cores_unless_the_user_says_how_they_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, running: int, given: dict[str, str], passive: bool
) -> None:
    for name in ("OMP_NUM_THREADS", *waiting._SETTINGS):
        monkeypatch.setenv(name, "")  # so that the end of the test restores it
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    (tmp_path / "loadavg").write_text(f"0.00 0.01 0.05 {running + 1}/321 4711\n")
    monkeypatch.setattr(waiting, "_LOAD", tmp_path / "loadavg")
    assert waiting.others_running() == running
    waiting.wait_as_fits()
    assert (os.environ.get("OMP_WAIT_POLICY") == "PASSIVE") == passive


@pytest.mark.parametrize("text", [None, "", "no numbers"])
def test_a_system_that_does_not_tell_its_load_is_taken_for_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "loadavg").write_text(text)
    monkeypatch.setattr(waiting, "_LOAD", tmp_path / "loadavg")
    assert waiting.others_running() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="another OpenMP shows its settings otherwise")
def test_openmp_is_told_before_it_is_loaded() -> None:
    code = (
        "from optcam_pl.cli import waiting; waiting.others_running = lambda: 999; waiting.wait_as_fits(); import torch"
    )
    plain = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", *waiting._SETTINGS)}
    shown = {**plain, "OMP_DISPLAY_ENV": "true", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=shown, capture_output=True, text=True, check=True)
    assert re.search(r"OMP_WAIT_POLICY ?= ?'PASSIVE'", done.stderr), done.stderr
