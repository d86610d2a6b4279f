"""Metrics of saliency maps: pure functions in `functional`, and torchmetrics classes that average them over images."""

from optcam_pl.metric_info import MetricInfo
from optcam_pl.metrics.base import ImageMetric
from optcam_pl.metrics.classification import (
    AverageDrop,
    AverageDropDeletion,
    AverageGain,
    AverageIncrease,
    HeldOutDrop,
    HeldOutGain,
    HeldOutIncrease,
)
from optcam_pl.metrics.localization import (
    BoxAccuracy,
    EnergyPointingGame,
    LocalizationError,
    MaxBoxAccuracy,
    OfficialMetric,
    PixelAveragePrecision,
    PixelF1,
    SaliencyMetric,
    StandardPointingGame,
)
from optcam_pl.metrics.perturbation import AOPC, CurveMetric, Deletion, Insertion, Road, RoadLeast, RoadMost
from optcam_pl.metrics.robustness import (
    ADCC,
    AverageSensitivity,
    Coherency,
    Complexity,
    Infidelity,
    MaxSensitivity,
    PerImageADCC,
    Sparseness,
)
from optcam_pl.metrics.selectivity import SelectivityDrop, SelectivityGain, SelectivityIncrease

METRICS: dict[str, type[ImageMetric]] = {
    metric.key: metric
    for metric in (
        *(AverageDrop, AverageGain, AverageIncrease, AverageDropDeletion),
        *(Insertion, Deletion, AOPC, Road, RoadMost, RoadLeast),
        *(OfficialMetric, LocalizationError, PixelF1, BoxAccuracy, MaxBoxAccuracy, StandardPointingGame),
        *(EnergyPointingGame, SaliencyMetric, PixelAveragePrecision),
        *(SelectivityDrop, SelectivityGain, SelectivityIncrease),
        *(MaxSensitivity, AverageSensitivity, ADCC, PerImageADCC, Coherency, Complexity, Sparseness, Infidelity),
    )
}
"""The package's own metrics by key, for `metrics: all` and for old runs that do not describe their metrics.

A metric need not be listed here to be measured and reported: see `ImageMetric`.
"""

__all__ = [
    "ADCC",
    "AOPC",
    "METRICS",
    "AverageDrop",
    "AverageDropDeletion",
    "AverageGain",
    "AverageIncrease",
    "AverageSensitivity",
    "BoxAccuracy",
    "Coherency",
    "Complexity",
    "CurveMetric",
    "Deletion",
    "EnergyPointingGame",
    "HeldOutDrop",
    "HeldOutGain",
    "HeldOutIncrease",
    "ImageMetric",
    "Infidelity",
    "Insertion",
    "LocalizationError",
    "MaxBoxAccuracy",
    "MaxSensitivity",
    "MetricInfo",
    "OfficialMetric",
    "PerImageADCC",
    "PixelAveragePrecision",
    "PixelF1",
    "Road",
    "RoadLeast",
    "RoadMost",
    "SaliencyMetric",
    "SelectivityDrop",
    "SelectivityGain",
    "SelectivityIncrease",
    "Sparseness",
    "StandardPointingGame",
]
