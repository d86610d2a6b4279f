"""Measure every method on photographs, and write the table of docs/choosing.md.

Run: python docs/make_methods.py [--root FOLDER] [--limit N] [--seconds S]

FOLDER holds photographs in folders named by ImageNet's wnids; without it the few that scikit-image ships are taken.
Nothing is downloaded. The numbers are kept in choosing.json: a start that was interrupted goes on. The cost of a method
is measured on one photograph, in CPU seconds of one thread, as a multiple of a forward pass. A method that would take
more than S seconds for all photographs is not measured on them.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

import optcam_pl
from optcam_pl import explainers
from optcam_pl.data import ImageDataModule, ImageFolder, SamplePhotos
from optcam_pl.explainers import Explainer
from optcam_pl.network.allocator import keep_freed_memory

HERE = Path(__file__).resolve().parent
PAGE = HERE / "choosing.md"
BLOCKS = HERE.parent / "configs" / "explainer"
FOUND = HERE / "choosing.json"
# Block -> (what it is called, what it needs, whether the map depends on the class, where it is good).
METHODS = {
    "opticam": ("Opti-CAM", "a layer, gradients", "yes", "optimizes the masked score; one optimization per image"),
    "grad_cam": ("Grad-CAM", "a layer, gradients", "yes", "the usual first map: cheap, any convolutional network"),
    "grad_cam_plus_plus": ("Grad-CAM++", "a layer, gradients", "yes", "several objects of the class"),
    "xgrad_cam": ("XGrad-CAM", "a layer, gradients", "yes", "like Grad-CAM, weights of its own axioms"),
    "finer_cam": ("Finer-CAM", "a layer, gradients", "yes", "what tells the class from the three nearest to it"),
    "layer_cam": ("Layer-CAM", "a layer, gradients", "yes", "finer maps from earlier layers, several layers together"),
    "hires_cam": ("HiRes-CAM", "a layer, gradients", "yes", "exact where a linear layer follows the grid"),
    "smooth_grad_cam_plus_plus": ("Smooth Grad-CAM++", "a layer, gradients", "yes", "Grad-CAM++ over noisy images"),
    "cam": ("CAM", "average pooling and one linear layer at the end", "yes", "exact for such networks"),
    "eigen_cam": ("Eigen-CAM", "a layer", "no", "what the layer sees at all; no gradient"),
    "eigen_grad_cam": ("Eigen-Grad-CAM", "a layer, gradients", "yes", "Eigen-CAM of the weighted grid"),
    "score_cam": ("Score-CAM", "a layer", "yes", "no gradients: quantized or black-box heads"),
    "ss_cam": ("SS-CAM", "a layer", "yes", "Score-CAM over noisy masks; 35 times its passes"),
    "is_cam": ("IS-CAM", "a layer", "yes", "Score-CAM integrated along the mask; 10 times its passes"),
    "ablation_cam": ("Ablation-CAM", "a layer", "yes", "no gradients, cheaper where few layers follow"),
    "full_grad": ("FullGrad", "gradients, biases", "yes", "no layer to choose; complete in theory"),
    "saliency": ("Gradient", "gradients; extra captum", "yes", "what a pixel's change does; noisy"),
    "smooth_grad": ("SmoothGrad", "gradients; extra captum", "yes", "the gradient, less noisy"),
    "integrated_gradients": ("Integrated Gradients", "gradients; extra captum", "yes", "adds up to the logit's change"),
    "gradient_shap": ("GradientSHAP", "gradients; extra captum", "yes", "integrated gradients over baselines"),
    "guided_backprop": ("Guided backpropagation", "ReLU modules; extra captum", "hardly", "sharp pictures of edges"),
    "occlusion": ("Occlusion", "nothing but scores; extra captum", "yes", "any model; a square moved over the image"),
    "rise": ("RISE", "nothing but scores", "yes", "any model; thousands of passes"),
    "lime": ("LIME", "nothing but scores; extra captum", "yes", "any model; by superpixels"),
    "meaningful_perturbation": (
        "Meaningful perturbation",
        "gradients",
        "yes",
        "the smallest mask that destroys the class",
    ),
    "extremal_perturbation": ("Extremal perturbation", "gradients", "yes", "the best mask of a given area"),
    "raw_attention": ("Raw attention", "a transformer", "no", "the last block's attention"),
    "attention_rollout": ("Attention rollout", "a transformer", "no", "attention through all blocks"),
    "tibav": ("Transformer attribution", "a transformer, gradients", "yes", "relevance through all blocks"),
    "random_cam": ("Random-CAM", "a layer", "no", "a baseline: random weights"),
    "fake_cam": ("Fake-CAM", "nothing", "no", "the check of every metric: a map of ones"),
}


# From the cheapest to the dearest; all others come before them.
SLOW = [
    *(
        "smooth_grad",
        "gradient_shap",
        "integrated_gradients",
        "opticam",
        "ablation_cam",
        "score_cam",
        "occlusion",
        "lime",
    ),
    *("meaningful_perturbation", "extremal_perturbation", "rise", "is_cam", "ss_cam"),
]
# Minutes for one photograph: the cost of one of its samples, times their number.
ONE_SAMPLE = ("is_cam", "ss_cam")


def made(block: str, **changed: Any) -> Explainer:
    """The explainer of a block of configs/explainer, with some of its settings changed."""
    content = yaml.safe_load((BLOCKS / f"{block}.yaml").read_text())
    name = content["class_path"].rpartition(".")[2]
    explainer: Explainer = getattr(explainers, name)(**content.get("init_args", {}) | changed)
    return explainer


def seconds(call: Any) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def measure(root: str | None, limit: int, most: float) -> dict[str, Any]:
    """Costs and numbers of each method; also written to a file after each of them."""
    keep_freed_memory()  # as the console command does
    torch.set_num_threads(1)
    classifier = optcam_pl.Classifier("demo/efficientnet_lite0")
    data: ImageDataModule = SamplePhotos(batch_size=4)
    if root is not None:
        data = ImageFolder(root, classes="imagenet", limit=limit, batch_size=4)
    data.match_network(classifier.input_size, classifier.interpolation, classifier.crop_fraction)
    samples = [data.table[i] for i in range(len(data.table))]
    image = samples[0]["image"][None]
    classifier(image)
    forward = min(seconds(lambda: classifier(image)) for _ in range(5))
    found = json.loads(FOUND.read_text()) if FOUND.exists() else {}
    if found.get("images") != len(samples):
        found = {"images": len(samples), "methods": {}}
    for block in sorted(METHODS, key=lambda name: SLOW.index(name) if name in SLOW else -1):
        if block in found["methods"]:
            continue  # of an earlier start
        explainer, entry = made(block), {}
        try:
            explainer.check(classifier)
        except (ValueError, TypeError) as error:
            found["methods"][block] = {"reason": str(error)}
            continue
        one = made(block, num_samples=1) if block in ONE_SAMPLE else explainer
        cost = min(seconds(lambda e=one: e(classifier, image)) for _ in range(3 if block not in SLOW else 1))
        cost *= getattr(explainer, "num_samples", 1) if block in ONE_SAMPLE else 1
        entry["cost"] = cost / forward
        if cost * len(samples) <= most:
            result = optcam_pl.evaluate(classifier, explainer, data)
            summary = next(iter(result.summary().values()))
            entry |= {key: [one.value, one.low, one.high] for key, one in summary.metrics.items()}
        found["methods"][block] = entry
        FOUND.write_text(json.dumps(found, indent=1) + "\n")
        print(block, entry, flush=True)
    return found


def number(entry: dict[str, Any], key: str) -> str:
    """A value with its interval, as in the package's tables."""
    if key not in entry:
        return "" if "cost" in entry else "-"
    value, low, high = entry[key]
    return f"{value:.1f} [{low:.0f}, {high:.0f}]"


def cost(entry: dict[str, Any]) -> str:
    """How many forward passes it takes, in two digits."""
    if "cost" not in entry:
        return "other network" if "reason" in entry else "-"
    two_digits = float(f"{entry['cost']:.2g}")
    return f"{two_digits:g}"


def page(found: dict[str, Any]) -> str:
    """The lines of the table."""
    lines = [
        "| method | needs | class-specific | cost | AD ↓ | AG ↑ | AI ↑ | good for |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    keys = ("average_drop", "average_gain", "average_increase")
    for block, (name, needs, specific, good) in METHODS.items():
        entry = found["methods"].get(block, {})
        numbers = " | ".join(number(entry, key) for key in keys)
        lines.append(f"| {name} (`{block}`) | {needs} | {specific} | {cost(entry)} | {numbers} | {good} |")
    return "\n".join(lines)


def write(found: dict[str, Any]) -> None:
    """Put the table between the page's marks."""
    text = PAGE.read_text(encoding="utf-8")
    inside = f"<!-- measured -->\n{page(found)}\n<!-- end -->"
    PAGE.write_text(
        re.sub(r"<!-- measured -->.*<!-- end -->", lambda _: inside, text, flags=re.DOTALL), encoding="utf-8"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folders of photographs, named by wnid")
    parser.add_argument("--limit", type=int, default=8, help="how many of them; default: 8")
    parser.add_argument("--seconds", type=float, default=250, help="CPU seconds for one method; default: 250")
    parser.add_argument("--only_write", action="store_true", help="make the page again from choosing.json")
    options = parser.parse_args(argv)
    found = (
        json.loads(FOUND.read_text()) if options.only_write else measure(options.root, options.limit, options.seconds)
    )
    write(found)


if __name__ == "__main__":
    main()
