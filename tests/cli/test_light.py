"""Help and lists come at once: what they import, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

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


WAITS = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
CONSOLE = """
import os, sys
from optcam_pl.cli import main
sys.argv = ["optcam", "--help"]
main(ARGS)
print({key: os.environ[key] for key in WAITS if key in os.environ}, "torch" in sys.modules)
""".replace("WAITS", repr(sorted(WAITS)))


def environment(**given: str) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in WAITS} | given


@pytest.mark.parametrize(
    ("given", "args", "kept"),
    [
        ({}, "", {"OMP_WAIT_POLICY": "PASSIVE"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "", {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "100"}, "", {"GOMP_SPINCOUNT": "100"}),
        ({}, "['--help']", {}),  # called from Python: the process is its owner's
    ],
)
def test_threads_of_the_console_command_sleep_while_they_wait(
    given: dict[str, str], args: str, kept: dict[str, str]
) -> None:
    code = CONSOLE.replace("ARGS", args)
    done = subprocess.run([sys.executable, "-c", code], env=environment(**given), capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"{kept} False", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="another OpenMP shows its settings otherwise")
def test_openmp_is_told_before_it_is_loaded() -> None:
    command = [sys.executable, "-m", "optcam_pl", "verify", "nothing"]
    shown = environment(OMP_DISPLAY_ENV="true")
    done = subprocess.run(command, env=shown, capture_output=True, text=True, check=False)
    assert re.search(r"OMP_WAIT_POLICY ?= ?'PASSIVE'", done.stderr), done.stderr
