from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from metric_tester import MetricTester

from optcam_pl.metrics import (
    ADCC,
    AverageSensitivity,
    Coherency,
    Complexity,
    Infidelity,
    MaxSensitivity,
    PerImageADCC,
    Sparseness,
)
from optcam_pl.metrics.functional import (
    average_drop,
    coherency,
    complexity,
    harmonic_mean,
    infidelity,
    sensitivities,
    sparseness,
)

SIZES = [2, 4, 1]


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def batches(**named):
    parts = {name: values.split(SIZES) for name, values in named.items()}
    return [{name: part[i] for name, part in parts.items()} for i in range(len(SIZES))]


def split(scores):
    return [part.tolist() for part in torch.as_tensor(np.array(scores)).split(SIZES)]


@pytest.fixture(scope="module")
def rows(golden):
    """The stored maps S(x) and S(x . S(x)), and the ADCC program's numbers of four images."""
    with np.load(golden("adcc.npz")) as file:
        maps = [torch.from_numpy(file[name])[:, None] for name in ("D.saliency", "D.saliency_of_masked")]
    return *maps, json.loads(golden("adcc.json").read_text())["D"]["rows"]


class TestStoredADCC:
    def test_coherency_and_complexity_equal_the_authors_program(self, rows):
        saliency, masked_saliency, stored = rows
        for dtype, key in ((torch.float32, None), (torch.float64, "float64")):
            numbers = [row[key] if key else row for row in stored]
            tolerance = {"rel": 0, "abs": 1e-8 if key else 1e-4}
            got = coherency(saliency.to(dtype), masked_saliency.to(dtype))
            assert (got.tolist()) == pytest.approx([100 * row["coherency"] for row in numbers], **tolerance)
            got = complexity(saliency.to(dtype))
            assert (got.tolist()) == pytest.approx([100 * row["complexity"] for row in numbers], **tolerance)

    def test_adcc_of_each_image_equals_the_authors_program(self, rows):
        saliency, masked_saliency, stored = rows
        p = torch.full((4,), 0.5, dtype=torch.float64)
        o = p * (1 - torch.tensor([row["average_drop"] for row in stored], dtype=torch.float64))
        per_image = PerImageADCC().score(saliency.double(), masked_saliency.double(), p, o)
        assert per_image.tolist() == pytest.approx([100 * row["float64"]["adcc"] for row in stored], abs=1e-6)

    def test_adcc_of_a_run_is_the_harmonic_mean_of_means_and_not_the_mean_of_harmonic_means(self, rows):
        saliency, masked_saliency, stored = rows
        p = torch.full((4,), 0.5)
        o = p * (1 - torch.tensor([row["average_drop"] for row in stored]))
        run, per_image = ADCC(), PerImageADCC()
        for metric in (run, per_image):
            metric.update(saliency, masked_saliency, p, o)
        means = [np.mean([row[key] for row in stored]) for key in ("coherency", "complexity", "average_drop")]
        want = 3 / (1 / means[0] + 1 / (1 - means[1]) + 1 / (1 - means[2]))
        assert run.compute().item() == pytest.approx(100 * want, abs=1e-3)
        assert per_image.compute().item() == pytest.approx(100 * np.mean([row["adcc"] for row in stored]), abs=1e-3)
        assert abs(run.compute() - per_image.compute()) > 1

    @pytest.mark.parametrize("name", ["cam", "noise"])
    def test_complexity_equals_grad_cam(self, name, golden):
        with np.load(golden("maps.npz")) as file:
            maps = torch.from_numpy(file[name])[:, None]
        stored = json.loads(golden("adcc.json").read_text())["E"]["values"][name]["Complexity"]
        assert (complexity(maps) / 100).tolist() == pytest.approx(stored, abs=1e-6)

    @pytest.mark.parametrize("name", ["cam", "noise", "gxi"])
    def test_sparseness_equals_quantus(self, name, golden):
        with np.load(golden("maps.npz", photographs=name == "gxi")) as file:
            maps = torch.from_numpy(file[name])[:, None]
        stored = json.loads(golden("quantus.json").read_text())["values"][f"{name}.normalise=False.abs=True"][
            "Sparseness"
        ]
        assert sparseness(maps.double().abs() + 1e-7).tolist() == pytest.approx(stored, abs=1e-6)  # they add it


@pytest.mark.ddp
class TestClasses(MetricTester):
    @pytest.mark.parametrize("denominator", ["input", "map"])
    @pytest.mark.parametrize(("metric", "of_samples"), [(MaxSensitivity, np.max), (AverageSensitivity, np.mean)])
    def test_sensitivities_keep_what_every_metric_promises(self, metric, of_samples, denominator):
        saliency, moved, norm = random(7, 1, 4, 5), random(7, 3, 1, 4, 5, seed=1), random(7, seed=2) + 1
        (norm if denominator == "input" else saliency)[3] = 0  # nothing to divide by
        scores = []
        for s, m, n in zip(saliency.numpy(), moved.numpy(), norm.numpy(), strict=True):
            scale = n if denominator == "input" else np.linalg.norm(s)
            scores.append(of_samples([np.linalg.norm(s - one) for one in m]) / scale if scale else None)
        evidence = batches(saliency=saliency, perturbed_saliency=moved, input_norm=norm)
        expected = [scores[:2], scores[2:6], scores[6:]]
        self.check(lambda: metric(denominator=denominator), evidence, expected)

    def test_coherency_and_adcc_keep_what_every_metric_promises(self):
        saliency, other = random(7, 1, 4, 5), random(7, 1, 4, 5, seed=1)
        other[1] = 0.4  # a constant map
        p, o = random(7, seed=2), random(7, seed=3)
        parts = []
        for s, m, before, after in zip(saliency.numpy(), other.numpy(), p.tolist(), o.tolist(), strict=True):
            pearson = 0 if np.ptp(m) == 0 else np.corrcoef(s.ravel(), m.ravel())[0, 1]
            parts.append([50 * (pearson + 1), 100 * (1 - s.mean()), 100 * (1 - max(0, before - after) / before)])
        parts = np.array(parts)
        self.check(Coherency, batches(saliency=saliency, masked_saliency=other), split(parts[:, 0]))
        self.check(Complexity, batches(saliency=saliency), split(100 - parts[:, 1]))
        evidence = batches(saliency=saliency, masked_saliency=other, original=p, masked=o)
        self.check(PerImageADCC, evidence, split(3 / (1 / parts).sum(1)))
        self.check(ADCC, evidence, split(parts), expected_value=3 / (1 / parts.mean(0)).sum())

    def test_sparseness_keeps_what_every_metric_promises(self):
        saliency = random(7, 1, 4, 5)
        saliency[2] = 0
        scores = []
        for one in saliency.double().numpy():
            gaps = np.abs(one.ravel()[:, None] - one.ravel()).mean()
            scores.append(gaps / (2 * one.mean()) if one.any() else 0.0)
        self.check(Sparseness, batches(saliency=saliency), split(scores))

    @pytest.mark.parametrize("normalize", [True, False])
    def test_infidelity_keeps_what_every_metric_promises(self, normalize):
        products, differences = random(7, 6), random(7, 6, seed=1)
        scores = []
        for x, y in zip(products.double().numpy(), differences.double().numpy(), strict=True):
            factor = np.linalg.lstsq(x[:, None], y, rcond=None)[0][0] if normalize else 1
            scores.append(np.mean((factor * x - y) ** 2))
        evidence = batches(dot_products=products, score_differences=differences)
        self.check(lambda: Infidelity(normalize=normalize), evidence, split(scores))


def test_max_sensitivity_relative_to_the_map_equals_captum():
    metrics = pytest.importorskip("captum.metrics")
    image, noise = torch.rand(4, 3, 8, 8), 0.1 * torch.randn(4, 5, 3, 8, 8)

    def explain(inputs):
        return (inputs**2).sum(-3, keepdim=True)

    def perturb(inputs):  # each image five times
        return inputs + noise.flatten(0, 1)

    def explain_tuples(inputs):
        return (explain(inputs[0] if isinstance(inputs, tuple) else inputs),)

    want = metrics.sensitivity_max(explain_tuples, image, perturb_func=perturb, n_perturb_samples=5)
    got = MaxSensitivity(denominator="map").score(explain(image), explain(image[:, None] + noise), torch.ones(4))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("normalize", [True, False])
def test_infidelity_equals_captum(normalize):
    metrics = pytest.importorskip("captum.metrics")
    image, maps, weights = torch.rand(4, 3, 5, 5), torch.rand(4, 3, 5, 5), torch.randn(3, 5, 5)
    steps = 0.1 * torch.randn(4, 6, 3, 5, 5)

    def network(inputs):
        return (inputs * weights).sum((-3, -2, -1)) ** 2

    def perturb(inputs):  # each image six times
        return steps.flatten(0, 1), inputs - steps.flatten(0, 1)

    want = metrics.infidelity(network, perturb, image, maps, n_perturb_samples=6, normalize=normalize)
    products = (steps * maps[:, None]).sum((2, 3, 4))
    differences = network(image)[:, None] - network(image[:, None] - steps)
    torch.testing.assert_close(infidelity(products, differences, normalize), want, rtol=1e-4, atol=1e-5)


def test_degenerate_maps_have_a_stated_score():
    zero, one, varied = torch.zeros(1, 1, 3, 3), torch.full((1, 1, 3, 3), 0.1), torch.rand(1, 1, 3, 3)
    for constant in (zero, one):
        assert coherency(constant, varied).item() == coherency(varied, constant).item() == 50
        assert sparseness(constant).item() == pytest.approx(0, abs=1e-6)
    assert complexity(zero).item() == 0
    assert sensitivities(zero, zero[:, None]).isnan()
    assert infidelity(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]), normalize=True).item() == 5


def test_adcc_is_zero_where_a_part_is_zero():
    assert harmonic_mean(torch.tensor([[0.0, 0.0, 50.0], [0.0, 50.0, 50.0], [2.0, 4.0, 4.0]])).tolist() == [0, 0, 3]
    maps, p = torch.ones(2, 1, 3, 3), torch.tensor([1.0, 0.5])
    maps[1] = torch.rand(1, 3, 3)
    metric = PerImageADCC()
    got = metric.score(maps, maps, p, torch.tensor([0.5, 0.0]))
    assert got.tolist() == [0, 0]
    assert average_drop(p, torch.tensor([0.5, 0.0]), "none").tolist() == [50, 100]
    assert math.isfinite(ADCC.reduce(ADCC().score(maps, maps, p, p).tolist()))


def test_settings_name_the_conventions():
    settings = {"denominator": "input", "radius": 0.2, "samples": 10}
    assert MaxSensitivity().settings() == {f"max_sensitivity_{name}": value for name, value in settings.items()}
    assert AverageSensitivity(denominator="map").settings()["average_sensitivity_denominator"] == "map"
    settings = {"normalize": True, "samples": 32, "patch": 56, "output": "probability"}
    assert Infidelity().settings() == {f"infidelity_{name}": value for name, value in settings.items()}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MaxSensitivity(denominator="none"), "`denominator` to be one of input, map, but got 'none'"),
        (
            lambda: sensitivities(torch.zeros(2, 1, 3, 3), torch.zeros(2, 4, 1, 3, 2)),
            r"\(2, 1, 3, 3\).*\(2, 4, 1, 3, 2\)",
        ),
        (lambda: coherency(torch.zeros(2, 1, 3, 3), torch.zeros(1, 1, 3, 3)), r"same shape.*\(2, 1, 3, 3\)"),
        (lambda: infidelity(torch.zeros(2, 3), torch.zeros(2, 4)), r"same shape \(B,S\).*\(2, 3\) and \(2, 4\)"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_sparseness_is_the_same_where_a_gradient_is_wanted():
    maps = torch.rand(3, 1, 5, 7)
    wanted = maps.clone().requires_grad_()
    assert torch.equal(sparseness(wanted), sparseness(maps))
    assert torch.autograd.grad(sparseness(wanted).sum(), wanted)[0].any()
