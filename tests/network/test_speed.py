"""Faster copies of a network: the same outputs, the same maps, and the original modules where they are needed."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torch.nn.utils.prune
import torchvision
from explainer_cases import tiny_cnn
from torch import Tensor, nn

from optcam_pl import Classifier, GradCAM, OptiCAM, ScoreCAM
from optcam_pl.explainers import (
    AblationCAM,
    CallableExplainer,
    CaptumExplainer,
    EigenCAM,
    Explainer,
    FullGrad,
    GradientSHAP,
    RawAttention,
)
from optcam_pl.network import speed
from optcam_pl.network.folding import Folded, Pair
from optcam_pl.tasks import ClassificationTask


def trained(network: nn.Module) -> nn.Module:
    """Batch norms with statistics and weights as after training, so that folding changes every number."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in (
                (module.running_mean, -0.3, 0.3), (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5), (module.bias, -0.3, 0.3),
            ):  # fmt: skip
                if isinstance(value, Tensor):
                    value.detach().uniform_(low, high)
    return network.eval()


def small() -> nn.Module:
    return trained(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Conv2d(8, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
        )
    )  # fmt: skip


class _Branching(nn.Module):
    """The first convolution's output goes around its batch norm, too; the second pair may be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.second, self.norm2 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.shared, self.norm3 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.first(image)
        x = self.norm2(self.second(torch.relu(self.norm(x) + x)))
        x = self.norm3(self.shared(x)) + self.shared(x)
        return x.mean((2, 3))


def test_every_batch_norm_of_a_plain_network_is_folded_and_outputs_stay() -> None:
    network = small()
    folded, image = Folded(network, (16, 16)), torch.rand(3, 3, 16, 16)
    assert folded.pairs == (Pair("0", "1"), Pair("3", "4"))
    assert isinstance(folded.network.get_submodule("1"), nn.Identity)
    assert isinstance(network[1], nn.BatchNorm2d)  # type: ignore[index]
    torch.testing.assert_close(folded.network(image), network(image), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "pairs"),
    [
        (lambda: torchvision.models.resnet18(num_classes=10), 20),
        (lambda: torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.25), 52),
        (lambda: timm.create_model("test_efficientnet"), None),
        (lambda: timm.create_model("test_vit"), 0),
        (lambda: torchvision.models.DenseNet(4, (2, 2), 8, num_classes=10), 5),  # most of its norms come first
    ],
)
def test_folding_equals_the_plain_network_on_real_families(make: Any, pairs: int | None) -> None:
    network = trained(make())
    size = (160, 160) if pairs in (None, 0) else (64, 64)
    folded, image = Folded(network, size), torch.rand(2, 3, *size)
    right = network(image)
    assert pairs is None or len(folded.pairs) == pairs
    assert pairs is not None or not any(isinstance(m, nn.BatchNorm2d) for m in folded.network.modules())
    assert (folded.network(image) - right).abs().max() <= 2e-5 * right.abs().max()
    wide, wide_copy = copy.deepcopy(network).double(), Folded(copy.deepcopy(network).double(), size).network
    torch.testing.assert_close(wide_copy(image.double()), wide(image.double()), rtol=1e-9, atol=1e-9)


def test_what_cannot_be_folded_is_found_by_numbers() -> None:
    network = trained(_Branching())
    folded = Folded(network, (12, 12))
    assert folded.pairs == (Pair("second", "norm2"),)
    image = torch.rand(2, 3, 12, 12)
    torch.testing.assert_close(folded.network(image), network(image), rtol=1e-5, atol=1e-6)


def test_folding_is_proved_without_tf32_and_the_process_gets_its_setting_back() -> None:
    def flags() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    seen: list[tuple[bool, bool]] = []

    def run(network: nn.Module, image: Tensor) -> Any:
        seen.append(_exact())
        return network(image)

    def _exact() -> tuple[bool, bool]:
        if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
            places = torch.backends.cudnn.conv, torch.backends.cuda.matmul
            return tuple(place.fp32_precision == "ieee" for place in places)  # type: ignore[attr-defined,return-value]
        return tuple(not flag for flag in flags())  # type: ignore[return-value]

    before = flags()
    Folded(tiny_cnn().network, (16, 16), run=run)
    assert seen
    assert set(seen) == {(True, True)}
    assert flags() == before


def test_layers_with_hooks_and_in_training_mode_are_left_alone() -> None:
    network = small()
    handle = network[1].register_forward_hook(lambda m, a, o: o * 2)  # type: ignore[index]
    assert Folded(network, (16, 16)).pairs == (Pair("3", "4"),)
    handle.remove()
    network[4].train()  # type: ignore[index]
    assert Folded(network, (16, 16)).pairs == (Pair("0", "1"),)


def test_the_explained_convolution_keeps_its_own_output() -> None:
    network, image = small(), torch.rand(2, 3, 16, 16)
    plain = Classifier(network, target_layer="3", mean=0, std=1, input_size=16)
    fast = Classifier(network, target_layer="3", mean=0, std=1, input_size=16, speed="folded")
    assert fast.fast is not None
    assert fast.fast.pairs == 1
    torch.testing.assert_close(GradCAM()(fast, image).saliency, GradCAM()(plain, image).saliency, atol=1e-4, rtol=0)
    other = GradCAM(layer="0")  # asked for later: its batch norm is taken out again
    torch.testing.assert_close(other(fast, image).saliency, other(plain, image).saliency, atol=1e-4, rtol=0)
    assert fast.fast.pairs == 0
    assert isinstance(fast.network.get_submodule("1"), nn.BatchNorm2d)


def test_a_layer_may_be_given_as_the_module_of_the_own_network() -> None:
    network, image = small(), torch.rand(2, 3, 16, 16)
    fast = Classifier(network, target_layer="5", mean=0, std=1, input_size=16, speed="folded")
    by_module, by_name = GradCAM(layer=network[2]), GradCAM(layer="2")  # type: ignore[index]
    assert torch.equal(by_module(fast, image).saliency, by_name(fast, image).saliency)
    assert by_module.layer == "2"


EXPLAINERS: list[Explainer] = [
    *(GradCAM(), ScoreCAM(), EigenCAM(), AblationCAM(), OptiCAM(max_iter=5), FullGrad()),
    *(GradientSHAP(n_samples=3), CaptumExplainer("DeepLift"), CaptumExplainer("GuidedBackprop")),
    CallableExplainer(lambda classifier, image, target: image.mean(1)),
]


@pytest.mark.parametrize("explainer", EXPLAINERS, ids=lambda explainer: explainer.title)
@pytest.mark.parametrize("how", ["folded", "onednn", "graph", "auto"])
def test_every_kind_of_explainer_gives_the_map_of_the_plain_network(explainer: Explainer, how: Any) -> None:
    network, image, target = small(), torch.rand(2, 3, 16, 16), torch.tensor([1, 3])
    settings: dict[str, Any] = {"target_layer": "5", "mean": 0, "std": 1, "input_size": 16}
    plain, fast = Classifier(network, **settings), Classifier(network, **settings, speed=how)
    right, ours = explainer(plain, image, target), explainer(fast, image, target)
    torch.testing.assert_close(ours.saliency, right.saliency, atol=1e-3, rtol=0)
    torch.testing.assert_close(fast.probabilities(image), plain.probabilities(image), atol=1e-6, rtol=0)


def test_methods_with_rules_for_modules_say_that_they_use_the_plain_network(caplog: pytest.LogCaptureFixture) -> None:
    fast = Classifier(small(), target_layer="5", mean=0, std=1, input_size=16, speed="folded")
    assert FullGrad().network_for(fast).network is not fast.network
    assert speed.original_of(fast).fast is None
    assert CaptumExplainer("LRP").needs_original
    assert not CaptumExplainer("Saliency").needs_original
    assert RawAttention.needs_original
    assert GradCAM().network_for(fast) is fast
    with caplog.at_level(logging.INFO):
        CaptumExplainer("Deconvolution").network_for(fast)
    assert "Deconvolution needs the network's own modules: it runs on the plain network" in caplog.text


def test_the_identity_of_a_run_names_the_speed_and_keeps_the_weights() -> None:
    network = small()
    plain = Classifier(network, target_layer="5", mean=0, std=1, input_size=16)
    fast = Classifier(network, target_layer="5", mean=0, std=1, input_size=16, speed="auto", weights_dtype="bfloat16")
    assert plain.weight_hash() == fast.weight_hash()
    assert fast.describe() == {**plain.describe(), "speed": "auto", "weights_dtype": "bfloat16"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_a_setting_of_the_copy_and_maps_stay_in_float32(dtype: Any) -> None:
    network, image = small(), torch.rand(2, 3, 16, 16)
    settings: dict[str, Any] = {"target_layer": "5", "mean": 0, "std": 1, "input_size": 16}
    fast = Classifier(network, **settings, speed="folded", weights_dtype=dtype)
    assert fast.network_dtype == getattr(torch, dtype)
    assert next(network.parameters()).dtype == torch.float32
    explanation = OptiCAM(max_iter=4)(fast, image, 1)
    assert explanation.saliency.dtype == explanation.weights.dtype == torch.float32  # type: ignore[union-attr]
    right = Classifier(network, **settings)(image)
    torch.testing.assert_close(fast(image), right, atol=0.05 * float(right.abs().max()), rtol=0)


def test_settings_are_refused_in_words() -> None:
    with pytest.raises(
        ValueError, match="Expected `speed` to be one of plain, folded, onednn, graph, compile, auto, but"
    ):
        Classifier(small(), speed="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Expected `speed` to be folded, onednn, graph, compile or auto for `weights_"):
        Classifier(small(), weights_dtype="float16")
    fast = Classifier(tiny_cnn().network, target_layer="3", input_size=16, speed="folded")
    with pytest.raises(ValueError, match="Expected `speed` of the classifier to be plain, because only its own"):
        ClassificationTask(fast)


def test_compiled_passes_are_used_only_where_no_layer_is_recorded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def compiled(network: nn.Module) -> Any:
        def run(image: Tensor) -> Any:
            calls.append(len(image))
            return network(image)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    image = torch.rand(2, 3, 16, 16)
    fast = Classifier(small(), target_layer="5", mean=0, std=1, input_size=16, speed="compile")
    with caplog.at_level(logging.INFO):
        fast(image)
    assert calls.count(2) == 1
    assert "torch.compile took 0.0 s for images of (2, 3, 16, 16)." in caplog.text
    before = len(calls)
    plain = Classifier(small(), target_layer="5", mean=0, std=1, input_size=16)
    with OptiCAM().recording(fast) as record:
        fast(image)
    assert len(calls) == before
    assert record["5"].shape == (2, 6, 4, 4)
    assert plain(image).shape == fast(image).shape


def test_a_failing_compiler_is_told_in_one_line_and_passes_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(network: nn.Module) -> Any:
        def run(image: Tensor) -> Any:
            raise RuntimeError("no compiler here\nand more")

        return run

    monkeypatch.setattr(torch, "compile", failing)
    fast = Classifier(small(), target_layer="5", mean=0, std=1, input_size=16, speed="compile")
    image = torch.rand(2, 3, 16, 16)
    with pytest.warns(UserWarning, match="torch.compile fails, so passes run uncompiled: no compiler here$"):
        first = fast(image)
    assert torch.equal(first, fast(image))


def test_copies_and_pickles_of_a_fast_classifier_work() -> None:
    image = torch.rand(2, 3, 16, 16)
    fast = Classifier(small(), target_layer="5", mean=0, std=1, input_size=16, speed="auto")
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert twin.fast.network is twin.network
        assert torch.equal(twin(image), fast(image))


def played(work: Callable[[], None], device: torch.device) -> Any:
    """A capture whose replay is a plain call."""
    work()
    return SimpleNamespace(replay=work)


def test_passes_are_captured_when_they_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "capture", played)
    graphs, calls, network = speed.Graphs(), [], tiny_cnn()

    def function(image: Tensor) -> tuple[Tensor, ...]:
        calls.append(len(image))
        return network(image).detach(), image.mean(1)

    image = torch.rand(6, 3, 16, 16)
    with torch.no_grad():
        for count, seen in ((6, 1), (6, 6), (6, 1), (4, 1), (4, 6), (2, 1)):
            calls.clear()
            scores, means = graphs.run(function, image[:count])
            torch.testing.assert_close(scores, network(image[:count]))
            torch.testing.assert_close(means, image[:count].mean(1))
            assert calls == seen * [count]  # 6: made, proved twice, played
        kept = scores.clone()
        graphs.run(function, image[2:4])
        assert torch.equal(scores, kept)
        assert graphs.run(lambda given: (given.sum(1),), image, "another")[0].shape == (6, 16, 16)


def test_more_kinds_of_passes_than_graphs_are_kept_are_captured_ever_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []
    monkeypatch.setattr(speed, "capture", lambda work, device: (made.append(1), played(work, device))[1])
    graphs, image = speed.Graphs(), torch.rand(2, 3, 4, 4)
    counts = []
    with torch.no_grad():
        for _ in range(64):
            for kind in range(5):
                graphs.run(lambda given: (given.mean(1),), image, kind)
            counts.append(len(made))
    assert counts[1] == 5
    assert counts[-1] <= 5 * 6  # and not 5 * 63


def test_work_that_does_not_return_something_for_each_image_is_not_captured(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(speed, "capture", played)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    graphs = speed.Graphs()
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert graphs.run(lambda image: (image.sum(),), torch.ones(2, 3, 4, 4))[0] == 96
            assert graphs.run(lambda image: ({"logits": image},), torch.ones(2, 3, 4, 4), "dict")[0]
    assert [record.message.partition(", as ")[2] for record in caplog.records] == [
        "the network returns (), not something for each image.",
        "the network returns dict, not a tensor.",
    ]


def test_captured_work_is_forgotten_where_the_weights_are_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[int] = []
    classifier = Classifier(tiny_cnn().network, mean=0, std=1, input_size=16, target_layer="4", speed="graph")
    monkeypatch.setattr(speed.FasterNetwork, "forget", lambda self: forgotten.append(1))
    classifier.to("cpu")
    assert not forgotten
    nn.ModuleList([classifier]).double()
    assert forgotten


def _save(network: nn.Module) -> None:
    network.register_forward_hook(lambda module, args, output: setattr(module, "seen", [{"scores": output}]))


@pytest.mark.parametrize(
    "change",
    [
        lambda network: nn.utils.prune.l1_unstructured(network[3], "weight", 0.5),
        lambda network: nn.utils.spectral_norm(network[3]),
        _save,
    ],
)
def test_a_network_that_keeps_computed_tensors_is_copied(change: Callable[[nn.Module], object]) -> None:
    network = small()
    change(network)
    images = torch.rand(2, 3, 16, 16)
    network(images).sum().backward()  # what is kept has a graph now
    network.zero_grad()
    classifier = Classifier(network, mean=0, std=1, input_size=16, target_layer="5", speed="folded")
    assert torch.allclose(classifier(images), network(images), atol=1e-5)


def test_a_wrapper_of_several_processes_is_left_out_of_the_copy(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        network = nn.Sequential(nn.Identity(), nn.parallel.DistributedDataParallel(small()))
        images = torch.rand(2, 3, 16, 16)
        plain = Classifier(network, mean=0, std=1, input_size=16)
        fast = Classifier(network, mean=0, std=1, input_size=16, speed="folded")
        assert plain.target_layers == fast.target_layers == ("1.module.5",)
        assert torch.allclose(GradCAM()(fast, images).saliency, GradCAM()(plain, images).saliency, atol=1e-5)
    finally:
        torch.distributed.destroy_process_group()


def test_a_forward_that_holds_the_original_is_told() -> None:
    network = small()
    original = network.forward
    network.forward = lambda image: 2 * original(image)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="the copy does not run its own '0'.*`speed` plain"):
        Classifier(network, mean=0, std=1, input_size=16, speed="folded")


def test_a_copy_of_weights_that_have_changed_is_told() -> None:
    network, images = small(), torch.rand(1, 3, 16, 16)
    classifier = Classifier(network, mean=0, std=1, input_size=16, speed="folded")
    before = GradCAM()(classifier, images).saliency
    network.load_state_dict(copy.deepcopy(network.state_dict()), assign=True)  # other tensors of the same values
    classifier.release()
    assert torch.equal(GradCAM()(copy.deepcopy(classifier).eval(), images).saliency, before)
    network.load_state_dict(small().state_dict())
    with pytest.raises(ValueError, match="weights of Sequential to stay.*`speed` folded"):
        GradCAM()(classifier.eval(), images)
