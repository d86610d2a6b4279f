"""Made-up images are the same every time, with exact masks and boxes, and surroundings as related as was asked."""

import hashlib

import numpy as np
import pytest
import torch

from optcam_pl.data import Shapes
from optcam_pl.data.shapes import _SHAPES, CLASSES, ShapeReader


def test_drawing_is_the_same_every_time_and_on_every_machine() -> None:
    def digest(data: Shapes) -> str:
        return hashlib.sha256(
            b"".join(data.reader()(entry).image.tobytes() for entry in data.entries()[:12])
        ).hexdigest()

    assert digest(Shapes(12)) == digest(Shapes(12))
    assert len({digest(Shapes(12, data_seed=1)), digest(Shapes(12)), digest(Shapes(12, split="val"))}) == 3
    image = np.asarray(ShapeReader()(Shapes(1).entries()[0]).image, dtype=float)
    assert image.mean() == pytest.approx(127.76416, abs=1e-5)  # a change of the drawing is a change of the dataset


def test_boxes_and_masks_are_exact() -> None:
    data = Shapes(24, side=64)
    batch = next(iter(Shapes(24, side=64, batch_size=24).test_dataloader()))
    assert batch["image"].shape == (24, 3, 64, 64)
    assert batch["target"].tolist() == [i % 6 for i in range(24)]
    for index in range(24):
        ys, xs = batch["mask"][index].nonzero(as_tuple=True)
        assert batch["boxes"][index].tolist() == [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]
        assert 0.01 < batch["mask"][index].float().mean() < 0.25
    assert data.annotations == ("boxes", "masks")
    # Where only the shape changes, only the mask's pixels do.
    reader = data.reader()
    one = reader(data.entries()[0])
    assert one.mask is not None
    pixels, mask = np.asarray(one.image), np.asarray(one.mask) > 0
    assert len(np.unique(pixels[~mask], axis=0)) <= 3 < len(np.unique(pixels, axis=0))


def test_shapes_fit_into_their_radius_so_that_none_is_cut_off() -> None:
    at = np.linspace(-2, 2, 401)
    for shape in _SHAPES.values():
        inside = shape(at[None, :], at[:, None])
        assert inside.any()
        assert np.hypot(at[None, :], at[:, None])[inside].max() <= 1.15


@pytest.mark.parametrize(("correlation", "fidelity"), [(0.0, 1.0), (0.9, 0.5), (1.0, 0.0)])
def test_surroundings_and_shapes_agree_with_the_class_as_often_as_they_should(
    monkeypatch: pytest.MonkeyPatch, correlation: float, fidelity: float
) -> None:
    drawn: list[tuple[str, str]] = []
    textures: list[str] = []
    monkeypatch.setattr(ShapeReader, "_place", lambda self, rng, shape: drawn.append(shape) or np.eye(16, dtype=bool))
    monkeypatch.setattr(
        ShapeReader,
        "_texture",
        lambda self, rng, pattern, saturation: textures.append(pattern) or np.zeros((16, 16, 3)),
    )
    data = Shapes(1800, side=16, correlation=correlation, fidelity=fidelity)
    for entry in data.entries():
        data.reader()(entry)
    from optcam_pl.data.shapes import CONTEXTS

    shapes = np.mean([CLASSES.index(shape) == i % 6 for i, shape in enumerate(drawn)])
    contexts = np.mean([CONTEXTS.index(pattern) == i % 6 for i, pattern in enumerate(textures[::2])])
    assert shapes == pytest.approx(fidelity + (1 - fidelity) / 6, abs=0.04)
    assert contexts == pytest.approx(correlation + (1 - correlation) / 6, abs=0.04)


def test_parts_have_their_own_images_and_the_settings_are_in_the_fingerprint() -> None:
    data = Shapes(6, 12)
    assert [len(data.training_entries(part)) for part in ("train", "val")] == [12, 6]
    assert len({entry.id for part in ("train", "val") for entry in data.training_entries(part)} | {"test/000000"}) == 19
    assert data.preprocessing.size == (64, 64)
    assert Shapes(6, size=32).table[0]["image"].shape == (3, 32, 32)
    prints = [Shapes(6, **kwargs).fingerprint() for kwargs in ({}, {"correlation": 0.5}, {"data_seed": 2})]
    assert prints[0] != prints[1] != prints[2]
    assert prints[0]["source"] == {"side": 64, "correlation": 0.0, "fidelity": 1.0, "seed": 0}


def test_training_on_shapes_augments_boxes_and_masks_too() -> None:
    data = Shapes(6, 12, batch_size=12)
    data.training = True
    batch = next(iter(data.train_dataloader()))
    for boxes, mask in zip(batch["boxes"], batch["mask"], strict=True):
        if mask.any() and len(boxes):
            ys, xs = mask.nonzero(as_tuple=True)
            seen = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            assert (boxes[0] - seen).abs().max() <= 2.5  # the mask is resampled to the nearest pixel


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": 0}, "`images`"),
        ({"train_images": 0}, "`train_images`"),
        ({"side": 8}, "`side`"),
        ({"correlation": 1.5}, "`correlation`"),
        ({"fidelity": -0.1}, "`fidelity`"),
        ({"split": "all"}, "`split`"),
    ],
)
def test_wrong_settings_are_refused_in_words(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shapes(**arguments)
