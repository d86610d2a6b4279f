"""Metrics of how stable and how simple saliency maps are.

Evidence: `saliency` (B,1,H,W), the maps S(x); `perturbed_saliency` (B,S,1,H,W), the maps of S perturbations of each
image; `masked_saliency` (B,1,H,W), the maps of the images masked by their maps, S(x . S(x)).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from optcam_pl.checks import check_choice, check_number, check_positive
from optcam_pl.metrics.base import ImageMetric, Need
from optcam_pl.metrics.functional.classification import average_drop
from optcam_pl.metrics.functional.robustness import (
    coherency,
    complexity,
    harmonic_mean,
    infidelity,
    sensitivities,
    sparseness,
)

Denominator = Literal["input", "map"]
Output = Literal["probability", "logit"]


class MaxSensitivity(ImageMetric):
    """Max-Sensitivity: the largest change of the map over perturbed images; lower is better.

    An image whose denominator is 0 is undefined. See `functional.sensitivities`.

    Args:
        denominator: divide by the norm of the network's "input", as in Quantus, or of the "map", as in Captum.
        radius: the noise is uniform in [-radius, radius], in units of the network's input (after mean/std); the
            perturbed pixels are clipped to [0, 1].
        samples: number of perturbed images.
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> metric = MaxSensitivity()
        >>> moved = torch.tensor([[[[[3.0, 5.0]]], [[[3.0, 2.0]]]]])
        >>> metric.update(torch.tensor([[[[3.0, 4.0]]]]), moved, input_norm=torch.tensor([10.0]))
        >>> round(metric.compute().item(), 4)
        0.2
    """

    key, label = "max_sensitivity", "MS"
    higher_is_better: bool = False
    conventions = ("denominator", "radius", "samples")

    def __init__(
        self, denominator: Denominator = "input", radius: float = 0.2, samples: int = 10, **kwargs: Any
    ) -> None:
        check_choice("denominator", denominator, Denominator)
        check_positive("samples", samples)
        check_number("radius", radius, positive=True)
        super().__init__(**kwargs)
        self.denominator, self.radius, self.samples = denominator, radius, samples

    def needs(self) -> dict[str, Need]:
        """The evidence, with the number and the radius of the perturbed images."""
        return {**super().needs(), "perturbed_saliency": {"radius": self.radius, "samples": self.samples}}

    def score(self, saliency: Tensor, perturbed_saliency: Tensor, input_norm: Tensor) -> Tensor:
        """The largest change for each image, (B,); `input_norm` (B,) is the Frobenius norm of the network's input."""
        return self._changes(saliency, perturbed_saliency, input_norm).amax(1)

    def _changes(self, saliency: Tensor, perturbed_saliency: Tensor, input_norm: Tensor) -> Tensor:
        return sensitivities(saliency, perturbed_saliency, input_norm if self.denominator == "input" else None)


class AverageSensitivity(MaxSensitivity):
    """Average Sensitivity: the mean change of the map over perturbed images; lower is better. See `MaxSensitivity`."""

    key, label = "average_sensitivity", "AS"

    def score(self, saliency: Tensor, perturbed_saliency: Tensor, input_norm: Tensor) -> Tensor:
        """The mean change for each image, (B,)."""
        return self._changes(saliency, perturbed_saliency, input_norm).mean(1)


class Coherency(ImageMetric):
    """Coherency in percent, higher is better; see `functional.coherency`. A constant map scores 50."""

    key, label, unit = "coherency", "Coh", "%"
    higher_is_better: bool = True

    def score(self, saliency: Tensor, masked_saliency: Tensor) -> Tensor:
        """Percent per image, (B,)."""
        return coherency(saliency, masked_saliency)


class Complexity(ImageMetric):
    """Complexity in percent, lower is better: the mean of the map; see `functional.complexity`."""

    key, label, unit = "complexity", "Com", "%"
    higher_is_better: bool = False

    def score(self, saliency: Tensor) -> Tensor:
        """Percent per image, (B,)."""
        return complexity(saliency)


class ADCC(ImageMetric):
    """ADCC in percent, higher is better: the harmonic mean of coherency, 100 - complexity and 100 - Average Drop.

    As in the tables of its source (Poppi et al., CVPRW 2021), it combines the *means* of the three over all images;
    `PerImageADCC` is the mean of each image's own ADCC. A score therefore has three numbers per image.

    Example:
        >>> metric = ADCC()
        >>> maps = torch.tensor([[[[0.0, 1.0]]]])
        >>> metric.update(maps, maps, original=torch.tensor([0.5]), masked=torch.tensor([0.25]))
        >>> round(metric.compute().item(), 4)
        60.0
    """

    key, label, unit = "adcc", "ADCC", "%"
    higher_is_better: bool = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(shape=(3,), **kwargs)

    @classmethod
    def of_means(cls, means: Tensor) -> Tensor:
        """(..., 3) -> (...): the harmonic mean; rounding may leave a term slightly below 0."""
        return harmonic_mean(means.clamp(min=0))

    def score(self, saliency: Tensor, masked_saliency: Tensor, original: Tensor, masked: Tensor) -> Tensor:
        """Coherency, 100 - complexity, 100 - Average Drop, (B,3); probabilities of x and x . S(x), (B,) each."""
        drop = average_drop(original, masked, reduction="none")
        return torch.stack([coherency(saliency, masked_saliency), 100 - complexity(saliency), 100 - drop], dim=1)


class PerImageADCC(ADCC):
    """The mean of every image's own ADCC, as in its authors' program; see `ADCC`."""

    key, label = "adcc_per_image", "ADCC/image"

    def __init__(self, **kwargs: Any) -> None:
        ImageMetric.__init__(self, **kwargs)

    @classmethod
    def of_means(cls, means: Tensor) -> Tensor:
        """The mean itself."""
        return means

    def score(self, saliency: Tensor, masked_saliency: Tensor, original: Tensor, masked: Tensor) -> Tensor:
        """Percent per image, (B,)."""
        return ADCC.of_means(super().score(saliency, masked_saliency, original, masked))


class Sparseness(ImageMetric):
    """Sparseness in [0, 1], higher is better: the Gini index of the map; see `functional.sparseness`."""

    key, label = "sparseness", "Sparse"
    higher_is_better: bool = True

    def score(self, saliency: Tensor) -> Tensor:
        """Gini index per image, (B,)."""
        return sparseness(saliency)


class Infidelity(ImageMetric):
    """Infidelity, lower is better; see `functional.infidelity`.

    Args:
        normalize: whether each map is first scaled by its best factor; without it the unit of the map, which has no
            meaning here, dominates the result.
        samples: number of perturbations: random squares that are replaced by the run's baseline. A perturbation is the
            amount that the replacement subtracts from the pixels in [0, 1]; its product with the map is summed over
            pixels and colors.
        patch: side of the squares in pixels.
        output: which score is compared, the explained class's "probability" or "logit".
        kwargs: of `torchmetrics.Metric`.
    """

    key, label = "infidelity", "Infid"
    higher_is_better: bool = False
    conventions = ("normalize", "samples", "patch", "output")

    def __init__(
        self,
        normalize: bool = True,
        samples: int = 32,
        patch: int = 56,
        output: Output = "probability",
        **kwargs: Any,
    ) -> None:
        check_positive("samples", samples)
        check_positive("patch", patch)
        check_choice("output", output, Output)
        super().__init__(**kwargs)
        self.normalize, self.samples, self.patch, self.output = normalize, samples, patch, output

    def needs(self) -> dict[str, Need]:
        """Both halves of the comparison, for the same perturbations."""
        options = {"samples": self.samples, "patch": self.patch}
        return {"dot_products": options, "score_differences": {**options, "output": self.output}}

    def fits(self, size: tuple[int, int]) -> bool:
        """Whether a square fits into the image."""
        return self.patch <= min(size)

    def score(self, dot_products: Tensor, score_differences: Tensor) -> Tensor:
        """Mean squared error per image, (B,); perturbation times map, and drop of the class score, both (B,S)."""
        return infidelity(dot_products, score_differences, self.normalize)
