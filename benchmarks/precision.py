"""How good the maps of the fast speed in bfloat16 are, beside those of the plain network in float32.

    python benchmarks/precision.py --images-from IMAGENET_SAMPLE [--images 200] [--presets fast paper]

The same photographs (one folder for each class, named by its wnid), the label's probability; each network measures its
own maps, as a run does. The differences are paired, in brackets their 95 % bootstrap intervals.
"""

from __future__ import annotations

from typing import Any

import torch
from common import Table, arguments, at_speed, classifier_of, finish

import optcam_pl
from optcam_pl import Classifier, OptiCAM
from optcam_pl.data import ImageNet
from optcam_pl.metrics.functional import average_drop, average_gain, average_increase
from optcam_pl.reports.statistics import paired_difference

METRICS = {"AD": average_drop, "AG": average_gain, "AI": average_increase}


def measured(classifier: Classifier, preset: Any, options: Any) -> dict[str, list[float]]:
    """Each metric's value for each photograph."""
    data = ImageNet(options.images_from, limit=options.images, batch_size=options.batch, num_workers=options.workers)
    rows = optcam_pl.evaluate(classifier, OptiCAM(preset=preset), data).rows["OptiCAM"]
    p, o = (torch.tensor([getattr(row, name) for row in rows], dtype=torch.float64) for name in ("p", "o"))
    return {name: function(p, o, reduction="none").tolist() for name, function in METRICS.items()}


def main() -> None:
    options = arguments(
        __doc__, network="demo/efficientnet_lite0", images=200, batch=64, workers=0, presets=["fast", "paper"]
    )
    plain = classifier_of(options.network, options)
    half = at_speed(plain, "auto", weights_dtype="bfloat16")
    tables = []
    for preset in options.presets:
        table = Table(f"{plain.name}, preset {preset}: auto in bfloat16 beside plain in float32", "", {}, {})
        right, ours = (measured(classifier, preset, options) for classifier in (plain, half))
        for name in METRICS:
            d = paired_difference(*([(value,) for value in side[name]] for side in (ours, right)))
            found, known = (sum(side[name]) / len(side[name]) for side in (ours, right))
            words = f"{found:.2f} beside {known:.2f}, difference {d.difference:+.2f} [{d.low:+.2f}, {d.high:+.2f}]"
            table.values[f"{name}, {d.images} photographs"] = words
        tables.append(table)
    finish("precision", tables, options)


if __name__ == "__main__":
    main()
