"""Checks whether a method that changes gradients of certain modules has rules for everything that a network calls.

Captum attaches its rules to modules (a ReLU of the class `nn.ReLU`). A function that is called without a module, or a
module of another class, silently keeps its plain gradient. The check looks at the calls of a pass, not at the modules
that exist.

Shape letters: B images, n references, C classes, K channels, H x W image.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from optcam_pl.maps import of_class
from optcam_pl.network.classifier import Classifier
from optcam_pl.threads import hook_input, hook_output

Family: TypeAlias = Literal["rescale", "relu", "lrp"]

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("DeepLift", "DeepLiftShap", "LayerDeepLift", "LayerDeepLiftShap"), "rescale"),
    **dict.fromkeys(("GuidedBackprop", "Deconvolution", "GuidedGradCam"), "relu"),
    **dict.fromkeys(("LRP", "LayerLRP"), "lrp"),
}
# The modules that have a rule: exactly these classes, because Captum compares classes.
_RESCALED = (nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softmax)
_POOLED = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_WEIGHED = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, *_POOLED)
_PASSED = (nn.ReLU, nn.Dropout, nn.Tanh)
# Operations that are linear in the image, or only move values.
LINEAR = {
    *("linear", "conv1d", "conv2d", "conv3d", "conv_transpose2d", "batch_norm", "avg_pool2d", "adaptive_avg_pool1d"),
    *("adaptive_avg_pool2d", "avg_pool1d", "mean", "sum", "interpolate", "add", "sub", "radd", "rsub", "iadd", "isub"),
    *("pixel_shuffle", "pixel_unshuffle", "neg", "addmm", "upsample", "cumsum"),
}
MOVING = {
    *("reshape", "view", "view_as", "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim", "squeeze"),
    *("unsqueeze", "unbind", "chunk", "split", "getitem", "select", "narrow", "cat", "concat", "stack", "expand"),
    *("expand_as", "repeat", "get", "contiguous", "clone", "to", "type_as", "float", "double", "dropout", "dropout2d"),
    *("dropout3d", "alpha_dropout", "pad", "roll", "flip", "t", "unfold", "fold", "index_select", "gather", "repeat"),
}
PRODUCTS = {"mul", "imul", "rmul", "div", "truediv", "idiv", "itruediv", "matmul", "bmm", "einsum", "rmatmul"}
_RECTIFIERS = {
    *("gelu", "silu", "mish", "hardswish", "elu", "selu", "celu", "leaky_relu", "prelu", "rrelu", "softplus"),
    *("hardtanh", "relu6"),
}
_COMPLETE = 0.02  # share of f(x) - f(x') by which rounding may change a complete sum
_ROUNDING = 1e-4  # of the sum of the attribution's magnitudes


class Watch(TorchFunctionMode):
    """Finds the calls of a watched network for which a family of rules has no rule.

    Args:
        method: the attribution's name in `captum.attr`.
        classifier: the network.
        layer: the layer that the attribution belongs to: only calls after it count. None means the image.
    """

    def __init__(self, method: str, classifier: Classifier, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.method, self.classifier, self.layer = method, classifier, layer
        self.family = FAMILIES[method]
        self.outputs: Tensor | None = None
        self._open: list[tuple[str, nn.Module]] = []
        self._calls: Counter[str] = Counter()
        self._lacking: dict[str, str] = {}  # a function without a rule -> where it is called
        self._unchanged: dict[str, str] = {}  # activations that are no ReLU
        self._again: dict[str, nn.Module] = {}
        self._relus = 0

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        """Watch the network while open, with hooks that tell which module runs."""
        with ExitStack() as stack:
            for full, module in self.classifier.named_modules():
                name = full.removeprefix("network.")
                before, after = functools.partial(self._enter, name), functools.partial(self._leave, name)
                stack.callback(hook_input(module, before, first=True))
                stack.callback(hook_output(module, after, first=True))
            with self:
                yield self

    def _enter(self, name: str, module: nn.Module, _args: Any) -> None:
        if module is self.classifier:
            self._open.clear()
            self._calls.clear()
        self._open.append((name, module))
        self._calls[name] += 1
        ruled = {"rescale": (*_RESCALED, *_POOLED), "relu": (), "lrp": _WEIGHED}[self.family]
        if self._calls[name] > 1 and type(module) in ruled:
            self._again[name] = module

    def _leave(self, name: str, module: nn.Module, _args: Any, output: Any) -> None:
        self._open.pop()
        if module is self.classifier:
            self.outputs = output.detach()
        if module is self.layer:  # calls before the layer do not count
            for found in (self._lacking, self._unchanged, self._again):
                found.clear()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See `torch.overrides.TorchFunctionMode`; calls outside of the network's pass do not count."""
        out = func(*args, **(kwargs or {}))
        if self._open:
            name = func.__name__
            name = name.strip("_") if name.startswith("__") else name.removesuffix("_")
            values = [*args, *(kwargs or {}).values()]
            live = sum(isinstance(value, Tensor) and value.requires_grad for value in values)
            live += sum(isinstance(v, Tensor) and v.requires_grad for value in args if _is_list(value) for v in value)
            if live and isinstance(out, Tensor) and out.requires_grad:
                self._note(name, live, args, kwargs or {})
        return out

    def _note(self, name: str, live: int, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        where, owner = self._open[-1]
        top = owner in (self.classifier, self.classifier.network)
        place = "its forward" if top else f"{where} ({type(owner).__name__})"
        if self.family == "relu":
            rectifies = name in ("relu", "clamp_min", "threshold") or (
                name == "clamp" and 0 in (kwargs.get("min"), *args[1:2]) and (kwargs.get("max"), *args[2:3])[-1] is None
            )
            if isinstance(owner, nn.ReLU):
                self._relus += 1
            elif rectifies:
                self._lacking[name] = place
            elif name in _RECTIFIERS:
                self._unchanged[name] = place
        elif self.family == "rescale":
            linear = name in LINEAR | MOVING or (name in PRODUCTS and live == 1)
            if not linear and type(owner) not in (*_RESCALED, *_POOLED):
                self._lacking[name] = place
        elif owner is self.classifier or type(owner) in (*_WEIGHED, *_PASSED) or name in MOVING | {"relu"}:
            return
        else:
            self._lacking[name] = place

    def violation(self) -> str | None:
        """A sentence that says which rule does not apply; None if all rules apply."""
        network = self.classifier.name
        for name, module in self._again.items():
            return (
                f"Expected each module to be called once in a pass for {self.method}, whose rules keep what went "
                f"through it, but {network} calls {name!r} ({type(module).__name__}) again. {_INSTEAD}"
            )
        if self.outputs is None:  # the network itself failed
            return None
        if self.family == "relu" and not self._relus:
            return (
                f"Expected a network with ReLU modules for {self.method}, which changes their gradient alone, but "
                f"{network} calls none: its map would be the plain gradient's, which is the method Saliency."
            )
        for name, where in self._lacking.items():
            if self.family == "relu":
                what = f"calls {name!r} in {where} without one, whose gradient stays the plain one"
                return f"Expected all ReLUs to be nn.ReLU modules for {self.method}, but {network} {what}. {_INSTEAD}"
            what = f"calls {name!r} in {where}, which has none"
            ruled = "activations and pools that are modules of torch.nn (ReLU, MaxPool2d, ...)"
            ruled = ruled if self.family == "rescale" else "modules of torch.nn (Conv2d, Linear, ReLU, ...) alone"
            return f"{self.method} has rules for {ruled}, but {network} {what}. {_INSTEAD}"
        return None

    def unchanged(self) -> str | None:
        """A warning about activations that guided backpropagation does not change; None if there are none."""
        if not self._unchanged:
            return None
        named = ", ".join(f"{name!r} in {where}" for name, where in self._unchanged.items())
        return (
            f"{self.method} changes the gradient of ReLUs alone, but {self.classifier.name} has other activations too, "
            f"whose gradient stays the plain one: {named}."
        )

    def check_complete(self, attribution: Tensor, target: Tensor) -> None:
        """For DeepLift: check that an attribution (B,K,H,W) adds up to ``f(x) - f(x')`` for each image.

        Raises:
            ValueError: it does not.
        """
        if self.outputs is None or self.family != "rescale" or self.layer is not None:
            return
        first, second = self.outputs.chunk(2)  # images, each n times; references
        y = of_class((first - second).view(len(target), -1, first.shape[1]).mean(1), target)
        found = attribution.detach().flatten(1)
        rest = (found.sum(1) - y).abs()
        wrong = rest > _COMPLETE * y.abs() + _ROUNDING * found.abs().sum(1)
        if wrong.any():
            i = int(wrong.nonzero()[0])
            raise ValueError(
                f"Expected {self.method}'s attribution to add up to f(x) - f(x') = {float(y[i]):.4g}, as its rules "
                f"promise, but it adds up to {float(found[i].sum()):.4g}: they do not hold for everything that "
                f"{self.classifier.name} computes (Captum's of max pooling hold for some references only). {_INSTEAD}"
            )


_INSTEAD = "Use a method without such rules, such as IntegratedGradients."


def check_modules(method: str, classifier: Classifier) -> None:
    """For LRP: check that each module has a rule, which Captum demands before any pass.

    Raises:
        TypeError: one has none.
        ValueError: one is used in two places.
    """
    if FAMILIES[method] != "lrp":
        return
    seen: dict[nn.Module, str] = {}
    for name, module in classifier.network.named_modules(remove_duplicate=False):
        if type(module) in _WEIGHED and seen.setdefault(module, name) != name:
            raise ValueError(
                f"Expected each module to be called once in a pass for {method}, whose rules keep what went "
                f"through it, but {seen[module]!r} and {name!r} of {classifier.name} are one {type(module).__name__}. "
                f"{_INSTEAD}"
            )
        if not any(True for _ in module.children()) and type(module) not in (*_WEIGHED, *_PASSED):
            known = ", ".join(kind.__name__ for kind in (*_WEIGHED, *_PASSED))
            raise TypeError(
                f"{method} has rules for the modules {known}, but {classifier.name} has {name!r}, a "
                f"{type(module).__name__}. {_INSTEAD}"
            )


def _is_list(value: object) -> bool:
    return isinstance(value, (tuple, list))
