"""Saliency methods: each one is an `Explainer`."""

from optcam_pl.explainers.attention import TIBAV, AttentionRollout, RawAttention
from optcam_pl.explainers.base import Explainer, Explanation
from optcam_pl.explainers.cam import (
    CAM,
    EigenCAM,
    EigenGradCAM,
    FakeCAM,
    GradCAM,
    GradCAMPlusPlus,
    GradientCAM,
    HiResCAM,
    LayerCAM,
    RandomCAM,
    SmoothGradCAMPlusPlus,
    XGradCAM,
)
from optcam_pl.explainers.external import LIME, CallableExplainer, CaptumExplainer, GradientSHAP
from optcam_pl.explainers.finer import FinerCAM
from optcam_pl.explainers.fullgrad import FullGrad
from optcam_pl.explainers.masking import AblationCAM, ScoreCAM
from optcam_pl.explainers.opticam import OptiCAM
from optcam_pl.explainers.perturbation import RISE, ExtremalPerturbation, MeaningfulPerturbation

__all__ = [
    "CAM",
    "LIME",
    "RISE",
    "TIBAV",
    "AblationCAM",
    "AttentionRollout",
    "CallableExplainer",
    "CaptumExplainer",
    "EigenCAM",
    "EigenGradCAM",
    "Explainer",
    "Explanation",
    "ExtremalPerturbation",
    "FakeCAM",
    "FinerCAM",
    "FullGrad",
    "GradCAM",
    "GradCAMPlusPlus",
    "GradientCAM",
    "GradientSHAP",
    "HiResCAM",
    "LayerCAM",
    "MeaningfulPerturbation",
    "OptiCAM",
    "RandomCAM",
    "RawAttention",
    "ScoreCAM",
    "SmoothGradCAMPlusPlus",
    "XGradCAM",
]
