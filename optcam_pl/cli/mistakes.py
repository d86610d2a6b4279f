"""Says in one paragraph what is wrong with a command line or a config, with the nearest names.

jsonargparse nests its messages: one level for each key and class on the way to the fault. `told` reads the way and the
fault out of such a message, and says it in the words of this package. A message of another form is only shortened.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import ArgumentParser

from optcam_pl.checks import nearest
from optcam_pl.cli.errors import plain
from optcam_pl.cli.words import read_yaml
from optcam_pl.imagenet import imagenet_names
from optcam_pl.metrics import METRICS
from optcam_pl.tasks.base import RunTask

_KEY = re.compile(r'Parser key "(.+)":$')
_CLASS = re.compile(r"(?:- )?Problem with given class_path '(.+)':$")
_TYPES = re.compile(r"Subtypes: (\[.+\])$")
_GIVEN = re.compile(r"Given value: (.*)$")
_NESTED = re.compile(r"NestedArg\(key='.*', val='(.*)'\)$")
_BASES = ("lightning.LightningModule", "lightning.pytorch.LightningModule", "optcam_pl.data.ImageDataModule")
_WORDS = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "text", "dict": "a mapping"}
_LISTS = ("list", "tuple", "Sequence", "Iterable")


@dataclass
class Fault:
    """The way to a fault, and what jsonargparse said at its end.

    Attributes:
        keys: the keys from the outermost to the one with the fault.
        classes: the classes on the way, as dotted names.
        texts: what was said about each of the key's types.
        types: the key's types, as text.
        given: the value that was given; None if the message does not have it.
    """

    keys: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    types: str = ""
    given: str | None = None

    @property
    def where(self) -> str:
        """The option, such as ``model.explainer``."""
        return ".".join(self.keys)


def fault_of(message: str) -> Fault:
    """Take a message of jsonargparse apart.

    Example:
        >>> fault = fault_of('''Parser key "data":
        ...   Problem with given class_path 'optcam_pl.data.ImageFolder':
        ...     Option 'rot' is not accepted''')
        >>> fault.where, fault.classes, fault.texts
        ('data', ['optcam_pl.data.ImageFolder'], ["Option 'rot' is not accepted"])
    """
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip()]
    last = max((number for number, line in enumerate(lines) if _KEY.match(line)), default=-1)
    fault = Fault([match[1] for match in map(_KEY.match, lines) if match])
    fault.classes = [match[1] for match in map(_CLASS.match, lines) if match]
    for line in lines[last + 1 :]:
        if types := _TYPES.match(line):
            fault.types = fault.types or types[1]
        elif given := _GIVEN.match(line):
            nested = _NESTED.match(given[1])
            fault.given = nested[1] if nested else given[1]
            break
        elif not _is_frame(line):
            fault.texts.append(line)
    return fault


def _is_frame(line: str) -> bool:
    """Whether a line only holds the others together, or says that the value is no file and not None."""
    frames = ("Does not validate against", "Errors:", "Given value type:", "Expected a <class 'NoneType'>")
    return line.startswith(frames) or bool(_CLASS.match(line) or _KEY.match(line)) or "accessible or invalid" in line


def told(message: str, words: Sequence[str], options: Callable[[], Iterable[str]]) -> str:
    """What is wrong, in one paragraph.

    Args:
        message: jsonargparse's.
        words: of the command line, after `optcam`.
        options: gives the keys that the command takes.

    Returns:
        The paragraph; for a fault that is not known, jsonargparse's message, shortened.
    """
    if "test.model" in message or "required: test.data" in message or _lacks_config(message):
        return _no_config(words)
    unknown = re.match(r"unrecognized arguments: (.*)", message) or re.match(
        r"(?:Subcommand|Group) '.+' does not accept option '(.+)'", message
    )
    if unknown:
        return _unknown_word(unknown[1], options())
    if without := re.match(r"argument (-.+): expected one argument", message):
        names = tuple(without[1].split("/"))
        bare = [word for word in words if word.startswith(names) and "=" not in word]
        return f"Expected a value after `{bare[-1] if bare else names[-1]}`, but got none."
    if message.startswith(("Problems parsing config", "Unexpected config")):
        return _bad_file(message, words)
    fault = fault_of(message)
    if fault.keys and fault.texts:
        for say in (_option, _required, _module, _class, _value):
            if sentence := say(fault):
                return sentence
    return plain(message)


def _lacks_config(message: str) -> bool:
    return re.match(r"the following arguments are required: \w+\.(model|data)\b", message) is not None


def _no_config(words: Sequence[str]) -> str:
    given = any(word.partition("=")[0] in ("-c", "--config") for word in words)
    if given:
        return (
            "Expected the configs to say both `model` (the network and the explainer) and `data` (the images), but one "
            "of the two is missing: add a second --config with it, a block of configs/data/ for example "
            "(`--config data/image_folder --data.root FOLDER`), or start with `--config demo`, which has both."
        )
    return (
        "Expected `--config` with a config that says the network, the explainer and the images, but got none. Begin "
        "with one that is part of the package, `--config demo` for example (`optcam init my_project` writes one for "
        "your own network and images)."
    )


def _unknown_word(words: str, options: Iterable[str]) -> str:
    first = words.split(maxsplit=1)[0].partition("=")[0]
    if words.startswith("-"):
        key = first.lstrip("-")
        return f"There is no option `--{key}`. The nearest are: {_nearest_options(key, options)}."
    if "." in first and not Path(first).exists():
        return f"There is no option `{first}`. The nearest are: {_nearest_options(first, options)}."
    return (
        f"Expected options of the form --KEY VALUE, but got the word {first!r} without one. A shell turns a pattern "
        "such as *.jpg into several words, which only `--data.paths` takes: put other patterns in quotes."
    )


def _nearest_options(key: str, options: Iterable[str]) -> str:
    known = {option for option in options if not option.startswith("config")}
    first = {option.partition(".")[0] for option in known}
    owner = key.partition(".")[0]
    return nearest(key, sorted(known | first)) if owner in first else nearest(owner, sorted(first), 3)


def _bad_file(message: str, words: Sequence[str]) -> str:
    """Which of the configs is no YAML mapping, and where."""
    for place, word in enumerate(words):
        option, _, value = word.partition("=")
        if option not in ("-c", "--config"):
            continue
        file = value or (words[place + 1] if place + 1 < len(words) else "")
        try:
            content = read_yaml(file)
        except ValueError as error:
            return str(error)
        except OSError:
            continue
        if not isinstance(content, dict):
            return f"Expected the config {file!r} to be a mapping (`model: ...`), but got {content!r}."
    return plain(message)


def _last(pattern: str, texts: Sequence[str]) -> re.Match[str] | None:
    """The match of the last text that has one: of a key with several types, one may be right but for a setting."""
    return next(filter(None, (re.match(pattern, text) for text in reversed(texts))), None)


def _option(fault: Fault) -> str | None:
    """A setting that the class does not have."""
    match = _last(r"Option '(.+)' is not accepted", fault.texts)
    if match is None and "is abstract" not in fault.texts[0]:
        return None
    name = match[1] if match else ""
    if match is None or fault.classes[-1] in _BASES:
        of = f"the setting `{name.replace('.init_args', '')}` of" if name else "a setting of"
        return (
            f"Expected a config to name the class of `{fault.where}` (class_path: ...) before its settings, but got "
            f"{of} it first. Configs are merged in their order: give the one with the class before the others, "
            "`--config demo` for example."
        )
    owner = fault.classes[-1]
    known = settings_of(owner)
    return (
        f"{_short(owner)} (`{fault.where}`) has no setting {name!r}. The nearest are: {nearest(name, known)}. "
        f"All of them: {', '.join(known)}."
    )


def _required(fault: Fault) -> str | None:
    match = _last(r"the following arguments are required: (.+)", fault.texts)
    if match is None:
        return None
    names = match[1].split(", ")
    options = " and ".join(f"`--{fault.where}.{name}`" for name in names)
    return f"{_short(fault.classes[-1])} (`{fault.where}`) needs {options}: give it here or in a config."


def _module(fault: Fault) -> str | None:
    """A class, or a function, with its module, which Python does not find."""
    functions = "Callable" in fault.types
    kind = "a class or a function" if functions else "a class"
    texts = fault.texts if functions else fault.texts[-1:]  # what else the key takes may stand in the last one
    if missing := _last(r"(?:Type .+ expects .+: )?No module named '(.+)'", texts):
        if fault.classes[-1].endswith((".yaml", ".yml")):
            return (
                f"Expected `{fault.where}` to be {kind} or a file of one, but there is no file {fault.classes[-1]!r}."
            )
        return (
            f"Expected `{fault.where}` to be {kind} that Python finds, but got {fault.classes[-1]!r}, and there is no "
            f"module {missing[1]!r}. Run the command in the module's folder, or name that folder in PYTHONPATH."
        )
    if lacking := _last(r"(?:Type .+ expects .+: )?module '(.+)' has no attribute '(.+)'", texts):
        members = vars(importlib.import_module(lacking[1]))
        known = [name for name, value in members.items() if isinstance(value, type) or (functions and callable(value))]
        return (
            f"Expected `{fault.where}` to be {kind}, but the module {lacking[1]!r} has no {lacking[2]!r}. The nearest "
            f"are: {nearest(lacking[2], known)}."
        )
    return None


def _class(fault: Fault) -> str | None:
    """A name that is no class's, or that of a class of another kind."""
    other = next(
        filter(None, (re.match(r"Import path (.+) does not corr.* subclass of (\w+)", t) for t in fault.texts)), None
    )
    match = next(filter(None, (re.match(r"Expected a dot import path string: (.+)", t) for t in fault.texts)), None)
    if other is None and match is None:
        return None
    kind, name = (other[2], other[1]) if other else ("", match[1] if match else "")
    known = known_classes(fault, kind)
    if not known and "typing.Literal[" in fault.types:
        return None  # a word, or a function: no class
    labels = {metric.label: metric.__name__ for metric in METRICS.values()}
    if name in labels:
        return (
            f"Expected `{fault.where}` to name classes, but got {name!r}: that is the table's word for {labels[name]}."
        )
    what = f"{_article(kind)} {kind}" if kind else "the name of a class"
    return (
        f"Expected `{fault.where}` to be {what}, but got {name!r}. The nearest are: "
        f"{nearest(name.rpartition('.')[2], known)}. A class of your own is named with its module: my_module.Mine."
    )


def _article(noun: str) -> str:
    return "an" if noun[:1].lower() in "aeiou" else "a"


def _value(fault: Fault) -> str | None:
    """A value of another type."""
    text = "\n".join(fault.texts)
    if got := re.search(r"\. Got value: (.*)$", text, re.MULTILINE):  # what follows says it once more for other types
        text, fault.given = text[: got.start()], got[1]
    kinds = re.findall(r"Expected a (<class '[^']+'>|typing\.Literal\[[^]]*\])", text)
    if not kinds or fault.given is None:
        return None
    choices = [choice for kind in kinds for choice in re.findall(r"['\"]([^'\"]+)['\"]", kind) if "Literal" in kind]
    words = [f"one of {', '.join(choices)}" if len(choices) > 1 else repr(choices[0])] if choices else []
    words += dict.fromkeys(word for kind in kinds if "Literal" not in kind for word in [_type_word(kind)])
    expected = " or ".join(words)
    advice = _advice(fault, choices)
    return f"Expected `{fault.where}` to be {expected}, but got {fault.given!r}.{advice}"


def _type_word(kind: str) -> str:
    name = re.sub(r"<class '(.+)'>", r"\1", kind).rpartition(".")[2]
    return "a list" if name in _LISTS else _WORDS.get(name, name)


def _advice(fault: Fault, choices: Sequence[str]) -> str:
    """What to do about a value, as a sentence with a space before it."""
    given = fault.given or ""
    if fault.where.endswith("target"):
        names = [name.casefold() for name in imagenet_names()]
        key = given.replace("_", " ").casefold()
        if key in names:
            return f" A class is given by its number here: {key!r} is number {names.index(key)} of ImageNet's classes."
        return " A class is given by its number here."
    if any(kind in fault.types for kind in _LISTS) and given and not given.startswith("["):
        return f" A list is written in brackets: [{given}]."
    return f" The nearest are: {nearest(given, choices)}." if choices else ""


class DroppedSettings(logging.Handler):
    """Collects which settings jsonargparse drops where a later config, or word, names another class.

    Args:
        words: of the command line. Where they name the new class, the change is meant, and nothing is said.

    Attributes:
        notes: one sentence for each such change, in their order.
    """

    _CHANGE = re.compile(r"Due to class_path change from '(.+)' to '(.+)', discarding init_args: (\{.+\})\.$")

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__()
        self._named = {word.rpartition("=")[2].rpartition(".")[2] for word in words}
        self.notes: dict[str, None] = {}

    def logger(self) -> logging.Logger:
        """A logger for a parser that tells only this handler."""
        logger = logging.getLogger(f"{__name__}.parser")  # a parser is copied, and only known loggers can be
        logger.setLevel(logging.DEBUG)
        logger.propagate, logger.handlers = False, [self]
        return logger

    def emit(self, record: logging.LogRecord) -> None:
        """Take a message of the parser."""
        if change := self._CHANGE.match(record.getMessage()):
            old, new, settings = _short(change[1]), _short(change[2]), change[3]
            note = (
                f"{old} of an earlier config is replaced by {new}, and its settings are dropped: {settings}. Of "
                "several configs the later one counts: give the one with the class that you want last."
            )
            self.notes |= {} if new in self._named else {note: None}


def settings_of(path: str) -> list[str]:
    """The settings that a class takes from a config.

    Example:
        >>> settings_of("optcam_pl.explainers.GradCAM")[:2]
        ['layer', 'selectivity']
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(_imported(path), fail_untyped=False)
    return list(dict.fromkeys(key.partition(".")[0] for key in vars(parser.get_defaults(skip_validation=True))))


def known_classes(fault: Fault, kind: str = "") -> list[str]:
    """The names of the classes that a key may have, from the types in a message or in the class's signature.

    Args:
        fault: has the types, or the class whose setting it is.
        kind: the name of the base class, if the message says it.
    """
    words = re.findall(r"[A-Za-z_][\w.]*\.[A-Za-z_]\w*", fault.types)
    scope: dict[str, Any] = {}
    if not words and fault.classes:
        owner = _imported(fault.classes[-1])
        scope = vars(sys.modules[owner.__module__])
        setting = inspect.signature(owner).parameters.get(fault.keys[-1])
        words = [kind, *re.findall(r"[A-Za-z_]\w*", str(setting.annotation) if setting else "")]
    bases = [scope[word] if word in scope else _imported(word) for word in words if word in scope or "." in word]
    if L.LightningModule in bases:
        bases = [RunTask]
    ours = [base for base in bases if isinstance(base, type) and base.__module__.startswith(("optcam_pl", "lightning"))]
    found = {sub for base in ours for sub in (base, *_below(base))}
    return sorted({sub.__name__ for sub in found if not inspect.isabstract(sub) and not sub.__name__.startswith("_")})


def _below(base: type[Any]) -> list[type[Any]]:
    return [sub for child in base.__subclasses__() for sub in (child, *_below(child))]


def _imported(path: str) -> type[Any]:
    module, _, name = path.rpartition(".")
    found: type[Any] = getattr(importlib.import_module(module), name)
    return found


def _short(path: str) -> str:
    return path.rpartition(".")[2]
