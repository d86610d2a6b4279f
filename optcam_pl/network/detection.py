"""Scores of one detection: how far a detector still finds a given box with a given class.

Shape letters: B images, N predictions an image, C classes, H x W image, R references.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from optcam_pl.checks import ToldError, check_choice, check_number
from optcam_pl.network.link import Link
from optcam_pl.network.predictions import (
    Detected,
    Predictions,
    best_label,
    detections,
    has_area,
    head_inputs,
    log_odds,
    predict,
    similarity,
)
from optcam_pl.network.scores import References, Scores
from optcam_pl.network.words import check_label, label_number, label_word

if TYPE_CHECKING:
    from optcam_pl.network.classifier import Classifier

BoxScore: TypeAlias = Literal["auto", "logit", "similarity"]
WhichBoxes: TypeAlias = Literal["detections", "boxes"]

_NUMBER = re.compile(r"#box(\d+)\Z")


class Reference(NamedTuple):
    """What the score of one column refers to.

    Attributes:
        box: (4,) xyxy in pixels.
        label: the class.
    """

    box: Tensor
    label: int


class Detection(Scores):
    """How far a detector still finds a reference box b with its class c.

    All predictions before non-maximum suppression count: b_i are their boxes, p_i(c) their probabilities of the class,
    as the detector reports them. With D-RISE's similarity ``q = max_i IoU(b_i, b) p_i(c)`` the score is

    - "auto": ``S = log(q / (1 - q))``, with the link "sigmoid": p = q. Its gradient has the direction of the class
      logit of the matched prediction (the i of the maximum); so one setting fits methods that mask and methods that
      take gradients, and all of them are measured with the same p.
    - "logit": the same with ``q = max_i min(1, IoU(b_i, b) / least_iou) p_i(c)``: a prediction that overlaps enough
      counts fully. S is then the class logit of the matched prediction itself (for detectors with a softmax its
      log-odds, ``z_c - log sum_{k != c} exp(z_k)``), and p is its probability.
    - "similarity": ``S = q`` and p = q (the link is `share`), with gradients through the boxes' coordinates, too.

    The predicted boxes are constants for the gradient, but in "similarity". Differences to others: D-RISE (Petsiuk et
    al., CVPR 2021, https://arxiv.org/abs/2006.03204) takes only detections after suppression, multiplies with the
    cosine of the whole vectors of class probabilities and with the objectness. pytorch-grad-cam's
    FasterRCNNBoxScoreTarget adds ``IoU + p`` of the detection that overlaps most, and nothing if that overlaps half or
    less or has another class: it steps there, detections after suppression carry hardly any gradient, and its sum is no
    probability. It is therefore used with EigenCAM and AblationCAM, which take no gradient. EigenCAM does not read the
    target at all: its maps are the same with this score.

    Args:
        references: "detections": each image's most probable detection, before anything is masked. "boxes": the one box
            that the dataset has for the image, with its label as the class (without a label, the class that the network
            gives the box). For a row of results for each box or each detection wrap the dataset in `EachBox`, and say
            "boxes".
        score: see above.
        threshold: the probability above which a prediction is a detection.
        least_iou: see "logit"; in (0,1].
        category: for "detections", look for this class only: its number, or its name.
        nms_iou: of two detections of one class that overlap more than this, the more probable one stays.
        reader: makes `Predictions` of what your own network returns; None: see `predictions.predict`.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> boxes = torch.tensor([[[0.0, 0.0, 4.0, 4.0], [4.0, 4.0, 8.0, 8.0]]])
        >>> found = Predictions(boxes, torch.tensor([[[2.0, -3.0], [-3.0, 1.0]]]))
        >>> scores = Detection()
        >>> with scores.bound.to([Reference(boxes[0, 0], 0), Reference(boxes[0, 1], 1)]):
        ...     scores(found), scores(found).sigmoid()
        (tensor([[2., 1.]]), tensor([[0.8808, 0.7311]]))
    """

    per_image = True

    def __init__(
        self,
        references: WhichBoxes = "detections",
        score: BoxScore = "auto",
        threshold: float = 0.5,
        least_iou: float = 0.5,
        category: int | str | None = None,
        nms_iou: float = 0.5,
        reader: Callable[[Any], Predictions] | None = None,
    ) -> None:
        self.which: WhichBoxes = check_choice("references", references, WhichBoxes)
        self.score: BoxScore = check_choice("score", score, BoxScore)
        self.threshold = _check_share("threshold", threshold)
        self.least_iou, self.nms_iou = _check_share("least_iou", least_iou), _check_share("nms_iou", nms_iou)
        self.category, self.reader = category, reader
        self.default_link: Link = share if score == "similarity" else "sigmoid"

    def settings(self) -> dict[str, object]:
        """See `Scores.settings`."""
        return {**super().settings(), "references": self.which}

    def run(self, network: nn.Module, image: Tensor, **inputs: Any) -> Predictions:
        """All predictions of the network."""
        if self.reader is None:
            return predict(network, image, **inputs)
        found = self.reader(network(image, **inputs))
        if not isinstance(found, Predictions):
            raise ToldError(f"Expected `reader` of Detection to return Predictions, but got {type(found).__name__}.")
        return found

    def layers_of(self, network: nn.Module) -> tuple[str, ...]:
        """The grids that the head of a YOLO of ultralytics reads, one for each size of objects; () for others."""
        return head_inputs(network)

    def __call__(self, output: Predictions) -> Tensor:
        """(B,R); without references (B,1), a number that depends on all predictions."""
        bound: Sequence[Reference] | None = self.bound.value
        if bound is None:
            return output.logits.flatten(1).logsumexp(1, keepdim=True)
        return torch.stack([self._score(output, box, label) for box, label in bound], dim=1)

    def _score(self, output: Predictions, box: Tensor, label: int) -> Tensor:
        if self.score == "similarity":
            return similarity(output, box, label)
        return log_odds(output, box, label, self.least_iou if self.score == "logit" else 1.0)

    def detect(self, classifier: Classifier, image: Tensor) -> list[Detected]:
        """The detections in each image, the most probable first; only those of `category`, if it is given.

        Args:
            classifier: the network with these scores.
            image: (B,3,H,W) in [0,1].
        """
        with torch.no_grad():
            return self._detections(classifier, classifier.output(image))

    def _detections(self, classifier: Classifier, output: Predictions) -> list[Detected]:
        found = detections(output, self.threshold, self.nms_iou)
        if self.category is None:
            return found
        label = label_number(classifier, self.category, output.num_classes)
        return [Detected(*(part[each.labels == label] for part in each)) for each in found]

    @contextmanager
    def references(self, classifier: Classifier, batch: Mapping[str, Any]) -> Iterator[References | None]:
        """Bind a box and a class for each image."""
        with torch.no_grad():
            output: Predictions = classifier.output(batch["image"])
            find = self._of_detections if self.which == "detections" else self._of_boxes
            found, missing = find(classifier, output, batch)
        ids = batch.get("id", [""] * len(found))
        with self.bound.to(found):
            p = self._probabilities(output, found)
            names = tuple(
                f"{_box_word(ids[i])}: {label_word(classifier, found[i].label)} {p[i]:.2f}" for i in range(len(found))
            )
            boxes = [each.box.unsqueeze(0)[: 0 if missing[i] else 1] for i, each in enumerate(found)]
            yield References(names, tuple(each.label for each in found), missing, boxes)

    def _probabilities(self, output: Predictions, found: Sequence[Reference]) -> list[float]:
        own = [self._score(output, box, label)[i] for i, (box, label) in enumerate(found)]
        return [float(value if self.score == "similarity" else value.sigmoid()) for value in own]

    def _of_detections(
        self, classifier: Classifier, output: Predictions, batch: Mapping[str, Any]
    ) -> tuple[list[Reference], tuple[str, ...]]:
        found: list[Reference] = []
        missing: list[str] = []
        for i, each in enumerate(self._detections(classifier, output)):
            missing.append("" if len(each.boxes) else self.nothing())
            whole = _whole(batch["image"])
            found.append(
                Reference(each.boxes[0], int(each.labels[0]))
                if len(each.boxes)
                else Reference(whole, best_label(output, i, whole))
            )
        return found, tuple(missing)

    def nothing(self) -> str:
        """Why an image without a detection has no scores."""
        what = "" if self.category is None else f" of {self.category}"
        return f"the network has no detection{what} above {self.threshold:g} in the image"

    def _of_boxes(
        self, classifier: Classifier, output: Predictions, batch: Mapping[str, Any]
    ) -> tuple[list[Reference], tuple[str, ...]]:
        if "boxes" not in batch:
            raise ValueError(
                "Expected a dataset with boxes, as `references` of Detection is boxes, but this one has none. Explain "
                "the network's own detections (`references` detections), or wrap the dataset in EachBox."
            )
        found: list[Reference] = []
        missing: list[str] = []
        for i, boxes in enumerate(batch["boxes"]):
            if len(boxes) > 1:
                name = batch["id"][i] if "id" in batch else i
                raise ValueError(
                    f"Expected one box for an image, as `references` of Detection is boxes, but image {name!r} has "
                    f"{len(boxes)}. Wrap the dataset in EachBox, which makes a row of results for each."
                )
            box = boxes[0] if len(boxes) else _whole(batch["image"])
            label = int(batch["target"][i]) if "target" in batch else -1
            missing.append(_unusable(boxes))
            if not missing[-1]:
                check_label(label, output.num_classes, batch["id"][i] if "id" in batch else i, output.background)
            label = label if label >= 0 and not missing[-1] else best_label(output, i, box)
            found.append(Reference(box, label))
        return found, tuple(missing)


def _unusable(boxes: Tensor) -> str:
    """Why a dataset's boxes are no reference; "" if they are one."""
    if not len(boxes):
        return "the image has no reference box"
    return "" if bool(has_area(boxes[0])) else "the reference box has no area"


def share(scores: Tensor) -> Tensor:
    """The link of scores that are probabilities already.

    Example:
        >>> share(torch.tensor([0.25]))
        tensor([0.2500])
    """
    return scores.clamp(0, 1)


def _whole(image: Tensor) -> Tensor:
    """(4,) the box around an image, for an image without a reference."""
    return torch.tensor([0, 0, image.shape[3], image.shape[2]], dtype=torch.float32, device=image.device)


def _box_word(image_id: str) -> str:
    """What a title calls the reference box of a row: "box 3" for "path#box3", and "box" for others."""
    numbered = _NUMBER.search(image_id)
    return f"box {numbered[1]}" if numbered else "box"


def _check_share(name: str, value: float) -> float:
    number = check_number(name, value, positive=True)
    if number > 1:
        raise ValueError(f"Expected `{name}` to be in (0, 1], but got {value!r}.")
    return number
