"""Passes of a network on the CPU with the C library's own habits and with `keep_freed_memory`.

    python benchmarks/allocator.py   (needs the extra `demo`, and glibc)

The setting holds for a whole process, so each side has a process of its own; they take turns.
"""

from __future__ import annotations

import multiprocessing as mp
from multiprocessing.connection import Connection
from typing import Any

import torch
from common import Claim, Contestant, arguments, classifier_of, finish, photographs, race

from optcam_pl.network.allocator import keep_freed_memory

PASSES = 4


def serve(pipe: Connection, keep: bool, batch: int, options: Any) -> None:
    """Make passes when told to."""
    if keep and not keep_freed_memory():
        raise SystemExit("The C library is not glibc.")
    torch.set_num_threads(options.threads)
    classifier = classifier_of(options.network, options)
    image = photographs(options, classifier, batch)
    with torch.no_grad():
        while pipe.recv():
            for _ in range(PASSES):
                classifier(image)
            pipe.send(True)


def main() -> None:
    options = arguments(__doc__, network="demo/efficientnet_lite0", batches=[8, 32], rounds=5)
    context, tables = mp.get_context("spawn"), []
    for batch in options.batches:
        contestants, pipes = [], []
        for name, keep in (("keep_freed_memory", True), ("the C library's own habits", False)):
            ours, theirs = context.Pipe()
            context.Process(target=serve, args=(theirs, keep, batch, options), daemon=True).start()
            pipes.append(ours)
            call = lambda pipe=ours: (pipe.send(True), pipe.recv())  # noqa: E731
            contestants.append(Contestant(name, call, "ours" if keep else "peer", PASSES * batch))
        table = race(f"{options.network}, forward passes of {batch} images", "an image", contestants, options.rounds)
        for pipe in pipes:
            pipe.send(False)
        table.shows.append(Claim("the C library's own habits", "keep_freed_memory", 1.0, at_most=False))
        tables.append(table)
    finish("allocator", tables, options)


if __name__ == "__main__":
    main()
