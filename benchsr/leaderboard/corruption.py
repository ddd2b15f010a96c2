"""Corruption errors: what each kind of corruption leaves of a model, relative to bicubic interpolation.

After Hendrycks and Dietterich 2019 (mean corruption error), whose baseline is AlexNet: errors are summed over the
severities of a kind before the ratio is taken, and the mean is over kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchsr.leaderboard.scores import NOT_RUN, SCORED, Estimate, Floats, Grid, interval, resampled_means
from benchsr.leaderboard.tables import CardInfo
from benchsr.threats.severities import KINDS, SEVERITIES

BASELINE = "bicubic"

ERRORS: Mapping[str, tuple[str, Callable[[Floats], Floats]]] = {
    "psnr": ("mean squared error", lambda psnr: 10 ** (-psnr / 10)),
    "ssim": ("1 - SSIM", lambda ssim: 1 - ssim),
    "lpips": ("LPIPS", lambda lpips: lpips),
}
"""Metric -> the error that it stands for: its name, and from score to error."""


@dataclass(frozen=True)
class Profile:
    """A model's corruption error by one metric: of each kind, and their mean, relative to bicubic's."""

    card: CardInfo
    metric: str
    kinds: Mapping[str, Estimate]
    mean: Estimate


def profiles(grid: Grid, cards: Sequence[CardInfo]) -> list[Profile]:
    """Every model by every metric that is complete in each kind that bicubic is complete in; none without bicubic."""
    found = []
    for metric in SCORED:
        base = {kind: errors for kind in KINDS if (errors := _errors(grid, BASELINE, kind, metric)) is not None}
        for card in cards:
            own = {kind: _errors(grid, card.id, kind, metric) for kind in base}
            ratios = {kind: errors / base[kind] for kind, errors in own.items() if errors is not None}
            if ratios and len(ratios) == len(base):
                mean = np.mean(list(ratios.values()), axis=0)
                found.append(Profile(card, metric, {k: _estimate(r) for k, r in ratios.items()}, _estimate(mean)))
    return found


def _errors(grid: Grid, model: str, kind: str, metric: str) -> Floats | None:
    """The mean error over a kind's severities: of all images, then of each bootstrap resample; None if incomplete."""
    cells = [grid.get((model, f"{kind}-{severity}"), NOT_RUN) for severity in SEVERITIES]
    if not all(cell.ok and cell.shares for cell in cells):
        return None
    images, error = tuple(sorted(cells[0].shares)), ERRORS[metric][1]
    scores = [[cell.of(metric, cell.shares[image]) * cell.n for image in images] for cell in cells]
    values = error(np.array(scores)).mean(axis=0)[:, None]
    return np.concatenate([values.mean(axis=0), resampled_means(values, images)[:, 0]])


def _estimate(ratio: Floats) -> Estimate:
    return Estimate(float(ratio[0]), *interval(ratio[1:]))
