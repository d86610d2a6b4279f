"""What the words of a command line mean before any of them is parsed: configs by name, and several paths.

Also the parser of the commands that make several runs. It imports no network, so that every command can use it.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from optcam_pl.checks import expanded_path, nearest

# The configs come with a wheel inside the package, and stand beside it in a checkout.
_PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = next((d for d in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if d.is_dir()), _PACKAGE)
"""The folder of the package's own configs."""

_CONFIG = ("-c", "--config")
_SEVERAL = "--data.paths"


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """The parser of a command that passes the words that it does not know on to `optcam test`, as they stand."""
    return argparse.ArgumentParser(
        prog=f"optcam {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # a short form might be a word of `optcam test`
    )


def config_names() -> list[str]:
    """The names of the package's configs: ``demo``, ``paper/table1_resnet50``, ``data/coco``, ...

    Example:
        >>> {"demo", "paper/table1_resnet50", "data/coco"} <= set(config_names())
        True
    """
    return sorted(file.relative_to(CONFIGS).with_suffix("").as_posix() for file in CONFIGS.rglob("*.yaml"))


def find_config(given: str, option: str = "--config") -> Path:
    """The file of a config: one of the user's, or one of the package's by its name, which works in any folder.

    A file of the user's comes first. A name may have the folder and the suffix that it has in the repository:
    ``configs/demo.yaml`` is ``demo``.

    Args:
        given: path or name.
        option: the option that has it, for the messages.

    Raises:
        FileNotFoundError: there is neither; the message lists the nearest names.
        IsADirectoryError: it is a folder.

    Example:
        >>> find_config("demo").name, find_config("configs/paper/table1_resnet50.yaml").name
        ('demo.yaml', 'table1_resnet50.yaml')
    """
    file = expanded_path(given)
    if file.is_file():
        return file
    name = given.removeprefix("configs/").removesuffix(".yaml")
    if name in config_names():
        return CONFIGS / f"{name}.yaml"
    if file.is_dir():
        raise IsADirectoryError(f"Expected `{option}` to be a file, but {given!r} is a folder.")
    raise FileNotFoundError(
        f"Expected `{option}` to be a YAML file or the name of one of the package's configs, but there is no file "
        f"{given!r} in {Path.cwd()}. The nearest names are: {nearest(name, [*_beside(file), *config_names()])}."
    )


def _beside(file: Path) -> list[str]:
    """The YAML files in the folder of a file that is not there, as it would be named."""
    folder = file.parent
    return sorted(str(other) for kind in ("*.yaml", "*.yml") for other in folder.glob(kind))


def with_files(words: Sequence[str]) -> list[str]:
    """The words with the file of each config that is given by name.

    Raises:
        FileNotFoundError, IsADirectoryError: as `find_config`.
        ValueError: it is one class with its settings, and not those of a run.
    """
    found: list[str] = []
    is_config = False
    for word in words:
        option, equals, value = word.partition("=")
        if is_config:
            found.append(_file(word))
        elif option in _CONFIG and equals:
            found.append(f"{option}={_file(value)}")
        else:
            found.append(word)
        is_config = word in _CONFIG
    return found


def _file(given: str) -> str:
    if _is_content(given) or not given:
        return given
    file = config_file(given)
    content = None
    with contextlib.suppress(ValueError):  # what is no YAML is told where it is read
        content = read_yaml(given)
    if isinstance(content, dict) and "class_path" in content:
        raise ValueError(
            f"Expected `--config` to be the settings of a run, but {given!r} is one class with its settings. An "
            f"explainer is given by `--model.explainer {file}`, or `--explainers {Path(file).stem}` of `optcam "
            f"compare`; a dataset by `--data {file}`."
        )
    return file


def config_file(given: str, option: str = "--config") -> str:
    """The word for a config: the file of one of the package's; one of the user's as it was given.

    Raises:
        FileNotFoundError, IsADirectoryError: as `find_config`.
    """
    found = find_config(given, option)
    return str(found) if found.is_relative_to(CONFIGS) else given


def _is_content(given: str) -> bool:
    """Whether a word is the settings themselves, as YAML, and no file of them."""
    return given.lstrip().startswith("{")


def read_yaml(given: str) -> Any:
    """The content of a config, which is given by its path or name, or as YAML itself.

    Raises:
        ValueError: it is not YAML; the message says in which line.
        FileNotFoundError, IsADirectoryError: as `find_config`.

    Example:
        >>> read_yaml("{a: [1, 2]}")
        {'a': [1, 2]}
    """
    try:
        return yaml.safe_load(given if _is_content(given) else find_config(given).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or error
        raise ValueError(
            f"Expected the config {given!r} to be YAML, but{line}: {what}. Indent by spaces, not tabs."
        ) from error


def value_of(key: str, words: Sequence[str]) -> str | None:
    """The last value that words give a setting, as `--key=value` or `--key value`; None if they give none.

    >>> value_of("--data.root", ["--data.root", "a", "--data.root=b"])
    'b'
    """
    found = None
    for number, word in enumerate(words):
        if word.startswith(f"{key}="):
            found = word.partition("=")[2]
        elif word == key and number + 1 < len(words):
            found = words[number + 1]
    return found


def with_paths(words: Sequence[str]) -> list[str]:
    """The words with those after ``--data.paths`` as one list: a shell turns ``*.jpg`` into several words.

    Example:
        >>> with_paths(["predict", "--data.paths", "a.jpg", "b c.jpg", "--threads", "2"])
        ['predict', '--data.paths=["a.jpg", "b c.jpg"]', '--threads', '2']
    """
    if _SEVERAL not in words:
        return list(words)
    start = words.index(_SEVERAL)
    end = next((n for n in range(start + 1, len(words)) if words[n].startswith("--")), len(words))
    paths = words[start + 1 : end]
    if len(paths) < 2:
        return list(words)
    return [*words[:start], f"{_SEVERAL}=[{', '.join(map(_quoted, paths))}]", *words[end:]]


def _quoted(path: str) -> str:
    text = path.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def unknown_command(name: str, known: Iterable[str]) -> str:
    """Says that there is no such command.

    Example:
        >>> unknown_command("tset", ["test", "report"])
        "There is no command 'tset'. The nearest are: 'test', 'report'. `optcam --help` lists all of them."
    """
    return f"There is no command {name!r}. The nearest are: {nearest(name, known)}. `optcam --help` lists all of them."
