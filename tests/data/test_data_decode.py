"""Images of every kind look as they should; every fault is an ImageReadError with a reason, and no warning leaks."""

import os
import pickle
import tempfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from optcam_pl.data import ImageReadError, read_image

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def quadrants(size: int = 32) -> Image.Image:
    """Red, green, blue and white quarters."""
    image = Image.new("RGB", (size, size), "white")
    half = size // 2
    for color, place in ((RED, (0, 0)), (GREEN, (half, 0)), (BLUE, (0, half))):
        image.paste(color, (*place, place[0] + half, place[1] + half))
    return image


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    w, h = image.size
    return [image.getpixel(at) for at in ((2, 2), (w - 3, 2), (2, h - 3), (w - 3, h - 3))]


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tif", "webp", "ppm", "jp2"])
def test_lossless_formats_keep_their_pixels(tmp_path: Path, suffix: str) -> None:
    options = {"webp": {"lossless": True}, "jp2": {"irreversible": False}}.get(suffix, {})
    quadrants().save(tmp_path / f"a.{suffix}", **options)
    image = read_image(tmp_path / f"a.{suffix}")
    assert image.mode == "RGB"
    assert corners(image) == [RED, GREEN, BLUE, (255, 255, 255)]


def test_exif_orientation_turns_the_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    quadrants().crop((0, 0, 32, 16)).save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png")
    assert image.size == (16, 32)
    assert corners(image)[0] == RED
    assert corners(image)[2] == GREEN


def test_a_damaged_exif_block_does_not_matter(tmp_path: Path) -> None:
    quadrants().save(tmp_path / "a.jpg", quality=95, exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x09\x01\x12rubbish")
    assert read_image(tmp_path / "a.jpg").size == (32, 32)


def test_grey_palette_and_cmyk_become_rgb(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 77).save(tmp_path / "gray.png")
    quadrants().quantize(8).save(tmp_path / "palette.png")
    quadrants().convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100, subsampling=0)
    assert read_image(tmp_path / "gray.png").getpixel((0, 0)) == (77, 77, 77)
    assert corners(read_image(tmp_path / "palette.png")) == corners(quadrants())
    difference = np.subtract(corners(read_image(tmp_path / "cmyk.jpg")), corners(quadrants()), dtype=float)
    assert abs(difference).max() <= 8


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    if suffix == "pgm":
        (tmp_path / "a.pgm").write_bytes(b"P5 4 1 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    assert [image.getpixel((x, 0)) for x in range(4)] == [(0,) * 3, (1,) * 3, (128,) * 3, (255,) * 3]


def test_floating_point_grey_in_0_1_is_scaled_and_other_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif").getpixel((1, 0)) == (128, 128, 128)
    for bad in (2.5, -0.1, float("nan")):
        Image.fromarray(np.array([[0, bad]], dtype=np.float32)).save(tmp_path / "b.tif")
        with pytest.raises(ImageReadError, match="their scale is unknown"):
            read_image(tmp_path / "b.tif")


def test_transparent_pixels_lie_over_white(tmp_path: Path) -> None:
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (255, 0, 0, 0))
    rgba.save(tmp_path / "alpha.png")
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "palette.png", transparency=1)
    Image.new("LA", (2, 1), (0, 128)).save(tmp_path / "gray.png")
    for name in ("alpha.png", "palette.png"):
        image = read_image(tmp_path / name)
        assert [image.getpixel((x, 0)) for x in (0, 1)] == [RED, (255, 255, 255)]
    assert read_image(tmp_path / "gray.png").getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, GREEN, BLUE)]
    lossless = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **lossless)
    assert read_image(tmp_path / f"a.{suffix}").getpixel((4, 4)) == RED


def test_one_pixel_and_very_elongated_images_are_read(tmp_path: Path) -> None:
    for size in ((1, 1), (3000, 1), (1, 3000)):
        Image.new("RGB", size).save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png").size == size


def make_faults(folder: Path) -> dict[str, str]:
    """Broken files by name, with what the error must say."""
    jpeg = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(jpeg, "JPEG")
    png = BytesIO()
    quadrants().save(png, "PNG")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    (folder / "cut.jpg").write_bytes(jpeg.getvalue()[:1000])
    (folder / "cut.png").write_bytes(png.getvalue()[: len(png.getvalue()) // 2])
    flipped = bytearray(png.getvalue())
    flipped[60] ^= 0xFF
    (folder / "flipped.png").write_bytes(flipped)
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    return {
        "missing.jpg": "there is no such file",
        "empty.jpg": "the file is empty",
        "text.jpg": "not an image of a known format",
        "cut.jpg": "truncated",
        "cut.png": "truncated",
        "flipped.png": "damaged",
        "folder.jpg": "it is a folder",
        "pipe.jpg": "not a regular file",
    }


def test_every_fault_names_the_file_and_its_reason(tmp_path: Path) -> None:
    for name, reason in make_faults(tmp_path).items():
        with pytest.raises(ImageReadError, match=reason) as caught:
            read_image(tmp_path / name)
        assert repr(str(tmp_path / name)) in str(caught.value)
        assert str(tmp_path) not in caught.value.reason


def test_a_decompression_bomb_is_refused_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (150, 150)).save(tmp_path / "large.png")
    Image.new("1", (300, 300)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    for name in ("large.png", "huge.png"):
        with pytest.raises(ImageReadError, match="more than 20000 pixels"):
            read_image(tmp_path / name)


def test_no_other_program_is_started_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageReadError, match="not an image of a known format"):
        read_image(tmp_path / "a.jpg")


def test_the_error_survives_the_way_out_of_a_loader_process() -> None:
    copy = pickle.loads(pickle.dumps(ImageReadError("Cannot read 'a': because.", "because")))
    assert (str(copy), copy.reason) == ("Cannot read 'a': because.", "because")


@given(
    st.binary(max_size=400), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"P6\n"])
)
@settings(deadline=None, max_examples=150)
def test_random_bytes_give_an_image_or_an_image_read_error(data: bytes, magic: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
        file.write(magic + data)
        file.flush()
        with suppress(ImageReadError):
            assert read_image(file.name).mode == "RGB"


@given(st.floats(0, 1), st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"]), st.booleans())
@settings(deadline=None, max_examples=100)
def test_a_cut_file_gives_the_whole_image_or_an_image_read_error(share: float, kind: str, flip: bool) -> None:
    whole = BytesIO()
    quadrants().save(whole, kind)
    data = bytearray(whole.getvalue())
    at = int(share * len(data))
    data = data[:at] if not flip else data[:at] + bytes([data[min(at, len(data) - 1)] ^ 0xFF]) + data[at + 1 :]
    with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
        file.write(data)
        file.flush()
        with suppress(ImageReadError):
            assert read_image(file.name).mode == "RGB"
