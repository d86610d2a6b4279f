"""Maps that say nothing: recognized before upsampling, by every explainer, with the reason, and told by a run."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from explainer_cases import tiny_cnn, tiny_vit
from torch import Tensor, nn

from optcam_pl.cli import main
from optcam_pl.data import ImageFolder
from optcam_pl.explainers import (
    CAM,
    TIBAV,
    AblationCAM,
    CallableExplainer,
    CaptumExplainer,
    EigenCAM,
    EigenGradCAM,
    Explainer,
    Explanation,
    ExtremalPerturbation,
    FullGrad,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    MeaningfulPerturbation,
    OptiCAM,
    RandomCAM,
    ScoreCAM,
    SmoothGradCAMPlusPlus,
    XGradCAM,
)
from optcam_pl.maps import degenerate, level, normalize
from optcam_pl.network.classifier import Classifier
from optcam_pl.reports.summary import DegenerateWarning
from optcam_pl.runs.rows import read_rows
from optcam_pl.tasks import SaliencyTask

TINY = str(Path(__file__).resolve().parents[1] / "conf" / "tiny.yaml")

OF_FEATURES = [
    CAM(),
    RandomCAM(),
    EigenCAM(),
    EigenCAM(center=True),
    GradCAM(),
    GradCAMPlusPlus(),
    SmoothGradCAMPlusPlus(num_samples=2),
    XGradCAM(),
    LayerCAM(),
    HiResCAM(),
    EigenGradCAM(),
    ScoreCAM(),
    AblationCAM(),
    OptiCAM(max_iter=2),
    OptiCAM(max_iter=2, normalizer="max"),
    OptiCAM(max_iter=2, normalizer="sigmoid"),
]


blind = pytest.mark.filterwarnings("ignore:.*outputs the same scores for noise")  # it is meant to see nothing


def named(explainers: list[Explainer]) -> list[object]:
    return [pytest.param(explainer, id=f"{explainer.title}-{i}") for i, explainer in enumerate(explainers)]


def pooled_cnn(pool: int, *, relu: bool = True, channels: int = 64) -> Classifier:
    """A convolution, pooling to a pool x pool grid (layer "2"), average, a linear layer."""
    layers = [nn.Conv2d(3, channels, 1), nn.ReLU() if relu else nn.Identity(), nn.AdaptiveAvgPool2d(pool)]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))
    return Classifier(network, target_layer="2", input_size=16)


def explained(explainer: Explainer, classifier: Classifier, image: Tensor, target: int = 1) -> Explanation:
    explanation = explainer(classifier, image, target)
    assert isinstance(explanation, Explanation)
    return explanation


def assert_silent(explanation: Explanation, *words: str) -> None:
    """All maps are zero and called degenerate; the reason contains the words."""
    assert explanation.degenerate.all()
    assert not explanation.saliency.any()
    assert len(explanation.reasons) == len(explanation.saliency)
    for reason in explanation.reasons:
        assert all(word in reason for word in words), reason


# The measure ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [1.0, 0.3, 123.456, -7.1, 1e-3, 1e-30, 3e30])
@pytest.mark.parametrize("grid", [(1, 1), (7, 7), (14, 9), (300, 300)])
def test_a_constant_of_any_magnitude_is_degenerate_on_any_grid(
    dtype: torch.dtype, value: float, grid: tuple[int, int]
) -> None:
    raw = torch.full((1, 1, *grid), value, dtype=dtype)
    image = torch.rand(1, 3, 61, 224, dtype=dtype)
    assert_silent(Explainer.finish(raw, image, torch.tensor([0])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1.0, 123.456, -3e4, 1e-30, 1e30])
def test_a_signal_above_rounding_is_kept_whatever_its_offset_and_scale(dtype: torch.dtype, offset: float) -> None:
    eps = torch.finfo(dtype).eps
    scale = 16 * eps * abs(offset) if offset else 1e-30
    raw = offset + scale * torch.rand(1, 1, 7, 7, dtype=dtype).round(decimals=1)
    raw[..., 0, 0], raw[..., 3, 3] = offset, offset + scale
    explanation = Explainer.finish(raw, torch.rand(1, 3, 28, 28, dtype=dtype), torch.tensor([0]))
    assert not explanation.degenerate.any()
    assert (explanation.saliency.amin(), explanation.saliency.amax()) == (0, 1)
    assert explanation.reasons == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bound_is_four_units_of_rounding(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    maps = torch.ones(2, 1, 2, 2, dtype=dtype)
    maps[0, 0, 0, 0], maps[1, 0, 0, 0] = 1 - 4 * eps, 1 - 4.5 * eps
    assert degenerate(maps).tolist() == [True, False]
    assert normalize(maps).amax((1, 2, 3)).tolist() == [0, 1]


def test_a_spread_below_the_smallest_normal_number_is_none() -> None:
    tiny = torch.finfo(torch.float32).tiny
    maps = torch.tensor([[0.0, tiny / 2], [0.0, 4 * tiny], [-3e38, 3e38]]).view(3, 1, 1, 2)
    assert degenerate(maps).tolist() == [True, False, True]  # the last one's spread is beyond the format


def test_to_the_max_normalizer_a_map_without_a_positive_value_says_nothing() -> None:
    maps = torch.tensor([[-2.0, -1.0], [-2.0, 1.0]]).view(2, 1, 1, 2)
    assert degenerate(maps).tolist() == [False, False]
    assert degenerate(maps, "max").tolist() == [True, False]
    assert normalize(maps, "max").amax((1, 2, 3)).tolist() == [0, 1]


def test_level_takes_rounding_out_of_sums_of_constant_features_alone() -> None:
    A = torch.randn(2, 512, 1, 1).expand(2, 512, 7, 7).contiguous()
    A[1, 0, 0, 0] += 1
    noisy = torch.rand(2, 1, 7, 7)
    out = level(noisy, A)
    assert (out[0] == noisy[0, 0, 0, 0]).all()
    assert torch.equal(out[1], noisy[1])


# Explainers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("explainer", named(OF_FEATURES))
def test_a_grid_of_one_cell_gives_no_map_and_is_named(explainer: Explainer) -> None:
    assert_silent(explained(explainer, pooled_cnn(1), torch.rand(3, 3, 16, 24)), "grid is 1 x 1", "16 x 24 pixels")


@pytest.mark.parametrize("explainer", named(OF_FEATURES))
def test_constant_features_of_either_sign_give_no_map_and_are_named(explainer: Explainer) -> None:
    classifier = pooled_cnn(7, relu=False, channels=512)
    image = torch.rand(2, 3, 1, 1).expand(2, 3, 16, 16)
    assert_silent(explained(explainer, classifier, image), "feature maps are constant")


@pytest.mark.parametrize("explainer", named([EigenCAM(), GradCAM(), LayerCAM(), OptiCAM(max_iter=2)]))
def test_a_silent_image_does_not_silence_its_neighbor(explainer: Explainer) -> None:
    image = torch.stack([torch.full((3, 16, 16), 0.4), torch.rand(3, 16, 16)])
    classifier = pooled_cnn(4)
    classifier.network[5].weight.data.abs_()
    both = explained(explainer, classifier, image)
    assert both.degenerate.tolist() == [True, False]
    assert both.reasons == ("the map is constant: the layer's feature maps are constant", "")
    torch.testing.assert_close(both.saliency[1:], explained(explainer, classifier, image[1:]).saliency)


@pytest.mark.parametrize("explainer", named([EigenCAM(), GradCAM(), LayerCAM(), RandomCAM(), OptiCAM(max_iter=2)]))
def test_fused_layers_that_are_all_constant_give_no_map(explainer: Explainer) -> None:
    explainer.layer = ["2", "3"]
    image = torch.rand(2, 3, 1, 1).expand(2, 3, 16, 16)
    assert_silent(explained(explainer, pooled_cnn(4), image), "feature maps are constant")
    assert_silent(explained(explainer, pooled_cnn(1), torch.rand(2, 3, 16, 16)), "grid is 1 x 1")
    if not isinstance(explainer, LayerCAM):  # whose largest map counts: a constant covers the others
        assert not explained(EigenCAM(["2", "3"]), pooled_cnn(4), torch.rand(2, 3, 16, 16)).degenerate.any()


@blind
def test_a_layer_without_a_gradient_is_named() -> None:
    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * x

    network = nn.Sequential(nn.Conv2d(3, 4, 1), Detached(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    classifier = Classifier(network, target_layer="0", input_size=8)
    for explainer in (GradCAM(), GradCAMPlusPlus(), SmoothGradCAMPlusPlus(num_samples=2), LayerCAM(), XGradCAM()):
        assert_silent(explained(explainer, classifier, torch.rand(2, 3, 8, 8)), "no gradient", "reaches the layer")


@pytest.mark.parametrize("explainer", named([GradCAM(), HiResCAM(), XGradCAM(), AblationCAM()]))
def test_a_relu_that_removes_everything_is_named(explainer: Explainer) -> None:
    classifier = pooled_cnn(4)
    classifier.network[5].weight.data.abs_().neg_()
    assert_silent(explained(explainer, classifier, torch.rand(2, 3, 16, 16)), "ReLU removed everything")


def test_a_map_that_is_not_finite_is_named() -> None:
    explainer = CallableExplainer(lambda c, image, t: torch.where(image[:, 0] > 0.5, image[:, 0] / 0, 0))
    explanation = explained(explainer, tiny_cnn(), torch.rand(2, 3, 16, 16))
    assert_silent(explanation, "the map is not finite")
    assert "constant" not in explanation.reasons[0]


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (16, 16), (100, 30)])
def test_an_own_functions_constant_map_is_degenerate_at_any_size(size: tuple[int, int]) -> None:
    explainer = CallableExplainer(lambda c, image, t: torch.full((len(image), *size), 123.456))
    assert_silent(explained(explainer, tiny_cnn(), torch.rand(2, 3, 16, 16)), "the map is constant")


@blind
def test_masks_and_attributions_of_a_network_that_sees_nothing() -> None:
    classifier = tiny_cnn()
    nn.init.zeros_(classifier.network[-1].weight)
    image = torch.rand(1, 3, 16, 16)
    for explainer in (MeaningfulPerturbation(max_iter=1), FullGrad(), CaptumExplainer("Saliency")):
        explanation = explained(explainer, classifier, image)
        assert explanation.degenerate.all() or isinstance(explainer, MeaningfulPerturbation), explainer
        assert bool(explanation.saliency.any()) != bool(explanation.degenerate.all())
    assert_silent(explained(CaptumExplainer("InputXGradient"), classifier, image), "attribution is 0 everywhere")
    assert not explained(ExtremalPerturbation(max_iter=1), classifier, image).saliency.isnan().any()


@blind
def test_attention_methods_refuse_a_head_that_reads_nothing() -> None:
    classifier = tiny_vit()
    nn.init.zeros_(classifier.network.head.weight)
    with pytest.raises(ValueError, match="gives none of its tokens a gradient"):
        explained(TIBAV(), classifier, torch.rand(2, 3, 16, 16))


def test_a_channel_that_is_constant_masks_nothing_in_score_cam(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(
        "optcam_pl.explainers.masking._masked_logits",
        lambda c, image, masks, reference, target: seen.append(masks) or masks.mean((2, 3)),
    )
    classifier = pooled_cnn(3, channels=4)
    nn.init.zeros_(classifier.network[0].weight.data[:2])
    classifier.network[0].bias.data[:2] = 0.3
    explained(ScoreCAM(), classifier, torch.rand(1, 3, 16, 16))
    assert not seen[0][:, :2].any()


# Views, powers, weights ----------------------------------------------------------------------------------------------


def test_views_that_cancel_out_or_say_nothing_are_told_apart() -> None:
    ramp = CallableExplainer(lambda c, image, t: torch.arange(16.0).expand(len(image), 16, 16).sin().cumsum(2))
    flat = CallableExplainer(lambda c, image, t: torch.full((len(image), 7, 7), 0.3))
    antisymmetric = CallableExplainer(lambda c, image, t: torch.linspace(0, 0.7, 224).expand(len(image), 16, 224))
    for explainer in (ramp, flat, antisymmetric):
        explainer.augment = True
    assert not explained(ramp, tiny_cnn(), torch.rand(2, 3, 16, 16)).degenerate.any()
    assert_silent(explained(flat, tiny_cnn(), torch.rand(2, 3, 16, 16)), "the map is constant")
    assert_silent(explained(antisymmetric, tiny_cnn(), torch.rand(2, 3, 16, 224)), "cancel out")
    one_cell = EigenCAM()
    one_cell.augment = True
    assert_silent(explained(one_cell, pooled_cnn(1), torch.rand(2, 3, 16, 16)), "grid is 1 x 1")


def test_selectivity_keeps_the_reason_and_names_its_own() -> None:
    flat, sigmoid = EigenCAM(), OptiCAM(max_iter=1, normalizer="sigmoid")
    flat.selectivity, sigmoid.selectivity = 0.5, 1e6
    assert_silent(explained(flat, pooled_cnn(1), torch.rand(2, 3, 16, 16)), "grid is 1 x 1")
    assert_silent(explained(sigmoid, pooled_cnn(4), torch.rand(2, 3, 16, 16)), "its power of 1e+06 is constant")


def test_opti_cam_stands_still_on_constant_features_and_its_weights_give_the_same_again() -> None:
    explainer, classifier = OptiCAM(max_iter=5), pooled_cnn(1)
    image = torch.rand(2, 3, 16, 16)
    explanation = explained(explainer, classifier, image)
    assert explanation.weights is not None
    assert (explanation.weights == explanation.weights[0, 0]).all()
    again = explainer.from_weights(classifier, image, torch.tensor([1, 1]), explanation.weights)
    assert_silent(again, "grid is 1 x 1")


def test_opti_cams_max_normalizer_names_maps_without_a_positive_value() -> None:
    classifier = pooled_cnn(4, relu=False)
    nn.init.zeros_(classifier.network[0].weight.data[:, 1:])
    classifier.network[0].weight.data[:, 0] = -1
    nn.init.zeros_(classifier.network[0].bias)
    image = torch.rand(2, 3, 16, 16) + 0.1
    explanation = explained(OptiCAM(max_iter=2, normalizer="max"), classifier, image.clamp(max=1))
    assert_silent(explanation, "none of its values is positive")


def test_gradients_of_a_good_map_are_untouched_by_silent_ones() -> None:
    maps = torch.rand(2, 1, 5, 5)
    maps[1] = 0.3
    maps.requires_grad_()
    (both,) = torch.autograd.grad(
        normalize(maps, silent=torch.tensor([False, True]).view(2, 1, 1, 1)).cos().sum(), maps
    )
    alone = maps.detach()[:1].requires_grad_()
    a = alone
    (one,) = torch.autograd.grad(((a - a.amin()) / (a.amax() - a.amin())).cos().sum(), alone)
    assert torch.equal(both[:1], one)
    assert not both[1:].any()


# Runs ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


NOTE = "7 of 7 maps are zero everywhere"
REASON = "the layer's grid is 1 x 1 for images of 32 x 32 pixels"
tensorboard = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # as in test_cli.py


@tensorboard
@pytest.mark.usefixtures("_elsewhere")
def test_a_run_from_python_warns_once_at_its_end(photos: Path, recwarn: pytest.WarningsRecorder) -> None:
    task = SaliencyTask(pooled_cnn(1), EigenCAM(), target=1)
    data = ImageFolder(str(photos))
    trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=False, default_root_dir="run", enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, use_distributed_sampler=False, inference_mode=False,
    )  # fmt: skip
    trainer.test(task, datamodule=data, verbose=False)
    (warning,) = [w for w in recwarn if issubclass(w.category, DegenerateWarning)]
    assert NOTE in str(warning.message)
    assert "EigenCAM: " in str(warning.message)
    assert {row.status for row in read_rows("run")} == {"degenerate"}


ONE_CELL = "--model.classifier.input_size=32"


@tensorboard
@pytest.mark.usefixtures("_elsewhere")
def test_the_command_tells_it_below_the_table_or_on_stderr(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", TINY, f"--data.root={photos}", "--model.explainer=EigenCAM", ONE_CELL]
    main(["test", *words])
    told = capsys.readouterr()
    assert NOTE in " ".join(told.out.split())
    assert REASON in " ".join(told.out.split())
    assert NOTE not in told.err
    main(["predict", *words])
    told = capsys.readouterr()
    assert told.err.count(NOTE) == 1
    assert REASON in told.err


@tensorboard
@pytest.mark.usefixtures("_elsewhere")
def test_a_comparison_tells_it_of_each_method_that_it_holds_for(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", TINY, f"--data.root={photos}", ONE_CELL, "--run_dir=runs"]
    main(["compare", *words, "--explainers", "EigenCAM", "FakeCAM", "GradCAM"])
    capsys.readouterr()
    main(["report", "runs"])
    table = " ".join(capsys.readouterr().out.split())
    for method in ("EigenCAM", "GradCAM"):
        assert table.count(f"{method}: {NOTE}") == 1
    assert f"FakeCAM: {NOTE}" not in table
