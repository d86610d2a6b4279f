"""Where a saliency map lies, compared with the boxes of the object.

Maps are (B,1,H,W), non-negative; boxes are a list of B tensors (n,4), x0 y0 x1 y1 in pixels of the map, so that the box
of the whole image is 0 0 W H. A pixel belongs to a box if its centre does; U is the union of an image's boxes. All
scores are (B,) and NaN for an image without boxes (or, where U counts, without a pixel in U), but `saliency_metric`,
which needs no boxes.

Definitions: Zhang et al., "Opti-CAM", CVIU 2024, appendix B, and the sources named there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

Connectivity = Literal[4, 8]
Convention = Literal["pixels", "wsol"]
Contours = Literal["largest", "all"]
Array = npt.NDArray[Any]

_SMALLEST_AREA = 0.05  # of the image: below it a smaller box is no longer better for the saliency metric


class _Regions(NamedTuple):
    """N regions of a stack of T binary images: their plane (N,), box (N,4) and size (N,)."""

    plane: Array
    box: Array
    size: Array


def localization_error(saliency: Tensor, boxes: Sequence[Tensor], connectivity: Connectivity = 8) -> Tensor:
    """LE = 1 - max IoU of the map's box and the object's boxes, in percent; lower is better.

    The map's box is that of the largest connected component, by number of pixels, of {S > mean(S)}; of equal ones the
    first in reading order. A constant map has no box and scores 100.

    Example:
        >>> maps = torch.tensor([[[[0.0, 0.9, 0.8, 0.0], [0.0, 0.7, 0.6, 0.0]]]])
        >>> localization_error(maps, [torch.tensor([[1.0, 0.0, 4.0, 2.0], [0.0, 0.0, 1.0, 1.0]])]).round(decimals=4)
        tensor([33.3333], dtype=torch.float64)
    """
    predicted = predicted_boxes(saliency, connectivity)
    best = [_best_iou(one[None], _array(given))[0] for one, given in zip(predicted, boxes, strict=True)]
    return 100 * (1 - torch.tensor(np.array(best), device=saliency.device))


def official_metric(
    saliency: Tensor, boxes: Sequence[Tensor], predicted: Tensor, target: Tensor, connectivity: Connectivity = 8
) -> Tensor:
    """OM = 1 - max IoU * 1[predicted class is right], in percent; lower is better.

    Args:
        saliency: (B,1,H,W).
        boxes: B tensors (n,4).
        predicted: (B,) class that the network gives to the image.
        target: (B,) class of its label.
        connectivity: of the map's components, see `localization_error`.

    Example:
        >>> maps = torch.tensor([[[[0.0, 0.9], [0.0, 0.7]]]]).repeat(2, 1, 1, 1)
        >>> official_metric(maps, [torch.tensor([[1.0, 0.0, 2.0, 2.0]])] * 2, torch.tensor([3, 4]), torch.tensor([3, 3]))
        tensor([  0., 100.], dtype=torch.float64)
    """
    error = localization_error(saliency, boxes, connectivity)
    return torch.where((predicted == target) | error.isnan(), error, 100.0)


def pixel_f1(saliency: Tensor, boxes: Sequence[Tensor]) -> Tensor:
    """F1 of P = sum of S in U / sum of S and R = sum of S in U / |U|, in percent; higher is better.

    S must be in [0, 1]. A map without any saliency in U scores 0.

    Example:
        >>> maps = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]])
        >>> pixel_f1(maps, [torch.tensor([[1.0, 0.0, 2.0, 2.0]])])
        tensor([75.], dtype=torch.float64)
    """
    inside, total, area = _masses(saliency, boxes)
    # 2 P R / (P + R) with the common factor cancelled, which leaves nothing to divide by zero but an empty U
    return 100 * 2 * inside / (total + area).where(area > 0, torch.nan)


def energy_pointing_game(saliency: Tensor, boxes: Sequence[Tensor]) -> Tensor:
    """EP: the share of the map's sum that lies in U, in percent; higher is better. A map of zeros scores 0.

    Wang et al., "Score-CAM", CVPRW 2020.

    Example:
        >>> maps = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]])
        >>> energy_pointing_game(maps, [torch.tensor([[1.0, 0.0, 2.0, 2.0]])])
        tensor([75.], dtype=torch.float64)
    """
    inside, total, area = _masses(saliency, boxes)
    return 100 * inside / total.where(total > 0, 1).where(area > 0, torch.nan)


def standard_pointing_game(saliency: Tensor, boxes: Sequence[Tensor], tolerance: float = 0.0) -> Tensor:
    """SP: 100 if a maximal pixel of the map is in U, else 0; higher is better.

    With ties one maximal pixel inside is enough; so a constant map always hits. Zhang et al., "Top-down neural attention
    by excitation backprop", IJCV 2018.

    Args:
        saliency: (B,1,H,W).
        boxes: B tensors (n,4).
        tolerance: a maximal pixel at most this far from a pixel of U, in pixels between the centres, is a hit, too.

    Example:
        >>> maps = torch.tensor([[[[0.1, 0.0, 0.9]]]])
        >>> standard_pointing_game(maps, [torch.tensor([[0.0, 0.0, 2.0, 1.0]])])
        tensor([0.], dtype=torch.float64)
        >>> standard_pointing_game(maps, [torch.tensor([[0.0, 0.0, 2.0, 1.0]])], tolerance=1.0)
        tensor([100.], dtype=torch.float64)
    """
    union = box_union(boxes, saliency.shape[2:], saliency.device)
    near = union
    if tolerance > 0:
        far = [ndimage.distance_transform_edt(~one) <= tolerance for one in union.cpu().numpy()]
        near = torch.from_numpy(np.stack(far)).to(union.device)
    highest = (saliency == saliency.amax((2, 3), keepdim=True)).squeeze(1)
    hits = 100 * (highest & near).flatten(1).any(1).double()
    return hits.where(union.flatten(1).any(1), torch.nan)


def saliency_metric(saliency: Tensor, original: Tensor, connectivity: Connectivity = 8) -> Tensor:
    """SM = log max(0.05, |B_p| / (H W)) - log p_c; lower is better.

    B_p is the map's box, see `localization_error`; without one its area is 0. p below the smallest normal float32
    counts as that, which is 87.3. As the paper defines it, p is of the whole image; the metric's source takes it from
    the image cropped to the box (Dabkowski and Gal, "Real time image saliency for black box classifiers", NIPS 2017).

    Args:
        saliency: (B,1,H,W).
        original: p, (B,) probability of the class of interest.
        connectivity: of the map's components.

    Example:
        >>> saliency_metric(torch.tensor([[[[0.0, 0.9], [0.0, 0.7]]]]), torch.tensor([0.5]))
        tensor([0.], dtype=torch.float64)
    """
    x0, y0, x1, y1 = predicted_boxes(saliency, connectivity).T
    area = torch.from_numpy((x1 - x0) * (y1 - y0) / saliency[0].numel()).to(saliency.device)
    return area.clamp(min=_SMALLEST_AREA).log() - original.double().clamp(min=torch.finfo(torch.float32).tiny).log()


def box_hits(
    saliency: Tensor,
    boxes: Sequence[Tensor],
    ious: Sequence[float] = (0.3, 0.5, 0.7),
    thresholds: int = 100,
    convention: Convention = "pixels",
    contours: Contours = "largest",
) -> Tensor:
    """BoxAcc(threshold, IoU): whether a box of the thresholded map fits a box of the object.

    Choe et al., "Evaluating weakly supervised object localization methods right", CVPR 2020: averaged over images, the
    best threshold for IoU 0.5 is MaxBoxAcc; the mean over IoU 0.3, 0.5, 0.7 of each one's best is MaxBoxAccV2.

    Args:
        saliency: (B,1,H,W) in [0,1].
        boxes: B tensors (n,4).
        ious: the overlaps (at least that) that make a hit.
        thresholds: E, the map is cut at 0, 1/E, ... (E-1)/E.
        convention: "pixels": S > threshold; 8-connected components; the largest has most pixels. "wsol": as the
            authors' program does it with OpenCV: the map in 256 steps, cut at thresholds of its maximum; contours,
            also those of holes; the largest encloses most area, which makes lines and single pixels equally small;
            boxes a pixel larger to the right and below, but not beyond the last pixel.
        contours: the "largest" one's box, or the best of "all".

    Returns:
        (B,D*E) float64 of 0 and 1, for D overlaps the E thresholds each; NaN for an image without boxes.

    Example:
        >>> maps = torch.tensor([[[[0.3, 0.9], [0.3, 0.7]]]])
        >>> box_hits(maps, [torch.tensor([[1.0, 0.0, 2.0, 2.0]])], ious=[0.5, 0.7], thresholds=4)
        tensor([[1., 1., 1., 1., 0., 0., 1., 1.]], dtype=torch.float64)
    """
    for name, value, options in (("convention", convention, Convention), ("contours", contours, Contours)):
        if value not in get_args(options):
            raise ValueError(f"Expected `{name}` to be one of {get_args(options)}, but got {value!r}.")
    overlaps = np.asarray(ious)[:, None]
    hits = []
    for scores, given in zip(_maps(saliency), boxes, strict=True):
        wanted = _array(given)
        best = _best_per_threshold(scores, wanted, np.arange(thresholds) / thresholds, convention, contours)
        hits.append((best >= overlaps).ravel() if len(wanted) else np.full(len(ious) * thresholds, np.nan))
    return torch.tensor(np.array(hits, dtype=np.float64), device=saliency.device)


def pixel_histograms(saliency: Tensor, mask: Tensor, thresholds: int = 100) -> Tensor:
    """How often each saliency occurs on the object and on the background: what PxAP is made of.

    Args:
        saliency: (B,1,H,W) in [0,1].
        mask: (B,H,W) integer, 1 on the object, 0 on the background, anything else is ignored.
        thresholds: E bins of width 1/E below 1, one for the value 1.

    Returns:
        (B,2*(E+1)) float64 counts, the object's first; NaN for an image whose mask ignores everything.

    Example:
        >>> pixel_histograms(torch.tensor([[[[0.1, 0.6, 1.0]]]]), torch.tensor([[[0, 1, 1]]]), thresholds=2)
        tensor([[0., 1., 1., 1., 0., 0.]], dtype=torch.float64)
    """
    if mask.shape != saliency.squeeze(1).shape:
        raise ValueError(
            f"Expected `mask` to have the shape (B,H,W) of `saliency` {tuple(saliency.shape)}, but got {tuple(mask.shape)}."
        )
    edges = torch.arange(thresholds + 1, dtype=torch.float64, device=saliency.device) / thresholds
    places = torch.bucketize(saliency.squeeze(1).double(), edges, right=True) - 1
    counts = [
        torch.zeros(len(mask), thresholds + 1, dtype=torch.float64, device=saliency.device).scatter_add_(
            1, places.flatten(1), (mask == kind).flatten(1).double()
        )
        for kind in (1, 0)
    ]
    both = torch.cat(counts, 1)
    return both.where(both.sum(1, keepdim=True) > 0, torch.nan)


def pixel_average_precision(histograms: Tensor) -> Tensor:
    """PxAP: area under the precision-recall curve of the pixels, in percent; higher is better.

    Args:
        histograms: (...,2*(E+1)), the sum or mean over images of `pixel_histograms`.

    Returns:
        (...).

    Example:
        >>> pixel_average_precision(torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 0.0]))
        tensor(100.)
    """
    true, false = histograms.unflatten(-1, (2, -1)).flip(-1).cumsum(-1).unbind(-2)
    precision = true / (true + false).where(true + false > 0, 1)
    recall = true / true[..., -1:]
    # the source of the definition (Choe et al.) leaves out the highest bin, which has no left neighbour
    return 100 * (precision[..., 1:] * recall.diff(dim=-1)).sum(-1)


def predicted_boxes(saliency: Tensor, connectivity: Connectivity = 8) -> Array:
    """The map's box, see `localization_error`: (B,4) float64; zeros where a constant map has none."""
    if connectivity not in get_args(Connectivity):
        raise ValueError(f"Expected `connectivity` to be 4 or 8, but got {connectivity!r}.")
    maps = _maps(saliency)
    regions = _components(maps > maps.mean((1, 2), keepdims=True), connectivity)
    return _largest(regions, len(maps))


def box_union(boxes: Sequence[Tensor], size: Sequence[int], device: torch.device | None = None) -> Tensor:
    """U: (B,H,W) bool, the pixels whose centre is in one of the image's boxes.

    Example:
        >>> box_union([torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.4, 0.0, 3.0, 1.0]])], (1, 3))
        tensor([[[ True,  True,  True]]])
    """
    rows, columns = (torch.arange(n, device=device) + 0.5 for n in size)
    unions = []
    for given in boxes:
        x0, y0, x1, y1 = given.to(device, torch.float64).reshape(-1, 4).T[:, :, None]
        inside_rows, inside_columns = (rows >= y0) & (rows < y1), (columns >= x0) & (columns < x1)
        unions.append((inside_rows[:, :, None] & inside_columns[:, None, :]).any(0))
    return torch.stack(unions)


def _masses(saliency: Tensor, boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the map in U, sum of the map, number of pixels in U; (B,) float64 each."""
    union = box_union(boxes, saliency.shape[2:], saliency.device)
    wide = saliency.squeeze(1).double()
    return (wide * union).sum((1, 2)), wide.sum((1, 2)), union.sum((1, 2)).double()


def _maps(saliency: Tensor) -> Array:
    if saliency.ndim != 4 or saliency.shape[1] != 1:
        raise ValueError(f"Expected `saliency` to have shape (B,1,H,W), but got {tuple(saliency.shape)}.")
    return saliency.detach().squeeze(1).double().cpu().numpy()


def _array(boxes: Tensor) -> Array:
    return boxes.detach().double().cpu().numpy().reshape(-1, 4)


def _best_iou(found: Array, wanted: Array) -> Array:
    """For each of N boxes the best IoU with any of M boxes: (N,); NaN if M is 0."""
    if not len(wanted):
        return np.full(len(found), np.nan)
    low = np.maximum(found[:, None, :2], wanted[None, :, :2])
    high = np.minimum(found[:, None, 2:], wanted[None, :, 2:])
    common = (high - low).clip(min=0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (found, wanted)]
    return np.asarray((common / (areas[0][:, None] + areas[1] - common)).max(1))


def _components(masks: Array, connectivity: Connectivity) -> _Regions:
    """The connected components of each of (T,H,W) binary images, labelled in one go, in reading order."""
    labels, number = ndimage.label(masks, _in_plane(connectivity))
    return _boxed(labels, np.bincount(labels.ravel(), minlength=number + 1)[1:])


def _in_plane(connectivity: Connectivity) -> Array:
    """Neighbourhood (3,3,3) that joins pixels of one plane and never two planes."""
    structure = np.zeros((3, 3, 3), dtype=bool)
    structure[1] = ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)
    return structure


def _boxed(labels: Array, size: Array) -> _Regions:
    slices = ndimage.find_objects(labels)
    box = np.array([(x.start, y.start, x.stop, y.stop) for _, y, x in slices], dtype=np.float64).reshape(-1, 4)
    return _Regions(np.array([plane.start for plane, _, _ in slices], dtype=np.intp), box, size)


def _largest(regions: _Regions, planes: int, nothing: Sequence[float] = (0, 0, 0, 0)) -> Array:
    """Box (T,4) of the first among the largest regions of each plane; `nothing` where a plane has none."""
    order = np.lexsort((np.arange(len(regions.plane)), -regions.size, regions.plane))
    found, first = np.unique(regions.plane[order], return_index=True)
    boxes = np.tile(np.array(nothing, dtype=np.float64), (planes, 1))
    boxes[found] = regions.box[order[first]]
    return boxes


def _best_per_threshold(
    scores: Array, wanted: Array, thresholds: Array, convention: Convention, contours: Contours
) -> Array:
    """Best IoU (E,) of a map (H,W) with the object's boxes after each threshold."""
    nothing = (0, 0, 0, 0)
    if convention == "pixels":
        regions = _components(scores > thresholds[:, None, None], 8)
    else:
        levels = (scores * 255).astype(np.uint8)
        regions = _contours(levels > (thresholds * levels.max()).astype(np.uint8)[:, None, None], contours)
        height, width = scores.shape
        # a pixel larger, then cut at the last pixel's index, which as an inclusive corner is the image's border
        regions.box[:, 2:] = np.minimum(regions.box[:, 2:] + 1, (width, height))
        nothing = (0, 0, 1, 1)
    if contours == "largest":
        return _best_iou(_largest(regions, len(thresholds), nothing), wanted)
    best = _best_iou(np.tile(np.array(nothing, dtype=np.float64), (len(thresholds), 1)), wanted)
    np.maximum.at(best, regions.plane, _best_iou(regions.box, wanted))
    return best


def _contours(masks: Array, contours: Contours) -> _Regions:
    """What OpenCV finds as contours in (T,H,W) binary images, without tracing them."""
    framed = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    ground, _ = ndimage.label(~framed, _in_plane(4))
    outside = ground == ground[:, :1, :1]
    if contours == "all":
        inner = np.where(outside, 0, ground)
        holes = _boxed(inner, np.bincount(inner.ravel())[1:])
    # Every pixel inside an outermost contour, islands in its holes included; no contour within it encloses more.
    filled, number = ndimage.label(~outside, _in_plane(8))
    return _Regions(*filled)
