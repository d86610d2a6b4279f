"""FullGrad: the gradients of the input and of every bias in the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from optcam_pl.explainers.base import Explainer, Explanation
from optcam_pl.explainers.readout import check_uncompiled
from optcam_pl.explainers.rules import LINEAR, MOVING, PRODUCTS
from optcam_pl.maps import normalize, of_class, upsample
from optcam_pl.network.classifier import Classifier
from optcam_pl.network.errors import backward_errors


class FullGrad(Explainer):
    """FullGrad (Srinivas and Fleuret, NeurIPS 2019): ``psi(G_x . x) + sum_l sum_c psi(G_l . b_l)_c``.

    x is the input after mean/std and G_x is the logit's gradient there. z_l is the output of a layer with the bias b_l,
    and ``G_l = d y_c / d z_l``. For a batch normalization b_l is the sum of what its statistics and its bias add.
    ``psi`` is the absolute value, range normalization over all channels of an image together, and bilinear upsampling.
    For a ReLU network the terms add up to the logit; with other activations they are also well defined, but leave a
    remainder. A remainder although only piecewise linear functions were seen means that some biases were not seen: such
    a network is refused.

    The biases are found where torch's functions use them (linear, convolution and its transpose; batch, instance, layer
    and group normalization), no matter which module calls them. No parameter gets a gradient. Layers whose output does
    not lie on the image's grid, such as the head, do not appear in the map. There is no `layer` to choose: all of them
    count. Corners are not aligned in upsampling, unlike in the authors' program. pytorch-grad-cam normalizes each
    channel separately, which is
    another method.

    Raises:
        ValueError: when called with a network that has no bias on a grid, or that adds constants in a way that cannot
            be seen (by hand, or under `torch.compile`).
    """

    needs_original = True  # folding hides biases

    def __init__(self, **shared: Any) -> None:
        super().__init__(None, "black", **shared)

    def explain(self, classifier: Classifier, image: Tensor, target: Tensor) -> Explanation:
        """See the class."""
        size = (image.shape[2], image.shape[3])
        of_input, of_biases = self.terms(classifier, image, target)
        grids = [grid for term in of_biases if (grid := _grid(term, classifier, image)) is not None]
        if not grids:
            raise ValueError(f"FullGrad needs layers with biases on a grid, but {classifier.name} has none.")
        parts = [_psi(term.to(image.dtype)) for term in [of_input, *grids]]
        return self.finish(torch.stack([upsample(part, size) for part in parts]).sum(0), image, target, parts=parts)

    @staticmethod
    def terms(classifier: Classifier, image: Tensor, target: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The parts of the logit: ``G_x . x`` (B,3,H,W), and ``G_l . b_l`` (B,...) for each layer with a bias."""
        check_uncompiled(classifier, "FullGrad")
        pixels = image.detach().requires_grad_()
        with _Biases() as seen:
            logits = of_class(classifier(pixels), target)
        y_c = logits.sum()
        outputs = [output for output, _ in seen.found]
        # A layer that does not lead to the logit (an auxiliary head's) has no gradient.
        with backward_errors(classifier):
            first, *rest = torch.autograd.grad(y_c, [pixels, *outputs], allow_unused=True)
            if first is None:
                raise RuntimeError("the image appears to not have been used in the graph")  # as torch says it
        # (x - mean)/std . d y/d((x - mean)/std): the standard deviation cancels.
        of_input = first * (pixels.detach() - classifier.mean.to(image).view(-1, 1, 1))
        of_biases = [
            torch.zeros_like(output) if G is None else G * bias
            for G, (output, bias) in zip(rest, seen.found, strict=True)
        ]
        if seen.piecewise_linear:
            _check_complete([of_input, *of_biases], logits.detach(), classifier)
        return of_input, of_biases


def _check_complete(terms: Sequence[Tensor], logits: Tensor, classifier: Classifier) -> None:
    """Check, for a network with piecewise linear functions only, that the terms add up to the logit."""
    B = len(logits)
    terms = [term for term in terms if len(term) == B]
    total = torch.stack([term.flatten(1).sum(1) for term in terms]).sum(0)
    size = torch.stack([term.abs().flatten(1).sum(1) for term in terms]).sum(0)
    rest = (logits - total).abs()
    wrong = rest > _COMPLETE * logits.abs() + _ROUNDING * size
    if wrong.any():
        i = int(wrong.nonzero()[0])
        raise ValueError(
            f"Expected FullGrad's terms of a network of piecewise linear functions to add up to its logit "
            f"{float(logits[i]):.4g}, but those of {classifier.name} add up to {float(total[i]):.4g}: the network adds "
            "constants otherwise than by the bias of a layer of torch (linear, convolution, normalization), which are "
            "not seen. Use a method that needs no biases, such as GradCAM or OptiCAM."
        )


def _psi(term: Tensor) -> Tensor:
    """(B,K,h,w) -> (B,1,h,w): each image's magnitudes, range-normalized over its channels together, then summed."""
    B, K, h, w = term.shape
    return normalize(term.abs().reshape(B, 1, K * h, w)).view(B, K, h, w).sum(1, keepdim=True)


def _grid(term: Tensor, classifier: Classifier, image: Tensor) -> Tensor | None:
    """(B,K,h,w), or None for a term that does not lie on the image's grid."""
    if term.shape[0] != image.shape[0] or term.ndim not in (3, 4):
        return None
    try:
        return classifier.to_grid(term, (image.shape[2], image.shape[3]))
    except ValueError:
        return None


class _Biases(TorchFunctionMode):
    """Collects, while open, the outputs of torch's functions that add a bias, and the bias, shaped to broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Tensor, Tensor]] = []
        self.piecewise_linear = True  # as far as was seen

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor) and output.requires_grad and not _is_piecewise_linear(func, args):
            self.piecewise_linear = False
        if func not in _ARGUMENTS or not output.requires_grad:
            return output
        bias = _bias(dict(zip(_ARGUMENTS[func], args, strict=False)) | (kwargs or {}))
        if bias is None:
            return output
        channels_last = func in (F.linear, F.layer_norm)
        self.found.append(
            (output, bias.detach() if channels_last else bias.detach().view(-1, *[1] * (output.ndim - 2)))
        )
        return output.clone()  # a later layer may modify its input in place


_COMPLETE = 0.02  # share of the logit by which rounding may change the sum of the terms
_ROUNDING = 1e-4  # of the sum of the terms' magnitudes
_KINKED = {"relu", "clamp", "clamp_min", "leaky_relu", "prelu", "abs", "max", "amax", "maximum", "max_pool2d"}
_KINKED |= {"max_pool2d_with_indices", "adaptive_max_pool2d"}


def _is_piecewise_linear(func: Callable[..., Any], args: Sequence[Any]) -> bool:
    """Whether a function is piecewise linear without a constant of its own; unknown functions are not."""
    name = func.__name__
    name = name.strip("_") if name.startswith("__") else name.removesuffix("_")
    if name in PRODUCTS:
        return sum(isinstance(value, Tensor) and value.requires_grad for value in args) < 2
    return name in LINEAR | MOVING | _KINKED


_ARGUMENTS: dict[Any, tuple[str, ...]] = {
    F.linear: ("input", "weight", "bias"),
    F.conv2d: ("input", "weight", "bias"),
    F.conv_transpose2d: ("input", "weight", "bias"),
    F.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    F.group_norm: ("input", "num_groups", "weight", "bias", "eps"),
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    F.instance_norm: ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
}


def _bias(given: dict[str, Any]) -> Tensor | None:
    """The constant that a function of torch, called with these arguments, adds to the part linear in its input."""
    bias: Tensor | None = given.get("bias")
    mean, variance = given.get("running_mean"), given.get("running_var")
    if mean is not None and variance is not None:
        scale = torch.rsqrt(variance + given.get("eps", 1e-5))
        shift = -mean * scale * (1 if given.get("weight") is None else given["weight"])
        bias = shift if bias is None else shift + bias
    return bias
