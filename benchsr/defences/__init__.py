"""Median randomized smoothing, and what it proves."""

from benchsr.defences.certificate import Certificate, certify
from benchsr.defences.smoothing import Smoothed, load_model, smooth

__all__ = ["Certificate", "Smoothed", "certify", "load_model", "smooth"]
