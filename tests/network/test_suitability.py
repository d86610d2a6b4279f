"""What a network outputs, and whether it is a function of the image: found before a map is made of it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from explainer_cases import MEAN, STD, leaves_no_trace, tiny_cnn, tiny_vit
from torch import Tensor, nn

from optcam_pl.explainers import CAM, RISE, FakeCAM, GradCAM, OptiCAM
from optcam_pl.network.classifier import Classifier
from optcam_pl.network.scores import Binary

IMAGE = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class Ending(nn.Module):
    """A small network with something behind its logits."""

    def __init__(self, end: Callable[[Tensor], Any], classes: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(6, classes)
        self.end = end

    def forward(self, image: Tensor) -> Any:
        return self.end(self.head(self.features(image).mean((2, 3))))


def ending(end: Callable[[Tensor], Any], classes: int = 3, **settings: Any) -> Classifier:
    return Classifier(Ending(end, classes), target_layer="features", input_size=16, **settings)


# What comes out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "kind"),
    [(lambda z: z.softmax(1), "softmax"), (torch.sigmoid, "sigmoid"), (lambda z: F.hardsigmoid(z / 9), "sigmoid")],
    ids=["softmax", "sigmoid", "hardsigmoid"],
)
def test_probabilities_are_not_taken_for_logits(end: Callable[[Tensor], Tensor], kind: str) -> None:
    message = rf"outputs probabilities: .* \[0, 1\].* Pass the network without its last {kind}"
    with pytest.raises(ValueError, match=message):
        GradCAM()(ending(end), IMAGE, 1)
    with pytest.raises(ValueError, match=message):
        ending(end).probabilities(IMAGE)
    with pytest.raises(ValueError, match=message):
        RISE(num_masks=2).check(ending(end))


def test_a_vision_transformer_that_ends_in_a_sigmoid_is_found_though_its_norm_hides_how_loud_an_image_is() -> None:
    classifier = Classifier(nn.Sequential(tiny_vit().network, nn.Sigmoid()), target_layer="0.blocks.1.norm1")
    with pytest.raises(ValueError, match="without its last sigmoid"):
        GradCAM()(classifier, IMAGE)


def test_logits_that_lie_in_0_1_by_chance_are_logits() -> None:
    vit = tiny_vit().network
    vit.norm = nn.Sequential(vit.norm, nn.Tanh())
    with torch.no_grad():
        vit.head.weight.mul_(0.01)
        vit.head.bias.fill_(0.5)
    classifier = Classifier(vit, target_layer="blocks.1.norm1", input_size=16)
    logits = classifier(IMAGE * 100)
    assert 0 < logits.min() < logits.max() < 1
    classifier.check_outputs()


def test_one_logit_is_refused_and_the_line_that_is_advised_gives_the_sigmoids_probability() -> None:
    network = Ending(lambda z: z, classes=1).eval()
    with pytest.raises(ValueError, match=r"at least two classes.*Classifier\(network, .*\), \.\.\.\)") as caught:
        GradCAM()(Classifier(network, target_layer="features"), IMAGE)
    line = str(caught.value).partition("Classifier(")[2].partition(", ...)")[0]
    advised = eval(f"Classifier({line}, target_layer='features')", {**globals(), "network": network})
    expected = torch.sigmoid(network(IMAGE))
    torch.testing.assert_close(advised.probabilities(IMAGE), torch.cat([1 - expected, expected], 1))
    assert not any(GradCAM()(advised, IMAGE, answer).degenerate.any() for answer in (0, 1))
    squashed = Ending(torch.sigmoid, classes=1).eval()
    with pytest.raises(ValueError, match="ends in a sigmoid: pass the network without it"):
        GradCAM()(Classifier(squashed, target_layer="features"), IMAGE)
    with pytest.raises(ValueError, match="The sigmoid would be applied twice"):
        GradCAM()(Classifier(squashed, target_layer="features", scores=Binary()), IMAGE)


def test_log_probabilities_are_told_once_and_their_probabilities_are_right() -> None:
    classifier, plain = ending(lambda z: z.log_softmax(1)), ending(lambda z: z)
    plain.load_state_dict(classifier.state_dict())
    with pytest.warns(UserWarning, match="outputs log-probabilities, not logits") as caught:
        probabilities = [classifier.probabilities(IMAGE) for _ in range(2)][1]
    assert len(caught) == 1
    torch.testing.assert_close(probabilities, plain.probabilities(IMAGE))


@pytest.mark.parametrize("spoil", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(spoil: float) -> None:
    with pytest.raises(ValueError, match="finite logits, but for an image of noise it outputs NaN or infinity"):
        GradCAM()(ending(lambda z: torch.cat([z[:, :2], z[:, 2:] * 0 + spoil], 1)), IMAGE)


def test_a_class_that_is_switched_off_by_minus_infinity_is_none_of_them() -> None:
    off = torch.tensor([0, 0, float("inf")])
    assert ending(lambda z: z - off).probabilities(IMAGE)[:, 2].tolist() == [0, 0]


def test_a_network_that_cannot_see_black_is_told() -> None:
    classifier = Classifier(nn.Sequential(tiny_cnn().network), target_layer="0.4", input_size=16)
    classifier.network.register_forward_pre_hook(lambda _, args: (args[0] / args[0].abs().amax((1, 2, 3), True),))
    with pytest.warns(UserWarning, match="NaN or infinity for a black image.*`baseline`"):
        GradCAM()(classifier, IMAGE)


def test_the_same_scores_for_every_image_are_told_and_nearly_the_same_are_not() -> None:
    with pytest.warns(UserWarning, match="the same scores for noise, a black image and another one"):
        ending(lambda z: z * 0).check_outputs()
    ending(lambda z: 100 + z * 1e-5).check_outputs()


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda z: (z.repeat(1, 4), z), r"several tensors with two dimensions, of the shapes \(3, 12\), \(3, 3\)"),
        (lambda z: {"embedding": z.repeat(1, 4), "scores": z}, r"of the shapes \(3, 12\), \(3, 3\)"),
        (lambda z: z[:, :, None, None], r"shape \(3, 3, 1, 1\).*torch.nn.Sequential\(network, torch.nn.Flatten\(\)\)"),
        (lambda z: z[:, :, None, None].expand(-1, -1, 2, 2), r"\(3, 3, 2, 2\).*AdaptiveAvgPool2d\(1\)"),
        (lambda z: z[:, 0], r"shape \(3,\).*one logit z"),
        (lambda z: z.repeat(2, 1), r"for 3 images it returns the shape \(6, 3\): the first dimension"),
    ],
    ids=["tuple", "mapping", "1 x 1", "map", "flat", "batch"],
)
def test_outputs_of_another_kind_are_refused_in_words(end: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ending(end).check_outputs()


def test_outputs_that_are_not_in_doubt_are_taken() -> None:
    plain = ending(lambda z: z)
    Named = torchvision.models.inception.InceptionOutputs
    for end in (
        lambda z: (z, z[:, :, None].repeat(1, 1, 4)),
        lambda z: {"embedding": z.repeat(1, 4), "logits": z},
        lambda z: Named(z, z.repeat(1, 2)),
    ):
        classifier = ending(end)
        classifier.load_state_dict(plain.state_dict())
        assert torch.equal(classifier(IMAGE), plain(IMAGE))


def untrained() -> dict[str, Callable[[], Classifier]]:
    return {
        "cnn": lambda: tiny_cnn(classes=2),
        "vit": lambda: tiny_vit(classes=2),
        "resnet": lambda: Classifier(torchvision.models.resnet18(num_classes=2), input_size=32),
        "test_vit": lambda: Classifier("timm/test_vit", weights=None, input_size=160),
        "convnext": lambda: Classifier("timm/test_convnext", weights=None, input_size=32),
        "efficientnet": lambda: Classifier("timm/test_efficientnet", weights=None, input_size=32),
        "bfloat16": lambda: Classifier("timm/test_resnet", weights=None, input_size=32).bfloat16(),
        "double": lambda: Classifier("timm/test_resnet", weights=None, input_size=32).double(),
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", untrained())
def test_untrained_networks_are_not_refused(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    classifier = untrained()[name]()
    with leaves_no_trace(classifier):
        classifier.check_function()


def test_the_look_is_taken_once_at_the_first_explanation() -> None:
    classifier, passes = tiny_cnn(), []
    assert classifier.num_classes == 5  # counted by a pass of its own
    classifier.register_forward_hook(lambda _module, args, _out: passes.append(len(args[0])))
    for _ in range(2):
        GradCAM()(classifier, IMAGE, 1)
    look = [3, 2, 2, 1]  # what comes out, twice the same, alone
    assert passes == [*look, 2, 2]
    copy.deepcopy(classifier).probabilities(IMAGE)
    assert passes == [*look, 2, 2, 2]
    classifier(IMAGE)
    assert passes == [*look, 2, 2, 2, 2]


def test_who_trusts_a_network_goes_on_with_a_warning_and_it_is_printed_with_the_results() -> None:
    classifier = ending(lambda z: z.softmax(1), trust_network=True)
    with pytest.warns(UserWarning, match="outputs probabilities") as caught:
        degenerate = [GradCAM()(classifier, IMAGE).degenerate for _ in range(2)]
    assert not torch.stack(degenerate).any()
    assert len(caught) == 1
    assert classifier.describe()["trust_network"] is True
    assert "trust_network" not in ending(lambda z: z).describe()


# Whether it is a function ---------------------------------------------------------------------------------------------


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, 5)

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.head(F.dropout(self.features(image).mean((2, 3)), 0.5))  # `training` defaults to True
        return found


class MonteCarlo(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.1)


def with_layer(layer: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )


class Counting(nn.Module):
    def __init__(self, persistent: bool = True) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1), persistent=persistent)
        self.calls: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Dropping, r"two equal passes differ\. It comes from Dropping's own forward"),
        (lambda: with_layer(MonteCarlo()), r"two equal passes differ\. It comes from module '1' \(MonteCarlo\)"),
        (
            lambda: with_layer(nn.BatchNorm2d(8, track_running_stats=False)),
            r"beside another image\. It comes from module '1' \(BatchNorm2d\)",
        ),
        (lambda: with_layer(Counting()), r"each pass changes its state: 1\.calls \(of module '1' \(Counting\)\)"),
    ],
    ids=["functional dropout", "MC dropout", "batch statistics", "counter"],
)
def test_networks_that_are_no_functions_are_found_by_check(build: Callable[[], nn.Module], message: str) -> None:
    for explainer in (GradCAM("0"), OptiCAM("0"), RISE(num_masks=2), FakeCAM()):
        network = build()
        explainer.layer = "features" if isinstance(network, Dropping) else explainer.layer
        with pytest.raises(ValueError, match=message):
            explainer.check(Classifier(network, input_size=16))
    with pytest.warns(UserWarning, match=message):
        Classifier(build(), input_size=16, trust_network=True).check_function()


def test_what_does_not_touch_an_answer_or_the_saved_weights_is_no_fault() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(1))
            self.table: Tensor

        def forward(self, x: Tensor) -> Tensor:
            if not self.table.any():  # filled at the first pass, and kept
                self.table += 2
            return x * self.table

    for layer in (Counting(persistent=False), Lazy(), nn.Dropout(0.5), nn.BatchNorm2d(8)):
        Classifier(with_layer(layer), input_size=16).check_function()


def test_a_network_that_takes_single_images_works_with_single_images() -> None:
    class Single(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert len(x) == 1
            return x

    classifier = Classifier(with_layer(Single()), target_layer="2", input_size=16)
    with pytest.warns(UserWarning, match="takes one image at a time only: give `batch_size` 1"):
        assert GradCAM()(classifier, IMAGE[:1]).saliency.shape == (1, 1, 16, 16)
    GradCAM().check(classifier)


# Types ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("explainer", [GradCAM(), CAM(), OptiCAM(max_iter=3), RISE(num_masks=4)], ids=lambda e: e.title)
def test_a_float64_networks_map_is_its_float32_twins(explainer: Any) -> None:
    single = tiny_cnn()
    double = Classifier(copy.deepcopy(single.network).double(), target_layer="4", mean=MEAN, std=STD, input_size=16)
    ours, theirs = explainer(double, IMAGE, 1).saliency, explainer(single, IMAGE, 1).saliency
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("explainer", [GradCAM(), OptiCAM(max_iter=3), RISE(num_masks=4)], ids=lambda e: e.title)
def test_a_half_networks_map_is_float32_and_about_its_float32_twins(explainer: Any, dtype: torch.dtype) -> None:
    single = tiny_cnn()
    half = Classifier(copy.deepcopy(single.network).to(dtype), target_layer="4", mean=MEAN, std=STD, input_size=16)
    assert half(IMAGE).dtype == half.probabilities(IMAGE).dtype == torch.float32
    ours, theirs = explainer(half, IMAGE, 1).saliency, explainer(single, IMAGE, 1).saliency
    assert ours.dtype == torch.float32
    assert float((ours - theirs).abs().mean()) < 0.05


def test_a_task_asks_before_it_makes_a_folder(photos: Path, tmp_path: Path) -> None:
    import lightning as L

    from optcam_pl.data import ImageFolder
    from optcam_pl.tasks import SaliencyTask

    task = SaliencyTask(Classifier(Dropping(), target_layer="features", input_size=16), GradCAM(), target="predicted")
    run = tmp_path / "run"
    trainer = L.Trainer(
        logger=False, default_root_dir=run, accelerator="cpu", enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, use_distributed_sampler=False, inference_mode=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="two equal passes differ"):
        trainer.test(task, datamodule=ImageFolder(photos, batch_size=2), verbose=False)
    assert not run.exists()


def test_common_networks_pass_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for network in (timm.create_model("test_vit2"), torchvision.models.mobilenet_v3_small()):
            Classifier(network, mean=0.5, std=0.5, input_size=64).check_function()


def test_the_first_explanation_asks_whether_the_network_is_a_function() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.head = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(nn.functional.dropout(self.features(x).mean((2, 3)), 0.5))  # training defaults to True

    classifier = Classifier(Dropping().eval(), target_layer="features.1", mean=0, std=1, input_size=16)
    with pytest.raises(ValueError, match="two equal passes differ"):
        GradCAM()(classifier, torch.rand(2, 3, 16, 16), 1)
