"""Classes of a dataset are those of a network that are called the same, in every spelling of ImageNet too."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from data_cases import Listed

from optcam_pl.data import Entry
from optcam_pl.data.names import match_names
from optcam_pl.imagenet import imagenet_names, imagenet_wnids

SYNONYMS = [f"{name}, {name.upper()} of all sorts" for name in imagenet_names()]
SHOUTED = [name.replace(" ", "_").upper() for name in imagenet_names()]


@pytest.mark.parametrize(
    ("own", "network", "expected"),
    [
        (["cats", "dogs"], ["cats", "dogs"], [0, 1]),
        (["cats", "dogs"], ["dogs", "cats"], [1, 0]),
        (["Polar_Bear", "red-fox"], ["RED FOX", "wolf", "polar bear"], [2, 0]),
        (["cats", "cows"], ["dogs", "cats"], [1, -1]),
        (["CAT", "cat"], ["cat", "CAT"], [1, 0]),  # exactly, where there are both
        (["Cat", "dog"], ["cat", "CAT", "dog"], [-1, 2]),  # else it may be either
        (["cat", "Cat"], ["CAT", "dog"], [0, -1]),  # two classes are not one
        (["cat", "x"], ["cat", "cat", "x"], [-1, 2]),
        (["a, b", "c"], ["a", "b", "c"], [-1, 2]),  # one class is not two
        (["bear", "owl"], ["owl, night bird", "bear, big one"], [1, 0]),
        # Numbers: an index, unless both sides have names of their own.
        (["0", "1", "2"], ["x", "y", "z"], [0, 1, 2]),
        (["x", "y"], ["0", "1"], [0, 1]),
        (["0", "1", "10", "2"], [f"class {i}" for i in range(11)], [0, 1, 10, 2]),
        (["1", "2"], ["a", "b"], [1, -1]),
        (["3", "7"], ["7", "5", "3"], [2, 0]),
        (["0", "1", "2", "3"], ["0", "1", "10", "2", "3"], [0, 1, 3, 4]),
        (["0", "1"], ["1", "2"], [-1, 0]),
        (["a", "b"], ["7", "5", "3"], [-1, -1]),
    ],
)
def test_classes_are_found_by_name(own: Sequence[str], network: Sequence[str], expected: list[int]) -> None:
    assert list(match_names(own, network)) == expected


@pytest.mark.parametrize("network", [imagenet_names(), imagenet_wnids(), SYNONYMS, SHOUTED])
def test_imagenets_classes_are_known_in_every_spelling(network: Sequence[str]) -> None:
    for own in (imagenet_names(), imagenet_wnids(), SYNONYMS, SHOUTED):
        assert match_names(own, network) == tuple(range(1000))
    assert match_names(["n02123045", "n01440764"], network) == (281, 0)
    assert match_names(["tabby, tabby cat", "tench, Tinca tinca"], network) == (281, 0)
    assert match_names(["Tabby", "no such thing"], network) == (281, -1)
    assert match_names(tuple(sorted(imagenet_names())), network)[:1] == (imagenet_names().index("Afghan hound"),)


def test_a_network_of_some_of_imagenets_classes_is_understood() -> None:
    assert match_names(["n01440764", "n02102040"], ["English springer", "tench"]) == (1, 0)
    assert match_names(["tench", "English springer"], ["n02102040", "n01440764"]) == (1, 0)


class Animals(Listed):
    class_names = ("cats", "dogs")


def made(tmp_path: Path) -> Animals:
    return Animals(
        [Entry("a", str(tmp_path / "a"), 0), Entry("b", str(tmp_path / "b"), 1), Entry("c", "c", -1)], size=2
    )


def targets(data: Animals) -> list[int]:
    data.on_error = "record"
    return [data.table[i]["target"] for i in range(3)]


def test_labels_are_given_as_the_networks_classes(tmp_path: Path) -> None:
    data = made(tmp_path)
    plain = data.fingerprint()
    for names in (None, ["cats", "dogs"], ["Cats", "DOGS", "birds"]):
        data.match_classes(names, "net")
        assert targets(data) == [0, 1, -1]
        assert data.fingerprint() == plain
    assert data.match_classes(["birds", "dogs", "cats"], "net")
    assert targets(data) == [2, 1, -1]
    assert data.network_class(0) == 2
    assert data.fingerprint() == plain | {"class_map": (2, 1)}
    data.match_classes(["cats", "dogs"], "net")  # of another network: nothing is left
    assert (targets(data), data.fingerprint()) == ([0, 1, -1], plain)


def test_names_that_contradict_are_refused_with_both_sides(tmp_path: Path) -> None:
    data = made(tmp_path)
    message = (
        "classes of animals to be among those of net, but 1 of 2 are not: 'dogs'. Classes of net that animals does "
        "not name: 'wolves'.*`class_names` of the classifier.*`classes` of the data.*`target: predicted`"
    )
    with pytest.raises(ValueError, match=message):
        data.match_classes(["wolves", "cats"], "net")
    with pytest.raises(ValueError, match=r"'class 7', \.\.\. \(12 more\)"):
        data.match_classes([f"class {i}" for i in range(20)], "net")


def test_labels_that_do_not_matter_are_mapped_as_far_as_they_go(tmp_path: Path) -> None:
    data = made(tmp_path)
    plain = data.fingerprint()
    assert not data.match_classes(["wolves", "cats"], "net", used=False)
    assert (targets(data), data.fingerprint()) == ([1, -1, -1], plain)
