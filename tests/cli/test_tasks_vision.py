"""The Python lines of docs/tasks_vision.md run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tasks_vision.md").read_text()
BLOCKS = dict(re.findall(r"## ([^\n]+)\n\n```python\n(.*?)```", PAGE, re.DOTALL))


@pytest.mark.parametrize("title", BLOCKS)
def test_the_lines_of_a_section_run(title: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("open_clip")
    exec(compile(BLOCKS[title], title, "exec"), {})
    assert "CAM" in capsys.readouterr().out
