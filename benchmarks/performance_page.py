"""Make docs/performance.md from benchmarks/results.

    python benchmarks/performance_page.py [--check]

With --check it writes nothing, and exits with 1 if the page is not what the results say.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
ORDER = (
    "opticam", "score_cam", "ablation_cam", "grad_cam", "masks", "attention", "perturbation_curves", "localization",
    "metrics_host", "whole_run", "bookkeeping", "memory", "startup", "allocator",
)  # fmt: skip
HEAD = """# Performance

<!-- Made by benchmarks/performance_page.py from benchmarks/results: do not edit. -->

What each method costs beside its limit, the bare passes of the network that no program can avoid, and beside other
packages. All sides of a table took turns in one run, and a ratio is the median of the ratios of single rounds, so that
it holds although the pace of a machine changes. Times of different tables, and of different machines, cannot be
compared. `python benchmarks/run.py` repeats everything in about half an hour; `python benchmarks/opticam.py --help`
and the others say what is measured and how to change the sizes.

On Linux the console command lets the process keep the memory of freed tensors, which halves the time of a network on a
CPU; so do these scripts. In Python one line does it, before the first network runs:

```python
from optcam_pl.network.allocator import keep_freed_memory

keep_freed_memory()
```

On a CPU, `Classifier(..., speed="auto")` is the fastest that needs no compiler (`onednn`, see
`optcam_pl.network.onednn`): a network that is explained never needs the gradients of its weights, and then the
gradients of 1x1, depthwise and first convolutions are cheaper than PyTorch has them. With `weights_dtype="bfloat16"`,
on a processor that has this type, it takes about half of that. The tables of Opti-CAM below have both.

On a GPU, `speed="auto"` with `weights_dtype="bfloat16"` is the fastest: batch norms are folded, everything that a batch
needs is replayed as CUDA graphs (the pass that records the features, each iteration with its stop rule and step, the
last pass and the map), and images are masked, normalized and rounded by one kernel (`optcam_pl.kernels`). All of it is
proved against the plain operations when it is made. An iteration of eight images of ResNet50 has 345 kernels; its bare
passes have 319.
"""


def page() -> str:
    """The whole page."""
    studies = sorted((HERE / "results").glob("*.md"))
    parts = [HEAD, *(study.read_text() for study in studies)]
    for folder in sorted(path for path in (HERE / "results").iterdir() if path.is_dir()):
        found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
        if found:
            parts.append(machine(folder.name, found))
    return "\n".join(parts).rstrip("\n") + "\n"


def machine(name: str, found: dict[str, Any]) -> str:
    """The section of one machine."""
    lines = [f"## {name}", ""]
    first = next(iter(found.values()))["machine"]
    where = f"{first['gpu']}, " if "gpu" in first else ""
    where += f"{first['processor']}, {first['cores']} cores, {first['system']}, Python {first['python']}."
    lines += [where, ""]
    for subject in sorted(found, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER)):
        result = found[subject]
        made_on = result["machine"]
        versions = {k: v for k, v in made_on["versions"].items() if k in ("torch", "torchvision")}
        for table in result["tables"]:
            lines += [f"### {table['title']}", ""]
            lines += rows(table)
            lines += [f"- {claim}" for claim in table["claims"]]
            lines += [f"- {key}: {value}" for key, value in table["values"].items()]
            lines += [f"- {note}" for note in table["notes"]]
            said = ", ".join(f"{package} {version}" for package, version in versions.items())
            lines += ["", f"`benchmarks/{subject}.py`, {made_on['date']}, {made_on['threads']} threads, {said}.", ""]
    return "\n".join(lines)


def rows(table: dict[str, Any]) -> list[str]:
    """The Markdown table of a race."""
    if not table["seconds"]:
        return []
    lines = [f"| | {table['unit']} | of the limit |", "|---|---:|---:|"]
    limit = table["seconds"][table["limit"]]
    for name, values in table["seconds"].items():
        ratio = statistics.median(a / b for a, b in zip(values, limit, strict=False))
        lines.append(f"| {name} | {human(statistics.median(values))} | {ratio:.2f} |")
    return [*lines, ""]


def human(seconds: float) -> str:
    """Seconds with three digits and a fitting unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def write() -> None:
    """Write the page."""
    PAGE.write_text(page())


if __name__ == "__main__":
    if "--check" not in sys.argv[1:]:
        write()
    elif PAGE.read_text() != page():
        sys.exit("docs/performance.md is not what benchmarks/results say: run benchmarks/performance_page.py.")
