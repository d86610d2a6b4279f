"""Runs in processes of their own, to be signalled, killed and starved; used by the tests of faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from optcam_pl.runs.rows import read_rows

TINY = str(Path(__file__).parent / "conf" / "tiny.yaml")
PYTHON = [sys.executable, "-m", "optcam_pl"]
DISTRIBUTED = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "OPTCAM_LAUNCHER")


def make_photos(folder: Path, n: int) -> Path:
    """n small noisy pictures in three class folders."""
    rng = np.random.default_rng(0)
    for i in range(n):
        place = folder / f"c{i % 3}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(place / f"{i:03}.png")
    return folder


def command(stage: str, run_dir: Path | str, *words: str, photos: Path | str, devices: int = 1) -> list[str]:
    """A run of a tiny network; its explainer is one of the quick ones unless the words say otherwise."""
    common = ["--config", TINY, f"--data.root={photos}", "--model.classifier.input_size=32", f"--run_dir={run_dir}"]
    quick = ["--data.batch_size=2", "--model.explainer.max_iter=2", f"--trainer.devices={devices}"]
    return [*PYTHON, stage, *common, *quick, *words]


def start(words: Sequence[str], **environment: str) -> subprocess.Popen[str]:
    """Start a command, free of what an earlier run may have left in the environment."""
    clean = {key: value for key, value in os.environ.items() if key not in DISTRIBUTED}
    env = {**clean, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def end(process: subprocess.Popen[str], timeout: float = 600) -> tuple[int, str, str]:
    """Exit code, output and errors of a process that ends by itself."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, err


def finish(words: Sequence[str], timeout: float = 200, **environment: str) -> tuple[int, str, str]:
    """Run a command to its end."""
    return end(start(words, **environment), timeout)


def children(pid: int) -> list[int]:
    """The process ids of a process's children that run the command."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in found if b"optcam_pl" in Path(f"/proc/{child}/cmdline").read_bytes()]
    except OSError:
        return []


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def written(run_dir: Path) -> int:
    """Number of lines in a run's row files."""
    return sum(path.read_bytes().count(b"\n") for path in run_dir.glob("rows/*.jsonl"))


def until(condition: Callable[[], Any], seconds: float = 300) -> bool:
    """Wait for a condition; whether it came true."""
    patience = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > patience:
            return False
        time.sleep(0.02)
    return True


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run without their times."""
    return [{k: v for k, v in json.loads(row.to_json()).items() if k != "seconds"} for row in read_rows(run_dir)]
