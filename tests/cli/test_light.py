"""Help and lists come at once: what they import, in a process of its own."""

from __future__ import annotations

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
