"""Real processes, real signals: whatever happens to a run, it ends with its numbers or says what is missing.

`make test-faults` runs these tests; tests/test_resume.py holds the quick ones.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from fault_cases import alive, children, command, end, finish, make_photos, rows_of, start, until, written
from safetensors.torch import load

from optcam_pl.reports.report import load_run, summarize
from optcam_pl.runs.rows import read_rows

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos"), 201)


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of one process."""
    run = tmp_path_factory.mktemp("whole") / "run"
    code, _, err = finish(command("test", run, photos=photos))
    assert code == 0, err
    assert [row.index for row in read_rows(run)] == list(range(201))
    return run


def check_equal(run: Path, whole: Path) -> None:
    assert rows_of(run) == rows_of(whole)
    assert summarize(load_run(run)).metrics == summarize(load_run(whole)).metrics


def crafted_png() -> bytes:
    """A PNG of a few bytes that says it had 10^10 pixels."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("devices", [2, 3, 7])
def test_any_number_of_processes_gives_the_same_rows(devices: int, photos: Path, whole: Path, tmp_path: Path) -> None:
    code, _, err = finish(command("test", tmp_path / "run", photos=photos, devices=devices))
    assert code == 0, err
    assert len(list((tmp_path / "run" / "rows").iterdir())) == devices
    check_equal(tmp_path / "run", whole)


def test_more_processes_than_images_and_nothing_left_to_do(photos: Path, tmp_path: Path) -> None:
    for times in range(2):
        words = command("test", tmp_path / "run", "--data.limit=3", photos=photos, devices=3)
        code, _, err = finish(words)
        assert code == 0, err
        assert ("nothing left to do" in err) == bool(times)
    assert [row.index for row in read_rows(tmp_path / "run")] == [0, 1, 2]


def test_two_nodes_under_torchrun_give_the_same_rows(photos: Path, whole: Path, tmp_path: Path) -> None:
    port = free_port()
    words = command("test", tmp_path / "run", "--trainer.num_nodes=2", photos=photos)[3:]
    node = ["--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={port}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *node]
    nodes = [start([*torchrun, f"--node_rank={rank}", "-m", "optcam_pl", *words]) for rank in range(2)]
    for code, _, err in map(end, nodes):
        assert code == 0, err
    check_equal(tmp_path / "run", whole)


def test_thirty_kills_at_random_moments_change_nothing(photos: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    slow = ["--model.explainer.max_iter=10", "--data.limit=120"]
    words = lambda run, devices: command("test", tmp_path / run, *slow, photos=photos, devices=devices)  # noqa: E731
    code, _, err = finish(words("whole", 1))
    assert code == 0, err
    for _ in range(30):
        devices, before = rng.choice([1, 1, 2, 3]), written(tmp_path / "run")
        process = start(words("run", devices))
        if rng.random() < 0.2:  # before it works
            until(lambda p=process: p.poll() is not None, rng.uniform(0, 6))
        else:
            more = before + rng.randint(1, 4)
            until(lambda m=more, p=process: written(tmp_path / "run") >= m or p.poll() is not None)
            until(lambda p=process: p.poll() is not None, rng.uniform(0, 0.3))
        others = children(process.pid)
        if process.poll() is None:
            os.kill(rng.choice([process.pid, *others]), signal.SIGKILL)
        assert until(lambda p=process, o=others: p.poll() is not None and not any(map(alive, o)), 60)
        end(process)
    code, _, err = finish(words("run", 2))
    assert code == 0, err
    check_equal(tmp_path / "run", tmp_path / "whole")
    assert finish([*words("run", 1)[:3], "verify", str(tmp_path / "run")])[0] == 0


@pytest.mark.parametrize("stage", ["test", "fit", "predict"])
@pytest.mark.parametrize("to", ["first", "second", "all"])
def test_sigterm_to_any_process_ends_all_after_their_block(stage: str, to: str, photos: Path, tmp_path: Path) -> None:
    if stage != "test" and to != "second":
        pytest.skip("one stage shows it")
    slow = ["--model.explainer.max_iter=10", "--data.limit=40"]
    words = command(stage, tmp_path / "run", *slow, photos=photos, devices=2)
    process = start(words)
    early = 2 if stage == "fit" else 4  # perhaps the other's first block is not done yet
    assert until(lambda: written(tmp_path / "run") >= early or process.poll() is not None)
    (second,) = children(process.pid)
    for pid in {"first": [process.pid], "second": [second], "all": [process.pid, second]}[to]:
        os.kill(pid, signal.SIGTERM)
    assert until(lambda: process.poll() is not None, 60)  # nobody waits for an answer of one that has ended
    code, _, err = end(process)
    assert code == 143, err
    assert "The run goes on with" in err
    assert until(lambda: not alive(second), 10)
    done = rows_of(tmp_path / "run")
    assert early <= len(done) < 40
    assert len(done) % 2 == 0  # whole blocks
    code, _, err = finish([*words, "--trainer.devices=1"])
    assert code == 0, err
    rows = rows_of(tmp_path / "run")
    assert [row["index"] for row in rows] == list(range(40))
    assert [row for row in rows if row in done] == done


def test_fit_of_several_starts_stores_the_weights_of_one(photos: Path, tmp_path: Path) -> None:
    words = [command("fit", tmp_path / name, "--data.limit=20", photos=photos) for name in ("run", "whole")]
    process = start([*words[0], "--trainer.devices=2"])
    until(lambda: written(tmp_path / "run") >= 2 or process.poll() is not None)
    process.kill()
    end(process)
    for each in words:
        assert finish(each)[0] == 0
    files = sorted(path.name for path in (tmp_path / "whole" / "weights").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "run" / "weights").glob("b*"))
    for name in files:
        one, other = (load((tmp_path / run / "weights" / name).read_bytes()) for run in ("run", "whole"))
        assert all(torch.equal(one[key], other[key]) for key in other)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_within_a_minute(victim: int, photos: Path, tmp_path: Path) -> None:
    process = start(command("test", tmp_path / "run", "--model.explainer.max_iter=50", photos=photos, devices=3))
    assert until(lambda: written(tmp_path / "run") >= 2 or process.poll() is not None)
    everyone = [process.pid, *children(process.pid)]
    assert len(everyone) == 3
    os.kill(everyone[victim], signal.SIGKILL)
    assert until(lambda: process.poll() is not None and not any(map(alive, everyone)), 60)
    assert end(process)[0] != 0


def test_a_second_signal_ends_at_once(photos: Path, tmp_path: Path) -> None:
    process = start(
        command("test", tmp_path / "run", "--model.explainer.max_iter=100000", "--model.explainer.tol=0", photos=photos)
    )
    assert until(lambda: (tmp_path / "run" / "rows").is_dir() or process.poll() is not None)
    until(lambda: False, 5)  # the folder is made before the first block begins
    process.send_signal(signal.SIGINT)
    until(lambda: False, 2)
    assert process.poll() is None  # it wants to finish its block
    process.send_signal(signal.SIGINT)
    assert until(lambda: process.poll() is not None, 10)
    assert process.returncode == 130
    end(process)


@pytest.mark.parametrize("full", ["limit", "disk"])
def test_a_full_disk_keeps_complete_rows_and_the_run_goes_on_afterwards(
    full: str, photos: Path, whole: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    words = command("test", small / "run", photos=photos)
    if full == "disk":
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", small], capture_output=True).returncode:
            pytest.skip("this system lets nobody mount a small disk")
        try:
            code, _, err = finish(words)
            assert code == 2, err
            assert "No space left on device" in err
            kept = rows_of(small / "run")
            assert subprocess.run(["mount", "-o", "remount,size=10m", small]).returncode == 0
            code, _, err = finish(words)
            assert code == 0, err
            check_equal(small / "run", whole)
        finally:
            subprocess.run(["umount", small], check=True)
    else:
        limited = ["bash", "-c", 'ulimit -f 40; exec "$@"', "-", *words]
        code, _, err = finish(limited)
        assert code == 2, err
        assert "Cannot write" in err
        assert str(small / "run") in err
        kept = rows_of(small / "run")
        assert finish(words)[0] == 0
        check_equal(small / "run", whole)
    assert 0 < len(kept) < 201
    assert kept == rows_of(whole)[: len(kept)]


def test_a_taken_port_is_named_and_nobody_waits(photos: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = start(
            command("test", tmp_path / "run", photos=photos, devices=2),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(taken.getsockname()[1]),
        )  # fmt: skip
        code, _, err = end(process)
    assert code != 0
    assert "EADDRINUSE" in err or "address already in use" in err


def test_a_folder_of_broken_files_counts_them_and_spares_their_neighbors(tmp_path: Path) -> None:
    photos, clean = make_photos(tmp_path / "photos", 30), make_photos(tmp_path / "clean", 30)
    whole = (photos / "c0" / "000.png").read_bytes()
    broken = {
        "001x empty.png": b"", "004x <b>text<b>.png": b"no image", "007x cut.png": whole[: len(whole) // 2],
        "010x crafted\n.png": crafted_png(),
    }  # fmt: skip
    for name, content in broken.items():
        (photos / "c1" / name).write_bytes(content)
    record = ["--data.on_error=record", "--data.batch_size=3", "--model.target=predicted"]
    code, out, err = finish(command("test", tmp_path / "run", *record, photos=photos, devices=2))
    assert code == 3, err
    assert "4 of 34 images could not be read" in err
    assert finish(command("test", tmp_path / "alone", *record, photos=clean))[0] == 0
    rows = {row.id: row for row in read_rows(tmp_path / "run")}
    assert {name for name, row in rows.items() if row.status == "error"} == {f"c1/{name}" for name in broken}
    assert all(row.reason for row in rows.values() if row.status == "error")
    for row in read_rows(tmp_path / "alone"):
        assert rows[row.id].predicted == row.predicted
        assert rows[row.id].p == pytest.approx(row.p, rel=1e-4)
    assert "errors (4), not counted" in out
    code, _, err = finish(command("test", tmp_path / "raise", photos=photos))
    assert code == 2
    assert "001x empty.png" in err


class _Malice:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, ("touch executed",))


def test_the_code_of_a_malicious_weight_file_is_not_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain.pth").write_bytes(pickle.dumps({"weight": _Malice()}))
    torch.save({"weight": _Malice()}, "zip.pth")
    for name in ("plain.pth", "zip.pth"):
        code, _, err = finish(command("test", "run", f"--model.classifier.weights={name}", photos=photos))
        assert code == 2
        assert name in err
    assert not Path("executed").exists()


def test_a_killed_loader_ends_the_run_and_the_next_start_does_the_rest(
    photos: Path, whole: Path, tmp_path: Path
) -> None:
    process = start(command("test", tmp_path / "run", "--data.num_workers=1", photos=photos))
    assert until(lambda: written(tmp_path / "run") >= 2 or process.poll() is not None)
    (loader,) = children(process.pid)
    os.kill(loader, signal.SIGKILL)
    code, _, err = end(process)
    assert code not in (0, 3)
    assert "killed by signal" in err or "A loader process was killed" in err
    done = rows_of(tmp_path / "run")
    assert 2 <= len(done) < 201
    assert finish(command("test", tmp_path / "run", photos=photos))[0] == 0
    check_equal(tmp_path / "run", whole)


HANGS = """
import sys, time
from optcam_pl.data import ImageFolder
class Hanging(ImageFolder):
    def reader(self):
        return hang
def hang(entry):
    time.sleep(1000)
"""


def test_a_hung_loader_ends_the_run_in_time(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text(HANGS)
    data = ["--data=hanging.Hanging", f"--data.root={photos}", "--data.num_workers=1", "--data.timeout=5"]
    words = command("test", tmp_path / "run", *data, photos=photos)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    code, _, err = finish(words, PYTHONPATH=path)
    assert code != 0
    assert "DataLoader timed out after 5" in err


def test_the_benchmark_of_bookkeeping_counts_every_image() -> None:
    folder = Path(__file__).parents[2] / "benchmarks"
    words = "import bookkeeping, json; print(json.dumps(bookkeeping.measure(200)))"
    code, out, err = finish(
        [sys.executable, "-c", words], PYTHONPATH=os.pathsep.join([str(folder), str(folder.parent)])
    )
    assert code == 0, err
    measured = json.loads(out.splitlines()[-1])
    assert measured["images"] == 200
    assert measured["ms_per_image_in_run_folder"].keys() == {"prepare", "write", "sync_data", "heed", "finish"}
