"""The kernels, interpreted on a CPU, beside the functions that they replace; test_on_cuda.py has them on a GPU."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from optcam_pl import Classifier, kernels
from optcam_pl.maps import Upsampled, upsample, upsampled_gradient

HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("cells", [(3, 5), (7, 7), (40, 50)])
def test_the_gradient_of_upsampling_by_products_is_pytorchs(cells: tuple[int, int]) -> None:
    maps, seed = torch.rand(2, 3, *cells, dtype=torch.float64), torch.rand(2, 3, 33, 41, dtype=torch.float64)
    ours, right = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    full = Upsampled.apply(ours, (33, 41))
    assert torch.equal(full, upsample(right, (33, 41)))
    (found,), (known,) = (torch.autograd.grad(upsample(right, (33, 41)), right, seed) for _ in range(2))
    assert torch.equal(found, known)
    torch.testing.assert_close(torch.autograd.grad(full, ours, seed)[0], known, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(upsampled_gradient(seed, cells), known, atol=1e-12, rtol=1e-12)


def test_kernels_give_the_numbers_of_the_functions_that_they_replace() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, "-W", "error::UserWarning:optcam_pl", str(HERE / "interpreted.py")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["proof", "masks", "silent", "rule", "climb"]


def test_a_device_without_a_compiler_is_told_once_and_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(device: torch.device) -> None:
        raise RuntimeError("Failed to find C compiler.\nMore lines.")

    monkeypatch.setattr(kernels, "prove", broken)
    monkeypatch.setattr(kernels, "_proved", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.inference_mode(False))
    with caplog.at_level(logging.INFO):
        assert not kernels.usable(torch.device("cuda", 0))
        assert not kernels.usable(torch.device("cuda", 0))
    assert [record.message for record in caplog.records] == [
        "Images are masked by PyTorch's own operations on cuda:0, not by one kernel, as Failed to find C compiler."
    ]


def test_a_gpu_that_is_not_the_threads_current_one_is_told_and_left_to_pytorch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    kernels._tell_other.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert not kernels.usable(torch.device("cuda", 1))
    assert [record.message.partition(": call")[2] for record in caplog.records] == [" torch.cuda.set_device(1) first."]
    assert kernels.current(torch.device("cuda", 0))
    assert not kernels.current(torch.device("cpu"))


def test_a_kernel_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "stretched", lambda maps, size, silent: (upsample(maps, size), silent))
    monkeypatch.setattr(kernels, "masked_input", lambda image, masks, *_: image * masks)
    with pytest.raises(ValueError, match="differs by more than rounding"):
        kernels.prove(torch.device("cpu"))


def test_a_classifiers_masked_scores_are_those_of_the_masked_images_on_a_cpu() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    classifier = Classifier(network, mean=0.5, std=0.5, input_size=9, target_layer="0", speed="graph")
    image, masks, under = torch.rand(2, 3, 9, 9), torch.rand(2, 4, 9, 9), torch.rand(1, 3, 1, 1)
    assert not classifier.fuses(image)
    found = classifier.masked(image, masks, under).view(2, 4, 4)
    for j in range(4):
        m = masks[:, j : j + 1]
        torch.testing.assert_close(found[:, j], classifier(under + (image - under) * m))
        torch.testing.assert_close(classifier.masked(image, m), classifier(image * m))
