"""What is done to the LR image before a model sees it."""

from benchsr.threats.attacks import AttackResult, GradientAttack
from benchsr.threats.table import THREATS, Threat, ThreatSpec, load_threat

__all__ = ["THREATS", "AttackResult", "GradientAttack", "Threat", "ThreatSpec", "load_threat"]
