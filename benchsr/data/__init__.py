"""Images and data sets: pairs of LR and HR under stable ids."""

from benchsr.base.shrinking import bicubic_downscale
from benchsr.data.cards import DATASETS, DataCard, is_data_card, load_data_card
from benchsr.data.datasets import Dataset, load_dataset, load_sample
from benchsr.data.fetching import fetch, state
from benchsr.data.images import read_image, write_image

__all__ = [
    "DATASETS",
    "DataCard",
    "Dataset",
    "bicubic_downscale",
    "fetch",
    "is_data_card",
    "load_data_card",
    "load_dataset",
    "load_sample",
    "read_image",
    "state",
    "write_image",
]
