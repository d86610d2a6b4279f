"""Datasets as LightningDataModules: each image exactly once, in a fixed order, for any number of processes."""

from optcam_pl.data.adapters import TorchvisionDataset
from optcam_pl.data.base import ImageDataModule
from optcam_pl.data.batch import Batch, Entry, ImageTable, Item, OnError, Sample, collate
from optcam_pl.data.blocks import PADDING, BlockSampler, ShuffleSampler
from optcam_pl.data.csv_images import CSVImages
from optcam_pl.data.each_box import EachBox
from optcam_pl.data.folders import ChestXRay, ImageFolder, ImagePaths, Kvasir
from optcam_pl.data.huggingface import HuggingFaceDataset
from optcam_pl.data.imagenet import ImageNet
from optcam_pl.data.multi_label import MultiLabel
from optcam_pl.data.samples import SamplePhotos
from optcam_pl.data.shapes import Shapes
from optcam_pl.data.torch_data import TorchData
from optcam_pl.photos.decode import ImageReadError, read_image
from optcam_pl.photos.preprocessing import Interpolation, Preprocessing, Resize

__all__ = [
    "PADDING",
    "Batch",
    "BlockSampler",
    "CSVImages",
    "ChestXRay",
    "EachBox",
    "Entry",
    "HuggingFaceDataset",
    "ImageDataModule",
    "ImageFolder",
    "ImageNet",
    "ImagePaths",
    "ImageReadError",
    "ImageTable",
    "Interpolation",
    "Item",
    "Kvasir",
    "MultiLabel",
    "OnError",
    "Preprocessing",
    "Resize",
    "Sample",
    "SamplePhotos",
    "Shapes",
    "ShuffleSampler",
    "TorchData",
    "TorchvisionDataset",
    "collate",
    "read_image",
]
