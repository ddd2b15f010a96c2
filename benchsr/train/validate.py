"""Validation figures of a generator: PSNR, SSIM and LPIPS, clean and under an attack."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from benchsr.base.inference import full_float32
from benchsr.base.pairs import Sample
from benchsr.metrics.quality import MetricSettings, score
from benchsr.threats.table import Threat

Figures = dict[str, float]
"""`{threat}_{metric}` -> value."""

SETTINGS = MetricSettings(border=4, quantise_sr=False)
"""The paper protocol's, apart from rounding."""


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
            with torch.no_grad(), full_float32():
                sr = model(attacked)
            row |= {f"{threat.id}_{name}": value.item() for name, value in score(sr, hr, lr, SETTINGS).figures.items()}
        rows.append(row)
    return rows


def mean_figures(rows: Sequence[Figures]) -> Figures:
    """The mean over images of what `validate` returned."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}
