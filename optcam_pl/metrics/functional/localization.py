"""Where a saliency map lies, compared with the boxes of the object.

Maps are (B,1,H,W), non-negative; boxes are a list of B tensors (n,4), x0 y0 x1 y1 in pixels of the map, so that the box
of the whole image is 0 0 W H. A pixel belongs to a box if its center does; U is the union of an image's boxes. All
scores are (B,) float64, and NaN for an image without boxes (or, where U counts, without a pixel in U); only
`saliency_metric` needs no boxes. Connected components are found on the CPU.

Definitions: Zhang et al., "Opti-CAM", CVIU 2024, appendix B, and the sources named there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from optcam_pl.checks import check_choice
from optcam_pl.metrics.functional.checks import check_maps
from optcam_pl.metrics.functional.components import Array, Components, Connectivity

Convention = Literal["pixels", "wsol"]
Contours = Literal["largest", "all"]
Region = Literal["map", "inside_box", "outside_box", "box", "complement"]

_SMALLEST_AREA = 0.05  # share of the image; below it the saliency metric does not reward smaller boxes
_NO_BOX = (0, 0, 0, 0)


def localization_error(saliency: Tensor, boxes: Sequence[Tensor], connectivity: Connectivity = 8) -> Tensor:
    """LE = 1 - max IoU between the map's box and the object's boxes, in percent; lower is better.

    The map's box encloses the largest connected component, by number of pixels, of {S > mean(S)}; of equal components
    the first in reading order counts. A constant map has no box and scores 100.

    Example:
        >>> maps = torch.tensor([[[[0.0, 0.9, 0.8, 0.0], [0.0, 0.7, 0.6, 0.0]]]])
        >>> localization_error(maps, [torch.tensor([[1.0, 0.0, 4.0, 2.0], [0.0, 0.0, 1.0, 1.0]])]).round(decimals=4)
        tensor([33.3333], dtype=torch.float64)
    """
    found = _predicted_boxes(saliency, connectivity)
    best = [_best_iou(one[None], wanted)[0] for one, wanted in zip(found, _arrays(boxes, saliency), strict=True)]
    return _scores(100 * (1 - np.array(best)), saliency)


def map_boxes(saliency: Tensor, threshold: float | None = None, connectivity: Connectivity = 8) -> list[Tensor]:
    """The boxes that maps stand for.

    Args:
        saliency: (B,1,H,W).
        threshold: None for the box of `localization_error`, one for each map. A number t for the boxes of all connected
            components of {S > t}, those with most pixels first.
        connectivity: of the components.

    Returns:
        B float tensors (n,4), xyxy in pixels of the map, on the CPU; n is 0 where a map has no box.

    Example:
        >>> maps = torch.tensor([[[[0.0, 0.9, 0.0, 0.6], [0.0, 0.7, 0.0, 0.0]]]])
        >>> [found.tolist() for found in map_boxes(maps)]
        [[[1.0, 0.0, 2.0, 2.0]]]
        >>> [found.tolist() for found in map_boxes(maps, 0.5)]
        [[[1.0, 0.0, 2.0, 2.0], [3.0, 0.0, 4.0, 1.0]]]
    """
    if threshold is None:
        found = torch.from_numpy(_predicted_boxes(saliency, connectivity)).float()
        return [box[None] if box.any() else box[:0].view(0, 4) for box in found]
    labels, _ = ndimage.label(_maps(saliency) > threshold, _in_plane(connectivity))
    planes, boxes = _boxes(labels)
    size = np.bincount(labels.ravel(), minlength=len(planes) + 1)[1:]
    order = np.argsort(-size, kind="stable")
    return [torch.from_numpy(boxes[order][planes[order] == i]).float() for i in range(len(labels))]


def official_metric(
    saliency: Tensor, boxes: Sequence[Tensor], predicted: Tensor, target: Tensor, connectivity: Connectivity = 8
) -> Tensor:
    """OM = 1 - max IoU * 1[predicted class is right], in percent; lower is better.

    Args:
        saliency: (B,1,H,W).
        boxes: B tensors (n,4).
        predicted: (B,) class that the network gives to the image.
        target: (B,) class of its label; -1 means that it has none. No prediction is right or wrong then: NaN.
        connectivity: of the map's components, see `localization_error`.

    Example:
        >>> maps, box = torch.tensor([[[[0.0, 0.9], [0.0, 0.7]]]] * 3), torch.tensor([[1.0, 0.0, 2.0, 2.0]])
        >>> official_metric(maps, [box] * 3, predicted=torch.tensor([3, 4, 4]), target=torch.tensor([3, 3, -1]))
        tensor([  0., 100.,  nan], dtype=torch.float64)
    """
    error = localization_error(saliency, boxes, connectivity)
    label, right = target.to(error.device), (predicted == target).to(error.device)
    return torch.where(right | error.isnan(), error, 100).where(label >= 0, torch.nan)


def region_map(saliency: Tensor, boxes: Sequence[Tensor], region: Region) -> Tensor:
    """The map of one region, which the bounding-box study measures in place of the map (Zhang et al. 2024, table 5).

    U is the union of an image's boxes. "map" is S itself; "inside_box" is S in U and 0 elsewhere; "outside_box" is S
    outside of U and 0 in it; "box" is 1 in U and 0 elsewhere; "complement" is 1 - "box".

    Args:
        saliency: (B,1,H,W) maps S in [0, 1].
        boxes: B tensors (n,4), xyxy in pixels of the map.
        region: which one.

    Returns:
        (B,1,H,W) in the map's dtype.

    Example:
        >>> maps, boxes = torch.tensor([[[[0.2, 0.4, 0.6]]]]), [torch.tensor([[1.0, 0.0, 2.0, 1.0]])]
        >>> region_map(maps, boxes, "outside_box").flatten(), region_map(maps, boxes, "box").flatten()
        (tensor([0.2000, 0.0000, 0.6000]), tensor([0., 1., 0.]))
    """
    check_choice("region", region, Region)
    if region == "map":
        return saliency
    inside = torch.from_numpy(_union(_arrays(boxes, saliency), tuple(saliency.shape[2:]))).to(saliency.device)
    chosen = inside if region in ("inside_box", "box") else ~inside
    kept = torch.ones_like(saliency) if region in ("box", "complement") else saliency
    return kept.where(chosen.unsqueeze(1), 0)


def pixel_f1(saliency: Tensor, boxes: Sequence[Tensor]) -> Tensor:
    """F1 of P = sum of S in U / sum of S and R = sum of S in U / |U|, in percent; higher is better.

    S must be in [0, 1]. A map without any saliency in U scores 0.

    Example:
        >>> maps = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]])
        >>> pixel_f1(maps, [torch.tensor([[1.0, 0.0, 2.0, 2.0]])])
        tensor([75.], dtype=torch.float64)
    """
    inside, total, area = _masses(saliency, boxes)
    # 2 P R / (P + R) with the common factor canceled, so that only an empty U leads to a division by zero
    return _scores(200 * inside / np.where(area > 0, total + area, np.nan), saliency)


def energy_pointing_game(saliency: Tensor, boxes: Sequence[Tensor]) -> Tensor:
    """EP: the share of the map's sum that lies in U, in percent; higher is better. A map of zeros scores 0.

    Wang et al., "Score-CAM", CVPRW 2020.

    Example:
        >>> maps = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]])
        >>> energy_pointing_game(maps, [torch.tensor([[1.0, 0.0, 2.0, 2.0]])])
        tensor([75.], dtype=torch.float64)
    """
    inside, total, area = _masses(saliency, boxes)
    return _scores(100 * inside / np.where(area > 0, np.where(total > 0, total, 1), np.nan), saliency)


def standard_pointing_game(saliency: Tensor, boxes: Sequence[Tensor], tolerance: float = 0.0) -> Tensor:
    """SP: 100 if a maximal pixel of the map is in U, else 0; higher is better.

    If several pixels are maximal, one of them in U is enough, so a constant map always hits. Zhang et al., "Top-down
    neural attention by excitation backprop", IJCV 2018.

    Args:
        saliency: (B,1,H,W).
        boxes: B tensors (n,4).
        tolerance: a maximal pixel at most this far from a pixel of U, in pixels between the centers, is also a hit.

    Example:
        >>> maps = torch.tensor([[[[0.1, 0.0, 0.9]]]])
        >>> standard_pointing_game(maps, [torch.tensor([[0.0, 0.0, 2.0, 1.0]])])
        tensor([0.], dtype=torch.float64)
        >>> standard_pointing_game(maps, [torch.tensor([[0.0, 0.0, 2.0, 1.0]])], tolerance=1.0)
        tensor([100.], dtype=torch.float64)
    """
    maps = _maps(saliency)
    union = _union(_arrays(boxes, saliency), maps.shape[1:])
    near = union
    if tolerance > 0:
        near = np.array([ndimage.distance_transform_edt(~one) <= tolerance for one in union])
    hits = 100.0 * ((maps == maps.max((1, 2), keepdims=True)) & near).any((1, 2))
    return _scores(np.where(union.any((1, 2)), hits, np.nan), saliency)


def saliency_metric(saliency: Tensor, original: Tensor, connectivity: Connectivity = 8) -> Tensor:
    """SM = log max(0.05, |B_p| / (H W)) - log p_c; lower is better.

    B_p is the map's box, see `localization_error`; if there is none, its area is 0. A p below the smallest normal
    float32 counts as that number, whose -log is 87.3. As in the paper, p belongs to the whole image; the metric's
    source takes it from the image cropped to the box (Dabkowski and Gal, "Real time image saliency for black box
    classifiers", NIPS 2017).

    Args:
        saliency: (B,1,H,W).
        original: p, (B,) probability of the class of interest.
        connectivity: of the map's components.

    Example:
        >>> saliency_metric(torch.tensor([[[[0.0, 0.9], [0.0, 0.7]]]]), torch.tensor([0.5]))
        tensor([0.], dtype=torch.float64)
    """
    x0, y0, x1, y1 = _predicted_boxes(saliency, connectivity).T
    share = (x1 - x0) * (y1 - y0) / (saliency.shape[2] * saliency.shape[3])
    p = original.detach().cpu().double().numpy()
    floor = np.finfo(np.float32).tiny
    return _scores(np.log(np.maximum(share, _SMALLEST_AREA)) - np.log(np.maximum(p, floor)), saliency)


def box_hits(
    saliency: Tensor,
    boxes: Sequence[Tensor],
    *,
    ious: Sequence[float] = (0.3, 0.5, 0.7),
    thresholds: int = 100,
    convention: Convention = "pixels",
    contours: Contours = "largest",
) -> Tensor:
    """BoxAcc(threshold, IoU): whether a box of the thresholded map fits a box of the object.

    Choe et al., "Evaluating weakly supervised object localization methods right", CVPR 2020: averaged over images, the
    best threshold for IoU 0.5 is MaxBoxAcc; the mean over IoU 0.3, 0.5, 0.7, each at its best threshold, is
    MaxBoxAccV2.

    Args:
        saliency: (B,1,H,W) in [0,1].
        boxes: B tensors (n,4).
        ious: the smallest overlaps that count as a hit.
        thresholds: E; the map is cut at 0, 1/E, ... (E-1)/E.
        convention: "pixels": S > threshold; 8-connected components; the largest component has the most pixels. "wsol"
            follows the authors' program, which uses OpenCV: the map has 256 steps and is cut at thresholds relative to
            its maximum; contours include those of holes; the largest contour encloses the most area, so lines and
            single pixels are equally small; boxes are one pixel larger to the right and below, but end at the image;
            without a contour the box is the first pixel.
        contours: the box of the "largest" contour, or the best of "all".

    Returns:
        (B,D*E) float64 of 0 and 1: the E thresholds for each of D overlaps; NaN for an image without boxes.

    Example:
        >>> maps = torch.tensor([[[[0.3, 0.9], [0.3, 0.7]]]])
        >>> box_hits(maps, [torch.tensor([[1.0, 0.0, 2.0, 2.0]])], ious=[0.5, 0.7], thresholds=4)
        tensor([[1., 1., 1., 1., 0., 0., 1., 0.]], dtype=torch.float64)
    """
    overlaps, hits = np.asarray(ious)[:, None], []
    for scores, wanted in zip(_maps(saliency), _arrays(boxes, saliency), strict=True):
        if not len(wanted):
            hits.append(np.full(overlaps.size * thresholds, np.nan))
            continue
        best_of = _best_of_components if convention == "pixels" else _best_of_contours
        hits.append((best_of(scores, thresholds, wanted, contours) >= overlaps).ravel())
    return _scores(np.array(hits).reshape(len(saliency), overlaps.size * thresholds), saliency)


def pixel_histograms(saliency: Tensor, mask: Tensor, thresholds: int = 100) -> Tensor:
    """How often each saliency occurs on the object and on the background; PxAP is computed from this.

    Args:
        saliency: (B,1,H,W) in [0,1].
        mask: (B,H,W) integer, 1 on the object, 0 on the background; other values are ignored.
        thresholds: E bins of width 1/E below 1, and one for the value 1.

    Returns:
        (B,2*(E+1)) float64 counts, those of the object first; NaN for an image whose mask ignores everything.

    Example:
        >>> pixel_histograms(torch.tensor([[[[0.1, 0.6, 1.0]]]]), torch.tensor([[[0, 1, 1]]]), thresholds=2)
        tensor([[0., 1., 1., 1., 0., 0.]], dtype=torch.float64)
    """
    maps, kinds = _maps(saliency), mask.detach().cpu().numpy()
    if kinds.shape != maps.shape:
        raise ValueError(f"Expected `mask` to have shape {maps.shape}, like the maps, but got {kinds.shape}.")
    bins = np.searchsorted(np.arange(1, thresholds + 1) / thresholds, maps, side="right")
    counts = [
        [np.bincount(places[where == kind], minlength=thresholds + 1) for kind in (1, 0)]
        for places, where in zip(bins, kinds, strict=True)
    ]
    flat = np.array(counts, dtype=np.float64).reshape(len(maps), 2 * (thresholds + 1))
    return _scores(np.where(flat.sum(1, keepdims=True) > 0, flat, np.nan), saliency)


def pixel_average_precision(histograms: Tensor) -> Tensor:
    """PxAP: area under the precision-recall curve of the pixels (Choe et al.), in percent; higher is better.

    Args:
        histograms: (...,2*(E+1)), the sum or the mean over images of `pixel_histograms`.

    Returns:
        (...); NaN without any pixel of an object.

    Example:
        >>> pixel_average_precision(torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 0.0]))
        tensor(100.)
    """
    true, false = (half.flip(-1).cumsum(-1) for half in histograms.chunk(2, dim=-1))
    precision = true / (true + false).where(true + false > 0, 1)
    recall = true / true[..., -1:]
    steps = recall.diff(dim=-1, prepend=torch.zeros_like(recall[..., :1]))
    return 100 * (precision * steps).sum(-1)


# The parts of the scores; from here on maps and masks are (T,H,W) arrays and boxes are (N,4) --------------------------


def _maps(saliency: Tensor) -> Array:
    check_maps(saliency)
    return saliency.detach().squeeze(1).cpu().double().numpy()


def _arrays(boxes: Sequence[Tensor], saliency: Tensor) -> list[Array]:
    if len(boxes) != len(saliency):
        raise ValueError(f"Expected `boxes` of {len(saliency)} images, as many as maps, but got {len(boxes)}.")
    return [given.detach().cpu().double().numpy().reshape(-1, 4) for given in boxes]


def _scores(values: Array, like: Tensor) -> Tensor:
    """Convert back to a tensor on the map's device, in the widest type that the device has."""
    return torch.as_tensor(
        values, dtype=torch.float32 if like.device.type == "mps" else torch.float64, device=like.device
    )


def _union(boxes: Sequence[Array], size: tuple[int, ...]) -> Array:
    """U: (T,H,W) bool, the pixels whose center lies in a box of their image."""
    rows, columns = (np.arange(n) + 0.5 for n in size)
    unions = np.zeros((len(boxes), *size), dtype=bool)
    for i, given in enumerate(boxes):
        for x0, y0, x1, y1 in given:
            unions[i] |= ((rows >= y0) & (rows < y1))[:, None] & (columns >= x0) & (columns < x1)
    return unions


def _masses(saliency: Tensor, boxes: Sequence[Tensor]) -> tuple[Array, Array, Array]:
    """Sum of the map in U, sum of the whole map, number of pixels in U; each (B,)."""
    maps = _maps(saliency)
    union = _union(_arrays(boxes, saliency), maps.shape[1:])
    return (maps * union).sum((1, 2)), maps.sum((1, 2)), union.sum((1, 2))


def _predicted_boxes(saliency: Tensor, connectivity: Connectivity) -> Array:
    """The map's box, see `localization_error`; zeros where a constant map has none."""
    maps = _maps(saliency)
    # The mean of a constant map may be rounded to below its value, but no pixel lies above its mean.
    mean = np.maximum(maps.mean((1, 2), keepdims=True), maps.min((1, 2), keepdims=True))
    labels, _ = ndimage.label(maps > mean, _in_plane(connectivity))
    return _largest(labels, np.bincount(labels.ravel()))


def _best_iou(found: Array, wanted: Array) -> Array:
    """For each of N boxes the best IoU with any of M boxes, (N,); NaN if M is 0."""
    low = np.maximum(found[:, None, :2], wanted[:, :2])
    high = np.minimum(found[:, None, 2:], wanted[:, 2:])
    common = (high - low).clip(min=0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (found, wanted)]
    overlaps = common / (areas[0][:, None] + areas[1] - common)
    return np.asarray(overlaps.max(1)) if len(wanted) else np.full(len(found), np.nan)


def _in_plane(connectivity: Connectivity) -> Array:
    """Neighborhood (3,3,3) that joins pixels of one plane but never two planes: one call labels all planes."""
    structure = np.zeros((3, 3, 3), dtype=bool)
    structure[1] = ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)
    return structure


def _largest(labels: Array, size: Array) -> Array:
    """Box (T,4) of the largest region of each plane; of equal regions the first in reading order.

    Args:
        labels: (T,H,W) int, 0 for none; regions are numbered in reading order, plane after plane.
        size: of each region, by label.
    """
    ends = np.maximum.accumulate(labels.max((1, 2)))
    number = np.arange(1, len(size))
    plane = np.searchsorted(ends, number)
    order = np.lexsort((number, -size[1:], plane))
    filled, first = np.unique(plane[order], return_index=True)
    boxes = np.tile(np.array(_NO_BOX, dtype=np.float64), (len(labels), 1))
    inside = labels[filled] == number[order[first]][:, None, None]
    rows, columns = inside.any(2), inside.any(1)
    upper = (inside.shape[2] - columns[:, ::-1].argmax(1), inside.shape[1] - rows[:, ::-1].argmax(1))
    boxes[filled] = np.stack([columns.argmax(1), rows.argmax(1), *upper], 1)
    return boxes


def _boxes(labels: Array) -> tuple[Array, Array]:
    """Plane (N,) and box (N,4) of every region."""
    slices = ndimage.find_objects(labels)
    box = np.array([(x.start, y.start, x.stop, y.stop) for _, y, x in slices], dtype=np.float64).reshape(-1, 4)
    return np.array([plane.start for plane, _, _ in slices], dtype=np.intp), box


def _best_of_components(scores: Array, thresholds: int, wanted: Array, contours: Contours) -> Array:
    """Best IoU (E,) of the connected components' boxes at each threshold of a map (H,W); 0 if there are none."""
    scores = np.fmax(scores, 0)  # a NaN is above no threshold
    found = Components(np.searchsorted(np.arange(thresholds) / thresholds, scores), scores, thresholds)
    if contours == "largest":
        return _best_iou(found.largest(found.count(found.basin, found.depth)), wanted)
    best, (row, threshold) = np.zeros(thresholds), found.alive.nonzero()
    np.maximum.at(best, threshold, _best_iou(found.boxes(row, threshold), wanted))
    return best


def _best_of_contours(scores: Array, thresholds: int, wanted: Array, contours: Contours) -> Array:
    """Best IoU (E,) of the boxes that wsolevaluation makes of OpenCV's contours of a map (H,W)."""
    steps = (scores * 255).astype(np.uint8)
    cuts = (np.arange(thresholds) / thresholds * steps.max()).astype(np.uint8)
    depth, height = np.searchsorted(cuts, np.arange(256))[steps], steps / 255
    framed = [np.pad(top - of, 1, constant_values=top) for of, top in ((depth, thresholds), (height, 1))]
    ground = Components(framed[0], framed[1], thresholds, 4)  # what lies at or below the thresholds, the lowest last
    if contours == "largest":
        box = _outermost(thresholds - ground.reach()[1:-1, 1:-1], height, thresholds)
        return _best_iou(_grown(box, scores.shape), wanted)
    first_pixel = _grown(np.array([_NO_BOX]), scores.shape)
    best = np.where(np.arange(thresholds) < depth.max(), 0, _best_iou(first_pixel, wanted))
    found = Components(depth, height, thresholds)
    (row, cut), (hole, below) = found.alive.nonzero(), (ground.alive & (ground.first > 0)).nonzero()
    # A hole's contour runs along the pixels around it. Its box counts the frame; the components' boxes do not.
    box = np.concatenate([found.boxes(row, cut), ground.boxes(hole, below) + np.array([-2, -2, 0, 0])])
    cut = np.concatenate([cut, thresholds - 1 - below])
    np.maximum.at(best, cut, _best_iou(_grown(box, scores.shape), wanted))
    return best


def _outermost(depth: Array, height: Array, thresholds: int) -> Array:
    """Box (E,4) of the contour with the largest polygon, from the depth of a map whose holes are filled.

    Nothing is traced: an outermost contour encloses a component with its holes filled. The polygon through its border
    pixels has area 1 in each square of four pixel centers if all four are filled, and 1/2 if three are. Among equal
    contours OpenCV lists the last in reading order first.
    """
    found = Components(depth, height, thresholds)
    (a, b), (c, d) = ([depth[y : y - 1 or None, x : x - 1 or None] for x in (0, 1)] for y in (0, 1))
    upper, lower, highs = np.minimum(a, b), np.minimum(c, d), np.minimum(np.maximum(a, b), np.maximum(c, d))
    four, three = np.minimum(upper, lower), np.minimum(np.maximum(upper, lower), highs)
    of = np.where(a >= b, found.basin[:-1, :-1], found.basin[:-1, 1:])  # one of a and b is filled if three are
    return found.largest(found.count(of, three) + found.count(of, four), last=True)


def _grown(boxes: Array, size: tuple[int, ...]) -> Array:
    """Boxes that are one pixel larger to the right and below, up to the image's border."""
    return np.concatenate([boxes[:, :2], np.minimum(boxes[:, 2:] + 1, size[::-1])], 1)
