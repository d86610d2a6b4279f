"""`optcam sanity`: do the maps change when the network forgets?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from optcam_pl.checks import expanded_path
from optcam_pl.cli.lightning_cli import OptcamCLI
from optcam_pl.evaluate.sanity import check, summary
from optcam_pl.tasks import SaliencyTask


def sanity_command(argv: Sequence[str]) -> int:
    """`optcam sanity [--stages NAME...] ...`; returns the exit code.

    Args:
        argv: the words after `optcam sanity`.
    """
    parser = argparse.ArgumentParser(
        prog="optcam sanity",
        description="Randomize the network's stages one after the other, from the head down, and compare the maps with "
        "the trained network's. All other arguments (--config FILE, --data.root FOLDER ...) are `optcam test`'s.",
        allow_abbrev=False,
    )
    names = "dotted names, in this order; default: every one, from the head down"
    parser.add_argument("--stages", nargs="+", metavar="NAME", help=names)
    parser.add_argument("--random_seed", type=int, default=0, help="of the random weights; default: 0")
    parser.add_argument("--run_dir", help="folder of the result instead of a new one under logs/")
    options, rest = parser.parse_known_args(argv)
    cli = OptcamCLI(["test", *rest], dry=True)
    task, data = cli.model, cli.datamodule
    if not isinstance(task, SaliencyTask):
        raise TypeError(f"Expected a SaliencyTask to check, but got {type(task).__name__}.")
    method = task.explainer.title
    device = cli.trainer.strategy.root_device
    network, explainer = task.classifier.to(device).requires_grad_(False), task.explainer.to(device)
    found = check(network, explainer, data, task.target, names=options.stages, seed=options.random_seed)
    folder = expanded_path(options.run_dir) if options.run_dir else _new_folder(Path("logs", data.name, method))
    result = summary(f"{method} on {task.classifier.name}, {data.name}", found)
    result.save(folder)
    print(f"{result.text()}\n\nresult:      {folder / 'sanity.json'}, {folder / 'sanity.png'}")
    return 0


def _new_folder(parent: Path) -> Path:
    number = 0
    while (parent / f"sanity_{number}").exists():
        number += 1
    return parent / f"sanity_{number}"
