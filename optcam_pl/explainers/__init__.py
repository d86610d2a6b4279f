"""Saliency methods: every one is an `Explainer`."""

from optcam_pl.explainers.base import Explainer, Explanation
from optcam_pl.explainers.cam import FakeCAM, GradCAM, GradCAMPlusPlus, GradientCAM
from optcam_pl.explainers.masking import ScoreCAM
from optcam_pl.explainers.opticam import OptiCAM

__all__ = [
    "Explainer",
    "Explanation",
    "FakeCAM",
    "GradCAM",
    "GradCAMPlusPlus",
    "GradientCAM",
    "OptiCAM",
    "ScoreCAM",
]
