"""`optcam verify`: are run folders complete and sound?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from optcam_pl.reports.grids import printable
from optcam_pl.reports.report import find_runs
from optcam_pl.runs.files import RunFolderError


def verify_command(argv: Sequence[str]) -> int:
    """`optcam verify RUN_DIR...`; returns the exit code, 0 where every run is complete and sound."""
    parser = argparse.ArgumentParser(
        prog="optcam verify",
        description="Check that run folders are complete and sound: checksums, each image once, no contradiction.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="a run folder, or a folder with runs below it")
    options = parser.parse_args(argv)
    from optcam_pl.reports.verify import verify  # loads PyTorch

    try:
        runs = find_runs(options.runs)
    except RunFolderError as error:
        print(f"optcam verify: {printable(str(error))}", file=sys.stderr)
        return 1
    sound = True
    for run in runs:
        problems = verify(run)
        sound &= not problems
        print(f"{printable(str(run))}: {'sound' if not problems else f'{len(problems)} problem(s)'}")
        for problem in problems:
            print(f"  {printable(problem)}")
    return 0 if sound else 1
