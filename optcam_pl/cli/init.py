"""`optcam init`: a folder with a commented config and a network, to be changed into the user's own."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from importlib.resources import files

import yaml

from optcam_pl.checks import expanded_path
from optcam_pl.reports.grids import printable
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
    config, runs = (printable(shlex.quote((folder / name).as_posix())) for name in ("config.yaml", "runs"))
    network = yaml.safe_dump(f"{folder.as_posix()}/my_net.py:Net", width=10_000, allow_unicode=True).split("\n")[0]
    words = {"CONFIG": config, "RUNS": runs, "NETWORK": network}
    for name in _FILES:
        text = files("optcam_pl.cli").joinpath(f"project/{name}").read_text(encoding="utf-8")
        write_file(folder / name, re.sub(r"\b(CONFIG|RUNS|NETWORK)\b", lambda found: words[found[1]], text))
    print(
        f"{folder / 'config.yaml'}: the settings, with comments\n{folder / 'my_net.py'}: the network; put yours in\n\n"
        f"Both work as they are:\n  optcam compare --config {config} --explainers OptiCAM GradCAM --run_dir {runs}"
    )
    return 0
