"""For notebooks and short scripts: a photograph in, a picture out.

import optcam_pl

classifier = optcam_pl.Classifier("torchvision/resnet50")
optcam_pl.explain(classifier, "cat.jpg").overlay().save("overlay.png")
"""

from __future__ import annotations

import base64
import html
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np
import torch
from torch import Tensor

from optcam_pl import explainers as known
from optcam_pl.checks import check_count, nearest
from optcam_pl.data import Batch
from optcam_pl.evaluate.block import BlockResult, evaluate_block, explained_classes
from optcam_pl.evaluate.result import by_name
from optcam_pl.explainers import Explainer, Explanation, OptiCAM
from optcam_pl.explainers.base import Target, check_classifier
from optcam_pl.figures import COLORS, Plot, Tile, contact_sheet
from optcam_pl.network.classifier import Classifier
from optcam_pl.network.errors import ended
from optcam_pl.photos import AnyPhoto, Photo, Resize

Method: TypeAlias = "str | Explainer | type[Explainer]"
_MOST_STEPS = 100
_Word = Literal["predicted", "second", "least"]


def explain(
    classifier: Classifier,
    photo: AnyPhoto,
    method: Method = "OptiCAM",
    target: Target = None,
    *,
    resize: Resize = "stretch",
    evolution: bool | Sequence[int] = False,
    **settings: Any,
) -> Explanation:
    """Explain why a network gives a photograph its class.

    Args:
        classifier: the network.
        photo: a PIL image, the path or the bytes of an image file, an array (H,W,3) of uint8 or of floats in [0,1], or
            a tensor (3,H,W) of either; or several, as a list, an array (B,H,W,3) or a tensor (B,3,H,W). For images of
            other channels see `Classifier.preprocess`.
        method: an explainer, its class, or its name in `optcam_pl.explainers`.
        target: the class to explain: its name, its number, or one of these for each photograph; "predicted" (or None),
            "second" or "least": the most, second most or least probable class. Where each image has its own reference
            (a detection, a region, an estimate to keep), it is left open.
        resize: "stretch": the network sees the whole photograph, resized to its input. "crop": it sees the middle, as
            in most evaluations; the rest is gray in the pictures.
        evolution: for `OptiCAM`, the iterations whose maps are kept for `Explanation.evolution`, at most 100; True
            keeps about ten, more of the first ones. There are none after all images have stopped.
        **settings: the method's settings, if `method` is a name or a class: ``max_iter=50``.

    Returns:
        The maps (B,1,H,W) at the network's input size, with the photographs. A notebook shows it; `overlay` and `plot`
        make pictures at the photographs' own resolution, `boxes` the boxes around what is important.

    Raises:
        TypeError: an argument of another type.
        ValueError: an unknown method, class or setting, or a photograph that cannot be read; the message lists the
            nearest names. Or a photograph has no reference, such as no detection.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> classifier = Classifier(network, mean=0, std=1, input_size=8, class_names=["cat", "dog"])
        >>> photo = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        >>> explanation = explain(classifier, photo, "GradCAM", target="dog")
        >>> explanation.saliency.shape, explanation.names, explanation.overlay().size
        (torch.Size([1, 1, 8, 8]), ('dog',), (40, 30))
    """
    check_classifier(classifier)
    explainer = _explainer(method, settings)
    image, photos = classifier.prepared(photo, resize)
    classes = _classes(classifier, explainer, image, target)
    with _watching(explainer, evolution) as weights:
        explanation = _explained(classifier, explainer, image, photos, classes)
    return explanation if weights is None else _with_steps(classifier, explainer, image, explanation, weights)


def compare(
    classifier: Classifier,
    photo: AnyPhoto,
    methods: Sequence[Method] | Mapping[str, Method] = ("OptiCAM", "GradCAM", "ScoreCAM"),
    target: Target = None,
    *,
    resize: Resize = "stretch",
) -> Comparison:
    """Explain one class of a photograph by several methods, to look at their maps side by side.

    Args:
        classifier: the network.
        photo: one photograph or several, see `explain`.
        methods: explainers, classes or names, possibly by the names to show.
        target: see `explain`; every method explains the same class.
        resize: see `explain`.

    Returns:
        The explanations by method. A notebook shows them as a contact sheet; `plot` makes it.

    Raises:
        TypeError, ValueError: see `explain`.
    """
    check_classifier(classifier)
    chosen = _explainers(methods)
    image, photos = classifier.prepared(photo, resize)
    classes = _classes(classifier, next(iter(chosen.values())), image, target)
    found = {}
    for name, explainer in chosen.items():
        found[name] = replace(_explained(classifier, explainer, image, photos, classes), method=name)
    return Comparison(found)


@dataclass(frozen=True)
class Comparison:
    """The maps of several methods for the same photographs and classes.

    Attributes:
        explanations: method -> its maps.
    """

    explanations: dict[str, Explanation]

    def __getitem__(self, method: str) -> Explanation:
        if method not in self.explanations:
            raise KeyError(f"{method!r}; there are {', '.join(map(repr, self.explanations))}")
        return self.explanations[method]

    def plot(self, *, colors: str = COLORS, opacity: float = 0.5) -> Plot:
        """A contact sheet: a row for each photograph, a column for each method, with p and o under each map.

        p is the probability of the class for the photograph, o for the photograph masked by the map.

        Args:
            colors: name of a matplotlib colormap.
            opacity: the map's share, in [0,1].
        """
        first = next(iter(self.explanations.values()))
        rows = []
        for index, photo in enumerate(first.photos):
            row = [Tile(np.asarray(photo.image), first.names[index], photo.name)]
            for name, explanation in self.explanations.items():
                row.append(explanation.tile(index, title=name, colors=colors, opacity=opacity))
            rows.append(row)
        return contact_sheet(rows, colors, side=2.2)

    def _repr_png_(self) -> bytes:
        return self.plot()._repr_png_()

    def _repr_html_(self) -> str:
        source = base64.b64encode(self._repr_png_()).decode()
        methods = html.escape(", ".join(self.explanations))
        return f'<img alt="maps of {methods}" style="max-width:100%" src="data:image/png;base64,{source}">'


def _explained(
    classifier: Classifier, explainer: Explainer, image: Tensor, photos: Sequence[Photo], classes: Tensor
) -> Explanation:
    own = classifier.scores.per_image  # image i has the column i; then a block takes a word alone
    result = evaluate_block(classifier, explainer, cast(Batch, {"image": image}), "predicted" if own else classes, [])
    _check_references(result, photos)
    probes = result.probes
    return replace(
        result.explanation,
        photos=tuple(photos),
        names=_names(classifier, result),
        method=explainer.title,
        p=probes.original.detach(),
        o=probes.masked.detach(),
        quantity=classifier.quantity,
    )


def _check_references(result: BlockResult, photos: Sequence[Photo]) -> None:
    """Refuse photographs without a reference.

    Raises:
        ValueError: there is one.
    """
    missing = result.references.missing if result.references is not None else ()
    for photo, reason in zip(photos, missing, strict=False):
        if reason:
            raise ValueError(f"There is nothing to explain in {photo.name or 'the photograph'}: {reason}.")


def _names(classifier: Classifier, result: BlockResult) -> tuple[str, ...]:
    if result.references is not None:
        return result.references.names
    return tuple(classifier.class_name(index) for index in result.explanation.target.tolist())


@contextmanager
def _watching(explainer: Explainer, evolution: bool | Sequence[int]) -> Iterator[dict[int, Tensor] | None]:
    """Collect the weights (B,K) of the iterations to keep; None if none are to be kept."""
    if evolution is False:
        yield None
        return
    if not isinstance(explainer, OptiCAM):
        raise TypeError(f"Expected an explainer that optimizes (OptiCAM) for `evolution`, but got {explainer.title}.")
    explainer.check_one_view()
    wanted = _iterations(explainer.max_iter) if evolution is True else [check_count("evolution", t) for t in evolution]
    if len(wanted) > _MOST_STEPS or max(wanted, default=0) > explainer.max_iter:
        raise ValueError(
            f"Expected `evolution` to be at most {_MOST_STEPS} iterations from 0 to max_iter = {explainer.max_iter}, "
            f"but got {len(wanted)} of up to {max(wanted)}."
        )
    found: dict[int, Tensor] = {}
    before = explainer.watch

    def watch(iteration: int, objective: Tensor, weights: Tensor) -> None:
        if before is not None:
            before(iteration, objective, weights)
        if iteration in wanted:
            found[iteration] = weights

    explainer.watch = watch
    try:
        yield found
    finally:
        explainer.watch = before


def _iterations(last: int) -> list[int]:
    """About ten iterations from the first to the last; the map changes most in the beginning.

    >>> _iterations(100)
    [0, 1, 2, 5, 10, 20, 50, 100]
    """
    steps = [digit * 10**power for power in range(len(str(last))) for digit in (1, 2, 5)]
    return [0, *(step for step in steps if step < last), last]


def _with_steps(
    classifier: Classifier, explainer: Explainer, image: Tensor, explanation: Explanation, weights: Mapping[int, Tensor]
) -> Explanation:
    """The explanation with the maps of the weights that were collected."""
    assert isinstance(explainer, OptiCAM)  # see _watching
    steps = []
    with classifier.references({"image": image}):
        for iteration, found in sorted(weights.items()):
            saliency = explainer.from_weights(classifier, image, explanation.target, found).saliency
            steps.append((iteration, saliency))
    return replace(explanation, steps=tuple(steps))


def _classes(classifier: Classifier, explainer: Explainer, image: Tensor, target: Target) -> Tensor:
    """(B,) the classes to explain."""
    word = "predicted" if target is None else target
    if classifier.scores.per_image:
        return _own_column(target, image)
    if isinstance(word, str) and word in get_args(_Word) and word not in (classifier.class_names or ()):
        classifier.check_frozen()
        with torch.no_grad():
            return explained_classes(cast(_Word, word), cast(Batch, {}), classifier(image))
    return explainer.check_target(word, image, classifier)


def _own_column(target: Target, image: Tensor) -> Tensor:
    """(B,) the images' own references."""
    if not (target is None or (isinstance(target, str) and target == "predicted")):
        raise ValueError(
            "Expected `target` to be left open (None or predicted), as each image is explained for its own reference, "
            f"but got {target!r}."
        )
    return torch.arange(len(image), device=image.device)


def _explainers(methods: Sequence[Method] | Mapping[str, Method]) -> dict[str, Explainer]:
    if isinstance(methods, (str, Explainer, type)):
        methods = [methods]
    if isinstance(methods, Mapping):
        return by_name({name: _explainer(method, {}) for name, method in methods.items()})
    return by_name([_explainer(method, {}) for method in methods])


def _explainer(method: Method, settings: Mapping[str, Any]) -> Explainer:
    """The explainer that is meant."""
    if isinstance(method, Explainer):
        if settings:
            raise ValueError(
                f"Expected settings ({', '.join(settings)}) only with a method's name or class, but got an explainer, "
                "which has its own."
            )
        return method
    kind: Any = method
    if isinstance(method, str):
        names = [name for name in known.__all__ if _is_method(getattr(known, name))]
        kind = getattr(known, method, None) if method in names else None
        if kind is None:
            raise ValueError(f"Unknown method {method!r}. The nearest are: {nearest(method, names)}.")
    if not (isinstance(kind, type) and issubclass(kind, Explainer)):
        raise TypeError(f"Expected `method` to be an explainer, its class or its name, but got {method!r}.")
    try:
        return kind(**settings)
    except TypeError as error:
        raise TypeError(
            f"{error}{ended(error)} The settings of {kind.__name__} are: {', '.join(_settings(kind))}."
        ) from error


def _is_method(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Explainer) and not inspect.isabstract(kind)


def _settings(kind: type[Explainer]) -> list[str]:
    """The names of the arguments of a class, with those that it passes on to its base."""
    found: dict[str, None] = {}
    for cls in kind.__mro__:
        if issubclass(cls, Explainer) and "__init__" in vars(cls):
            arguments = inspect.signature(vars(cls)["__init__"]).parameters.values()
            found |= dict.fromkeys(a.name for a in arguments if a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD))
            if not any(a.kind == a.VAR_KEYWORD for a in arguments):  # nothing is passed on
                break
    return [name for name in found if name != "self"]
