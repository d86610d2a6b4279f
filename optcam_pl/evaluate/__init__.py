"""What is measured with the network, each pass once; called, it evaluates explainers: see `optcam_pl.evaluate.result`.

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

    The function `optcam_pl.evaluate` and the room `optcam_pl.evaluate` have one name, and Python sets a package's
    attribute to the submodule whenever somebody imports that: a function in its place would be there or not, depending
    on what was imported before. So the module itself can be called.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Result:
        result: Result = _function()(*args, **kwargs)
        return result

    @property
    def __signature__(self) -> inspect.Signature:
        """What a notebook shows of the arguments."""
        return inspect.signature(_function())


def _function() -> Any:
    from optcam_pl.evaluate.result import evaluate  # imported when it is first called, as it needs all rooms below

    return evaluate


sys.modules[__name__].__class__ = _Evaluate
