"""What the words of a command line mean before any of them is parsed: configs by name, and several paths.

Also the parser of the commands that make several runs. It imports no network, so that every command can use it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

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


def find_config(given: str) -> Path:
    """The file of a config: one of the user's, or one of the package's by its name, which works in any folder.

    A file of the user's comes first. A name may have the folder and the suffix that it has in the repository:
    ``configs/demo.yaml`` is ``demo``.

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
        raise IsADirectoryError(f"Expected `--config` to be a file, but {given!r} is a folder.")
    raise FileNotFoundError(
        f"Expected `--config` to be a YAML file or the name of one of the package's configs, but there is no file "
        f"{given!r} in {Path.cwd()}. The nearest names are: {nearest(name, config_names())}."
    )


def with_files(words: Sequence[str]) -> list[str]:
    """The words with the file of each config that is given by name.

    Raises:
        FileNotFoundError, IsADirectoryError: as `find_config`.
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
    if given.lstrip().startswith("{") or not given:  # the settings themselves, as YAML
        return given
    found = find_config(given)
    return str(found) if found.is_relative_to(CONFIGS) else given


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
