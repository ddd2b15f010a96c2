"""The curves of a training run as a picture."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from benchsr.base.drawing import canvas, save
from benchsr.train.loop import LOG_COLUMNS


def plot_curves(folder: Path, window: int = 50) -> Path:
    """Draw `folder`/log.csv, smoothed over `window` steps, and validation.csv into curves.png; returns its path."""
    log = pd.read_csv(folder / "log.csv")
    losses = [name for name in LOG_COLUMNS[3:] if name in log and log[name].notna().any()]
    validation_file = folder / "validation.csv"
    validation = pd.read_csv(validation_file) if validation_file.exists() else pd.DataFrame()
    figures = [name for name in validation.columns if name not in ("stage", "step")]
    panels = losses + figures
    columns = 4
    rows = -(-len(panels) // columns)
    figure = canvas(4 * columns, 2.6 * rows)
    for axes, name in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=False):
        table = log if name in losses else validation
        for stage, part in table.groupby("stage", sort=False):
            part = part[part[name].notna()]  # stages differ in what they log
            if part.empty:
                continue
            values = part[name].rolling(window, min_periods=1).mean() if name in losses else part[name]
            axes.plot(part["step"], values, marker="" if name in losses else "o", label=stage)
        axes.set_title(name)
        axes.set_xlabel("step")
        axes.legend()
    path = folder / "curves.png"
    save(figure, path)
    return path
