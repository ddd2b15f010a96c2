"""Validation figures of a generator: PSNR, SSIM and LPIPS, clean and under an attack."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchsr.base.pairs import Sample
from benchsr.metrics.quality import lpips, psnr, ssim
from benchsr.threats.table import Threat

Figures = dict[str, float]
"""`{threat}_{metric}` -> value."""

BORDER = 4
"""Pixels of the border that PSNR and SSIM leave out, as in the paper protocol."""


def scores(sr: Tensor, hr: Tensor) -> dict[str, Tensor]:
    """PSNR (dB) and SSIM inside the border and LPIPS of `sr`, `hr` (N, 3, H, W), RGB in [0, 1]: each (N,)."""
    sr = sr.clamp(0, 1)
    return {"psnr": psnr(sr, hr, border=BORDER), "ssim": ssim(sr, hr, border=BORDER), "lpips": lpips(sr, hr)}


def validate(
    model: nn.Module, samples: Sequence[Sample], threats: Sequence[Threat], device: str | torch.device = "cpu"
) -> list[Figures]:
    """The scores of `model` (in eval mode) on each of `samples` under each of `threats`."""
    rows = []
    for sample in samples:
        lr, hr = sample.lr[None].to(device), sample.hr[None].to(device)
        row: Figures = {}
        for threat in threats:
            attacked = threat(model, lr, hr, [sample.id])
            with torch.no_grad():
                sr = model(attacked)
            row |= {f"{threat.id}_{name}": value.item() for name, value in scores(sr, hr).items()}
        rows.append(row)
    return rows


def mean_figures(rows: Sequence[Figures]) -> Figures:
    """The mean over images of what `validate` returned."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}
