"""The shared tensor maths."""

from __future__ import annotations

import pytest
import torch

from optcam_pl.maps import (
    baseline_image,
    blur,
    check_baseline,
    combine,
    degenerate,
    mask_image,
    normalize,
    upsample,
)


def test_combine_is_the_weighted_sum_also_under_autocast() -> None:
    w, A = torch.rand(2, 5), torch.rand(2, 5, 3, 4)
    expected = (w[:, :, None, None] * A).sum(1, keepdim=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = combine(w, A)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("how", ["range", "max", "sigmoid"])
def test_a_map_that_says_nothing_becomes_zeros_with_zero_gradients(how: str) -> None:
    maps = torch.stack([torch.full((1, 2, 2), 3.0), torch.full((1, 2, 2), float("nan")), torch.rand(1, 2, 2)])
    maps[1, 0, 0, 0] = 1
    maps.requires_grad_()
    out = normalize(maps, how)  # type: ignore[arg-type]
    assert out.isfinite().all()
    assert (out[:2] == 0).all()
    assert 0 <= out[2].min() <= out[2].max() <= 1
    (gradient,) = torch.autograd.grad(out.square().sum(), maps)
    assert gradient.isfinite().all()
    assert (gradient[:2] == 0).all()
    assert degenerate(maps).tolist() == [True, True, False]


def test_normalizers_follow_their_formulas() -> None:
    A = torch.randn(3, 1, 4, 4)
    for i in range(3):
        a = A[i]
        torch.testing.assert_close(normalize(A, "range")[i], (a - a.min()) / (a.max() - a.min()))
        torch.testing.assert_close(normalize(A, "max")[i], a.clamp(min=0) / a.max())
        torch.testing.assert_close(normalize(A, "sigmoid")[i], 1 / (1 + (-a).exp()))


def test_an_unknown_normalizer_is_refused() -> None:
    with pytest.raises(ValueError, match="one of \\('range', 'max', 'sigmoid'\\), but got 'log'"):
        normalize(torch.rand(1, 1, 2, 2), "log")  # type: ignore[arg-type]


def test_masking_keeps_where_the_map_is_one_and_fades_into_the_baseline_elsewhere() -> None:
    image, mean = torch.rand(1, 3, 4, 4), torch.tensor([0.1, 0.2, 0.3])
    s = torch.zeros(1, 1, 4, 4)
    s[..., :2] = 1
    for baseline in ("black", "mean", "blur", (1.0, 0.0, 0.5)):
        reference = baseline_image(image, baseline, mean)
        masked = mask_image(image, s, reference)
        torch.testing.assert_close(masked[..., :2], image[..., :2])
        torch.testing.assert_close(masked[..., 2:], reference.expand_as(image)[..., 2:])
    assert torch.equal(mask_image(image, s), mask_image(image, s, baseline_image(image, "black", mean)))


def test_blur_keeps_the_border_color_and_the_total() -> None:
    color = torch.tensor([0.2, 0.4, 0.6])
    flat = color.view(1, 3, 1, 1).expand(1, 3, 20, 20)
    torch.testing.assert_close(blur(flat, color), flat)


@pytest.mark.parametrize("bad", ["gray", (0.1, 0.2), (0.1, 0.2, 3.0), None])
def test_an_unknown_baseline_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="Expected `baseline` to be 'black', 'mean', 'blur' or three numbers"):
        check_baseline(bad)


def test_upsample_is_bilinear_without_aligned_corners() -> None:
    assert upsample(torch.tensor([[[[0.0, 4.0]]]]), (1, 4)).flatten().tolist() == [0.0, 1.0, 3.0, 4.0]
