"""How SR is scored, and the loss that attacks raise."""

from benchsr.metrics.objective import BoundObjective, Objective
from benchsr.metrics.quality import METRICS, lpips, psnr, ssim

__all__ = ["METRICS", "BoundObjective", "Objective", "lpips", "psnr", "ssim"]
