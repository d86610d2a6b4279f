"""Methods that show the network masked images and read its answers."""

from __future__ import annotations

import torch
from torch import Tensor

from optcam_pl.classifier import Classifier
from optcam_pl.explainers.base import Explainer, Explanation
from optcam_pl.saliency import Baseline, baseline_image, check_baseline, combine, mask_image, normalize, upsample


class ScoreCAM(Explainer):
    """Score-CAM (Wang et al., CVPR workshops, 2020): ``ReLU(sum_k softmax(C)_k A_k)``.

    ``C_k = f_c(x . n(up(A_k))) - f_c(baseline)``, the increase of confidence: the logit of the class when the image is
    masked by the channel's own upsampled, range-normalised map. As in the paper's algorithm 1 the softmax runs over
    the channels (the constant ``f_c(baseline)`` falls out of it and is not computed). The authors' program does
    otherwise: it weights by softmax probabilities and has no softmax over channels.

    Args:
        layer: see `Explainer`; one layer.
        chunk_size: masked images in one forward pass.
        baseline: see `Explainer`.
    """

    def __init__(self, layer: str | None = None, chunk_size: int = 64, baseline: Baseline = "black") -> None:
        super().__init__(layer, check_baseline(baseline))
        if not isinstance(chunk_size, int) or chunk_size < 1:
            raise ValueError(f"Expected `chunk_size` to be a positive integer, but got {chunk_size!r}.")
        self.chunk_size = chunk_size

    @torch.no_grad()
    def explain(self, classifier: Classifier, image: Tensor, target: Tensor) -> Explanation:
        """One forward pass a channel, many channels at once."""
        with self.recording(classifier) as record:
            classifier(image)
            features = self.grids(record, classifier, image)
        if len(features) != 1:
            raise ValueError(f"Expected one `layer` for ScoreCAM, but got {len(features)}.")
        A = features[0]
        # A chunk holds whole columns of the batch: every image sees the same cuts, whatever its neighbours are.
        step = max(1, self.chunk_size // image.shape[0])
        scores = [self._scores(classifier, image, target, part) for part in A.split(step, dim=1)]
        weights = torch.softmax(torch.cat(scores, dim=1), dim=1)
        explanation = self.finish(combine(weights, A).relu(), image, target)
        return Explanation(explanation.saliency, target, explanation.degenerate, weights)

    def _scores(self, classifier: Classifier, image: Tensor, target: Tensor, A: Tensor) -> Tensor:
        """(B,k,h,w) -> (B,k): the logit of the class for the image masked by each channel."""
        B, k = A.shape[:2]
        masks = normalize(upsample(A, (image.shape[2], image.shape[3]))).unsqueeze(2)
        reference = baseline_image(image, self.baseline, classifier.mean).unsqueeze(1)
        masked = mask_image(image.unsqueeze(1), masks, reference).flatten(0, 1)
        logits = classifier(masked)
        return logits.gather(1, target.repeat_interleave(k).unsqueeze(1)).view(B, k).to(A.dtype)
