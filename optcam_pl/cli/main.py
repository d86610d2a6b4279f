"""The command `optcam`: it calls the command that was asked for, and prints errors.

A command is imported when it is called: `optcam --help`, `report` and `verify` load neither Lightning nor a
network. Those that run the network load it only once their words are read, so that their --help comes at once.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import select
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from optcam_pl.checks import ToldError, expanded_path
from optcam_pl.cli.errors import plain
from optcam_pl.cli.waiting import wait_as_fits
from optcam_pl.cli.words import unknown_command, with_files, with_paths
from optcam_pl.network.allocator import keep_freed_memory
from optcam_pl.runs.signals import Stopped, follow_launcher, stop_signals


class Command(NamedTuple):
    """One command of our own.

    Attributes:
        module: module of its function, which is called NAME_command and takes the words and returns the exit code.
        usage: the words after its name.
        summary: what it does, in one line.
        several: whether it runs the network, possibly in several processes.
    """

    module: str
    usage: str
    summary: str
    several: bool = False


COMMANDS = {
    "compare": Command(
        "optcam_pl.cli.compare",
        "--config FILE --explainers A B ...",
        "test several explainers (`all`: every one), print one table",
        several=True,
    ),
    "report": Command(
        "optcam_pl.cli.report", "RUN_DIR...", "print that table from finished runs, or write a page (--html)"
    ),
    "verify": Command("optcam_pl.cli.verify", "RUN_DIR...", "check that a run is whole"),
    "sanity": Command(
        "optcam_pl.cli.sanity", "--config FILE", "do the maps change when the network forgets", several=True
    ),
    "init": Command("optcam_pl.cli.init", "FOLDER", "write a commented config for your own network and images"),
    "completion": Command("optcam_pl.cli.completion", "bash|zsh", "print completions for your shell"),
    "sweep": Command(
        "optcam_pl.cli.sweep", "--config FILE --grid KEY=A,B ...", "test every point of a grid, draw it", several=True
    ),
    "paper": Command(
        "optcam_pl.cli.paper", "TABLE --data.root FOLDER", "a table of the paper beside its own values", several=True
    ),
}
TRAINER_COMMANDS = {
    "fit": "fit Opti-CAM's weights for every image, or train a network",
    "validate": "measure a network on its validation images",
    "test": "explain every image and measure the maps, or measure a network",
    "predict": "explain every image, write maps and overlays",
}

# Lightning warnings that the user cannot fix or chose.
_IGNORED = (
    ".*does not have many workers.*",
    ".*is smaller than the logging interval.*",
    ".*Trainer already configured with model summary callbacks.*",
    ".*module\\(s\\) in eval mode at the start of training.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ".*ended the run before its end.*",  # the command says it as its last words
    # Every process logs the numbers of all rows already.
    ".*It is recommended to use `self.log\\('((test|validate)/.*|step)', ..., sync_dist=True\\)`.*",
    ".* maps are zero everywhere and say nothing about the network.*",  # stands below the table, or is printed
)


_UNREAD_EXIT_CODE = 141  # as of a program that the signal SIGPIPE has ended


def help_text() -> str:
    """What `optcam --help` prints."""
    lines = [f"  optcam {name + ' --config FILE':<52}{summary}" for name, summary in TRAINER_COMMANDS.items()]
    lines += [f"  optcam {f'{name} {command.usage}':<52}{command.summary}" for name, command in COMMANDS.items()]
    commands = "\n".join(lines)
    return f"""usage: optcam COMMAND ...

Explain an image classifier's decisions by saliency maps, and measure the explanations.

Commands (each has its own --help):
{commands}

Several --config are merged in their order; single settings come after them. A config is a file, or one of the package's
by name: demo, predict, data/coco, paper/table1_resnet50 ...

For example:
  optcam compare --config demo --explainers OptiCAM GradCAM FakeCAM
  optcam predict --config predict --data.paths photo.jpg
  optcam test --config demo --model.explainer.max_iter 50 --print_config
"""


def run(argv: Sequence[str]) -> int:
    """Carry out one command; errors are raised.

    Args:
        argv: the words after `optcam`.

    Returns:
        The exit code: 0; 3 where images could not be read; 4 where a limit of the Trainer has cut the run short; 130 or
        143 after a signal. In the processes that another one has started for its run 0 as well: that one gives the exit
        code.
    """
    argv = [_expanded_word(word) for word in argv]
    if argv in ([], ["-h"], ["--help"]):
        print(help_text(), end="")
        return 0 if argv else 2
    command = COMMANDS.get(argv[0])
    if command is None and argv[0] not in TRAINER_COMMANDS:
        raise ValueError(unknown_command(argv[0], [*TRAINER_COMMANDS, *COMMANDS]))
    if command is not None and not command.several:
        function = _function(argv[0], command)
        with _quiet():
            return function(argv[1:])
    argv = with_paths(with_files(argv))
    follows = follow_launcher()
    try:
        if command is not None and _answered(argv):
            return 0
        # Imported before `_quiet`: Lightning sets the levels of its loggers when it is imported.
        function = _trainer_command if command is None else _function(argv[0], command)
        importlib.import_module("optcam_pl.cli.lightning_cli")
        with _quiet(), stop_signals():
            code = function(argv if command is None else argv[1:])
    except Stopped as stopped:
        code = stopped.exit_code
    except SystemExit:  # said by the first process
        if not follows:
            raise
        code = 0
    return 0 if follows else code


def _computes(first: Sequence[str]) -> bool:
    """Whether the first word is a command that runs the network."""
    return any(word in TRAINER_COMMANDS or (word in COMMANDS and COMMANDS[word].several) for word in first)


def _function(name: str, command: Command) -> Callable[[Sequence[str]], int]:
    function: Callable[[Sequence[str]], int] = getattr(importlib.import_module(command.module), f"{name}_command")
    return function


def _answered(argv: Sequence[str]) -> bool:
    """Whether a command that runs the network needed none, as for its list; --help ends it here, too."""
    from optcam_pl.cli.parsers import answered

    return answered(argv[0], argv[1:])


def _trainer_command(argv: Sequence[str]) -> int:
    from optcam_pl.cli.lightning_cli import OptcamCLI

    return OptcamCLI(argv).exit_code


def _expanded_word(word: str) -> str:
    """A word of the command line with its path expanded: shells expand none in quotes or after a ``=``."""
    key, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    return f"{key}{equals}{expanded_path(value) if value.startswith(('~', '$')) else value}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what Lightning prints at every run."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in _IGNORED:
            warnings.filterwarnings("ignore", message=message)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def main(args: Sequence[str] | None = None) -> int:
    """The console command.

    Args:
        args: the words after `optcam`; None takes those of the process, and then an error that the user can fix is
            told in one sentence (with its traceback if OPTCAM_TRACEBACK is set) instead of being raised.

    Returns:
        The exit code: that of `run`; 2 after an error that was told; 141 if nobody reads its output any more, as
        behind ``| head``.
    """
    if args is not None:
        return run(args)
    keep_freed_memory()
    if _computes(sys.argv[1:2]):
        wait_as_fits()
    _find_own_modules()
    warnings.showwarning = _show_warning
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_unread(sys.stdout):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at its end
            return _UNREAD_EXIT_CODE
        if not _is_told(error):
            raise
        if os.environ.get("OPTCAM_TRACEBACK"):
            traceback.print_exc()
        else:
            print(f"optcam: error: {_sentence(error)}\n(OPTCAM_TRACEBACK=1 shows where)", file=sys.stderr)
        return 2
    return code


def _is_unread(stream: Any) -> bool:
    """Whether the reader of a pipe has ended; another pipe may be the broken one, such as that to a loader process."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """A warning that we give is a sentence for the user; its place in the code says nothing to him."""
    ours = str(message).strip() if issubclass(category, UserWarning) else ""
    text = f"optcam: note: {ours}\n" if ours else warnings.formatwarning(message, category, filename, lineno, line)
    (sys.stderr if file is None else file).write(text)


def _sentence(error: Exception) -> str:
    """The words of an error, without the class in whose constructor jsonargparse met it."""
    return re.sub(r"\AProblem with given class_path '[^']+':\n\s*", "", plain(str(error)))


def _find_own_modules() -> None:
    """Let configs name classes of modules in the current folder, as `python -m` does.

    The folder comes last, so that a file in it never takes the place of an installed module.
    """
    if not getattr(sys.flags, "safe_path", False):  # python -P, from 3.11 on
        sys.path.append(str(Path.cwd()))


def _is_told(error: Exception) -> bool:
    """Whether the user can fix it: our own errors, and those of Lightning about the trainer's settings."""
    if isinstance(error, (ValueError, TypeError, ImportError, OSError, ToldError)):
        return True
    lightning = sys.modules.get("lightning.fabric.utilities.exceptions")
    return lightning is not None and isinstance(error, lightning.MisconfigurationException)
