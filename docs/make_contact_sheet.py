"""Make the contact sheet: one photograph, explained by every method that works on the network, each under its name.

Run: python docs/make_contact_sheet.py [OUTPUT.png]   (needs the demo and captum extras; minutes on a CPU)

The settings are those of configs/explainer/ but for those in CHEAP, whose titles say so.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from make_methods import made
from PIL import Image

from optcam_pl import Classifier
from optcam_pl.data import SamplePhotos
from optcam_pl.figures import Picture, column, overlay, picture, row

OUTPUT = Path(__file__).with_name("methods.png")
PHOTO, TILE, COLUMNS = 0, 160, 6

# Block -> name, in the sheet's order.
NAMES = {
    "opticam": "Opti-CAM",
    "cam": "CAM",
    "grad_cam": "Grad-CAM",
    "grad_cam_plus_plus": "Grad-CAM++",
    "smooth_grad_cam_plus_plus": "Smooth Grad-CAM++",
    "xgrad_cam": "XGrad-CAM",
    "finer_cam": "Finer-CAM",
    "hires_cam": "HiRes-CAM",
    "layer_cam": "Layer-CAM",
    "eigen_cam": "Eigen-CAM",
    "eigen_grad_cam": "Eigen-Grad-CAM",
    "score_cam": "Score-CAM",
    "ss_cam": "SS-CAM",
    "is_cam": "IS-CAM",
    "ablation_cam": "Ablation-CAM",
    "full_grad": "FullGrad",
    "rise": "RISE",
    "lime": "LIME",
    "occlusion": "Occlusion",
    "meaningful_perturbation": "Meaningful pert.",
    "extremal_perturbation": "Extremal pert.",
    "saliency": "Saliency",
    "smooth_grad": "SmoothGrad",
    "integrated_gradients": "Integrated Gradients",
    "gradient_shap": "GradientSHAP",
    "guided_backprop": "Guided backprop.",
    "raw_attention": "Raw attention",
    "attention_rollout": "Attention rollout",
    "tibav": "TIBAV",
    "random_cam": "Random weights",
    "fake_cam": "Fake-CAM",
}
# Block -> what its title says, and the settings.
CHEAP: dict[str, tuple[str, dict[str, int]]] = {
    "rise": ("500 masks, not 4000", {"num_masks": 500}),
    "lime": ("300 samples, not 1000", {"n_samples": 300}),
    "extremal_perturbation": ("200 steps, not 800", {"max_iter": 200}),
    "ss_cam": ("1 sample, not 35", {"num_samples": 1}),
    "is_cam": ("2 steps, not 10", {"num_samples": 2}),
}


def small(tile: Picture) -> Picture:
    """The tile in the sheet's size."""
    return np.asarray(Image.fromarray(tile).resize((TILE, TILE), Image.Resampling.LANCZOS))


def main(output: Path) -> None:
    """Write the sheet, and below it which methods do not work on the network; why is printed."""
    image = SamplePhotos().table[PHOTO]["image"].unsqueeze(0)
    classifier = Classifier("demo/efficientnet_lite0")
    p, target = classifier.probabilities(image).max(1)
    titles, tiles = [f"{classifier.class_name(int(target))}\np = {float(p):.2f}"], [small(picture(image[0]))]
    unfit = []
    for block, name in NAMES.items():
        words, cheap = CHEAP.get(block, ("", {}))
        method = made(block, **cheap)
        try:
            method.check(classifier)
        except ValueError as error:
            print(f"{name}: {error}")
            unfit.append(name)
            continue
        start = time.perf_counter()
        saliency = method(classifier, image, target).saliency[0]
        print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)
        titles.append(f"{name}\n{words}")
        tiles.append(small(overlay(image[0], saliency)))
    cuts = [slice(i, i + COLUMNS) for i in range(0, len(tiles), COLUMNS)]
    rows = [row(tiles[cut], titles[cut]) for cut in cuts]
    rest = row([np.full((1, rows[0].shape[1], 3), 255, np.uint8)], [f"Not for {classifier.name}: {', '.join(unfit)}"])
    sheet = Image.fromarray(column([*rows, rest]))
    palette = sheet.quantize(256)
    sheet.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(output, optimize=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT)
