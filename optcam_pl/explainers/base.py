"""What an explainer is: `explainer(classifier, image, target) -> Explanation`."""

from __future__ import annotations

import functools
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, TypeAlias, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from optcam_pl.checks import check_number
from optcam_pl.explainers.explanation import Explanation
from optcam_pl.maps import Baseline, Normalizer, baseline_image, degenerate, finite_range, normalize, upsample
from optcam_pl.network.capture import Record, capture, own_grad_mode
from optcam_pl.network.classifier import Classifier
from optcam_pl.network.layers import Layers, fixed_noise, layer_list, layer_name
from optcam_pl.network.plain import Remembers, check_plain, plain
from optcam_pl.network.scores import check_references
from optcam_pl.network.speed import original_of, without_captures
from optcam_pl.photos.advice import conversion, out_of_range, reshaping

__all__ = ["Causes", "Explainer", "Explanation", "Target", "check_classifier", "seen", "why"]

Target: TypeAlias = "Tensor | int | str | Sequence[int] | Sequence[str] | None"

_logger = logging.getLogger(__name__)
_PIXEL_SLACK = 1e-4  # resampling in float32 may leave [0,1] by rounding
Causes: TypeAlias = Sequence[tuple[str, Callable[[], Tensor]]]
"""Why a map carries no information: each reason, and a function that tells which images it holds for (B,).

The function is called only if there is such a map.
"""

_VIEWS = [(mirrored, brightness) for mirrored in (False, True) for brightness in (1.0, 0.9, 1.1)]


class Explainer(Remembers, nn.Module, ABC):
    """A saliency method. Subclasses define the formula (`explain`); this class contains everything they share.

    The steps of a call:

    1. Check image and target, with clear error messages.
    2. Leave the caller's grad or inference mode, with a copy of the image in float32 (float64 stays).
    3. If no target is given, use the predicted class.
    4. `explain`: the method itself. With `augment`, it explains six views of the image for the same class: the image
       and its mirror image, with pixels times 1, 0.9 and 1.1 (clipped at 1). The map is ``s = n(mean_v s_v)``, where
       the maps of mirrored views are mirrored back and n is the range normalization. `weights` and `objective` are
       those of the image itself.
    5. ``s ** selectivity``. It changes how the map masks, not what a method optimizes.

    The result for an image depends only on the image, the target, the network and the explainer's settings. It does not
    depend on the other images of the batch (bit for bit at the same batch size) or on earlier calls. A call leaves
    nothing behind, even after an exception: no hook, no ``.grad``, no changed mode or ``requires_grad``.

    Args:
        layer: the layer (or layers) whose feature maps are used, by its dotted name or as the module itself; None means
            the classifier's `target_layers`.
        baseline: what replaces the image where a mask is 0, for methods that mask ("black", "mean", "blur" or an RGB
            triple). A task passes its own baseline to the explainer, so that one run has one baseline.
        selectivity: alpha of step 5, positive. Above 1, the map keeps less outside its peaks; below 1, more.
        augment: whether step 4 averages over views, which is six times the work. The idea is pytorch-grad-cam's
            `aug_smooth`, which multiplies the normalized image.

    Attributes:
        needs_gradient: whether a method reads the gradient of the logits at its layers.
        needs_original: whether a method needs the network's modules as they were given, and not a faster copy; see
            `speed` of `Classifier`.

    Raises:
        TypeError: an argument of your own explainer cannot be stored with a run; see `settings`.
    """

    needs_gradient: ClassVar[bool] = False
    needs_original: ClassVar[bool] = False
    _unstored: ClassVar[tuple[str, ...]] = ("selectivity", "augment")  # see `changes`

    def __init__(
        self,
        layer: Layers | None = None,
        baseline: Baseline = "black",
        *,
        selectivity: float = 1.0,
        augment: bool = False,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.baseline: Baseline = baseline
        self.augment = augment
        self.selectivity = selectivity

    @property
    def layer(self) -> Layers | None:
        """The layer or layers, as given; a layer given as a module has its name here after a network is explained."""
        if self._layer is None:
            return None
        named = [self._layer_names.get(layer, layer) for layer in layer_list(self._layer[0])]
        return named if isinstance(self._layer[0], (list, tuple)) else named[0]

    @layer.setter
    def layer(self, layer: Layers | None) -> None:
        if layer is not None and not layer_list(layer):
            raise ValueError(f"Expected `layer` to name one layer or several, but got {layer!r}.")
        # In a tuple, because a module as an attribute would become a part of the explainer.
        self._layer = None if layer is None else (layer,)
        self._layer_names: dict[str | nn.Module, str] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a layer that is a module does not become a part of the explainer."""
        if name == "layer":
            object.__setattr__(self, name, value)  # to the property, which nn.Module would bypass for modules
        else:
            super().__setattr__(name, value)

    @property
    def augment(self) -> bool:
        """Whether the map is the mean over views; see the class."""
        return self._augment

    @augment.setter
    def augment(self, augment: bool) -> None:
        if not isinstance(augment, bool):
            raise TypeError(f"Expected `augment` to be True or False, but got {augment!r}.")
        self._augment = augment

    @property
    def selectivity(self) -> float:
        """Exponent of the map; see the class."""
        return self._selectivity

    @selectivity.setter
    def selectivity(self, alpha: float) -> None:
        self._selectivity = check_number("selectivity", alpha, positive=True)

    def forward(self, classifier: Classifier, image: Tensor, target: Target = None) -> Explanation:
        """Explain why `classifier` gives the images their classes.

        Args:
            classifier: the frozen network.
            image: (B,3,H,W) floating, pixels in [0,1], *not* mean/std-normalized.
            target: the class to explain: (B,) int64, a list of numbers or names, one number, or one name from the
                classifier's `class_names`; None means the predicted class.

        Returns:
            An `Explanation` without any graph attached.

        Raises:
            TypeError: the image is not a floating tensor, the target is not integral, or the classifier is a bare
                network.
            ValueError: a shape, pixel or class is invalid, or the network is in training mode or returns no logits.
            NetworkError: the network itself raises an exception.
        """
        check_classifier(classifier)
        check_references(classifier.scores)
        classifier = self.network_for(classifier)
        with own_grad_mode():
            image, target = self.prepare(classifier, image, target)
            return self.select(without_captures(lambda: self._of_views(classifier, image, target)))

    @property
    def compares_classes(self) -> bool:
        """Whether a method reads more than the explained class's score: its probability, or other classes' scores."""
        return False

    @property
    def reads_probability(self) -> bool:
        """Whether a method that `compares_classes` does so only by the probability of the explained class.

        With the link "sigmoid" or "identity", no other class's score is in it.
        """
        return False

    @abstractmethod
    def explain(self, classifier: Classifier, image: Tensor, target: Tensor) -> Explanation:
        """The method itself, with checked arguments and gradients on: `image` (B,3,H,W) is a copy, `target` is (B,)."""

    def _of_views(self, classifier: Classifier, image: Tensor, target: Tensor) -> Explanation:
        """Step 4."""
        if not self.augment:
            return self._checked(self.explain(classifier, image, target), image)
        explanations = []
        for mirrored, brightness in _VIEWS:
            view = (image.flip(3) if mirrored else image) * brightness
            explanations.append(self._checked(self.explain(classifier, view.clamp(0, 1), target), image))
        maps = [e.saliency.flip(3) if m else e.saliency for e, (m, _) in zip(explanations, _VIEWS, strict=True)]
        mean = torch.stack(maps).mean(0)
        silent = degenerate(mean)
        reasons = why(silent, [(_CANCELED, lambda: _any_speaks(explanations)), *_known(explanations)])
        return replace(explanations[0], saliency=normalize(mean), degenerate=silent, reasons=reasons)

    def _checked(self, explanation: Explanation, image: Tensor) -> Explanation:
        """What `explain` has returned.

        Raises:
            TypeError: it is no explanation.
            ValueError: its maps are not one for each image, in the image's size.
        """
        if not isinstance(explanation, Explanation):
            raise TypeError(
                f"Expected `explain` of {self.title} to return an Explanation, as `self.finish(raw, image, target)` "
                f"makes it of raw maps (B,1,h,w), but got {type(explanation).__name__}."
            )
        wanted, shape = (len(image), 1, *image.shape[2:]), tuple(explanation.saliency.shape)
        if shape != wanted or len(explanation.target) != len(image) or len(explanation.degenerate) != len(image):
            raise ValueError(f"Expected maps {wanted} of {self.title}, one for each image, but got {shape}.")
        return explanation

    def select(self, explanation: Explanation) -> Explanation:
        """Step 5."""
        if self.selectivity == 1:
            return explanation
        saliency = explanation.saliency**self.selectivity
        # A map whose maximum is below 1 (from a sigmoid) may underflow to zero.
        lost = degenerate(saliency) & ~explanation.degenerate
        causes: Causes = [(f"its power of {self.selectivity:g} is constant", lambda: lost), *_known([explanation])]
        silent = explanation.degenerate | lost
        return replace(explanation, saliency=saliency, degenerate=silent, reasons=why(silent, causes))

    def check(self, classifier: Classifier) -> None:
        """Check that the method can work on this network, before time is spent on a dataset.

        This implementation explains one noise image. Methods that take many passes check only what they need.

        Raises:
            ValueError: it cannot; the message is the same as in a call.
            TypeError: likewise.
            ImportError: a package is missing.
        """
        self.check_network(classifier)
        classifier = self.network_for(classifier)
        with own_grad_mode():
            self.explain(classifier, *self.prepare(classifier, _noise(classifier), 0))

    @staticmethod
    def check_network(classifier: Classifier) -> None:
        """The part of `check` that all methods need: the network is frozen, returns logits and is a function."""
        check_classifier(classifier)
        classifier.check_frozen()
        classifier.check_function()

    def network_for(self, classifier: Classifier) -> Classifier:
        """The classifier that the method works on: the one with the original modules, if it needs them."""
        if not self.needs_original or classifier.fast is None:
            return classifier
        _tell_original(self.title, classifier.fast.speed)
        return original_of(classifier)

    def check_layers(self, classifier: Classifier) -> None:
        """The part of `check` without the method: the layers are called once and have a grid for each image."""
        self.check_network(classifier)
        for name in self.layers(classifier):
            classifier.check_layer(name, gradient=self.needs_gradient)

    def prepare(self, classifier: Classifier, image: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """Do steps 1 to 3, inside `own_grad_mode`, and return a copy of the image (B,3,H,W) and its target (B,)."""
        check_classifier(classifier)
        self.check_image(image, classifier.channels)
        classifier.check_frozen()
        classifier.check_function((image.shape[2], image.shape[3]))
        image = image.detach().clone()  # a clone made here is not an inference tensor: autograd may save it
        image = image if image.dtype == torch.float64 else image.float()
        if target is None:
            with torch.no_grad():
                target = classifier(image).argmax(1)
        return image, self.check_target(target, image, classifier)

    @property
    def title(self) -> str:
        """The method's name in tables, figures and run folders: its class name."""
        return type(self).__name__

    def settings(self) -> dict[str, object]:
        """The current values of the constructor's arguments: a result depends on them and is printed with them.

        An argument is read from the attribute of the same name; if there is none, the value passed to the constructor
        is used. `selectivity` and `augment` are included if they have an effect. `network.plain.plain` says which
        values are allowed and how they are shown. If your own explainer has other arguments, override this to return
        what its result depends on.
        """
        named = {name: getattr(self, name, given) for name, given in self._given.items()}
        return {name: plain(value) for name, value in named.items()} | self.changes()

    @classmethod
    def check_arguments(cls, given: dict[str, object]) -> None:
        """Refuse arguments that `settings` cannot represent; a class with its own `settings` is responsible itself."""
        if cls.settings is Explainer.settings:
            check_plain(cls.__name__, given)

    def changes(self) -> dict[str, object]:
        """Those of `selectivity` and `augment` that are set."""
        named: dict[str, object] = {} if self.selectivity == 1 else {"selectivity": self.selectivity}
        return named | {"augment": True} if self.augment else named

    def layers(self, classifier: Classifier) -> dict[str, nn.Module]:
        """Dotted name -> module of the layers in use."""
        if self._layer is None:
            return {name: classifier.layer(name) for name in classifier.target_layers}
        chosen = {}
        for layer in layer_list(self._layer[0]):
            if isinstance(layer, nn.Module):
                name = self._name_of(layer, original_of(classifier).network)
                chosen[name] = classifier.layer(name)
            else:
                chosen[layer] = classifier.layer(layer)
        return chosen

    def _name_of(self, layer: nn.Module, network: nn.Module) -> str:
        """The name of a layer that was given as a module; in a copy of its network, the name that it had there."""
        known = self._layer_names.get(layer)
        if known is None or layer in set(network.modules()):
            self._layer_names[layer] = known = layer_name(network, layer)
        return known

    @contextmanager
    def recording(self, classifier: Classifier, *, cut: bool = False) -> Iterator[Record]:
        """`optcam_pl.network.capture.capture` for the layers in use."""
        with capture(self.layers(classifier), cut=cut) as record:
            yield record

    @torch.no_grad()
    def look(self, classifier: Classifier, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """One pass without a gradient: the layers' feature maps [(B,K,h,w)] and the scores (B,C).

        Where the network's passes are replayed, so is this one.
        """

        def look(image: Tensor) -> tuple[Tensor, ...]:
            with self.recording(classifier) as record:
                scores = classifier(image)
                return (scores, *self.grids(record, classifier, image))

        # What is bound for a while, a method's own scores or each image's references, would stay in the capture.
        bound = classifier.transform.value is not None or classifier.scores.per_image
        if classifier.fast is None or bound:
            scores, *features = look(image)
        else:
            scores, *features = classifier.fast.replayed((classifier, *self.layers(classifier)), look, image)
        return features, scores

    def reference(self, classifier: Classifier, image: Tensor) -> Tensor | None:
        """The image that masking fades into; None means black."""
        return None if self.baseline == "black" else baseline_image(image, self.baseline, classifier.mean)

    @staticmethod
    def grids(record: Record, classifier: Classifier, image: Tensor) -> list[Tensor]:
        """The recorded activations as [(B,K,h,w)] in the image's dtype, tokens laid on their grid."""
        size = (image.shape[2], image.shape[3])
        recorded = zip(record.names, record.of_images(len(image)), strict=True)
        grids = [classifier.to_grid(activation, size, name).to(image.dtype) for name, activation in recorded]
        # What a network has made in an inference mode of its own cannot be saved for a backward pass.
        return [grid.clone() if grid.is_inference() else grid for grid in grids]

    @staticmethod
    def finish(
        raw: Tensor,
        image: Tensor,
        target: Tensor,
        how: Normalizer = "range",
        *,
        parts: Sequence[Tensor] | None = None,
        causes: Causes = (),
    ) -> Explanation:
        """Upsample a map to the image size, normalize it, and determine which maps are degenerate and why.

        Args:
            raw: (B,1,h,w).
            image: (B,3,H,W).
            target: (B,).
            how: the normalizer.
            parts: the maps (B,1,h,w), before upsampling, whose sum is `raw`, if there are several. If all of them are
                degenerate, so is the map.
            causes: known reasons why a map carries no information, besides those seen in the map itself; see `why`.
        """
        _check_raw(raw, image)
        raw = raw.detach() if raw.is_floating_point() else raw.to(image.dtype)
        full = upsample(raw, (image.shape[2], image.shape[3]))
        sources = [raw] if parts is None else parts
        silent = degenerate(full, how) | torch.stack([degenerate(part) for part in sources]).all(0)
        saliency = normalize(full, how, silent.view(-1, 1, 1, 1))
        return Explanation(saliency, target, silent, reasons=why(silent, [*seen(raw, image, sources), *causes]))

    @staticmethod
    def check_image(image: Tensor, channels: int = 3) -> None:
        """Check that the image is (B,channels,H,W), floating, finite and in [0,1]."""
        if not isinstance(image, Tensor) or not image.is_floating_point():
            what = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(
                f"Expected `image` to be a floating tensor with pixels in [0, 1], but got {what}." + conversion(image)
            )
        if image.ndim != 4 or image.shape[1] != channels or image.numel() == 0:
            shape = tuple(image.shape)
            advice = reshaping(shape, channels)
            raise ValueError(f"Expected `image` to have shape (B,{channels},H,W), but got {shape}.{advice}")
        low, high = finite_range(image)
        if not (low >= -_PIXEL_SLACK and high <= 1 + _PIXEL_SLACK):
            if math.isnan(low):
                raise ValueError("Expected `image` to have finite pixels in [0, 1], but got NaN.")
            raise ValueError(
                f"Expected `image` to have pixels in [0, 1], before mean/std normalization (the classifier does that "
                f"itself), but got values from {low:.4g} to {high:.4g}.{out_of_range(low, high)}"
            )

    @staticmethod
    def check_target(
        target: Tensor | int | str | Sequence[int] | Sequence[str], image: Tensor, classifier: Classifier
    ) -> Tensor:
        """(B,) int64 with 0 <= target < C."""
        if isinstance(target, str):
            target = classifier.class_index(target)
        elif _has_names(target):
            target = [classifier.class_index(name) if isinstance(name, str) else name for name in target]
        try:
            given = torch.as_tensor(target, device=image.device)
        except (RuntimeError, TypeError, ValueError) as error:
            raise TypeError(
                f"Expected `target` to be a class's number or name, or one of these for each image, but got {target!r}."
                " A function of the output, such as a target of pytorch-grad-cam, is given to the Classifier, as one of"
                " its `scores`."
            ) from error
        if given.is_floating_point() or given.dtype == torch.bool:
            raise TypeError(f"Expected `target` to hold class indices (int64), but got {given.dtype}.")
        batch, classes = image.shape[0], classifier.num_classes
        if given.ndim == 0:
            given = given.expand(batch)
        if given.shape != (batch,):
            raise ValueError(f"Expected `target` to have shape ({batch},), one class an image, but got {given.shape}.")
        wrong = given[(given < 0) | (given >= classes)]
        if wrong.numel():
            raise ValueError(f"Expected `target` to be in 0..{classes - 1}, but got {wrong.tolist()}.")
        return given.to(torch.int64).clone()


def _has_names(target: Any) -> TypeGuard[Sequence[Any]]:
    """Whether it is a list of classes, some of which are names."""
    return isinstance(target, (list, tuple, np.ndarray)) and any(isinstance(name, str) for name in target)


def _check_raw(raw: Any, image: Tensor) -> None:
    """Check that an own method's maps are (B,1,h,w)."""
    if not isinstance(raw, Tensor):
        raise TypeError(f"Expected the raw maps to be a tensor (B,1,h,w), but got {type(raw).__name__}.")
    if raw.ndim != 4 or raw.shape[:2] != (len(image), 1) or not raw.numel():
        channels = raw.ndim == 4 and len(raw) == len(image)
        advice = " Sum over the channels, raw.sum(1, keepdim=True), or choose one." if channels else ""
        raise ValueError(
            f"Expected the raw maps to be (B,1,h,w), one for each of {len(image)} images, but got {tuple(raw.shape)}."
            f"{advice}"
        )


def joined(each: Sequence[Explanation]) -> Explanation:
    """The explanations of images that were explained one after the other, as those of one batch."""

    def column(name: str, dim: int = 0) -> Tensor | None:
        parts = [getattr(explanation, name) for explanation in each]
        return None if any(part is None for part in parts) else torch.cat(parts, dim)

    reasons = tuple(reason for e in each for reason in (e.reasons or ("",) * len(e.target)))
    saliency, target, silent = (
        torch.cat([getattr(e, key) for e in each]) for key in ("saliency", "target", "degenerate")
    )
    return Explanation(
        saliency, target, silent, column("weights"), column("objective", 1), reasons if any(reasons) else ()
    )


def check_classifier(classifier: Classifier) -> None:
    """Refuse a bare network.

    Raises:
        TypeError: it is no `Classifier`.
    """
    if not isinstance(classifier, Classifier):
        raise TypeError(
            f"Expected `classifier` to be an optcam_pl.Classifier, but got {type(classifier).__name__}"
            + (
                ": wrap the network, Classifier(network, mean=..., std=...), with mean and std as it was trained with."
                if isinstance(classifier, nn.Module)
                else "."
            )
        )


@functools.cache
def _tell_original(title: str, speed: str) -> None:
    """Say once that a method gains nothing from a setting."""
    _logger.info("%s needs the network's own modules: it runs on the plain network, not with `speed` %s.", title, speed)


def why(silent: Tensor, causes: Causes) -> tuple[str, ...]:
    """The reason for each degenerate map: the first cause that holds for it; () if no map is degenerate.

    >>> why(torch.tensor([True, False, True]), [("so", lambda: torch.tensor([True, True, False]))])
    ('the map is constant: so', '', 'the map is constant')
    """
    if not bool(silent.any()):
        return ()
    reasons = ["the map is constant" if says_nothing else "" for says_nothing in silent.tolist()]
    for words, holds in reversed(causes):
        whole = words if words.startswith("the map") else f"the map is constant: {words}"
        chosen = (holds() & silent).tolist()
        reasons = [whole if this else reason for this, reason in zip(chosen, reasons, strict=True)]
    return tuple(reasons)


def seen(raw: Tensor, image: Tensor, parts: Sequence[Tensor]) -> Causes:
    """The causes, seen in a map (B,1,h,w) and its parts, for a map that carries no information."""
    single = all(part.shape[-2:] == (1, 1) for part in parts)
    grid = f"the layer's grid is 1 x 1 for images of {image.shape[2]} x {image.shape[3]} pixels"
    return [
        ("the map is not finite", lambda: ~torch.isfinite(raw).flatten(1).all(1)),
        (grid, lambda: torch.full((len(raw),), single, device=raw.device)),
    ]


_CANCELED = "the maps of the mirrored and brightened views cancel out"


def _any_speaks(explanations: Sequence[Explanation]) -> Tensor:
    """(B,): whether the map of any view carries information."""
    return ~torch.stack([explanation.degenerate for explanation in explanations]).all(0)


def _known(explanations: Sequence[Explanation]) -> Causes:
    """The reasons that explanations already have; those of the first explanation come first."""
    causes: list[tuple[str, Callable[[], Tensor]]] = []
    for explanation in explanations:
        for words in dict.fromkeys(filter(None, explanation.reasons)):
            causes.append((words, functools.partial(_has_reason, explanation, words)))
    return causes


def _has_reason(explanation: Explanation, words: str) -> Tensor:
    """(B,): the images that have this reason."""
    return torch.tensor([reason == words for reason in explanation.reasons], device=explanation.degenerate.device)


def _noise(classifier: Classifier) -> Tensor:
    """A noise image (1,3,H,W) of the classifier's size, dtype and device; it is always the same."""
    return fixed_noise(1, classifier.channels, *classifier.input_size).to(classifier.mean)
