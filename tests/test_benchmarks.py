"""The benchmarks' arithmetic, and that their page is what their results say; they themselves run by `make bench`."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("common", "performance_page"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import common
    import performance_page

    return common, performance_page


def test_the_page_is_what_the_results_say(modules: tuple[ModuleType, ModuleType]) -> None:
    _, performance_page = modules
    assert performance_page.PAGE.read_text() == performance_page.page()


def test_contestants_take_turns_and_a_ratio_is_the_median_of_the_rounds(modules: tuple[ModuleType, ModuleType]) -> None:
    common, performance_page = modules
    turns: list[str] = []

    def side(name: str, seconds: list[float]) -> object:
        def call() -> float:
            turns.append(name)
            return seconds.pop(0)

        return call

    contestants = [
        common.Contestant("limit", side("limit", [9.0, 1.0, 10.0, 2.0]), "limit", work=2),
        common.Contestant("ours", side("ours", [9.0, 3.0, 20.0, 5.0])),
        common.Contestant("peer", side("peer", [40.0]), "peer", rounds=1),
    ]
    table = common.race("A race", "an image", contestants, rounds=3)
    assert turns == ["limit", "ours", "limit", "ours", "peer", "ours", "limit", "limit", "ours"]
    assert table.seconds == {"limit": [0.5, 5.0, 1.0], "ours": [3.0, 20.0, 5.0], "peer": [40.0]}
    assert table.limit == "limit"
    assert table.ratio("ours", "limit") == 5.0  # of 6, 4 and 5
    assert common.Claim("ours", "limit", 5.0).words(table) == ("ours / limit: 5.00 (at most 5: yes)", True)
    assert common.Claim("ours", "limit", 6, at_most=False).words(table) == (
        "ours / limit: 5.00 (at least 6: NO)",
        False,
    )
    stored = {"unit": table.unit, "limit": table.limit, "seconds": table.seconds}
    assert performance_page.rows(stored)[3] == "| ours | 5 s | 5.00 |"
    assert common.rows(table)[2] == "| limit (limit) | 1 s | 750 ms to 3 s | 1.00 | 3 |"
