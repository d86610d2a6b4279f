"""`optcam init`: a folder with a commented config and a network, to be changed into the user's own."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from optcam_pl.checks import expanded_path
from optcam_pl.runs.files import write_file

_FILES = ("config.yaml", "my_net.py")


def init_command(argv: Sequence[str]) -> int:
    """`optcam init FOLDER`: write a config and a network that work as they are; returns the exit code.

    Raises:
        FileExistsError: the folder has one of these files already.
    """
    parser = argparse.ArgumentParser(
        prog="optcam init", description="Write a folder with a commented config and a network, to put yours in."
    )
    parser.add_argument("folder", metavar="FOLDER", help="a new folder, or one without config.yaml and my_net.py")
    folder = expanded_path(parser.parse_args(argv).folder)
    for path in (folder / name for name in _FILES):
        if path.exists():
            raise FileExistsError(f"Expected a folder without {path.name}, but {path} exists. Give another folder.")
    for name in _FILES:
        text = files("optcam_pl.cli").joinpath(f"project/{name}").read_text(encoding="utf-8")
        write_file(folder / name, text.replace("FOLDER", folder.as_posix()))
    _tell(folder)
    return 0


def _tell(folder: Path) -> None:
    config, runs = shlex.quote(str(folder / "config.yaml")), shlex.quote(str(folder / "runs"))
    print(
        f"{folder / 'config.yaml'}: the settings, with comments\n{folder / 'my_net.py'}: the network; put yours in\n\n"
        f"Both work as they are:\n  optcam compare --config {config} --explainers OptiCAM GradCAM --run_dir {runs}"
    )
