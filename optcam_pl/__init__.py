"""Opti-CAM and the saliency methods it is compared with, measured by corrected faithfulness metrics.

What a notebook needs is here: `Classifier`, `explain` and `compare` for photographs, the explainers' base and the
method of the paper, `evaluate` and the two tasks. Every explainer is in `optcam_pl.explainers`, every metric in
`optcam_pl.metrics`, every dataset in `optcam_pl.data`. Names are imported when they are first asked for, so that
`optcam --help` loads no network.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optcam_pl.evaluate.result import evaluate
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
    from optcam_pl.notebook import Comparison, compare, explain
    from optcam_pl.tasks import ClassificationTask, SaliencyTask

try:
    __version__ = version("optcam_pl")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "ClassificationTask",
    "Classifier",
    "Comparison",
    "Explainer",
    "Explanation",
    "FakeCAM",
    "GradCAM",
    "GradCAMPlusPlus",
    "OptiCAM",
    "SaliencyTask",
    "ScoreCAM",
    "__version__",
    "compare",
    "evaluate",
    "explain",
]

_MODULES = {
    "Classifier": "network.classifier",
    "ClassificationTask": "tasks",
    "SaliencyTask": "tasks",
    **dict.fromkeys(("Comparison", "compare", "explain"), "notebook"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "evaluate":  # a package that can be called, see there
        return importlib.import_module(f"{__name__}.evaluate")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'explainers')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
