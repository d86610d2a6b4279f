"""A run's folder: its own whatever the logger is, found by `~`, never somebody's; runs that were cut short."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from torch import nn

from optcam_pl import Classifier, FakeCAM, GradCAM, OptiCAM
from optcam_pl.callbacks import MapWriter
from optcam_pl.cli import main
from optcam_pl.data import ImageFolder
from optcam_pl.reports.report import load_run
from optcam_pl.runs.files import RunFolderError
from optcam_pl.runs.folders import check_no_others
from optcam_pl.runs.manifest import MANIFEST, FingerprintMismatch
from optcam_pl.runs.rows import read_rows
from optcam_pl.runs.tensors import load_tensors, save_tensors
from optcam_pl.tasks import ClassificationTask, SaliencyTask

TINY = str(Path(__file__).parents[1] / "conf" / "tiny.yaml")
FIT = str(Path(__file__).resolve().parents[2] / "configs" / "shapes_fit.yaml")
pytestmark = pytest.mark.filterwarnings(
    # tensorboard's protobuf classes and torch's own writer, https://github.com/pytorch/pytorch/issues/134958
    "ignore::DeprecationWarning",
    # Lightning 2.6 calls what torch 2.14 deprecates
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
    "ignore:.*in eval mode at the start of training.*",
)


class OnlySaveDir(Logger):
    """The least that Lightning takes for a logger.

    Args:
        save_dir: where its files would lie.
    """

    def __init__(self, save_dir: str = "elsewhere") -> None:
        super().__init__()
        self._save_dir = save_dir

    @property
    def save_dir(self) -> str:
        return self._save_dir

    @property
    def name(self) -> str:
        return "own"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        pass


CSV = '{"class_path": "CSVLogger", "init_args": {"save_dir": "csv"}}'
OWN = '{"class_path": "test_run_folders.OnlySaveDir"}'
QUIET = ["--threads=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
LOGGERS = {"csv": CSV, "none": "false", "own": OWN, "two": f"[{OWN},{CSV}]"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def words(*more: str) -> list[str]:
    return ["--config", TINY, "--data.root=photos", "--model.explainer=GradCAM", *more]


def classifier() -> Classifier:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1000))
    return Classifier(network, input_size=16, target_layer="1")


def trainer(**options: Any) -> L.Trainer:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return L.Trainer(**{"accelerator": "cpu", "max_epochs": 1, "enable_checkpointing": False, **quiet, **options})


# The folder ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("name", LOGGERS)
def test_the_run_folder_does_not_depend_on_the_logger(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    logger = f"--trainer.logger={LOGGERS[name]}"
    assert main(["predict", *words(logger, "--run_dir=wanted")]) == 0
    assert "run folder:  wanted" in capsys.readouterr().out
    assert {MANIFEST, "config.yaml", "rows", "maps", "overlays"} <= {path.name for path in Path("wanted").iterdir()}
    assert main(["predict", *words(logger, "--run_dir=wanted", "--resume=require")]) == 0
    assert "7 of 7 images are done in wanted: nothing left to do" in capsys.readouterr().err
    with pytest.raises(RunFolderError, match="`resume` never"):
        main(["predict", *words(logger, "--run_dir=wanted", "--resume=never")])
    assert main(["verify", "wanted"]) == 0
    assert main(["report", "wanted"]) == 0
    assert not Path("elsewhere").exists()


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("name", ["none", "two"])
def test_without_run_dir_every_run_gets_a_fresh_folder(name: str) -> None:
    logger = f"--trainer.logger={LOGGERS[name]}"
    assert main(["test", *words(logger)]) == 0
    assert main(["test", *words(logger)]) == 0
    assert main(["compare", *words(logger)[:3], logger, "--explainers", "FakeCAM", "GradCAM"]) == 0
    found = sorted(str(path.parent) for path in Path("logs").rglob(MANIFEST))
    assert found == [
        "logs/photos/FakeCAM/version_0",
        *(f"logs/photos/GradCAM/version_{version}" for version in range(3)),
    ]


@pytest.mark.usefixtures("photos")
def test_without_a_logger_a_trainer_gives_each_run_a_new_folder_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    one = trainer()
    for explainer in (FakeCAM(), OptiCAM(max_iter=1), OptiCAM(max_iter=1)):
        one.predict(SaliencyTask(classifier(), explainer), ImageFolder("photos"))
    assert {path.name for path in Path().iterdir()} == {"photos", "logs"}
    found = sorted(str(path.parent) for path in Path("logs").rglob(MANIFEST))
    assert found == ["logs/photos/FakeCAM/version_0", *(f"logs/photos/OptiCAM/version_{k}" for k in (0, 1))]
    assert "No logger and no `run_dir`: this run is in logs/photos/FakeCAM/version_0." in caplog.text


def test_a_fit_goes_on_with_any_logger_and_a_home_folder_is_expanded_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("fit.yaml").write_text("run_dir: ~/myfit")
    tiny = ["--data.train_images=12", "--data.images=6", "--data.batch_size=6", "--model.epochs=1"]
    network = ["--model.classifier.network=timm/test_resnet", "--model.classifier.weights=null"]
    given = [
        "fit",
        "--config",
        FIT,
        "--config",
        "fit.yaml",
        *tiny,
        *network,
        "--trainer.accelerator=cpu",
        "--threads=1",
    ]
    given += ["--trainer.enable_progress_bar=false", f"--trainer.logger={OWN}"]
    assert main(given) == 0
    last = tmp_path / "home" / "myfit" / "checkpoints" / "last.ckpt"
    before = last.stat()
    assert not Path("~").exists()
    assert main(given) == 0
    assert (last.stat().st_mtime_ns, last.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    with pytest.raises(FileExistsError, match="`resume` never"):
        main([*given, "--resume=never"])
    weights = Classifier(weights="~/myfit/checkpoints/last.ckpt")
    assert weights.name == "timm/test_resnet"


@pytest.mark.usefixtures("photos")
def test_paths_of_every_kind_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("MINE", str(home))
    (home / "own.yaml").write_text(
        "trainer:\n  logger:\n    class_path: CSVLogger\n    init_args: {save_dir: $MINE/csv}"
    )
    fit = ["--config", TINY, "--config=~/own.yaml", "--data.root=photos", "--data.limit=2"]
    assert main(["fit", *fit, "--run_dir=~/fit"]) == 0
    assert main(["test", *fit, "--run_dir", "${MINE}/test", "--model.weights_from=~/fit"]) == 0
    assert main(["compare", *fit, "--run_dir=$MINE/all", "--explainers", "FakeCAM"]) == 0
    assert main(["verify", "~/test", "$MINE/all/FakeCAM"]) == 0
    assert main(["report", "$MINE/test", "--output=~/table.txt"]) == 0
    assert {path.name for path in home.iterdir()} == {"own.yaml", "csv", "fit", "test", "all", "table.txt"}
    assert load_run("~/test").manifest["run"] == str(home / "test")
    task = SaliencyTask(classifier(), OptiCAM(), weights_from="~/fit")
    assert task.stored_weights is not None
    assert task.stored_weights.run_dir == home / "fit"


@pytest.mark.parametrize("folder", ["photos", "photos/n01440764"])
def test_a_folder_of_photographs_is_no_run_folder(photos: Path, folder: str) -> None:
    before = sorted(photos.rglob("*"))
    for command in (["test"], ["compare", "--explainers", "FakeCAM"]):
        with pytest.raises(RunFolderError, match=r"`run_dir` to be a new folder or a run's, but .* photo"):
            main([*command, *words()[:3], f"--run_dir={folder}"])
    assert sorted(photos.rglob("*")) == before


def test_a_folder_with_configs_locks_or_a_run_is_one(tmp_path: Path) -> None:
    own = tmp_path / "own"
    check_no_others(own)
    (own / "wandb").mkdir(parents=True)
    for name in ("config.yaml", ".lock", "hparams.yaml", "slurm-1.out"):
        (own / name).touch()
    check_no_others(own)
    (own / "table.csv").touch()
    with pytest.raises(RunFolderError, match=r"other files: table.csv\."):
        check_no_others(own)
    (own / "events.out.tfevents.1").touch()
    check_no_others(own)


@pytest.mark.usefixtures("photos")
def test_a_start_that_fails_leaves_no_folder_behind() -> None:
    with pytest.raises(ValueError, match="resnet50"):
        main(["test", *words("--run_dir=a/b", "--model.classifier.network=torchvision/resnet5")])
    with pytest.raises(RunFolderError, match="Expected a run in c to continue, but there is no such folder"):
        main(["test", *words("--run_dir=c", "--resume=require")])
    assert sorted(path.name for path in Path().iterdir()) == ["photos"]


def test_a_task_takes_its_folder_and_a_second_explainer_is_told_to(photos: Path) -> None:
    data = ImageFolder(str(photos), batch_size=4)
    loop = trainer(default_root_dir="shared")
    first, second = (SaliencyTask(classifier(), kind(), target="predicted") for kind in (FakeCAM, GradCAM))
    loop.test(first, datamodule=data, verbose=False)
    assert first.run_dir == Path("shared")
    with pytest.raises(FingerprintMismatch, match=r"here FakeCAM in shared. Give this one another: .*`run_dir`"):
        loop.test(second, datamodule=data, verbose=False)
    second.run_dir = "second"
    loop.test(second, datamodule=data, verbose=False)
    assert len(read_rows("second")) == 7
    second.run_dir = Path("predicted")
    assert sum(len(block["id"]) for block in loop.predict(second, datamodule=data)) == 7
    with pytest.warns(UserWarning, match="7 of 7 images are done in predicted already.*`run_dir` to a new folder"):
        assert not [block for block in loop.predict(second, datamodule=data) if block["id"]]


def test_own_checkpoints_lie_in_the_run_folder_too() -> None:
    tiny = ["--data.train_images=6", "--data.images=6", "--data.batch_size=6", "--model.epochs=1"]
    network = ["--model.classifier.network=timm/test_resnet", "--model.classifier.weights=null"]
    own = '--trainer.callbacks=[{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}]'
    given = [
        "fit",
        "--config",
        FIT,
        *tiny,
        *network,
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]
    assert main([*given, own, f"--trainer.logger={CSV}", "--run_dir=fit"]) == 0
    assert list(Path("fit/checkpoints").glob("*.ckpt"))
    assert ModelCheckpoint().dirpath is None


# Blocks without padding ------------------------------------------------------------------------------------------


class Counting(FakeCAM):
    """Notes how many images it explains."""

    seen: list[int]

    def explain(self, classifier: Classifier, image: torch.Tensor, target: torch.Tensor) -> Any:
        self.seen.append(len(image))
        return super().explain(classifier, image, target)


def test_only_images_that_could_be_read_are_explained_and_measured(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "n01440764" / "photo 9.png").write_text("this is no image")
    for i in range(8):
        (photos / "n01440764" / f"aaa {i}.png").write_text("this is no image")
    explainer = Counting()
    explainer.seen = []
    asked: list[int] = []
    forward = Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda self, x: (asked.append(len(x)), forward(self, x))[1])
    network = classifier()
    network.check_function()  # whose passes are not counted
    asked.clear()
    task = SaliencyTask(network, explainer, target="predicted")
    task.run_dir = "run"
    data = ImageFolder(str(photos), batch_size=4, on_error="record")
    trainer(callbacks=[MapWriter()]).test(task, datamodule=data, verbose=False)
    assert explainer.seen == [3, 4]  # blocks of 16 images: 4 and 4 unreadable, 3 and one unreadable, 4
    assert [n for n in asked if n > 1] == [3, 3, 4, 4]  # p and o; one of noise finds the layer
    rows = read_rows("run")
    assert [row.status for row in rows].count("error") == 9
    assert [row.index for row in rows] == list(range(16))
    assert all((row.seconds == 0) == (row.status == "error") for row in rows)
    assert len(list(Path("run/overlays").glob("*.png"))) == 7


def test_seconds_are_those_of_the_images_that_were_explained(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("optcam_pl.evaluate.block.time.perf_counter", lambda: float(next(clock)))
    task = SaliencyTask(classifier(), FakeCAM(), target="predicted")
    task.run_dir = "run"
    trainer().test(task, datamodule=ImageFolder(str(photos), batch_size=5), verbose=False)
    assert [row.seconds for row in read_rows("run")] == [0.2] * 5 + [0.5] * 2


def test_weights_of_padded_blocks_are_still_taken(photos: Path) -> None:
    def run(stage: str, folder: str, **options: Any) -> SaliencyTask:
        torch.manual_seed(0)
        task = SaliencyTask(classifier(), OptiCAM(max_iter=3), target="predicted", **options)
        task.run_dir = folder
        data = ImageFolder(str(photos), batch_size=4, on_error="record")
        getattr(trainer(), stage)(task, datamodule=data)
        return task

    (photos / "n01440764" / "zzz.png").write_text("this is no image")
    run("fit", "fit")
    run("test", "new", weights_from="fit")
    run("test", "alone")
    for block in range(2):
        path = Path(f"fit/weights/b{block:06d}.safetensors")
        tensors, metadata = load_tensors(path)
        ids = json.loads(metadata["ids"])
        assert tensors["weights"].shape[0] == len(ids)
        # As it was stored before: with a black image in the place of the unreadable one, and padding.
        padded = {"weights": [4 + len(ids), 4], "target": [4 + len(ids)], "objective": [4, 4 + len(ids)]}
        old = {key: torch.zeros(shape, dtype=tensors[key].dtype) for key, shape in padded.items()}
        old["weights"][1 : 1 + len(ids)], old["target"][1 : 1 + len(ids)] = tensors["weights"], tensors["target"]
        save_tensors(path, old, {"ids": json.dumps(["x", *ids, "", "", ""])})
    run("test", "old", weights_from="fit")
    found = [[(row.p, row.o, row.scores) for row in read_rows(folder)] for folder in ("alone", "new", "old")]
    assert found[0] == found[1] == found[2]
    path.unlink()
    with pytest.raises(ValueError, match="Expected the weights of block 1"):
        run("test", "lacking", weights_from="fit")


# Cut short -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize(
    ("stage", "limit", "left"),
    [
        ("test", "limit_test_batches=1", 4),
        ("test", "limit_test_batches=0", 7),
        ("test", "fast_dev_run=true", 4),
        ("validate", "limit_val_batches=2", 1),
        ("predict", "limit_predict_batches=2", 1),
        ("fit", "limit_train_batches=1", 4),
        ("fit", "max_steps=4", 4),
        ("fit", "max_epochs=0", 7),
    ],
)
def test_a_run_that_was_cut_short_says_so_and_the_next_does_the_rest(
    stage: str, limit: str, left: int, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [stage, "--config", TINY, "--data.root=photos", "--run_dir=run"]
    assert main([*given, f"--trainer.{limit}"]) == 4
    name = {"fit": "train", "validate": "val"}.get(stage, stage)
    told = f"optcam: {left} of 7 images are missing in run: a limit of the Trainer (`limit_{name}_batches`, "
    assert told in capsys.readouterr().err
    assert len(read_rows("run")) == 7 - left
    assert main(given) == 0
    assert "missing" not in capsys.readouterr().err
    assert len(read_rows("run")) == 7


@pytest.mark.usefixtures("photos")
def test_a_shard_that_did_its_part_is_whole_and_compare_tells_what_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", *words("--run_dir=run", "--shard=2/2")]) == 0
    assert main(["test", *words("--run_dir=run", "--shard=1/2", "--trainer.limit_test_batches=1")]) == 4
    assert "1 of 7 images are missing" in capsys.readouterr().err
    compare = ["compare", *words()[:3], "--explainers", "FakeCAM", "GradCAM", "--trainer.limit_test_batches=1"]
    assert main(compare) == 4
    assert capsys.readouterr().err.count("4 of 7 images are missing") == 2


def test_from_python_a_run_that_was_cut_short_warns(photos: Path) -> None:
    data = ImageFolder(str(photos), batch_size=4)
    task = SaliencyTask(classifier(), FakeCAM(), target="predicted")
    task.run_dir = "run"
    with pytest.warns(UserWarning, match="3 of 7 images are missing in run: a limit of the Trainer"):
        trainer(limit_test_batches=1).test(task, datamodule=data, verbose=False)
    trainer().test(task, datamodule=data, verbose=False)
    assert task.cut_short == ""


def test_a_network_that_was_measured_or_trained_in_part_says_so(photos: Path) -> None:
    data = ImageFolder(str(photos), batch_size=4)
    for stage, name in (("test", "test"), ("validate", "val")):
        task = ClassificationTask(classifier())
        with pytest.warns(
            UserWarning, match=r"3 of 7 images are missing in the measurement: .* \(`limit_(test|val)_batches`, "
        ):
            getattr(trainer(**{f"limit_{name}_batches": 1}), stage)(task, datamodule=data, verbose=False)
        getattr(trainer(), stage)(task, datamodule=data, verbose=False)
        assert task.cut_short == ""


@pytest.mark.parametrize(
    ("limit", "done"), [("max_epochs=1", 2), ("limit_train_batches=1", 2), ("max_steps=3", 3), ("max_epochs=2", 4)]
)
def test_a_fine_tuning_that_was_cut_short_says_so(limit: str, done: int, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--data.train_images=12", "--data.images=6", "--data.batch_size=6", "--model.epochs=2"]
    network = ["--model.classifier.network=timm/test_resnet", "--model.classifier.weights=null"]
    given = [
        "fit",
        "--config",
        FIT,
        *tiny,
        *network,
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]
    assert main([*given, f"--trainer.{limit}", "--run_dir=fit", "--model.head_epochs=0"]) == (0 if done == 4 else 4)
    assert (f"{done} of 4 training batches are done" in capsys.readouterr().err) == (done < 4)


def test_the_config_is_saved_once_however_many_epochs_are_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    saved, save = [], LightningArgumentParser.save

    def count(self: LightningArgumentParser, config: Any, path: Path, **kwargs: Any) -> None:
        saved.append(path)
        save(self, config, path, **kwargs)

    monkeypatch.setattr(LightningArgumentParser, "save", count)
    tiny = ["--data.train_images=6", "--data.images=6", "--data.batch_size=6", "--model.epochs=3"]
    network = ["--model.classifier.network=timm/test_resnet", "--model.classifier.weights=null"]
    words = ["fit", "--config", FIT, *tiny, *network, "--trainer.accelerator=cpu", "--quiet"]
    assert main([*words, "--run_dir=fit"]) == 0
    assert saved == [Path("fit/config.yaml")]


def test_a_measurement_beside_a_fit_keeps_the_fits_config(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--data.train_images=6", "--data.images=6", "--data.batch_size=6", "--model.epochs=1", "--quiet"]
    words = ["--config", FIT, *tiny, "--model.classifier.network=timm/test_resnet", "--trainer.accelerator=cpu"]
    assert main(["fit", *words, "--run_dir=fit"]) == 0
    saved = Path("fit/config.yaml").read_bytes()
    weights = "--model.classifier.weights=fit/checkpoints/best.ckpt"
    assert main(["test", *words, "--run_dir=fit", weights]) == 0
    assert Path("fit/config.yaml").read_bytes() == saved
    assert "checkpoints/best.ckpt" in Path("fit/config_test.yaml").read_text()
    assert main(["fit", *words, "--run_dir=fit", "--model.epochs=2"]) == 0
    assert Path("fit/config.yaml").read_bytes() != saved


@pytest.mark.usefixtures("photos")
def test_a_config_of_the_users_own_in_the_run_folder_is_kept() -> None:
    Path("own").mkdir()
    Path("own/config.yaml").write_text("# mine\nmodel: {class_path: SaliencyTask}\n")
    for _ in range(2):
        assert main(["test", *words("--run_dir=own", "--model.explainer=FakeCAM")]) == 0
    assert Path("own/config.yaml").read_text().startswith("# mine")
    assert Path("own/config_test.yaml").is_file()
    Path("own/config.yaml").write_text("# lightning.pytorch==2.6.6\n- no config")
    assert main(["test", *words("--run_dir=own", "--model.explainer=FakeCAM")]) == 0
    assert Path("own/config.yaml").read_text().endswith("- no config")


# Errors of others ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("word", ["--trainer.accelerator=gpu", "--trainer.devices=0"])
def test_settings_that_lightning_refuses_are_told_in_one_sentence(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(sys, "argv", ["optcam", "test", *words(word)])
    assert main() == 2
    told = capsys.readouterr().err
    assert told.startswith("optcam: error: Lightning refuses the settings of the trainer (accelerator ")
    assert "Traceback" not in told
    assert not Path("logs").exists()


def _bursts(*_args: object) -> None:
    raise RuntimeError("burst")


@pytest.mark.usefixtures("photos")
def test_a_check_that_breaks_off_is_that_methods_own_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(GradCAM, "check", _bursts)
    assert main(["compare", *words()[:3], "--explainers", "GradCAM", "FakeCAM", "XGradCAM"]) == 1
    err = capsys.readouterr().err
    assert "optcam compare: GradCAM broke off: RuntimeError: burst" in err
    assert "\nfailed:\n  GradCAM: RuntimeError: burst\n" in err
    assert sorted(path.parent.parent.name for path in Path("logs").rglob(MANIFEST)) == ["FakeCAM", "XGradCAM"]
