"""How many passes of the network each table of the paper takes, and how many hours at your own rates.

    python benchmarks/paper_cost.py [--forward 2000 --backward 700 --upper 20000]
    python benchmarks/paper_cost.py --write | --check

The methods and metrics of each table are those of optcam_pl/reports/published.csv. Rates are images a second with full
batches: forward passes, forward passes with a backward pass to the image, and passes of the part above the layer
(benchmarks/network_speed.py measures them). `--write` puts the table into docs/scaling.md.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from importlib.resources import files
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- tables: made by benchmarks/paper_cost.py -->", "<!-- end -->"
NETWORKS = {
    "resnet50": "ResNet50", "vgg16_bn": "VGG16", "vit_base_patch16_224": "ViT-B/16",
    "deit_base_patch16_224": "DeiT-B/16",
}  # fmt: skip
CHANNELS = {"ResNet50": 2048, "VGG16": 512, "ViT-B/16": 768, "DeiT-B/16": 768}
DATA = {"imagenet_val": 50_000, "imagenet_val_1000": 1000, "chest_xray": 624, "kvasir": 1000}
FIFTY = ("6", "A.12")  # tables with 50 iterations of Opti-CAM
ONE_B = ("Grad-CAM", "Grad-CAM++", "XGrad-CAM", "Layer-CAM", "HiRes-CAM", "TIBAV")
LOCALIZATION = ("official_metric", "localization_error", "saliency_metric")


def of_method(method: str, channels: int, iterations: int) -> Counter[str]:
    """Passes for an image's map: forward "F", with a backward pass "B", above the layer "U"."""
    passes = {
        "RawAtt": {"F": 1}, "Rollout": {"F": 1}, "Opti-CAM": {"F": 2, "B": iterations}, "Score-CAM": {"F": channels},
        "Ablation-CAM": {"F": 1, "U": channels}, "ExPerturbation": {"B": 800}, "GradientShap": {"B": 50},
        "LIME": {"F": 1000}, "Fake-CAM": {}, "box": {}, "box_complement": {}, **{name: {"B": 1} for name in ONE_B},
    }  # fmt: skip
    return Counter(passes[method])


def of_metrics(metrics: set[str]) -> int:
    """Forward passes that measure an image's map, without those of repeated maps."""
    return (
        2 * ("average_drop" in metrics)
        + 450 * ("insertion" in metrics)
        + 11 * ("aopc" in metrics)
        + 12 * ("adcc" in metrics)
        + 2 * any(name in metrics for name in LOCALIZATION)
    )


def tables() -> list[tuple[str, str, int, Counter[str]]]:
    """(table, network, images, passes an image over all methods); variants of a setting count as often as there are."""
    found: dict[tuple[str, str, str], dict[str, set[str]]] = {}
    with (files("optcam_pl") / "reports" / "published.csv").open() as file:
        for row in csv.DictReader(file):
            if row["network"] in NETWORKS and row["method"] != "classifier":
                place = found.setdefault((row["table"], row["dataset"], NETWORKS[row["network"]]), {})
                for kind in ("method", "metric", "variant"):
                    place.setdefault(kind, set()).add(row[kind])
    lines = []
    for (table, data, network), kinds in found.items():
        times = 12 if "max_sensitivity" in kinds["metric"] else 1  # the map itself, ten noisy ones, and ADCC's
        total: Counter[str] = Counter()
        for method in kinds["method"]:
            one = of_method(method, CHANNELS[network], 50 if table in FIFTY else 100)
            total += Counter({kind: times * count for kind, count in one.items()})
            total["F"] += of_metrics(kinds["metric"])
        variants = Counter({kind: len(kinds["variant"]) * count for kind, count in total.items()})
        lines.append((table, network + (f", {data}" if "_val" not in data else ""), DATA[data], variants))
    return sorted(lines, key=lambda line: (line[0].startswith("A"), int(line[0].removeprefix("A.")), line[1]))


def rounded(count: int) -> str:
    """Three digits, with a space between thousands."""
    step = 10 ** max(0, len(str(count)) - 3)
    return f"{(count + step // 2) // step * step:,}".replace(",", " ")


def markdown() -> str:
    """The table of scaling.md."""
    lines = ["| table | network | images | F | B | U |", "|---|---|---:|---:|---:|---:|"]
    for table, network, images, passes in tables():
        cells = [table, network, f"{images:,}".replace(",", " "), *(rounded(passes[kind]) for kind in "FBU")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([BEGIN, "", *lines, "", END])


def page() -> str:
    """The page with its table made anew."""
    text = PAGE.read_text()
    return text[: text.index(BEGIN)] + markdown() + text[text.index(END, text.index(BEGIN)) + len(END) :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("forward", "backward", "upper"):
        parser.add_argument(f"--{name}", type=float, help="images a second")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    rates = {"F": options.forward, "B": options.backward, "U": options.upper}
    if options.write:
        PAGE.write_text(page())
    elif options.check:
        sys.exit(0 if PAGE.read_text() == page() else "docs/scaling.md has other counts: run it with --write.")
    elif None in rates.values():
        print(markdown())
    else:
        for table, network, images, passes in tables():
            hours = images / 3600 * sum(count / rates[kind] for kind, count in passes.items())
            print(f"{table:5} {network:22} {hours:8.1f} h")


if __name__ == "__main__":
    main()
