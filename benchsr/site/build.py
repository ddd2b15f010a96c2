"""From leaderboards/ to HTML: one page for all leaderboards, and one for each model."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from jinja2 import Environment
from matplotlib.ticker import MaxNLocator

from benchsr.base.errors import InputError
from benchsr.base.files import write_atomic, write_changed
from benchsr.base.text import templates
from benchsr.defences.table import DEFENCES
from benchsr.evaluation.ledger import stored_protocol
from benchsr.leaderboard import Leaderboard, read_leaderboard
from benchsr.leaderboard.corruption import ERRORS
from benchsr.leaderboard.export import COST_COLUMNS, COSTS, PARETO, cost_caption, cost_cells, read_costs
from benchsr.leaderboard.flags import FLAGS
from benchsr.leaderboard.headline import METRIC, Headline
from benchsr.leaderboard.paper import judge_printed
from benchsr.leaderboard.plots import PLOTS, SENSITIVITY_PLOTS
from benchsr.leaderboard.scores import CONFIDENCE, NOT_RUN, SCORED, Cell, Estimate, sign
from benchsr.leaderboard.sensitivity import DROP, LARGEST, SENSITIVITY, SPLIT, digits, most_sensitive
from benchsr.leaderboard.tables import (
    AVERAGE,
    DERIVED,
    FAMILIES,
    LAYOUTS,
    MORE,
    WORST,
    CardInfo,
    Table,
    blanks,
    notes,
    show,
)
from benchsr.metrics.quality import METRICS, Metric
from benchsr.models.zoo import zoo
from benchsr.results.transfers import TRANSFER
from benchsr.site.curves import CURVE, SIZE, Panel, panels
from benchsr.site.explorer import PICTURES, copy_figures, read_figures
from benchsr.threats.severities import KINDS
from benchsr.threats.table import THREATS

APART = ("sandwich", TRANSFER, *SENSITIVITY_PLOTS)
"""Stems of plots that stand in a section of their own."""

TALLEST = 3.0
"""Corruption error, relative to bicubic's, at which the bars of a profile are cut."""


@dataclass(frozen=True)
class Scale:
    """The axis of the first screen's plot, from `low` to `high`."""

    low: float
    high: float
    ticks: Sequence[float]

    @classmethod
    def of(cls, headline: Headline) -> Scale:
        """Where every finite interval of a headline has room."""
        estimates = [cell.estimate(METRIC) for place in headline.places for cell in (place.clean, place.attacked)]
        ends = [end for e in estimates for end in (e.low, e.high) if math.isfinite(end)]
        low, high = min(ends), max(ends)
        margin = 0.03 * (high - low) or 1.0
        ticks = MaxNLocator(5).tick_values(low, high)
        return cls(low - margin, high + margin, [float(tick) for tick in ticks if low <= tick <= high])

    def holds(self, estimate: Estimate) -> bool:
        """Whether an estimate has a place on the axis."""
        return all(map(math.isfinite, (estimate.value, estimate.low, estimate.high)))

    def at(self, value: float) -> float:
        """Where a value lies, from 0 to 1."""
        return round((value - self.low) / (self.high - self.low), 4)


@dataclass(frozen=True)
class View:
    """A figure as the page shows it: `value` for sorting (9 digits, "" where there is none), `text` and `span` to read.

    `mark` is "best", "second" or "", `shade` in [0, 1] grows with quality within the column; `note` says why the cell
    is not complete.
    """

    column: str
    metric: str
    value: str = ""
    text: str = "–"
    span: str = ""
    mark: str = ""
    shade: float = 0.0
    n: int = 0
    rank: int | None = None
    note: str = ""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One model's figures in a sheet; `reason` where it has none at all."""

    card: CardInfo
    views: Sequence[View]
    reason: str

    def cell(self, column: str) -> list[View]:
        """The figures of one column, a View for each metric."""
        return [view for view in self.views if view.column == column]


@dataclass(frozen=True, eq=False)
class Sheet:
    """All tables of one family side by side: a row for each model, columns by id with their titles."""

    board: Leaderboard
    family: str

    @property
    def metrics(self) -> dict[str, Metric]:
        """The board's metrics, as its columns have them."""
        return {m: METRICS[m] for m in dict.fromkeys(m for table in self.tables for m in table.metrics)}

    @cached_property
    def tables(self) -> list[Table]:
        """The leaderboard's tables of this family; their rows are the same models in the same order."""
        return [table for table in self.board.tables.values() if table.family == self.family]

    @property
    def reproduced(self) -> list[CardInfo]:
        """Cards of its rows whose networks were trained anew for a row of the paper."""
        return [row.card for row in self.rows if row.card in self.board.reproduced]

    def places(self) -> Iterator[tuple[Table, str]]:
        """Each table with each of its columns that the protocol has."""
        asked = set(self.board.protocol.threats)
        for table in self.tables:
            for column in table.layout.columns:
                if column in asked or column == WORST or (column == AVERAGE and asked.issuperset(table.layout.threats)):
                    yield table, column

    @cached_property
    def columns(self) -> dict[str, tuple[str, str]]:
        """Column id -> (title, the layout it belongs to); the id of a derived one is led by its layout."""
        return {
            _column_id(table, column): (table.layout.heading(column), _layout(table)) for table, column in self.places()
        }

    @property
    def empty(self) -> set[str]:
        """Columns without any figure."""
        return set(self.columns) - {view.column for row in self.rows for view in row.views if view.n}

    @property
    def blanks(self) -> list[str]:
        """What it lacks altogether, in words."""
        asked = set(self.board.protocol.threats)
        cells: list[dict[str, Cell]] = [{} for _ in self.rows]
        for table in self.tables:
            for found, (_, more) in zip(cells, table.by_threat, strict=True):
                found |= {threat: cell for threat, cell in more.items() if threat in asked}
        return blanks([(row.card, found) for row, found in zip(self.rows, cells, strict=True)])

    @cached_property
    def rows(self) -> list[Row]:
        """The models in the paper's order."""
        raised = self.board.flags
        shades = {table.name: _shades(table) for table in self.tables}
        made = []
        for i, first in enumerate(self.tables[0].rows):
            views = [
                _view(table, i, column, metric, shades[table.name], raised.get((first.card.id, column), ()))
                for table, column in self.places()
                for metric in table.metrics
            ]
            # The further metrics of a column have a table of their own, but stand beside the others here.
            columns, metrics = list(self.columns), list(self.metrics)
            views.sort(key=lambda view: (columns.index(view.column), metrics.index(view.metric)))
            reasons = [table.rows[i].cells[column].reason for table, column in self.places()]
            made.append(Row(first.card, views, "" if any(v.n for v in views) else max(reasons, key=reasons.count)))
        return made


def _layout(table: Table) -> str:
    return next(name for name, layout in LAYOUTS.items() if layout.title == table.layout.title)


def _column_id(table: Table, column: str) -> str:
    return f"{_layout(table)}-{column}" if column in DERIVED else column


def _shades(table: Table) -> dict[tuple[str, str], tuple[float, float]]:
    """(worst, best) complete finite figure of each column and metric."""
    found = {}
    for column in table.layout.columns:
        for metric in table.metrics:
            cells = [row.cells[column] for row in table.rows]
            signed = [sign(metric) * c.value(metric) for c in cells if c.ok and np.isfinite(c.value(metric))]
            found[column, metric] = (min(signed, default=0.0), max(signed, default=0.0))
    return found


def _view(
    table: Table,
    i: int,
    column: str,
    metric: str,
    shades: Mapping[tuple[str, str], tuple[float, float]],
    raised: tuple[str, ...],
) -> View:
    row, where = table.rows[i], _column_id(table, column)
    cell, rank = row.cells[column], row.ranks.get((column, metric))
    note = "" if cell.ok else f"{cell.status}: {cell.reason}"
    estimate = cell.estimate(metric)
    if math.isnan(estimate.value):
        return View(where, metric, note=note or cell.reason)
    worst, best = shades[column, metric]
    quality = (sign(metric) * estimate.value - worst) / (best - worst) if best > worst else 0.0
    return View(
        where,
        metric,
        value=f"{estimate.value:.9g}",
        text=_shown(estimate.value, metric),
        span=f"{_shown(estimate.low, metric)} – {_shown(estimate.high, metric)}",
        mark=row.mark(column, metric),
        shade=round(float(np.clip(quality, 0, 1)), 3) if cell.ok else 0.0,
        n=cell.n,
        rank=rank,
        note=note,
        flags=raised,
    )


def _shown(value: float, metric: str) -> str:
    if math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else METRICS[metric].shown(value)


def build_site(leaderboards: Path, out: Path) -> list[Path]:
    """Write index.html, a page for each model, plots, figures and data into `out`; returns the HTML files.

    Every folder of `leaderboards` with a results.csv is shown, with the comparisons in its `figures` folder and the
    certificates in its `certificates/<model>` where there are any. Raises InputError where there is nothing to show.
    """
    folders = sorted((path.parent for path in leaderboards.glob("*/results.csv")), reverse=True)  # quick comes first
    if not folders:
        raise InputError(f"{leaderboards} holds no <protocol>/results.csv; make one with: benchsr run")
    cards = zoo()
    boards = {folder: _read_board(folder, cards) for folder in folders}
    sheets = [Sheet(board, family) for board in boards.values() for family in board.families if board.tables]
    plots = {board.protocol.id: list(_copy_plots(folder, board, out)) for folder, board in boards.items()}
    copied = {board.protocol.id: copy_figures(folder, board, out) for folder, board in boards.items()}
    figures = {name: found for name, found in copied.items() if found}
    for folder, board in boards.items():
        data = {"": folder / "results.csv", f"-{TRANSFER}": folder / TRANSFER / "results.csv"}
        data[f"-{SENSITIVITY}"] = folder / f"{SENSITIVITY}.csv"
        for end, file in data.items():
            if file.exists():
                write_changed(out / "data" / f"{board.protocol.id}{end}.csv", file.read_bytes())
    environment = _environment()
    shown = {"boards": list(boards.values()), "sheets": sheets, "plots": plots, "figures": figures}
    shown |= {"costs": {board.protocol.id: _costs(folder, out, board) for folder, board in boards.items()}}
    shown["metrics"] = {name: metric for sheet in sheets for name, metric in sheet.metrics.items()}
    pages = {out / "index.html": environment.get_template("index.html.j2").render(shown, printed=judge_printed())}
    for model in dict.fromkeys(row.card.id for sheet in sheets for row in sheet.rows):
        extras = {
            "card": next(board.cards[model] for board in boards.values() if model in board.cards),
            "curves": list(_curves(model, sheets)),
            "certificates": list(_copy_certificates(model, folders, out)),
            "views": {sheet: row for sheet in sheets for row in sheet.rows if row.card.id == model},
        }
        pages[out / "models" / f"{model}.html"] = environment.get_template("model.html.j2").render(shown | extras)
    for path, text in pages.items():
        write_atomic(path, text)
    return list(pages)


def _read_board(folder: Path, cards: Mapping[str, CardInfo]) -> Leaderboard:
    """The leaderboard in `folder`. Raises InputError where its report is not of the results that stand there."""
    board = read_leaderboard(folder, cards)
    protocol, fingerprint = stored_protocol(folder)
    derived: dict[Path, tuple[str, str | None]] = {folder / "leaderboard.json": ("report", board.protocol.fingerprint)}
    if (index := folder / "figures" / "figures.json").exists():
        told = read_figures(index)
        derived[index] = ("figures", told.get("fingerprint") if "scenes" in told else None)
    for file, (command, found) in derived.items():
        if found != fingerprint:
            raise InputError(
                f"{file} is of other settings than results.csv; write it again with: "
                f"benchsr {command} --protocol {protocol.board} --out {folder.parent}"
            )
    return board


def serve_site(folder: Path, port: int = 8000) -> None:
    """Serve a built page to this machine alone, at 127.0.0.1, until interrupted."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        server.serve_forever()


def _stem(path: str) -> str:
    """What a plot is of, by its file: LAYOUTS, PLOTS, APART."""
    name = Path(path).stem
    for suffix in (*(suffix for suffix, _ in FAMILIES.values()), MORE):
        name = name.removesuffix(suffix)
    return name


def _title_of(threat: str) -> str:
    return THREATS[threat].title


def _environment() -> Environment:
    environment = templates("benchsr.site", is_html=True)
    environment.filters |= {"notes": notes, "describe": _describe, "show": show, "shown": _shown, "scale": Scale.of}
    environment.filters |= {"title_of": _title_of, "explained": _explained}
    environment.filters |= {"digits": digits, "most_sensitive": most_sensitive, "stem": _stem}
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    environment.globals |= {
        "errors": ERRORS,
        "kinds": KINDS,
        "tallest": TALLEST,
        "apart": APART,
        "split": SPLIT,
        "drop": f"{DROP:g}",
        "largest": f"{LARGEST * 255:g}",
        "panel": SIZE,
        "pictures": PICTURES,
        "families": FAMILIES,
        "layouts": LAYOUTS,
        "derived": DERIVED,
        "printed_metrics": {name: METRICS[name] for name in SCORED},
        "flag_texts": FLAGS,
        "threats": THREATS,
        "defences": DEFENCES,
        "confidence": f"{CONFIDENCE:.0%}",
    }
    return environment


def _explained(threats: Sequence[str]) -> dict[str, list[str]]:
    """What each threat does, in a sentence -> the titles of those that do it; the severities of a kind are one."""
    found: dict[str, dict[str, None]] = {}
    for threat in (THREATS[name] for name in threats):
        found.setdefault(threat.about, {})[KINDS[threat.group].title if threat.group else threat.title] = None
    return {about: list(titles) for about, titles in found.items()}


def _describe(value: object) -> str:
    """A value of a card in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_describe(v)}" for key, v in value.items())
    return ", ".join(map(_describe, value)) if isinstance(value, list | tuple) else str(value)


def _copy_plots(folder: Path, board: Leaderboard, out: Path) -> Iterator[tuple[str, str]]:
    """Copy the plots that stand beside the leaderboard's report; yields (family, path from the page)."""
    for family, (suffix, _) in FAMILIES.items():
        for stem in (*APART, *PLOTS, *LAYOUTS, PARETO):
            for source in (folder / f"{stem}{end}{suffix}.png" for end in ("", MORE)):
                if source.exists():
                    path = f"plots/{board.protocol.id}/{source.name}"
                    write_changed(out / path, source.read_bytes())
                    yield family, path


def _curves(model: str, sheets: Sequence[Sheet]) -> Iterator[tuple[Sheet, list[Panel]]]:
    """The model's curves in each sheet where it has more than one complete figure at growing eps."""
    for sheet in sheets:
        cells = {row.card.id: [sheet.board.grid.get((row.card.id, t), NOT_RUN) for t in CURVE] for row in sheet.rows}
        if model in cells and sum(cell.ok for cell in cells[model]) > 1:
            yield sheet, list(panels(model, cells, sheet.board.protocol.metrics))


def _costs(folder: Path, out: Path, board: Leaderboard) -> dict[str, object] | None:
    """What `benchsr costs` wrote about the models of the leaderboard, if it did; its file stands beside the page."""
    if not (folder / f"{COSTS}.csv").exists():
        return None
    data = read_costs(folder)
    write_changed(out / "data" / f"{board.protocol.id}-{COSTS}.csv", (folder / f"{COSTS}.csv").read_bytes())
    titles = [title for title, _ in COST_COLUMNS.values()]
    named = [board.cards[model].title if model in board.cards else model for model in data["model"]]
    rows = list(zip(data["model"], named, cost_cells(data), data["reason"].fillna(""), strict=True))
    return {"titles": titles, "rows": rows, "caption": cost_caption(data)}


def _copy_certificates(model: str, folders: Sequence[Path], out: Path) -> Iterator[tuple[str, list[str]]]:
    """Copy what `benchsr certify` wrote about a model; yields (folder from the page, lines of its text)."""
    for folder in folders:
        source = folder / "certificates" / model
        if (source / "certificate.txt").exists():
            where = f"certificates/{folder.name}/{model}"
            shutil.copytree(source, out / where, dirs_exist_ok=True)
            yield where, (source / "certificate.txt").read_text(encoding="utf-8").splitlines()
