"""A run's figures on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from benchsr.base.text import terminal_table
from benchsr.leaderboard.scores import NOT_RUN, Cell, brief, make_grid
from benchsr.leaderboard.tables import FAMILIES, LAYOUTS, CardInfo, blanks, family_cards
from benchsr.metrics.quality import METRICS
from benchsr.results.records import Record, Status, metrics_of

SUMMARIES = (
    ("table1", "table2", "table3", "standins"),
    ("adaptive", "curves", "ensemble", "variants", "partial", "packages"),
)
"""Tables that share those on the terminal."""

GAP, FIGURE = 2, 6
"""Characters between the terminal's columns, and of a figure there at the least."""


def summary(records: Sequence[Record], cards: Mapping[str, CardInfo], width: int = 80) -> Iterator[RenderableType]:
    """The terminal's tables of `width` characters at most, and words about them: metrics below each other, means over
    images, an asterisk where images are missing. Each family has its own, of as many threats as fit; ids stay whole.
    """
    scored = [r for r in records if r.status is Status.OK]
    expected = {t: len({r.image for r in records if r.threat == t}) for t in dict.fromkeys(r.threat for r in scored)}
    grid, named = make_grid(records, expected), dict.fromkeys(r.threat for r in records)
    metrics = brief(metrics_of(scored))
    figures = {pair: _brief(cell, metrics) for pair, cell in grid.items()}
    for family, (_, name) in FAMILIES.items():
        members = [card for card in family_cards(family, grid, cards) if any(model == card.id for model, _ in grid)]
        shown = [card for card in members if any(grid[key].n for key in grid if key[0] == card.id)]
        if shown:
            titles = " above ".join(
                METRICS[m].title + f" in {METRICS[m].unit}" * bool(METRICS[m].unit) for m in metrics
            )
            yield Text(f"{name[0].upper()}{name[1:]}: {titles}, image means")
        for group in SUMMARIES:
            threats = [t for layout in group for t in LAYOUTS[layout].among(expected).threats if t in expected]
            rows = [card.id for card in shown if any(grid.get((card.id, t), NOT_RUN).n for t in threats)]
            wide = {
                t: max(len(t), FIGURE, *(len(line) for m in rows for line in figures.get((m, t), "").splitlines()))
                for t in threats
                if rows
            }
            for part in _fitting(wide, max(map(len, rows), default=0), width):
                yield _brief_table(part, rows, figures)
                yield Text()
        asked = [
            t for group in SUMMARIES for layout in group for t in LAYOUTS[layout].among(named).threats if t in named
        ]
        for line in blanks([(card, {t: grid.get((card.id, t), NOT_RUN) for t in asked}) for card in members]):
            yield Text(f"{line}\n")


def _fitting(threats: Mapping[str, int], label: int, width: int) -> Iterator[list[str]]:
    """Cut `threats`, with the widths of their columns, into as few parts as fit into `width` beside a label of `label`
    characters, one threat at the least.
    """
    part: list[str] = []
    for threat in threats:
        if part and label + sum(GAP + threats[t] for t in [*part, threat]) > width:
            yield part
            part = []
        part.append(threat)
    if part:
        yield part


def _brief_table(threats: Sequence[str], models: Sequence[str], figures: Mapping[tuple[str, str], str]) -> Table:
    table = terminal_table("model", *threats, gap=GAP)
    for model in models:
        table.add_row(Text(model), *(figures.get((model, threat), "–") for threat in threats))
    return table


def _brief(cell: Cell, metrics: Sequence[str]) -> str:
    """A cell's figures, one a line; the first is marked where images are missing."""
    if not cell.n:
        return "–"
    first, *rest = ("–" if np.isnan(v := cell.value(m)) else METRICS[m].shown(v) for m in metrics)
    return "\n".join([first + "*" * (not cell.ok), *rest])
