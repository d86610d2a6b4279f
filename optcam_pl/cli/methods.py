"""Explainers as the commands name them: a class, a file, or an entry of a config's list, and settings for those that
have them.
"""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser

from optcam_pl import explainers as _explainers
from optcam_pl.checks import expanded_path, nearest
from optcam_pl.cli.words import CONFIGS, read_yaml
from optcam_pl.explainers import Explainer

BLOCKS = CONFIGS / "explainer"
_SETTING = "--model.explainer."
# What `all` leaves out, and says so: hours on a CPU, where everything else together takes minutes.
COSTLY = {"is_cam": "10 times the passes of score_cam", "ss_cam": "35 times the passes of score_cam"}


class Method(NamedTuple):
    """An explainer to compare.

    Attributes:
        name: name of its row and its run folder.
        given: value of `--model.explainer`: a class, a file, or a class with its settings as JSON.
        asked: whether the user named it; False for a method of `all`.
        complete: whether it stands in a config's list or in a file. Then it has its settings there, and nothing of the
            settings that the config has for its `model.explainer`.
    """

    name: str
    given: str
    asked: bool = True
    complete: bool = False

    def added_to(self, words: Sequence[str]) -> list[str]:
        """Words of `optcam test` with this explainer.

        Settings of an explainer among them, ``--model.explainer.max_iter 10``, are for each explainer that has them:
        they follow its class.
        """
        others, settings = split_settings(words)
        # A change of the class drops the settings that the new class does not have; FakeCAM has none of its own.
        chosen = [f"--model.explainer={given}" for given in (["FakeCAM"] if self.complete else []) + [self.given]]
        known = self.settings()
        return [*others, *chosen, *(word for key, given in settings if key in known for word in given)]

    def settings(self) -> frozenset[str]:
        """The names of what can be set; none for a class that cannot be imported."""
        path = self.given
        if path.endswith((".yaml", ".yml")):
            path = read_yaml(path)["class_path"]
        elif path.startswith("{"):
            path = json.loads(path)["class_path"]
        return _settings(path)


@lru_cache(None)
def _settings(path: str) -> frozenset[str]:
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module) if module else _explainers, name)
        added = ArgumentParser().add_class_arguments(kind, "explainer", fail_untyped=False)
    except Exception:  # the run itself tells what is wrong with the class
        return frozenset()
    return frozenset(argument.partition(".")[2] for argument in added)


def split_settings(words: Sequence[str]) -> tuple[list[str], list[tuple[str, tuple[str, ...]]]]:
    """Words of `optcam test` without those that set something of the explainer; and these, by what they set.

    >>> split_settings(["--config=demo", "--model.explainer.lr", "1", "--model.explainer.init_args.relu=true"])
    (['--config=demo'], [('lr', ('--model.explainer.lr', '1')), ('relu', ('--model.explainer.init_args.relu=true',))])
    """
    others: list[str] = []
    settings: list[tuple[str, tuple[str, ...]]] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith(_SETTING):
            others.append(word)
            continue
        key = word.removeprefix(_SETTING).partition("=")[0].removeprefix("init_args.").partition(".")[0].rstrip("+")
        value = () if "=" in word or not left else (left.pop(0),)
        settings.append((key, (word, *value)))
    return others, settings


def check_used(words: Sequence[str], methods: Sequence[Method]) -> None:
    """See that each setting of an explainer is one of some explainer.

    Raises:
        ValueError: no explainer has it, so it would change nothing.
    """
    known = sorted({key for method in methods for key in method.settings()})
    for key, (word, *_) in split_settings(words)[1]:
        if key not in known and all(method.settings() for method in methods):
            raise ValueError(
                f"Expected `{word.partition('=')[0]}` to be a setting of one of the explainers "
                f"{', '.join(method.name for method in methods)}, but none has it. The nearest are: "
                f"{nearest(key, known)}."
            )


def choose(names: Sequence[str]) -> list[Method]:
    """The explainers that a command line names, in its order; then those of `all` that it does not name.

    Raises:
        ValueError: there is no explainer of a name.

    >>> [(method.name, method.given) for method in choose(["GradCAM", "my.module.Mine"])]
    [('GradCAM', 'GradCAM'), ('Mine', 'my.module.Mine')]
    """
    asked = [_method(name) for name in names if name != "all"]
    if "all" in names:
        taken = {method.name for method in asked} | set(COSTLY)
        others = [(name, str(file)) for name, file in _blocks().items() if name not in taken]
        asked += [Method(name, file, asked=False, complete=True) for name, file in others]
    return asked


def _method(name: str) -> Method:
    if name.endswith((".yaml", ".yml")):
        if not expanded_path(name).is_file():
            raise FileNotFoundError(
                f"Expected `--explainers` to name explainers or their files, but there is no file {name!r}. The "
                f"nearest names are: {nearest(Path(name).stem, [*_known(), *_blocks()])}."
            )
        content = read_yaml(name)
        if not (isinstance(content, dict) and isinstance(content.get("class_path"), str)):
            raise ValueError(f"Expected {name!r} to be an explainer (`class_path: GradCAM`), but it holds {content!r}.")
        return Method(Path(name).stem, name, complete=True)
    if name in _known() or "." in name:
        return Method(name.rpartition(".")[2], name)
    if name in _blocks():
        return Method(name, str(_blocks()[name]), complete=True)
    raise ValueError(
        f"Expected `--explainers` to name explainers, but got {name!r}. "
        f"The nearest are: {nearest(name, [*_known(), *_blocks()])}."
    )


def listed_methods(configs: Sequence[str]) -> list[Method]:
    """The explainers that configs list under `explainers`, in that order; those of the last config that has the key.

    Raises:
        ValueError: no config has such a list, or an entry names no explainer.
        TypeError: the list is none, or an entry is neither a name nor a class with settings.
    """
    listed = config_key(configs, "explainers")
    if listed is None:
        raise ValueError(
            "Expected explainers to compare: `--explainers NAME ...`, or a config with the list `explainers`."
        )
    if not isinstance(listed, list) or not listed:
        raise TypeError(f"Expected `explainers` of a config to be a list of explainers, but got {listed!r}.")
    methods = [_listed(entry) for entry in listed]
    check_distinct("explainers", [method.name for method in methods])
    return methods


def _listed(entry: Any) -> Method:
    """An entry of a config's list: a name, or a class with its settings and maybe a name of its own."""
    if isinstance(entry, str):
        return _method(entry)._replace(complete=True)
    if not isinstance(entry, dict) or not isinstance(entry.get("class_path"), str):
        raise TypeError(f"Expected an entry of `explainers` to be a name or to have a `class_path`, but got {entry!r}.")
    if unknown := [key for key in entry if key not in ("class_path", "init_args", "name")]:
        raise ValueError(
            f"Expected the keys class_path, init_args and name in an entry of `explainers`, but got {unknown[0]!r}."
        )
    known = _method(entry["class_path"])
    given = json.dumps({key: entry[key] for key in ("class_path", "init_args") if entry.get(key)})
    return Method(str(entry.get("name", known.name)), given, complete=True)


def config_key(configs: Sequence[str], key: str) -> Any:
    """A top-level entry of config files, that of the last one that has it; None if there is none."""
    found = None
    for file in configs:
        content = read_yaml(file)
        if isinstance(content, dict) and content.get(key) is not None:
            found = content[key]
    return found


def _known() -> list[str]:
    """The explainers that can be named without their module."""
    members = {name: getattr(_explainers, name) for name in _explainers.__all__}
    kinds = {n: kind for n, kind in members.items() if isinstance(kind, type) and issubclass(kind, Explainer)}
    return [name for name, kind in kinds.items() if not kind.__abstractmethods__]


def _blocks() -> dict[str, Path]:
    return {file.stem: file for file in sorted(BLOCKS.glob("*.yaml"))}


def check_distinct(option: str, names: Sequence[str]) -> None:
    """Refuse names that are the same but for their case, because run folders are named so."""
    counts = Counter(name.casefold() for name in names)  # folders of some systems do not tell cases apart
    if twice := [name for name in names if counts[name.casefold()] > 1]:
        raise ValueError(
            f"Expected `{option}` to have names of their own, as rows and run folders are named so, but got "
            f"{', '.join(twice)}."
        )
