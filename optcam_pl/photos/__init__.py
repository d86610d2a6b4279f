"""Photographs: reads what people hand in as one, resizes it to a network's input, and remembers which part that is."""

from optcam_pl.photos.decode import IMAGE_SUFFIXES, ImageReadError, read_image
from optcam_pl.photos.given import AnyPhoto, Photo, prepare
from optcam_pl.photos.preprocessing import Interpolation, Preprocessing, Resize

__all__ = [
    "IMAGE_SUFFIXES",
    "AnyPhoto",
    "ImageReadError",
    "Interpolation",
    "Photo",
    "Preprocessing",
    "Resize",
    "prepare",
    "read_image",
]
