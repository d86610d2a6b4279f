"""A run that was stopped goes on and ends with the results of one that was not: signals, locks, manifests, shards."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from optcam_pl.cli import main
from optcam_pl.cli.lightning_cli import OptcamCLI, parse_shard
from optcam_pl.data import ImageDataModule
from optcam_pl.private import group_wait
from optcam_pl.reports.report import load_run, summarize
from optcam_pl.reports.verify import verify
from optcam_pl.runs import signals as stopping
from optcam_pl.runs.files import RunFolderError, RunLock
from optcam_pl.runs.manifest import FingerprintMismatch
from optcam_pl.runs.rows import read_rows
from optcam_pl.runs.run_folder import RunFolder
from optcam_pl.tasks import SaliencyTask

TINY = str(Path(__file__).parents[1] / "conf" / "tiny.yaml")
pytestmark = pytest.mark.filterwarnings(
    # tensorboard's protobuf classes and torch's own writer, https://github.com/pytorch/pytorch/issues/134958
    "ignore::DeprecationWarning",
)
EXTRA = {
    "test": ["--model.explainer=GradCAM"],
    "fit": ["--model.explainer.max_iter=2"],
    "predict": ["--model.explainer=GradCAM"],
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def run(stage: str, folder: str, *words: str) -> int:
    """A run over the seven photographs in four blocks."""
    common = ["--config", TINY, "--data.root=photos", "--data.batch_size=2", f"--run_dir={folder}"]
    return main([stage, *common, *EXTRA[stage], *words])


def signal_in(monkeypatch: pytest.MonkeyPatch, block: int, *signals: int) -> Callable[[], None]:
    """Send this process signals while it does the n-th of its blocks, before that is written."""
    write, blocks = RunFolder.write, iter(range(1000))

    def writing(self: RunFolder, *words: Any) -> None:
        if next(blocks) == block:
            for signum in signals:
                os.kill(os.getpid(), signum)
        write(self, *words)

    monkeypatch.setattr(RunFolder, "write", writing)
    return lambda: monkeypatch.setattr(RunFolder, "write", write)


def rows_of(folder: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in json.loads(row.to_json()).items() if k != "seconds"} for row in read_rows(folder)]


def files_of(folder: str) -> dict[str, Any]:
    """What a run stored beside its rows."""
    found: dict[str, Any] = {
        str(p.relative_to(folder)): load(p.read_bytes()) for p in Path(folder).rglob("*.safetensors")
    }
    return found | {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*.png")}


def same(one: Any, other: Any) -> bool:
    """Equal bytes, or equal tensors by name."""
    return one == other if isinstance(one, bytes) else all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("stage", ["test", "fit", "predict"])
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGUSR1", 143), ("SIGINT", 130)])
@pytest.mark.usefixtures("photos")
def test_a_signal_ends_a_run_after_its_block_and_the_next_start_does_the_rest(
    stage: str, name: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name != "SIGTERM" and stage != "predict":
        pytest.skip("one stage shows it")
    handlers = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    restore = signal_in(monkeypatch, 1, getattr(signal, name))
    assert run(stage, "run") == code
    restore()
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == handlers
    assert [row.index for row in read_rows("run")] == [0, 1, 2, 3]
    told = capsys.readouterr().err
    assert f"stopped by {name}" in told
    assert f"optcam {stage} --config" in told
    assert "--run_dir=run" in told
    assert run(stage, "run") == 0
    assert "4 of 7 images are done in run: 2 blocks to do" in capsys.readouterr().err
    assert run(stage, "whole") == 0
    assert rows_of("run") == rows_of("whole")
    again, whole = files_of("run"), files_of("whole")
    assert again.keys() == whole.keys()
    assert all(same(again[key], whole[key]) for key in whole)
    if stage == "predict":
        assert len(json.loads(Path("run/overlays/index.json").read_text())) == 7


@pytest.mark.usefixtures("photos")
def test_a_finished_run_says_so_and_computes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("test", "run")
    table, rows = capsys.readouterr().out, [p.read_bytes() for p in Path("run/rows").iterdir()]
    monkeypatch.setattr("optcam_pl.explainers.GradCAM.forward", lambda *_: pytest.fail("explained"))
    assert run("test", "run", "--resume=require") == 0
    out, err = capsys.readouterr()
    assert "7 of 7 images are done in run: nothing left to do" in err
    assert table[table.index("method") :] in out
    assert [p.read_bytes() for p in Path("run/rows").iterdir()] == rows


@pytest.mark.usefixtures("photos")
def test_a_complete_run_stores_its_summary_which_verify_computes_again() -> None:
    run("test", "run", "--shard=1/2")
    assert not Path("run/summary.json").exists()
    run("test", "run", "--shard=2/2")
    stored = json.loads(Path("run/summary.json").read_text())
    assert stored["metrics"]["average_drop"]["value"] == summarize(load_run("run")).metrics["average_drop"].value
    assert verify("run") == []
    stored["metrics"]["average_drop"]["value"] += 1
    Path("run/summary.json").write_text(json.dumps(stored))
    assert any("average_drop" in problem for problem in verify("run"))


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--model.classifier.network=timm/test_vit", "--model.classifier.target_layer=norm"], "classifier.hash"),
        (["--data.batch_size=3"], "block_size: 2 there, 3 now"),
        (["--data.limit=5"], "data.sha256"),
        (["--model.baseline=mean"], 'baseline: "black" there, "mean" now'),
        (["--threads=2"], "threads: 1 there, 2 now"),
    ],
)
@pytest.mark.usefixtures("photos")
def test_a_run_of_other_settings_is_refused_by_name_and_leaves_the_folder_as_it_is(words: list[str], key: str) -> None:
    run("test", "run", "--data.limit=2")
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.suffix in (".json", ".jsonl", ".yaml")}
    with pytest.raises(FingerprintMismatch, match="made with other settings") as refused:
        run("test", "run", "--data.limit=2", *words)
    assert key in str(refused.value)
    assert {p: p.read_bytes() for p in before} == before
    assert run("test", "run", "--data.limit=2") == 0  # the refusal gave the lock back


@pytest.mark.usefixtures("photos")
def test_rows_of_which_nobody_knows_the_settings_are_not_taken() -> None:
    run("test", "run", "--data.limit=2")
    manifest = Path("run/manifest.json").read_bytes()
    Path("run/manifest.json").unlink()
    with pytest.raises(RunFolderError, match="Expected a run in run to have a manifest.json, but it has only 2 rows"):
        run("test", "run", "--data.limit=2", "--model.baseline=mean")
    Path("run/manifest.json").write_bytes(manifest)
    assert run("test", "run", "--data.limit=2") == 0


@pytest.mark.usefixtures("photos")
def test_the_device_of_a_run_is_the_trainers_where_the_network_is_not_yet_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare = SaliencyTask._prepare

    def elsewhere(self: SaliencyTask, stage: Any) -> None:
        with monkeypatch.context() as patch:  # only the start of the run sees it: this machine need not have it
            patch.setattr(type(self.trainer.strategy), "root_device", torch.device("cuda", 1))
            prepare(self, stage)

    with monkeypatch.context() as patch:
        patch.setattr(SaliencyTask, "_prepare", elsewhere)
        run("test", "run", "--data.limit=2")
    manifest = load_run("run").manifest
    assert manifest["device"] == manifest["fingerprint"]["device"] == "cuda"
    with pytest.raises(FingerprintMismatch, match='device: "cuda" there, "cpu" now'):
        run("test", "run", "--data.limit=2")
    # Early versions wrote "cpu" for every device, and no entry "device" beside the fingerprint: such a run goes on.
    del manifest["device"]
    Path("run/manifest.json").write_text(json.dumps(manifest))
    assert run("test", "run", "--data.limit=2") == 0


@pytest.mark.usefixtures("photos")
def test_what_another_process_holds_and_what_resume_forbids_is_refused() -> None:
    with pytest.raises(RunFolderError, match="Expected a run in run to continue, but there is no"):
        run("test", "run", "--resume=require")
    run("test", "run")
    with RunLock("run"), pytest.raises(RunFolderError, match="run folder run is in use by process"):
        run("test", "run")
    with pytest.raises(RunFolderError, match="Expected no run in run with `resume` never, but there is one"):
        run("test", "run", "--resume=never")
    with pytest.raises(FingerprintMismatch, match='stage: "test" there, "predict" now'):
        run("predict", "run")
    with pytest.raises(ValueError, match="Expected `run_dir` with `resume` require"):
        main(["test", "--config", TINY, "--data.root=photos", "--resume=require"])
    Path("file").write_text("")
    with pytest.raises(RunFolderError, match="Cannot write into the folder file: it is a file. Give another `run_dir`"):
        run("test", "file", "--model.classifier.network=never/loaded")


@pytest.mark.usefixtures("photos")
def test_a_flipped_bit_a_lost_map_and_a_damaged_weight_file_are_done_again() -> None:
    writer = '--trainer.callbacks+={"class_path": "optcam_pl.callbacks.MapWriter"}'
    run("test", "run", writer)
    before = rows_of("run")
    (rows,) = Path("run/rows").iterdir()
    rows.write_bytes(rows.read_bytes().replace(b'"index":3', b'"index":2', 1))
    lost = next(Path("run/maps").glob("000006*"))
    lost.unlink()
    assert run("test", "run", writer) == 0
    assert rows_of("run") == before
    assert [row.index for row in read_rows_of(Path("run/rows/a0002-r00000.jsonl"))] == [3]
    assert lost.exists()
    assert main(["verify", "run"]) == 0

    run("fit", "fit")
    path = Path("fit/weights/b000002.safetensors")
    weights = load(path.read_bytes())
    whole = path.read_bytes()
    for damaged in (whole[:-5], whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]):
        path.write_bytes(damaged)
        assert run("fit", "fit") == 0
        assert same(load(path.read_bytes()), weights)


def read_rows_of(path: Path) -> Any:
    folder = path.parent.parent.parent / "one_file"
    (folder / "rows").mkdir(parents=True)
    (folder / "rows" / path.name).write_bytes(path.read_bytes())
    return read_rows(folder)


@pytest.mark.usefixtures("photos")
def test_shards_make_the_run_together_and_the_report_names_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    run("test", "whole")
    for part in ("3/3", "1/3"):
        assert run("test", "run", f"--shard={part}") == 0
    assert "incomplete: 2 of 7 images missing: 2-3" in capsys.readouterr().out
    with RunLock("run", shared=True), RunLock("run", ".shard-1-of-3.lock"):
        with pytest.raises(RunFolderError, match="in use"):
            run("test", "run")  # the whole run
        with pytest.raises(RunFolderError, match="in use"):
            run("test", "run", "--shard=1/2")
        with pytest.raises(RunFolderError, match="in use"):
            run("test", "run", "--shard=1/3")
        with pytest.raises(FingerprintMismatch, match="block_size"):
            run("test", "run", "--shard=2/3", "--data.batch_size=3")
        assert run("test", "run", "--shard=2/3") == 0
    assert rows_of("run") == rows_of("whole")
    assert summarize(load_run("run")).metrics == summarize(load_run("whole")).metrics
    capsys.readouterr()
    assert run("test", "run") == 0
    assert "nothing left to do" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", ""])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Expected `shard` to be i/n"):
        parse_shard(text)


def test_more_errors_than_allowed_end_the_run_and_more_may_be_allowed_later(photos: Path) -> None:
    for i in (1, 3):
        (photos / "n01440764" / f"photo {i}.png").write_text("this is no image")
    words = ["--data.on_error=record"]
    with pytest.raises(
        RunFolderError,
        match=r"more images could not be read than `max_errors` allows: 2 in run, .*'n01440764/photo 3.png'",
    ):
        run("test", "run", *words, "--data.max_errors=1")
    done = len(read_rows("run"))
    assert done < 7
    with pytest.raises(RunFolderError, match="more images could not be read than `max_errors` allows: 2"):
        run("test", "run", *words, "--data.max_errors=1")  # a job that is queued again
    assert len(read_rows("run")) == done
    assert run("test", "run", *words, "--data.max_errors=2") == 3
    assert [row.status for row in read_rows("run")].count("error") == 2
    with pytest.raises(ValueError, match="`on_error` to be 'record' with `max_errors`"):
        run("test", "other", "--data.max_errors=1")


@pytest.mark.usefixtures("photos")
def test_slurm_requeues_nothing_by_itself_and_a_stale_checkpoint_is_not_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = {"NTASKS": 1, "NTASKS_PER_NODE": 1, "NNODES": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "JOB_ID": 7}
    for key, value in environment.items():
        monkeypatch.setenv(f"SLURM_{key}", str(value))
    Path("hpc_ckpt_1.ckpt").write_bytes(b"of something else")
    seen: list[Any] = []
    monkeypatch.setattr(SaliencyTask, "on_test_model_eval", lambda task: seen.append(task.trainer), raising=False)
    assert run("test", "run", "--trainer.logger=false") == 0
    assert seen[0]._accelerator_connector.cluster_environment.auto_requeue is False
    assert len(read_rows("run")) == 7  # in its folder, without a logger too


@pytest.mark.usefixtures("photos")
def test_processes_wait_for_each_other_for_five_minutes_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    trainers: list[Any] = []
    monkeypatch.setattr(OptcamCLI, "_run_subcommand", lambda cli, _: trainers.append(cli.trainer))
    run("test", "run", "--trainer.devices=2")
    assert group_wait(trainers[0].strategy) == timedelta(seconds=300)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_only_the_first_signal_waits_for_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    before = signal.getsignal(signal.SIGTERM)
    with stopping.stop_signals():
        assert stopping.requested() is None
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # an echo of the first
        assert (stopping.requested(), ended) == (signal.SIGTERM, [])
        monkeypatch.setattr(stopping, "_ECHO_SECONDS", 0.0)
        os.kill(os.getpid(), signal.SIGINT)
        assert ended == [130]
    assert stopping.requested() is None
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_whose_words_nobody_reads_still_waits_for_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> int:
        raise BrokenPipeError  # as Ctrl-C ends `tee` before this process

    with stopping.stop_signals(), monkeypatch.context() as patched:
        patched.setattr(os, "write", write)
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.requested() == signal.SIGINT


def test_another_thread_changes_no_handler() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def inside() -> None:
        with stopping.stop_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_process_follows_only_the_one_that_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    followed: list[int] = []
    monkeypatch.setattr(stopping, "_end_with_parent", followed.append)
    for name in ("LOCAL_RANK", "TORCHELASTIC_RUN_ID", stopping.LAUNCHER):
        monkeypatch.delenv(name, raising=False)
    assert not stopping.follow_launcher()  # it is the first, which starts the others
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert not stopping.follow_launcher()  # as Lightning leaves it behind
    assert followed == []
    monkeypatch.setenv(stopping.LAUNCHER, "7")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert stopping.follow_launcher()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert not stopping.follow_launcher()
    assert followed == [7, os.getppid()]


def test_todo_is_that_of_the_data(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    loader = ImageDataModule.test_dataloader
    monkeypatch.setattr(
        ImageDataModule, "test_dataloader", lambda self: (seen.append(list(self.todo)), loader(self))[1]
    )
    assert photos.is_dir()
    run("test", "run", "--shard=2/2")
    run("test", "run")
    assert seen == [[1, 3], [0, 2]]
