"""The names of the categories that a detector or a segmentation network knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from optcam_pl.checks import nearest

if TYPE_CHECKING:
    from optcam_pl.network.classifier import Classifier


def own_categories(network: nn.Module) -> dict[int, str]:
    """The names that a network states itself: transformers' `id2label`, ultralytics' `names`; {} if there are none."""
    config: Any = getattr(network, "config", None)
    stated = getattr(config, "id2label", None) or getattr(network, "names", None)
    if not isinstance(stated, dict):
        return {}
    # transformers invents names for classes that have none
    return {int(number): str(name) for number, name in stated.items() if str(name) != f"LABEL_{number}"}


def categories(classifier: Classifier) -> dict[int, str]:
    """The names of a network's categories: the classifier's `class_names`, otherwise the network's own."""
    given = classifier.class_names
    return own_categories(classifier.network) if given is None else dict(enumerate(given))


def label_word(classifier: Classifier, label: int) -> str:
    """A category in words, "class 3" if its name is unknown."""
    return categories(classifier).get(label, f"class {label}")


def label_number(classifier: Classifier, category: int | str, count: int) -> int:
    """A category's number, by itself or its name.

    Args:
        classifier: its names are known.
        category: the number or the name.
        count: how many categories there are.

    Raises:
        ValueError: there is no such category; the message lists the nearest names.
    """
    if isinstance(category, int):
        if not 0 <= category < count:
            raise ValueError(f"Expected `category` in 0..{count - 1}, but got {category}.")
        return category
    known = categories(classifier)
    found = [number for number, name in known.items() if name == category]
    if not found:
        near = f"The nearest are: {nearest(category, known.values())}." if known else "Give `class_names`, or a number."
        raise ValueError(f"Unknown `category` {category!r} of {classifier.name}. {near}")
    return found[0]


def check_label(label: int, count: int, image: object, background: int | None = None) -> None:
    """Check that a dataset's label is one of the network's categories; -1 means that there is none.

    Args:
        label: the number.
        count: how many categories there are.
        image: the image's name, for the message.
        background: the category that means "no object".

    Raises:
        ValueError: it is not.
    """
    if label == background:
        what = "its class for no object"
    elif label >= count:
        what = f"not in 0..{count - 1}"
    else:
        return
    raise ValueError(
        f"Expected labels that are numbered as the network's categories, but image {image!r} has the label {label}, "
        f"which is {what}. Number them as the network does, with the `classes` of CSVImages for example."
    )
