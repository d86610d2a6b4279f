"""The sample photographs are there without a download."""

import importlib.util
import sys

import pytest

from optcam_pl.data import SamplePhotos


def test_without_scikit_image_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optcam_pl.data.samples.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install optcam_pl\[demo\]"):
        SamplePhotos().setup()


@pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="needs the demo extra")
def test_the_five_photographs_are_read_and_have_no_labels() -> None:
    data = SamplePhotos(size=32)
    assert data.name == "sample_photos"
    assert data.class_names is None
    batch = next(iter(data.test_dataloader()))
    assert batch["id"][:5] == ["chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png", "motorcycle_left.png"]
    assert batch["target"].tolist() == [-1] * 8
    assert (batch["image"][:5].std((1, 2, 3)) > 0.1).all()
    assert "skimage" not in sys.modules
