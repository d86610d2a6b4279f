"""Pixels equal torchvision's; boxes and masks move exactly with them."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from optcam_pl.data import Preprocessing

MODES = {"bilinear": v2.InterpolationMode.BILINEAR, "bicubic": v2.InterpolationMode.BICUBIC}


def noise(w: int, h: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(w + h).integers(0, 256, (h, w, 3), dtype=np.uint8))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (224, 224), (60, 300), (231, 257)])
def test_stretch_and_crop_give_torchvisions_pixels(size: tuple[int, int], interpolation: str) -> None:
    image, mode = noise(*size), MODES[interpolation]
    ours = Preprocessing((224, 224), "stretch", interpolation=interpolation)(image)
    theirs = v2.functional.pil_to_tensor(v2.Resize((224, 224), mode)(image)) / 255
    assert torch.equal(ours, theirs)
    ours = Preprocessing((224, 224), "crop", interpolation=interpolation)(image)
    theirs = v2.functional.pil_to_tensor(v2.Compose([v2.Resize(256, mode), v2.CenterCrop(224)])(image)) / 255
    assert torch.equal(ours, theirs)


def test_bicubic_overshoot_stays_in_0_1() -> None:
    edge = Image.fromarray(np.tile(np.array([0, 255] * 8, dtype=np.uint8)[None, :, None], (16, 1, 3)))
    pixels = Preprocessing((64, 64), interpolation="bicubic")(edge)
    assert pixels.dtype == torch.float32
    assert (pixels.min(), pixels.max()) == (0, 1)


def test_the_crop_of_an_elongated_image_differs_from_torchvisions_by_rounding_only() -> None:
    image = noise(40, 2000)
    ours = Preprocessing((224, 224), "crop")(image)
    theirs = v2.functional.pil_to_tensor(v2.Compose([v2.Resize(256), v2.CenterCrop(224)])(image)) / 255
    assert (ours - theirs).abs().max() < 1.01 / 255


def test_a_very_elongated_image_is_cropped_without_being_blown_up() -> None:
    crop = Preprocessing((224, 224), "crop")
    for size in ((60_000, 1), (1, 60_000), (1, 1)):
        assert crop(Image.new("RGB", size, (255, 0, 0))).mean().item() == pytest.approx(1 / 3)


def test_boxes_after_stretch_and_crop_are_those_computed_by_hand() -> None:
    boxes = [[0, 0, 512, 256], [128, 64, 192, 128], [0, 0, 100, 50], [129, 0, 160, 256]]
    stretched = Preprocessing((224, 448), "stretch").boxes(boxes, (512, 256))
    assert torch.allclose(stretched[0], torch.tensor([0.0, 0, 448, 224]))
    assert torch.allclose(stretched[1], torch.tensor([112.0, 56, 168, 112]))
    # The shorter side is 256 already, so the crop cuts 16 pixels above and 144 on the left: x - 144, y - 16, clipped.
    cropped = Preprocessing((224, 224), "crop").boxes(boxes, (512, 256))
    assert cropped.tolist() == [[0, 0, 224, 224], [0, 48, 48, 112], [0, 0, 16, 224]]
    # Twice as large an image: the same, as it is halved first.
    assert torch.equal(Preprocessing((224, 224), "crop").boxes(torch.tensor(boxes) * 2, (1024, 512)), cropped)


def test_no_boxes_stay_no_boxes() -> None:
    assert Preprocessing((8, 8)).boxes([], (10, 10)).shape == (0, 4)
    assert Preprocessing((8, 8), "crop").boxes([[0, 0, 1, 1]], (100, 10)).shape == (0, 4)


@given(
    st.tuples(st.integers(40, 300), st.integers(40, 300)),
    st.sampled_from(["stretch", "crop"]),
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
    st.tuples(st.integers(16, 64), st.integers(16, 64)),
)
@settings(deadline=None, max_examples=60)
def test_a_box_covers_the_same_pixels_before_and_after(
    image_size: tuple[int, int], resize: str, place: list[float], size: tuple[int, int]
) -> None:
    w, h = image_size
    x1, x2 = sorted(round(p * w) for p in place[:2])
    y1, y2 = sorted(round(p * h) for p in place[2:])
    assume(x2 - x1 > w // 4 and y2 - y1 > h // 4)
    drawn = Image.new("L", image_size, 0)
    drawn.paste(255, (x1, y1, x2, y2))
    transform = Preprocessing(size, resize, interpolation="bilinear")
    mask, boxes = transform.mask(drawn), transform.boxes([[x1, y1, x2, y2]], image_size)
    if not mask.any():
        return
    ys, xs = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    seen = torch.tensor([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1])
    assert (seen - boxes[0]).abs().max() <= 0.5 + 1e-4  # a nearest pixel is in the box if its center is


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (0, 8)}, "two positive integers"),
        ({"size": (8,)}, "two positive integers"),
        ({"size": (8, 8), "resize": "squash"}, "`resize` to be 'stretch' or 'crop', but got 'squash'"),
        ({"size": (8, 8), "interpolation": "nearest"}, "`interpolation` to be"),
        ({"size": (8, 8), "crop_fraction": 0.0}, "`crop_fraction` to lie in"),
        ({"size": (8, 8), "crop_fraction": float("nan")}, "`crop_fraction` to lie in"),
    ],
)
def test_wrong_settings_are_refused_in_words(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing(**arguments)
