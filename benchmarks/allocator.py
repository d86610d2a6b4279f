"""Passes of a network on the CPU with the C library's own habits and with `keep_freed_memory`, in one process.

Run: python benchmarks/allocator.py   (needs the demo extra; glibc)
"""

from __future__ import annotations

import platform
import time
from datetime import date

import torch
import torchvision

from optcam_pl import Classifier
from optcam_pl.network.allocator import keep_freed_memory

PASSES = 12


def seconds(classifier: Classifier, image: torch.Tensor) -> float:
    """Of one image, after a pass to warm up."""
    with torch.no_grad():
        classifier(image)
        start = time.perf_counter()
        for _ in range(PASSES):
            classifier(image)
    return (time.perf_counter() - start) / PASSES / len(image)


def main() -> None:
    """Measure before and after: there is no way back within a process."""
    classifier = Classifier("demo/efficientnet_lite0")
    images = [torch.rand(n, 3, 224, 224) for n in (8, 32)]
    before = [seconds(classifier, image) for image in images]
    if not keep_freed_memory():
        raise SystemExit("The C library is not glibc.")
    after = [seconds(classifier, image) for image in images]
    print(f"{date.today()}, {platform.machine()}, {torch.get_num_threads()} threads, {platform.libc_ver()}")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}")
    for image, old, new in zip(images, before, after, strict=True):
        print(f"{classifier.name}, {len(image)} images a pass, seconds an image:")
        print(f"  {old:.4f} before, {new:.4f} after, ratio {old / new:.2f}")


if __name__ == "__main__":
    main()
