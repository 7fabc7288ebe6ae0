"""Data: images in memory (`sources`) or in files (`image_folders`), and the batches made of them (`run_data`)."""

from rst.experiments.data.file_loader import FileLoader, centre_crop_batches
from rst.experiments.data.folder_cache import FolderFacts, folder_facts
from rst.experiments.data.image_folders import Files, ImageFolders, open_folders
from rst.experiments.data.loader import Loader, evaluation_batches
from rst.experiments.data.run_data import RunData, readable
from rst.experiments.data.sources import load
from rst.experiments.data.splits import Dataset, Split, hold_out, with_label_noise

__all__ = [
    "Dataset",
    "FileLoader",
    "Files",
    "FolderFacts",
    "ImageFolders",
    "Loader",
    "RunData",
    "Split",
    "centre_crop_batches",
    "evaluation_batches",
    "folder_facts",
    "hold_out",
    "load",
    "open_folders",
    "readable",
    "with_label_noise",
]
