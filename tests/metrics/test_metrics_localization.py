from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_tester import MetricTester

from optcam_pl.metrics import (
    BoxAccuracy,
    EnergyPointingGame,
    LocalizationError,
    MaxBoxAccuracy,
    OfficialMetric,
    PixelAveragePrecision,
    PixelF1,
    SaliencyMetric,
    StandardPointingGame,
)
from optcam_pl.metrics.functional import (
    box_hits,
    energy_pointing_game,
    localization_error,
    official_metric,
    pixel_f1,
    pixel_histograms,
    saliency_metric,
    standard_pointing_game,
)
from optcam_pl.metrics.functional.localization import _in_plane, _largest, ndimage

NONE = torch.zeros(0, 4)
THRESHOLDS = np.arange(100) / 100


def boxes_of(*rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


@pytest.fixture(scope="module")
def stored(golden):
    """The stored maps, boxes with excluded right and lower ends, arrays, and results."""
    with np.load(golden("localization.npz")) as file:
        arrays = {name: file[name] for name in file.files}
    rows = arrays["gt_resized"]
    boxes = [torch.from_numpy(rows[rows[:, 0] == i, 1:] + np.array([0, 0, 1, 1])).double() for i in range(12)]
    results = json.loads(golden("localization.json").read_text())
    return torch.from_numpy(arrays["maps"])[:, None], boxes, arrays, results


class TestStoredResults:
    @pytest.mark.parametrize(("contours", "key"), [("largest", "single"), ("all", "multi")])
    def test_hits_equal_wsolevaluation_at_every_threshold(self, contours, key, stored):
        maps, boxes, arrays, results = stored
        hits = box_hits(maps, boxes, convention="wsol", contours=contours).view(12, 3, 100).sum(0)
        for row, iou in zip(hits, (30, 50, 70), strict=True):
            np.testing.assert_array_equal(row.numpy(), arrays[f"num_correct_{key}_iou{iou}"])
        assert (100 * hits.amax(1) / 12).tolist() == pytest.approx(results["results"][key]["max_box_acc_30_50_70"])

    def test_max_box_accuracies_equal_wsolevaluation_exactly(self, stored):
        maps, boxes, _, results = stored
        one, two = MaxBoxAccuracy(convention="wsol"), BoxAccuracy(convention="wsol", contours="all")
        for metric in (one, two):
            for i in range(0, 12, 5):
                metric.update(maps[i : i + 5], boxes[i : i + 5])
        assert one.compute().item() == pytest.approx(results["MaxBoxAcc_value"], abs=1e-12)
        assert two.compute().item() == pytest.approx(results["MaxBoxAccV2_value"], abs=1e-12)

    @pytest.mark.parametrize("connectivity", [4, 8])
    def test_largest_components_by_pixel_count_have_the_stored_boxes(self, connectivity, stored):
        maps, _, arrays, _ = stored
        for one, want in zip(maps.double().numpy(), arrays[f"lcc{connectivity}_box_inclusive"], strict=True):
            labels, _ = ndimage.label(one > THRESHOLDS[:, None, None], _in_plane(connectivity))
            box = _largest(labels, np.bincount(labels.ravel()))
            found = (labels > 0).any((1, 2))
            np.testing.assert_array_equal((box - [0, 0, 1, 1])[found], want[found])

    def test_pxap_equals_wsolevaluation(self, stored):
        maps, _, arrays, results = stored
        mask = np.where(arrays["px_mask"] == 1, 1, np.where(arrays["px_ignore"] == 1, 255, 0))
        histograms = pixel_histograms(maps, torch.from_numpy(mask)).sum(0)
        for half, key in zip(histograms.chunk(2), ("px_true_hist", "px_false_hist"), strict=True):
            np.testing.assert_array_equal(half.numpy(), arrays[key][:-1])  # theirs has a bin beyond 1
        metric = PixelAveragePrecision()
        metric.update(maps, torch.from_numpy(mask))
        assert metric.compute().item() == pytest.approx(results["PxAP_percent"], abs=1e-5)

    def test_pointing_games_equal_the_stored_ones(self, stored):
        maps, boxes, _, results = stored
        rows = results["closed_form"]
        energy = [100 * row["energy_pointing_game"] for row in rows]
        assert energy_pointing_game(maps, boxes).tolist() == pytest.approx(energy, abs=1e-4)
        hits = standard_pointing_game(maps, boxes).tolist()
        alone = [i for i, row in enumerate(rows) if row["n_maximal_pixels"] == 1]
        assert [hits[i] for i in alone] == [100 * rows[i]["pointing_hit"] for i in alone]
        # of several maximal pixels theirs takes the first one alone
        assert all(hits[i] >= 100 * row["pointing_hit"] for i, row in enumerate(rows))

    def test_energy_equals_quantus_mass(self, golden):
        with np.load(golden("maps.npz")) as file:
            maps, boxes = torch.from_numpy(file["cam"])[:, None], file["seg_boxes_x0y0x1y1_exclusive"]
        got = energy_pointing_game(maps, [torch.from_numpy(box).double() for box in boxes])
        values = json.loads(golden("quantus.json").read_text())["values"]["cam.normalise=False.abs=True"]
        assert (got / 100).tolist() == pytest.approx(values["RelevanceMassAccuracy"], abs=1e-6)
        hits = standard_pointing_game(maps, [torch.from_numpy(box).double() for box in boxes])
        assert (hits / 100).tolist() == values["PointingGame"]


def blob(x0, y0, x1, y1, size=(8, 10), value=0.75):
    """A map that is `value` in a box and 0 elsewhere."""
    one = torch.zeros(1, *size)
    one[:, y0:y1, x0:x1] = value
    return one


# Images of 10 x 8: a blob on its box; one over half of its box, and a second box far away; two blobs of which the
# larger is in no box; a constant map; a map of zeros; no box
MAPS = torch.stack([
    blob(2, 1, 6, 5), blob(2, 1, 4, 5), blob(0, 0, 2, 2) + blob(5, 4, 9, 7), blob(0, 0, 10, 8), blob(0, 0, 0, 0),
    blob(2, 1, 6, 5),
])  # fmt: skip
BOXES = [
    boxes_of([2, 1, 6, 5]), boxes_of([2, 1, 6, 5], [8, 7, 10, 8]), boxes_of([0, 0, 2, 2]), boxes_of([0, 0, 5, 4]),
    boxes_of([0, 0, 5, 4]), NONE,
]  # fmt: skip
LE = [0.0, 50.0, 100.0, 100.0, 100.0, None]
F1 = [
    100 * 2 * inside / (total + area) if area else None
    for inside, total, area in (
        (12.0, 12.0, 16), (6.0, 6.0, 18), (3.0, 12.0, 4), (15.0, 60.0, 20), (0.0, 0.0, 20), (0.0, 0.0, 0)
    )
]  # fmt: skip
EP = [100.0, 100.0, 25.0, 25.0, 0.0, None]
SP = [100.0, 100.0, 100.0, 100.0, 100.0, None]


def parts(values):
    return [values[:1], values[1:5], values[5:]]


def evidence(**named):
    split = {name: parts(values) for name, values in named.items()}
    return [{name: part[i] for name, part in split.items()} for i in range(3)]


@pytest.mark.ddp
class TestClasses(MetricTester):
    @pytest.mark.parametrize(
        ("metric", "expected"),
        [(LocalizationError, LE), (PixelF1, F1), (EnergyPointingGame, EP), (StandardPointingGame, SP)],
    )
    def test_scores_of_boxes_keep_what_every_metric_promises(self, metric, expected):
        self.check(metric, evidence(saliency=MAPS, boxes=BOXES), parts(expected))

    def test_official_metric_keeps_what_every_metric_promises(self):
        predicted, target = torch.tensor([3, 1, 0, 2, 2, 5]), torch.tensor([3, 2, 0, 2, 2, 4])
        expected = [0.0, 100.0, 100.0, 100.0, 100.0, None]
        batches = evidence(saliency=MAPS, boxes=BOXES, predicted=predicted, target=target)
        self.check(OfficialMetric, batches, parts(expected))

    def test_saliency_metric_keeps_what_every_metric_promises(self):
        p = torch.tensor([0.5, 1.0, 0.25, 0.5, 1.0, 0.0])
        area = [16 / 80, 8 / 80, 12 / 80, 0.05, 0.05, 16 / 80]
        tiny = float(np.finfo(np.float32).tiny)
        expected = [math.log(a) - math.log(max(q, tiny)) for a, q in zip(area, p.tolist(), strict=True)]
        self.check(SaliencyMetric, evidence(saliency=MAPS, original=p), parts(expected))

    @pytest.mark.parametrize("metric", [BoxAccuracy, MaxBoxAccuracy])
    def test_box_accuracy_keeps_what_every_metric_promises(self, metric):
        best = [1.0, 0.5, 0.0, 0.25, 0.0]  # IoU of the map's box at the thresholds 0, 0.2, 0.4, 0.6 below 0.75
        hits = [[float(iou >= wanted and cut < 4) for wanted in metric.ious for cut in range(5)] for iou in best]
        shares = np.mean(hits, 0).reshape(len(metric.ious), 5)
        self.check(
            lambda: metric(thresholds=5), evidence(saliency=MAPS, boxes=BOXES), parts([*hits, None]),
            expected_value=100 * shares.max(1).mean(),
        )  # fmt: skip

    def test_pixel_average_precision_keeps_what_every_metric_promises(self):
        mask = torch.full((6, 8, 10), 255)
        mask[:5] = 0
        for i, (box, *_) in enumerate(BOXES[:5]):
            x0, y0, x1, y1 = box.int().tolist()
            mask[i, y0:y1, x0:x1] = 1
        rows = []
        for one, where in zip(MAPS[:5, 0], mask[:5], strict=True):
            counts = [np.histogram(one[where == kind].double(), [0, 0.5, 1, 2])[0] for kind in (1, 0)]
            rows.append(np.concatenate(counts).astype(float).tolist())
        true, false = np.sum(rows, 0).reshape(2, 3)[:, ::-1].cumsum(1)
        steps = np.diff(true / true[-1], prepend=0)
        precision = true / np.maximum(true + false, 1)
        self.check(
            lambda: PixelAveragePrecision(thresholds=2), evidence(saliency=MAPS, mask=mask), parts([*rows, None]),
            expected_value=100 * (precision * steps).sum(),
        )  # fmt: skip


def test_the_largest_component_counts_and_of_equal_ones_the_first():
    two = blob(0, 0, 3, 1) + blob(5, 2, 8, 3) + blob(1, 5, 3, 6)
    assert localization_error(two[None], [boxes_of([0, 0, 3, 1])]).item() == 0
    assert localization_error(two[None], [boxes_of([5, 2, 8, 3])]).item() == 100


def test_diagonal_neighbors_belong_together_unless_connectivity_is_4():
    diagonal = blob(0, 0, 2, 2) + blob(2, 2, 3, 3)
    boxes = [boxes_of([0, 0, 3, 3])]
    assert localization_error(diagonal[None], boxes, connectivity=8).item() == 0
    assert localization_error(diagonal[None], boxes, connectivity=4).item() == pytest.approx(100 * (1 - 4 / 9))


def test_a_pixel_belongs_to_a_box_if_its_center_does():
    row = torch.tensor([[[[0.1, 0.2, 0.3, 0.4]]]], dtype=torch.float64)
    assert energy_pointing_game(row, [boxes_of([0.5, 0, 2.5, 1])]).item() == pytest.approx(30)
    assert energy_pointing_game(row, [boxes_of([0.6, 0, 2.6, 1])]).item() == pytest.approx(50)
    assert energy_pointing_game(row, [boxes_of([0, 0, 2, 1], [1, 0, 3, 1])]).item() == pytest.approx(60)
    assert energy_pointing_game(row, [boxes_of([0.6, 0, 0.9, 1])]).isnan()
    assert pixel_f1(row, [boxes_of([0.6, 0, 0.9, 1])]).isnan()
    assert standard_pointing_game(row, [boxes_of([0.6, 0, 0.9, 1])]).isnan()


def test_pointing_tolerance_is_a_distance_between_pixels():
    maps, boxes = blob(6, 5, 7, 6)[None], [boxes_of([0, 0, 4, 3])]  # 3 right of and 3 below the nearest pixel
    for tolerance, hit in ((0, 0), (4.2, 0), (4.3, 100)):
        assert standard_pointing_game(maps, boxes, tolerance).item() == hit
    assert StandardPointingGame(tolerance=4.3).score(maps, boxes).item() == 100


def test_fake_cam_is_the_whole_image_and_a_constant_map_is_no_box():
    fake = torch.ones(1, 1, 20, 20)
    fake[..., 0, 0] = 0
    box = [boxes_of([0, 0, 10, 20])]
    assert localization_error(fake, box).item() == pytest.approx(50)
    assert saliency_metric(fake, torch.tensor([0.25])).item() == pytest.approx(math.log(4))
    assert localization_error(torch.full_like(fake, 0.3), box).item() == 100
    wrong = official_metric(fake, box, predicted=torch.tensor([1]), target=torch.tensor([0]))
    assert wrong.item() == 100


def test_hits_of_a_map_without_any_contour_are_misses():
    for convention in ("pixels", "wsol"):
        for contours in ("largest", "all"):
            how = {"convention": convention, "contours": contours, "thresholds": 5}
            assert box_hits(torch.zeros(1, 1, 9, 9), [boxes_of([3, 3, 9, 9])], **how).sum() == 0
            assert box_hits(torch.rand(1, 1, 9, 9), [NONE], **how).isnan().all()


def opencv_best(cv2, mask, wanted, largest):
    """Best IoU of the boxes of OpenCV's contours, by the conventions of wsolevaluation."""
    contours, _ = cv2.findContours(mask.astype(np.uint8) * 255, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    chosen = [max(contours, key=cv2.contourArea)] if contours and largest else contours
    corners = [(x, y, min(x + w, mask.shape[1] - 1), min(y + h, mask.shape[0] - 1))
               for x, y, w, h in map(cv2.boundingRect, chosen)]  # fmt: skip
    best = 0.0
    for x0, y0, x1, y1 in corners or [(0, 0, 0, 0)]:
        for a0, b0, a1, b1 in wanted:
            w, h = min(x1 + 1, a1) - max(x0, a0), min(y1 + 1, b1) - max(y0, b0)
            common = max(w, 0) * max(h, 0)
            best = max(best, common / ((x1 + 1 - x0) * (y1 + 1 - y0) + (a1 - a0) * (b1 - b0) - common))
    return best


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 30), st.integers(3, 30), st.sampled_from([0, 0.5, 1, 2]), st.integers(0, 2**31))
def test_contours_without_tracing_are_those_of_opencv(height, width, smooth, seed):
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(seed)
    one = ndimage.gaussian_filter(rng.random((height, width)), smooth)
    one = (one - one.min()) / np.ptp(one)
    wanted = [(0, 0, width // 2, height // 2 + 1), (width // 3, height // 3, width, height)]
    ious = np.arange(1, 21) / 20
    levels = (one * 255).astype(np.uint8)
    for contours in ("largest", "all"):
        hits = box_hits(
            torch.from_numpy(one)[None, None], [boxes_of(*wanted)], ious=ious, thresholds=8, convention="wsol",
            contours=contours,
        ).view(20, 8)  # fmt: skip
        for k in range(8):
            mask = levels > int(k / 8 * levels.max())
            best = opencv_best(cv2, mask, wanted, contours == "largest")
            assert hits[:, k].tolist() == (best >= ious).tolist()


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**31))
def test_scores_are_percentages_that_do_not_depend_on_the_batch(height, width, images, seed):
    rng = np.random.default_rng(seed)
    maps = torch.from_numpy(rng.integers(0, 4, (images, 1, height, width)) / 3)
    boxes = []
    for _ in range(images):
        corners = np.sort(rng.random((int(rng.integers(0, 3)), 2, 2)), axis=1) * [width, height]
        boxes.append(torch.from_numpy(corners.reshape(-1, 4) + np.array([0, 0, 0.1, 0.1])))
    for score in (localization_error, pixel_f1, energy_pointing_game, standard_pointing_game):
        got = score(maps, boxes)
        assert got.isnan()[[len(given) == 0 for given in boxes]].all()
        assert ((got >= 0) & (got <= 100 + 1e-9) | got.isnan()).all()
        alone = torch.cat([score(maps[i : i + 1], boxes[i : i + 1]) for i in range(images)])
        torch.testing.assert_close(got, alone, rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LocalizationError(connectivity=6), "`connectivity` to be one of 4, 8, but got 6"),
        (lambda: StandardPointingGame(tolerance=-1), "`tolerance` to be a number of pixels, 0 or more, but got -1"),
        (lambda: StandardPointingGame(tolerance=math.nan), "`tolerance`.*but got nan"),
        (lambda: BoxAccuracy(thresholds=0), "`thresholds` to be a positive integer, but got 0"),
        (lambda: BoxAccuracy(convention="cv2"), "`convention` to be one of pixels, wsol, but got 'cv2'"),
        (lambda: BoxAccuracy(contours="first"), "`contours` to be one of largest, all, but got 'first'"),
        (lambda: PixelAveragePrecision(thresholds=0), "`thresholds`"),
        (lambda: localization_error(MAPS, BOXES[:2]), "`boxes` of 6 images, as many as maps, but got 2"),
        (lambda: pixel_f1(MAPS[:, 0], BOXES), r"`saliency` to have shape \(B,1,H,W\), but got \(6, 8, 10\)"),
        (lambda: pixel_histograms(MAPS, torch.zeros(6, 8, 9)), r"`mask` to have shape \(6, 8, 10\).*\(6, 8, 9\)"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1 / 3])
def test_a_constant_map_of_any_value_and_precision_is_no_box(value):
    whole = [boxes_of((0, 0, 224, 224))]
    for dtype in (torch.float32, torch.float64):
        maps = torch.full((1, 1, 224, 224), value, dtype=dtype)
        assert localization_error(maps, whole).tolist() == [100.0]


def test_without_a_label_no_class_is_right_or_wrong():
    maps, boxes = torch.rand(2, 1, 8, 8), [boxes_of((0, 0, 4, 4))] * 2
    metric = OfficialMetric()
    metric.update(maps, boxes, predicted=torch.tensor([1, 1]), target=torch.tensor([-1, 1]))
    assert metric.undefined == 1
    assert metric.compute() == localization_error(maps, boxes)[1]


@pytest.mark.parametrize("kind", [BoxAccuracy, MaxBoxAccuracy, PixelAveragePrecision, SaliencyMetric])
def test_a_batch_without_images_adds_nothing(kind):
    given = {"saliency": torch.zeros(0, 1, 8, 8), "boxes": [], "mask": torch.zeros(0, 8, 8), "original": torch.zeros(0)}
    metric = kind()
    metric.update(**{name: given[name] for name in metric.evidence()})
    assert (metric.count, metric.undefined) == (0, 0)
