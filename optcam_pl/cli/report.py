"""`optcam report`: the table of finished runs, made again from their rows, or a page to look at and to send."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import Any, get_args

from optcam_pl.checks import expanded_path
from optcam_pl.cli.output import show, tell
from optcam_pl.reports.grids import printable, render
from optcam_pl.reports.report import find_runs, load_run, report
from optcam_pl.reports.statistics import Method
from optcam_pl.reports.tables import Format
from optcam_pl.runs.files import RunFolderError, write_file

_OF_TABLE = ("format", "output", "published", "agreement")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="optcam report", description="Print the table of finished or unfinished runs, made from their rows."
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN_DIR", help="a run folder, or a folder with runs below it")
    add("--format", choices=get_args(Format), help="default: text")
    add("--output", metavar="FILE", help="write the table to this file instead of printing it")
    add(
        "--intervals",
        choices=("none", *get_args(Method)),
        default="bca",
        help="95 %% bootstrap intervals; default: bca",
    )
    add("--against", metavar="RUN_DIR", help="also print the differences to this run, with intervals and p values")
    add(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="load metrics of your own first; needed only for those that define `of_means`",
    )
    add(
        "--html",
        metavar="PLACE",
        help="write a page instead: table, charts, settings, and a gallery of the maps; into this folder, or into one "
        "file if it ends in .html",
    )
    add("--limit", type=int, metavar="N", help="with --html, at most so many images in the gallery; default: 500")
    add("--published", action="store_true", help="put the paper's values beside ours, or say which settings differ")
    add("--agreement", action="store_true", help="also print how far the metrics agree on the runs' order")
    add("--figure", metavar="FILE", help="with --agreement, draw it into this file")
    return parser


def report_command(argv: Sequence[str]) -> int:
    """`optcam report RUN_DIR... [options]`; returns the exit code."""
    options = _options(argv)
    try:
        for module in options.modules:
            importlib.import_module(module)
        if options.html:
            print(printable(_page(options)))
            return 0
        text = report(
            options.runs,
            options.format or "text",
            beside_paper=options.published,
            **_shared(options),
        )
        if options.agreement:
            text += "\n" + _agreement(options)
        if options.output:
            write_file(expanded_path(options.output), text)
        else:
            show(text)
    except (RunFolderError, ImportError, ValueError) as error:
        tell(f"optcam report: {printable(str(error))}")
        return 1
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    """The options; one that would change nothing beside the others ends the command."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.figure and not options.agreement:
        parser.error("--figure draws the agreement of metrics: it needs --agreement")
    if options.agreement and options.format in ("csv", "json"):
        parser.error(f"--agreement is a table for people: --format text, markdown or latex, not {options.format}")
    of_table = [name for name in _OF_TABLE if getattr(options, name)]
    if options.html and of_table:
        parser.error(f"--{of_table[0]} is of the table, which --html does not print: give one of the two")
    if options.limit is not None and not options.html:
        parser.error("--limit is of the page's gallery: it needs --html")
    return options


def _shared(options: argparse.Namespace) -> dict[str, Any]:
    """What the table and the page are made with."""
    return {"intervals": None if options.intervals == "none" else options.intervals, "against": options.against}


def _page(options: argparse.Namespace) -> str:
    """Write the page; the sentence that says where it is."""
    from optcam_pl.reports.page import write_page  # loads matplotlib

    page = write_page(
        options.runs,
        options.html,
        limit=500 if options.limit is None else options.limit,
        **_shared(options),
    )
    if page == expanded_path(options.html):  # one file
        return f"{page}: open it in a browser, or send it"
    return f"{page}: open it in a browser; to send it, send its folder {page.parent}"


def _agreement(options: argparse.Namespace) -> str:
    """The table of the metrics' agreement; its figure is drawn where it was asked for."""
    from optcam_pl.reports.agreement import agreement  # loads scipy.stats

    found = agreement([load_run(path) for path in find_runs(options.runs)])
    if options.figure:
        path = expanded_path(options.figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        found.figure().savefig(path, dpi=120)
    return render(found.grid(), options.format or "text")
