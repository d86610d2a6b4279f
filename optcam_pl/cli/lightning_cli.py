"""fit, validate, test and predict: LightningCLI, with a run folder for each run."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from jsonargparse import ActionYesNo, Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

# These imports let a config name the classes without their module.
from optcam_pl import data as _data  # noqa: F401
from optcam_pl import explainers as _explainers  # noqa: F401
from optcam_pl.callbacks import ImageProgress, MapWriter, TensorBoardPanels
from optcam_pl.checks import ToldError, check_positive, expanded_path
from optcam_pl.cli.mistakes import DroppedSettings, told
from optcam_pl.cli.output import show, tell
from optcam_pl.cli.places import command, folder_of, has_events, lines
from optcam_pl.cli.save_config import SaveConfig
from optcam_pl.data import ImageDataModule, ImageReadError
from optcam_pl.private import SubcommandHooks, leave_signals_alone, limit_group_wait
from optcam_pl.reports.grids import printable
from optcam_pl.reports.stored import keep_summary
from optcam_pl.reports.summary import Run, mostly_degenerate, summarize
from optcam_pl.reports.tables import Summary, table
from optcam_pl.runs.files import RunFolderError, probe_folder
from optcam_pl.runs.folders import (
    check_no_others,
    missing_folders,
    paths_of_start,
    remove_empty,
    remove_start,
)
from optcam_pl.runs.manifest import MANIFEST, read_manifest
from optcam_pl.runs.run_folder import Resume, Shard
from optcam_pl.runs.signals import Stopped
from optcam_pl.tasks import ClassificationTask, SaliencyTask, fit_callbacks, last_checkpoint
from optcam_pl.tasks.base import RunTask

_SETTINGS = "The settings of a class are shown by --model.help SaliencyTask, --data.help ImageNet, and so on."
SUBCOMMANDS = {
    "fit": f"""Fit the weights of Opti-CAM for every image (SaliencyTask) or train a network (ClassificationTask).
{_SETTINGS}""",
    "validate": f"""Measure a network on its validation images (ClassificationTask); for maps the same as test.
{_SETTINGS}""",
    "test": f"""Explain every image and measure the maps (SaliencyTask), or measure a network (ClassificationTask).
{_SETTINGS}""",
    "predict": f"""Explain every image and write the maps and overlays.
{_SETTINGS}""",
}

GROUP_TIMEOUT = timedelta(seconds=300)
"""How long one process waits for another in a collective. No process waits for another's work."""

ERRORS_EXIT_CODE = 3
"""Exit code of a run that is complete except for images that could not be read."""

INCOMPLETE_EXIT_CODE = 4
"""Exit code of a run that a limit of the Trainer cut short."""

SEVERAL_RUNS: dict[str, tuple[Any, str]] = {
    "explainers": (list[Any] | None, "What `optcam compare`, `sweep` and `paper` run, each with its settings."),
    "grid": (dict[str, Any] | None, "What `optcam sweep` and `paper` vary: a list of values for each setting."),
    "stages": (list[str] | None, "The stages of the network that `optcam sanity` randomizes, in this order."),
}
"""Keys of a config that are for the commands that make several runs of it, with their types and purposes."""

_TRAINER_HARDWARE = ("accelerator", "strategy", "devices", "num_nodes", "precision", "plugins")


class OptcamCLI(SubcommandHooks, LightningCLI):
    """LightningCLI in subclass mode, with a run folder for each run: ``logs/<data>/<explainer or network>/version_k``.

    The folder does not depend on the logger. A leading ``~`` or variable is expanded in every setting: such a setting
    is a path. A start that fails removes the folders that it made, if they are empty.

    Args:
        args: the words after `optcam`.
        name: name of the explainer in the run folder; None is its class's.
        dry: make all objects, but run nothing.
        place: which of several runs this is, such as "2/5". Its progress names it, and a measurement prints one line
            instead of a table and the places of its files.

    Attributes:
        run_dir: the folder of the run, once it has begun.
        exit_code: 0; `INCOMPLETE_EXIT_CODE` where a limit of the Trainer has cut the run short; else
            `ERRORS_EXIT_CODE` where images could not be read.
        summary: the numbers of a finished test of maps with their intervals, in the process that prints them.

    Raises:
        Stopped: a signal told the run to end. How to go on has been printed.
    """

    exit_code = 0
    summary: Summary | None = None

    def __init__(self, args: Sequence[str], name: str | None = None, *, dry: bool = False, place: str = "") -> None:
        self._words, self._name, self._dry, self._place = list(args), name, dry, place
        self._where = Path.cwd()
        self._parsers: dict[str, Any] = {}
        self._dropped = DroppedSettings(args)
        self._made: list[Path] = []
        self._started: Path | None = None
        self._before: set[Path] = set()
        try:
            self._start()
        except Exception:
            self._undo_start()
            raise
        except BaseException:  # a signal: the run goes on later
            remove_empty(self._made)
            raise

    def _start(self) -> None:
        super().__init__(
            L.LightningModule,
            ImageDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                # Our blocks are dealt out by the data module; Lightning's sampler would pad and count images twice.
                "use_distributed_sampler": False,
                "inference_mode": False,
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 1,
            },
            auto_configure_optimizers=False,
            parser_kwargs={
                "prog": "optcam",
                "formatter_class": argparse.RawDescriptionHelpFormatter,
                "logger": self._dropped.logger(),
            },
            args=self._words,
        )

    def _undo_start(self) -> None:
        """Leave no run folder after an error before the first result; other shards may be at work in the same one."""
        alone = self._started is not None and self.trainer.is_global_zero and self.setting("shard") is None
        if alone and self._started is not None:
            remove_start(self._started, self._before, self._made)
        else:
            remove_empty(self._made)

    @property
    def run_dir(self) -> Path:
        """Where the run wrote its results."""
        if isinstance(self.model, RunTask):  # as the first process has chosen it
            return self.model.run_dir
        return Path(self.trainer.log_dir or self.trainer.default_root_dir)

    @property
    def _given_dir(self) -> Path | None:
        """The folder that was asked for."""
        given = self.setting("run_dir")
        return None if given is None else expanded_path(given)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser that tells a mistake in one paragraph, and ends the command."""
        parser = super().init_parser(**kwargs)
        parser.error = self._refuse  # type: ignore[method-assign]
        return parser

    def _refuse(self, message: str, ex: Exception | None = None) -> NoReturn:
        if os.environ.get("OPTCAM_TRACEBACK") and ex is not None:
            traceback.print_exception(ex)
        command = self._words[0]

        def options() -> list[str]:
            return list(self._parsers[command].get_defaults(skip_validation=True).keys())

        with _in(self._where):  # a parser reads a config in the config's folder
            sentence = told(message, self._words, options)
        print(
            f"optcam: error: {sentence}\n(`optcam {command} --help` lists the "
            f"options, `optcam {command} --model.help NAME` or `--data.help NAME` those of a class)",
            file=sys.stderr,
        )
        raise SystemExit(2)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the words without Lightning's warning about `sys.argv`, which is wrong in `compare` and from Python."""
        self.config = parser.parse_args(args)
        if self._name is None and not self._dry:  # `compare` names an explainer after the config's
            for note in self._dropped.notes:
                print(f"optcam: note: {note}", file=sys.stderr)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the data and the model before the trainer, so that configs and the help show them first.

        Objects are made in this order: a wrong path of the data is told before a network is loaded or downloaded.
        """
        model, data = self.configured_classes()
        parser.add_lightning_class_args(data, "data", subclass_mode=True)
        parser.add_lightning_class_args(model, "model", subclass_mode=True)
        parser.add_argument("--run_dir", type=str | None, help="Folder of this run instead of a new one under logs/.")
        parser.add_argument(
            "--resume", type=Resume, default="auto", help="A run in this folder: go on, refuse, require."
        )
        parser.add_argument("--shard", type=str | None, help="i/n: do the i-th of n parts, into the same --run_dir.")
        parser.add_argument("--threads", type=int | None, help="CPU threads a process; results depend on it slightly.")
        for name, (kind, purpose) in SEVERAL_RUNS.items():
            parser.add_argument(f"--{name}", type=kind, help=f"{purpose} This command ignores it.")
        parser.add_argument(
            "--quiet", action=ActionYesNo, default=False, help="No progress; print the table and errors only."
        )
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{key}": value for key, value in self.trainer_defaults.items()})

    def subcommand_help(self, subcommand: str) -> str:
        """The help of a subcommand; Lightning's own describes the trainer's methods."""
        return SUBCOMMANDS[subcommand]

    def complete_parser(self, subcommand: str, parser: LightningArgumentParser, arguments: set[str]) -> None:
        """A short usage, and defaults for many images."""
        # All options would fill the first page, the trainer's first of all.
        self._parsers[subcommand] = parser
        parser.usage = f"optcam {subcommand} --config FILE [--config FILE ...] [--KEY=VALUE ...]"
        # Ours prints its own table, and 50 000 maps are written, not kept in memory.
        for quiet in {"verbose", "return_predictions"} & arguments:
            parser.set_defaults({quiet: False})

    def before_instantiate_classes(self) -> None:
        """Check the run's folder and set the threads, before the network is loaded."""
        self.config = _expanded(self.config)
        run_dir, resume = self._given_dir, self.setting("resume")
        self._shard = parse_shard(self.setting("shard"))
        if run_dir is None and (resume == "require" or self._shard):
            raise ValueError("Expected `run_dir` with `resume` require and with `shard`: the folder of the run.")
        if not self._dry:
            self._check_folder(run_dir, resume)
        threads = self.setting("threads")
        if threads is None and run_dir is not None and (run_dir / MANIFEST).exists():
            threads = read_manifest(run_dir)["fingerprint"].get("threads")  # whatever the number of devices is now
        if threads is not None:
            # Before anything computes; Lightning would choose by the number of processes.
            os.environ["OMP_NUM_THREADS"] = str(check_positive("threads", threads))
            torch.set_num_threads(threads)

    def _check_folder(self, run_dir: Path | None, resume: Resume) -> None:
        """See that the run can be written, and note which folders that makes."""
        if run_dir is not None:
            if resume == "require" and not run_dir.exists():
                raise RunFolderError(f"Expected a run in {run_dir} to continue, but there is no such folder.")
            check_no_others(run_dir)
        folder = run_dir or Path("logs")
        self._made = missing_folders(folder)
        probe_folder(folder)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """The trainer, with the run's logger and what a run shows unless the config says otherwise."""
        config = self.setting("trainer", self.config_init)
        logger = self._logger()
        # The logger looks at the disk for a new folder's name when it is asked for it.
        folder = self._given_dir or Path("logs" if self._dry else logger.log_dir)
        if not self._dry:
            self._made = [*(path for path in missing_folders(folder) if path not in self._made), *self._made]
            self._before = paths_of_start(folder)
        if isinstance(self.model, RunTask):
            self.model.run_dir = folder
        if isinstance(self.model, SaliencyTask):
            self.model.resume, self.model.shard = self.setting("resume"), self._shard
        if config.get("logger") in (None, True):
            kwargs["logger"] = logger
        kwargs.update(self._trainer_settings(config, folder))
        trainer = self._make_trainer(config, **kwargs, callbacks=self._callbacks(config, folder))
        if isinstance(trainer.strategy, DDPStrategy):
            limit_group_wait(trainer.strategy, GROUP_TIMEOUT)
        leave_signals_alone(trainer)
        self._started = None if self._dry else folder
        return trainer

    @property
    def _training(self) -> bool:
        """Whether this command trains a network."""
        return isinstance(self.model, ClassificationTask) and self.subcommand == "fit"

    def _trainer_settings(self, config: Namespace, folder: Path) -> dict[str, Any]:
        """Settings of the trainer that the config leaves open."""
        defaults = {
            "enable_checkpointing": self._training,
            "enable_model_summary": self._training,
            "max_epochs": self.model.max_epochs if isinstance(self.model, ClassificationTask) else 1,
            # Without a logger the run's folder; and Lightning would look for checkpoints here.
            "default_root_dir": str(folder),
        }
        settings = {key: value for key, value in defaults.items() if config.get(key) is None}
        if self.setting("quiet"):
            settings["enable_progress_bar"] = False
        if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
            # Lightning's requeueing saves nothing of a test; ours is `sbatch --requeue` and going on.
            settings["plugins"] = [*_listed(config.get("plugins")), SLURMEnvironment(auto_requeue=False)]
        return settings

    def _callbacks(self, config: Namespace, folder: Path) -> list[Callback]:
        """The config's callbacks, and those of ours of whose kind it has none."""
        callbacks: list[Callback] = list(_listed(config.get("callbacks")))

        def lacks(kind: type[Callback]) -> bool:
            return not any(isinstance(callback, kind) for callback in callbacks)

        if lacks(TensorBoardPanels):
            callbacks.append(TensorBoardPanels())
        if self.subcommand == "predict" and lacks(MapWriter):
            callbacks.append(MapWriter())
        if self._training and config.get("enable_checkpointing") is not False:
            callbacks += fit_callbacks(self.model, given=callbacks)
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(folder / "checkpoints")  # otherwise it depends on the logger
        if config.get("enable_progress_bar") is not False and not self.setting("quiet") and lacks(ProgressBar):
            own = f"[{self._place}] {self._title}, {self.datamodule.name}" if self._place else ""
            callbacks.append(ImageProgress(label=own))
        return callbacks

    def _make_trainer(self, config: Namespace, **kwargs: Any) -> L.Trainer:
        """The trainer, or a ValueError that names the settings that Lightning refuses."""
        try:
            trainer: L.Trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, RuntimeError) as error:
            given = ", ".join(f"{key} {config[key]}" for key in _TRAINER_HARDWARE if config.get(key) is not None)
            advice = _without_gpu(config.get("accelerator"))
            raise ValueError(f"Lightning refuses the settings of the trainer ({given}): {error}{advice}") from error
        return trainer

    def subcommand_arguments(self, subcommand: str) -> dict[str, Any]:
        """The arguments of the trainer's method, with the checkpoint that a fit continues."""
        kwargs = super().subcommand_arguments(subcommand)
        run_dir = self._given_dir
        if subcommand == "fit" and isinstance(self.model, ClassificationTask) and not kwargs.get("ckpt_path"):
            kwargs["ckpt_path"] = last_checkpoint(run_dir, self.setting("resume")) if run_dir else None
        return kwargs

    def run_subcommand(self, subcommand: str) -> None:
        """Run the command, unless `dry`; print how to continue a run that was stopped.

        Raises:
            Stopped: by a signal.
            RunFolderError: the run's folder cannot be written.
            RuntimeError: a loader process was killed.
        """
        if self._dry:
            return
        try:
            super().run_subcommand(subcommand)
        except Stopped as stopped:
            if self.trainer.is_global_zero:
                folder = [] if self.setting("run_dir") else [f"--run_dir={self.run_dir}"]
                again = command("optcam", *self._words, *folder)
                print(f"optcam: {stopped}. The run goes on with:\n  {again}", file=sys.stderr)
            raise
        except ImageReadError as error:
            # The last line is the sentence where a loader process passes on its whole traceback.
            sentence = str(error).strip().splitlines()[-1].removeprefix(f"{_name_of(ImageReadError)}: ")
            raise ImageReadError(
                f"{sentence} `--data.on_error record` goes on without such images.", error.reason
            ) from error
        except ConnectionResetError as error:
            # One of the ways in which torch notices, beside "killed by signal" and the next one.
            raise _loader_killed(error.strerror or error) from error
        except RuntimeError as error:
            if "DataLoader worker" in str(error) and "exited unexpectedly" in str(error):
                raise _loader_killed(error) from error
            raise
        except OSError as error:
            if error.filename is not None or error.errno is None:  # the system's with its file, or words of our own
                raise
            # TensorBoard's writer, whose disk is full, does not name its file.
            raise RunFolderError(f"Cannot write into {self.run_dir}: {error.strerror or error}.") from error

    def _logger(self) -> TensorBoardLogger:
        if self._given_dir is not None:
            return TensorBoardLogger(self._given_dir.parent, name=self._given_dir.name, version="")
        return TensorBoardLogger("logs", name=f"{self.datamodule.name}/{self._title}")

    @property
    def _title(self) -> str:
        """What the run is called in folders: its method, or its network."""
        own = self.model.title if isinstance(self.model, RunTask) else type(self.model).__name__
        return self._name or own

    def _after(self) -> None:
        """Print where everything is, which images could not be read, and what was not done."""
        if not self.trainer.is_global_zero:
            return
        if not (self.setting("quiet") or self._place):
            print("\n" + lines(self._places()))
        if isinstance(self.model, SaliencyTask):
            self._tell_rows(self.model.run)
        if isinstance(self.model, RunTask) and self.model.cut_short:
            self.exit_code = INCOMPLETE_EXIT_CODE
            print(f"optcam: {printable(self.model.cut_short)}", file=sys.stderr)

    def _places(self) -> Iterator[tuple[str, object]]:
        """Where the run's files are, and how to look at them."""
        run_dir, maps = self.run_dir, isinstance(self.model, SaliencyTask)
        yield "run folder", run_dir
        rows = folder_of(run_dir, "rows")
        yield "rows", rows and f"{rows} (a line per image; files are named a<attempt>-r<process>)"
        yield "maps", folder_of(run_dir, "maps")
        yield "overlays", folder_of(run_dir, "overlays")
        yield "weights", folder_of(run_dir, "weights")
        yield "best", getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        yield "TensorBoard", has_events(run_dir) and command("tensorboard", "--logdir", run_dir)
        measured = maps and self.subcommand in ("test", "validate")
        yield "table again", measured and command("optcam", "report", run_dir)
        yield "page", measured and command("optcam", "report", run_dir, "--html", "page")

    def _tell_rows(self, run: Run) -> None:
        note = "" if run.manifest["metrics"] else mostly_degenerate(run)  # with metrics it stands below the table
        if note:
            print(f"optcam: {printable(note)}", file=sys.stderr)
        errors = [row for row in run.rows if row.status == "error"]
        if errors:
            self.exit_code = ERRORS_EXIT_CODE
            print(
                f"optcam: {len(errors)} of {run.manifest['images']} images could not be read (their rows say why): "
                + printable("; ".join(f"{row.id} ({row.reason})" for row in errors[:3]))
                + ("; ..." if len(errors) > 3 else ""),
                file=sys.stderr,
            )

    def _after_measuring(self) -> None:
        if self.trainer.is_global_zero and isinstance(self.model, SaliencyTask):
            self.summary = summarize(self.model.run, intervals="bca")
            keep_summary(self.model.run, self.summary, "bca")
            if not self._place:
                show("\n" + table([self.summary]))
            elif not self.setting("quiet"):
                tell(self._brief(self.summary))
        if self.trainer.is_global_zero and isinstance(self.model, ClassificationTask):
            show(f"\n{self.model.summary()}\n")
        self._after()

    def _brief(self, summary: Summary) -> str:
        """The run in a line; the table of all runs comes in the end."""
        values = [
            f"{summary.info(key).label} " + ("-" if e.value is None else f"{e.value:.{summary.info(key).digits}f}")
            for key, e in summary.metrics.items()
        ]
        return f"[{self._place}] {self._title}: {', '.join(values)} -> {self.run_dir}"

    after_fit = after_predict = _after
    after_test = after_validate = _after_measuring


@contextmanager
def _in(folder: Path) -> Iterator[None]:
    """With another current folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _name_of(kind: type[Exception]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _without_gpu(accelerator: Any) -> str:
    """What to do where a GPU was asked for and torch sees none, as a sentence with a space before it."""
    if accelerator not in ("gpu", "cuda") or torch.cuda.is_available():
        return ""
    return (
        " This torch sees no GPU here: `--trainer.accelerator auto` (the default) takes what there is, `cpu` the CPU. "
        "`nvidia-smi` shows whether the machine has one, and `python -c 'import torch; print(torch.version.cuda)'` "
        "whether torch was built for it."
    )


def _expanded(setting: Any) -> Any:
    """A setting with every text in it that begins with ``~`` or a variable expanded: such texts are paths."""
    if isinstance(setting, str):
        return str(expanded_path(setting)) if setting.startswith(("~", "$")) else setting
    if isinstance(setting, list):
        return [_expanded(item) for item in setting]
    if isinstance(setting, dict):
        return {key: _expanded(item) for key, item in setting.items()}
    if isinstance(setting, Namespace):
        for key, item in vars(setting).items():
            setattr(setting, key, _expanded(item))
    return setting


def _loader_killed(reason: object) -> ToldError:
    return ToldError(
        f"A loader process was killed, perhaps for lack of memory ({reason}). The run can be started again."
    )


def parse_shard(text: str | None) -> Shard | None:
    """The shard (i, n) from the text "i/n".

    Raises:
        ValueError: the text has another form, or i is not in 1 ... n.

    Example:
        >>> parse_shard("2/8")
        (2, 8)
    """
    if text is None:
        return None
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise ValueError(f"Expected `shard` to be i/n with i from 1 to n, but got {text!r}.")
    return int(part), int(parts)


def _listed(value: Any) -> list[Any]:
    """A setting that may be None, one value or a list, as a list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
