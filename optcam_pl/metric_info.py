"""What is known of a metric without its class, so that a report of finished runs loads no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OWN_KEYS = frozenset(
    {
        *("average_drop", "average_gain", "average_increase", "average_drop_deletion"),
        *("insertion", "deletion", "aopc", "road"),
        *("road_most", "road_least", "official_metric", "localization_error"),
        *("pixel_f1", "box_accuracy", "max_box_accuracy", "standard_pointing_game"),
        *("energy_pointing_game", "saliency_metric", "pixel_average_precision", "selectivity_drop"),
        *("selectivity_gain", "selectivity_increase", "max_sensitivity", "average_sensitivity"),
        *("adcc", "adcc_per_image", "coherency", "complexity"),
        *("sparseness", "infidelity"),
    }
)
"""The keys of `optcam_pl.metrics.METRICS`."""


@dataclass(frozen=True)
class MetricInfo:
    """What a report needs to know about a metric. A run's manifest keeps it, so that no report needs the class.

    Attributes:
        label: the short name in a table's header.
        unit: "%" where the value is in percent, "" where it has none.
        higher_is_better: which direction is better; None if neither is.
        digits: how many decimals a table shows to a reader.
        path: the class, as `module.Class`.
        aggregate: how a run's value follows from its scores: their "mean", or the class's own function "of_means".
    """

    label: str
    unit: str
    higher_is_better: bool | None
    digits: int
    path: str
    aggregate: Literal["mean", "of_means"]
