"""What only a GPU shows: captures, fast copies, autocast, memory that runs out, every explainer, a ddp run."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from explainer_cases import correlation, tiny_cnn, tiny_vit
from torch import Tensor, nn

from optcam_pl import Classifier, OptiCAM, ScoreCAM, explainers, kernels
from optcam_pl.explainers import CAM, Explainer, FinerCAM, GradCAM
from optcam_pl.explainers.batching import Chunks
from optcam_pl.explainers.chunk_size import automatic
from optcam_pl.maps import upsample
from optcam_pl.network.folding import Folded

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """Without TF32, whose rounding is a thousand times float32's."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    gc.collect()
    torch.cuda.empty_cache()  # for libraries and processes that take memory of their own
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def network() -> nn.Module:
    made = tiny_cnn(channels=16).network
    return made.eval()


def on_gpu(**settings: Any) -> Classifier:
    torch.manual_seed(1)
    return Classifier(network(), target_layer="4", mean=0.5, std=0.5, input_size=16, **settings).to("cuda")


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)).cuda()


def test_a_forward_pass_is_replayed_for_each_shape_with_the_numbers_of_a_plain_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain, fast = on_gpu(), on_gpu(speed="graph")
    with caplog.at_level(logging.WARNING), torch.no_grad():
        for image in (images(), images().flip(3), images(2), images()):
            torch.testing.assert_close(fast(image), plain(image), atol=1e-4, rtol=1e-4)
    assert not caplog.records  # no fallback


def test_what_a_replay_returned_is_not_overwritten_by_the_next() -> None:
    fast = on_gpu(speed="graph")
    with torch.no_grad():
        first = fast(images())
        kept = first.clone()
        fast(images().flip(2))
    assert torch.equal(first, kept)


@pytest.mark.parametrize("settings", [{}, {"preset": "fast"}, {"objective": "io_diff"}, {"baseline": "blur"}])
def test_opticam_by_replays_gives_the_maps_of_plain_iterations(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    explainer = OptiCAM(**{"max_iter": 15, **settings})
    with caplog.at_level(logging.WARNING):
        fast = on_gpu(speed="graph")
        ours = [explainer(fast, image, 1) for image in (images(), images().flip(3))]
        right = [explainer(on_gpu(), image, 1) for image in (images(), images().flip(3))]
    assert not [record for record in caplog.records if "not replayed" in record.message]
    for a, b in zip(ours, right, strict=True):
        torch.testing.assert_close(a.objective, b.objective, atol=1e-2, rtol=1e-2)
        assert float(correlation(a.saliency, b.saliency).min()) > 0.99


def test_a_network_that_waits_for_the_device_falls_back_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    class Waiting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, image: Tensor) -> Tensor:
            return self.inner(image) * (1.0 if float(image.sum()) > -1 else 2.0)

    torch.manual_seed(1)
    fast = Classifier(Waiting(), target_layer="inner.4", mean=0, std=1, input_size=16, speed="graph").to("cuda")
    with caplog.at_level(logging.WARNING):
        found = OptiCAM(max_iter=3)(fast, images(), 1)
        with torch.no_grad():
            fast(images())
    assert found.saliency.isfinite().all()
    assert any("are not replayed" in record.message for record in caplog.records)
    assert any("no CUDA graph, as" in record.message for record in caplog.records)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_finds_maps_like_those_of_float32(dtype: torch.dtype) -> None:
    explainer = OptiCAM(max_iter=30)
    right = explainer(on_gpu(), images(), 1)
    with torch.autocast("cuda", dtype=dtype):
        plain, replayed = explainer(on_gpu(), images(), 1), explainer(on_gpu(speed="graph"), images(), 1)
    assert right.objective is not None
    for found in (plain, replayed):
        assert found.saliency.dtype == torch.float32
        reached = on_gpu()(images() * found.saliency)[:, 1].detach()  # in float32: bfloat16 would round the gain away
        assert (reached - right.objective[0] > 0.8 * (right.objective[-1] - right.objective[0])).all()


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("settings", [{"speed": "folded"}, {"speed": "auto"}, {"speed": "compile"}])
def test_fast_copies_equal_the_plain_network(settings: dict[str, Any]) -> None:
    torch.testing.assert_close(on_gpu(**settings)(images()), on_gpu()(images()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_copies_are_close(dtype: Any) -> None:
    right = on_gpu()(images())
    ours = on_gpu(speed="graph", weights_dtype=dtype)(images())
    assert (ours - right).abs().max() <= 0.05 * right.abs().max()


def test_a_network_on_the_gpu_is_folded_there() -> None:
    made = network().cuda()
    folded = Folded(made, (16, 16))
    assert len(folded.pairs) == 1
    torch.testing.assert_close(folded.network(images()), made(images()), atol=1e-4, rtol=1e-4)


def test_a_network_on_the_gpu_is_folded_where_convolutions_round_to_tf32() -> None:
    made = torch.nn.Sequential(*(layer for _ in range(8) for layer in (nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))))
    torch.backends.cudnn.allow_tf32 = True  # PyTorch's default, which the fixture sets again
    assert len(Folded(made.eval().cuda(), (64, 64)).pairs) == 8
    assert torch.backends.cudnn.allow_tf32


def test_the_kernels_are_used_here_and_give_the_numbers_of_the_functions_that_they_replace() -> None:
    kernels.prove(torch.device("cuda", 0))
    assert kernels.usable(torch.device("cuda", 0))
    assert on_gpu(speed="graph").fuses(images())
    assert not on_gpu(speed="folded").fuses(images())
    plain, fast, masks = on_gpu(), on_gpu(speed="graph"), torch.rand(4, 3, 16, 16, device="cuda")
    for under in (None, torch.rand(1, 3, 1, 1, device="cuda")):
        ours, right = (one.masked(images(), masks, under) for one in (fast, plain))
        torch.testing.assert_close(ours, right, atol=1e-4, rtol=1e-4)


def test_the_gradient_of_upsampling_is_pytorchs_and_repeats_its_digits() -> None:
    maps, seed = torch.rand(8, 2, 7, 7, device="cuda"), torch.rand(8, 2, 224, 224, device="cuda")

    def gradient(device: str, function: Any) -> Tensor:
        given = maps.to(device).requires_grad_()
        return torch.autograd.grad(function(given), given, seed.to(device))[0].to("cuda")

    ours = [gradient("cuda", lambda given: upsample(given, (224, 224))) for _ in range(3)]
    torch.testing.assert_close(ours[0], gradient("cpu", lambda given: upsample(given, (224, 224))), atol=0, rtol=1e-4)
    assert torch.equal(ours[0], ours[1])
    assert torch.equal(ours[0], ours[2])


def test_plain_and_replayed_climbs_have_the_same_digits_whatever_was_captured_before() -> None:
    """A network whose gradients need no atomic additions: the kernels are the same, and so are the digits."""
    explainer, fast = OptiCAM(max_iter=15), on_gpu(speed="auto")
    target = torch.tensor([0, 1, 2, 3])
    first, captured, again = (explainer(fast, images(), target) for _ in range(3))
    last = explainer(fast, images()[:3], target[:3])
    alone = explainer(on_gpu(speed="auto"), images()[:3], target[:3])
    for ours, right in ((captured, first), (again, first), (last, alone)):
        torch.testing.assert_close(ours.objective, right.objective, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.saliency, right.saliency, atol=1e-4, rtol=0)


def test_a_replay_is_of_the_scores_that_are_bound() -> None:
    plain, fast = on_gpu(), on_gpu(speed="graph")
    for explainer in (OptiCAM(max_iter=9), FinerCAM(OptiCAM(max_iter=9)), OptiCAM(max_iter=9)):
        ours, right = explainer(fast, images(), 1), explainer(plain, images(), 1)
        torch.testing.assert_close(ours.saliency, right.saliency, atol=2e-2, rtol=0)


def test_passes_are_halved_where_memory_runs_out_and_the_map_is_the_same() -> None:
    plain, image = on_gpu(), images(1)
    right = ScoreCAM()(plain, image, 1).saliency
    share = torch.cuda.get_device_properties(0).total_memory // 20
    sizes: list[int] = []

    def step(part: slice) -> Tensor:
        count = part.stop - part.start
        sizes.append(count)
        return torch.empty(count, share // 8, dtype=torch.float64, device="cuda")[:, :1].sum().view(1, 1).cpu()

    torch.cuda.set_per_process_memory_fraction(0.12)  # of which two shares do not leave enough for three
    try:
        Chunks(4).cat(step, 4)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert sizes == [4, 2, 2]
    torch.testing.assert_close(ScoreCAM()(plain, image, 1).saliency, right)


def test_passes_are_right_after_the_classifier_was_moved_away_and_back() -> None:
    fast, plain = on_gpu(speed="graph"), on_gpu()
    explainer = OptiCAM(max_iter=9)
    for _ in range(2):
        for _ in range(3):
            with torch.no_grad():
                torch.testing.assert_close(fast(images()), plain(images()), atol=1e-4, rtol=1e-4)
        ours, right = explainer(fast, images(), 1), explainer(plain, images(), 1)
        torch.testing.assert_close(ours.saliency, right.saliency, atol=2e-2, rtol=0)
        fast.cpu()
        torch.cuda.empty_cache()
        kept = torch.full((2**20,), torch.nan, device="cuda")  # where the weights were
        fast.cuda()
        assert kept.isnan().all()


def test_passes_of_any_number_of_images_are_right() -> None:
    fast, plain = on_gpu(speed="graph"), on_gpu()
    with torch.no_grad():
        for count in (4, 4, 3, 2, 1):
            torch.testing.assert_close(fast(images()[:count]), plain(images()[:count]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", explainers.__all__)
def test_every_explainer_gives_its_maps_of_the_cpu(name: str) -> None:
    from test_explainers_properties import NAMES, make, works_on

    if name not in NAMES:
        pytest.skip("no explainer")
    explainer = make(name)
    classifier = tiny_cnn()
    classifier = classifier if works_on(explainer, classifier) else tiny_vit()
    image, target = images().cpu(), torch.tensor([0, 1, 2, 3])
    right = explainer(classifier, image, target)
    ours = explainer(classifier.to("cuda"), image.cuda(), target.cuda())
    assert ours.saliency.device.type == "cuda"
    if not _draws(explainer):
        torch.testing.assert_close(ours.saliency.cpu(), right.saliency, atol=2e-2, rtol=0)


def _draws(explainer: Explainer) -> bool:
    """Whether the method draws random numbers on the device, whose generators differ."""
    return type(explainer).__name__ in ("GradientSHAP", "SmoothGradCAMPlusPlus", "RISE", "RandomCAM", "LIME")


def test_a_map_does_not_depend_on_the_device_that_the_target_is_on() -> None:
    for explainer in (GradCAM(), CAM()):
        assert explainer(on_gpu(), images(), torch.tensor([0, 1, 2, 3])).saliency.is_cuda


@pytest.mark.ddp
def test_a_ddp_run_on_one_gpu_writes_every_row(tmp_path: Path) -> None:
    words = [
        *(
            "test",
            "--model=SaliencyTask",
            "--data=Shapes",
            "--data.images=6",
            "--data.batch_size=2",
            "--model.classifier=Classifier",
        ),
        *("--model.classifier.network=timm/test_resnet", "--model.classifier.weights=random"),
        *("--model.classifier.num_classes=10", "--model.classifier.speed=auto", "--model.target=predicted"),
        *("--model.explainer=OptiCAM", "--model.explainer.max_iter=2", f"--run_dir={tmp_path / 'run'}"),
        *(
            "--trainer.accelerator=gpu",
            "--trainer.devices=1",
            "--trainer.strategy=ddp",
            "--trainer.precision=bf16-mixed",
        ),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "optcam_pl", *words],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line for file in (tmp_path / "run").rglob("rows*.jsonl") for line in file.read_text().splitlines()]
    assert len(rows) >= 6


def test_auto_is_a_power_of_two_that_is_chosen_once_and_fits() -> None:
    for settings in ({}, {"speed": "graph"}):
        classifier = on_gpu(**settings)
        number = automatic(classifier, (16, 16), images().device)
        assert number in {2**k for k in range(3, 11)}
        assert automatic(classifier, (16, 16), images().device) == number
        auto, given = (ScoreCAM(chunk_size=size)(classifier, images(), 1).saliency for size in ("auto", number))
        torch.testing.assert_close(auto, given)
