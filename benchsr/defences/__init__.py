"""Defences, median randomized smoothing first, and what it proves."""

from benchsr.defences.certificate import Certificate, certify
from benchsr.defences.smoothing import Smoothed, smooth
from benchsr.defences.table import DEFENCES, load_model

__all__ = ["DEFENCES", "Certificate", "Smoothed", "certify", "load_model", "smooth"]
