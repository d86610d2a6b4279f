"""The metrics as pure functions of tensors."""

from optcam_pl.metrics.functional.classification import average_drop, average_gain, average_increase

__all__ = ["average_drop", "average_gain", "average_increase"]
