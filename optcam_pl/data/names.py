"""Names of classes: lists of names, finding a class by name, and matching a dataset's classes to a network's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache

from optcam_pl.checks import expanded_path
from optcam_pl.data.text import read_text
from optcam_pl.imagenet import imagenet_names, imagenet_wnids

_SHOWN = 8  # names in a message


def class_list(classes: Sequence[str] | str | None) -> tuple[str, ...] | str | None:
    """The classes of a list or of a text file (one per line); "imagenet" and None stay unchanged.

    Raises:
        FileNotFoundError: there is no such text file.
        ValueError: a name is empty or occurs twice, there is no name, or the file is not UTF-8.
    """
    if classes is None or classes == "imagenet":
        return None if classes is None else "imagenet"
    if isinstance(classes, str):
        file = expanded_path(classes)
        if not file.is_file():
            raise FileNotFoundError(f"Expected `classes` to be 'imagenet', a list or a text file; no file {classes!r}.")
        classes = read_text(file).splitlines()
    names = tuple(name.strip() for name in classes)
    repeated = sorted({name for name in names if names.count(name) > 1 or not name})
    if repeated or not names:
        raise ValueError(f"Expected `classes` to be names, each once, but got {repeated or 'none'}.")
    return names


class ClassIndex:
    """Finds the index of a class by its name.

    Args:
        names: the classes' names.
        aliases: the classes' other names (wnids), in the same order.

    Example:
        >>> index = ClassIndex(imagenet_names(), imagenet_wnids())
        >>> index("Great_White_Shark"), index("n01443537")
        (2, 1)
        >>> index("tensch")
        Traceback (most recent call last):
        ValueError: 'tensch' is none of the 1000 classes; the nearest are 'tench', ...
    """

    def __init__(self, names: Sequence[str], aliases: Sequence[str] = ()) -> None:
        self.count = len(names)
        self.exact = {name: number for some in (aliases, names) for number, name in enumerate(some)}
        self.alike: dict[str, int | None] = {}
        for name, number in self.exact.items():  # ImageNet has a Cardigan (a dog) and a cardigan: exact names
            key = _key(name)
            self.alike[key] = number if self.alike.get(key, number) == number else None

    def knows(self, name: str) -> bool:
        """Whether there is such a class."""
        return name in self.exact or self.alike.get(_key(name)) is not None

    def __call__(self, name: str) -> int:
        """The class's index. Raises ValueError, with the nearest names, if there is no such class."""
        number = self.exact.get(name)
        if number is None:
            number = self.alike.get(_key(name))
        if number is None:
            close = get_close_matches(_key(name), self.alike, n=3, cutoff=0)
            near = ", ".join(repr(known) for key in close for known in self.exact if _key(known) == key)
            raise ValueError(f"{name!r} is none of the {self.count} classes; the nearest are {near}.")
        return number


def _key(name: str) -> str:
    """The common key of names that differ only in case, or in underscores, hyphens and spaces."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def match_names(own: Sequence[str], network: Sequence[str]) -> tuple[int, ...]:
    """The network's class for each class of a dataset, by name; -1 if it has none.

    Names are equal if they differ only in case, or in underscores, hyphens and spaces. For ImageNet's classes, the wnid
    is also a name, and so is each synonym in a list ("tench, Tinca tinca"). If the network's names are words and the
    dataset's are numbers, class "281" is the network's class 281. A network whose names are 0, 1, ... in order counts
    as unnamed, so class i of a dataset with words is class i.

    Example:
        >>> match_names(["cats", "Polar_bears"], ["polar bears", "dogs", "cats"])
        (2, 0)
        >>> match_names(["n02123045", "bird"], imagenet_names())
        (281, -1)
        >>> match_names(["0", "1"], ["cats", "dogs"]), match_names(["10", "2"], imagenet_names())
        ((0, 1), (10, 2))
    """
    own, network = _standard(own), _standard(network)
    keys = list(map(_key, own))
    if list(own) == list(network) or (keys == list(map(_key, network)) and len(set(keys)) == len(keys)):
        return tuple(range(len(own)))
    numbers = [all(name.isdecimal() for name in names) for names in (own, network)]
    if numbers == [True, False]:
        return tuple(int(name) if int(name) < len(network) else -1 for name in own)
    if numbers == [False, True] and list(network) == list(map(str, range(len(network)))):
        return tuple(range(len(own)))
    return _by_name(own, network)


def _by_name(own: Sequence[str], network: Sequence[str]) -> tuple[int, ...]:
    times, similar = Counter(network), _unique_spellings(network)
    exact = {name: number for number, name in enumerate(network) if times[name] == 1}
    found = dict.fromkeys(range(len(own)), -1)
    taken: set[int] = set()
    for position, name in enumerate(own):
        number = exact[name] if name in exact else _find(name, similar)
        if number not in taken:  # otherwise two classes here are one class there
            found[position] = number
            taken.add(number)
    return tuple(found.values())


def _standard(names: Sequence[str]) -> Sequence[str]:
    """ImageNet's own names, if these are its classes in its order, in any spelling."""
    if len(names) != len(imagenet_names()):
        return names
    rows = zip(names, imagenet_names(), imagenet_wnids(), strict=True)
    same = sum(not {_key(name), wnid}.isdisjoint(map(_key, _spellings(given))) for given, name, wnid in rows)
    # Lists differ in the names of a few classes; in another order only few classes are in their place.
    return imagenet_names() if same > 0.8 * len(names) else names


@lru_cache(maxsize=1)
def _other_names() -> Mapping[str, str]:
    """ImageNet's names by wnid, and wnids by name."""
    pairs = list(zip(imagenet_wnids(), imagenet_names(), strict=True))
    return dict(pairs) | {name: wnid for wnid, name in pairs}


def _spellings(name: str) -> Iterator[str]:
    """A name, each of its synonyms, and ImageNet's other names for them."""
    for part in dict.fromkeys((name, *(part.strip() for part in name.split(",")))):
        yield part
        if part in _other_names():
            yield _other_names()[part]


def _unique_spellings(names: Sequence[str]) -> dict[str, int | None]:
    """Class by the key of each spelling; None if several classes share the key."""
    found: dict[str, int | None] = {}
    for number, name in enumerate(names):
        for key in {_key(spelling) for spelling in _spellings(name)}:
            found[key] = None if key in found else number
    return found


def _find(name: str, known: Mapping[str, int | None]) -> int:
    """The class that a name means, or that all of its other known spellings mean; -1 if there is none."""
    whole = known.get(_key(name))
    if whole is not None:
        return whole
    numbers = {known.get(_key(spelling)) for spelling in _spellings(name)} - {None}
    return next((number for number in numbers if number is not None), -1) if len(numbers) == 1 else -1


def contradiction(data: str, own: Sequence[str], title: str, network: Sequence[str]) -> str:
    """Says why a dataset's labels cannot be turned into a network's classes, and what to do about it."""
    if all(name.isdecimal() for name in own):
        return (
            f"Expected the labels of {data} to be classes of {title}, which has {len(network)}, so from 0 to "
            f"{len(network) - 1}, but got the label {own[-1]}."
        )
    found = match_names(own, network)
    named = set(found)
    lost = [name for name, number in zip(own, found, strict=True) if number < 0]
    free = [name for number, name in enumerate(network) if number not in named]
    return (
        f"Expected the classes of {data} to be among those of {title}, but {len(lost)} of {len(own)} are not: "
        f"{_some(lost)}. Classes of {title} that {data} does not name: {_some(free)}. If they are the same classes, "
        "give the network's own names, in its order, as `class_names` of the classifier, or the names in the "
        "network's order as `classes` of the data. If they are not, a SaliencyTask explains the class that is "
        "predicted (`target: predicted`)."
    )


def _some(names: Sequence[str]) -> str:
    more = f", ... ({len(names) - _SHOWN} more)" if len(names) > _SHOWN else ""
    return (", ".join(map(repr, names[:_SHOWN])) or "none") + more
