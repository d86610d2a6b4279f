"""The LightningModules that `optcam` runs."""

from optcam_pl.evaluate.block import BlockResult, Target
from optcam_pl.tasks.checkpoints import fit_callbacks, last_checkpoint
from optcam_pl.tasks.classification import ClassificationTask
from optcam_pl.tasks.saliency import SaliencyTask

__all__ = ["BlockResult", "ClassificationTask", "SaliencyTask", "Target", "fit_callbacks", "last_checkpoint"]
