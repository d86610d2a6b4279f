"""`optcam completion`: the tab key completes commands, configs by name, explainers and the usual options.

The script asks the command itself for the words (`optcam completion words ...`), which loads no network: it takes a
tenth of a second.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from optcam_pl.cli.words import CONFIGS, config_names

_BASH = """_optcam() {
  local IFS=$'\\n' words="$(optcam completion words -- "${COMP_WORDS[@]:1:COMP_CWORD}")"
  COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _optcam optcam
"""
_SCRIPTS = {"bash": _BASH, "zsh": f"autoload -U +X bashcompinit && bashcompinit\n{_BASH}"}
_OPTIONS = (
    *("--config", "--run_dir", "--resume", "--shard", "--threads", "--print_config", "--help", "--data.root"),
    *("--data.paths", "--data.limit", "--data.batch_size", "--data.num_workers", "--model.explainer", "--model.target"),
    *("--model.metrics", "--model.baseline", "--model.classifier.network", "--model.classifier.weights"),
    *("--trainer.accelerator", "--trainer.devices"),
)


def completion_command(argv: Sequence[str]) -> int:
    """`optcam completion bash|zsh` prints a script; `optcam completion words -- WORD...` what may come last."""
    parser = argparse.ArgumentParser(
        prog="optcam completion",
        description='Print a script for your shell: eval "$(optcam completion bash)", or append it to ~/.bashrc.',
    )
    parser.add_argument("shell", choices=(*_SCRIPTS, "words"))
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    print("\n".join(candidates(options.words)) if options.shell == "words" else _SCRIPTS[options.shell], end="")
    return 0


def candidates(words: Sequence[str]) -> list[str]:
    """What may stand in place of the last word.

    Args:
        words: after `optcam`, the last one unfinished.

    Example:
        >>> candidates(["com"])[:2], "demo" in candidates(["test", "--config", "de"])
        (['fit', 'validate'], True)
    """
    from optcam_pl.cli.main import COMMANDS, TRAINER_COMMANDS

    if len(words) < 2:
        return [*TRAINER_COMMANDS, *COMMANDS]
    option = next((word for word in reversed(words[:-1]) if word.startswith("-")), "")
    if option in ("-c", "--config") and words[-2] == option:
        return config_names()
    if option in ("--explainers", "--model.explainer") and not words[-1].startswith("-"):
        return [*explainers(), *(["all"] if option == "--explainers" else [])]
    return [*_OPTIONS, *(["--explainers", "--format"] if words[0] == "compare" else [])]


def explainers() -> list[str]:
    """The classes that the blocks of configs/explainer name.

    Example:
        >>> {"GradCAM", "FinerCAM"} <= set(explainers())
        True
    """
    blocks = [Path(file).read_text(encoding="utf-8") for file in sorted((CONFIGS / "explainer").glob("*.yaml"))]
    named = re.compile(r"^class_path: (?:.*\.)?(\w+)$", re.MULTILINE)
    return sorted({name for block in blocks for name in named.findall(block)})
