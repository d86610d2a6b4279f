"""Python's users on a CPU are told once of the setting that the command makes by itself."""

from __future__ import annotations

import logging
import sys

import pytest

from optcam_pl.network import allocator


def test_the_advice_is_given_once_and_not_to_who_has_followed_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocator, "_settled", set())
    monkeypatch.setattr(sys, "platform", "linux")
    with caplog.at_level(logging.INFO):
        allocator.advise_to_keep_memory("cuda")
        assert not caplog.records
        allocator.advise_to_keep_memory("cpu")
        allocator.advise_to_keep_memory("cpu")
    assert [record.message.count("keep_freed_memory() once") for record in caplog.records] == [1]
    monkeypatch.setattr(allocator, "_settled", set())
    caplog.clear()
    if allocator.keep_freed_memory():
        with caplog.at_level(logging.INFO):
            allocator.advise_to_keep_memory("cpu")
        assert not caplog.records
