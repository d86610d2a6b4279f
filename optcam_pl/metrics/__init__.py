"""Metrics of saliency maps: pure functions in `functional`, and torchmetrics classes that add them up over images."""

from optcam_pl.metrics.base import ImageMetric
from optcam_pl.metrics.classification import AverageDrop, AverageGain, AverageIncrease

METRICS: dict[str, type[ImageMetric]] = {metric.key: metric for metric in (AverageDrop, AverageGain, AverageIncrease)}
"""Every metric by its key, the name that it has in rows, reports and the table of published values."""

__all__ = ["METRICS", "AverageDrop", "AverageGain", "AverageIncrease", "ImageMetric"]
