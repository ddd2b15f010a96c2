"""benchsr: adversarial robustness benchmark for image super-resolution.

For example:

    model = benchsr.load_model("impressionism-ntire")
    threat = benchsr.load_threat("pgd", eps=8 / 255)
    attacked = threat(model, lr, hr)
    benchsr.psnr(model(attacked).clamp(0, 1), hr)
    table = benchsr.run(models="impressionism-ntire", threats="clean,pgd")
    report = benchsr.benchmark(net, against="bicubic,impressionism-ntire")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchsr.base.errors import BenchsrError as BenchsrError
    from benchsr.base.rng import Seeded as Seeded
    from benchsr.commands.benchmark import benchmark as benchmark
    from benchsr.commands.run import run as run
    from benchsr.defences.certificate import Certificate as Certificate
    from benchsr.defences.certificate import certify as certify
    from benchsr.defences.smoothing import smooth as smooth
    from benchsr.defences.table import load_model as load_model
    from benchsr.metrics.quality import lpips as lpips
    from benchsr.metrics.quality import psnr as psnr
    from benchsr.metrics.quality import ssim as ssim
    from benchsr.threats.table import load_threat as load_threat

_HOMES = {
    "BenchsrError": "base.errors",
    "Certificate": "defences.certificate",
    "Seeded": "base.rng",
    "benchmark": "commands.benchmark",
    "certify": "defences.certificate",
    "load_model": "defences.table",
    "load_threat": "threats.table",
    "lpips": "metrics.quality",
    "psnr": "metrics.quality",
    "run": "commands.run",
    "smooth": "defences.smoothing",
    "ssim": "metrics.quality",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import on first use, so that `benchsr --help` does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'benchsr' has no attribute {name!r}")
    return getattr(import_module(f"benchsr.{_HOMES[name]}"), name)
