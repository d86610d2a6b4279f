"""Scores of a region: how strongly a segmentation network sees a class there.

Shape letters: B images, C classes, H x W image, h x w the network's output, R references.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optcam_pl.checks import check_choice
from optcam_pl.network.link import Link
from optcam_pl.network.outputs import logits_of, part_of
from optcam_pl.network.scores import References, Scores
from optcam_pl.network.words import check_label, label_number, label_word

if TYPE_CHECKING:
    from optcam_pl.network.classifier import Classifier

RegionScore: TypeAlias = Literal["auto", "logit"]
WhichRegion: TypeAlias = Literal["prediction", "mask"]


class RegionReference(NamedTuple):
    """What the score of one column refers to.

    Attributes:
        region: (H,W) bool, in the pixels of the image.
        label: the class.
    """

    region: Tensor
    label: int


class Region(Scores):
    """The mean score of a class c over a region M of the image, of a network that scores each place.

    The network returns logits z (B,C,h,w), or (B,1,h,w) for one class against the rest: a tensor, or an output that has
    them as `logits` (transformers' SegFormer and others) or as `out` (torchvision's DeepLabV3, FCN, LRASPP). If it is
    smaller than the image, as with SegFormer, it is enlarged bilinearly, as in transformers' own post-processing. With
    the probability p_c of each pixel (softmax over C; sigmoid for one logit), the score is

    - "auto": ``S = log(q / (1 - q))`` with ``q = mean_{x in M} p_c(x)`` and the link "sigmoid": p = q, the mean
      probability in the region.
    - "logit": ``S = mean_{x in M} z_c(x)`` with the link "identity". This is pytorch-grad-cam's
      SemanticSegmentationTarget divided by the number of pixels of the region, so normalized maps are equal. It has no
      probability: Average Drop and the like refuse, insertion and deletion measure S itself.

    Args:
        category: c, its number or its name. None: the image's label with `region` "mask", and the class that takes up
            most of the image, other than `background`, with "prediction".
        region: "prediction": where the network itself sees c, before anything is masked. "mask": the dataset's mask.
        score: see above.
        background: the class that is no object, for a `category` of None; None if there is none.
        output: which of several outputs; see `ClassLogits`. None: see above.

    Example:
        >>> z = torch.zeros(1, 2, 2, 2)
        >>> z[0, 1, 0] = 3.0
        >>> scores = Region(category=1, score="logit")
        >>> upper = torch.tensor([[True, True], [False, False]])
        >>> with scores.bound.to([RegionReference(upper, 1), RegionReference(torch.ones(2, 2).bool(), 1)]):
        ...     scores(z)
        tensor([[3.0000, 1.5000]])
    """

    per_image = True

    def __init__(
        self,
        category: int | str | None = None,
        region: WhichRegion = "prediction",
        score: RegionScore = "auto",
        background: int | None = 0,
        output: str | int | None = None,
    ) -> None:
        self.category, self.background, self.output = category, background, output
        self.region: WhichRegion = check_choice("region", region, WhichRegion)
        self.score: RegionScore = check_choice("score", score, RegionScore)
        self.default_link: Link = "identity" if score == "logit" else "sigmoid"

    def run(self, network: nn.Module, image: Tensor, **inputs: Any) -> Tensor:
        """(B,C,H,W) the logits of each pixel of the image."""
        output = network(image, **inputs)
        if self.output is not None:
            z = part_of(output, self.output)
        else:
            z = output["out"] if isinstance(output, Mapping) and "out" in output else logits_of(output)
        if z.ndim != 4 or len(z) != len(image):
            raise ValueError(
                f"Expected a network that scores each place, (B, C, h, w), as `scores` Region needs, but got the shape "
                f"{tuple(z.shape)}."
            )
        size = (image.shape[2], image.shape[3])
        z = z if z.shape[2:] == size else F.interpolate(z, size, mode="bilinear", align_corners=False)
        return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z

    def __call__(self, output: Tensor) -> Tensor:
        """(B,R); without references (B,1), a number that depends on every place."""
        bound: Sequence[RegionReference] | None = self.bound.value
        if bound is None:
            return output.flatten(1).logsumexp(1, keepdim=True)
        mean = logit_mean if self.score == "logit" else mean_log_odds
        return torch.stack([mean(output, region, label) for region, label in bound], dim=1)

    @contextmanager
    def references(self, classifier: Classifier, batch: Mapping[str, Any]) -> Iterator[References | None]:
        """Bind a region and a class for each image."""
        with torch.no_grad():
            z: Tensor = classifier.output(batch["image"])
        found: list[RegionReference] = []
        missing: list[str] = []
        predicted = predicted_classes(z)
        if self.region == "mask" and "mask" not in batch:
            raise ValueError(
                "Expected a dataset with masks, as `region` of Region is mask, but this one has none. With `region` "
                "prediction, the region is where the network itself sees the class."
            )
        for i in range(len(z)):
            label = self._label(classifier, batch, predicted[i], i, _classes(z))
            region = batch["mask"][i].bool() if self.region == "mask" else predicted[i] == label
            empty = not bool(region.any())
            missing.append(self._nothing(classifier, label) if empty else "")
            # the score of an image without a region is never reported: any region will do
            found.append(RegionReference(torch.ones_like(region) if empty else region, label))
        with self.bound.to(found):
            names = tuple(self._name(classifier, z[i : i + 1], *each) for i, each in enumerate(found))
            masks = torch.stack([region & (not missing[i]) for i, (region, _) in enumerate(found)])
            yield References(names, tuple(label for _, label in found), tuple(missing), masks=masks)

    def _label(self, classifier: Classifier, batch: Mapping[str, Any], predicted: Tensor, i: int, classes: int) -> int:
        if self.category is not None:
            return label_number(classifier, self.category, classes)
        own = int(batch["target"][i]) if self.region == "mask" and "target" in batch else -1
        check_label(own, classes, batch["id"][i] if "id" in batch else i)
        if own >= 0:
            return own
        area = torch.bincount(predicted.flatten(), minlength=classes)
        if self.background is not None and self.background < classes:
            area[self.background] = 0
        # Where there is nothing but background, any class will do that is seen nowhere.
        nowhere = next((c for c in range(classes) if c != self.background), 0)
        return int(area.argmax()) if bool(area.any()) else nowhere

    def _nothing(self, classifier: Classifier, label: int) -> str:
        """Why an image has no region."""
        if self.region == "mask":
            return "the mask of the image is empty"
        what = label_word(classifier, label) if self.category is not None else "anything but background"
        return f"the network sees {what} nowhere in the image"

    def _name(self, classifier: Classifier, z: Tensor, region: Tensor, label: int) -> str:
        p = float(mean_log_odds(z, region, label).sigmoid())
        return f"{label_word(classifier, label)} in {int(region.sum())} pixels {p:.2f}"


def predicted_classes(z: Tensor) -> Tensor:
    """The class of each pixel.

    Args:
        z: (B,C,H,W) logits; C = 1 means one class (1) against the rest (0).

    Returns:
        (B,H,W) int64.

    Example:
        >>> predicted_classes(torch.tensor([[[[2.0, -1.0]]]]))
        tensor([[[1, 0]]])
    """
    return (z[:, 0] > 0).long() if z.shape[1] == 1 else z.argmax(1)


def logit_mean(z: Tensor, region: Tensor, label: int) -> Tensor:
    """``mean_{x in M} z_c(x)``.

    Args:
        z: (B,C,H,W) logits; C = 1 means one class (1) against the rest (0), whose logit is -z.
        region: (H,W) bool, M.
        label: c.

    Returns:
        (B,).
    """
    if z.shape[1] == 1:
        return z[:, 0, region].mean(1) * (1 if label == 1 else -1)
    return z[:, label, region].mean(1)


def mean_log_odds(z: Tensor, region: Tensor, label: int) -> Tensor:
    """The log-odds of ``q = mean_{x in M} p_c(x)``, exact also where q is next to 0 or 1.

    Args:
        z: (B,C,H,W) logits; C = 1 means one class (1) against the rest (0).
        region: (H,W) bool, M.
        label: c.

    Returns:
        (B,).

    Example:
        >>> z = torch.tensor([[[[0.0, 2.0]], [[0.0, -2.0]]]])
        >>> mean_log_odds(z, torch.ones(1, 2).bool(), 0).sigmoid(), (z.softmax(1)[:, 0]).mean()
        (tensor([0.7410]), tensor(0.7410))
    """
    inside = z[:, :, region]
    if z.shape[1] == 1:
        odds = inside[:, 0] * (1 if label == 1 else -1)
    else:
        odds = inside[:, label] - torch.cat([inside[:, :label], inside[:, label + 1 :]], 1).logsumexp(1)
    # log mean p - log mean (1 - p): the number of pixels cancels out
    return F.logsigmoid(odds).logsumexp(1) - F.logsigmoid(-odds).logsumexp(1)


def _classes(z: Tensor) -> int:
    return 2 if z.shape[1] == 1 else z.shape[1]
