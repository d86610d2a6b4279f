"""TIBAV and rollout on a vision transformer beside the bare passes.

    python benchmarks/attention.py [--network timm/vit_small_patch16_224] [--batch 4]

TIBAV needs a forward pass and two backward passes to the attention of every block: one with gradients, and one with
relevance, whose linear layers need four products where a gradient needs one. Rollout needs a forward pass. The peers
that are installed have neither; the limit is all there is to compare with.
"""

from __future__ import annotations

from common import Contestant, arguments, classifier_of, finish, passes, photographs, race

from optcam_pl.explainers import TIBAV, AttentionRollout


def main() -> None:
    options = arguments(__doc__, network="timm/vit_small_patch16_224", batch=4, rounds=5)
    classifier = classifier_of(options.network, options)
    image, tibav, rollout = photographs(options, classifier, options.batch), TIBAV(), AttentionRollout()
    target, n = classifier(image).argmax(1), options.batch
    contestants = [
        Contestant("forward pass", passes(classifier, image, 1, backward=False), "limit", n),
        Contestant("two forward and backward passes", passes(classifier, image, 2), "limit", n),
        Contestant("rollout", lambda: rollout(classifier, image, target), "ours", n),
        Contestant("TIBAV", lambda: tibav(classifier, image, target), "ours", n),
    ]
    title = f"{classifier.name}, {n} images a batch"
    finish("attention", [race(title, "an image", contestants, options.rounds)], options)


if __name__ == "__main__":
    main()
