from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from metric_tester import MetricTester, two_processes

from optcam_pl.metrics import AOPC, Deletion, Insertion, Road, RoadLeast, RoadMost
from optcam_pl.metrics.functional import (
    aopc_score,
    curve_area,
    imputed_images,
    patch_rank,
    perturbed_images,
    pixel_rank,
    replaced,
    road_counts,
    step_counts,
)
from optcam_pl.metrics.functional.perturbation import _conjugate_gradients, _solve

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
ZERO = torch.zeros(())


def arrays(path):
    with np.load(path) as stored:
        numbers = {name: stored[name] for name in stored.files if stored[name].dtype.kind != "U"}
    return {name: torch.from_numpy(a.astype(np.int64) if a.dtype == np.uint16 else a) for name, a in numbers.items()}


def stored_inputs(golden, images):
    """Four images ("made" or "photographs"), their targets, and the stored network's softmax."""
    timm = pytest.importorskip("timm")
    network = timm.models.resnet.ResNet(
        timm.models.resnet.BasicBlock, (1, 1, 1, 1), num_classes=10, channels=(16, 24, 32, 48), output_stride=8
    )
    weights = arrays(golden("models.npz"))
    network.load_state_dict({name[4:]: value for name, value in weights.items() if name.startswith("cnn.")})
    network.eval().requires_grad_(False)
    inputs = arrays(golden("made_inputs.npz" if images == "made" else "inputs.npz"))
    x = (inputs["pixels_u8"].float() / 255 - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    torch.testing.assert_close(network(x), inputs["cnn_logits"], rtol=0, atol=1e-5)

    def score(images, classes):
        """(4,S,3,H,W) -> (4,S) probabilities of the classes."""
        rows = network(images.flatten(0, 1)).softmax(1).unflatten(0, images.shape[:2])
        return rows[torch.arange(4), :, classes]

    return x, inputs["cnn_target" if images == "made" else "target"], score


@pytest.fixture(scope="module")
def stored(golden):
    """The stored network's softmax, its four photographs, and the maps."""
    x, target, score = stored_inputs(golden, "photographs")
    maps = arrays(golden("maps.npz", photographs=True))
    return x, {name: value[:, None] for name, value in maps.items() if value.shape == (4, 64, 64)}, target, score


def stored_road(golden, images):
    """What grad-cam computed: ROAD of four images each, and two imputed images."""
    if images == "made":
        return arrays(golden("made_road.npz"))
    values = json.loads(golden("adcc.json").read_text())["E"]["values"]
    road = {f"{name}.{key}": torch.tensor(row) for name in values for key, row in values[name].items() if "ROAD" in key}
    adcc = arrays(golden("adcc.npz", photographs=True))
    return road | {key.removeprefix("E."): value for key, value in adcc.items() if key.startswith("E.")}


class TestStoredCurves:
    @pytest.mark.parametrize("name", ["cam", "noise", "gxi"])
    def test_insertion_and_deletion_equal_rise_at_every_step(self, name, stored, golden):
        x, maps, _, score = stored
        rise = arrays(golden("rise_causal.npz"))
        rank, steps, classes = pixel_rank(maps[name]), step_counts(64 * 64, 64), rise["class_used"]
        assert torch.equal(rank.flatten(1).argsort(1), rise[f"{name}.order"])
        deletion = score(perturbed_images(x, ZERO, rank, steps), classes)
        insertion = score(perturbed_images(rise["blurred_x"], x, rank, steps), classes)
        for kind, curve, metric in (("del", deletion, Deletion), ("ins", insertion, Insertion)):
            torch.testing.assert_close(curve, rise[f"{name}.{kind}.curve"], rtol=0, atol=1e-5)
            area = metric(steps=64, area="trapezoid").score(curve)
            torch.testing.assert_close(area.double(), 100 * rise[f"{name}.{kind}.auc_f64"], rtol=0, atol=1e-3)

    def test_ties_follow_the_stored_order_where_that_is_used(self, stored, golden):
        x, _, _, score = stored
        rise = arrays(golden("rise_causal.npz"))
        rank = rise["cam_ties.order"].argsort(1).view(4, 1, 64, 64)
        curve = score(perturbed_images(x, ZERO, rank, step_counts(64 * 64, 64)), rise["class_used"])
        torch.testing.assert_close(curve, rise["cam_ties.del.curve"], rtol=0, atol=1e-5)

    @pytest.mark.parametrize("name", ["cam", "noise", "gxi"])
    def test_pixels_equal_quantus_after_every_complete_pixel(self, name, stored, golden):
        x, maps, target, score = stored
        curve = arrays(golden("quantus.npz"))[f"PixelFlipping.{name}.black.curve"][:, 2::3]  # it flips channels
        black = x.amin((1, 2, 3), keepdim=True)
        got = score(perturbed_images(x, black, pixel_rank(maps[name]), step_counts(64 * 64, 64)[1:]), target)
        torch.testing.assert_close(got, curve, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("name", ["cam", "noise", "gxi"])
    @pytest.mark.parametrize("baseline", ["black", "0.0"])
    @pytest.mark.parametrize("order", ["morf", "lerf"])
    def test_regions_equal_quantus_at_every_region(self, name, baseline, order, stored, golden):
        x, maps, target, score = stored
        fall = arrays(golden("quantus.npz"))[f"RegionPerturbation.{name}.{baseline}.{order}"]
        reference = x.amin((1, 2, 3), keepdim=True) if baseline == "black" else ZERO
        rank = patch_rank(maps[name] if order == "morf" else -maps[name], patch=8)
        curve = score(perturbed_images(x, reference, rank, torch.arange(65)), target)
        torch.testing.assert_close(curve[:, :1] - curve[:, 1:], fall, rtol=0, atol=1e-5)
        torch.testing.assert_close(AOPC(regions=64).score(curve), 100 * fall.mean(1), rtol=0, atol=1e-3)

    @pytest.mark.parametrize("images", ["made", "photographs"])
    def test_imputation_and_road_equal_grad_cam(self, images, golden):
        x, target, score = stored_inputs(golden, images)
        maps, theirs = arrays(golden("maps.npz")), stored_road(golden, images)
        percentiles = (20, 40, 60, 80)
        counts = road_counts(64 * 64, percentiles)
        for name in ("cam", "noise"):
            original = score(x[:, None], target)
            curves = {}
            for order, saliency in (("MoRF", maps[name][:, None]), ("LeRF", -maps[name][:, None])):
                imputed = imputed_images(x, pixel_rank(saliency), counts, noise=0)
                if name == "cam":
                    image = theirs[f"cam.imputed_{order.lower()}40_image0"]
                    torch.testing.assert_close(imputed[0, 1], image, rtol=0, atol=2e-4)
                curves[order] = score(imputed, target)
                change = torch.stack([theirs[f"{name}.ROAD_{order}_{p}"] for p in percentiles], dim=1)
                torch.testing.assert_close(curves[order] - original, change, rtol=0, atol=2e-4)
            combined = Road(percentiles).score(curves["MoRF"], curves["LeRF"])
            want = theirs[f"{name}.ROADCombined_20_40_60_80"]
            torch.testing.assert_close(combined, 100 * want, rtol=0, atol=0.02)

    def test_areas_equal_torchcam_where_steps_are_equal_and_smm(self, golden):
        rows = json.loads(golden("adcc.json").read_text())["C"]["per_image"]
        curves = arrays(golden("adcc.npz"))
        for name in ("cam.black", "cam.blur", "noise.black", "noise.blur"):
            for kind, key in (("del", "dauc"), ("ins", "iauc")):
                got = curve_area(curves[f"C.{name}.{kind}_curve"], "trapezoid")
                torch.testing.assert_close(got, torch.tensor(rows[name][key]), rtol=0, atol=1e-6)


def summed(images):
    """A network whose answer is the sum of its pixels: (B,S,3,H,W) -> (B,S)."""
    return images.sum((2, 3, 4))


def test_a_classifier_that_sums_pixels_gives_known_areas():
    saliency = torch.tensor([[[[4.0, 3.0], [2.0, 1.0]]]])
    image = saliency.expand(1, 3, 2, 2) / 30  # sums to 1; the pixels are worth 0.4, 0.3, 0.2 and 0.1
    rank, steps = pixel_rank(saliency), step_counts(4, 4)
    deletion = summed(perturbed_images(image, ZERO, rank, steps))
    insertion = summed(perturbed_images(torch.zeros_like(image), image, rank, steps))
    torch.testing.assert_close(deletion, torch.tensor([[1.0, 0.6, 0.3, 0.1, 0.0]]))
    torch.testing.assert_close(insertion, torch.tensor([[0.0, 0.4, 0.7, 0.9, 1.0]]))
    assert Deletion(steps=4).score(deletion).item() == pytest.approx(40)
    assert Deletion(steps=4, area="trapezoid").score(deletion).item() == pytest.approx(37.5)
    assert Insertion(steps=4).score(insertion).item() == pytest.approx(60)
    assert AOPC(regions=4).score(deletion).item() == pytest.approx(75)
    assert AOPC(regions=4, origin=True).score(deletion).item() == pytest.approx(60)
    assert Deletion(steps=4, output="logit").score(deletion).item() == pytest.approx(0.4)


def test_equal_pixels_come_in_reading_order():
    assert torch.equal(
        pixel_rank(torch.full((2, 1, 3, 4), 0.5)), torch.arange(12).view(1, 1, 3, 4).int().repeat(2, 1, 1, 1)
    )
    plateau = torch.tensor([[[[0.5, 1.0, 0.5], [1.0, 0.5, 0.0]]]])
    assert pixel_rank(plateau).flatten().tolist() == [2, 0, 3, 1, 4, 5]
    assert patch_rank(torch.ones(1, 1, 4, 4), 2)[0, 0, ::2, ::2].flatten().tolist() == [0, 1, 2, 3]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**31))
def test_ranks_are_permutations_that_sort_the_map_and_patches_cover_it(height, width, patch, seed):
    maps = torch.randint(4, (2, 1, height, width), generator=torch.Generator().manual_seed(seed)) / 4
    rank = pixel_rank(maps).flatten(1).long()
    assert torch.equal(rank.sort(1).values, torch.arange(height * width).expand(2, -1))
    in_order = torch.empty_like(maps.flatten(1)).scatter_(1, rank, maps.flatten(1))
    assert (in_order.diff(dim=1) <= 0).all()
    regions = patch_rank(maps, patch)
    assert regions.shape == maps.shape
    assert regions.unique().tolist() == list(range(-(-height // patch) * -(-width // patch)))
    alone = torch.cat([patch_rank(maps[:1], patch), patch_rank(maps[1:], patch)])
    assert torch.equal(regions, alone)


def test_images_of_a_chunk_are_those_of_all_steps():
    image, reference = torch.rand(2, 3, 5, 6), torch.rand(2, 3, 5, 6)
    rank, steps = pixel_rank(torch.rand(2, 1, 5, 6)), step_counts(30, 6)
    every = perturbed_images(image, reference, rank, steps)
    assert torch.equal(every, torch.cat([perturbed_images(image, reference, rank, part) for part in steps.split(2)], 1))
    assert torch.equal(every[:, 0], image)
    assert torch.equal(every[:, -1], reference)
    assert ((every != image[:, None]).any(2).sum((2, 3)) == steps).all()


def solved_exactly(image, unknown):
    """The imputation's linear system for an image (3,H,W) by scipy's direct solver."""
    H, W = unknown.shape
    index = np.arange(H * W).reshape(H, W)
    weights = scipy.sparse.lil_matrix((H * W, H * W))
    for y in range(H):
        for x in range(W):
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    if (dy or dx) and 0 <= y + dy < H and 0 <= x + dx < W:
                        weights[index[y, x], index[y + dy, x + dx]] = 1 / 12 if dy and dx else 1 / 6
    weights = weights.tocsr()
    laplacian = (scipy.sparse.diags(np.asarray(weights.sum(1)).ravel()) - weights).tocsr()
    flat, u = image.reshape(3, -1).copy(), unknown.ravel()
    flat[:, u] = scipy.sparse.linalg.spsolve(laplacian[u][:, u].tocsc(), -(laplacian[u][:, ~u] @ flat[:, ~u].T)).T
    return flat.reshape(image.shape)


def test_imputation_solves_its_linear_system_and_no_image_depends_on_another():
    image = torch.rand(2, 3, 17, 12, dtype=torch.float64)
    rank, steps = pixel_rank(torch.rand(2, 1, 17, 12)), [40, 120, 203]
    got = imputed_images(image, rank, steps, noise=0)
    for b in range(2):
        for s, count in enumerate(steps):
            want = solved_exactly(image[b].numpy(), (rank[b, 0] < count).numpy())
            np.testing.assert_allclose(got[b, s].numpy(), want, rtol=0, atol=1e-5)
    alone = torch.cat([imputed_images(image[b : b + 1], rank[b : b + 1], steps, noise=0) for b in range(2)])
    torch.testing.assert_close(got, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_systems_solved_one_after_the_other_are_those_solved_at_once(dtype):
    image, rank = torch.rand(2, 3, 17, 12, dtype=dtype), pixel_rank(torch.rand(2, 1, 17, 12))
    unknown = replaced(rank, [0, 1, 100, 203, 204])
    known = torch.where(unknown, 0, image.unsqueeze(1))
    assert torch.equal(_solve(unknown.to(dtype), known), _conjugate_gradients(unknown.to(dtype), known))
    assert imputed_images(image, rank, []).shape == (2, 0, 3, 17, 12)


def test_imputation_noise_is_seeded_and_only_where_pixels_were_replaced():
    image, rank = torch.rand(2, 3, 8, 8), pixel_rank(torch.rand(2, 1, 8, 8))
    clean, noisy = imputed_images(image, rank, [20], noise=0), imputed_images(image, rank, [20], noise=0.1, seed=1)
    assert torch.equal(noisy, imputed_images(image, rank, [20], noise=0.1, seed=1))
    assert not torch.equal(noisy, imputed_images(image, rank, [20], noise=0.1, seed=2))
    assert torch.equal((noisy != clean).any(2), rank < 20)
    assert imputed_images(image, rank, [64], noise=0).abs().max() == 0


def curves(points, images=7):
    return torch.rand(images, points, generator=torch.Generator().manual_seed(points))


def batches(**named):
    """The evidence in uneven batches."""
    parts = {name: curve.split([2, 4, 1]) for name, curve in named.items()}
    return [{name: part[i] for name, part in parts.items()} for i in range(3)]


@pytest.mark.ddp
class TestClasses(MetricTester):
    @pytest.mark.parametrize("metric", [Insertion, Deletion])
    def test_areas_keep_what_every_metric_promises(self, metric):
        evidence = batches(**{f"{metric.key}_curve": curves(6)})
        for area, of_row in (("mean", np.mean), ("trapezoid", lambda row: 0.2 * (row[1:] + row[:-1]).sum() / 2)):
            expected = [[100 * of_row(row) for row in next(iter(batch.values())).numpy()] for batch in evidence]
            self.check(lambda area=area: metric(steps=5, area=area), evidence, expected)

    @pytest.mark.parametrize("origin", [True, False])
    def test_aopc_keeps_what_every_metric_promises(self, origin):
        evidence = batches(aopc_curve=curves(5))
        expected = [
            [100 * float(sum(row[0] - score for score in row)) / (5 if origin else 4) for row in batch["aopc_curve"]]
            for batch in evidence
        ]
        self.check(lambda: AOPC(regions=4, origin=origin), evidence, expected)

    def test_road_keeps_what_every_metric_promises(self):
        most, least = curves(4), curves(4).flip(0)
        for metric, named, scores in (
            (Road, {"road_most_curve": most, "road_least_curve": least}, (least - most) / 2),
            (RoadMost, {"road_most_curve": most}, most),
            (RoadLeast, {"road_least_curve": least}, least),
        ):
            expected = [part.tolist() for part in (100 * scores).mean(1).split([2, 4, 1])]
            self.check(metric, batches(**named), expected)


def test_a_curve_that_is_not_finite_is_undefined_and_counted():
    metric = Deletion(steps=2)
    metric.update(torch.tensor([[1.0, 0.5, 0.0], [1.0, math.nan, 0.0]]))
    assert (metric.compute().item(), metric.count.item(), metric.undefined.item()) == (50.0, 1, 1)
    assert metric.curve()[0].tolist() == [100.0, 50.0, 0.0]


def test_mean_curve_and_its_band_are_those_of_all_images():
    metric, evidence = Insertion(steps=5), curves(6)
    for part in evidence.split([2, 4, 1]):
        metric.update(part)
    mean, half = metric.curve()
    torch.testing.assert_close(mean, 100 * evidence.double().mean(0))
    torch.testing.assert_close(half, 1.959964 * 100 * evidence.double().std(0) / math.sqrt(7))
    figure, axis = metric.plot_curve()
    np.testing.assert_allclose(axis.lines[0].get_xdata(), [0, 20, 40, 60, 80, 100], rtol=1e-6)
    np.testing.assert_allclose(axis.lines[0].get_ydata(), mean.numpy())
    assert axis.get_ylabel() == "probability, %"
    _, again = metric.plot_curve(axis, label="other")
    assert [line.get_label() for line in again.lines] == ["Ins", "other"]
    assert figure is axis.figure


@pytest.mark.ddp
def test_mean_curve_of_two_processes_is_that_of_one_also_if_one_has_no_image():
    alone = Insertion(steps=5)
    alone.update(curves(6))
    want = [part.tolist() for part in alone.curve()]
    parts = [{"insertion_curve": part} for part in curves(6).split([2, 5])]
    for shares in ([parts[:1], parts[1:]], [[], parts]):
        for got in two_processes().run([(Insertion(steps=5), share) for share in shares], ask="curve"):
            np.testing.assert_allclose(got, want, rtol=1e-9)


def test_curve_of_falls_and_positions_of_the_other_metrics():
    aopc = AOPC(regions=2, output="logit")
    aopc.update(torch.tensor([[3.0, 1.0, 2.0], [3.0, 3.0, 2.0]]))
    assert aopc.curve()[0].tolist() == [0.0, 1.0, 1.0]
    assert aopc.positions().tolist() == [0, 1, 2]
    assert (aopc.unit, AOPC(regions=2).unit, AOPC.unit) == ("", "%", "%")
    assert Road((20, 80)).positions().tolist() == [80, 20]


def test_settings_name_the_conventions_of_each_metric():
    assert Insertion().settings() == {
        "insertion_steps": 224, "insertion_patch": 1, "insertion_area": "mean", "insertion_output": "probability",
        "insertion_target": "predicted",
    }  # fmt: skip
    assert AOPC(origin=True).settings()["aopc_origin"] is True
    assert Road().settings() == {"road_percentiles": "20 40 60 80", "road_output": "probability"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Insertion(steps=0), "`steps` to be a positive integer, but got 0"),
        (lambda: Insertion(area="sum"), "`area` to be one of mean, trapezoid, but got 'sum'"),
        (lambda: Deletion(output="loss"), "`output` to be one of probability, logit, but got 'loss'"),
        (lambda: AOPC(regions=-1), "`regions` to be a positive integer, but got -1"),
        (lambda: Road(percentiles=()), r"`percentiles` between 0 and 100, but got \[\]"),
        (lambda: RoadMost(percentiles=(20, 100)), r"`percentiles` between 0 and 100, but got \[20, 100\]"),
        (lambda: Deletion(steps=4).update(torch.zeros(2, 4)), r"\(B,5\) for deletion, but got \(2, 4\)"),
        (lambda: pixel_rank(torch.zeros(2, 3, 4, 4)), r"`saliency` to have shape \(B,1,H,W\), but got \(2, 3, 4, 4\)"),
        (lambda: patch_rank(torch.zeros(1, 1, 4, 4), 0), "`patch` to be a positive integer, but got 0"),
        (lambda: step_counts(10, 11), r"`steps` to be in 1 .. 10.*but got 11"),
        (lambda: curve_area(torch.zeros(1, 2), "sum"), "`area` to be one of"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_aopc_of_a_constant_curve_is_zero():
    assert aopc_score(torch.full((1, 4), 0.3)).item() == 0
