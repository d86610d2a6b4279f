"""`optcam gallery`: one page with the overlays of several runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from optcam_pl.reports.page import gallery
from optcam_pl.reports.tables import printable
from optcam_pl.runs.files import RunFolderError


def gallery_command(argv: Sequence[str]) -> int:
    """`optcam gallery RUN_DIR... --output FILE [--limit N]`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="optcam gallery", description="Write one HTML page with the overlays of several runs side by side."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="a run folder, or a folder with runs below it")
    parser.add_argument("--output", metavar="FILE", required=True, help="the page")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="at most so many images; default: 50")
    options = parser.parse_args(argv)
    try:
        print(printable(str(gallery(options.runs, options.output, options.limit))))
    except (RunFolderError, ValueError) as error:
        print(f"optcam gallery: {printable(str(error))}", file=sys.stderr)
        return 1
    return 0
