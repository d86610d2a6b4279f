"""The LightningModules that `optcam` runs."""

from optcam_pl.tasks.saliency import BlockResult, SaliencyTask, Target

__all__ = ["BlockResult", "SaliencyTask", "Target"]
