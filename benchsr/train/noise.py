"""What is left of noise in smooth places: its variance, autocorrelation and spectrum, compared and drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchsr.base.drawing import canvas, save

SMOOTH = 0.05
"""The share of the crops, the smoothest, that the statistics are taken over."""


@dataclass(frozen=True)
class NoiseStatistics:
    """Of noise on [0, 1]-valued images: `variance`; `autocorrelation` (lags,) from lag 1 on, along rows and columns;
    `spectrum` (frequencies,), mean power at 1, 2, ... cycles a crop, of which the sum over all waves is the variance.
    """

    variance: float
    autocorrelation: Tensor
    spectrum: Tensor

    def distance(self, other: NoiseStatistics) -> dict[str, float]:
        """How far apart two are: |log10 ratio| of variance and spectrum, difference of autocorrelation (means)."""
        return {
            "variance": abs(torch.tensor(self.variance / other.variance).log10().item()),
            "autocorrelation": (self.autocorrelation - other.autocorrelation).abs().mean().item(),
            "spectrum": (self.spectrum / other.spectrum).log10().abs().mean().item(),
        }


def noise_statistics(crops: Tensor) -> NoiseStatistics:
    """Statistics of the smoothest of `crops` (N, 3, c, c) in [0, 1], means over colours.

    Smoothest are the crops of least variance: where the scene is flat, noise is all that is left of it. Each colour's
    mean is taken off.
    """
    smooth = crops[crops.var((2, 3)).mean(1).argsort()[: max(1, round(SMOOTH * len(crops)))]]
    noise = smooth - smooth.mean((2, 3), keepdim=True)
    variance = noise.square().mean().clamp(min=1e-12)
    side = crops.shape[-1]
    lags = [
        ((noise[..., lag:] * noise[..., :-lag]).mean() + (noise[..., lag:, :] * noise[..., :-lag, :]).mean()) / 2
        for lag in range(1, side // 2)
    ]
    window = torch.hann_window(side + 2, periodic=False, dtype=crops.dtype, device=crops.device)[1:-1]
    window = torch.outer(window, window)
    power = torch.fft.fft2(noise * window).abs().square().mean((0, 1)) / (window.square().sum() * side**2)
    steps = torch.fft.fftfreq(side, 1 / side, device=crops.device)
    radius = torch.hypot(steps[:, None], steps[None, :]).round()
    rings = [power[radius == r].mean() for r in range(1, side // 2 + 1)]
    return NoiseStatistics(variance.item(), torch.stack(lags) / variance, torch.stack(rings).clamp(min=1e-12))


def plot_noise(sets: Mapping[str, Tensor], path: Path) -> dict[str, NoiseStatistics]:
    """Draw the noise statistics of each of `sets`, name -> crops (N, 3, c, c) in [0, 1], into the PNG `path`.

    Returns the statistics.
    """
    found = {name: noise_statistics(crops) for name, crops in sets.items()}
    figure = canvas(12, 3.4)
    variance, autocorrelation, spectrum = figure.subplots(1, 3)
    for index, (name, statistics) in enumerate(found.items()):
        variance.bar(name, statistics.variance, color=f"C{index}")
        lags = range(1, len(statistics.autocorrelation) + 1)
        autocorrelation.plot(lags, statistics.autocorrelation.cpu(), label=name, color=f"C{index}")
        cycles = range(1, len(statistics.spectrum) + 1)
        spectrum.plot(cycles, statistics.spectrum.cpu(), label=name, color=f"C{index}")
    variance.set(title="variance")
    autocorrelation.set(title="autocorrelation", xlabel="lag in LR pixels")
    spectrum.set(title="spectrum", xlabel="cycles a crop", ylabel="power", yscale="log")
    autocorrelation.legend()
    save(figure, path)
    return found
