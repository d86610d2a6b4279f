"""Methods that weight a layer's feature maps by the network's scores for masked images or ablated features."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from optcam_pl import kernels
from optcam_pl.checks import check_choice, check_number, check_positive
from optcam_pl.explainers.base import Explainer, Explanation
from optcam_pl.explainers.batching import Chunks
from optcam_pl.explainers.cam import LayerMaps
from optcam_pl.explainers.chunk_size import ChunkSize, check_chunk_size, images_in_pass
from optcam_pl.explainers.upper_part import UpperPart
from optcam_pl.maps import (
    Baseline,
    check_baseline,
    combine,
    degenerate,
    level,
    normal,
    normalize,
    of_class,
    upsample,
)
from optcam_pl.network.classifier import Classifier
from optcam_pl.network.layers import OneLayer

Smoothing: TypeAlias = Literal["none", "noise", "integral"]
_SAMPLES: dict[Smoothing, int] = {"none": 1, "noise": 35, "integral": 10}


class ChannelScoring(Explainer):
    """The shared part of the methods in this module: one layer, chunks, and ``ReLU(sum_k w_k A_k)`` at the end.

    Args:
        layer: see `Explainer`; one layer.
        chunk_size: number of images (or ablated features) in one pass, or "auto" (see `chunk_size`); halved
            automatically if a GPU runs out of memory.
        baseline: see `Explainer`.
    """

    def __init__(self, layer: OneLayer | None, chunk_size: ChunkSize, baseline: Baseline, **shared: Any) -> None:
        super().__init__(layer, check_baseline(baseline), **shared)
        self.chunk_size = check_chunk_size(chunk_size)

    def layer_name(self, classifier: Classifier) -> str:
        """The name of the one layer.

        Raises:
            ValueError: there are several.
        """
        names = list(self.layers(classifier))
        if len(names) != 1:
            raise ValueError(f"Expected one `layer` for {type(self).__name__}, but got {len(names)}.")
        return names[0]

    def check(self, classifier: Classifier) -> None:
        """See `Explainer.check`; it does not run a pass for each channel."""
        self.layer_name(classifier)
        self.check_layers(classifier)

    def weighted(self, weights: Tensor, A: Tensor, image: Tensor, target: Tensor) -> Explanation:
        """The map of weights (B,K) and feature maps (B,K,h,w)."""
        raw = level(combine(weights, A), A)
        return replace(self.finish(raw.relu(), image, target, causes=LayerMaps([raw], [A]).causes()), weights=weights)


class ScoreCAM(ChannelScoring):
    """Score-CAM (Wang et al., CVPR workshops, 2020): ``ReLU(sum_k softmax(C)_k A_k)``.

    ``C_k = f_c(x . n(up(A_k))) - f_c(baseline)``, the increase of confidence: the logit of the class when the image is
    masked by the channel's own upsampled, range-normalized map. As in the paper's algorithm 1 the softmax runs over the
    channels (the constant ``f_c(baseline)`` cancels and is not computed). Other programs differ: the authors' program
    weights by softmax probabilities and has no softmax over channels; pytorch-grad-cam and torchcam mask the normalized
    image (here: baseline "mean"); torchcam normalizes the maps before upsampling.

    Two papers average C_k over samples; `smooth` selects one of them:

    ========  =====================================================================================================
    noise     SS-CAM (Wang et al., 2020): ``mean_i f_c(x . (n(up(A_k)) + d_i))`` with ``d_i ~ N(0, std^2)``. A sample's
              noise (H,W) is the same for all channels and images, so scores differ by the channel alone.
    integral  IS-CAM (Naidu et al., 2020): ``mean_i f_c(x . i/N n(up(A_k)))``, i = 1 ... N, the path from the baseline
              to the masked image. (torchcam adds the steps up, so that its masks grow far beyond 1.)
    ========  =====================================================================================================

    Args:
        layer: see `ChannelScoring`.
        chunk_size: see `ChannelScoring`.
        smooth: "none", or one of the above.
        num_samples: N; None means the papers' values, 35 for noise and 10 for the integral.
        std: standard deviation of the noise, relative to the mask's range of 1; SS-CAM uses 2.
        seed: of the noise.
        baseline: see `Explainer`.

    Raises:
        ValueError: a setting out of range; when called, several layers.
    """

    def __init__(
        self,
        layer: OneLayer | None = None,
        chunk_size: ChunkSize = 64,
        *,
        smooth: Smoothing = "none",
        num_samples: int | None = None,
        std: float = 2.0,
        seed: int = 0,
        baseline: Baseline = "black",
        **shared: Any,
    ) -> None:
        super().__init__(layer, chunk_size, baseline, **shared)
        self.smooth: Smoothing = check_choice("smooth", smooth, Smoothing)
        self.std, self.seed = check_number("std", std), seed
        self.num_samples = _SAMPLES[smooth] if num_samples is None else check_positive("num_samples", num_samples)
        if smooth == "none" and self.num_samples != 1:
            raise ValueError(f"Expected no `num_samples` without smoothing, but got {num_samples}.")

    @torch.no_grad()
    def explain(self, classifier: Classifier, image: Tensor, target: Tensor) -> Explanation:
        """One forward pass per channel (and sample), many channels at once."""
        self.layer_name(classifier)
        A = self.look(classifier, image)[0][0]
        size, reference = (image.shape[2], image.shape[3]), self.reference(classifier, image)
        # Check before upsampling, which turns a constant into noise: the mask of a constant channel is 0.
        silent = degenerate(A.flatten(0, 1)).view(*A.shape[:2], 1, 1)
        generator, fused = torch.Generator().manual_seed(self.seed), classifier.fuses(image)
        chunks = Chunks(images_in_pass(self.chunk_size, classifier, image), len(image))
        scores = torch.zeros_like(A[:, :, 0, 0])
        for sample in range(1, self.num_samples + 1):
            noise = self.std * normal(size, generator).to(image) if self.smooth == "noise" else None

            def score(part: slice, sample: int = sample, noise: Tensor | None = noise) -> Tensor:
                masks = self._masks(A[:, part], silent[:, part], size, fused)
                if self.smooth == "integral":
                    masks = self.step(sample) * masks
                return _masked_logits(classifier, image, masks if noise is None else masks + noise, reference, target)

            scores += chunks.cat(score, A.shape[1]).to(A.dtype)
        return self.weighted(torch.softmax(scores / self.num_samples, dim=1), A, image, target)

    @staticmethod
    def _masks(A: Tensor, silent: Tensor, size: tuple[int, int], fused: bool) -> Tensor:
        """``n(up(A_k))``, (B,k,H,W); 0 where a channel is `silent` (B,k,1,1)."""
        if not fused:
            return normalize(upsample(A, size), silent=silent)
        maps = A.reshape(-1, 1, *A.shape[2:])
        return kernels.stretched(maps, size, silent.reshape(-1))[0].view(*A.shape[:2], *size)

    def step(self, sample: int) -> float:
        """IS-CAM's factor of the mask in sample 1 ... N."""
        return sample / self.num_samples


def _masked_logits(
    classifier: Classifier, image: Tensor, masks: Tensor, reference: Tensor | None, target: Tensor
) -> Tensor:
    """(B,k): the logit of the class (B,) for each image (B,3,H,W) under each of its masks (B,k,H,W)."""
    B, k = masks.shape[:2]
    return of_class(classifier.masked(image, masks, reference), target.repeat_interleave(k)).view(B, k)


class AblationCAM(ChannelScoring):
    """Ablation-CAM (Desai and Ramaswamy, WACV 2020): ``ReLU(sum_k w_k A_k)``, ``w_k = y_c - y_c^k``.

    y_c^k is the class's logit when feature map k is set to 0 (for a transformer: feature k of every token, the class
    token's too). The paper divides by y_c, which is the same for all k and cancels in the normalization. The division
    is left out here, also because a negative y_c would turn the map into its opposite.

    Only the layers above are run for the K ablations (`UpperPart`), one image at a time, so an image's result does not
    depend on the batch at all. pytorch-grad-cam runs the whole network K times and, where a layer has negative
    activations, sets the feature to a large negative number instead of 0.

    Args:
        layer: see `ChannelScoring`.
        chunk_size: see `ChannelScoring`.

    Raises:
        ValueError: a setting out of range; when called, several layers.
    """

    def __init__(self, layer: OneLayer | None = None, chunk_size: ChunkSize = 64, **shared: Any) -> None:
        super().__init__(layer, chunk_size, "black", **shared)

    @torch.no_grad()
    def explain(self, classifier: Classifier, image: Tensor, target: Tensor) -> Explanation:
        """One pass through the upper layers per channel."""
        name, size = self.layer_name(classifier), (image.shape[2], image.shape[3])
        features, drops = [], []
        for one, c in zip(torch.split(image, 1), target.tolist(), strict=True):
            upper = UpperPart(classifier, name, one)
            A = classifier.to_grid(upper.activation, size, name)
            ablated = Ablated(upper.activation, classifier, size, name)

            def score(part: slice, upper: UpperPart = upper, ablated: Ablated = ablated, c: int = c) -> Tensor:
                return ablated.through(upper, part)[:, c].unsqueeze(0)

            scores = Chunks(images_in_pass(self.chunk_size, classifier, image)).cat(score, A.shape[1])
            features.append(A)
            drops.append(upper.logits[:, [c]] - scores)
        A, weights = torch.cat(features).to(image.dtype), torch.cat(drops).to(image.dtype)
        return self.weighted(weights, A, image, target)


class Ablated:
    """Copies of one image's activation, each with a different channel at 0.

    They are made once. After a pass only the channels that were at 0 are written again, which takes a fraction of the
    time of new copies. Where the layers above change their input in place, each pass gets new ones.

    Args:
        activation: (1,...) in the layer's layout.
        classifier: it says where the layer's channels are.
        size: (H,W) of the image.
        layer: the layer's name.
    """

    def __init__(self, activation: Tensor, classifier: Classifier, size: tuple[int, int], layer: str) -> None:
        self._activation, self._classifier, self._size, self._layer = activation, classifier, size, layer
        self._copies = activation[:0]
        self._kept = True

    def through(self, upper: UpperPart, channels: slice) -> Tensor:
        """Logits (n,C) of the copies without the n channels."""
        n = channels.stop - channels.start
        first = len(self._copies) < n or not self._kept
        if first:
            self._copies = self._new(n)
        copies = self._copies[:n]
        grid, rows, index = self._channels(copies, channels)
        whole = grid[rows, index]
        grid[rows, index] = 0
        try:
            logits = upper(copies)
        except BaseException:  # out of memory, for example: the next pass, of fewer copies, begins with new ones
            self._copies = self._activation[:0]
            raise
        grid[rows, index] = whole
        if first and self._kept:
            self._kept = torch.equal(copies, self._activation.expand_as(copies))
        return logits

    def _new(self, n: int) -> Tensor:
        last = self._activation.ndim == 4 and self._activation.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format  # copying into another one is slow
        return self._activation.expand(n, *self._activation.shape[1:]).clone(memory_format=layout)

    def _channels(self, copies: Tensor, channels: slice) -> tuple[Tensor, Tensor, Tensor]:
        """(n,K,h,w) or (n,K,tokens), a view of the copies, and which channel of each is at 0."""
        index = torch.arange(channels.start, channels.stop, device=copies.device)
        rows = torch.arange(len(index), device=copies.device)
        if copies.ndim == 3:
            return copies.transpose(1, 2), rows, index
        return self._classifier.to_grid(copies, self._size, self._layer), rows, index
