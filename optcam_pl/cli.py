"""The command `optcam`: fit, validate, test, predict (LightningCLI), and compare, report, verify."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

# Importing them is what lets a config name these classes without their module.
from optcam_pl import data as _data  # noqa: F401
from optcam_pl import explainers as _explainers  # noqa: F401
from optcam_pl.callbacks import ImageProgress, MapWriter, TensorBoardPanels, overlay_folder
from optcam_pl.compare import compare_command
from optcam_pl.data import ImageDataModule
from optcam_pl.gallery import gallery_command
from optcam_pl.records import RecordError
from optcam_pl.report import load_run, report_command, summarise, table
from optcam_pl.tasks import SaliencyTask
from optcam_pl.verify import verify_command

_DESCRIPTION = """Explain an image classifier's decisions by saliency maps, and measure the explanations.

fit, validate, test and predict take --config FILE (several are merged in their order) and single settings after it."""
_EPILOG = """Further commands (each has its own --help):
  optcam compare --config FILE --explainers A B ...   test several explainers (`all`: every one), print one table
  optcam report RUN_DIR...                            print that table from finished runs
  optcam verify RUN_DIR...                            check that a run is whole
  optcam gallery RUN_DIR...                           one page with the overlays of several runs

For example:
  optcam compare --config configs/demo.yaml --explainers OptiCAM GradCAM FakeCAM
  optcam predict --config configs/predict.yaml --data.paths photo.jpg
  optcam test --config configs/demo.yaml --model.explainer.max_iter 50 --print_config"""

# What a user cannot mend, or wants so: said by Lightning for every run.
_IGNORED = (
    ".*does not have many workers.*",
    ".*is smaller than the logging interval.*",
    ".*Trainer already configured with model summary callbacks.*",
    ".*module\\(s\\) in eval mode at the start of training.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
)


class OptcamCLI(LightningCLI):
    """LightningCLI in subclass mode, with a run folder for each run: ``logs/<data>/<explainer>/version_k``.

    Args:
        args: the words after `optcam`.
        name: the explainer's, in the run folder; None is its class.
        dry: make everything, run nothing.

    Attributes:
        run_dir: the folder of the run, once it has begun.
    """

    def __init__(self, args: Sequence[str], name: str | None = None, *, dry: bool = False) -> None:
        self._name, self._dry = name, dry
        super().__init__(
            L.LightningModule,
            ImageDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                # Our blocks are dealt out by the data module; Lightning's sampler would pad and count images twice.
                "use_distributed_sampler": False,
                "inference_mode": False,
                "enable_checkpointing": False,
                "enable_model_summary": False,
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 1,
                "max_epochs": 1,
            },
            auto_configure_optimizers=False,
            parser_kwargs={
                "prog": "optcam",
                "description": _DESCRIPTION,
                "epilog": _EPILOG,
                "formatter_class": argparse.RawDescriptionHelpFormatter,
            },
            args=list(args),
        )

    @property
    def run_dir(self) -> Path:
        """Where the run wrote its results."""
        if isinstance(self.model, SaliencyTask):  # known on each rank; the trainer's would ask all ranks together
            return self.model.run_dir
        return Path(self.trainer.log_dir or self.trainer.default_root_dir)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; without Lightning's warning about `sys.argv`, which `compare` and callers from Python would get."""
        self.config = parser.parse_args(args)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What the run is about comes before how it is carried out, in configs and in the help."""
        parser.add_lightning_class_args(self._model_class, "model", subclass_mode=True)
        parser.add_lightning_class_args(self._datamodule_class, "data", subclass_mode=True)
        parser.add_argument("--run_dir", type=str | None, help="Folder of this run instead of a new one under logs/.")
        parser.add_argument("--threads", type=int | None, help="CPU threads a process; results depend on it slightly.")
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{key}": value for key, value in self.trainer_defaults.items()})

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        # Ours prints its own table, and 50 000 maps are written, not kept in memory.
        for quiet in {"verbose", "return_predictions"} & set(self._subcommand_method_arguments[subcommand]):
            parser.set_defaults({quiet: False})
        return parser

    def _run_subcommand(self, subcommand: str) -> None:
        if not self._dry:
            super()._run_subcommand(subcommand)

    def before_instantiate_classes(self) -> None:
        """Pin the threads before anything computes; Lightning would choose by the number of processes."""
        threads = self._get(self.config, "threads")
        if threads is not None:
            if threads < 1:
                raise ValueError(f"Expected `threads` to be a positive integer, but got {threads}.")
            os.environ["OMP_NUM_THREADS"] = str(threads)
            torch.set_num_threads(threads)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """The trainer, with the run's logger and what a run shows unless the config says otherwise."""
        config = self._get(self.config_init, "trainer")
        if config.get("logger") in (None, True):
            kwargs["logger"] = self._logger()
        callbacks: list[Callback] = list(config.get("callbacks") or [])
        wanted: list[tuple[type[Callback], bool]] = [
            (TensorBoardPanels, True),
            (MapWriter, self.subcommand == "predict"),
        ]
        callbacks += [kind() for kind, use in wanted if use and not any(isinstance(c, kind) for c in callbacks)]
        if config.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(ImageProgress(refresh_rate=1 if sys.stderr.isatty() else 10))
        return super().instantiate_trainer(**kwargs, callbacks=callbacks)

    def _logger(self) -> TensorBoardLogger:
        run_dir = self._get(self.config, "run_dir")
        if run_dir is not None:
            return TensorBoardLogger(Path(run_dir).parent, name=Path(run_dir).name, version="")
        kind = type(self.model.explainer if isinstance(self.model, SaliencyTask) else self.model)
        name = self._name or kind.__name__
        return TensorBoardLogger("logs", name=f"{self.datamodule.name}/{name}")

    def _after(self) -> None:
        """Say where everything is."""
        if not self.trainer.is_global_zero:
            return
        run_dir, overlays = self.run_dir, overlay_folder(self.run_dir)
        print(f"\nrun folder:  {run_dir}")
        if overlays:
            print(f"overlays:    {overlays}")

    def _after_measuring(self) -> None:
        if self.trainer.is_global_zero and isinstance(self.model, SaliencyTask):
            print("\n" + table([summarise(load_run(self.run_dir))]))
        self._after()

    after_fit = after_predict = _after
    after_test = after_validate = _after_measuring


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what Lightning says at every run."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in _IGNORED:
            warnings.filterwarnings("ignore", message=message)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def run(argv: Sequence[str]) -> int:
    """Carry out one command; errors are raised.

    Args:
        argv: the words after `optcam`.

    Returns:
        The exit code.
    """
    commands: dict[str, Callable[[Sequence[str]], int]] = {
        "compare": functools.partial(compare_command, start=OptcamCLI),
        "report": report_command,
        "verify": verify_command,
        "gallery": gallery_command,
    }
    with _quiet():
        if argv and argv[0] in commands:
            return commands[argv[0]](list(argv[1:]))
        OptcamCLI(argv)
    return 0


def main(args: Sequence[str] | None = None) -> int:
    """The console command.

    Args:
        args: the words after `optcam`; None takes those of the process, and then an error that the user can mend is
            told in one sentence (with its traceback if OPTCAM_TRACEBACK is set) instead of being raised.

    Returns:
        The exit code: 0, or 2 after an error that was told.
    """
    if args is not None:
        return run(args)
    try:
        return run(sys.argv[1:])
    except (ValueError, TypeError, ImportError, OSError, RecordError) as error:
        if os.environ.get("OPTCAM_TRACEBACK"):
            traceback.print_exc()
        else:
            print(f"optcam: error: {error}\n(OPTCAM_TRACEBACK=1 shows where)", file=sys.stderr)
        return 2
