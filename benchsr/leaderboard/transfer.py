"""Attacks made on one model and scored on the others: which sources reach whom, and which transfers best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from benchsr.leaderboard.scores import NOT_RUN, Cell, average, interval, make_cell, sign, subtract
from benchsr.leaderboard.tables import CardInfo, show
from benchsr.metrics.quality import METRICS
from benchsr.results.records import Record
from benchsr.results.transfers import origin


@dataclass(frozen=True, eq=False)
class Matrix:
    """One attack made on each of `cards` and scored on each of them: (source, victim) -> cell."""

    attack: str
    cards: Sequence[CardInfo]
    cells: Mapping[tuple[str, str], Cell]

    def cell(self, source: str, victim: str) -> Cell:
        """What the attack on `source` leaves of `victim`."""
        return self.cells.get((source, victim), NOT_RUN)

    @cached_property
    def advantages(self) -> dict[str, Cell]:
        """Source -> its attack's figures minus those of the other sources' attacks, on the same other models, averaged
        over these.

        The victim's own attack is no source's, so that each victim counts by how much sources differ on it. None with
        fewer than three models, or where a pair is incomplete.
        """
        ids = [card.id for card in self.cards]
        found = {source: [self._beside(source, victim, ids) for victim in ids if victim != source] for source in ids}
        means = {source: average(cells) for source, cells in found.items() if len(ids) > 2}
        return {source: cell for source, cell in means.items() if cell.ok}

    def _beside(self, source: str, victim: str, ids: Sequence[str]) -> Cell:
        others = [self.cell(other, victim) for other in ids if other not in (source, victim)]
        return subtract(self.cell(source, victim), average(others)) if others else NOT_RUN

    def sentences(self, metrics: Iterable[str]) -> list[str]:
        """Which source transfers best, by each of `metrics` of which that can be said."""
        return [words for metric in metrics if (words := self.words(metric))]

    def words(self, metric: str) -> str:
        """Which source transfers best by a metric, as a sentence; empty where that cannot be said."""
        titles = {card.id: card.title for card in self.cards}
        # Harm is what lowers the good: the most harmful advantage is the smallest, signed by the metric.
        ranked = sorted(self.advantages, key=lambda s: sign(metric) * self.advantages[s].value(metric))
        if len(ranked) < len(titles) or not ranked:
            return ""
        best, *others = ranked
        alike = [other for other in others if self._holds_zero(best, other, metric)]
        name = METRICS[metric].title
        said = (
            f"By {name}, {self.attack} transfers best to others from {titles[best]}: their {name} changes by "
            f"{show(self.advantages[best].estimate(metric), metric)} against the attacks made on other sources"
        )
        return f"{said}; not told from it: {', '.join(titles[other] for other in alike)}." if alike else f"{said}."

    def _holds_zero(self, a: str, b: str, metric: str) -> bool:
        gap = subtract(self.advantages[a], self.advantages[b])
        low, high = interval(gap.of(metric, gap.draws))
        return not (low > 0 or high < 0)


def matrices(
    records: Iterable[Record],
    transferred: Sequence[Record],
    cards: Sequence[CardInfo],
    threats: Sequence[str],
    images: int,
) -> list[Matrix]:
    """The matrices of `cards` by attack, in the order of `threats`; `images` make a full set.

    Of `transferred` only that counts which fits the board's own lines `records`: the attack of a model on itself has
    the key of the board's line. It has not where weights, data or settings changed since.
    """
    own = {(r.model, r.threat, r.image): r.key for r in records}
    made = [(*origin(r.threat), r) for r in transferred]
    whole: dict[tuple[str, str], bool] = {}
    for attack, source, r in made:
        if source == r.model:
            fits = own.get((r.model, attack, r.image)) == r.key
            whole[attack, source] = whole.get((attack, source), True) and fits
    found = []
    for attack in threats:
        chosen = [card for card in cards if whole.get((attack, card.id))]
        groups: dict[tuple[str, str], list[Record]] = {}
        for name, source, r in made:
            if name == attack:
                groups.setdefault((source, r.model), []).append(r)
        if len(chosen) > 1:
            pairs = {(s.id, v.id): groups.get((s.id, v.id), []) for s in chosen for v in chosen}
            found.append(Matrix(attack, chosen, {pair: make_cell(lines, images) for pair, lines in pairs.items()}))
    return found


def transfer_frame(found: Iterable[Matrix], metrics: Sequence[str]) -> pd.DataFrame:
    """A line for each attack, source and victim: images, status, and each metric with its interval."""
    lines = []
    for matrix in found:
        for (source, victim), cell in matrix.cells.items():
            line: dict[str, Any] = {"attack": matrix.attack, "source": source, "victim": victim}
            line |= {"n": cell.n, "status": cell.status}
            for metric in metrics:
                estimate = cell.estimate(metric)
                line |= {metric: estimate.value, f"{metric}_low": estimate.low, f"{metric}_high": estimate.high}
            lines.append(line)
    return pd.DataFrame(lines)
