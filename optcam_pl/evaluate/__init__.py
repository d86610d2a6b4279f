"""Measurements with the network, each pass done once. Calling this package evaluates explainers (see `result`).

import optcam_pl

result = optcam_pl.evaluate(classifier, [optcam_pl.GradCAM(), optcam_pl.OptiCAM()], images)
print(result.table())
"""

from __future__ import annotations

import inspect
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optcam_pl.evaluate.result import Result


class _Evaluate(types.ModuleType):
    """This package as a function.

    The function `optcam_pl.evaluate` and the subpackage `optcam_pl.evaluate` share one name. Whenever a submodule is
    imported, Python sets the package's attribute to it. Whether a function of that name were visible would therefore
    depend on earlier imports, so the module itself is callable.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Result:
        result: Result = _function()(*args, **kwargs)
        return result

    @property
    def __signature__(self) -> inspect.Signature:
        """The arguments that a notebook shows."""
        return inspect.signature(_function())


def _function() -> Any:
    from optcam_pl.evaluate.result import evaluate  # imported on the first call: it needs all lower rooms

    return evaluate


sys.modules[__name__].__class__ = _Evaluate
