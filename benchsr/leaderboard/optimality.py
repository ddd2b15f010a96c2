"""How far each attack is from the worst that is known of the same model, image and budget."""

from __future__ import annotations

from collections.abc import Sequence

from benchsr.leaderboard.scores import NOT_RUN, Grid, sign, worst


def optimality(grid: Grid, threats: Sequence[str]) -> dict[tuple[str, str], dict[str, float]]:
    """For each (model, threat) by metric the mean distance from the worst figure among `threats`, image by image: >= 0.

    In the metric's unit; 0 says that no other attack did more to any image. Compare attacks of one norm and eps alone.
    A model that is not complete under each of them is left out.
    """
    gaps = {}
    for model in dict.fromkeys(model for model, _ in grid):
        cells = {threat: grid.get((model, threat), NOT_RUN) for threat in threats}
        known = worst(list(cells.values()))
        if known.ok:
            for threat, cell in cells.items():
                away = {m: sign(m) * (cell.value(m) - known.value(m)) for m in known.metrics}
                gaps[model, threat] = {m: max(0.0, gap) for m, gap in away.items()}  # rounding may go below
    return gaps
