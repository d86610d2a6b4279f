"""What is measured with the network for a batch of explanations: the evidence that the metrics ask for."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import torch
from torch import Tensor

from optcam_pl.classifier import Classifier
from optcam_pl.explainers.base import Explanation
from optcam_pl.saliency import Baseline, baseline_image, mask_image


class Probes:
    """Quantities by name, each measured when it is first asked for and at most once.

    Args:
        classifier: the network.
        image: (B,3,H,W) in [0,1].
        logits: (B,C) the network's answer to `image`, which the caller has anyway.
        explanation: what is measured.
        baseline: what stands where the map is 0, the same one that the explainer masks with.
    """

    def __init__(
        self, classifier: Classifier, image: Tensor, logits: Tensor, explanation: Explanation, baseline: Baseline
    ) -> None:
        self.classifier, self.image, self.logits = classifier, image, logits
        self.explanation, self.baseline = explanation, baseline

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """What can be measured."""
        return tuple(name for name, value in vars(cls).items() if isinstance(value, cached_property))

    def evidence(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The named quantities, on the image's device."""
        return {name: getattr(self, name) for name in names}

    @cached_property
    def original(self) -> Tensor:
        """(B,) p, the probability of the explained class for the image."""
        return self._probability(self.logits)

    @cached_property
    def masked(self) -> Tensor:
        """(B,) o, the same for the image masked by its map."""
        return self._probability(self.classifier(self.masked_image))

    @cached_property
    def masked_image(self) -> Tensor:
        """(B,3,H,W) ``x . s``."""
        saliency = self.explanation.saliency.to(self.image.dtype)
        return mask_image(self.image, saliency, self._reference)

    @cached_property
    def _reference(self) -> Tensor | None:
        if self.baseline == "black":
            return None
        return baseline_image(self.image, self.baseline, self.classifier.mean)

    def _probability(self, logits: Tensor) -> Tensor:
        """(B,C) -> (B,): softmax in float32 at least, whatever precision the network runs in."""
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return wide.softmax(1).gather(1, self.explanation.target.unsqueeze(1)).squeeze(1)
