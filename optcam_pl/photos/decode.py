"""Reads an image file into RGB pixels, or says in words why that cannot be done."""

from __future__ import annotations

import io
import os
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Formats that Pillow recognizes by their first bytes and decodes itself. Formats that accept almost any bytes as an
# image (TGA) or start another program (EPS starts Ghostscript) are left out.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "MPO", "AVIF")

IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".mpo", ".avif"),
    )
)
"""Lower-case endings of the files that count as images when a folder is searched."""


class ImageReadError(ValueError):
    """An image file could not be read.

    Attributes:
        reason: why, in words and without the file's name, so that it is the same on every machine.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        # One argument must suffice: an exception of a DataLoader worker is recreated from its message alone.
        super().__init__(message)
        self.reason = reason or message


def read_image(path: str | os.PathLike[str] | bytes, *, as_stored: bool = False) -> Image.Image:
    """Read an image file as it is meant to be viewed, in RGB with 8 bits per channel.

    The EXIF orientation is applied (a damaged EXIF block is ignored). Palettes, gray and CMYK are converted. 16-bit
    gray is scaled by 255/65535 (Pillow's own conversion would clip it); floating-point gray must lie in [0, 1].
    Transparent pixels are put on white. The first frame of an animation is used. Color profiles are ignored.

    Args:
        path: the file, or its bytes.
        as_stored: neither rotate nor convert the pixels: those of a palette image stay palette indices.

    Returns:
        An image of mode "RGB" (with `as_stored`: of its own mode), fully decoded; the file is closed.

    Raises:
        ImageReadError: the file is missing, empty, no image, truncated, damaged, or has more than Pillow's
            ``Image.MAX_IMAGE_PIXELS`` pixels (a decompression bomb); the message contains its name and the reason.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "gray.png")
        ...     Image.fromarray(np.array([[0, 65535], [257, 32896]], dtype=np.uint16)).save(file)
        ...     image = read_image(file)
        >>> image.mode, image.size, [image.getpixel((x, y))[0] for y in (0, 1) for x in (0, 1)]
        ('RGB', (2, 2), [0, 255, 1, 128])
    """
    name = "(bytes)" if isinstance(path, bytes) else os.fspath(path)
    try:
        file = _checked(path)
        with warnings.catch_warnings():
            # Pillow warns of damaged metadata, which does not matter here, and of bombs, which are refused.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _decode(file, as_stored)
    except Exception as fault:  # Pillow's decoders raise nearly every exception on damaged bytes
        reason = _reason(fault)
        raise ImageReadError(f"Cannot read the image {name!r}: {reason}.", reason) from fault


def _checked(path: str | os.PathLike[str] | bytes) -> str | io.BytesIO:
    """The file or bytes in a form that Pillow opens."""
    if isinstance(path, bytes):
        if not path:
            raise ImageReadError("the file is empty")
        return io.BytesIO(path)
    info = Path(path).stat()  # raises FileNotFoundError, PermissionError, ...
    if stat.S_ISDIR(info.st_mode):
        raise ImageReadError("it is a folder")
    if not stat.S_ISREG(info.st_mode):
        raise ImageReadError("it is not a regular file")  # opening a pipe would wait forever
    if info.st_size == 0:
        raise ImageReadError("the file is empty")
    return os.fspath(path)


def _decode(file: str | io.BytesIO, as_stored: bool) -> Image.Image:
    Image.init()
    with Image.open(file, formats=[kind for kind in _FORMATS if kind in Image.OPEN]) as image:
        image.load()
        return image.copy() if as_stored else as_rgb(image)


def as_rgb(image: Image.Image) -> Image.Image:
    """An opened image as it is meant to be viewed; see `read_image`.

    Raises:
        ImageReadError: its pixels cannot be decoded, or the scale of its gray values is not known.
    """
    return to_rgb(_upright(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened image in RGB with 8 bits per channel, as `read_image` converts it, but not rotated.

    Raises:
        ImageReadError: its pixels cannot be decoded, or the scale of its gray values is not known.

    Example:
        >>> to_rgb(Image.fromarray(np.array([[32896]], dtype=np.uint16))).getpixel((0, 0))
        (128, 128, 128)
    """
    try:
        return _converted(image)
    except Exception as fault:  # Pillow's decoders raise nearly every exception on damaged bytes
        reason = _reason(fault)
        raise ImageReadError(f"Cannot use the image: {reason}.", reason) from fault


def _upright(image: Image.Image) -> Image.Image:
    """The image rotated as its EXIF block says; unchanged if that block is damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the pixels are sound, even if the metadata is not
        return image


def _converted(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_gray(np.asarray(image)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _deep_gray(pixels: np.ndarray) -> Image.Image:
    """Gray of 16 bits, 32 bits (older Pillows' mode for 16-bit PNG) or floating point, (H,W) -> 8-bit gray image."""
    top = 1.0 if pixels.dtype.kind == "f" else 65535.0
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= top):  # also true of NaN
        raise ImageReadError(f"its gray values {low:g} to {high:g} lie outside [0, {top:g}], so their scale is unknown")
    return Image.fromarray(np.rint(pixels * (255.0 / top)).astype(np.uint8))


def _reason(fault: Exception) -> str:
    """Why reading failed, in words that do not depend on the machine."""
    text = " ".join(str(fault).split())
    if isinstance(fault, ImageReadError):
        return fault.reason
    if isinstance(fault, FileNotFoundError):
        return "there is no such file"
    if isinstance(fault, UnidentifiedImageError):
        return "it is not an image of a known format"
    if isinstance(fault, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"it has more than {Image.MAX_IMAGE_PIXELS} pixels and is refused as a decompression bomb"
    if isinstance(fault, MemoryError):
        return "there is not enough memory to decode it"
    if isinstance(fault, OSError) and fault.errno is not None and fault.strerror:
        return f"the system says: {fault.strerror}"
    if "truncated" in text.lower() or isinstance(fault, EOFError):
        return "the file is truncated"
    return f"the file is damaged ({type(fault).__name__}: {text})"
