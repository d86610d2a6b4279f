"""Everything that wants a GPU, in one go and within 12 minutes: the tests marked `cuda`, then the benchmarks.

    python benchmarks/on_gpu.py [--images-from IMAGENET_SAMPLE] [--minutes 12] [--only STEP ...] [--dry] [--out FOLDER]

Each step is a process of its own with a share of the time; one that fails or takes too long does not stop the others.
The tests' output goes to FOLDER/tests.txt, that of each benchmark to results/<machine>/, and a table of the steps to
FOLDER/on_gpu.md. Without photographs to read, the steps that need some are left out. `--dry` does all of this on a CPU
with the smallest settings, to see that the script itself works: there, tests that need a GPU are skipped, and its
numbers mean nothing.

Exit code: 0 if every step came to its end (a benchmark whose claims do not hold has come to its end), else 1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests" / "explainers" / "test_on_cuda.py"  # collecting all of them takes longer than these


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        name: in the table.
        words: what Python runs.
        share: of the minutes, at most.
        fine: exit codes that mean that it came to its end.
    """

    name: str
    words: tuple[str, ...]
    share: float
    fine: tuple[int, ...] = (0,)


def steps(dry: bool, photographs: str | None) -> list[Step]:
    """What is done, the most wanted first."""
    device = ["--device", "cpu", "--threads", "1", "--machine", "dry"] if dry else ["--device", "cuda"]

    def script(name: str, *words: str, share: float = 0.15) -> Step:
        return Step(name, (str(HERE / f"{name}.py"), *device, *words), share, fine=(0, 1))

    network = "timm/test_resnet" if dry else "torchvision/resnet50"
    layer = "layer4" if not dry else "layer2"
    few = ("--rounds", "1") if dry else ("--rounds", "3")
    many = "4" if dry else "64"
    found = [
        Step("tests", ("-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", str(TESTS)), 0.3, fine=(0, 5)),
        script("opticam", "--networks", network, "--batch", *(["2"] if dry else ["8", "64"]),
               "--batches", "1", "8", many, "--iterations", "2" if dry else "50", *few, share=0.3),
        script("score_cam", "--networks", network, "--layers", layer, "--chunk", many, *few),
        script("masks", "--network", network, "--chunk", many, "--num-masks", "32" if dry else "2048",
               "--parts", "rise", *few),
        script("perturbation_curves", "--network", network, "--images", "2" if dry else "8", "--chunk", many,
               "--steps", "8" if dry else "112", *few),
    ]  # fmt: skip
    if photographs is not None:
        # Blocks of one size: a smaller last one, of a handful, would be a large part of a run and of its plain passes.
        read = ("--images-from", photographs, "--batch", "4" if dry else "100", "--workers", "0" if dry else "8")
        whole = ("--images", "8" if dry else "500", "--iterations", "2" if dry else "100", "--parts", "metrics")
        small = ("--network", network) if dry else ()
        found.append(script("whole_run", *small, *whole, *read, "--rounds", "1" if dry else "3"))
        found.append(script("precision", *read, "--images", "4" if dry else "200", "--presets", "fast"))
    return found


def run(step: Step, seconds: float, out: Path) -> tuple[str, float]:
    """What became of a step, in a word or two, and its seconds."""
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    with (out / f"{step.name.replace(' ', '_')}.txt").open("a") as file:
        try:
            done = subprocess.run(
                [sys.executable, *step.words],
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=max(1.0, seconds),
                cwd=HERE.parent,
                env=environment,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"cut off after {seconds:.0f} s", time.perf_counter() - start
    word = "done" if done.returncode in step.fine else f"failed (exit code {done.returncode})"
    return word, time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "on_gpu")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="the steps to do; default: all")
    parser.add_argument("--images-from", help="a folder of ImageNet photographs, one folder for each wnid")
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        parser.error("there is no GPU here; --dry shows that the script itself works.")
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.perf_counter() + 60 * options.minutes
    machine = "a CPU, a dry run" if options.dry else torch.cuda.get_device_name()
    lines = [f"# {machine}, torch {torch.__version__}", "", "| step | | seconds |", "|---|---|---:|"]
    failed = False
    for step in steps(options.dry, options.images_from):
        if options.only and step.name not in options.only:
            continue
        word, seconds = run(step, min(60 * options.minutes * step.share, end - time.perf_counter()), options.out)
        failed = failed or word != "done"
        lines.append(f"| {step.name} | {word} | {seconds:.0f} |")
        print(lines[-1], flush=True)
        (options.out / "on_gpu.md").write_text("\n".join(lines) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
