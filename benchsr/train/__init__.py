"""Training recipes: the compact zoo is made with them, and the paper's models that have no public weights can be."""

from benchsr.train.cli import train

__all__ = ["train"]
