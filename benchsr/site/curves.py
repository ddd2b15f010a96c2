"""A model's figures over growing eps as drawings of lines, in the page itself: they follow its theme."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

from benchsr.leaderboard.scores import Cell
from benchsr.leaderboard.tables import LAYOUTS
from benchsr.metrics.quality import METRICS
from benchsr.threats.table import THREATS

CURVE = ("clean", *LAYOUTS["curves"].threats)
"""Threats of a robustness curve: the same attack at growing eps."""

SIZE = (300, 170)
"""Width and height of a panel's inside, in units of the drawing."""


@dataclass(frozen=True)
class Panel:
    """One metric over eps: points in units of SIZE from the top left, as SVG takes them ("x,y x,y").

    `ticks` are (x, text) along eps, `levels` (y, text) of the metric, `band` outlines the model's intervals, `others`
    are the other models' lines.
    """

    title: str
    ticks: Sequence[tuple[float, str]]
    levels: Sequence[tuple[float, str]]
    own: str
    band: str
    others: Sequence[str]


def panels(model: str, cells: Mapping[str, Sequence[Cell]], metrics: Sequence[str]) -> Iterator[Panel]:
    """A panel for each of `metrics` that has a figure; `cells` holds for each model one cell for each threat of CURVE.

    Incomplete cells are left out. Radii double from one threat to the next and stand at equal distances.
    """
    eps = [f"{255 * float(THREATS[threat].defaults.get('eps', 0.0)):g}" for threat in CURVE]
    width, height = SIZE
    across = [width * i / (len(CURVE) - 1) for i in range(len(CURVE))]
    for metric in metrics:
        lines = {
            name: [(x, cell.value(metric)) for x, cell in zip(across, row, strict=True) if cell.ok]
            for name, row in cells.items()
        }
        mine = [(x, cell.estimate(metric)) for x, cell in zip(across, cells[model], strict=True) if cell.ok]
        ends = [y for line in lines.values() for _, y in line] + [y for _, e in mine for y in (e.low, e.high)]
        finite = [v for v in ends if np.isfinite(v)]
        if not finite:
            continue
        levels = [float(level) for level in MaxNLocator(4).tick_values(min(finite), max(finite))]

        def points(pairs: Sequence[tuple[float, float]], low: float = levels[0], high: float = levels[-1]) -> str:
            seen = [(x, y) for x, y in pairs if np.isfinite(y)]
            return " ".join(f"{x:.1f},{height * (high - y) / (high - low):.1f}" for x, y in seen)

        yield Panel(
            METRICS[metric].label,
            list(zip(across, eps, strict=True)),
            [(height * (levels[-1] - level) / (levels[-1] - levels[0]), f"{level:g}") for level in levels],
            points(lines[model]),
            points([(x, e.low) for x, e in mine] + [(x, e.high) for x, e in reversed(mine)]),
            [points(line) for name, line in lines.items() if name != model and line],
        )
