"""The set-up: every target of the Makefile can be made, and a source distribution has what is in the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TARGETS = re.findall(r"^([\w./$()-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
FILES = [target.replace("$(VENV)", ".venv") for target in TARGETS if not target.startswith(".")]


def test_the_makefile_has_the_targets_that_it_tells_of() -> None:
    text = (ROOT / "Makefile").read_text()
    assert {"install", "demo", "test", "lint", "docs", "bench", ".venv/.dev", ".venv/.bench"} <= set(FILES)
    assert set(re.findall(r'@echo "make ([\w-]+) ', text)) <= set(FILES)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("target", FILES)
def test_every_target_can_be_made_from_a_bare_checkout(target: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", "-n", target], cwd=tmp_path, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # "Circular .venv/.bench <- .venv/.bench dependency dropped." is no error for make
    assert target == "help" or "-m venv .venv" in done.stdout


def test_a_source_distribution_has_what_is_in_the_repository() -> None:
    known = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if known.returncode:
        pytest.skip("this is no checkout")
    if sys.version_info < (3, 11):
        pytest.skip("tomllib comes with Python 3.11")
    import tomllib

    tops = {line.partition("/")[0] for line in known.stdout.splitlines()}
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    included = {path.removeprefix("/") for path in settings["sdist"]["include"]}
    # The build adds these two by itself; logs/ is where runs of a checkout go.
    assert tops - included == {".gitignore", "logs", "pyproject.toml"}
    assert included <= tops
