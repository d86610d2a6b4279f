"""Processes that know of each other through a store, played by threads and by turns."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from optcam_pl.runs.files import RunFolderError
from optcam_pl.runs.processes import Processes
from optcam_pl.runs.run_folder import RunFolder
from optcam_pl.runs.signals import Stopped

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without its distributed package")


def three(store: Any = None) -> list[Processes]:
    store = dist.HashStore() if store is None else store
    return [Processes(rank, 3, store) for rank in range(3)]


def all_leave(processes: list[Processes]) -> list[int | None]:
    reasons: dict[int, int | None] = {}
    threads = [threading.Thread(target=lambda p=p: reasons.setdefault(p.rank, p.leave())) for p in processes]
    for thread in threads[:-1]:
        thread.start()
    threads[0].join(0.3)
    assert threads[0].is_alive()  # it waits for the last one
    threads[-1].start()
    for thread in threads:
        thread.join(20)
    return [reasons[rank] for rank in range(len(processes))]


def test_nobody_leaves_before_all_have_and_numbers_are_shared() -> None:
    processes = three()
    assert [p.add("errors", 2) for p in processes] == [2, 4, 6]
    assert all_leave(processes) == [None, None, None]


def test_what_stops_one_stops_all() -> None:
    processes = three()
    assert [p.heed() for p in processes] == [None, None, None]
    processes[1].stop(signal.SIGTERM)
    assert [p.heed() for p in processes] == [signal.SIGTERM] * 3
    assert all_leave(processes) == [signal.SIGTERM] * 3


def test_a_process_that_failed_is_not_waited_for(tmp_path: Path) -> None:
    processes = three()
    RunFolder(tmp_path, processes=processes[2]).fail()
    for p in processes[:2]:
        with pytest.raises(RunFolderError, match="another process of this run failed"):
            RunFolder(tmp_path, processes=p).heed()


def test_a_dead_store_is_a_clear_error(tmp_path: Path) -> None:
    class Dead:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("Connection reset by peer")

    folder = RunFolder(tmp_path, processes=Processes(1, 2, Dead()))
    for function in (folder.heed, folder.finish):
        with pytest.raises(RunFolderError, match=r"Another process of this run has ended: Connection reset"):
            function()
    folder.fail()


def test_a_process_alone_answers_itself(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.heed()
    assert [folder.processes.add("errors", 1) for _ in range(2)] == [1, 2]
    folder.processes.stop(signal.SIGINT)
    with pytest.raises(Stopped) as stopped:
        folder.heed()
    assert stopped.value.exit_code == 130
