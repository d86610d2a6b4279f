"""Boxes of a map at all thresholds, compared with labeling each thresholded map by itself."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from optcam_pl.metrics.functional import box_hits

EIGHT = np.ones((3, 3), dtype=bool)
IOUS = np.arange(1, 61) / 60


def best_iou(found, wanted):
    best = 0.0
    for x0, y0, x1, y1 in found:
        for a0, b0, a1, b1 in wanted:
            common = max(min(x1, a1) - max(x0, a0), 0.0) * max(min(y1, b1) - max(y0, b0), 0.0)
            best = max(best, common / ((x1 - x0) * (y1 - y0) + (a1 - a0) * (b1 - b0) - common))
    return best


def boxes_of(labels):
    return [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)]


def by_pixels(mask, contours):
    labels, number = ndimage.label(mask, EIGHT)
    boxes = boxes_of(labels)
    if contours == "all" or not number:
        return boxes
    return [boxes[int(np.bincount(labels.ravel())[1:].argmax())]]


def polygon(part):
    """The area of the polygon through the border pixels of a region without holes, in squares of pixel centers."""
    corners = sum(part[y : y - 1 or None, x : x - 1 or None].astype(int) for y in (0, 1) for x in (0, 1))
    return (corners == 4).sum() + (corners == 3).sum() / 2


def by_contours(mask, contours):
    height, width = mask.shape

    def grown(box):
        return (*box[:2], min(box[2] + 1, width), min(box[3] + 1, height))

    if not mask.any():
        return [grown((0, 0, 0, 0))]
    if contours == "largest":
        labels, number = ndimage.label(ndimage.binary_fill_holes(np.pad(mask, 1))[1:-1, 1:-1], EIGHT)
        areas = [polygon(np.pad(labels == one, 1)) for one in range(1, number + 1)]
        return [grown(boxes_of(labels)[number - 1 - int(np.argmax(areas[::-1]))])]
    ground, _ = ndimage.label(~np.pad(mask, 1))
    holes = [box for one, box in enumerate(boxes_of(ground), 1) if one != ground[0, 0]]
    holes = [(x0 - 2, y0 - 2, x1, y1) for x0, y0, x1, y1 in holes]
    return [grown(box) for box in boxes_of(ndimage.label(mask, EIGHT)[0]) + holes]


def slow_hits(scores, wanted, thresholds, convention, contours):
    """(len(IOUS),E) one threshold after the other."""
    best = []
    levels = (scores * 255).astype(np.uint8)
    for k in range(thresholds):
        if convention == "pixels":
            found = by_pixels(scores > k / thresholds, contours)
        else:
            found = by_contours(levels > np.uint8(k / thresholds * levels.max()), contours)
        best.append(best_iou(found, wanted))
    return np.array(best) >= IOUS[:, None]


def smooth(rng, size):
    cells = torch.from_numpy(rng.random((1, 1, 3, 3)))
    return F.interpolate(cells, size=size, mode="bilinear")[0, 0].numpy()


def rectangles(rng, size):
    found = np.zeros(size)
    for _ in range(8):
        (y0, y1), (x0, x1) = (np.sort(rng.integers(0, side + 1, 2)) for side in size)
        found[y0:y1, x0:x1] = rng.integers(0, 6) / 5
    return found


KINDS = {
    "smooth": smooth,
    "smooth with zeros": lambda rng, size: np.maximum(2 * smooth(rng, size) - 1, 0),
    "noisy": lambda rng, size: rng.random(size),
    "noisy, float32": lambda rng, size: rng.random(size, dtype=np.float32).astype(np.float64),
    "blurred": lambda rng, size: ndimage.gaussian_filter(rng.random(size), 1.0),
    "constant": lambda rng, size: np.full(size, rng.integers(0, 4) / 3),
    "quantized": lambda rng, size: rng.integers(0, 4, size) / 3,
    "of two values": lambda rng, size: rng.integers(0, 2, size) * 1.0,
    "rectangles": rectangles,
}
SIZES = st.tuples(st.integers(1, 24), st.integers(1, 24)) | st.sampled_from([(1, 1), (1, 17), (17, 1), (2, 2)])


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(KINDS)), SIZES, st.sampled_from([1, 4, 7, 30]), st.integers(0, 2**31))
def test_hits_are_those_of_labeling_each_thresholded_map(kind, size, thresholds, seed):
    rng = np.random.default_rng(seed)
    scores = KINDS[kind](rng, size)
    corners = np.sort(rng.random((int(rng.integers(1, 4)), 2, 2)), axis=1) * size[::-1]
    wanted = corners.reshape(-1, 4) + np.array([0, 0, 0.1, 0.1])
    for convention in ("pixels", "wsol"):
        for contours in ("largest", "all"):
            how = {"ious": IOUS, "thresholds": thresholds, "convention": convention, "contours": contours}
            hits = box_hits(torch.from_numpy(scores)[None, None], [torch.from_numpy(wanted)], **how)
            expected = slow_hits(scores, wanted, thresholds, convention, contours)
            np.testing.assert_array_equal(hits.view(len(IOUS), thresholds).numpy() > 0, expected)
