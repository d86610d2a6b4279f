"""A module that is handed in: what it carries, its layers as modules, and its flags, given back."""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from optcam_pl import Classifier
from optcam_pl.explainers import GradCAM, OptiCAM
from optcam_pl.network.carried import NormalizationWarning


class Own(nn.Module):
    """A step of somebody's own, without weights."""

    def forward(self, image: Tensor) -> Tensor:
        return 2 * image - 1


class WithBuffers(nn.Module):
    """Normalizes by buffers."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.full((3, 1, 1), 0.5))
        self.inner = inner

    def forward(self, image: Tensor) -> Any:
        return self.inner(image - self.pixel_mean)


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def said(network: nn.Module, **settings: Any) -> int:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Classifier(network, input_size=32, **settings)
    assert all(warning.filename == __file__ for warning in caught)
    return sum(issubclass(warning.category, NormalizationWarning) for warning in caught)


def test_a_module_of_timm_is_explained_as_by_its_name() -> None:
    network = timm.create_model("resnet18")
    named = Classifier("timm/resnet18", weights=None)
    named.network.load_state_dict(network.state_dict())
    image = torch.rand(2, 3, 64, 64)
    want = named(image)
    for module in (network, nn.DataParallel(network)):
        given = Classifier(module)
        assert torch.equal(given(image), want)
        for setting in ("input_size", "interpolation", "crop_fraction"):
            assert getattr(given, setting) == getattr(named, setting)
    assert Classifier(network, mean=0, std=1).mean.tolist() == [0, 0, 0]
    assert said(network) == 0


def test_what_normalizes_before_a_network_of_timm_is_not_doubled() -> None:
    network = timm.create_model("test_resnet")
    for module in (nn.Sequential(Own(), network), WithBuffers(network)):
        classifier = Classifier(module)
        assert (classifier.mean == 0).all()
        assert (classifier.std == 1).all()
        assert classifier.input_size == (160, 160)
        assert said(module) == 0


def test_several_networks_that_differ_give_nothing() -> None:
    pair = nn.ModuleList([timm.create_model("test_resnet"), timm.create_model("test_efficientnet")])
    pair[1].pretrained_cfg["mean"] = (0.1, 0.1, 0.1)
    assert said(nn.Sequential(nn.Sequential(*pair)), target_layer="0.0") == 1


def test_a_module_that_shows_no_normalization_warns_once() -> None:
    bare = torchvision.models.squeezenet1_1()
    with pytest.warns(NormalizationWarning, match=r"SqueezeNet carries no mean and std.*`mean=`.*mean=0, std=1"):
        Classifier(bare)
    assert said(bare) == said(small()) == said(nn.Sequential(nn.Identity(), small())) == 1
    assert said(small(), mean=0, std=1) == said(small(), mean=0.5) == 0
    assert said(nn.Sequential(nn.BatchNorm2d(3), *small())) == 0
    assert said(nn.Sequential(Own(), *small())) == said(WithBuffers(small())) == 0
    assert Classifier(small(), mean=0.5, std=[0.1, 0.2, 0.3]).mean.tolist() == [0.5] * 3


def test_a_layer_may_be_the_module_itself() -> None:
    network = small()
    classifier = Classifier(network, target_layer=network[1], input_size=8)
    assert classifier.target_layers == ("1",)
    assert Classifier(network, target_layer=[network[0], "1"], input_size=8).target_layers == ("0", "1")
    image = torch.rand(2, 3, 8, 8)
    for module, name in ((network[0], "0"), ([network[0], "1"], ["0", "1"])):
        explainer = GradCAM(layer=module)
        assert torch.equal(explainer(classifier, image).saliency, GradCAM(name)(classifier, image).saliency)
        assert explainer.settings() == GradCAM(name).settings() == {"layer": name}
        assert not list(explainer.parameters())
    for stranger in (nn.Conv2d(3, 4, 3), network):
        with pytest.raises(ValueError, match="Expected a layer of the network, but the"):
            GradCAM(layer=stranger)(classifier, image)
        with pytest.raises(ValueError, match="Expected a layer of the network, but the"):
            Classifier(network, target_layer=stranger)
    pair = copy.deepcopy(nn.ModuleList([classifier, GradCAM(layer=network[0])]))
    assert pair[1](pair[0], image).saliency.shape == (2, 1, 8, 8)


def test_targets_of_every_form_are_the_same() -> None:
    classifier = Classifier(small(), target_layer="1", input_size=8, class_names=["a", "b", "c"])
    image = torch.rand(2, 3, 8, 8)
    want = OptiCAM(max_iter=2)(classifier, image, torch.tensor([1, 1])).saliency
    for target in ([1, 1], (1, 1), ["b", "b"], ["b", 1], 1, "b"):
        assert torch.equal(OptiCAM(max_iter=2)(classifier, image, target).saliency, want)  # type: ignore[arg-type]


def flags(network: nn.Module) -> tuple[list[bool], list[bool]]:
    return [m.training for m in network.modules()], [p.requires_grad for p in network.parameters()]


def test_a_module_gets_its_flags_back() -> None:
    network = small().train()
    network[0].requires_grad_(False)
    network[1].eval()
    before = flags(network)
    with Classifier(network, input_size=8) as classifier:
        assert classifier.network is network
        assert not any(map(any, flags(network)))
    assert flags(network) == before
    with pytest.raises(RuntimeError, match="stop"), Classifier(network, input_size=8):
        raise RuntimeError("stop")
    assert flags(network) == before
    for wrong in ({"target_layer": "7"}, {"num_classes": 9}, {"mean": [2, 2, 2]}):
        with pytest.raises(ValueError, match="Expected|Unknown"):
            Classifier(network, input_size=8, **wrong)  # type: ignore[arg-type]
        assert flags(network) == before
    classifier = Classifier(network, input_size=8)
    classifier.release()
    classifier.release()
    assert flags(network) == before


def test_a_network_of_several_classifiers_gets_the_flags_back_that_it_had_before_the_first() -> None:
    network = small().train()
    network[0].requires_grad_(False)
    before = flags(network)
    first = Classifier(network, input_size=8)
    again = Classifier(nn.Sequential(nn.Identity(), network), input_size=8)  # a cell that is run again
    with pytest.raises(ValueError, match="Unknown layer"):
        Classifier(network, input_size=8, target_layer="7")
    first.check_frozen()  # one that fails does not thaw it
    again.release()
    assert flags(network) == before
    first.release()
    assert flags(network) == before
    network.eval()  # what its owner does between two classifiers counts
    before = flags(network)
    Classifier(network, input_size=8).release()
    assert flags(network) == before


NETS = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, classes=3):
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))

def wants(classes): return Net(classes)
def number(): return 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "people_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("people_nets", None)


def test_a_network_of_ones_own_is_named_by_its_import_path(own: Path) -> None:
    for name in ("people_nets.Net", "people_nets:Net"):
        classifier = Classifier(name, weights=None, mean=0, std=1, input_size=8)
        assert classifier.describe()["classifier"] == name
        assert (classifier.num_classes, classifier.class_names, classifier.target_layers) == (3, None, ("1",))
    torch.save(classifier.network.state_dict(), own / "net.pth")
    again = Classifier("people_nets.Net", str(own / "net.pth"), mean=0, std=1, input_size=8)
    assert again.weight_hash() == classifier.weight_hash()


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("people_nots.Net", ImportError, "no module 'people_nots'. Run the command in its folder"),
        ("people_nets.Nut", ImportError, "Expected 'Nut' in 'people_nets', .* The nearest are: 'Net'"),
        ("people_nets.wants", TypeError, "it needs arguments"),
        ("people_nets.number", TypeError, "but it made int"),
        ("people_nets.nn", TypeError, "but it is module"),
    ],
)
def test_what_makes_no_network_is_told(own: Path, name: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Classifier(name)


def test_a_file_never_names_code_to_be_run(own: Path) -> None:
    torch.save({"optcam_pl": {"network": "people_nets.Net"}, "state_dict": {"w": torch.ones(1)}}, own / "a.ckpt")
    with pytest.raises(ValueError, match="are of your own network 'people_nets.Net': name it as `network`, too"):
        Classifier(weights=own / "a.ckpt")
    assert "people_nets" not in sys.modules
