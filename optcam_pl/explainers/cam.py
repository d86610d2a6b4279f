"""Class activation maps that need one forward and at most one backward pass, down to the layer and no further."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from optcam_pl.classifier import Classifier
from optcam_pl.explainers.base import Explainer, Explanation
from optcam_pl.saliency import combine, upsample


class FakeCAM(Explainer):
    """A map of ones whose top-left pixel is 0 (Poppi et al., CVPR workshops, 2021).

    It explains nothing, yet wins Average Drop and Average Increase: the check of every faithfulness metric.
    """

    def __init__(self) -> None:
        super().__init__()

    def explain(self, classifier: Classifier, image: Tensor, target: Tensor) -> Explanation:
        """No network, no layer."""
        del classifier
        saliency = torch.ones_like(image[:, :1])
        saliency[:, :, 0, 0] = 0
        return Explanation(saliency, target, torch.zeros_like(target, dtype=torch.bool))


class GradientCAM(Explainer):
    """Methods that read the gradient of the class's logit at a layer. A subclass is its formula, `raw_map`.

    1. A: the layer's feature maps; the graph begins there.
    2. G = d y_c / d A, by one backward pass that ends at the layer.
    3. The raw map (B,1,h,w) of the formula, in float32, its negative part cut off.
    4. Upsampled to the image, then range-normalised. With several layers each map is upsampled and the raw maps are
       added before normalisation.
    """

    def __init__(self, layer: str | list[str] | None = None) -> None:
        super().__init__(layer)

    @abstractmethod
    def raw_map(self, A: Tensor, G: Tensor) -> Tensor:
        """The formula: (B,K,h,w), (B,K,h,w) -> (B,1,h,w), before the ReLU."""

    def explain(self, classifier: Classifier, image: Tensor, target: Tensor) -> Explanation:
        """Steps 1 to 4; see the class."""
        with self.recording(classifier, cut=True) as record:
            y_c = classifier(image).gather(1, target.unsqueeze(1)).sum()
            activations = [record[name] for name in self.layers(classifier)]
        gradients = torch.autograd.grad(y_c, activations)
        size = (image.shape[2], image.shape[3])
        maps = []
        for name, a, g in zip(self.layers(classifier), activations, gradients, strict=True):
            A, G = (classifier.to_grid(t.detach(), size, name).to(image.dtype) for t in (a, g))
            maps.append(self.raw_map(A, G).relu())
        raw = maps[0] if len(maps) == 1 else torch.stack([upsample(m, size) for m in maps]).sum(0)
        return self.finish(raw, image, target)


class GradCAM(GradientCAM):
    """Grad-CAM (Selvaraju et al., ICCV 2017): ``ReLU(sum_k mean_ij(G_k) A_k)``."""

    def raw_map(self, A: Tensor, G: Tensor) -> Tensor:
        """The channel's weight is its mean gradient."""
        return combine(G.mean((2, 3)), A)


class GradCAMPlusPlus(GradientCAM):
    r"""Grad-CAM++ (Chattopadhay et al., WACV 2018): ``ReLU(sum_k w_k A_k)``, ``w_k = sum_ij alpha_kij ReLU(G_kij)``.

    ``alpha_kij = G^2 / (2 G^2 + sum_ab(A_kab) G^3)``: equation 19 for a score ``exp(y_c)``, whose second and third
    derivatives are powers of the first; the factor ``exp(y_c)`` is the same for all k and falls out in normalisation.
    Where the gradient (or the denominator) is 0, alpha is 0.
    """

    def raw_map(self, A: Tensor, G: Tensor) -> Tensor:
        """See the class."""
        square = G.square()
        below = 2 * square + A.sum((2, 3), keepdim=True) * square * G
        alpha = torch.where(below == 0, 0, square / torch.where(below == 0, 1, below))
        return combine((alpha * G.relu()).sum((2, 3)), A)
