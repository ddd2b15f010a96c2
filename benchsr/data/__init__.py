"""Images and data sets: pairs of LR and HR under stable ids."""

from benchsr.data.datasets import DATASETS, Dataset, fetch, load_dataset, load_sample
from benchsr.data.images import bicubic_downscale, read_image, write_image

__all__ = [
    "DATASETS",
    "Dataset",
    "bicubic_downscale",
    "fetch",
    "load_dataset",
    "load_sample",
    "read_image",
    "write_image",
]
