"""The sanity check: similarities against scipy and closed forms, the cascade, the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import nn
from torch.nn.utils import prune

from optcam_pl import Classifier, GradCAM
from optcam_pl.cli import main
from optcam_pl.data import ImagePaths
from optcam_pl.evaluate.sanity import (
    SIMILARITIES,
    SanityResult,
    cascade,
    check,
    hog_similarity,
    rank_correlation,
    similarities,
    stages,
)
from optcam_pl.runs.files import RunFolderError

TINY = str(Path(__file__).resolve().parents[1] / "conf" / "tiny.yaml")


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


def test_rank_correlation_equals_scipy_also_with_ties() -> None:
    ours = torch.rand(3, 1, 8, 8).mul(10).round() / 10
    theirs = torch.rand(3, 1, 8, 8)
    for absolute in (False, True):
        pairs = [[m.flatten().double().numpy() for m in pair] for pair in zip(ours, theirs, strict=True)]
        if absolute:
            pairs = [[abs(m - m.mean()) for m in pair] for pair in pairs]
        want = [spearmanr(*pair).statistic for pair in pairs]
        np.testing.assert_allclose(rank_correlation(ours, theirs, absolute), want, rtol=1e-9)
    assert rank_correlation(ours, torch.zeros_like(ours)).isnan().all()


def test_a_map_is_wholly_like_itself_and_unlike_another() -> None:
    pytest.importorskip("skimage")
    maps = torch.rand(2, 1, 64, 64)
    for name, value in similarities(maps, maps).items():
        torch.testing.assert_close(value, torch.ones(2, dtype=torch.float64), msg=name)
    for name, value in similarities(maps, torch.rand(2, 1, 64, 64)).items():
        assert value.max() < 0.6, name
    assert tuple(similarities(maps, maps)) == SIMILARITIES


@pytest.mark.parametrize("size", [(6, 6), (8, 15), (15, 40), (16, 31), (31, 31)])
def test_small_maps_have_smaller_cells(size: tuple[int, int]) -> None:
    hog = pytest.importorskip("skimage.feature").hog
    generator = torch.Generator().manual_seed(1)
    ours, theirs = (torch.rand(2, 1, *size, generator=generator) for _ in range(2))
    torch.testing.assert_close(hog_similarity(ours, ours), torch.ones(2, dtype=torch.float64))
    cell = [min(16, side // 2) for side in size]
    of = [[hog(m[0].double().numpy(), pixels_per_cell=cell, cells_per_block=(1, 1)) for m in maps]
          for maps in (ours, theirs)]  # fmt: skip
    want = [np.corrcoef(a, b)[0, 1] for a, b in zip(*of, strict=True)]
    np.testing.assert_allclose(similarities(ours, theirs)["hog"], want, rtol=1e-12)
    assert np.isfinite(want).all()


def test_images_that_are_too_small_or_cannot_be_read_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 6 x 6 pixels for the sanity check, .* but got 5 x 9"):
        similarities(torch.rand(1, 1, 5, 9), torch.rand(1, 1, 5, 9))
    Image.new("RGB", (9, 9)).save(tmp_path / "small.png")
    (tmp_path / "broken.png").write_text("this is no image")
    classifier = Classifier(network(), input_size=5)
    with pytest.raises(ValueError, match="but got 5 x 5. Give the data a larger `size`"):
        check(classifier, GradCAM(), ImagePaths(str(tmp_path / "small.png")), "predicted")
    broken = ImagePaths(str(tmp_path / "broken.png"), on_error="record", num_workers=0)
    with pytest.raises(ValueError, match="Expected images to check, but none of the 1 of images can be read"):
        check(classifier, GradCAM(), broken, "predicted")


def test_stages_go_from_the_head_down() -> None:
    names = [name for name, _ in stages(Classifier("torchvision/resnet18", weights=None).network)]
    assert names == ["fc", "layer4", "layer3", "layer2", "layer1", "bn1", "conv1"]
    names = [name for name, _ in stages(Classifier("timm/vit_tiny_patch16_224", weights=None).network)]
    assert names[:3] == ["head", "norm", "blocks.11"]
    assert names[-2:] == ["blocks.0", "patch_embed"]
    chosen = stages(network(), ["5", "0"])
    assert [name for name, _ in chosen] == ["5", "0"]


@pytest.mark.parametrize(("name", "message"), [("6", "Unknown stage '6'"), ("2", "stages with weights, but '2'")])
def test_stages_that_are_none_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stages(network(), [name])


def test_the_cascade_forgets_one_stage_after_the_other_and_leaves_the_network_as_it_is() -> None:
    trained = network()
    classifier = Classifier(trained, input_size=8)
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    changed = []
    torch.manual_seed(7)
    for name, forgetting in cascade(classifier):
        state = forgetting.network.state_dict()
        changed.append({key for key in state if key.endswith("weight") and not torch.equal(state[key], before[key])})
        assert name in ("5", "1", "0")
    assert changed == [{"5.weight"}, {"5.weight"}, {"5.weight", "0.weight"}]  # fresh normalization is what it was
    assert all(torch.equal(value, before[key]) for key, value in trained.state_dict().items())
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(1), drawn)  # nobody else's random numbers are used up
    again = [forgetting.network.state_dict()["5.weight"].clone() for _, forgetting in cascade(classifier)]
    assert all(torch.equal(weight, state["5.weight"]) for weight in again)


@pytest.mark.filterwarnings(
    # Lightning 2.6 calls what jsonargparse 5 removes; tensorboard's protobuf classes
    "ignore::DeprecationWarning",
)
def test_the_command_writes_and_prints_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("skimage")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "n01440764").mkdir(parents=True)
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((90, 80)).save(tmp_path / "photos" / "n01440764" / f"{i}.png")
    words = ["sanity", "--config", TINY, "--data.root=photos", "--stages", "fc", "layer4"]
    assert main([*words, "--model.explainer=FakeCAM", "--run_dir=fake"]) == 0
    fake = json.loads(Path("fake/sanity.json").read_text())
    assert fake["stages"] == ["fc", "layer4"]
    assert fake["images"] == 4
    assert fake["options"] == {}
    assert "FakeCAM(" not in capsys.readouterr().out
    assert fake["similarity"]["rank_correlation"] == pytest.approx([1, 1])  # it explains nothing
    assert main([*words, "--model.explainer=OptiCAM", "--model.explainer.max_iter=3"]) == 0
    folder = Path("logs/photos/OptiCAM/sanity_0")
    assert json.loads((folder / "sanity.json").read_text())["similarity"]["ssim"][1] < 1
    with Image.open(folder / "sanity.png") as figure:
        assert figure.size[0] > 300
    out = capsys.readouterr().out
    assert "up to stage" in out
    told = " ".join(out[out.rindex("up to stage") :].split())
    assert "; target: predicted; precision: 32-true; random_seed: 0; OptiCAM(objective=mask, " in told
    assert "max_iter=3, " in told
    assert "input: 64x64 stretch, bilinear; baseline: black" in told
    stored = SanityResult.load(folder)
    assert (stored.options["max_iter"], stored.settings["baseline"]) == (3, "black")
    assert stored.text() in out
    del fake["settings"], fake["options"]  # as an early version wrote it
    Path("fake/sanity.json").write_text(json.dumps(fake))
    assert SanityResult.load(Path("fake")).text().splitlines()[-1].startswith("layer4")
    with pytest.raises(ValueError, match="Unknown stage 'layer5'"):
        main([*words[:-1], "layer5", "--model.explainer=FakeCAM", "--run_dir=new"])
    assert not Path("new").exists()
    monkeypatch.setattr("optcam_pl.cli.sanity.check", lambda *_, **__: pytest.fail("the work comes after the check"))
    with pytest.raises(RunFolderError, match="Expected a folder without a result, but there is fake"):
        main([*words, "--model.explainer=FakeCAM", "--run_dir=fake"])
    Path("file").touch()
    with pytest.raises(RunFolderError, match="Cannot write into the folder file"):
        main([*words, "--model.explainer=FakeCAM", "--run_dir=file"])


def test_the_stages_of_a_wrapped_network_are_its_own() -> None:
    wrapped = nn.Sequential(nn.Identity(), nn.DataParallel(nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})))
    assert [name for name, _ in stages(wrapped)] == ["1.module.b", "1.module.a"]
    assert [name for name, _ in stages(nn.Sequential(nn.Sequential(nn.Linear(2, 2))))] == ["0.0"]


def test_a_layer_that_is_a_module_is_explained_in_the_copies_too() -> None:
    torch.manual_seed(0)
    net = network()
    classifier, image = Classifier(net, mean=0, std=1, input_size=8), torch.rand(2, 3, 8, 8)
    explainer, named = GradCAM(layer=net[2]), GradCAM(layer="2")
    explainer(classifier, image, 1)
    for _, forgetting in cascade(classifier):
        assert torch.equal(explainer(forgetting, image, 1).saliency, named(forgetting, image, 1).saliency)
    assert torch.equal(explainer(classifier, image, 1).saliency, named(classifier, image, 1).saliency)


def test_weights_of_which_a_layers_own_are_computed_are_forgotten_too() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    prune.l1_unstructured(network[0], "weight", 0.5)
    classifier = Classifier(network, mean=0, std=1, input_size=8)
    *_, (_, forgotten) = cascade(classifier)
    assert not torch.equal(forgotten.network[0].weight_orig, network[0].weight_orig)
