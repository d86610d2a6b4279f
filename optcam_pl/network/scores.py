"""What number of a network's output is explained, and its link to a probability.

A network returns what it likes: class logits, one logit, a real number, boxes, an embedding. `Scores` turns it into
numbers (B,C): explainers raise one column of them. A `Link` turns these numbers into the probabilities p and o that
metrics compare. Explainers and metrics know nothing else of a network's task.

What has a reference of its own for each image (the prediction that is to be kept, a box, a region) has one *column* for
each image of a block: column j is the score of image j's reference for every image given, and image j's target is j.
So whatever repeats or splits images along with their targets does the right thing.

Shape letters: B images, C columns, H x W image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

from optcam_pl.checks import ToldError, check_choice
from optcam_pl.network.bound import Bound
from optcam_pl.network.link import Link, link_name
from optcam_pl.network.outputs import logits_of, part_of
from optcam_pl.network.plain import Remembers, check_plain, described, plain

if TYPE_CHECKING:
    from optcam_pl.network.classifier import Classifier

Direction: TypeAlias = Literal["up", "down", "keep"]


@dataclass(frozen=True)
class References:
    """What the B images of a block refer to, image i in column i.

    Attributes:
        names: (B,) each reference in words, for titles: "box 3: person 0.91".
        classes: (B,) the number that an image's row stores as its target, such as the box's class; None stores 0.
        missing: why an image has no reference ("no detection above 0.5"), and "" where it has one; empty where all have
            one. Such an image gets a row without scores.
        boxes: B tensors (n,4), xyxy in pixels of the image, to draw.
        masks: (B,H,W) bool, regions to draw.
    """

    names: tuple[str, ...]
    classes: tuple[int, ...] | None = None
    missing: tuple[str, ...] = ()
    boxes: Sequence[Tensor] | None = None
    masks: Tensor | None = None


class Scores(Remembers, ABC):
    """Turns what a network returns into scores (B,C).

    Your own class defines `__call__`; a plain function works, too: ``Classifier(network, scores=function)``. The
    constructor's arguments are stored with a run's results (see `settings`).

    Attributes:
        default_link: the link, unless the classifier is given another one.
        own_classes: whether the columns are the classes that the network itself states, with their names.
        per_image: whether the columns are the images' own references; then `references` has to be defined.
        bound: what `references` has bound for a block, see `Bound`.
    """

    default_link: Link = "softmax"
    own_classes: ClassVar[bool] = False
    per_image: bool = False

    @abstractmethod
    def __call__(self, output: Any) -> Tensor:
        """The scores of B images.

        Args:
            output: what `run` returned.

        Returns:
            (B,C) floating, with a gradient as far as the network has one. Scores that are `per_image` have one column
            for each bound reference; where nothing is bound, they return any (B,1) that depends on the image in the
            same way, which checks of the network and the search for its layer use.
        """

    def run(self, network: nn.Module, image: Tensor, **inputs: Any) -> Any:
        """Run the network; override this where it is not called as ``network(image, **inputs)``.

        Args:
            network: the network.
            image: (B,3,H,W), normalized and in the network's dtype.
            inputs: its other inputs, where it has some.
        """
        return network(image, **inputs)

    def columns(self) -> int | None:
        """The number C of columns; None where only an output tells. Of `per_image` scores: what is bound, counted."""
        bound = self.bound.value if self.per_image else None
        return None if bound is None else len(bound)

    def names(self) -> tuple[str, ...] | None:
        """One name for each column, for titles and tables; None if there are none."""
        return None

    def words(self, name: str) -> str:
        """What the score of a column is, from the column's name, as a title shows it."""
        return name

    def link_of(self, network: nn.Module) -> Link:
        """The link for a network, unless the classifier is given another one: the `default_link`."""
        return self.default_link

    def layers_of(self, network: nn.Module) -> tuple[str, ...]:
        """The layers to explain where the classifier is given none and these scores know them; () otherwise."""
        return ()

    def attach(self, classifier: Classifier) -> None:
        """Prepare what depends on the classifier's preprocessing, once, when the classifier is made."""

    @contextmanager
    def references(self, classifier: Classifier, batch: Mapping[str, Any]) -> Iterator[References | None]:
        """Bind what the images of a block refer to, for scores that are `per_image`.

        Args:
            classifier: the network with these scores.
            batch: the block's images ``image`` (B,3,H,W) and whatever else the dataset has.

        Yields:
            The references, or None where columns are classes.
        """
        yield None

    @property
    def bound(self) -> Bound:
        """See the class."""
        found: Bound = self.__dict__.setdefault("_bound", Bound())
        return found

    @property
    def title(self) -> str:
        """The name in rows and tables: the class's name."""
        return type(self).__name__

    def settings(self) -> dict[str, object]:
        """The constructor's arguments as plain values: results depend on them and are printed with them."""
        named = {name: getattr(self, name, given) for name, given in self._given.items()}
        return {name: plain(value) for name, value in named.items()}

    @classmethod
    def check_arguments(cls, given: dict[str, object]) -> None:
        """Refuse arguments that `settings` cannot represent; a class with its own `settings` is responsible itself."""
        if cls.settings is Scores.settings:
            check_plain(cls.__name__, given)

    def describe(self) -> str:
        """The class and those of its settings that are not None, in one line: ``Regression(direction=up)``."""
        named = ", ".join(f"{name}={value}" for name, value in self.settings().items() if value is not None)
        return f"{self.title}({named})" if named else self.title


class ClassLogits(Scores):
    """The network's class logits, ``S_c(x) = f(x)_c``; with the link "softmax" ``p_c = exp(S_c) / sum_k exp(S_k)``.

    With the link "sigmoid", ``p_c = 1 / (1 + exp(-S_c))``: each class for itself, as in multi-label networks.

    Args:
        output: which of several outputs: the key of a mapping, the name of an attribute or of a named tuple's field, or
            the number of a tuple's item. None: the tensor itself, else its `logits`, else the first output.

    Example:
        >>> ClassLogits(output="color")({"shape": torch.zeros(2, 3), "color": torch.ones(2, 5)}).shape
        torch.Size([2, 5])
    """

    own_classes: ClassVar[bool] = True

    def __init__(self, output: str | int | None = None) -> None:
        self.output = output

    def __call__(self, output: Any) -> Tensor:
        """(B,C)."""
        return logits_of(output) if self.output is None else part_of(output, self.output)


class Binary(Scores):
    """Both answers of a network with one logit z: ``S_no = -z``, ``S_yes = z``, ``p = sigmoid(S)``.

    So ``p_no = 1 - p_yes``, and "no" has a gradient and a map of its own, too. The predicted class is the likelier
    answer, and the second one the other. (A softmax over [0, z] has the same probabilities, but its score of "no" is a
    constant, which no gradient can explain.)

    Args:
        output: see `ClassLogits`.

    Example:
        >>> Binary()(torch.tensor([[2.0], [-1.0]])).sigmoid()
        tensor([[0.1192, 0.8808],
                [0.7311, 0.2689]])
    """

    default_link: Link = "sigmoid"

    def __init__(self, output: str | int | None = None) -> None:
        self.output = output

    def __call__(self, output: Any) -> Tensor:
        """(B,2) from (B,) or (B,1)."""
        z = logits_of(output) if self.output is None else part_of(output, self.output)
        z = z.unsqueeze(1) if z.ndim == 1 else z
        if z.ndim != 2 or z.shape[1] != 1:
            raise ValueError(
                f"Expected a network with one logit for an image, (B,) or (B, 1), as `scores` Binary needs, but "
                f"got the shape {tuple(z.shape)}. For several logits use ClassLogits, with `link` softmax or sigmoid."
            )
        return torch.cat([-z, z], dim=1)

    def columns(self) -> int:
        """2."""
        return 2

    def names(self) -> tuple[str, ...]:
        """No and yes; the classifier's `class_names` replace them."""
        return ("no", "yes")


class Regression(Scores):
    """A network that estimates numbers y = f(x), (B,) or (B,D), and what of the image moves the estimate.

    - "up": ``S_d = y_d``: what makes the estimate large.
    - "down": ``S_d = -y_d``: what makes it small.
    - "keep": ``S_j(x) = -|f(x) - f(x_j)|`` (the Euclidean norm over D): what the estimate for image x_j needs to stay
      as it is. Its gradient at x_j itself is 0, so it is for methods that mask: Opti-CAM, Score-CAM, RISE and others.

    The link is "identity": a real number has no probability. Metrics that need one refuse; insertion and deletion (with
    ``output="logit"``), AOPC and ROAD measure the scores themselves. With a link of your own, an increasing function
    onto [0,1] such as ``lambda y: ((y + 10) / 20).clamp(0, 1)``, Average Drop and the others measure its values.

    Args:
        direction: see above.
        output: see `ClassLogits`.
        column: which of the D numbers; None: all of them.

    Example:
        >>> y = torch.tensor([[3.0], [5.0]])
        >>> Regression("down")(y).tolist()
        [[-3.0], [-5.0]]
        >>> keep = Regression("keep")
        >>> with keep.bound.to(y):
        ...     keep(torch.tensor([[3.5]]))
        tensor([[-0.5000, -1.5000]])
    """

    default_link: Link = "identity"

    def __init__(self, direction: Direction = "up", output: str | int | None = None, column: int | None = None) -> None:
        self.direction: Direction = check_choice("direction", direction, Direction)
        self.output, self.column = output, column
        self.per_image = direction == "keep"  # each image has its own estimate to keep

    def __call__(self, output: Any) -> Tensor:
        """(B,D), or (B,R) for R bound estimates."""
        y = self._estimate(output)
        if self.direction != "keep":
            return -y if self.direction == "down" else y
        kept: Tensor | None = self.bound.value
        if kept is None:
            return y.sum(1, keepdim=True)
        distance: Tensor = torch.linalg.vector_norm(y.unsqueeze(1) - kept.to(y), dim=2)
        return -distance

    def _estimate(self, output: Any) -> Tensor:
        y = logits_of(output) if self.output is None else part_of(output, self.output)
        y = y.unsqueeze(1) if y.ndim == 1 else y
        if y.ndim != 2:
            raise ValueError(
                f"Expected a network that estimates numbers, (B,) or (B, D), as `scores` Regression needs, but got the "
                f"shape {tuple(y.shape)}."
            )
        if self.column is not None:
            if not 0 <= self.column < y.shape[1]:
                raise ValueError(f"Expected `column` in 0..{y.shape[1] - 1}, but got {self.column}.")
            y = y[:, self.column : self.column + 1]
        return y

    def words(self, name: str) -> str:
        """The direction and the name."""
        arrow = {"up": "higher", "down": "lower", "keep": "unchanged"}[self.direction]
        return f"{arrow} {'estimate' if name.isdigit() else name}"

    @contextmanager
    def references(self, classifier: Classifier, batch: Mapping[str, Any]) -> Iterator[References | None]:
        """Bind the estimates for the images, for "keep"."""
        if self.direction != "keep":
            yield None
            return
        with torch.no_grad():
            kept = self._estimate(classifier.output(batch["image"])).detach()
        names = tuple("unchanged " + ", ".join(f"{value:.4g}" for value in row) for row in kept.tolist())
        with self.bound.to(kept):
            yield References(names)


class FunctionScores(Scores):
    """Your own function of the network's output, ``S = function(output)``, (B,C).

    Args:
        function: gets what the network returned for B images and returns (B,C).

    Example:
        >>> FunctionScores(lambda output: output["depth"].mean((2, 3)))({"depth": torch.ones(2, 1, 4, 4)})
        tensor([[1.],
                [1.]])
    """

    default_link: Link = "identity"

    def __init__(self, function: Callable[[Any], Tensor]) -> None:
        self.function = function

    def __call__(self, output: Any) -> Tensor:
        """(B,C)."""
        scores = _of_user(self.function, output)
        if not isinstance(scores, Tensor) or not scores.is_floating_point():
            raise TypeError(
                f"Expected the scores function {described(self.function)} to return floating-point numbers (B, C), "
                f"but got {_looks(scores)}."
            )
        return scores

    @property
    def title(self) -> str:
        """The function's name."""
        return str(getattr(self.function, "__name__", type(self.function).__name__))

    def settings(self) -> dict[str, object]:
        """The function by its name."""
        return {"function": described(self.function)}

    def describe(self) -> str:
        """The function's full name."""
        return str(described(self.function))


class Targets(Scores):
    """One function for each column, ``S_j(x_i) = function_j(f(x_i))``: the `targets` of pytorch-grad-cam.

    Column j is function j for every image. So where each image has its own function, image i is explained with the
    target i: ``explainer(classifier, image, target=range(B))``.

    Args:
        functions: each gets the network's output for one image, without the batch dimension, and returns a number.

    Example:
        >>> Targets([lambda output: output[1], lambda output: output.sum()])(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[2., 3.],
                [4., 7.]])
    """

    default_link: Link = "identity"

    def __init__(self, functions: Sequence[Callable[[Any], Tensor]]) -> None:
        self.functions = tuple(functions)
        if not self.functions:
            raise ValueError("Expected `functions` of Targets to have one function at least, but got none.")
        for function in self.functions:
            if not callable(function):
                raise TypeError(f"Expected `functions` of Targets to be functions, but got {function!r}.")

    def __call__(self, output: Any) -> Tensor:
        """(B,C) for C functions."""
        images = range(_images_in(output))
        rows = [[_number(_of_user(f, _one(output, i)), f) for f in self.functions] for i in images]
        return torch.stack([torch.stack(row) for row in rows])

    def columns(self) -> int:
        """The number of functions."""
        return len(self.functions)

    def names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(str(getattr(f, "__name__", type(f).__name__)) for f in self.functions)

    def settings(self) -> dict[str, object]:
        """The functions by their names, and what such an object holds."""
        return {"functions": [described(function) for function in self.functions]}


def as_scores(scores: object) -> Scores:
    """What a classifier takes as `scores`, as `Scores`.

    Raises:
        TypeError: it is neither Scores, nor a function, nor a list of functions.
    """
    if scores is None:
        return ClassLogits()
    if isinstance(scores, Scores):
        return scores
    if isinstance(scores, (list, tuple)):
        return Targets(scores)
    if isinstance(scores, type) or not callable(scores):
        hint = f" Make one of the class: {scores.__name__}()." if isinstance(scores, type) else ""
        raise TypeError(
            "Expected `scores` to be Scores (ClassLogits(), Binary(), Regression(), ...), a function of the network's "
            f"output, or a list of functions, but got {scores!r}.{hint}"
        )
    return FunctionScores(scores)


def check_references(scores: Scores) -> None:
    """Check that references are bound, where each image has its own.

    Raises:
        ValueError: they are not.
    """
    if scores.per_image and scores.bound.value is None:
        raise ValueError(
            f"Expected the images' references to be bound, as {scores.describe()} scores each image by its own: "
            'with classifier.references({"image": image}): explainer(classifier, image, range(len(image))). '
            "`optcam_pl.evaluate` and the tasks do this by themselves."
        )


def scores_settings(scores: Scores, link: Link) -> dict[str, str]:
    """Scores and link in words, for manifests and tables; {} for class logits with their softmax, the default."""
    if link == "softmax" and type(scores) is ClassLogits and scores.output is None:
        return {}
    return {"scores": scores.describe(), "link": link_name(link)}


# Other people's functions ---------------------------------------------------------------------------------------------


def _of_user(function: Callable[[Any], Any], output: Any) -> Any:
    """Call a user's function; an error says what it was given."""
    try:
        return function(output)
    except Exception as error:  # any exception that the user's function raises
        raise ToldError(
            f"The scores function {described(function)} raised {type(error).__name__}: {error}. It was given "
            f"{_looks(output)}."
        ) from error


def _looks(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} with {', '.join(map(repr, output))}"
    return f"a {type(output).__name__}" + (f" of {len(output)} items" if isinstance(output, (tuple, list)) else "")


def _number(value: Any, function: object) -> Tensor:
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.reshape(())
    raise ValueError(
        f"Expected {described(function)} to return a number, a tensor of one element, for each image, but got "
        f"{_looks(value) if not isinstance(value, (int, float)) else 'a number without a gradient'}."
    )


def _images_in(output: Any) -> int:
    first = next(_tensors(output), None)
    if first is None:
        raise TypeError(
            f"Expected a network that returns tensors, as `scores` Targets needs, but got {_looks(output)}."
        )
    return len(first)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _tensors(value)


def _one(output: Any, i: int) -> Any:
    """The part of an output that belongs to image i."""
    if isinstance(output, Tensor):
        return output[i]
    if isinstance(output, Mapping):
        return {key: _one(value, i) for key, value in output.items()}
    if isinstance(output, list) and output and not isinstance(output[0], Tensor):
        return output[i]  # one item an image, as detectors return them
    if isinstance(output, (tuple, list)):
        parts = [_one(value, i) for value in output]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    return output
