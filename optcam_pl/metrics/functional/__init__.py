"""The metrics as pure functions of tensors."""

from optcam_pl.metrics.functional.classification import (
    average_drop,
    average_drop_deletion,
    average_gain,
    average_increase,
)
from optcam_pl.metrics.functional.localization import (
    box_hits,
    energy_pointing_game,
    localization_error,
    official_metric,
    pixel_average_precision,
    pixel_f1,
    pixel_histograms,
    region_map,
    saliency_metric,
    standard_pointing_game,
)
from optcam_pl.metrics.functional.perturbation import (
    aopc_score,
    curve_area,
    imputed_images,
    patch_rank,
    perturbed_images,
    pixel_rank,
    road_counts,
    step_counts,
)
from optcam_pl.metrics.functional.robustness import (
    coherency,
    complexity,
    harmonic_mean,
    infidelity,
    sensitivities,
    sparseness,
)

__all__ = [
    "aopc_score",
    "average_drop",
    "average_drop_deletion",
    "average_gain",
    "average_increase",
    "box_hits",
    "coherency",
    "complexity",
    "curve_area",
    "energy_pointing_game",
    "harmonic_mean",
    "imputed_images",
    "infidelity",
    "localization_error",
    "official_metric",
    "patch_rank",
    "perturbed_images",
    "pixel_average_precision",
    "pixel_f1",
    "pixel_histograms",
    "pixel_rank",
    "region_map",
    "road_counts",
    "saliency_metric",
    "sensitivities",
    "sparseness",
    "standard_pointing_game",
    "step_counts",
]
