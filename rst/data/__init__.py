"""Data: where images come from (``sources``), and how they reach the network (``loader``, ``augment``)."""

from rst.data.augment import Augmentation
from rst.data.loader import Loader, evaluation_batches
from rst.data.sources import Dataset, Split, hold_out, load, with_label_noise

__all__ = ["Augmentation", "Dataset", "Loader", "Split", "evaluation_batches", "hold_out", "load", "with_label_noise"]
