"""Class activation maps: weighted sums of a layer's feature maps, after one forward and few backward passes.

Conventions of all methods in this module, and where other programs differ: the score is the class's logit y_c; a map is
clamped at 0 (the ReLU of the formulas), *then* upsampled (bilinear, corners not aligned), *then* range-normalized,
once. pytorch-grad-cam normalizes before and after upsampling; torchcam does not upsample.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from optcam_pl.checks import check_number, check_positive
from optcam_pl.explainers.base import Causes, Explainer, Explanation
from optcam_pl.maps import combine, constant, degenerate, level, normal, of_class, uniform, upsample
from optcam_pl.network.classifier import Classifier
from optcam_pl.network.errors import backward_errors
from optcam_pl.network.layers import Layers, OneLayer


class FakeCAM(Explainer):
    """A map of ones whose top-left pixel is 0 (Poppi et al., CVPR workshops, 2021).

    It explains nothing, yet it wins Average Drop and Average Increase. Use it to check any faithfulness metric.
    """

    def __init__(self, **shared: Any) -> None:
        super().__init__(None, "black", **shared)

    def explain(self, classifier: Classifier, image: Tensor, target: Tensor) -> Explanation:
        """No network, no layer."""
        del classifier
        saliency = torch.ones_like(image[:, :1])
        saliency[:, :, 0, 0] = 0
        return Explanation(saliency, target, degenerate(saliency))


class LayerMaps(list[Tensor]):
    """Maps (B,1,h,w) before the ReLU, one per layer, with their ingredients, which tell why a map says nothing.

    Args:
        maps: the maps.
        features: (B,K,h,w) of each layer; empty where they are not known.
        gradients: the same for the gradients.
    """

    def __init__(
        self, maps: Sequence[Tensor], features: Sequence[Tensor] = (), gradients: Sequence[Tensor] = ()
    ) -> None:
        super().__init__(maps)
        self.features, self.gradients = features, gradients

    def causes(self) -> Causes:
        """Reasons why a map says nothing, see `why`; the most general ones come last."""
        return [
            ("no gradient of the class's score reaches the layer", self._without_gradient),
            ("the layer's feature maps are constant", self._constant),
            ("the ReLU removed everything, as no place speaks for the class", self._negative),
        ]

    def _without_gradient(self) -> Tensor:
        return self._all(~G.flatten(1).any(1) for G in self.gradients)

    def _constant(self) -> Tensor:
        return self._all(map(constant, self.features))

    def _negative(self) -> Tensor:
        below = self._all((raw <= 0).flatten(1).all(1) for raw in self)
        return below & ~self._all(map(degenerate, self))

    def _all(self, of_layers: Iterable[Tensor]) -> Tensor:
        """(B,): whether it holds for every layer; False if no layer is known."""
        found = list(of_layers)
        return torch.stack(found).all(0) if found else torch.zeros_like(self[0][:, 0, 0, 0], dtype=torch.bool)


class FeatureCAM(Explainer):
    """Methods that turn each layer's feature maps into a map. A subclass provides its formula, `maps`.

    1. The formula gives raw maps (B,1,h,w), one per layer.
    2. Their negative part is cut off.
    3. The maps are upsampled to the image. Maps of several layers are added up, unless the method's authors fuse them
       in another way.
    4. The map is range-normalized.
    """

    relu: ClassVar[bool] = True

    # Written out, as jsonargparse does not find what `**shared` stands for in methods that inherit this constructor.
    def __init__(self, layer: Layers | None = None, *, selectivity: float = 1.0, augment: bool = False) -> None:
        super().__init__(layer, "black", selectivity=selectivity, augment=augment)

    def check(self, classifier: Classifier) -> None:
        """See `Explainer.check`."""
        self.check_layers(classifier)
        super().check(classifier)

    @abstractmethod
    def maps(self, classifier: Classifier, image: Tensor, target: Tensor) -> list[Tensor]:
        """Step 1."""

    def explain(self, classifier: Classifier, image: Tensor, target: Tensor) -> Explanation:
        """Steps 1 to 4; see the class."""
        raw = self.maps(classifier, image, target)
        maps = [part.relu() for part in raw] if self.relu else raw
        size = (image.shape[2], image.shape[3])
        whole = maps[0] if len(maps) == 1 else self.fuse(maps, size)
        known = raw if isinstance(raw, LayerMaps) else LayerMaps(raw)
        return self.finish(whole, image, target, parts=maps, causes=known.causes())

    def fuse(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Fuse several layers' maps (B,1,h,w) into one (B,1,H,W)."""
        return torch.stack([upsample(raw, size) for raw in maps]).sum(0)

    @torch.no_grad()
    def features(self, classifier: Classifier, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """A as [(B,K,h,w)], and the logits (B,C)."""
        with self.recording(classifier) as record:
            logits = classifier(image)
            return self.grids(record, classifier, image), logits


class CAM(FeatureCAM):
    """CAM (Zhou et al., CVPR 2016): ``sum_k w_kc A_k`` with the head's weights w, without a ReLU.

    It exists only for networks whose logits are a linear map of the averaged feature maps, ``y = W mean_ij(A) + b``;
    a numerical check makes sure that this holds for the layer, so networks that merely look suitable are refused. For
    suitable networks ``w_kc`` is Grad-CAM's weight times h w: the two methods differ in the ReLU alone.

    Args:
        layer: see `Explainer`; the last one before average pooling.

    Raises:
        ValueError: when called with a network without such a head.
    """

    relu = False

    def __init__(self, layer: OneLayer | None = None, **shared: Any) -> None:
        super().__init__(layer, **shared)

    def maps(self, classifier: Classifier, image: Tensor, target: Tensor) -> list[Tensor]:
        """See the class."""
        features, logits = self.features(classifier, image)
        pooled = [A.mean((2, 3)) for A in features]
        if len(features) == 1:
            for head in classifier.network.modules():
                weight = _class_weights(head, pooled[0], logits)
                if weight is not None:
                    A = features[0]
                    return LayerMaps([level(combine(weight[target].to(image.dtype), A), A)], [A])
        raise ValueError(
            f"CAM needs a network that averages the feature maps of one layer and ends in one linear layer, but "
            f"{classifier.name} does not compute its logits so from {', '.join(self.layers(classifier))}. Grad-CAM is "
            f"CAM's generalization to any network."
        )


def _class_weights(head: nn.Module, pooled: Tensor, logits: Tensor) -> Tensor | None:
    """(C,K) of a linear layer or 1 x 1 convolution that makes these logits (B,C) of the averages (B,K), else None."""
    if not isinstance(head, (nn.Linear, nn.Conv2d)) or head.weight.shape[:2] != (logits.shape[1], pooled.shape[1]):
        return None
    if head.weight[0, 0].numel() != 1:
        return None
    weight = head.weight.flatten(1)
    found = nn.functional.linear(pooled.to(weight), weight, head.bias).to(logits)
    # Compare half of the available digits, because the two sums run in different orders.
    coarsest = max(torch.finfo(value.dtype).eps for value in (logits, pooled, weight))
    tolerance = coarsest**0.5 * float(logits.abs().max())
    return weight if torch.allclose(found, logits, rtol=0, atol=tolerance) else None


class EigenCAM(FeatureCAM):
    """Eigen-CAM (Muhammad and Yeasin, IJCNN 2020): ``O v_1``, the features along their first principal direction.

    Each column of O (hw,K) is a feature map; v_1 is its first right singular vector. The class plays no role: the map
    is the same for every target. A singular vector's sign is arbitrary; here the entry of the largest magnitude is
    positive.

    Args:
        layer: see `Explainer`.
        center: subtract each feature map's mean first, as pytorch-grad-cam does. The paper does not.
    """

    def __init__(self, layer: Layers | None = None, center: bool = False, **shared: Any) -> None:
        super().__init__(layer, **shared)
        self.center = center

    def maps(self, classifier: Classifier, image: Tensor, target: Tensor) -> list[Tensor]:
        """See the class."""
        del target
        features, _ = self.features(classifier, image)
        return LayerMaps([principal_map(A, self.center) for A in features], features)


def principal_map(features: Tensor, center: bool = False) -> Tensor:
    """Features projected on their first principal direction.

    Args:
        features: (B,K,h,w).
        center: subtract the mean of each feature map first.

    Returns:
        (B,1,h,w), whose entry of the largest magnitude is positive; NaN where a feature is not finite.

    >>> principal_map(torch.tensor([[[[-3.0, 0.0]], [[-4.0, 0.0]]]]))
    tensor([[[[5., 0.]]]])
    """
    finite = torch.isfinite(features).flatten(1).all(1).view(-1, 1, 1)
    O = torch.where(finite, features.flatten(2).mT, 0)  # noqa: E741 (the paper's symbol)
    if center:
        O = O - O.mean(1, keepdim=True)  # noqa: E741
    U, S, _ = torch.linalg.svd(O, full_matrices=False)
    along = U[:, :, 0] * S[:, :1]
    largest = along.gather(1, along.abs().argmax(1, keepdim=True))
    along = torch.where(finite[:, 0], along * torch.where(largest < 0, -1, 1), torch.nan)
    return level(along.view(features.shape[0], 1, *features.shape[2:]), features)


class RandomCAM(FeatureCAM):
    """Random weights in (-1,1): a control that shows what the feature maps alone are worth.

    The same seed gives the same weights for every image.

    Args:
        layer: see `Explainer`.
        seed: of the weights.
    """

    def __init__(self, layer: Layers | None = None, seed: int = 0, **shared: Any) -> None:
        super().__init__(layer, **shared)
        self.seed = seed

    def maps(self, classifier: Classifier, image: Tensor, target: Tensor) -> list[Tensor]:
        """See the class."""
        del target
        generator = torch.Generator().manual_seed(self.seed)
        features, _ = self.features(classifier, image)
        drawn = [uniform([A.shape[1]], generator).to(A) * 2 - 1 for A in features]
        maps = [level(combine(w.expand(A.shape[:2]), A), A) for w, A in zip(drawn, features, strict=True)]
        return LayerMaps(maps, features)


class GradientCAM(FeatureCAM):
    """Methods that read the gradient of the class's logit at a layer. A subclass provides its formula, `raw_map`.

    A are the layer's feature maps, where the graph begins. G = d y_c / d A comes from one backward pass that ends at
    the (lowest) layer. `FeatureCAM` does the rest.
    """

    needs_gradient = True

    @abstractmethod
    def raw_map(self, A: Tensor, G: Tensor) -> Tensor:
        """The formula: (B,K,h,w), (B,K,h,w) -> (B,1,h,w), before the ReLU."""

    def maps(self, classifier: Classifier, image: Tensor, target: Tensor) -> list[Tensor]:
        """One raw map per layer."""
        layers = self.gradients(classifier, image, target)
        return LayerMaps([self.raw_map(A, G) for A, G in layers], [A for A, _ in layers], [G for _, G in layers])

    def gradients(self, classifier: Classifier, image: Tensor, target: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(A, G) of each layer, (B,K,h,w) in the image's dtype, without a graph."""
        with self.recording(classifier, cut=True) as record:
            y_c = of_class(classifier(image), target).sum()
            names, activations = record.names, record.of_images(len(image))
        with backward_errors(classifier, names):
            gradients = torch.autograd.grad(y_c, activations)
        size = (image.shape[2], image.shape[3])
        return [
            (
                classifier.to_grid(a.detach(), size, name).to(image.dtype),
                classifier.to_grid(g, size, name).to(image.dtype),
            )
            for name, a, g in zip(names, activations, gradients, strict=True)
        ]


class GradCAM(GradientCAM):
    """Grad-CAM (Selvaraju et al., ICCV 2017): ``ReLU(sum_k mean_ij(G_k) A_k)``."""

    def raw_map(self, A: Tensor, G: Tensor) -> Tensor:
        """The channel's weight is its mean gradient."""
        return level(combine(G.mean((2, 3)), A), A)


class GradCAMPlusPlus(GradientCAM):
    r"""Grad-CAM++ (Chattopadhay et al., WACV 2018): ``ReLU(sum_k w_k A_k)``, ``w_k = sum_ij alpha_kij ReLU(G_kij)``.

    ``alpha_kij = G^2 / (2 G^2 + sum_ab(A_kab) G^3)``: equation 19 for a score ``exp(y_c)``, whose second and third
    derivatives are powers of the first; the factor ``exp(y_c)`` is the same for all k and cancels in the normalization.
    Where the gradient (or the denominator) is 0, alpha is 0. pytorch-grad-cam adds 1e-6 to the denominator, which
    matters where gradients are small.
    """

    def raw_map(self, A: Tensor, G: Tensor) -> Tensor:
        """See the class."""
        return level(combine(_plus_plus(A, G, G.square(), G.square() * G), A), A)


def _plus_plus(A: Tensor, D1: Tensor, D2: Tensor, D3: Tensor) -> Tensor:
    """(B,K): Grad-CAM++'s weights from the first three derivatives (B,K,h,w) of the score."""
    below = 2 * D2 + A.sum((2, 3), keepdim=True) * D3
    alpha = torch.where(below == 0, 0, D2 / torch.where(below == 0, 1, below))
    return (alpha * D1.relu()).sum((2, 3))


class SmoothGradCAMPlusPlus(GradCAMPlusPlus):
    """Smooth Grad-CAM++ (Omeiza et al., 2019): Grad-CAM++ with derivatives averaged over noisy copies of the image.

    ``D_p = mean_m G(x + e_m)^p``, ``e_m ~ N(0, std^2)``; weights as in Grad-CAM++ with ``alpha = D_2 / (2 D_2 +
    sum_ab(A_kab) D_3)`` and ``ReLU(D_1)``; A is that of the clean image. (The paper prints D_1 as alpha's numerator;
    with D_2 the method is Grad-CAM++ where there is no noise. torchcam takes D_1 from the last copy alone.)

    The noise is drawn from the seed for each copy, the same for every image, and is added to the pixels in [0,1].

    Args:
        layer: see `Explainer`.
        num_samples: number of noisy copies; each takes one forward and one backward pass.
        std: standard deviation of the noise, in pixel units (the image's range is 1).
        seed: of the noise.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self, layer: Layers | None = None, num_samples: int = 25, std: float = 0.15, seed: int = 0, **shared: Any
    ) -> None:
        super().__init__(layer, **shared)
        self.num_samples = check_positive("num_samples", num_samples)
        self.std = check_number("std", std)
        self.seed = seed

    def maps(self, classifier: Classifier, image: Tensor, target: Tensor) -> list[Tensor]:
        """See the class."""
        generator = torch.Generator().manual_seed(self.seed)
        features, _ = self.features(classifier, image)
        sums = [[torch.zeros_like(A) for _ in range(3)] for A in features]
        for _ in range(self.num_samples):
            noise = normal(image.shape[1:], generator).to(image) * self.std
            for total, (_, G) in zip(sums, self.gradients(classifier, image + noise, target), strict=True):
                for power, derivative in enumerate(total, start=1):
                    derivative.add_(G**power / self.num_samples)
        maps = [level(combine(_plus_plus(A, *D), A), A) for A, D in zip(features, sums, strict=True)]
        return LayerMaps(maps, features, [D[1] for D in sums])


class XGradCAM(GradientCAM):
    """XGrad-CAM (Fu et al., BMVC 2020): ``ReLU(sum_k w_k A_k)``, ``w_k = sum_ij(A_kij G_kij) / sum_ij(A_kij)``.

    A channel whose activations add up to 0 has the weight 0. Where activations have both signs (in a transformer), the
    sum can come close to 0 and the weight becomes large.
    """

    def raw_map(self, A: Tensor, G: Tensor) -> Tensor:
        """The channel's weight is its gradient, averaged where the channel is active."""
        total = A.sum((2, 3))
        weights = (A * G).sum((2, 3)) / torch.where(total == 0, 1, total)
        return level(combine(torch.where(total == 0, 0, weights), A), A)


class LayerCAM(GradientCAM):
    """Layer-CAM (Jiang et al., TIP 2021): ``ReLU(sum_k ReLU(G_k) . A_k)``, one weight per position.

    Several layers are fused as in the paper: each map M becomes ``tanh(2 M / max M)``, and the largest value counts.
    (The paper scales the lower stages only; here all of them are scaled, as in torchcam.)
    """

    def raw_map(self, A: Tensor, G: Tensor) -> Tensor:
        """See the class."""
        products = G.relu() * A
        return level(products.sum(1, keepdim=True), products)

    def fuse(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        """The largest of the scaled maps."""
        scaled = []
        for raw in maps:
            top = raw.amax((2, 3), keepdim=True)
            scaled.append(upsample(torch.tanh(2 * raw / torch.where(top == 0, 1, top)), size))
        return torch.stack(scaled).amax(0)


class HiResCAM(GradientCAM):
    """HiRes-CAM (Draelos and Carin, 2020): ``ReLU(sum_k G_k . A_k)``.

    On a network that ends in average pooling and a linear layer it equals Grad-CAM, and so does XGrad-CAM.
    """

    def raw_map(self, A: Tensor, G: Tensor) -> Tensor:
        """See the class."""
        products = G * A
        return level(products.sum(1, keepdim=True), products)


class EigenGradCAM(GradientCAM):
    """Eigen-CAM of ``G_k . A_k``, which makes it depend on the class; from pytorch-grad-cam. See `EigenCAM`.

    Args:
        layer: see `Explainer`.
        center: subtract each product's mean first, as its authors do.
    """

    def __init__(self, layer: Layers | None = None, center: bool = True, **shared: Any) -> None:
        super().__init__(layer, **shared)
        self.center = center

    def raw_map(self, A: Tensor, G: Tensor) -> Tensor:
        """See the class."""
        return principal_map(G * A, self.center)
