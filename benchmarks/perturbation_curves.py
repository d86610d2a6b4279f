"""Insertion and deletion beside the bare network's passes over as many images, in one process.

Run: python benchmarks/perturbation_curves.py [FOLDER_OF_PHOTOGRAPHS]   (needs the demo extra)

16 photographs, 224 steps each way, the same number of images a pass. What is above 1 is the making of the images.
"""

from __future__ import annotations

import platform
import sys
import time
from datetime import date

import torch
import torchvision

from optcam_pl import Classifier, GradCAM
from optcam_pl.data import Batch, ImageDataModule, ImagePaths, SamplePhotos
from optcam_pl.evaluate.probes import Probes
from optcam_pl.metrics import Deletion, Insertion
from optcam_pl.network.allocator import keep_freed_memory

IMAGES, STEPS, CHUNK, ROUNDS = 16, 224, 64, 1


def photographs(folder: str | None, classifier: Classifier) -> torch.Tensor:
    """(16,3,H,W): an even choice of the folder's, or the sample photographs over and over."""
    data: ImageDataModule = SamplePhotos() if folder is None else ImagePaths(folder, limit=IMAGES)
    data.match_network(classifier.input_size, classifier.interpolation, classifier.crop_fraction)
    data.setup()
    table = data.table
    return torch.stack([table[i % len(table)]["image"] for i in range(IMAGES)])


def main(folder: str | None) -> None:
    """Measure in turns, so that a change of the machine's pace meets both, and print the ratio of the sums."""
    keep_freed_memory()
    classifier = Classifier("demo/efficientnet_lite0")
    image = photographs(folder, classifier)
    batch = Batch(image=image, id=[str(i) for i in range(IMAGES)], index=torch.arange(IMAGES), error=[""] * IMAGES)
    metrics = (Insertion(STEPS), Deletion(STEPS))
    seconds = {"bare": 0.0, "curves": 0.0}
    with torch.no_grad():
        logits = classifier(image)
        explanation = GradCAM()(classifier, image)
        several = image.repeat(CHUNK // IMAGES, 1, 1, 1)
        for _ in range(ROUNDS):
            start = time.perf_counter()
            for _ in range(2 * STEPS * IMAGES // CHUNK):
                classifier(several)
            seconds["bare"] += time.perf_counter() - start
            start = time.perf_counter()
            probes = Probes(classifier, GradCAM(), batch, logits, explanation, chunk_size=CHUNK)
            for metric in metrics:
                metric.update(**probes.evidence(metric.needs()))
            seconds["curves"] += time.perf_counter() - start
    print(
        f"{date.today()}, {platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()},"
    )
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}")
    print(f"{classifier.name}, {IMAGES} photographs, {STEPS} steps, {CHUNK} images a pass")
    print(f"bare network, {IMAGES} x {2 * STEPS} images: {seconds['bare']:.1f} s")
    print(f"insertion and deletion:            {seconds['curves']:.1f} s")
    print(f"ratio:                             {seconds['curves'] / seconds['bare']:.3f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
