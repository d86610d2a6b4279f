"""Run every benchmark, each in a process of its own, and make docs/performance.md from the results of all machines.

    python benchmarks/run.py [SUBJECT ...] [--threads 1] [--machine NAME]

A subject is the name of a script here. Options that are not named here go on to every script. Exits with 1 where a
claim does not hold; all others still run. The default sizes take about half an hour on an idle machine of two cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
SUBJECTS = (
    "opticam", "score_cam", "ablation_cam", "grad_cam", "masks", "attention", "perturbation_curves", "localization",
    "metrics_host", "whole_run", "bookkeeping", "memory", "startup", "allocator", "class_logits",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", default=[], metavar="SUBJECT")
    options, others = parser.parse_known_args()
    unknown = sorted(set(options.subjects) - set(SUBJECTS))
    if unknown:
        parser.error(f"Expected subjects among {', '.join(SUBJECTS)}, but got {', '.join(unknown)}.")
    failed = []
    for subject in options.subjects or SUBJECTS:
        start = time.perf_counter()
        words = [sys.executable, "-W", "ignore", str(HERE / f"{subject}.py"), *others]
        code = subprocess.run(words, check=False).returncode
        print(f"{subject}: {time.perf_counter() - start:.0f} s{'' if code == 0 else ', NOT as claimed'}\n", flush=True)
        failed += [subject] if code else []
    print("Not as claimed: " + ", ".join(failed) if failed else "Everything is as claimed.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
