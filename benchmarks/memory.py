"""Peak memory of Opti-CAM's loop: that of the bare passes, and how it grows with iterations and batch.

    python benchmarks/memory.py [--batches 1 4 16] [--iterations 2 20]

Every number is from a process of its own, because a peak never falls. On the CPU it is the resident memory above that
after the network was made; on a GPU it is what torch has handed out.
"""

from __future__ import annotations

import multiprocessing as mp
import resource
import sys
from typing import Any

import torch
from common import Table, arguments, classifier_of, finish, passes, photographs

from optcam_pl import OptiCAM


def peak(what: str, batch: int, iterations: int, options: Any) -> float:
    """MB."""
    torch.set_num_threads(options.threads)
    classifier = classifier_of(options.network, options)
    image = photographs(options, classifier, batch)
    target = torch.zeros(batch, dtype=torch.int64, device=image.device)
    before = used(options.device)
    if what == "bare":
        passes(classifier, image, iterations)()
    else:
        OptiCAM(max_iter=iterations, tol=0)(classifier, image, target)
    return used(options.device) - before


def used(device: str) -> float:
    """The peak until now, MB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1e-6 if sys.platform == "darwin" else 1e-3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    options = arguments(__doc__, network="demo/efficientnet_lite0", batches=[1, 4, 16], iterations=[2, 20])
    table = Table(f"{options.network}, peak memory above the network's own", "MB", {}, {})
    with mp.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for batch in options.batches:
            bare = pool.apply(peak, ("bare", batch, 2, options))
            ours = {n: pool.apply(peak, ("ours", batch, n, options)) for n in options.iterations}
            words = ", ".join(f"{mb:.0f} MB for {n} iterations" for n, mb in ours.items())
            table.values[f"batch {batch}"] = f"bare passes {bare:.0f} MB, Opti-CAM {words}"
    finish("memory", [table], options)


if __name__ == "__main__":
    main()
