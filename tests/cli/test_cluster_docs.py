"""The scripts of docs/cluster.md, run as they are written, with one machine playing the cluster."""

from __future__ import annotations

import os
import random
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fault_cases import TINY, end, make_photos, rows_of, start, until, written

from optcam_pl.runs.rows import read_rows

TEXT = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
SLURM, ARRAY, TORCHRUN = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc"),
]

# Starts the job's tasks and hands signals on to them, as srun does; its exit code is the highest of theirs.
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
per_node = int(os.environ["SLURM_NTASKS_PER_NODE"])
tasks = []
signal.signal(signal.SIGUSR1, lambda *_: [task.send_signal(signal.SIGUSR1) for task in tasks])
for i in range(int(os.environ["SLURM_NTASKS"])):
    own = {{"SLURM_PROCID": i, "SLURM_LOCALID": i % per_node, "SLURM_NODEID": i // per_node}}
    tasks.append(subprocess.Popen(words, env=os.environ | {{key: str(value) for key, value in own.items()}}))
sys.exit(max(task.wait() for task in tasks))
"""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run.yaml, and commands of a cluster on the path."""
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(Path(TINY).read_text())
    config["data"]["init_args"] |= {"root": str(make_photos(tmp_path / "photos", 60)), "batch_size": 2}
    config["model"]["init_args"]["explainer"]["init_args"]["max_iter"] = 20
    Path("run.yaml").write_text(yaml.safe_dump(config))
    commands = {
        "optcam": f'#!/bin/bash\nexec {sys.executable} -m optcam_pl "$@"\n',
        "torchrun": f'#!/bin/bash\nexec {sys.executable} -m torch.distributed.run "$@"\n',
        "scontrol": '#!/bin/bash\necho "$@" >> scontrol.log\n',
        "srun": SRUN,
    }
    for name, content in commands.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def bash(script: str, **environment: str) -> subprocess.Popen[str]:
    return start(["bash", "-c", script], **environment)


def slurm(tasks: int, job: int, **more: str) -> dict[str, str]:
    """The environment of a job of one task a node."""
    nodes = {"SLURM_NTASKS": str(tasks), "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": str(tasks)}
    return {**nodes, "SLURM_JOB_ID": str(job), "SLURM_JOB_NAME": "opticam", "SLURM_NODELIST": "127.0.0.1", **more}


def srun_of(job: subprocess.Popen[str]) -> int:
    """The process of srun, below the batch script."""
    (pid,) = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    return int(pid)


def test_the_slurm_script_stops_at_the_signal_is_requeued_and_goes_on(workplace: Path) -> None:
    environment = slurm(2, random.randint(10000, 99999))  # Lightning derives the port from the job's number
    run = workplace / "runs" / "opticam"
    job = bash(SLURM, **environment)
    assert until(lambda: written(run) >= 4 or job.poll() is not None)
    os.kill(srun_of(job), signal.SIGUSR1)
    code, _, err = end(job)
    assert code == 143, err
    assert (workplace / "scontrol.log").read_text() == f"requeue {environment['SLURM_JOB_ID']}\n"
    done = rows_of(run)
    assert 4 <= len(done) < 60
    code, _, err = end(bash(SLURM, **environment))
    assert code == 0, err
    assert f"{len(done)} of 60 images are done" in err
    assert [row.index for row in read_rows(run)] == list(range(60))
    assert len(list((run / "rows").iterdir())) == 4  # two processes, two starts


def test_the_tasks_of_an_array_make_one_run(workplace: Path) -> None:
    run = workplace / "runs" / "opticam"
    jobs = [bash(ARRAY, **slurm(1, 100 + i, SLURM_ARRAY_TASK_ID=str(i), SLURM_ARRAY_TASK_COUNT="3")) for i in (0, 2)]
    for code, _, err in map(end, jobs):
        assert code == 0, err
    code, out, _ = end(bash("optcam report runs/opticam"))
    assert code == 0
    assert "incomplete: 20 of 60 images missing: 2-3, 8-9" in out
    code, _, err = end(bash(ARRAY, **slurm(1, 101, SLURM_ARRAY_TASK_ID="1", SLURM_ARRAY_TASK_COUNT="3")))
    assert code == 0, err
    assert [row.index for row in read_rows(run)] == list(range(60))
    assert end(bash("optcam verify runs/opticam"))[0] == 0


def test_the_torchrun_command_runs_two_nodes(workplace: Path) -> None:
    port = str(random.randint(20000, 40000))
    common = {"NODES": "2", "GPUS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    # `start` takes variables that torchrun sets out of the environment, so they are given anew.
    nodes = [bash(TORCHRUN, **common, NODE_RANK=str(rank)) for rank in range(2)]
    for code, _, err in map(end, nodes):
        assert code == 0, err
    assert [row.index for row in read_rows(workplace / "runs" / "opticam")] == list(range(60))
