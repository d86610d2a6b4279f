"""Run by test_kernels.py in a process of its own: Triton reads TRITON_INTERPRET when a kernel is defined."""

from __future__ import annotations

import torch
from torch import nn

from optcam_pl import Classifier, OptiCAM, kernels
from optcam_pl.explainers import RISE, ScoreCAM
from optcam_pl.explainers.ascent import Ascent, StopRule
from optcam_pl.maps import mask_image

CPU = torch.device("cpu")


def masks_of_each_image() -> None:
    """Several masks of each image, broadcast ones, and another number of channels."""
    for C in (1, 3, 5):
        image, mean, std = torch.rand(2, C, 7, 9), torch.rand(C), torch.rand(C) + 0.5
        for masks in (torch.rand(2, 4, 7, 9), torch.rand(4, 7, 9).expand(2, 4, 7, 9), torch.rand(2, 1, 7, 9)):
            for under in (None, torch.rand(1, C, 1, 1), torch.rand(2, C, 7, 9)):
                found = kernels.masked_input(image, masks, under, mean, std, torch.float32)
                below = None if under is None else under.unsqueeze(1)
                known = mask_image(image.unsqueeze(1), masks.unsqueeze(2), below).flatten(0, 1)
                known = (known - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
                torch.testing.assert_close(found, known, atol=1e-5, rtol=1e-5)
                assert found.is_contiguous(memory_format=torch.channels_last)
    half = kernels.masked_input(image, masks, None, mean, std, torch.bfloat16)
    assert half.dtype == torch.bfloat16


def maps_that_say_nothing() -> None:
    """Constant maps, maps that are not finite, and maps that are known to say nothing are 0, and so is the gradient."""
    for cells in ((3, 3), (40, 30)):
        silent_maps(torch.rand(5, 1, *cells))


def silent_maps(maps: torch.Tensor) -> None:
    """See above."""
    maps[1], maps[2, 0, 0, 0], maps[3, 0, 1, 1] = 2.0, float("nan"), float("inf")
    silent = torch.tensor([False, False, False, False, True])
    maps.requires_grad_()
    mapped, nothing = kernels.stretched(maps, (8, 8), silent)
    assert nothing.tolist() == [False, True, True, True, True]
    assert float(mapped[1:].detach().abs().max()) == 0
    assert float(mapped[0].detach().max()) == 1
    gradient = torch.autograd.grad(mapped.sum(), maps)[0]
    assert gradient.isfinite().all()
    assert float(gradient[1:].abs().max()) == 0
    assert float(gradient[0].abs().max()) > 0


def the_stop_rule() -> None:
    """The same images stop at the same iterations, for both kinds of rule, NaN included."""
    generator = torch.Generator().manual_seed(0)
    for rule in (StopRule(1e-3), StopRule(1e-10, 0.0078125, 3), StopRule(0.0)):
        size = torch.rand(6, generator=generator) * 10

        def made(fused: bool, size: torch.Tensor = size, rule: StopRule = rule) -> Ascent:
            u = [nn.Parameter(torch.zeros(6, 2))]
            return Ascent(lambda w: w.sum(1), u, torch.optim.SGD(u, lr=1.0), rule, size, fused=fused)

        ours, right = made(True), made(False)
        for _ in range(12):
            F = size + (torch.rand(6, generator=generator) * torch.tensor([1, 1e-2, 1e-4, 0, 10, 0.5])).round(
                decimals=4
            )
            F[5] = float("nan") if torch.rand((), generator=generator) > 0.8 else F[5]
            ours.judge(F)
            right.judge(F)
            for a, b in zip(ours.state()[1:], right.state()[1:], strict=True):
                torch.testing.assert_close(a, b, equal_nan=True, rtol=0, atol=0)


def whole_climbs() -> None:
    """Opti-CAM, Score-CAM and RISE with the kernels have the maps that they have without."""
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip
    classifier = Classifier(network, mean=0.4, std=0.3, input_size=12, target_layer="3", speed="graph")
    image = torch.rand(2, 3, 12, 12)
    for explainer in (
        OptiCAM(max_iter=6),
        OptiCAM(max_iter=6, baseline="blur", objective="io_mask"),
        OptiCAM(max_iter=6, preset="fast"),
        ScoreCAM(),
        RISE(num_masks=4),
    ):
        right = explainer(classifier, image, 1)
        kernels.usable = lambda device: True
        ours = explainer(classifier, image, 1)
        kernels.usable = lambda device: False
        torch.testing.assert_close(ours.saliency, right.saliency, atol=1e-3, rtol=1e-3)


if __name__ == "__main__":
    torch.manual_seed(0)
    kernels.prove(CPU)
    print("proof")
    masks_of_each_image()
    print("masks")
    maps_that_say_nothing()
    print("silent")
    the_stop_rule()
    print("rule")
    whole_climbs()
    print("climb")
