"""What a block leaves behind is written while the next one is computed, in order, and never silently lost."""

from __future__ import annotations

import errno
import io
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from optcam_pl.callbacks import MapWriter
from optcam_pl.cli import main
from optcam_pl.explainers import Explanation, GradCAM
from optcam_pl.runs import rows as rows_module
from optcam_pl.runs.behind import WriteBehind, helpers
from optcam_pl.runs.files import RunFolderError
from optcam_pl.runs.rows import Row, read_rows
from optcam_pl.runs.run_folder import RunFolder

TINY = str(Path(__file__).parents[1] / "conf" / "tiny.yaml")
WRITER = '--trainer.callbacks+={"class_path": "optcam_pl.callbacks.MapWriter"}'
PATIENCE = 60  # seconds; a test that needs them has failed
of_tensorboard = pytest.mark.filterwarnings(
    # tensorboard's protobuf classes and torch's own writer, https://github.com/pytorch/pytorch/issues/134958
    "ignore::DeprecationWarning",
)


class DiskFullError(OSError):
    """As a system raises it."""

    def __init__(self) -> None:
        super().__init__(errno.ENOSPC, "No space left on device")


def fail() -> None:
    raise DiskFullError


def test_blocks_are_written_in_order_and_at_most_one_behind() -> None:
    done: list[int] = []
    go = [threading.Event() for _ in range(3)]

    def job(block: int) -> Callable[[], None]:
        return lambda: (go[block].wait(PATIENCE), done.append(block))[1]

    with WriteBehind() as writing:
        writing.hand_over([job(0)], lambda: done.append(10))
        assert done == []  # nobody waited
        second = threading.Thread(target=writing.hand_over, args=([job(1)],))
        second.start()
        second.join(0.05)
        assert second.is_alive()  # the first is not on the disk yet
        go[0].set()
        second.join(PATIENCE)
        assert done == [0, 10]
        go[1].set()
        go[2].set()
        writing.hand_over([job(2)])
    assert done == [0, 10, 1, 2]


def test_an_error_is_raised_once_and_nothing_after_it_is_written() -> None:
    done: list[str] = []
    with WriteBehind() as writing:
        writing.hand_over([lambda: done.append("map"), fail], lambda: done.append("row"))
        with pytest.raises(DiskFullError):
            writing.hand_over([lambda: done.append("next block")])
        writing.settle()
    assert done == ["map"]


def test_files_are_written_at_the_same_time_and_rows_after_all_of_them() -> None:
    done: list[str] = []
    both = threading.Barrier(2)

    def file() -> None:
        both.wait(PATIENCE)  # a single thread would wait here for ever
        done.append("file")

    with WriteBehind(2) as writing:
        writing.hand_over([file, file], lambda: done.append("rows"))
        writing.hand_over([fail, lambda: done.append("other file")], lambda: done.append("no rows"))
        with pytest.raises(DiskFullError):
            writing.settle()
    assert done == ["file", "file", "rows", "other file"]
    assert 1 <= helpers() <= 4


def test_an_exception_elsewhere_waits_for_what_was_handed_over_and_says_what_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done: list[str] = []

    def interrupted(job: Callable[[], object]) -> None:
        with WriteBehind() as writing:
            writing.hand_over([job])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(lambda: done.append("row"))
    assert done == ["row"]
    with caplog.at_level(logging.ERROR), pytest.raises(KeyboardInterrupt):
        interrupted(fail)
    assert "could not be written; the next start computes it again: [Errno 28] No space left" in caplog.text


def test_a_process_that_ends_without_leaving_it_writes_what_was_handed_over(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from optcam_pl.runs.behind import WriteBehind, helpers
WriteBehind().__enter__().hand_over([lambda: time.sleep(0.3)], lambda: Path({str(tmp_path / "row")!r}).touch())
raise SystemExit(3)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 3
    assert (tmp_path / "row").exists()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's list of threads")
def test_pictures_are_drawn_without_threads_of_torch() -> None:
    """On many cores, each thread that computes with torch would start as many more."""
    code = """
import os, threading, torch
from optcam_pl.figures import heatmap, outlined, overlay, picture
from optcam_pl.runs.thumbnails import _jpeg
image, saliency = torch.rand(3, 224, 224), torch.rand(1, 224, 224)
small, mask = torch.zeros(3, 176, 176, dtype=torch.uint8), torch.ones(224, 224, dtype=torch.bool)
matplotlib = heatmap(saliency)  # loads what it needs
before, found = len(os.listdir("/proc/self/task")), []
def draw():
    for one in (image, image[:1]):
        outlined(overlay(one, saliency), torch.rand(2, 4) * 100, mask)
    _jpeg(small)
    found.append(len(os.listdir("/proc/self/task")))
thread = threading.Thread(target=draw)
thread.start()
thread.join()
print(found[0] - before)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "8"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"  # itself


def test_a_map_without_a_probability_is_read_again_without_pickle() -> None:
    row = Row(index=0, id="a.png", status="ok", target=1, predicted=1, p=None, o=None, seconds=0.0)
    explanation = Explanation(torch.rand(1, 1, 2, 2), torch.tensor([1]), torch.tensor([False]))
    data = MapWriter._map(None, SimpleNamespace(explanation=explanation), 0, row)()  # type: ignore[arg-type]
    with np.load(io.BytesIO(data)) as stored:
        assert np.isnan(stored["p"])
        assert np.isnan(stored["o"])
        assert (str(stored["id"]), int(stored["target"])) == ("a.png", 1)


def run(*words: str, stage: str = "test") -> int:
    """A run over the seven photographs in four blocks."""
    common = ["--config", TINY, "--data.root=photos", "--data.batch_size=2", "--run_dir=run"]
    return main([stage, *common, "--model.explainer=GradCAM", *words])


@pytest.fixture
def here(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    assert photos.is_dir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def sync_fails_in(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """The disk is full when the n-th block's rows become durable."""
    sync, blocks = rows_module.sync_data, iter(range(100))
    monkeypatch.setattr(rows_module, "sync_data", lambda fd: fail() if next(blocks) == block else sync(fd))


@of_tensorboard
@pytest.mark.usefixtures("here")
def test_rows_become_durable_while_the_next_block_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, began, forward, sync = iter(range(100)), threading.Event(), GradCAM.forward, rows_module.sync_data
    waited: list[bool] = []

    def forward_of(self: GradCAM, *given: Any) -> Any:
        if next(calls) == 1:
            began.set()
        return forward(self, *given)

    def sync_of(fd: int) -> None:
        waited.append(began.wait(PATIENCE))  # the first block's rows wait for the second block
        assert threading.current_thread() is not threading.main_thread()
        sync(fd)

    monkeypatch.setattr(GradCAM, "forward", forward_of)
    monkeypatch.setattr(rows_module, "sync_data", sync_of)
    assert run() == 0
    assert waited == [True] * 4
    assert [row.index for row in read_rows("run")] == list(range(7))


@of_tensorboard
@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.usefixtures("here")
def test_a_full_disk_ends_the_run_with_the_same_words_and_the_next_start_does_the_rest(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        sync_fails_in(patch, block)
        with pytest.raises(RunFolderError, match="Cannot write rows to run/rows/a0001-r00000.jsonl: No space left"):
            run()
    assert [row.index for row in read_rows("run", strict=True)] == list(range(2 * block))
    assert not Path("run/summary.json").exists()  # also where it was the last block
    assert run() == 0
    assert [row.index for row in read_rows("run")] == list(range(7))


@of_tensorboard
@pytest.mark.usefixtures("here")
def test_a_block_whose_picture_cannot_be_written_has_no_rows() -> None:
    Path("run").mkdir()
    Path("run/overlays").write_text("no folder")
    with pytest.raises(RunFolderError, match="Cannot write run/overlays/000000"):
        run(WRITER)
    assert not read_rows("run")


@of_tensorboard
@pytest.mark.usefixtures("here")
def test_an_interrupt_in_a_block_keeps_all_blocks_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    write, blocks = RunFolder.write, iter(range(100))

    def interrupted(self: RunFolder, *given: Any) -> None:
        if next(blocks) == 2:
            raise KeyboardInterrupt
        write(self, *given)

    monkeypatch.setattr(RunFolder, "write", interrupted)
    with pytest.raises(SystemExit):
        run(WRITER)
    assert [row.index for row in read_rows("run", strict=True)] == [0, 1, 2, 3]
    assert len(list(Path("run/overlays").glob("*.png"))) == len(list(Path("run/maps").glob("*.npz"))) == 4
