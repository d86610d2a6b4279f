"""What `chunk_size` "auto" means: chosen from memory and speed, once for a run, and kept when the run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from explainer_cases import tiny_cnn

import optcam_pl
from optcam_pl import SaliencyTask
from optcam_pl.cli import main
from optcam_pl.explainers import RISE, AblationCAM, Explainer, ExtremalPerturbation, FinerCAM, GradCAM, ScoreCAM
from optcam_pl.explainers import chunk_size as module
from optcam_pl.explainers.chunk_size import Probe, automatic, choose, decided, images_in_pass
from optcam_pl.metrics import Insertion
from optcam_pl.runs.files import RunFolderError
from optcam_pl.runs.manifest import FingerprintMismatch
from optcam_pl.runs.rows import read_rows
from optcam_pl.runs.run_folder import Plan, RunFolder

TINY = str(Path(__file__).parents[1] / "conf" / "tiny.yaml")
CPU = torch.device("cpu")
of_tensorboard = pytest.mark.filterwarnings(
    # tensorboard's protobuf classes and torch's own writer, https://github.com/pytorch/pytorch/issues/134958
    "ignore::DeprecationWarning",
)


class Device(Probe):
    """A device that takes a second for up to `flat` images and holds `room` of them."""

    def __init__(self, flat: int = 64, room: int = 10**6, free: int = 10**6) -> None:
        self.flat, self.room, self._free = flat, room, free
        self.asked: list[int] = []

    def free(self) -> int:
        return self._free

    def measure(self, count: int) -> tuple[float, int]:
        self.asked.append(count)
        if count > self.room:
            raise torch.OutOfMemoryError
        return max(1.0, count / self.flat), count


@pytest.mark.parametrize(
    ("device", "number"),
    [
        (Device(flat=64), 64),  # beyond, passes are no faster
        (Device(flat=1), 8),  # they never get faster
        (Device(flat=10**6), 1024),  # they always do
        (Device(flat=10**6, free=200), 64),  # 128 would take more than half
        (Device(flat=10**6, free=1), 8),
        (Device(flat=10**6, room=40), 32),  # memory was less than it seemed
        (Device(flat=10**6, room=3), 8),  # what `Chunks` then halves
    ],
)
def test_the_number_is_where_passes_stop_to_get_faster_or_memory_ends(device: Device, number: int) -> None:
    assert choose(device) == number
    assert max(device.asked) <= 2 * number


def test_a_setting_is_itself_and_auto_what_is_decided() -> None:
    classifier, image = tiny_cnn(), torch.rand(2, 3, 16, 16)
    assert images_in_pass(7, classifier, image) == 7
    on_cpu = images_in_pass("auto", classifier, image)
    assert on_cpu == automatic(classifier, (16, 16), CPU)
    with decided(3):
        assert images_in_pass("auto", classifier, image) == 3
        with decided(None):
            assert images_in_pass("auto", classifier, image) == on_cpu
        assert images_in_pass(7, classifier, image) == 7


def test_a_gpu_is_asked_once_for_a_network_and_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter([32, 128, 512])
    monkeypatch.setattr(module, "_CudaProbe", lambda *_: Device(flat=next(made)))
    gpu, one, other = torch.device("cuda", 0), tiny_cnn(), tiny_cnn()
    assert [automatic(one, (16, 16), gpu) for _ in range(3)] == [32, 32, 32]
    assert automatic(other, (16, 16), gpu) == 128
    assert automatic(one, (32, 32), gpu) == 512
    assert automatic(one, (16, 16), gpu) == 32


@pytest.mark.parametrize(
    "make",
    [ScoreCAM, AblationCAM, lambda **given: RISE(num_masks=20, **given), lambda **given: FinerCAM(ScoreCAM(**given))],
)
def test_maps_of_auto_are_those_of_its_number(make: Callable[..., Explainer]) -> None:
    classifier, image = tiny_cnn(), torch.rand(2, 3, 16, 16)
    number = automatic(classifier, (16, 16), CPU)
    assert torch.equal(
        make(chunk_size="auto")(classifier, image, 1).saliency, make(chunk_size=number)(classifier, image, 1).saliency
    )
    with decided(4):
        four = make(chunk_size="auto")(classifier, image, 1).saliency
    assert torch.equal(four, make(chunk_size=4)(classifier, image, 1).saliency)


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        ("Auto", ValueError, "Expected `chunk_size` to be a positive integer or auto, but got 'Auto'."),
        (0, ValueError, "Expected `chunk_size` to be a positive integer, but got 0."),
        (-1, ValueError, "Expected `chunk_size` to be a positive integer, but got -1."),
        (1.5, TypeError, "Expected `chunk_size` to be an integer, but got 1.5."),
        (None, TypeError, "Expected `chunk_size` to be an integer, but got None."),
    ],
)
def test_other_values_are_refused_everywhere(value: Any, kind: type[Exception], words: str) -> None:
    classifier, image = tiny_cnn(), torch.rand(1, 3, 16, 16)
    uses: list[Callable[[], object]] = [
        lambda: ScoreCAM(chunk_size=value),
        lambda: AblationCAM(chunk_size=value),
        lambda: RISE(chunk_size=value),
        lambda: SaliencyTask(classifier, GradCAM(), chunk_size=value),
        lambda: optcam_pl.evaluate(classifier, GradCAM(), image, chunk_size=value),
    ]
    for use in uses:
        with pytest.raises(kind) as refused:
            use()
        assert str(refused.value) == words


def test_methods_that_keep_a_gradient_want_a_number() -> None:
    with pytest.raises(TypeError, match="`chunk_size` to be an integer, but got 'auto'"):
        ExtremalPerturbation(chunk_size="auto")


def test_evaluate_shows_the_number_only_where_it_was_chosen() -> None:
    classifier, image = tiny_cnn(), torch.rand(2, 3, 16, 16)
    number = automatic(classifier, (16, 16), CPU)
    methods = {"auto": ScoreCAM(chunk_size="auto"), "given": ScoreCAM(chunk_size=number)}
    result = optcam_pl.evaluate(classifier, methods, image, target=1)
    settings = {name: run.manifest["settings"].get("chunk_size") for name, run in result.runs.items()}
    assert settings == {"auto": number, "given": None}
    assert [row.o for row in result.rows["auto"]] == [row.o for row in result.rows["given"]]
    curves = optcam_pl.evaluate(classifier, GradCAM(), image, [Insertion(8)], target=1, chunk_size="auto")
    assert curves.runs["GradCAM"].manifest["fingerprint"]["chunk_size"] == number


def run(*words: str, stage: str = "test") -> int:
    """Over the seven photographs in four blocks."""
    common = ["--config", TINY, "--data.root=photos", "--data.batch_size=2", "--run_dir=run"]
    return main([stage, *common, *words])


@pytest.fixture
def here(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert photos.is_dir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def probe_says(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr("optcam_pl.tasks.saliency.automatic", lambda *_: number)


AUTO = ["--model.explainer=GradCAM", "--model.metrics=[Insertion]", "--model.chunk_size=auto"]


@of_tensorboard
@pytest.mark.usefixtures("here")
def test_a_run_that_goes_on_keeps_the_number_of_its_first_start(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sizes: set[int] = set()
    forward = optcam_pl.Classifier.forward

    def counting(self: optcam_pl.Classifier, image: torch.Tensor) -> torch.Tensor:
        sizes.add(len(image))
        return forward(self, image)

    monkeypatch.setattr(optcam_pl.Classifier, "forward", counting)
    probe_says(monkeypatch, 6)
    assert run(*AUTO, "--shard=1/2") == 0
    assert "".join(capfd.readouterr()).count("chunk_size auto: 6 images in a pass") == 1
    assert max(sizes) == 6
    probe_says(monkeypatch, 24)  # another GPU, or another moment
    assert run(*AUTO, "--shard=2/2") == 0
    assert "".join(capfd.readouterr()).count("chunk_size auto: 6 images in a pass") == 1
    assert max(sizes) == 6
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert manifest["fingerprint"]["chunk_size"] == manifest["settings"]["chunk_size"] == 6
    assert [row.index for row in read_rows("run")] == list(range(7))
    with pytest.raises(FingerprintMismatch, match="chunk_size: 6 there, nothing now"):
        run(*AUTO[:2])


@of_tensorboard
@pytest.mark.usefixtures("here")
def test_an_explainers_auto_is_decided_by_the_run_and_numbers_are_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    probe_says(monkeypatch, 4)
    assert run("--model.explainer=ScoreCAM", "--model.explainer.chunk_size=auto", "--data.limit=2") == 0
    auto = json.loads(Path("run/manifest.json").read_text())["fingerprint"]
    assert (auto["chunk_size"], auto["explainer"]["chunk_size"]) == (4, "auto")
    Path("run").rename("auto")
    assert run("--model.explainer=ScoreCAM", "--model.explainer.chunk_size=4", "--data.limit=2") == 0
    given = json.loads(Path("run/manifest.json").read_text())["fingerprint"]
    assert "chunk_size" not in given
    assert [row.o for row in read_rows("run")] == [row.o for row in read_rows("auto")]


@of_tensorboard
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("value", ["Auto", "0", "1.5"])
def test_the_command_says_what_it_takes(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((ValueError, SystemExit)) as refused:
        run(f"--model.chunk_size={value}")
    said = str(refused.value) + capsys.readouterr().err
    assert "chunk_size" in said
    assert value in said


def test_only_the_first_process_chooses(tmp_path: Path) -> None:
    from optcam_pl.runs.processes import Processes

    plan = Plan((0,), frozenset(), 0, 0, {"fingerprint": {"chunk_size": 32}})
    second = RunFolder(tmp_path, processes=Processes(1, 2, store=object()))

    def never(_: Any) -> Any:
        pytest.fail("chosen")

    assert second.prepare(never, 7, 2, lambda _: set(), lambda _: plan).manifest["fingerprint"]["chunk_size"] == 32


def test_a_probe_that_fails_ends_all_processes(tmp_path: Path) -> None:
    told: list[Any] = []

    def failing(_: Any) -> Any:
        raise RunFolderError("no memory at all")

    first = RunFolder(tmp_path)
    with pytest.raises(RunFolderError, match="no memory at all"):
        first.prepare(failing, 7, 2, lambda _: set(), lambda plan: told.append(plan))
    first.close()
    assert told == [None]
