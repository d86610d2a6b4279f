"""What detectors predict for images before non-maximum suppression, in one form for all families.

Torchvision's Faster R-CNN, Mask R-CNN, Keypoint R-CNN, RetinaNet, FCOS and SSD, transformers' DETR and its relatives,
and YOLO of ultralytics: each has a reader here. Your own network returns `Predictions` itself, or gets a reader of its
own.

Shape letters: B images, N predictions an image, C classes, H x W image, R references.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import batched_nms, box_convert, box_iou, clip_boxes_to_image

Activation: TypeAlias = Literal["softmax", "sigmoid"]

_LEAST_SHARE = 1e-6  # what remains of a prediction that does not overlap the reference: its score stays finite
_NOTHING, _SURE = -1e3, 1e2  # the logits where there is no prediction, and how far the background's is above them
_ABSENT = -30.0  # the logit of a class that a prediction does not have: a probability of 1e-13


@dataclass(frozen=True)
class Predictions:
    """All predictions for B images, before non-maximum suppression.

    Attributes:
        boxes: (B,N,4) xyxy in pixels of the image, or (B,N,C,4) where each class has a box of its own.
        logits: (B,N,C) class logits.
        activation: how logits become probabilities: "softmax" over C, or "sigmoid" of each.
        background: the class that means "no object", a column of `logits`; None if there is none.
        quality: (B,N) logit of the box's quality (FCOS's centerness): the probability of a class is then the geometric
            mean of the two sigmoids; None if there is none.

    Raises:
        ValueError: the shapes do not fit together.

    Example:
        >>> boxes = torch.tensor([[[0.0, 0.0, 4.0, 4.0], [4.0, 4.0, 8.0, 8.0]]])
        >>> Predictions(boxes, torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])).probabilities()
        tensor([[[0.8808, 0.5000],
                 [0.5000, 0.7311]]])
    """

    boxes: Tensor
    logits: Tensor
    activation: Activation = "sigmoid"
    background: int | None = None
    quality: Tensor | None = None

    def __post_init__(self) -> None:
        fits = self.logits.ndim == 3 and self.boxes.shape in (
            (*self.logits.shape[:2], 4),
            (*self.logits.shape, 4),
        )
        if not fits or self.logits.shape[1] == 0:
            raise ValueError(
                "Expected predictions with `boxes` (B, N, 4) and `logits` (B, N, C), N at least 1, but got the shapes "
                f"{tuple(self.boxes.shape)} and {tuple(self.logits.shape)}."
            )

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def num_classes(self) -> int:
        """C, with the background."""
        return self.logits.shape[2]

    def boxes_of(self, label: int) -> Tensor:
        """(B,N,4) the boxes of a class."""
        return self.boxes[:, :, label] if self.boxes.ndim == 4 else self.boxes

    def log_probabilities(self, label: int) -> tuple[Tensor, Tensor]:
        """(B,N) ``log p(c)`` and ``log(1 - p(c))`` of a class, both exact also where p is next to 0 or 1."""
        logits = self.logits.float() if self.logits.dtype in (torch.float16, torch.bfloat16) else self.logits
        z = logits[..., label]
        if self.activation == "softmax":
            others = torch.cat([logits[..., :label], logits[..., label + 1 :]], 2).logsumexp(2)
            return -F.softplus(others - z), -F.softplus(z - others)
        if self.quality is None:
            return F.logsigmoid(z), F.logsigmoid(-z)
        log_p = (F.logsigmoid(z) + F.logsigmoid(self.quality.to(z))) / 2
        return log_p, torch.log(-torch.expm1(log_p.clamp(max=-1e-7)))

    def probabilities(self) -> Tensor:
        """(B,N,C) p_i(c), as the detector reports them."""
        return torch.stack([self.log_probabilities(label)[0].exp() for label in range(self.num_classes)], dim=2)

    def at(self, index: Tensor) -> Predictions:
        """One prediction of each image, by its number (B,)."""
        rows = torch.arange(len(index), device=index.device)
        quality = None if self.quality is None else self.quality[rows, index].unsqueeze(1)
        parts = (self.boxes[rows, index].unsqueeze(1), self.logits[rows, index].unsqueeze(1))
        return Predictions(*parts, self.activation, self.background, quality)


# The score of a box ---------------------------------------------------------------------------------------------------


def overlaps(boxes: Tensor, box: Tensor) -> Tensor:
    """The intersection over union of boxes with one box.

    Args:
        boxes: (B,N,4) xyxy.
        box: (4,) xyxy.

    Returns:
        (B,N) in [0,1]; 0 for a box without an area.

    Example:
        >>> overlaps(torch.tensor([[[0.0, 0.0, 4.0, 4.0], [2.0, 0.0, 6.0, 4.0]]]), torch.tensor([0.0, 0.0, 4.0, 4.0]))
        tensor([[1.0000, 0.3333]])
    """
    iou: Tensor = box_iou(boxes.flatten(0, 1), box.to(boxes).unsqueeze(0))
    return iou.view(boxes.shape[:2]).nan_to_num(0.0)  # two boxes without an area: 0 / 0


def matched(predictions: Predictions, box: Tensor, label: int, least_iou: float = 1.0) -> Tensor:
    """The prediction that stands for a reference box in each image: ``argmax_i min(1, IoU(b_i, b) / t) p_i(c)``.

    Args:
        predictions: of B images.
        box: (4,) b, xyxy.
        label: c.
        least_iou: t, in (0,1].

    Returns:
        (B,) numbers of predictions.
    """
    with torch.no_grad():
        share = _share(overlaps(predictions.boxes_of(label), box), least_iou)
        return (predictions.log_probabilities(label)[0] + share.log()).argmax(1)


def similarity(predictions: Predictions, box: Tensor, label: int) -> Tensor:
    """D-RISE's similarity of a reference with all predictions, ``max_i IoU(b_i, b) p_i(c)``.

    Args:
        predictions: of B images.
        box: (4,) b, xyxy.
        label: c.

    Returns:
        (B,) in [0,1], with a gradient to boxes and logits.

    Example:
        >>> found = Predictions(torch.tensor([[[0.0, 0.0, 4.0, 4.0], [2.0, 0.0, 6.0, 4.0]]]), torch.zeros(1, 2, 3))
        >>> similarity(found, torch.tensor([0.0, 0.0, 4.0, 4.0]), 1), similarity(found, torch.tensor([0, 0, 2, 4]), 1)
        (tensor([0.5000]), tensor([0.2500]))
    """
    one = predictions.at(matched(predictions, box, label))
    return (overlaps(one.boxes_of(label), box) * one.log_probabilities(label)[0].exp()).squeeze(1)


def log_odds(predictions: Predictions, box: Tensor, label: int, least_iou: float = 1.0) -> Tensor:
    """The log-odds ``log(q / (1 - q))`` of ``q = max_i min(1, IoU(b_i, b) / t) p_i(c)``, exact also next to 0 and 1.

    The overlap counts as a constant, so the gradient goes to the class logits of the matched prediction alone. Where
    its overlap is t or more, q is p_i(c): for a detector with sigmoids, the log-odds are the class logit itself; with a
    softmax, ``z_c - log sum_{k != c} exp(z_k)``. With t = 1, q is D-RISE's similarity.

    Args:
        predictions: of B images.
        box: (4,) b, xyxy.
        label: c.
        least_iou: t, in (0,1]: boxes that overlap at least so much count as the same box.

    Returns:
        (B,), finite, with a gradient to the logits.

    Example:
        >>> found = Predictions(torch.tensor([[[0.0, 0.0, 4.0, 4.0]]]), torch.tensor([[[2.0, -1.0]]]))
        >>> log_odds(found, torch.tensor([0.0, 0.0, 4.0, 4.0]), 0), log_odds(found, torch.tensor([0, 0, 2, 4]), 0)
        (tensor([2.]), tensor([-0.2395]))
        >>> log_odds(found, torch.tensor([0, 0, 2, 4]), 0).sigmoid(), similarity(found, torch.tensor([0, 0, 2, 4]), 0)
        (tensor([0.4404]), tensor([0.4404]))
    """
    one = predictions.at(matched(predictions, box, label, least_iou))
    log_p, log_not = (part.squeeze(1) for part in one.log_probabilities(label))
    w = _share(overlaps(one.boxes_of(label), box).squeeze(1).detach(), least_iou)
    # 1 - w p = (1 - w) + w (1 - p), without a difference of numbers that are nearly equal
    return w.log() + log_p - torch.logaddexp(torch.log1p(-w), w.log() + log_not)


def _share(iou: Tensor, least_iou: float) -> Tensor:
    return (iou / least_iou).clamp(_LEAST_SHARE, 1)


class Detected(NamedTuple):
    """The detections in one image, the most probable first.

    Attributes:
        boxes: (n,4) xyxy in pixels.
        labels: (n,) classes.
        probabilities: (n,).
    """

    boxes: Tensor
    labels: Tensor
    probabilities: Tensor


def detections(predictions: Predictions, threshold: float, nms_iou: float = 0.5, limit: int = 100) -> list[Detected]:
    """The detections in each image: probable predictions, of which suppression leaves one for each object.

    Args:
        predictions: of B images.
        threshold: the probability above which a prediction is a detection.
        nms_iou: of two detections of one class that overlap more than this, the more probable one stays.
        limit: at most so many an image, the most probable ones.

    Example:
        >>> boxes = torch.tensor([[[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 5.0], [4.0, 4.0, 8.0, 8.0]]])
        >>> logits = torch.tensor([[[2.0, -9.0], [1.0, -9.0], [-9.0, 0.5]]])
        >>> found = detections(Predictions(boxes, logits), 0.5)[0]
        >>> found.labels.tolist(), found.boxes[:, 0].tolist()
        ([0, 1], [0.0, 4.0])
    """
    found = []
    with torch.no_grad():
        p = predictions.probabilities()
        if predictions.background is not None:
            p[..., predictions.background] = 0
        for i in range(len(p)):
            number, label = (p[i] > threshold).nonzero(as_tuple=True)
            boxes = predictions.boxes[i]
            box = boxes[number, label] if boxes.ndim == 3 else boxes[number]
            real = has_area(box)  # detectors that clip boxes to the image may leave nothing of one
            box, number, label = box[real], number[real], label[real]
            kept = batched_nms(box.float(), p[i, number, label].float(), label, nms_iou)[:limit]
            found.append(Detected(box[kept], label[kept], p[i, number[kept], label[kept]]))
    return found


def has_area(boxes: Tensor) -> Tensor:
    """Which boxes (...,4) xyxy have an area, (...) bool.

    Example:
        >>> has_area(torch.tensor([[0.0, 0.0, 2.0, 1.0], [1.0, 0.0, 1.0, 5.0]]))
        tensor([ True, False])
    """
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])


def best_label(predictions: Predictions, i: int, box: Tensor) -> int:
    """The class that image i's predictions give a box: the one with the greatest similarity."""
    with torch.no_grad():
        p = predictions.probabilities()[i]
        if predictions.background is not None:
            p[:, predictions.background] = -1
        if predictions.boxes.ndim == 4:
            iou = overlaps(predictions.boxes[i], box)
        else:
            iou = overlaps(predictions.boxes[i : i + 1], box)[0].unsqueeze(1)
        return int((iou * p).amax(0).argmax())


# What networks return -------------------------------------------------------------------------------------------------


def predict(network: nn.Module, image: Tensor, **inputs: Any) -> Predictions:
    """Run a detector and read its predictions.

    Torchvision's detectors are run without their own transform: the image is normalized already, and it keeps its
    size, so that a cell of the feature grid lies where it lies in the image.

    Args:
        network: the detector.
        image: (B,3,H,W), normalized.
        inputs: other inputs of the network.

    Raises:
        TypeError: the network returns something that no reader knows.
    """
    if isinstance(network, GeneralizedRCNN):
        return _two_stages(network, image)
    if isinstance(network, (RetinaNet, FCOS, SSD)):
        return _one_stage(network, image)
    return read(network, network(image, **inputs), (image.shape[2], image.shape[3]))


def head_inputs(network: nn.Module) -> tuple[str, ...]:
    """The layers that the head of a YOLO of ultralytics reads, the finest grid first; () for other networks."""
    blocks = getattr(network, "model", None)
    if not (type(network).__module__.startswith("ultralytics.") and isinstance(blocks, nn.Sequential)):
        return ()
    numbers: Any = blocks[-1].f
    return tuple(f"model.{number}" for number in numbers)


def read(network: nn.Module, output: Any, size: tuple[int, int]) -> Predictions:
    """The predictions in an output.

    Args:
        network: the network.
        output: `Predictions`; a mapping with `boxes` and `logits` (and what else `Predictions` takes); an object with
            `logits` and `pred_boxes`, as transformers' DETR returns it; or what a YOLO of ultralytics returns.
        size: (H,W) of the images.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(output, Predictions):
        return output
    if isinstance(output, Mapping) and {"boxes", "logits"} <= set(output):
        return Predictions(**{field.name: output[field.name] for field in fields(Predictions) if field.name in output})
    logits, boxes = getattr(output, "logits", None), getattr(output, "pred_boxes", None)
    if isinstance(logits, Tensor) and isinstance(boxes, Tensor):
        return _set_prediction(network, logits, boxes, size)
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], Tensor):
        raw = output[1].get("one2many", output[1]) if isinstance(output[1], Mapping) else {}
        if isinstance(raw.get("scores"), Tensor):
            return _yolo(output[0], raw["scores"])
    raise TypeError(
        f"Expected a detector of torchvision, transformers or ultralytics, or a network that returns {{'boxes': "
        f"(B, N, 4) in pixels, 'logits': (B, N, C)}} for all of its predictions, but {type(network).__name__} returns "
        f"{type(output).__name__}. Give `reader`, a function that makes `Predictions` of this output."
    )


def _two_stages(network: Any, image: Tensor) -> Predictions:
    """Faster R-CNN and its relatives: the second stage's predictions for the first stage's proposals."""
    size = (image.shape[2], image.shape[3])
    images = ImageList(image, [size] * len(image))
    features = network.backbone(image)
    features = OrderedDict([("0", features)]) if isinstance(features, Tensor) else features
    proposals, _ = network.rpn(images, features)
    heads = network.roi_heads
    pooled = heads.box_roi_pool(features, proposals, images.image_sizes)
    logits, regression = heads.box_predictor(heads.box_head(pooled))
    boxes = clip_boxes_to_image(heads.box_coder.decode(regression, proposals), size)  # (sum of N, C, 4)
    counts = [len(part) for part in proposals]
    most = max(1, *counts)
    # An image with fewer proposals is filled up with empty boxes of background, so that no score depends on them.
    logits = _filled_up(torch.split(logits, counts), most, _NOTHING)
    background = _filled_up(torch.split(logits.new_zeros(sum(counts)), counts), most, _SURE)
    logits = torch.cat([logits[..., :1] + background.unsqueeze(2), logits[..., 1:]], dim=2)
    boxes = _filled_up(torch.split(boxes, counts), most, 0.0)
    return Predictions(boxes, logits, activation="softmax", background=0)


def _filled_up(parts: Sequence[Tensor], count: int, value: float) -> Tensor:
    """(B,count,...) from B tensors (n,...) of at most `count` rows."""
    return torch.stack([F.pad(part, (0, 0) * (part.ndim - 1) + (0, count - len(part)), value=value) for part in parts])


def _one_stage(network: Any, image: Tensor) -> Predictions:
    """RetinaNet, FCOS and SSD: one prediction for each anchor."""
    size = (image.shape[2], image.shape[3])
    features = network.backbone(image)
    features = [features] if isinstance(features, Tensor) else list(features.values())
    found = network.head(features)
    anchors = network.anchor_generator(ImageList(image, [size] * len(image)), features)
    regression, logits = found["bbox_regression"], found["cls_logits"]
    decode = network.box_coder.decode if isinstance(network, FCOS) else network.box_coder.decode_single
    boxes = decode(regression.flatten(0, 1), torch.cat(anchors)).view(regression.shape)
    boxes = clip_boxes_to_image(boxes, size)
    if isinstance(network, SSD):
        return Predictions(boxes, logits, activation="softmax", background=0)
    return Predictions(boxes, logits, quality=found["bbox_ctrness"].squeeze(2) if isinstance(network, FCOS) else None)


def _set_prediction(network: Any, logits: Tensor, boxes: Tensor, size: tuple[int, int]) -> Predictions:
    """DETR and its relatives: boxes as parts of the image, by center, width and height.

    DETR has one logit more than classes, for "no object", and a softmax. Its relatives with focal loss (Deformable,
    Conditional, RT-DETR ...) have one for each class, and sigmoids.
    """
    scale = torch.tensor([size[1], size[0]] * 2).to(boxes)
    xyxy = box_convert(boxes, "cxcywh", "xyxy") * scale
    if logits.shape[2] == network.config.num_labels + 1:
        return Predictions(xyxy, logits, activation="softmax", background=logits.shape[2] - 1)
    return Predictions(xyxy, logits)


def _yolo(decoded: Tensor, logits: Tensor) -> Predictions:
    """Ultralytics: boxes in pixels, (B,4+C,N); of a network without suppression (B,n,6), each of one class."""
    classes = logits.shape[1]
    if decoded.shape[1:] == (4 + classes, logits.shape[2]):
        return Predictions(box_convert(decoded[:, :4].transpose(1, 2), "cxcywh", "xyxy"), logits.transpose(1, 2))
    p = decoded[..., 4].clamp(1e-6, 1 - 1e-6)
    one_hot = F.one_hot(decoded[..., 5].long(), classes).bool()
    return Predictions(decoded[..., :4], torch.where(one_hot, torch.logit(p).unsqueeze(2), _ABSENT))
