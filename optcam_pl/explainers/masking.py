"""Methods that weight a layer's feature maps by what the network answers to masked images or ablated features."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from optcam_pl.checks import check_choice, check_number, check_positive
from optcam_pl.explainers.base import Explainer, Explanation
from optcam_pl.explainers.batching import Chunks
from optcam_pl.explainers.cam import LayerMaps
from optcam_pl.explainers.upper_part import UpperPart
from optcam_pl.maps import (
    Baseline,
    check_baseline,
    combine,
    degenerate,
    level,
    mask_image,
    normalize,
    of_class,
    upsample,
)
from optcam_pl.network.classifier import Classifier

Smoothing: TypeAlias = Literal["none", "noise", "integral"]
_SAMPLES: dict[Smoothing, int] = {"none": 1, "noise": 35, "integral": 10}


class ChannelScoring(Explainer):
    """What the methods of this module share: one layer, chunks, and ``ReLU(sum_k w_k A_k)`` at the end.

    Args:
        layer: see `Explainer`; one layer.
        chunk_size: images (or ablated features) in one pass; halved by itself where a GPU runs out of memory.
        baseline: see `Explainer`.
    """

    def __init__(self, layer: str | None, chunk_size: int, baseline: Baseline) -> None:
        super().__init__(layer, check_baseline(baseline))
        self.chunk_size = check_positive("chunk_size", chunk_size)

    def layer_name(self, classifier: Classifier) -> str:
        """The one layer.

        Raises:
            ValueError: there are several.
        """
        names = list(self.layers(classifier))
        if len(names) != 1:
            raise ValueError(f"Expected one `layer` for {type(self).__name__}, but got {len(names)}.")
        return names[0]

    def check(self, classifier: Classifier) -> None:
        """See `Explainer.check`; without a pass for each channel."""
        self.layer_name(classifier)
        self.check_layers(classifier)

    def weighted(self, weights: Tensor, A: Tensor, image: Tensor, target: Tensor) -> Explanation:
        """The map of weights (B,K) and feature maps (B,K,h,w)."""
        raw = level(combine(weights, A), A)
        return replace(self.finish(raw.relu(), image, target, causes=LayerMaps([raw], [A]).causes()), weights=weights)


class ScoreCAM(ChannelScoring):
    """Score-CAM (Wang et al., CVPR workshops, 2020): ``ReLU(sum_k softmax(C)_k A_k)``.

    ``C_k = f_c(x . n(up(A_k))) - f_c(baseline)``, the increase of confidence: the logit of the class when the image is
    masked by the channel's own upsampled, range-normalized map. As in the paper's algorithm 1 the softmax runs over
    the channels (the constant ``f_c(baseline)`` falls out of it and is not computed). Others do otherwise: the
    authors' program weights by softmax probabilities and has no softmax over channels; pytorch-grad-cam and torchcam
    mask the normalized image (here baseline "mean"), torchcam by maps that are normalized before upsampling.

    Two papers average C_k over samples, which `smooth` chooses:

    ========  =====================================================================================================
    noise     SS-CAM (Wang et al., 2020): ``mean_i f_c(x . (n(up(A_k)) + d_i))`` with ``d_i ~ N(0, std^2)``. A sample's
              noise (H,W) is the same for all channels and images: what differs between channels is the channel.
    integral  IS-CAM (Naidu et al., 2020): ``mean_i f_c(x . i/N n(up(A_k)))``, i = 1 ... N, the path from the baseline
              to the masked image. (torchcam adds the steps up, so that its masks grow far beyond 1.)
    ========  =====================================================================================================

    Args:
        layer: see `ChannelScoring`.
        chunk_size: see `ChannelScoring`.
        smooth: "none", or one of the above.
        num_samples: N; None is the papers', 35 for noise and 10 for the integral.
        std: of the noise, where the mask's range is 1; SS-CAM's is 2.
        seed: of the noise.
        baseline: see `Explainer`.

    Raises:
        ValueError: a setting out of range; when called, several layers.
    """

    def __init__(
        self,
        layer: str | None = None,
        chunk_size: int = 64,
        *,
        smooth: Smoothing = "none",
        num_samples: int | None = None,
        std: float = 2.0,
        seed: int = 0,
        baseline: Baseline = "black",
    ) -> None:
        super().__init__(layer, chunk_size, baseline)
        self.smooth: Smoothing = check_choice("smooth", smooth, Smoothing)
        self.std, self.seed = check_number("std", std), seed
        self.num_samples = _SAMPLES[smooth] if num_samples is None else check_positive("num_samples", num_samples)
        if smooth == "none" and self.num_samples != 1:
            raise ValueError(f"Expected no `num_samples` without smoothing, but got {num_samples}.")

    @torch.no_grad()
    def explain(self, classifier: Classifier, image: Tensor, target: Tensor) -> Explanation:
        """One forward pass a channel (and sample), many channels at once."""
        self.layer_name(classifier)
        with self.recording(classifier) as record:
            classifier(image)
            A = self.grids(record, classifier, image)[0]
        size, reference = (image.shape[2], image.shape[3]), self.reference(classifier, image)
        # Before upsampling, which makes noise of a constant: such a channel's mask is 0.
        silent = degenerate(A.flatten(0, 1)).view(*A.shape[:2], 1, 1)
        chunks, generator = Chunks(self.chunk_size, len(image)), torch.Generator().manual_seed(self.seed)
        scores = torch.zeros_like(A[:, :, 0, 0])
        for sample in range(1, self.num_samples + 1):
            noise = self.std * torch.randn(size, generator=generator).to(image) if self.smooth == "noise" else None

            def score(part: slice, sample: int = sample, noise: Tensor | None = noise) -> Tensor:
                masks = normalize(upsample(A[:, part], size), silent=silent[:, part])
                if self.smooth == "integral":
                    masks = self.step(sample) * masks
                return _masked_logits(classifier, image, masks if noise is None else masks + noise, reference, target)

            scores += chunks.cat(score, A.shape[1]).to(A.dtype)
        return self.weighted(torch.softmax(scores / self.num_samples, dim=1), A, image, target)

    def step(self, sample: int) -> float:
        """IS-CAM's factor of the mask in sample 1 ... N."""
        return sample / self.num_samples


def _masked_logits(
    classifier: Classifier, image: Tensor, masks: Tensor, reference: Tensor | None, target: Tensor
) -> Tensor:
    """(B,k): the logit of the class (B,) for each image (B,3,H,W) under each of its masks (B,k,H,W)."""
    B, k = masks.shape[:2]
    under = None if reference is None else reference.unsqueeze(1)
    masked = mask_image(image.unsqueeze(1), masks.unsqueeze(2), under).flatten(0, 1)
    logits: Tensor = classifier(masked)
    return of_class(logits, target.repeat_interleave(k)).view(B, k)


class AblationCAM(ChannelScoring):
    """Ablation-CAM (Desai and Ramaswamy, WACV 2020): ``ReLU(sum_k w_k A_k)``, ``w_k = y_c - y_c^k``.

    y_c^k is the class's logit when feature map k is set to 0 (for a transformer: feature k of every token, the class
    token's too). The paper divides by y_c, which is the same for all k and falls out in normalization; where y_c is
    negative the division would turn the map into its opposite, and is left out for that, too.

    Only the layers above are run for the K ablations (`UpperPart`), of one image after the other: its result does not
    depend on the batch at all. pytorch-grad-cam runs the whole network K times and, where a layer has negative
    activations, sets the feature to a large negative number instead of 0.

    Args:
        layer: see `ChannelScoring`.
        chunk_size: see `ChannelScoring`.

    Raises:
        ValueError: a setting out of range; when called, several layers.
    """

    def __init__(self, layer: str | None = None, chunk_size: int = 64) -> None:
        super().__init__(layer, chunk_size, "black")

    @torch.no_grad()
    def explain(self, classifier: Classifier, image: Tensor, target: Tensor) -> Explanation:
        """One pass through the upper layers a channel."""
        name, size = self.layer_name(classifier), (image.shape[2], image.shape[3])
        features, drops = [], []
        for one, c in zip(torch.split(image, 1), target.tolist(), strict=True):
            upper = UpperPart(classifier, name, one)
            A = classifier.to_grid(upper.activation, size, name)

            def score(part: slice, upper: UpperPart = upper, c: int = c) -> Tensor:
                ablated = ablate(upper.activation, part, classifier, size, name)
                return upper(ablated)[:, c].unsqueeze(0)

            scores = Chunks(self.chunk_size).cat(score, A.shape[1])
            features.append(A)
            drops.append(upper.logits[:, [c]] - scores)
        A, weights = torch.cat(features).to(image.dtype), torch.cat(drops).to(image.dtype)
        return self.weighted(weights, A, image, target)


def ablate(activation: Tensor, channels: slice, classifier: Classifier, size: tuple[int, int], layer: str) -> Tensor:
    """Copies of one image's activation (1,...), each with another channel at 0, in the layer's own layout (n,...)."""
    index = torch.arange(channels.start, channels.stop, device=activation.device)
    rows = torch.arange(len(index), device=activation.device)
    copies = activation.repeat(len(index), *[1] * (activation.ndim - 1))
    if copies.ndim == 3:
        copies[rows, :, index] = 0
    else:
        classifier.to_grid(copies, size, layer)[rows, index] = 0  # the grid is a view of the copies
    return copies
