"""Opti-CAM's presets: the paper's climb stays what it was, and each part of the fast one does what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optcam_pl import Classifier, OptiCAM
from optcam_pl.explainers.presets import PRESETS, balanced, factor


def tiny(channels: int = 6) -> Classifier:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, channels, 3, 2, 1), nn.ReLU(), nn.Conv2d(channels, channels, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4),
    )  # fmt: skip
    return Classifier(network, target_layer="3", input_size=16)


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_the_papers_preset_is_the_default_and_says_what_it_always_said() -> None:
    usual = {
        "layer": None, "objective": "mask", "normalizer": "range", "max_iter": 100, "lr": 0.1, "tol": 1e-10,
        "optimizer": "Adam", "relu": False, "baseline": "black",
    }  # fmt: skip
    assert (
        OptiCAM().settings() == OptiCAM(preset="paper").settings() == OptiCAM(max_iter=100, lr=0.1).settings() == usual
    )
    spelled = OptiCAM(max_iter=9, lr=0.1, betas=(0.9, 0.999), schedule="constant", start="uniform")
    assert spelled.settings() == usual | {"max_iter": 9}
    assert torch.equal(spelled(tiny(), images(), 0).saliency, OptiCAM(max_iter=9)(tiny(), images(), 0).saliency)


def test_a_preset_fills_in_what_is_not_given_and_the_settings_say_what_is_in_force() -> None:
    fast = PRESETS["fast"]
    named = OptiCAM(preset="fast").settings()
    assert {name: named[name] for name in fast.items()} == fast.items()
    assert "preset" not in named
    mixed = OptiCAM(max_iter=7, preset="fast", start="uniform", betas=(0.5, 0.9)).settings()
    assert (mixed["max_iter"], mixed["lr"], mixed["betas"], mixed["schedule"]) == (7, fast.lr, (0.5, 0.9), "linear")
    assert "start" not in mixed
    own = OptiCAM(preset="fast", optimizer=lambda params: torch.optim.SGD(params, lr=3.0)).settings()
    assert (own["max_iter"], own["schedule"], own["start"]) == (fast.max_iter, "linear", "balanced")
    assert not {"lr", "betas"} & set(own)


def written_down(
    classifier: Classifier, image: Tensor, target: int, steps: int, divide: bool, **settings: Any
) -> tuple[Tensor, Tensor]:
    """Maps and objectives of a climb from u = 0, with torch's own optimizer and schedule."""
    with OptiCAM().recording(classifier) as record:
        classifier(image)
    A = record["3"].detach()
    if divide:
        amount = A.mean((2, 3), keepdim=True) - A.amin((2, 3), keepdim=True)
        A = A / amount.maximum(1e-3 * amount.amax(1, keepdim=True))
    u = torch.zeros(A.shape[:2], dtype=A.dtype, requires_grad=True)
    optimizer = torch.optim.Adam([u], **settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / steps)
    trace = []

    def climb() -> tuple[Tensor, Tensor]:
        S = (torch.softmax(u, 1)[:, :, None, None] * A).sum(1, keepdim=True)
        full = F.interpolate(S, image.shape[2:], mode="bilinear", align_corners=False)
        low, high = full.amin((2, 3), keepdim=True), full.amax((2, 3), keepdim=True)
        s = (full - low) / (high - low)
        return s, classifier(image * s)[:, target]

    for _ in range(steps):
        objective = climb()[1]
        trace.append(objective.detach())
        optimizer.zero_grad()
        (-objective.sum()).backward()
        optimizer.step()
        schedule.step()
    s, objective = climb()
    return s.detach(), torch.stack([*trace, objective.detach()])


@pytest.mark.parametrize("divide", [False, True])
def test_a_climb_is_that_of_divided_channels_with_torchs_schedule(divide: bool) -> None:
    classifier, image = tiny().double(), images().double()
    classifier.mean, classifier.std = classifier.mean.double(), classifier.std.double()
    settings = {"lr": 0.5, "betas": (0.5, 0.6)}
    s, trace = written_down(classifier, image, 1, 8, divide, **settings)
    explainer = OptiCAM(max_iter=8, tol=0, schedule="linear", start="balanced" if divide else "uniform", **settings)
    found = explainer(classifier, image, 1)
    assert found.objective is not None
    torch.testing.assert_close(found.objective, trace, atol=1e-9, rtol=0)
    torch.testing.assert_close(found.saliency, s, atol=1e-9, rtol=0)


def test_the_schedule_holds_for_an_own_optimizer() -> None:
    first, last = (factor("linear", t, 2) for t in range(2))
    assert (first, last) == (1.0, 0.5)

    class Up(torch.optim.Optimizer):
        """Adds 1 to the first weight."""

        def __init__(self, params: Any) -> None:
            super().__init__(params, {})

        def step(self, closure: Any = None) -> None:
            for parameter in self.param_groups[0]["params"]:
                parameter.data[0] += 1

    weights = OptiCAM(max_iter=2, tol=0, optimizer=Up, schedule="linear")(tiny(), images(), 0).weights
    assert weights is not None
    torch.testing.assert_close(weights[:, 0] / weights[:, 1], torch.full((3,), 1.5).exp())


def test_weights_of_the_fast_preset_are_convex_and_give_the_same_map() -> None:
    classifier, image, explainer = tiny(), images(), OptiCAM(preset="fast", max_iter=6)
    found = explainer(classifier, image, 2)
    assert found.weights is not None
    torch.testing.assert_close(found.weights.sum(1), torch.ones(3))
    again = explainer.from_weights(classifier, image, torch.tensor([2, 2, 2]), found.weights)
    torch.testing.assert_close(again.saliency, found.saliency)
    u = [nn.Parameter(torch.ones(6)) for _ in range(3)]
    fitted = explainer.fit(classifier, image, torch.tensor([2, 2, 2]), u, explainer.make_optimizer(u))
    torch.testing.assert_close(fitted.saliency, found.saliency)
    torch.testing.assert_close(torch.softmax(torch.stack(u), 1), found.weights)


def test_the_balanced_start_is_finite_whatever_the_channels_are() -> None:
    A = torch.rand(5, 4, 3, 3)
    A[0, 1], A[1], A[2, 0], A[3] = 0, 7, 1e-30 * A[2, 0], A[3] - 5
    A[4, 2, 0, 0] = torch.nan
    u = balanced(A)
    assert u.isfinite().all()
    assert u[0].argmin() == 1
    assert (u[1] == u[1, 0]).all()
    shifted = balanced(A[3:4] + 5)
    torch.testing.assert_close(u[3:4], shifted, atol=1e-4, rtol=1e-4)
    several = OptiCAM(layer=["1", "3"], preset="fast", max_iter=3)(tiny(), images(), 0)
    assert several.weights is not None
    assert several.weights.shape == (3, 12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "quick"}, "`preset` to be one of"),
        ({"schedule": "cosine"}, "`schedule` to be one of"),
        ({"start": "random"}, "`start` to be one of"),
        ({"betas": (0.9, 1.0)}, "`betas` to be two numbers of at least 0 and below 1"),
        ({"betas": (0.9,)}, "`betas` to be two numbers"),
        ({"betas": (0.5, 0.5), "optimizer": torch.optim.SGD}, "no `betas` with an `optimizer` of your own"),
        ({"preset": "fast", "max_iter": 0}, "`max_iter` to be a positive integer"),
        ({"preset": "fast", "lr": 0.0}, "`lr`"),
    ],
)
def test_bad_settings_are_refused_in_words(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptiCAM(**settings)
