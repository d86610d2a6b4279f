"""Saves the config of a run in its folder, and says at the start what is done already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

from optcam_pl.cli.output import tell
from optcam_pl.runs.folders import choose_run_dir
from optcam_pl.tasks import SaliencyTask
from optcam_pl.tasks.base import RunTask


class SaveConfig(SaveConfigCallback):
    """Saves the config when the run begins, as the folder may turn out to be another run's before."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Do nothing yet."""

    def _begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.training:  # the validation after each epoch
            return
        folder = pl_module.run_dir if isinstance(pl_module, RunTask) else choose_run_dir(trainer, None)
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            path = self._place(folder, str(trainer.state.fn.value) if trainer.state.fn else "")
            self.parser.save(self.config, path, skip_none=False, overwrite=True, multifile=self.multifile)
        if not isinstance(pl_module, SaliencyTask) or not trainer.is_global_zero:
            return
        if pl_module.images_in_pass is not None:
            tell(f"chunk_size auto: {pl_module.images_in_pass} images in a pass, also when this run goes on")
        if pl_module.folder.plan.done:
            plan, images = pl_module.folder.plan, len(pl_module.data.table)
            left = f"{len(plan.todo)} blocks to do" if plan.todo else "nothing left to do"
            tell(f"{plan.done} of {images} images are done in {pl_module.run_dir}: {left}")

    on_train_start = on_validation_start = on_test_start = on_predict_start = _begin

    def _place(self, folder: Path, stage: str) -> Path:
        """``config.yaml``; where it is the user's or that of another command, ``config_<command>.yaml`` beside it."""
        usual = folder / self.config_filename
        if not usual.exists() or self._kind(saved_config(usual)) == self._kind(self.config):
            return usual
        return usual.with_name(f"{usual.stem}_{stage}{usual.suffix}")

    @staticmethod
    def _kind(config: Mapping[str, Any] | Namespace | None) -> tuple[Any, ...]:
        """What tells a command's config from that of another: the task, and the arguments of the Trainer's method."""
        if config is None:
            return ()
        model = config["model"]
        return str(model["class_path"]).rpartition(".")[2], "verbose" in config, "return_predictions" in config


def saved_config(path: Path) -> Mapping[str, Any] | None:
    """What a run has saved as its config; None if a run has not written this file."""
    try:
        text = path.read_text("utf-8")
        content = yaml.safe_load(text) if text.startswith("# lightning") else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    model = content.get("model") if isinstance(content, dict) else None
    return content if isinstance(model, dict) and "class_path" in model else None
