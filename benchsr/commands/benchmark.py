"""One network measured, ranked beside others and compared with them, for Python and notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from benchsr.base.errors import InputError
from benchsr.commands.compare import Comparison, side
from benchsr.commands.run import evaluate
from benchsr.evaluation.options import RunOptions
from benchsr.evaluation.protocol import Protocol, load_protocol, select_threats
from benchsr.leaderboard import read_leaderboard
from benchsr.leaderboard.compare import compare
from benchsr.leaderboard.export import FORMATS, table_exhibit
from benchsr.leaderboard.report import Leaderboard
from benchsr.leaderboard.tables import FAMILIES, CardInfo, Layout, Row, Table, frame, make_table
from benchsr.models.cards import Card
from benchsr.models.live import Model, select


@dataclass(frozen=True)
class Report:
    """What `benchmark` found of the model `name`; a notebook shows it as a table, the best model first.

    `board` holds the models' evaluations under `threats` alone; `folder` is the whole leaderboard that they are in.
    """

    name: str
    models: Mapping[str, Card]
    threats: str
    protocol: Protocol
    options: RunOptions
    board: Leaderboard
    folder: Path

    @cached_property
    def _table(self) -> Table:
        layout = Layout(f"Models beside {self.name}", tuple(select_threats(self.threats, self.protocol)))
        cards = [self.board.cards[model] for model in self.models]
        board = self.board
        made = make_table(
            "benchmark", _family(cards), layout, cards, board.grid, board.flags, tuple(board.protocol.metrics)
        )
        return replace(made, rows=sorted(made.rows, key=_standing))

    @property
    def table(self) -> pd.DataFrame:
        """A row for each model, the best first: its `rank`, then the columns of `leaderboard.tables.frame`.

        Models are ranked by their mean rank over all threats and metrics, each counting alike; those with incomplete
        cells follow those with fewer. Equal ones share a rank.
        """
        made, standings = frame(self._table), [_standing(row) for row in self._table.rows]
        made.insert(1, "rank", [1 + sum(other < own for other in standings) for own in standings])
        return made

    def to_markdown(self) -> str:
        """The table in Markdown, the best figures bold, with a caption that says what they are."""
        return self._shown("markdown")

    def to_latex(self) -> str:
        """The same for LaTeX; it needs the package booktabs."""
        return self._shown("latex")

    def _repr_html_(self) -> str:
        return self._shown("html")

    def _shown(self, form: str) -> str:
        return FORMATS[form](table_exhibit(self.board, self._table, self._table)).decode()

    def compare(self, other: str) -> Comparison:
        """The model (A) against `other` (B), named as in `benchsr.run`, by paired tests on the same images.

        What is not evaluated yet is evaluated now. Raises InputError where no image has figures of both.
        """
        report = self if other in self.models.keys() - {self.name} else self._beside(other)
        (b,) = (model for model in report.models if model in (other, *report.models.keys() - self.models.keys()))
        found = compare(*(side(report.board.records, model, self.folder) for model in (self.name, b)))
        return Comparison(f"Board {self.folder.name}", self.name, b, {f"{self.name} - {b}": found})

    def _beside(self, other: str) -> Report:
        cards = select(other, self.options.trust_code, self.protocol.scale)
        if len(cards) != 1 or cards[0].id in self.models:
            raise InputError(
                f"compare {self.name} with one other model, by its id where it is in the table; got {other!r}"
            )
        own = {self.name: self.models[self.name]}
        return _report(self.name, own | {cards[0].id: cards[0]}, self.threats, self.protocol, self.options)


def benchmark(
    network: Model,
    protocol: str | Path | Protocol = "quick",
    threats: str = "all",
    name: str = "mine",
    against: str | Mapping[str, Model] = "bicubic",
    **options: Any,
) -> Report:
    """Measure a network as the row `name`, and rank it beside others; see `Report` for what can be done with it.

    `network`: a torch.nn.Module in eval mode, LR (N, 3, h, w) RGB in [0, 1] to SR (N, 3, 4h, 4w), or any other model
    of `benchsr.run`, which documents `protocol`, `threats`, and the `options` (dataset, limit, out, device, workers,
    trust_code and so on). `against`: the models beside it, named as there; "" for none. As in any run, the figures
    become part of the leaderboard in the folder `out`, and nothing is computed twice.
    Raises BenchsrError for unusable arguments and networks; compact models and others never share a table.
    """
    told = RunOptions(**options)
    chosen = (protocol if isinstance(protocol, Protocol) else load_protocol(protocol)).override(scale=told.scale)
    own = select({name: network}, told.trust_code, chosen.scale)
    others = select(against, told.trust_code, chosen.scale) if against else []
    models = {card.id: card for card in own + others}
    if len(models) <= len(others):
        raise InputError(f"two of the models are called {name!r}; give the network another name")
    _family(list(models.values()))
    return _report(name, models, threats, chosen, told)


def _report(name: str, models: Mapping[str, Card], threats: str, protocol: Protocol, options: RunOptions) -> Report:
    outcome = evaluate(models, threats, protocol, options)
    board = replace(read_leaderboard(outcome.folder, outcome.cards), records=outcome.planned)
    return Report(name, models, threats, protocol, options, board, outcome.folder)


def _family(cards: list[Card] | list[CardInfo]) -> str:
    """The one family of the cards. Raises InputError where they are of several."""
    members = {card.family: card.id for card in cards if card.family != "both"}
    if len(members) > 1:
        raise InputError(
            f"{' and '.join(members.values())} share no table: compact networks stand apart; compare() takes any two"
        )
    return next(iter(members), next(iter(FAMILIES)))


def _standing(row: Row) -> tuple[int, float]:
    """What models are sorted by: cells that are not complete, then the mean rank over threats and metrics."""
    gaps = sum(not cell.ok for cell in row.cells.values())
    return gaps, fmean(row.ranks.values()) if row.ranks else 0.0
