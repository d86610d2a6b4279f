"""Mistakes that users make, by number: each ends in one clear paragraph, without anybody's traceback.

The numbers up to 8, and 16 to 30, are of the command line; those from 9 on that a notebook makes are of Python.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import optcam_pl
from optcam_pl.cli import main
from optcam_pl.explainers import GradCAM, OptiCAM
from optcam_pl.network.classifier import Classifier

TINY = str(Path(__file__).resolve().parents[1] / "conf" / "tiny.yaml")
OWN = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
def wants(classes):
    return Net()
"""
Tell = Callable[..., str]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's protobuf classes


@pytest.fixture
def tell(photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Tell]:
    """Types a command in a folder with photographs, as the console does; returns what it says of a mistake."""
    monkeypatch.chdir(photos.parent)
    sys.modules.pop("my_net", None)  # another test's, of another folder
    others = [entry for entry in sys.path if not Path(entry, "my_net.py").exists()]  # folders of other tests' commands
    monkeypatch.setattr(sys, "path", others)
    files = sorted(photos.rglob("*.png"))
    Path("flat").mkdir()
    Path("empty").mkdir()
    for number in range(3):
        shutil.copy(files[number], f"flat/{number}.png")
    Path("my_net.py").write_text(OWN)

    def type_(*words: str, code: int = 2, tiny: bool = True) -> str:
        given = ["--config", TINY, "--data.root=photos"] if tiny else []
        monkeypatch.setattr(sys, "argv", ["optcam", words[0], *given, *words[1:]])
        before = set(Path().rglob("*"))
        try:
            ended = main()
        except SystemExit as stopped:
            ended = stopped.code
        told = capsys.readouterr().err
        assert ended == code, told
        assert "Traceback" not in told
        assert "NoneType" not in told
        if code == 2:
            assert told.startswith("optcam")
            assert len(told.splitlines()) <= 2 or "made with other settings" in told, told
            assert set(Path().rglob("*")) == before, "a start that failed leaves nothing"
        return told

    yield type_
    sys.modules.pop("my_net", None)


def yaml(text: str) -> list[str]:
    Path("later.yaml").write_text(text)
    return ["--config", "later.yaml"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        # 1
        (["--data.rot=photos"], "ImageFolder (`data`) has no setting 'rot'. The nearest are: 'root'"),
        (["--modl.target=3"], "There is no option `--modl.target`. The nearest are: 'model'"),
        (["--trainer.max_epocs=3"], "The nearest are: 'trainer.max_epochs'"),
        (["--model.explainer.max_iters=5"], "has no setting 'max_iters'. The nearest are: 'max_iter'"),
        (["--model.explainer.max_iters=5"], "All of them: layer, objective, normalizer, max_iter, lr"),
        (["--model.classifier.netwrk=x"], "Classifier (`model.classifier`) has no setting 'netwrk'"),
        (["--data.root"], "Expected a value after `--data.root`"),
        (["-c"], "Expected a value after `-c`"),
        # 3
        (["--model.explainer=GradCam"], "but got 'GradCam'. The nearest are: 'GradCAM'"),
        (["--model.explainer=grad_cam"], "The nearest are: 'GradCAM'"),
        (
            ["--model.explainer=none.yaml"],
            "Expected `model.explainer` to be a class or a file of one, but there is no file 'none",
        ),
        (
            ["--model.weights_from=flat"],
            "Expected `weights_from` to be the run folder of an `optcam fit`, but: flat is not",
        ),
        (["--model.explainer=mine.Foo"], "there is no module 'mine'. Run the command in the module's folder"),
        (["--model.classifier.scores=mine.lead"], "`model.classifier.scores` to be a class or a function that Python"),
        (["--model.classifier.scores=mine.lead"], "but got 'mine.lead', and there is no module 'mine'."),
        (["--model.classifier.scores=my_net.want"], "the module 'my_net' has no 'want'. The nearest are: 'wants'"),
        (["--model.explainer=optcam_pl.explainers.Rize"], "has no 'Rize'. The nearest are: 'RISE'"),
        (["--model.explainer=optcam_pl.data.Shapes"], "to be an Explainer, but got 'optcam_pl.data.Shapes'"),
        (["--data=ImageFoldr"], "The nearest are: 'ImageFolder'"),
        (["--model=SaliencyTsk"], "The nearest are: 'SaliencyTask'"),
        (["--trainer.callbacks=[MapWritr]"], "The nearest are: 'MapWriter'"),
        (["--trainer.logger=CSVLoggr"], "The nearest are: 'CSVLogger'"),
        (["--trainer.logger=CSVLogger"], "CSVLogger (`trainer.logger`) needs `--trainer.logger.save_dir`"),
        (
            ["--trainer.callbacks=[{class_path: MapWriter, init_args: {mapz: true}}]"],
            "MapWriter (`trainer.callbacks`) has no setting 'mapz'. The nearest are: 'maps'",
        ),
        # 4
        (["--model.metrics=[AverageDrp]"], "The nearest are: 'AverageDrop'"),
        (
            ["--model.metrics=[{class_path: Insertion, init_args: {step: 3}}]"],
            "Insertion (`model.metrics`) has no setting 'step'. The nearest are: 'steps'",
        ),
        (["--model.metrics=[AD]"], "got 'AD': that is the table's word for AverageDrop."),
        (["--model.metrics=AverageDrop"], "A list is written in brackets: [AverageDrop]."),
        # 5
        (["--model.explainer.layer=stages.7"], "Unknown layer 'stages.7' of ResNet. The nearest are: 'layer4.0'"),
        (["--model.classifier.target_layer=layr4"], "The nearest are: 'layer4'"),
        # 8
        (["--model.target=5000"], "a class in 0..999, but got 5000"),
        (["--model.target=-1"], "a class in 0..999, but got -1"),
        (["--model.target=tabby"], "'tabby' is number 281 of ImageNet's classes"),
        (["--model.target=predictd"], "one of label, predicted, second, least or an integer, but got 'predictd'"),
        # 16
        (["--trainer.accelerator=gppu"], "Available names are: "),
        (["--trainer.precision=16-tru"], "The nearest are: '16-true'"),
        (["--trainer.devices=two"], "`devices`"),
        # 19
        (["--data.root=phots"], "Expected `root` to be a folder, but there is no folder 'phots'"),
        (["--data.root=empty"], "in the class folders of `root`, 'empty'"),
        (["--data.root=flat"], "if its images have no labels, use ImagePaths"),
        (["--data.root=photos/n01440764"], "for one class, give its parent folder"),
        (["--data.root=flat/0.png"], "Expected `root` to be a folder, but 'flat/0.png' is a file"),
        (
            ["--data=CSVImages", "--data.file=labels.csv"],
            "`file` to be a file of images and labels, but 'labels.csv' does",
        ),
        (["--data=ImagePaths", "--data.paths=phots"], "`paths` to be files, folders or patterns, but there is no"),
        # 20
        (["--data=ImagePaths", "--data.paths=flat/0.png", "--model.target=label"], "set `target` to predicted"),
        # 21
        (["--run_dir=flat"], "other files: 0.png, 1.png, 2.png."),
        (["--resume=require"], "Expected `run_dir` with `resume` require"),
        (["--resume=maybe"], "one of auto, never, require, but got 'maybe'"),
        # 24
        (["--data.batch_size=0"], "Expected `batch_size` to be a positive integer, but got 0."),
        (["--data.batch_size=two"], "Expected `data.batch_size` to be an integer, but got 'two'."),
        (["--data.limit=-1"], "Expected `limit` to be a positive integer, but got -1."),
        (["--trainer.limit_test_batches=-3"], "invalid value -3 for limit_test_batches"),
        (["--threads=two"], "Expected `threads` to be an integer, but got 'two'."),
        (["--model.classifier.link=sigmiod"], "identity, but got 'sigmiod'. The nearest are: 'sigmoid'"),
        (["--model.classifier.scores=Regression", "--model.classifier.scores.direction=upp"], "keep, but got 'upp'."),
        (["--model.classifier.scores=Binray"], "the name of a class, but got 'Binray'. The nearest are: 'Binary'"),
        (["--model.explainer.objective=foo"], "one of mask, diff, io_mask, io_diff, contrast, but got 'foo'"),
        # 29
        (["--model.classifier.network=my_net.Nett"], "The nearest are: 'Net'"),
        (["--model.classifier.network=my_net.py:Nett"], "The nearest are: 'Net'"),
        (["--model.classifier.network=my_nett.Net"], "or name the file: folder/my_net.py:Net"),
        (["--model.classifier.network=nets/my_net.py:Net"], "there is no file 'nets/my_net.py'"),
        (["--model.classifier.network=my_net.py:wants"], "Write a function that passes them."),
        (["--model.classifier.network=resnet50"], "or file (my_net.py:Net), but got 'resnet50'"),
        (["--model.classifier.network=timm/resnet5"], "Unknown network 'resnet5' of timm. The nearest are: 'resnet50'"),
        # a word without an option
        (["flat/1.png"], "Expected options of the form --KEY VALUE, but got the word 'flat/1.png'"),
    ],
)
def test_settings(words: list[str], told: str, tell: Tell) -> None:
    assert told in tell("test", *words)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model:\n  init_args:\n    explainer: {init_args: {max_iters: 5}}", "has no setting 'max_iters'"),
        (
            "model: {init_args: {targett: 5}}",
            "SaliencyTask (`model`) has no setting 'targett'. The nearest are: 'target'",
        ),
        ("modle: {init_args: {target: 5}}", "The nearest are: 'model'"),
        ("trainer: {max_epoch: 5}", "The nearest are: 'trainer.max_epochs'"),
        ("model: [", "Expected the config 'later.yaml' to be YAML, but in line 1"),
        ("model:\n\tclass_path: x", "in line 2: found character '\\t'"),
        ("hello", "to be a mapping (`model: ...`), but got 'hello'"),
    ],
)
def test_2_settings_in_a_config(text: str, told: str, tell: Tell) -> None:
    assert told in tell("test", *yaml(text))


@pytest.mark.parametrize("words", [["compare"], ["sweep", "--grid", "model.explainer.lr=1,2"]])
def test_2_a_config_that_is_no_yaml_is_told_alike_by_every_command(words: list[str], tell: Tell) -> None:
    config = yaml("model: {class_path: SaliencyTask\ndata: x")
    told = tell("test", *config)
    assert "Expected the config 'later.yaml' to be YAML, but in line 2: " in told
    assert tell(*words, *config).splitlines()[0] == told.splitlines()[0]
    Path("deep").mkdir()
    Path("deep/later.yaml").write_text("model: {class_path: SaliencyTask\ndata: x")
    assert "Expected the config 'deep/later.yaml' to be YAML, but in line 2: " in tell("test", "-c", "deep/later.yaml")
    Path("later.yaml").write_bytes(b"\xff\xfe\x00")
    assert "Expected the config 'later.yaml' to be YAML" in tell(*words, *config)


def test_6_a_config_or_a_command_that_does_not_exist(tell: Tell) -> None:
    assert "no file 'dmo' in" in (told := tell("test", "--config", "dmo", tiny=False))
    assert "The nearest names are: 'demo'" in told
    Path("demos.yaml").touch()
    assert "The nearest names are: 'demos.yaml', 'demo'" in tell("test", "--config", "demos.yml", tiny=False)
    assert "to be a file, but 'photos' is a folder" in tell("test", "--config=photos", tiny=False)
    told = tell("test", "--config", "explainer/rise", tiny=False)
    assert (
        "Expected `--config` to be the settings of a run, but 'explainer/rise' is one class with its settings" in told
    )
    assert "explainer/rise.yaml`, or `--explainers rise` of `optcam compare`" in told
    assert "no command 'tset'. The nearest are: 'test'" in tell("tset", tiny=False)
    compare = ("compare", "--explainers")
    assert "no file 'nope.yaml'" in tell(*compare, "nope.yaml")
    assert "got 'GradCam'. The nearest are: 'GradCAM'" in tell(*compare, "GradCam")


def test_7_configs_in_the_wrong_order(tell: Tell) -> None:
    own = yaml("model: {init_args: {explainer: {class_path: OptiCAM, init_args: {max_iter: 5}}}}")
    told = tell("test", *own, "--config", TINY, tiny=False)
    assert "name the class of `model` (class_path: ...) before its settings" in told
    late = yaml("data: {class_path: ImagePaths, init_args: {paths: [flat]}}")
    told = tell("test", *late, "--model.explainer=FakeCAM", code=0)
    assert "ImageFolder of an earlier config is replaced by ImagePaths, and its settings are dropped: {'root'" in told
    assert "FakeCAM" not in told  # this change was asked for


def test_16_a_gpu_that_is_not_there(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told = tell("test", "--trainer.accelerator=gpu")
    assert "This torch sees no GPU here: `--trainer.accelerator auto` (the default)" in told


def test_17_an_extra_that_is_not_installed(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    for package, words in {
        "captum": ["--model.explainer=CaptumExplainer", "--model.explainer.method=Saliency"],
        "datasets": ["--data=HuggingFaceDataset", "--data.path=flat"],
        "transformers": ["--model.classifier.network=transformers/nobody"],
    }.items():
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.setitem(sys.modules, f"{package}.attr", None)
        assert f"pip install optcam_pl[{package}]" in tell("test", *words).replace('"', "").replace("'", "")


def test_18_weights_of_something_else(tell: Tell) -> None:
    torch.save(timm.create_model("test_vit").state_dict(), "vit.pth")
    Path("junk.pth").write_bytes(b"hello")
    weights = "--model.classifier.weights="
    assert "another architecture than timm/test_resnet" in tell("test", f"{weights}vit.pth")
    assert "PyTorch file: junk.pth (it does not begin as one)" in tell("test", f"{weights}junk.pth")
    assert "`default` is the word for the source's own" in tell("test", f"{weights}defalt")


def test_20_labels_out_of_range_or_missing(tell: Tell) -> None:
    Path("l.csv").write_text("path,label\nflat/0.png,3\nflat/1.png,9999\n")
    words = ["--data=CSVImages", "--data.file=l.csv", "--data.root=."]
    assert "so from 0 to 999, but got the label 9999" in tell("test", *words, "--model.target=label")
    Path("l.csv").write_text("path,name\nflat/0.png,3\n")
    assert "lacks the columns ['label']; it has ['path', 'name']" in tell("test", *words, "--model.target=label")


def test_22_going_on_with_another_explainer(tell: Tell) -> None:
    fake = ("test", "--model.explainer=FakeCAM", "--run_dir=r")
    tell(*fake, code=0)
    told = tell("test", "--model.explainer=GradCAM", "--run_dir=r")
    assert 'explainer.class: "FakeCAM" there, "GradCAM" now' in told
    assert "Give this one another: `--run_dir`" in told


def test_23_a_photograph_without_permission(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Image.open

    def refuse(file: str, **kwargs: Any) -> Image.Image:
        if file.endswith("photo 1.png"):
            raise PermissionError(13, "Permission denied", file)
        return opened(file, **kwargs)

    monkeypatch.setattr("optcam_pl.photos.decode.Image.open", refuse)
    told = tell("test", "--model.explainer=FakeCAM")
    assert "Cannot read the image 'photos/n01440764/photo 1.png'" in told
    assert "the system says: Permission denied" in told
    assert "--data.on_error record" in told
    assert "1 of 7 images could not be read" in tell("test", "--data.on_error=record", code=3)
    workers = tell("test", "--model.explainer=FakeCAM", "--data.num_workers=1")
    assert told == workers  # which would pass on a whole traceback


def test_29_a_network_of_ones_own(tell: Tell) -> None:
    Path("nets").mkdir()
    shutil.copy("my_net.py", "nets/my_other_net.py")
    settings = ["--model.classifier.mean=0", "--model.classifier.std=1", "--model.explainer=FakeCAM"]
    for network in ("my_net.Net", "my_net.py:Net", "nets/my_other_net.py:Net"):
        assert "error" not in tell("test", f"--model.classifier.network={network}", *settings, code=0)
        del sys.modules[network.partition(":")[0].removesuffix(".py").removesuffix(".Net").rpartition("/")[2]]


def test_30_no_config(tell: Tell) -> None:
    for command in ("fit", "test", "predict"):
        assert "Begin with one that is part of the package, `--config demo`" in tell(command, tiny=False)
    assert "--config demo" in tell("compare", "--explainers", "GradCAM", tiny=False)
    data = yaml("data: {class_path: Shapes}")
    assert "Expected the configs to say both `model`" in tell("test", *data, tiny=False)


def test_several_photographs_of_a_shell_pattern_are_all_taken(tell: Tell) -> None:
    words = ["--data=ImagePaths", "--data.paths", "flat/0.png", "flat/1.png", "--model.explainer=FakeCAM"]
    tell("predict", *words, "--run_dir=r", code=0)
    assert len(list(Path("r/maps").glob("*.npz"))) == 2


# From Python ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier("timm/test_resnet", weights=None, input_size=64)


IMAGE = torch.full((1, 3, 64, 64), 0.5)


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (torch.linspace(-2, 2, 64 * 64 * 3).reshape(1, 3, 64, 64), "normalized"),  # 9
        (IMAGE * 255, "255"),  # 10
        ((IMAGE * 255).to(torch.uint8), "255"),  # 11
        (np.zeros((64, 64, 3), np.uint8), "ndarray"),  # 12
        (Image.new("RGB", (64, 64)), "Image"),  # 13
        ("photo.jpg", "str"),  # 13
        (IMAGE[0], "(B,3,H,W)"),  # 14
    ],
    ids=["normalized", "255", "uint8", "numpy", "pil", "path", "batch"],
)
def test_9_to_14_images(image: object, told: str, classifier: Classifier) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        GradCAM()(classifier, image)  # type: ignore[arg-type]
    assert told.casefold() in str(raised.value).casefold()


def test_15_a_network_in_training_mode_is_explained_in_evaluation_mode() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    with Classifier(network.train(), mean=0, std=1) as frozen:
        GradCAM(layer="1")(frozen, torch.rand(2, 3, 16, 16))
        assert not network.training
    assert network.training


def test_8_and_26_targets(classifier: Classifier) -> None:
    with pytest.raises(ValueError, match="0..999"):
        GradCAM()(classifier, IMAGE, 5000)
    with pytest.raises(ValueError, match="^Unknown class 'tabyb'. The nearest are: 'tabby'"):
        GradCAM()(classifier, IMAGE, "tabyb")


def test_25_a_bare_module() -> None:
    with pytest.raises(TypeError, match="Classifier"):
        GradCAM()(nn.Sequential(nn.Conv2d(3, 4, 3)), IMAGE)  # type: ignore[arg-type]


def test_27_and_28_a_module_as_layer_and_shared_settings(classifier: Classifier) -> None:
    GradCAM(layer=classifier.network.layer4)(classifier, torch.rand(1, 3, 64, 64))  # type: ignore[arg-type]
    assert OptiCAM(selectivity=2).selectivity == 2
    with pytest.raises(
        TypeError, match=r"objects of Explainer, but got <class .*\. Make one of the class: GradCAM\(\)"
    ):
        optcam_pl.evaluate(classifier, GradCAM, IMAGE)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"but got 'GradCAM'\. Make one of the class: GradCAM\(\)"):
        optcam_pl.evaluate(classifier, "GradCAM", IMAGE)  # type: ignore[arg-type]
