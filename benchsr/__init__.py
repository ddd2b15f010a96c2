"""benchsr: adversarial robustness benchmark for x4 image super-resolution.

    model = benchsr.load_model("impressionism-ntire")
    threat = benchsr.load_threat("pgd", eps=8 / 255)
    attacked = threat(model, lr, hr)
    benchsr.psnr(model(attacked), hr)
    table = benchsr.run(models="impressionism-ntire", threats="clean,pgd")
"""

from benchsr.metrics import lpips, psnr, ssim
from benchsr.runner import run
from benchsr.smoothing import load_model, smooth
from benchsr.threats import load_threat
from benchsr.types import BenchsrError

__all__ = ["BenchsrError", "load_model", "load_threat", "lpips", "psnr", "run", "smooth", "ssim"]
