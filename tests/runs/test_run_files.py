from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest
import torch

from optcam_pl.runs import files as storage
from optcam_pl.runs.files import RunFolderError, RunLock, write_file
from optcam_pl.runs.tensors import load_tensors, save_tensors

HOLD = """
import sys
from optcam_pl.runs.files import RunLock
with RunLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_file_is_replaced_at_once_and_nothing_else_stays(tmp_path):
    path = tmp_path / "deeper" / "file.txt"
    write_file(path, "old")
    write_file(path, "näw \udcff")
    assert path.read_text("utf-8") == "näw \\udcff"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(RunFolderError, match=r"Cannot write .*taken/deep/x.txt: .*taken is a file\."):
        write_file(tmp_path / "taken" / "deep" / "x.txt", "x")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_file(path, b"old")

    def full(fd, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "write_all", full)
    with pytest.raises(RunFolderError, match=r"Cannot write .*file.txt: No space left on device"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_error_for_tensors_too(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "weights.safetensors"
    save_tensors(path, {"u": torch.zeros(3)})
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    try:
        with pytest.raises(RunFolderError, match=r"weights.safetensors: File too large"):
            save_tensors(path, {"u": torch.zeros(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert load_tensors(path)[0]["u"].shape == (3,)


def test_tensors_and_their_metadata_come_back(tmp_path):
    tensors = {"u": torch.randn(4, 3, requires_grad=True), "half": torch.ones(2, 2).half().t(), "n": torch.tensor(3)}
    save_tensors(tmp_path / "w.safetensors", tensors, {"ids": "a\nb"})
    back, metadata = load_tensors(tmp_path / "w.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) and back[name].dtype == tensors[name].dtype for name in tensors)
    assert metadata == {"ids": "a\nb"}


@pytest.mark.parametrize("at", [-1, -30, 8 + 30])
def test_a_flipped_bit_in_tensors_or_metadata_is_found(tmp_path, at):
    path = tmp_path / "w.safetensors"
    save_tensors(path, {"u": torch.arange(10.0)}, {"ids": json.dumps(["a", "b"])})
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunFolderError, match=r"w.safetensors"):
        load_tensors(path)


def test_a_damaged_tensor_file_is_named(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(RunFolderError, match=r"w.safetensors"):
        load_tensors(path)
    save_tensors(path, {"u": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(RunFolderError, match=r"w.safetensors"):
        load_tensors(path)


def test_a_second_process_is_refused_by_name_until_the_first_dies(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(RunFolderError, match=rf"in use by process {holder.pid} on .+ since \d{{4}}"),
            RunLock(tmp_path),
        ):
            pytest.fail("entered")
        holder.kill()
    with RunLock(tmp_path) as lock:
        assert json.loads(lock.path.read_text())["pid"] == os.getpid()


def test_the_lock_excludes_within_a_process_and_is_free_after_an_exception(tmp_path):
    with pytest.raises(KeyError), RunLock(tmp_path):  # noqa: PT012
        with RunLock(tmp_path, "shard-2.lock"), pytest.raises(RunFolderError, match="in use"), RunLock(tmp_path):
            pytest.fail("entered")
        raise KeyError
    with RunLock(tmp_path):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # torch's threads; the child only waits
def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    ready, started = os.pipe()
    over, end = os.pipe()
    with RunLock(tmp_path):
        child = os.fork()
        if not child:  # a data worker that outlives its parent
            os.close(end)
            os.write(started, b"!")
            os.read(over, 1)
            os._exit(0)
        os.read(ready, 1)
    try:
        with RunLock(tmp_path) as lock:  # else refused, as the child is still there
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
            assert json.loads(lock.path.read_text())["pid"] == os.getpid()
    finally:
        os.close(end)
        os.waitpid(child, 0)
        for fd in (ready, started, over):
            os.close(fd)


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def none(fd, shared):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(storage, "_try_lock", none)
    with pytest.warns(UserWarning, match="its file system has none"), RunLock(tmp_path):
        pass


def test_an_unreadable_holder_is_another_process(tmp_path):
    with RunLock(tmp_path) as lock:
        lock.path.write_text("?")
        with pytest.raises(RunFolderError, match="in use by another process"), RunLock(tmp_path):
            pytest.fail("entered")


def test_a_place_that_cannot_be_locked_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolderError, match=r"Cannot write .*\.lock"), RunLock(tmp_path / "run"):
        pytest.fail("entered")
