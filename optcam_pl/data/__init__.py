"""Datasets as LightningDataModules: every image exactly once, in a fixed order, for any number of processes."""

from optcam_pl.data.base import (
    PADDING,
    Batch,
    BlockSampler,
    Entry,
    ImageDataModule,
    ImageTable,
    Item,
    OnError,
    Sample,
    collate,
)
from optcam_pl.data.decode import ImageReadError, read_image
from optcam_pl.data.folders import ImageFolder, ImagePaths
from optcam_pl.data.samples import SamplePhotos
from optcam_pl.data.transforms import Interpolation, Preprocessing, Resize

__all__ = [
    "PADDING",
    "Batch",
    "BlockSampler",
    "Entry",
    "ImageDataModule",
    "ImageFolder",
    "ImagePaths",
    "ImageReadError",
    "ImageTable",
    "Interpolation",
    "Item",
    "OnError",
    "Preprocessing",
    "Resize",
    "Sample",
    "SamplePhotos",
    "collate",
    "read_image",
]
