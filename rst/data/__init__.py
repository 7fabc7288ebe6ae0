"""Data: images in memory (`sources`, `cifar`) or in files (`imagenet`), and how they reach the network (`loader`)."""

from rst.data.augment import Augmentation
from rst.data.imagenet import FileLoader, Files, ImageFolders, centre_crop_batches, open_imagenet
from rst.data.loader import Loader, evaluation_batches
from rst.data.sources import load
from rst.data.splits import Dataset, Split, hold_out, with_label_noise

__all__ = [
    "Augmentation",
    "Dataset",
    "FileLoader",
    "Files",
    "ImageFolders",
    "Loader",
    "Split",
    "centre_crop_batches",
    "evaluation_batches",
    "hold_out",
    "load",
    "open_imagenet",
    "with_label_noise",
]
