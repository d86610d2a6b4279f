"""Other people's methods as explainers: any Captum attribution, and your own function.

Shape letters: B images, K channels, H x W image, M superpixels, n samples.
"""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from types import FunctionType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from optcam_pl.checks import check_choice, check_number, check_positive, nearest
from optcam_pl.explainers.base import Explainer, Explanation
from optcam_pl.explainers.isolation import seeded, untouched
from optcam_pl.explainers.rules import FAMILIES, Watch, check_modules
from optcam_pl.maps import Baseline, baseline_image, check_baseline
from optcam_pl.network.capture import tensor_of
from optcam_pl.network.classifier import Classifier
from optcam_pl.network.copies import shell_of
from optcam_pl.network.errors import backward_errors
from optcam_pl.network.layers import Layers
from optcam_pl.threads import process_wide

Reduction: TypeAlias = Literal["sum", "mean", "max"]
Sign: TypeAlias = Literal["positive", "absolute", "all"]
Segments: TypeAlias = Literal["slic", "grid"]
Output: TypeAlias = Literal["logit", "probability"]
# Plain values only: for a value of type Any, a command line would create an object of any class.
Scalar: TypeAlias = bool | int | float | str | None
Arguments: TypeAlias = dict[str, Scalar | list[Scalar]]
if TYPE_CHECKING:
    SaliencyFunction: TypeAlias = Callable[[Classifier, Tensor, Tensor], Tensor]
else:
    SaliencyFunction = FunctionType  # what a command line sees: a type that it cannot create or import

# Methods that draw no random numbers and keep images apart get the whole batch; all others get one image at a time.
_BATCHED = {
    *("Saliency", "InputXGradient", "IntegratedGradients", "GuidedBackprop", "Deconvolution", "DeepLift", "LRP"),
    *("Occlusion", "FeatureAblation", "GuidedGradCam", "LayerGradCam", "LayerGradientXActivation", "LayerActivation"),
}
_HOOKS_WARNING = "Setting (forward, )?backward hooks"
# These do not explain a single image: they compare the images of a batch, or explain a neuron.
_REFUSED = ("FeaturePermutation", "LayerFeaturePermutation", "LimeBase", "Neuron")


class CaptumExplainer(Explainer):
    """Any attribution method of Captum, by its name.

    1. The attribution of the whole batch or, where the method draws random numbers, of one image at a time, each from
       the same seed. Thus an image's map does not depend on the other images.
    2. `reduction` over the channels. A layer's attribution is laid on its grid.
    3. `sign`.
    4. `smoothing`.
    5. The map is upsampled to the image, then range-normalized.

    Gradients are taken with respect to the image. All hooks that a method puts on the network are removed again, also
    after an exception. The random number generators of torch, numpy and Python are restored. Calls in several threads
    on one network take turns; calls of methods that draw random numbers take turns across all networks.

    Args:
        method: "IntegratedGradients", or "captum.attr.IntegratedGradients". Only attributions of `captum.attr`.
        method_args: further arguments of its constructor; the network and the layer are passed automatically.
        attribute_args: further arguments of its `attribute`. The image and the target are passed automatically, and so
            are `baselines` (the `baseline`) and `feature_mask` (the `segments`) if the method takes them. Lists become
            tuples.
        wrapper: an attribution around the method; "NoiseTunnel" turns a gradient into SmoothGrad. `attribute_args` may
            name the arguments of both.
        layer: for layer attributions; see `Explainer`.
        segments: superpixels for methods that take a `feature_mask`: "slic" (scikit-image) or "grid" (rectangles).
        num_segments: approximate number of superpixels.
        reduction: "sum" or "mean" over the channels, or "max", the largest magnitude (Simonyan et al., 2014).
        sign: which values count after that: the "positive" part, "absolute" values, or "all" (the map then shows the
            most negative place as 0).
        smoothing: sigma of a Gaussian filter, in pixels of the attribution; 0 is none.
        output: what is explained, the class's logit or its probability.
        seed: seed of the random numbers.
        baseline: see `Explainer`.

    Raises:
        ImportError: Captum is not installed.
        ValueError: there is no such attribution or argument; when called or checked: the method has rules for modules
            (guided backpropagation, deconvolution, DeepLift, LRP), but the network calls plain functions, or a module
            twice, which would silently keep the plain gradient; a DeepLift does not add up to ``f(x) - f(x')``.
        TypeError: when called: LRP has no rule for a module of the network.
    """

    def __init__(
        self,
        method: str,
        method_args: Arguments | None = None,
        attribute_args: Arguments | None = None,
        wrapper: str | None = None,
        layer: Layers | None = None,
        segments: Segments | None = None,
        num_segments: int = 50,
        reduction: Reduction = "sum",
        sign: Sign = "positive",
        smoothing: float = 0.0,
        output: Output = "logit",
        seed: int = 0,
        baseline: Baseline = "black",
        **shared: Any,
    ) -> None:
        super().__init__(layer, check_baseline(baseline), **shared)
        check_choice("segments", segments, (*get_args(Segments), None))
        self.method, self.wrapper = method, wrapper
        self.method_args, self.attribute_args = dict(method_args or {}), dict(attribute_args or {})
        self.segments, self.num_segments = segments, check_positive("num_segments", num_segments)
        self.reduction: Reduction = check_choice("reduction", reduction, Reduction)
        self.sign: Sign = check_choice("sign", sign, Sign)
        self.output: Output = check_choice("output", output, Output)
        self.smoothing, self.seed = float(check_number("smoothing", smoothing)), seed
        self._class = attribution_class(method)
        self._wrapper = None if wrapper is None else attribution_class(wrapper)
        self._takes = self._check_arguments()
        self.needs_original = self._class.__name__ in FAMILIES  # type: ignore[misc]  # rules belong to modules
        self._told: set[str] = set()  # warnings that were already given

    @property
    def title(self) -> str:
        """Captum's class, preceded by its wrapper: "NoiseTunnel-Saliency"."""
        if type(self) is not CaptumExplainer:
            return super().title
        return "-".join(kind.__name__ for kind in (self._wrapper, self._class) if kind is not None)

    @property
    def compares_classes(self) -> bool:
        """See `Explainer`: a probability does."""
        return self.output == "probability"

    @property
    def reads_probability(self) -> bool:
        """See `Explainer`."""
        return self.output == "probability"

    def _check_arguments(self) -> set[str]:
        """Check all names that were given; return those that `attribute` takes."""
        for kind, wraps in ((self._class, False), (self._wrapper, True)):
            if kind is not None and ("attribution_method" in _parameters(kind.__init__)) != wraps:
                raise ValueError(
                    f"Expected `wrapper` to be an attribution around another one, such as NoiseTunnel, and `method` to "
                    f"be one by itself, but got {kind.__name__} as `{'wrapper' if wraps else 'method'}`."
                )
        if self.output != "logit" and self._class.__name__ in FAMILIES:
            raise ValueError(
                f"Expected `output` to be 'logit' for {self.method}, whose rules end at the network's output."
            )
        takes = _parameters(self._class.attribute) | (_parameters(self._wrapper.attribute) if self._wrapper else set())
        for key, given, known in (
            ("method_args", self.method_args, _parameters(self._class.__init__)),
            ("attribute_args", self.attribute_args, takes),
        ):
            for name in given:
                if name not in known or name in ("inputs", "target", "kwargs"):
                    raise ValueError(
                        f"Unknown name {name!r} in `{key}` of {self.method}. The nearest are: {nearest(name, known)}."
                    )
        if self.segments is not None and "feature_mask" not in takes:
            raise ValueError(f"Expected `segments` to be None for {self.method}, which takes no `feature_mask`.")
        return takes

    def explain(self, classifier: Classifier, image: Tensor, target: Tensor) -> Explanation:
        """Steps 1 to 5; see the class."""
        raw = self.raw_map(classifier, image, target)
        zero = "the attribution is 0 everywhere" + (", or speaks against the class" if self.sign == "positive" else "")
        return self.finish(raw, image, target, causes=[(zero, lambda: ~raw.flatten(1).any(1))])

    def raw_map(self, classifier: Classifier, image: Tensor, target: Tensor) -> Tensor:
        """Steps 1 to 4: (B,1,h,w) before upsampling and normalization."""
        # DeepLift puts hooks on the very object that it calls, where passes of other threads would run them: those wait
        # only inside of it.
        classifier, step = shell_of(classifier), image.shape[0] if self._sees_batch() else 1
        layers = self._layers(classifier)
        _ignore_hooks_warning()
        with nullcontext() if self._sees_batch() else process_wide(), untouched(classifier):
            pairs = zip(torch.split(image, step), torch.split(target, step), strict=True)
            parts = [self._attribute(classifier, x, c, layers) for x, c in pairs]
        a = torch.cat(parts).detach().to(image.dtype)
        a = a.abs().amax(1, True) if self.reduction == "max" else getattr(a, self.reduction)(1, keepdim=True)
        a = a.clamp(min=0) if self.sign == "positive" else a.abs() if self.sign == "absolute" else a
        return smooth(a, self.smoothing)

    def check(self, classifier: Classifier) -> None:
        """See `Explainer.check`; it skips the attribution, unless rules for modules have to be watched in it."""
        self.check_network(classifier)
        if self._layers(classifier):
            self.check_layers(classifier)
        if self._class.__name__ in FAMILIES:
            super().check(classifier)
        if self.segments is not None:
            superpixels(torch.zeros(3, 2, 2, device="cpu"), self.segments, 1)

    def _layers(self, classifier: Classifier) -> dict[str, nn.Module]:
        """The layer of a layer attribution; empty for other methods."""
        layers = self.layers(classifier) if "layer" in _parameters(self._class.__init__) else {}
        if len(layers) > 1:
            raise ValueError(f"Expected one `layer` for {self.method}, but got {len(layers)}.")
        return layers

    def _sees_batch(self) -> bool:
        """Whether the method may get the whole batch; such methods draw no random numbers."""
        return self._class.__name__ in _BATCHED and self._wrapper is None and self.segments is None

    def _attribute(
        self, classifier: Classifier, image: Tensor, target: Tensor, layers: Mapping[str, nn.Module]
    ) -> Tensor:
        """Step 1, for some images: (b,K,h,w)."""
        image = image.detach().clone().requires_grad_(issubclass(self._class, _captum().GradientAttribution))
        model = classifier if self.output == "logit" else classifier.probabilities
        arguments = {"target": target, **self.call_args(classifier, image)}

        def attribute() -> Tensor:
            method = self._class(model, *layers.values(), **self.constructor_args())
            method = method if self._wrapper is None else self._wrapper(method)
            given = {name: value for name, value in arguments.items() if name in self._takes}
            with backward_errors(classifier, list(layers)):
                return tensor_of(method.attribute(image, **given))

        with nullcontext() if self._sees_batch() else seeded(self.seed, image.device):
            if self._class.__name__ in FAMILIES:
                attribution = self._by_rules(attribute, classifier, target, next(iter(layers.values()), None))
            else:
                attribution = attribute()
        if not issubclass(self._class, _captum().LayerAttribution):
            return attribution
        name = next(iter(layers))
        if attribution.ndim == 3 and attribution.shape[1] == 1:  # Captum takes the first axis for the channels
            raise ValueError(f"Expected {self.method} on a layer with maps (B,K,h,w), but {name!r} has tokens.")
        return classifier.to_grid(attribution, (image.shape[2], image.shape[3]), name)

    def _by_rules(
        self, attribute: Callable[[], Tensor], classifier: Classifier, target: Tensor, layer: nn.Module | None
    ) -> Tensor:
        """The attribution, with a check whether its rules hold for everything that the network calls."""
        watch = Watch(self._class.__name__, classifier, None if self._class.__name__ == "GuidedGradCam" else layer)
        check_modules(watch.method, classifier)
        try:
            with watch.watching():
                attribution = attribute()
        except Exception as error:  # Captum raises anything where a rule does not apply
            if (why := watch.violation()) is not None:
                raise ValueError(why) from error
            raise
        if (why := watch.violation()) is not None:
            raise ValueError(why)
        if (note := watch.unchanged()) is not None and note not in self._told:
            self._told.add(note)
            warnings.warn(note, stacklevel=2)
        if self._wrapper is None and self.method_args.get("multiply_by_inputs", True):
            watch.check_complete(attribution, target)
        # Restore the relevance of the normalized pixel: Captum divides it by the standard deviation on its way to the
        # pixel.
        return attribution * classifier.std.to(attribution).view(-1, 1, 1) if watch.method == "LRP" else attribution

    def constructor_args(self) -> dict[str, Any]:
        """The further arguments of the method's constructor."""
        return _tuples(self.method_args)

    def call_args(self, classifier: Classifier, image: Tensor) -> dict[str, Any]:
        """Arguments for `attribute`; the caller drops those that it does not take."""
        reference = baseline_image(image.detach(), self.baseline, classifier.mean).expand_as(image).contiguous()
        # DeepLiftShap insists on a distribution, so pass the one reference twice.
        arguments: dict[str, Any] = {"baselines": reference.repeat(2 if "DeepLiftShap" in self.method else 1, 1, 1, 1)}
        if self.segments is not None:
            arguments["feature_mask"] = superpixels(image[0].detach(), self.segments, self.num_segments)[None, None]
        return arguments | _tuples(self.attribute_args)


class LIME(CaptumExplainer):
    r"""LIME (Ribeiro, Singh, Guestrin, KDD 2016): a linear model of the network, around the image, over superpixels.

    A random half of the M superpixels, ``z`` in {0,1}^M, is replaced by the baseline, n times. A ridge regression of
    the class's probability on z follows, weighted by ``sqrt(exp(-d^2 / kernel_width^2))``, where d is the cosine
    distance of z from ones (as in the authors' program). The map shows each superpixel's coefficient.

    The Opti-CAM paper leaves LIME's settings open. The defaults here are those of the authors' program (n = 1000, width
    0.25, ridge penalty 1, every superpixel), with two exceptions: the superpixels (quickshift there, SLIC here) and
    their replacement (their mean color there, the run's baseline here).

    Args:
        segments: "slic" (scikit-image, in the extra `optcam_pl[demo]`) or "grid" (rectangles).
        num_segments: M, approximately.
        n_samples: n.
        kernel_width: width of the kernel that weights the samples.
        ridge: penalty on the squared coefficients.
        chunk_size: perturbed images in one forward pass.
        sign: see `CaptumExplainer`; "positive" shows evidence for the class.
        output: see `CaptumExplainer`.
        seed: see `CaptumExplainer`.
        baseline: see `Explainer`.
        selectivity: exponent of the map, see `Explainer`.
        augment: whether the map is the mean over views, see `Explainer`; six times the work.
    """

    def __init__(
        self,
        segments: Segments = "slic",
        num_segments: int = 50,
        n_samples: int = 1000,
        kernel_width: float = 0.25,
        ridge: float = 1.0,
        chunk_size: int = 32,
        sign: Sign = "positive",
        output: Output = "probability",
        seed: int = 0,
        baseline: Baseline = "black",
        *,
        selectivity: float = 1.0,
        augment: bool = False,
    ) -> None:
        check_positive("n_samples", n_samples)
        check_positive("chunk_size", chunk_size)
        check_number("kernel_width", kernel_width, positive=True)
        check_number("ridge", ridge, positive=True)
        check_choice("segments", segments, Segments)
        calls: Arguments = {"n_samples": n_samples, "perturbations_per_eval": chunk_size}
        super().__init__(
            "Lime",
            attribute_args=calls,
            segments=segments,
            num_segments=num_segments,
            sign=sign,
            output=output,
            seed=seed,
            baseline=baseline,
            selectivity=selectivity,
            augment=augment,
        )
        self.n_samples, self.chunk_size = n_samples, chunk_size
        self.kernel_width, self.ridge = kernel_width, ridge

    def constructor_args(self) -> dict[str, Any]:
        """The weights and the linear model."""
        weight = functools.partial(_lime_weight, width=self.kernel_width)
        return {"interpretable_model": _Ridge(self.ridge), "similarity_func": weight}


class GradientSHAP(CaptumExplainer):
    """GradientSHAP (Lundberg and Lee, NeurIPS 2017, as in Captum).

    ``mean of (x + e - x') . grad f_c(x' + t (x + e - x'))``, summed over the channels, where t is uniform in [0,1], e
    is Gaussian noise and x' is the baseline. The Opti-CAM paper leaves samples, noise, reference images and the
    handling of signs open. The defaults here are those of Captum's vision tutorial, n = 50 and deviation 0.0001, with
    one reference, the run's baseline. The map shows evidence for the class.

    In bfloat16 the map correlates with float32's by 0.92, as Integrated Gradients' does: gradients of single pixels
    carry the rounding of all layers, which differs from pixel to pixel. It is less than what another `seed` changes
    (0.84 with 16 samples), and a `smoothing` of 4 pixels averages it out (0.99).

    Args:
        n_samples: n, all in one forward and backward pass.
        stdevs: standard deviation of e, in pixels of [0,1].
        sign: see `CaptumExplainer`.
        smoothing: see `CaptumExplainer`.
        seed: see `CaptumExplainer`.
        baseline: see `Explainer`.
        selectivity: exponent of the map, see `Explainer`.
        augment: whether the map is the mean over views, see `Explainer`; six times the work.
    """

    def __init__(
        self,
        n_samples: int = 50,
        stdevs: float = 1e-4,
        sign: Sign = "positive",
        smoothing: float = 0.0,
        seed: int = 0,
        baseline: Baseline = "black",
        *,
        selectivity: float = 1.0,
        augment: bool = False,
    ) -> None:
        check_positive("n_samples", n_samples)
        check_number("stdevs", stdevs)
        calls: Arguments = {"n_samples": n_samples, "stdevs": stdevs}
        super().__init__(
            "GradientShap",
            attribute_args=calls,
            sign=sign,
            smoothing=smoothing,
            seed=seed,
            baseline=baseline,
            selectivity=selectivity,
            augment=augment,
        )
        self.n_samples, self.stdevs = n_samples, stdevs


class CallableExplainer(Explainer):
    """Your own function as an explainer, from Python only: a configuration cannot name a function to run.

    Args:
        function: ``f(classifier, image, target) -> map`` with `image` (B,3,H,W) in [0,1] and `target` (B,), called with
            gradients enabled. The map has the shape (B,H,W), (B,1,H,W) or (B,1,h,w); it is upsampled and
            range-normalized here. The function may put hooks on the network: calls in several threads take turns, and
            no other thread uses the classifier meanwhile. So it must not wait for threads of its own that use the
            classifier.

    Raises:
        TypeError: `function` is not a function.

    >>> explainer = CallableExplainer(lambda classifier, image, target: image.mean(1))
    >>> explainer(Classifier(nn.Flatten(), input_size=2), torch.arange(12.0).view(1, 3, 2, 2) / 12).saliency.flatten()
    tensor([0.0000, 0.3333, 0.6667, 1.0000])
    """

    needs_original = True  # the function may look for modules of its own

    def __init__(self, function: SaliencyFunction, **shared: Any) -> None:
        super().__init__(None, "black", **shared)
        if not callable(function):
            raise TypeError(
                f"Expected `function` to be a function of (classifier, image, target), but got {function!r}."
            )
        self.function = function

    @property
    def title(self) -> str:
        """The function's name."""
        return str(getattr(self.function, "__name__", type(self.function).__name__))

    def settings(self) -> dict[str, object]:
        """See `Explainer.settings`; the function is given by its name."""
        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        return {"function": name, **self.changes()}

    def explain(self, classifier: Classifier, image: Tensor, target: Tensor) -> Explanation:
        """Call the function and check what it returns."""
        with process_wide(), untouched(classifier):
            raw = self.function(classifier, image, target)
        if not isinstance(raw, Tensor):
            raise TypeError(f"Expected the function to return a tensor, but got {type(raw).__name__}.")
        full = raw.unsqueeze(1) if raw.ndim == 3 else raw
        if full.ndim != 4 or full.shape[:2] != (image.shape[0], 1):
            raise ValueError(
                f"Expected the function to return a map (B,H,W) or (B,1,h,w) for {image.shape[0]} images, but got the "
                f"shape {tuple(raw.shape)}."
            )
        return self.finish(full.to(image), image, target)


def attribution_class(name: str) -> type[Any]:
    """An attribution of `captum.attr` by its name, and nothing else: a configuration cannot run other code with it.

    Raises:
        ImportError: Captum is not installed.
        ValueError: there is no such attribution, or it does not explain single images.
    """
    if not isinstance(name, str):
        raise TypeError(f"Expected the name of an attribution in captum.attr, but got {type(name).__name__}.")
    captum, short = _captum(), name.removeprefix("captum.attr.")
    known = {
        key: value
        for key, value in vars(captum).items()
        if isinstance(value, type)
        and issubclass(value, captum.Attribution)
        and not key.endswith("Attribution")
        and not key.startswith(_REFUSED)
    }
    if short not in known:
        raise ValueError(
            f"Expected an attribution of captum.attr that explains single images, but got {name!r}. The nearest are: "
            f"{nearest(short, known)}."
        )
    return known[short]


def superpixels(image: Tensor, how: Segments, count: int) -> Tensor:
    """Numbered segments of an image.

    Args:
        image: (3,H,W) in [0,1].
        how: "slic" (Achanta et al., 2012; compactness 10) or "grid", rectangles of equal size.
        count: approximate number of segments.

    Returns:
        (H,W) int64 with every number from 0 to M-1.

    Raises:
        ImportError: "slic" without scikit-image.

    >>> superpixels(torch.zeros(3, 2, 4), "grid", 2)
    tensor([[0, 0, 1, 1],
            [0, 0, 1, 1]])
    """
    height, width = image.shape[1:]
    if how == "grid":
        rows = min(height, max(1, round(math.sqrt(count * height / width))))
        columns = min(width, max(1, round(count / rows)))
        row, column = (torch.arange(n, device="cpu") * cells // n for n, cells in ((height, rows), (width, columns)))
        return (row.unsqueeze(1) * columns + column).to(image.device)
    try:
        from skimage.segmentation import slic
    except ImportError as error:
        raise ImportError(
            "SLIC superpixels need scikit-image: pip install 'optcam_pl[demo]', or take segments='grid'."
        ) from error
    labels = slic(image.permute(1, 2, 0).double().cpu().numpy(), n_segments=count, compactness=10, start_label=0)
    return torch.from_numpy(np.unique(labels, return_inverse=True)[1].reshape(height, width)).to(image.device)


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian filter of maps (B,1,h,w), cut off at 3 sigma or the map's size, borders reflected; 0 means no filter."""
    if sigma == 0:
        return maps
    sizes = [2 * max(0, min(math.ceil(3 * sigma), side - 1)) + 1 for side in (maps.shape[3], maps.shape[2])]
    filtered: Tensor = gaussian_blur(maps, sizes, [sigma, sigma])
    return filtered


class _Ridge:
    """Weighted ridge regression in closed form, with the interface of a linear model for Captum's LIME."""

    def __init__(self, penalty: float) -> None:
        self._penalty, self._coefficients = penalty, torch.empty(0)

    def fit(self, data: Any) -> None:
        """`data` yields z (n,M), y (n) and weights (n), all samples at once."""
        z, y, weight = (values.double() for values in next(iter(data)))
        weight = weight.flatten()
        center = (weight @ z) / weight.sum()
        z, y = z - center, y.flatten() - (weight @ y.flatten()) / weight.sum()
        gram = z.T @ (weight.unsqueeze(1) * z) + self._penalty * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        self._coefficients = torch.linalg.solve(gram, z.T @ (weight * y))

    def representation(self) -> Tensor:
        """(M,) the coefficients."""
        return self._coefficients


def _lime_weight(_image: Tensor, _perturbed: Tensor, z: Tensor, *, width: float, **_others: Any) -> Tensor:
    """``sqrt(exp(-d^2 / width^2))``, d = 1 - cos(z, 1) for z (1,M) in {0,1}."""
    distance = 1 - z.double().mean().sqrt()
    return torch.exp(-(distance**2) / width**2 / 2).view(1)


def _ignore_hooks_warning() -> None:
    """Silence Captum's warning that it puts hooks on the network, because they are removed again.

    The filter stays for good, because `warnings.catch_warnings` is not thread-safe: now and then it would restore
    another thread's filters.
    """
    for _, text, category, *_ in warnings.filters:
        if getattr(text, "pattern", text) == _HOOKS_WARNING:
            return
        if text is None and issubclass(UserWarning, category):
            break  # takes precedence over ours
    warnings.filterwarnings("ignore", _HOOKS_WARNING, UserWarning)


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError as error:
        raise ImportError("Captum's attributions need captum: pip install 'optcam_pl[captum]'.") from error
    return captum.attr


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self"}


def _tuples(arguments: Arguments) -> dict[str, Any]:
    """Turn lists, which configuration files contain, into tuples, which Captum expects."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
