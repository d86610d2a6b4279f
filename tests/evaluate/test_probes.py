"""What is measured with the network, against loops over single images and fakes that one can compute by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optcam_pl import Classifier, FakeCAM
from optcam_pl.data import Batch
from optcam_pl.evaluate.probes import Probes, check_needs
from optcam_pl.explainers import Explainer, Explanation
from optcam_pl.maps import blur
from optcam_pl.metrics import METRICS, ImageMetric, Infidelity, Insertion, MaxSensitivity, Road, RoadMost
from optcam_pl.metrics.functional import imputed_images, infidelity, pixel_rank, road_counts

B, SIDE = 3, 16


class PixelSum(nn.Module):
    """Logits: the mean of all pixels times 3, and 0. Counts the images that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.register_buffer("ramp", torch.linspace(0.5, 1.5, 3 * SIDE * SIDE, dtype=torch.float64))
        self.layer = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        brightness = 3 * (self.layer(x).double().flatten(1) * self.ramp).mean(1)
        return torch.stack([brightness, torch.zeros_like(brightness)], dim=1)


class Given(Explainer):
    """An explainer whose map is the image's red channel."""

    def explain(self, classifier: Classifier, image: Tensor, target: Tensor) -> Explanation:
        return self.finish(image[:, :1], image, target)


def classifier(network: nn.Module | None = None) -> Classifier:
    return Classifier(
        network or PixelSum(), input_size=SIDE, num_classes=2, target_layer="layer", layout="channels_first"
    )


def batch(n: int = B, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(n, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    ids = [f"{i}.png" for i in range(n)]
    zeros = torch.zeros(n, dtype=torch.int64)
    return Batch(image=image, target=zeros, id=ids, index=torch.arange(n), error=[""] * n)


def probes(data: Batch, saliency: Tensor | None = None, network: nn.Module | None = None, **options: Any) -> Probes:
    model, explainer = classifier(network), options.pop("explainer", Given())
    if saliency is None:
        saliency = data["image"][:, :1]
    n = len(data["image"])
    target = options.pop("target", torch.zeros(n, dtype=torch.int64))
    explanation = Explanation(saliency, target, torch.zeros(n, dtype=torch.bool))
    with torch.no_grad():
        return Probes(model, explainer, data, model(data["image"]), explanation, **options)


def area(steps: int = 8, **options: Any) -> dict[str, Any]:
    return {"steps": steps, "patch": 1, "output": "logit", "target": "explained", **options}


def test_deletion_of_equal_pixels_falls_on_a_line() -> None:
    data = batch(1)
    data["image"] = torch.ones_like(data["image"])
    network = PixelSum()
    network.ramp.fill_(1)
    found = probes(data, torch.rand(1, 1, SIDE, SIDE), network).evidence({"deletion_curve": area()})
    torch.testing.assert_close(found["deletion_curve"], torch.linspace(3, 0, 9, dtype=torch.float64)[None])


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_curves_equal_a_loop_over_images_and_steps(chunk_size: int) -> None:
    data, model = batch(), classifier()
    needs = {"insertion_curve": area(), "deletion_curve": area(output="probability")}
    found = probes(data, chunk_size=chunk_size).evidence(needs)
    for i, image in enumerate(data["image"]):
        order = pixel_rank(image[None, :1]).flatten().argsort()
        blurred = blur(image[None], torch.zeros(3))[0]
        for step in range(9):
            out, into = image.clone().flatten(1), blurred.clone().flatten(1)
            chosen = order[: step * SIDE * SIDE // 8]
            into[:, chosen] = image.flatten(1)[:, chosen]
            out[:, chosen] = 0
            logits = model(torch.stack([into, out]).view(2, 3, SIDE, SIDE))
            torch.testing.assert_close(found["insertion_curve"][i, step], logits[0, 0])
            torch.testing.assert_close(found["deletion_curve"][i, step], logits[1].softmax(0)[0])


def test_the_baseline_of_the_run_is_what_deletion_leaves_behind() -> None:
    data = batch()
    found = probes(data, explainer=Given(baseline=(1.0, 1.0, 1.0))).evidence({"deletion_curve": area()})
    torch.testing.assert_close(found["deletion_curve"][:, -1], torch.full((B,), 3.0, dtype=torch.float64))


def test_the_curve_is_that_of_the_predicted_class_where_it_says_so() -> None:
    data, second = batch(), torch.ones(B, dtype=torch.int64)
    for target, want in (("predicted", 0), ("explained", 1)):
        found = probes(data, target=second).evidence({"deletion_curve": area(output="probability", target=target)})
        p = classifier()(data["image"]).softmax(1)[:, want]
        torch.testing.assert_close(found["deletion_curve"][:, 0], p)


def test_each_image_is_seen_as_often_as_needed_and_no_more() -> None:
    network = PixelSum()
    measured = probes(batch(), network=network)
    network.seen = 0
    needs = {}
    for key in ("insertion", "deletion", "average_drop"):
        needs |= METRICS[key]().needs()
    with torch.no_grad():
        measured.evidence(needs)
        measured.evidence(needs)
    assert network.seen == B * (224 + 224 + 1)  # the photograph itself was seen before


def test_patches_fall_whole_and_aopc_counts_them() -> None:
    data = batch(1)
    data["image"] = torch.ones_like(data["image"])
    saliency = torch.zeros(1, 1, SIDE, SIDE)
    saliency[..., 4:8, 8:12] = 1
    network = PixelSum()
    network.ramp.fill_(1)
    options = {"regions": 2, "patch": 4, "output": "logit"}
    found = probes(data, saliency, network).evidence({"aopc_curve": options})
    torch.testing.assert_close(found["aopc_curve"], torch.tensor([[3.0, 3 * 15 / 16, 3 * 14 / 16]]).double())
    with pytest.raises(ValueError, match="`regions` of AOPC to be at most 16"):
        probes(data).evidence({"aopc_curve": {**options, "regions": 17}})


def test_road_imputes_the_most_and_the_least_salient_pixels() -> None:
    data, model = batch(), classifier()
    options = {"percentiles": (20, 80), "output": "logit"}
    found = probes(data).evidence({"road_most_curve": options, "road_least_curve": options})
    for sign, name in ((1, "road_most_curve"), (-1, "road_least_curve")):
        for n, count in enumerate(road_counts(SIDE * SIDE, [20, 80]).tolist()):
            images = [
                imputed_images(image[None], pixel_rank(sign * image[None, :1]), [count])[0, 0].clamp(0, 1)
                for image in data["image"]
            ]
            torch.testing.assert_close(found[name][:, n], model(torch.stack(images))[:, 0])


def test_selectivity_raises_the_map_to_each_power() -> None:
    data, model = batch(), classifier()
    measured = probes(data)
    found = measured.evidence({"selectivity_curve": {"alphas": (0.5, 1.0, 3.0)}, "masked": {}})
    torch.testing.assert_close(found["selectivity_curve"][:, 1], found["masked"])
    for n, alpha in ((0, 0.5), (2, 3.0)):
        p = model(data["image"] * data["image"][:, :1] ** alpha).softmax(1)[:, 0]
        torch.testing.assert_close(found["selectivity_curve"][:, n], p)


def test_deleted_is_the_image_without_its_salient_part() -> None:
    data, model = batch(), classifier()
    p = model(data["image"] * (1 - data["image"][:, :1])).softmax(1)[:, 0]
    torch.testing.assert_close(probes(data).evidence({"deleted": {}})["deleted"], p)


def test_masked_saliency_is_the_map_of_the_masked_image() -> None:
    data = batch()
    measured = probes(data)
    again = Given()(classifier(), data["image"] * data["image"][:, :1])
    torch.testing.assert_close(measured.evidence({"masked_saliency": {}})["masked_saliency"], again.saliency)


def test_perturbed_images_are_within_the_radius_of_the_network_input_and_of_the_pixels() -> None:
    data = batch()
    data["image"] = data["image"] * 0 + 0.5
    seen: list[Tensor] = []

    class Watching(Given):
        def explain(self, classifier: Classifier, image: Tensor, target: Tensor) -> Explanation:
            seen.append(image)
            return super().explain(classifier, image, target)

    measured = probes(data, explainer=Watching())
    measured.classifier.std.fill_(0.5)
    found = measured.evidence({"perturbed_saliency": {"radius": 0.2, "samples": 4}, "input_norm": {}})
    assert found["perturbed_saliency"].shape == (B, 4, 1, SIDE, SIDE)
    shift = (torch.stack(seen) - 0.5).abs()
    assert 0.099 < shift.max() <= 0.1
    torch.testing.assert_close(found["input_norm"], torch.full((B,), (3 * SIDE * SIDE) ** 0.5), check_dtype=False)


def test_random_probes_depend_on_the_image_and_not_on_its_neighbors() -> None:
    data = batch()
    needs = {**MaxSensitivity().needs(), **Infidelity(patch=8).needs()}
    together = probes(data).evidence(needs)
    alone = {key: value[2:] for key, value in data.items()}
    single = probes(alone, saliency=data["image"][2:, :1]).evidence(needs)  # type: ignore[arg-type]
    for name in needs:
        torch.testing.assert_close(together[name][2], single[name][0], rtol=0, atol=1e-12)
    assert not torch.equal(together["dot_products"][0], together["dot_products"][1])


def test_infidelity_of_a_linear_network_and_its_own_map_is_zero() -> None:
    data = batch()
    network = PixelSum()
    network.ramp.fill_(1)
    needs = Infidelity(patch=8, output="logit").needs()
    found = probes(data, torch.ones(B, 1, SIDE, SIDE), network).evidence(needs)
    products, differences = found["dot_products"], found["score_differences"]
    torch.testing.assert_close(products * 3 / (3 * SIDE * SIDE), differences)
    assert infidelity(products, differences, normalize=True).abs().max() < 1e-12
    with pytest.raises(ValueError, match="`patch` of infidelity to be at most 16 pixels, but got 56"):
        probes(data).evidence(Infidelity().needs())


def test_every_metric_names_what_a_probe_measures() -> None:
    for kind in METRICS.values():
        check_needs([kind()])
        assert set(kind().needs()) == set(kind.evidence())


class Own(ImageMetric):
    """A metric whose needs a test gives."""

    key = "own"

    def __init__(self, needs: Any, key: str = "own") -> None:
        self.key = key  # type: ignore[misc]
        super().__init__()
        self.given = needs

    def needs(self) -> Any:
        return self.given

    def score(self, brightness: Tensor) -> Tensor:
        return brightness


def test_metrics_that_share_a_curve_have_to_agree_on_it() -> None:
    with pytest.raises(ValueError, match="agree on how 'road_most_curve' is measured, but 'road' wants"):
        check_needs([Road((20, 80)), RoadMost((50,))])
    check_needs([Road((20, 80)), RoadMost((20, 80)), Insertion(), Insertion()])


def brightness(probes: Probes, scale: float) -> Tensor:
    """Called as often as it is measured."""
    CALLS.append(scale)
    return scale * probes.image.mean((1, 2, 3))


CALLS: list[float] = []


def test_probes_of_ones_own_are_measured_once_for_all_who_need_the_same() -> None:
    CALLS.clear()
    measured, data = probes(batch()), batch()
    one = measured.evidence({"brightness": (brightness, {"scale": 2.0}), "saliency": {}}, "one")
    two = measured.evidence({"light": (brightness, {"scale": 2.0})}, "two")  # by another name
    other = measured.evidence({"brightness": (brightness, {"scale": 3.0})}, "three")  # the same name, other options
    assert CALLS == [2.0, 3.0]
    assert one["brightness"] is two["light"]
    torch.testing.assert_close(one["brightness"], 2 * data["image"].mean((1, 2, 3)))
    torch.testing.assert_close(other["brightness"], 3 * data["image"].mean((1, 2, 3)))
    check_needs([Own({"brightness": (brightness, {"scale": s})}, f"m{s:.0f}") for s in (1.0, 2.0)])


def test_a_probe_of_ones_own_may_ask_for_the_others() -> None:
    def drop(probes: Probes) -> Tensor:
        return probes.original - probes.score(probes.classifier(probes.masked_image))

    measured = probes(batch())
    found = measured.evidence({"drop": (drop, {})})
    torch.testing.assert_close(found["drop"], measured.original - measured.masked)


@pytest.mark.parametrize(
    ("needs", "error", "message"),
    [
        ({"brightnes": {}}, ValueError, "of metric 'own' to give all that `score` takes, but 'brightness' is missing"),
        (
            {"brightness": {}},
            ValueError,
            "Metric 'own' needs 'brightness', which no probe measures. The nearest are: '",
        ),
        (["brightness"], TypeError, "to return a dict, evidence -> options"),
        ({"brightness": 3}, TypeError, r"a dict of options or \(function, options\) for 'brightness', but got 3"),
        ({"brightness": (brightness, {}), "saliency": {}}, ValueError, "to take 'saliency', which its `needs` gives"),
        ({"brightness": (brightness, {"of": {1, 2}})}, TypeError, "options of 'brightness' that are numbers, text"),
    ],
)
def test_needs_that_cannot_be_met_are_told_in_words(needs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_needs([Own(needs)])


def test_a_probe_of_ones_own_has_an_entry_for_each_image() -> None:
    with pytest.raises(ValueError, match="the probe of 'x' to measure each of the 3 images, but got 2 entries"):
        probes(batch()).evidence({"x": (lambda probes: probes.image[:2], {})})
    with pytest.raises(TypeError, match="the probe of 'x' to return a tensor or list, but got 0.5"):
        probes(batch()).evidence({"x": (lambda probes: 0.5, {})})


def test_boxes_that_the_dataset_does_not_have_are_asked_for_in_words() -> None:
    with pytest.raises(ValueError, match="Expected a dataset with boxes"):
        probes(batch()).evidence({"boxes": {}})


def test_half_precision_scores_are_made_in_float32() -> None:
    data = batch()
    measured = probes(data, explainer=FakeCAM())
    measured.logits = measured.logits.bfloat16()
    assert measured.original.dtype == torch.float32
