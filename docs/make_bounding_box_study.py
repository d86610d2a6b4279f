"""Run the bounding-box study on made-up images and write its tables.

Run: python docs/make_bounding_box_study.py [OUTPUT.md]   (nothing is downloaded; a quarter of an hour on two cores)

Two networks are trained and explained, one where the shape alone tells the class and one where its surroundings tell it
better. The commands are those that a user would type; the run folders are left in logs/bounding_box.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from optcam_pl.cli import main
from optcam_pl.cli.lightning_cli import OptcamCLI
from optcam_pl.metrics import METRICS
from optcam_pl.reports.report import load_run, summarize
from optcam_pl.reports.tables import Summary

OUTPUT = Path(__file__).with_name("bounding_box.md")
RUNS = Path("logs", "bounding_box")
METHODS = ("OptiCAM", "GradCAM", "ScoreCAM", "FakeCAM")
FAITHFULNESS = ("average_drop", "average_gain", "average_increase")
REGIONS = {"map": "S", "inside_box": "S inside B", "outside_box": "S outside B"}
# Context -> what the data are, and what is said of them.
CONTEXTS = {
    "random": (
        ["--data.correlation=0.0", "--data.fidelity=1.0"],
        "Random context: the shape is always that of the class, the surroundings are arbitrary",
    ),
    "correlated": (
        ["--data.correlation=0.95", "--data.fidelity=0.6"],
        "Correlated context: the surroundings are those of the class for 95.8 % of the images, the shape for 66.7 %",
    ),
}
HEAD = """# Locating is not explaining: the bounding-box study on made-up images

This page repeats table 5 of the paper in a case where the answer is known. `Shapes` draws a textured shape in textured
surroundings; six shapes and six surroundings belong to six classes. In one dataset the shape alone reveals the class;
in the other the surroundings reveal it better. A small network learns each dataset
(`optcam fit --config configs/shapes_fit.yaml`), and the same 600 test images are explained and measured. The box B is
exact, because nothing but the shape lies in it.
`python docs/make_bounding_box_study.py` makes this page. Its numbers come from one thread on a CPU; another machine or
number of threads trains a network whose digits differ.
"""
TAIL = """## What the tables say

- If the shape reveals the class, the box alone explains the decision, and the area outside explains nothing. The maps
  lie on the shape: the pointing game (SP) and the energy in the box (EP) are high. Cutting off the map at the box adds
  at most a few points to Average Drop; the part outside loses more than 80 %.
- If the surroundings reveal the class, the box alone loses most of the probability, and the area outside keeps most of
  it: the object is not the reason for the network's decision. The maps say so: for every method, the part outside the
  box has the lower Average Drop. Every localization score of Opti-CAM, Grad-CAM and Score-CAM is far worse than in the
  first case: a localization benchmark penalizes these maps for being right.
- Fake-CAM's constant map wins Average Drop and each pointing game, because all its pixels but one are maximal; its
  Average Gain is almost zero.
"""


def run(*words: str) -> None:
    """A command of `optcam`, which has to end well."""
    code = main(list(words))
    if code:
        raise SystemExit(f"optcam {' '.join(words)} ended with the exit code {code}.")


def cells(values: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(values)} |"


def grid(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table whose first columns are text and the others numbers."""
    rules = ["---" if i < left else "---:" for i in range(len(head))]
    return "\n".join([cells(head), cells(rules), *map(cells, rows)]) + "\n"


def head(key: str) -> str:
    """A metric's column."""
    return f"{METRICS[key].label} {'↑' if METRICS[key].higher_is_better else '↓'}"


def value(summary: Summary, key: str) -> str:
    """A mean in the digits of the reports."""
    number = summary.metrics[key].value
    return "-" if number is None else f"{number:.2f}" if METRICS[key].unit == "%" else f"{number:.4f}"


def study(context: str) -> str:
    """Train, explain and measure on one dataset; its part of the page."""
    data, title = CONTEXTS[context]
    here = RUNS / context
    weights = f"--model.classifier.weights={here}/fit/checkpoints/best.ckpt"
    run("fit", "--config", "configs/shapes_fit.yaml", *data, f"--run_dir={here}/fit")
    measured = OptcamCLI(["test", "--config", "configs/shapes_fit.yaml", *data, weights, f"--run_dir={here}/accuracy"])
    accuracy = float(measured.trainer.callback_metrics["test/accuracy"])
    common = ["--config", "configs/shapes.yaml", *data, weights]
    for region in REGIONS:
        words = [f"--model.region={region}", f"--run_dir={here}/{region}"]
        run("compare", *common, *words, "--explainers", *METHODS)
    for region in ("box", "complement"):  # no method has a part in these
        run("test", *common, "--model.explainer=FakeCAM", f"--model.region={region}", f"--run_dir={here}/{region}")

    maps = {region: {m: summarize(load_run(here / region / m)) for m in METHODS} for region in REGIONS}
    keys = list(maps["map"][METHODS[0]].metrics)
    alone = {"B": summarize(load_run(here / "box")), "outside B": summarize(load_run(here / "complement"))}
    parts = [f"## {title}\n", f"The network is right on {accuracy:.1f} % of the test images.\n"]
    parts.append(grid(["", *map(head, keys)], ([m, *(value(maps["map"][m], k) for k in keys)] for m in METHODS)))
    by_region = [["", "map", *map(head, FAITHFULNESS)]] + [
        [m, name, *(value(maps[region][m], k) for k in FAITHFULNESS)]
        for m in METHODS
        for region, name in REGIONS.items()
    ]
    by_region += [["no method", name, *(value(s, k) for k in FAITHFULNESS)] for name, s in alone.items()]
    parts.append(grid(by_region[0], by_region[1:], left=2))
    return "\n".join(parts)


if __name__ == "__main__":
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT
    output.write_text("\n".join([HEAD, *map(study, CONTEXTS), TAIL]))
    print(f"wrote {output}")
