"""Opti-CAM and the saliency methods it is compared with, measured by corrected faithfulness metrics."""

from importlib.metadata import version

from optcam_pl.explainers import (
    Explainer,
    Explanation,
    FakeCAM,
    GradCAM,
    GradCAMPlusPlus,
    OptiCAM,
    ScoreCAM,
)
from optcam_pl.network.classifier import Classifier

__version__ = version("optcam_pl")

__all__ = [
    "Classifier",
    "Explainer",
    "Explanation",
    "FakeCAM",
    "GradCAM",
    "GradCAMPlusPlus",
    "OptiCAM",
    "ScoreCAM",
    "__version__",
]
