"""The LightningModules that `optcam` runs."""

from optcam_pl.tasks.checkpoints import fit_callbacks, last_checkpoint
from optcam_pl.tasks.classification import ClassificationTask
from optcam_pl.tasks.saliency import BlockResult, SaliencyTask, Target

__all__ = ["BlockResult", "ClassificationTask", "SaliencyTask", "Target", "fit_callbacks", "last_checkpoint"]
