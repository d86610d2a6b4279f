"""What the commands that run the network take: their options, and whatever they say without running it.

It loads no network: help, a list and most mistakes come at once, where PyTorch and Lightning take seconds to load.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple, get_args

from optcam_pl.cli.completion import explainers
from optcam_pl.cli.experiments import EXPERIMENTS, Experiment, find_experiment, list_text
from optcam_pl.cli.words import command_parser
from optcam_pl.reports.tables import Format

_COMPARE = """Test several explainers on the same data and print one table. All other arguments (--data.root FOLDER,
--model.target predicted ...) go to `optcam test`, once for each explainer.

--explainers takes classes (GradCAM, my.module.MyExplainer), blocks of configs/explainer/ by name (rise) and YAML files
of such blocks; a table's row and a run's folder are named so. Without it, the config's own list is run: its key
`explainers` has such names, and classes with settings ({class_path: OptiCAM, init_args: {lr: 0.1}, name: slow}). `all`
is every block but is_cam and ss_cam (10 and 35 times the passes of score_cam); those of its methods that cannot work on
the network are listed below the table, with the reason."""

_SWEEP = """Test every point of a grid of settings: `optcam sweep --config FILE --grid KEY=VALUE,VALUE ...`. All
other arguments (--data.root FOLDER ...) go to `optcam test`. Each point has a run folder of its own below --run_dir.
A point that breaks off does not stop the others. The same command goes on where it ended; `--shard 3/16` does every
16th point from the third on, for a job array. The table and the plot show what is there: in FOLDER/report."""

_PAPER = """Run a table or figure of the paper, as far as it is missing, and print it with the published values:

  optcam paper table1 --data.root FOLDER [--network resnet50] [--limit 1000] [any setting of `optcam test`]
  optcam paper --list     what there is, and what it costs
  optcam paper check      does the set-up measure what the paper measures? Before a table is trusted

Each run has a folder below --run_dir, so that the same command goes on where it ended. With the values of another
network (--network demo/efficientnet_lite0) the paper's are marked as another network's."""

_CHECK = """Check a set-up before its numbers stand beside the paper's: `optcam paper check --data.root FOLDER`.

  - top-1 accuracy, with the source's resize and crop, against the source's own
  - Fake-CAM's LE is 54.0 (with --data.boxes FILE), and its SM the network's mean cross-entropy
  - Grad-CAM = HiRes-CAM = XGrad-CAM where the head is average pooling and one linear layer
  - what the resize changes in Grad-CAM's numbers

Six quick runs with a folder each, so that the same command goes on. Other arguments are those of `optcam test`."""


_OF_FORMAT = "of the tables, which stand alone on stdout: all else goes to stderr; default: text"


class Asked(NamedTuple):
    """What the words of a command ask for.

    Attributes:
        options: the command's own options.
        rest: the words for `optcam test`.
        experiments: the tables and figures that `optcam paper` is to make.
        check: whether it is `optcam paper check`.
    """

    options: argparse.Namespace
    rest: list[str]
    experiments: tuple[Experiment, ...] = ()
    check: bool = False


def asked(name: str, argv: Sequence[str]) -> Asked:
    """What the words of a command that runs the network ask for.

    Args:
        name: the command.
        argv: the words after it.

    Raises:
        SystemExit: help was asked for, or an option is wrong; it has been printed.
        ValueError: an unknown table of the paper, or none.
    """
    if name == "paper":
        return _asked_of_paper(argv)
    return Asked(*_PARSERS[name]().parse_known_args(argv))


def _asked_of_paper(argv: Sequence[str]) -> Asked:
    if argv[:1] == ["check"]:
        return Asked(*_check_parser().parse_known_args(argv[1:]), check=True)
    first = next((number for number, word in enumerate(argv) if word.startswith("-")), len(argv))
    options, rest = _paper_parser().parse_known_args(argv[first:])
    if options.list:
        return Asked(options, rest)
    if not argv[:first]:
        raise ValueError(f"Expected a table or figure: {', '.join(EXPERIMENTS)}; `optcam paper --list` describes them.")
    return Asked(options, rest, tuple(map(find_experiment, argv[:first])))


def answered(name: str, argv: Sequence[str]) -> bool:
    """Whether the words ask for nothing that runs the network: then it has been printed.

    Args:
        name: the command.
        argv: the words after it.

    Raises:
        SystemExit, ValueError: as `asked`.
    """
    found = asked(name, argv)
    if vars(found.options).get("list"):
        print(list_text(), end="")
        return True
    return False


def _compare_parser() -> argparse.ArgumentParser:
    parser = command_parser("compare", _COMPARE)
    add = parser.add_argument
    add("--explainers", nargs="+", metavar="NAME", help="all, " + ", ".join(explainers()))
    add(
        "-c",
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="settings; several are merged in their order",
    )
    add(
        "--data",
        action="append",
        default=[],
        metavar="FILE",
        help="a dataset: a block (data/coco), a file of one, or a class; given several times, every explainer is run "
        "on each, and the last table is the mean over them",
    )
    add("--run_dir", help="folder that gets one run folder an explainer, instead of new ones in logs/")
    add(
        "--plan",
        action="store_true",
        help="run nothing: measure each method on the first block for about a minute in total, and print what the "
        "comparison will cost: hours, memory, disk, and its split over several devices",
    )
    add("--quiet", action="store_true", help="no progress; print the tables and what was skipped or failed only")
    add("--format", default="text", choices=get_args(Format), help=_OF_FORMAT)
    return parser


def _sweep_parser() -> argparse.ArgumentParser:
    parser = command_parser("sweep", _SWEEP)
    add = parser.add_argument
    add("-c", "--config", action="append", default=[], metavar="FILE", help="settings; several are merged")
    add(
        "--grid",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE,VALUE",
        help="an axis: a setting of `optcam test` and its values; added to the config's `grid`",
    )
    add("--explainers", nargs="+", metavar="NAME", help="as of `optcam compare`; default: the config's")
    add("--run_dir", default="logs/sweep", help="folder of the runs; default: logs/sweep")
    add("--shard", metavar="I/N", help="do every N-th point, from the I-th on")
    add("--report", action="store_true", help="run nothing; print the table and draw the plot of what is there")
    add("--format", default="text", choices=get_args(Format), help=_OF_FORMAT)
    return parser


def _paper_parser() -> argparse.ArgumentParser:
    parser = command_parser("paper", _PAPER)
    parser.usage = "optcam paper NAME [NAME ...] [options] | --list | check [options]"
    add = parser.add_argument
    add("--list", action="store_true", help="print the tables and figures and what each costs")
    add("--network", nargs="+", metavar="NETWORK", help="of the table's own, or any other; default: all of its own")
    add("--limit", type=int, metavar="N", help="N images, spread evenly over the dataset: --data.limit N")
    add("--explainers", nargs="+", metavar="NAME", help="instead of all of the table's; others as of `optcam compare`")
    add("--grid", nargs="+", action="extend", default=[], metavar="KEY=VALUE,VALUE", help="other values of an axis")
    add("--run_dir", default="logs/paper", help="folder of the runs; default: logs/paper")
    add("--report", action="store_true", help="run nothing; print what is there")
    add("--format", default="text", choices=[name for name in get_args(Format) if name != "json"], help=_OF_FORMAT)
    return parser


def _check_parser() -> argparse.ArgumentParser:
    parser = command_parser("paper check", _CHECK)
    add = parser.add_argument
    add("--network", default="resnet50", metavar="NETWORK", help="of the paper, or any other; default: resnet50")
    add("--limit", type=int, default=1000, metavar="N", help="images, spread evenly; 0: all; default: 1000")
    add("--run_dir", default="logs/paper", help="folder of the runs; default: logs/paper")
    return parser


def _sanity_parser() -> argparse.ArgumentParser:
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
    return parser


_PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "compare": _compare_parser,
    "sanity": _sanity_parser,
    "sweep": _sweep_parser,
}
