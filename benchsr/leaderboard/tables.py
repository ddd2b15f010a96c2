"""Cells folded into the paper's tables, one for each family of models, as data frames and as Markdown."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlsplit

import numpy as np
from scipy.stats import rankdata

from benchsr.base.pairs import USUAL, Scale
from benchsr.base.text import escape, markdown_table
from benchsr.data.cards import DATASETS
from benchsr.leaderboard.compare import tied_with_best
from benchsr.leaderboard.scores import NOT_RUN, SCORED, Cell, Estimate, Grid, average, make_grid, sign, worst
from benchsr.metrics.quality import METRICS
from benchsr.models.cards import PAPER_ROWS, CardDefence
from benchsr.models.zoo import NO_WEIGHTS
from benchsr.results.records import Record
from benchsr.threats.table import ADAPTIVE, ENSEMBLE, SWEEP, THREATS, VARIANTS

if TYPE_CHECKING:
    import pandas as pd

AVERAGE = "avg"
"""Column of a table's average over its threats."""

WORST = "worst"
"""Column of the worst figure of each image under attacks of one size: derived from their cells, no threat itself."""

MORE = "-more"
"""Ends the names of tables and plots of metrics that the paper has not."""

REPRODUCED = "reproduced here"
"""Marks networks that were trained anew for a row of the paper, whose own weights cannot be had."""

COMPACT = "compact-"
"""Prefix of the ids of networks of the compact scale."""


class CardInfo(Protocol):
    """What a leaderboard reads of a model card."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def title(self) -> str: ...  # noqa: D102
    @property
    def family(self) -> str: ...  # noqa: D102
    @property
    def paper_row(self) -> bool: ...  # noqa: D102
    @property
    def retrains(self) -> str | None: ...  # noqa: D102
    @property
    def origin(self) -> str: ...  # noqa: D102
    @property
    def scale(self) -> int | str: ...  # noqa: D102
    @property
    def training_data(self) -> str: ...  # noqa: D102
    @property
    def fine_tuning_data(self) -> str: ...  # noqa: D102
    @property
    def caveats(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def base(self) -> str | None: ...  # noqa: D102
    @property
    def smoothing(self) -> object | None: ...  # noqa: D102
    @property
    def defence(self) -> CardDefence | None: ...  # noqa: D102


@dataclass(frozen=True)
class LeaderboardInfo:
    """What tables and reports say of their protocol: settings in words, threats, images' ids, metrics and scale."""

    id: str
    title: str
    fingerprint: str
    description: Sequence[str]
    threats: Sequence[str]
    images: Sequence[str]
    metrics: Sequence[str] = SCORED
    scale: Scale = USUAL


@dataclass(frozen=True)
class Layout:
    """The shape of a table: its threats, an average over them or not, and the paper's data columns or not.

    `worst`: attacks of one size, over which of each image the worst figure is taken as one more column.
    """

    title: str
    threats: tuple[str, ...]
    average: bool = False
    provenance: bool = False
    worst: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The threats, and what is derived from them: their average, the worst of attacks."""
        return self.threats + (AVERAGE,) * self.average + (WORST,) * bool(self.worst)

    def heading(self, column: str) -> str:
        """The title of a column."""
        return DERIVED[column] if column in DERIVED else THREATS[column].title

    def among(self, threats: Collection[str]) -> Layout:
        """This layout on a board of `threats`: the worst is of those among them, where they are two or more. A layout
        without threats of its own takes those that packages brought.
        """
        found = tuple(threat for threat in self.worst if threat in threats)
        own = self.threats or tuple(THREATS.origins(threats))
        return replace(self, threats=own, worst=found if len(found) > 1 else ())


DERIVED: Mapping[str, str] = {AVERAGE: "Average", WORST: "Worst (derived)"}
"""Columns that are computed from other cells and are no threats -> their titles."""

FIXED_ATTACKS = ("fgsm", "bim", "pgd")
"""The paper's attacks that share the eps of the adaptive ones; CW has no eps and is left out of the comparison."""

ADAPTIVE_ATTACKS = tuple(t for t, spec in ADAPTIVE.items() if spec.kind == "attack" and t not in SWEEP)

WHOLE_VARIANTS = tuple(t for t, spec in VARIANTS.items() if not spec.in_part)

LAYOUTS: Mapping[str, Layout] = {
    "table1": Layout("Table 1: clean and corrupted images", ("clean", "noise", "blur")),
    "table2": Layout("Table 2: adversarial attacks", ("fgsm", "bim", "pgd", "cw"), worst=FIXED_ATTACKS),
    "table3": Layout("Table 3: real-world images", ("ntire", "aim"), average=True, provenance=True),
    "standins": Layout(
        "Synthetic stand-ins for Table 3's data (not comparable with it)",
        ("standin-ntire", "standin-aim", "standin-dped"),
        average=True,
    ),
    "adaptive": Layout(
        "Beyond the paper: attacks that know the defence, and their baselines",
        tuple(threat for threat in ADAPTIVE if threat not in SWEEP),
        worst=(*FIXED_ATTACKS, *ADAPTIVE_ATTACKS, *ENSEMBLE),
    ),
    "ensemble": Layout(
        "Beyond the paper: AutoAttack-SR, a fixed ensemble of attacks", tuple(ENSEMBLE), worst=tuple(ENSEMBLE)
    ),
    "variants": Layout(
        "Beyond the paper: attacks with other aims and means", WHOLE_VARIANTS, worst=("pgd-median", *WHOLE_VARIANTS)
    ),
    "partial": Layout(
        "Beyond the paper: one part of LR attacked, another of SR scored",
        tuple(threat for threat in VARIANTS if threat not in WHOLE_VARIANTS),
    ),
    "curves": Layout("Beyond the paper: PGD through the median at growing eps", tuple(SWEEP)),
    "packages": Layout("Beyond the paper: threats of installed packages", ()),
}

FAMILIES: Mapping[str, tuple[str, str]] = {
    "paper": ("", "paper-scale networks"),
    "compact": ("-compact", "compact networks, not the paper's models"),
}
"""Family -> suffix of its files, and its name. A card of family "both" (bicubic) appears in each."""


@dataclass(frozen=True)
class Row:
    """One model: its card, a cell for each column of the layout, its ranks (1 is best) by (column, metric), those
    (column, metric) in which no paired test separates it from the best, and the columns whose attack is suspected of
    being weak.
    """

    card: CardInfo
    cells: Mapping[str, Cell]
    ranks: Mapping[tuple[str, str], int]
    tied: Set[tuple[str, str]] = frozenset()
    flagged: Set[str] = frozenset()

    @property
    def evaluated(self) -> bool:
        """Whether any cell has a figure."""
        return any(cell.n for cell in self.cells.values())

    def mark(self, column: str, metric: str) -> Literal["best", "second", ""]:
        """How a figure is set off: those tied with the best share its mark."""
        rank = self.ranks.get((column, metric))
        if rank == 1 or (column, metric) in self.tied:
            return "best"
        return "second" if rank == 2 else ""


@dataclass(frozen=True)
class Table:
    """A table of the leaderboard; `name` is that of its files."""

    name: str
    family: str
    layout: Layout
    rows: Sequence[Row]
    metrics: tuple[str, ...] = SCORED

    @property
    def title(self) -> str:
        """Title with the family of its models."""
        further = ", further metrics" * (not set(SCORED) & set(self.metrics))
        return f"{self.layout.title}{further} – {FAMILIES[self.family][1]}"

    def in_paper(self, card: CardInfo) -> bool:
        """Whether the row is one of the paper's; a compact network never is, whatever row it follows."""
        return card.paper_row and card.family != "compact"

    def standing(self, card: CardInfo) -> str:
        """How a row of a paper-scale table stands to the paper's, in words; empty for the paper's own and elsewhere."""
        if self.family != "paper" or self.in_paper(card):
            return ""
        return REPRODUCED if card.retrains else "not in the paper"

    @property
    def filled(self) -> Table:
        """The table of those rows and columns that have a figure."""
        columns = [c for c in self.layout.columns if any(row.cells[c].n for row in self.rows)]
        threats = tuple(t for t in self.layout.threats if t in columns)
        rows = [replace(row, cells={c: row.cells[c] for c in columns}) for row in self.rows if row.evaluated]
        layout = replace(
            self.layout, threats=threats, average=AVERAGE in columns, worst=self.layout.worst * (WORST in columns)
        )
        return replace(self, layout=layout, rows=rows)

    @property
    def derivation(self) -> str:
        """What the column of the worst is, in a sentence; empty where there is none."""
        if not self.layout.worst:
            return ""
        return (
            f"{DERIVED[WORST]}: of each image the worst figure, metric by metric, under attacks of one size "
            f"({', '.join(self.layout.worst)}); computed from their figures, and no attack of its own."
        )

    @property
    def by_threat(self) -> list[tuple[CardInfo, dict[str, Cell]]]:
        """Each row's card with its cells, averages left out."""
        return [(row.card, {threat: row.cells[threat] for threat in self.layout.threats}) for row in self.rows]

    @property
    def reproduced(self) -> list[CardInfo]:
        """Cards of the rows with figures whose networks were trained anew for a row of the paper."""
        return [row.card for row in self.rows if row.card.retrains and row.evaluated]


def cards_at(scale: Scale, cards: Mapping[str, CardInfo]) -> dict[str, CardInfo]:
    """The models that answer at a super-resolution factor: a board is of one."""
    return {name: card for name, card in cards.items() if card.scale in ("any", scale)}


def paper_folder() -> Path:
    """The folder of printed tables and claims: inside an installed package, else in the repository."""
    package = Path(__file__).parents[1]
    installed = package / "paper"
    return installed if installed.is_dir() else package.parent / "leaderboards" / "paper"


def expected_images(protocol: LeaderboardInfo) -> dict[str, int]:
    """For each threat of the protocol the number of images of a full set, that of its own data set where it has one."""
    own = {threat: THREATS[threat].dataset for threat in protocol.threats}
    return {threat: DATASETS[name].count if name else len(protocol.images) for threat, name in own.items()}


def family_cards(family: str, grid: Grid, cards: Mapping[str, CardInfo]) -> list[CardInfo]:
    """The rows of a family's tables: every row of the paper, run or not, with those retrained for it that were run,
    then every other model that was run.
    """
    run = {model for model, _ in grid}
    chosen = [c for c in cards.values() if c.family in (family, "both") and (c.id in run or c.paper_row)]
    if not any(card.family == family for card in chosen):
        return []
    order = {name: i for i, name in enumerate(PAPER_ROWS)}

    def place(card: CardInfo) -> tuple[int, bool, str]:
        row = card.retrains or card.id.removeprefix(COMPACT)
        return order.get(row, len(order)), card.retrains is not None, card.id

    return sorted(chosen, key=place)


def metric_groups(metrics: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """What end of names -> metrics of one table or plot: the paper's in its order, and all others."""
    found = list(metrics)
    groups = {"": tuple(m for m in SCORED if m in found), MORE: tuple(m for m in found if m not in SCORED)}
    return {end: group for end, group in groups.items() if group}


def make_tables(
    grid: Grid,
    threats: Iterable[str],
    cards: Mapping[str, CardInfo],
    flagged: Container[tuple[str, str]] = (),
    metrics: Iterable[str] = SCORED,
) -> dict[str, Table]:
    """All tables by name: those with a threat among `threats`, for every family with a model.

    Each has the paper's metrics among `metrics`; others have a table of their own, whose name ends in "-more".

    `flagged`: (model, threat) whose figures come from an attack that may have been weak.
    """
    wanted, groups, tables = tuple(threats), metric_groups(metrics), {}
    layouts = {name: layout.among(wanted) for name, layout in LAYOUTS.items()}
    for family, (suffix, _) in FAMILIES.items():
        members = family_cards(family, grid, cards)
        for name, layout in layouts.items():
            if members and set(wanted) & set(layout.threats):
                for end, group in groups.items():
                    whole = name + end + suffix
                    tables[whole] = make_table(whole, family, layout, members, grid, flagged, group)
    return tables


def make_table(
    name: str,
    family: str,
    layout: Layout,
    members: Sequence[CardInfo],
    grid: Grid,
    flagged: Container[tuple[str, str]] = (),
    metrics: tuple[str, ...] = SCORED,
) -> Table:
    """The table of `members`, a row for each in their order; `flagged` as in `make_tables`."""
    cells = [_cells(layout, grid, card.id) for card in members]
    ranks, tied = _ranked(cells, layout, metrics), _tied(cells, layout, metrics)
    marks = [{t for t in layout.threats if (card.id, t) in flagged} for card in members]
    made = [Row(*row) for row in zip(members, cells, ranks, tied, marks, strict=True)]
    return Table(name, family, layout, made, metrics)


def tables(
    records: Iterable[Record], protocol: LeaderboardInfo, cards: Mapping[str, CardInfo]
) -> dict[str, pd.DataFrame]:
    """The tables of `records` as data frames, by name; see `frame`."""
    grid = make_grid(records, expected_images(protocol))
    made = make_tables(grid, protocol.threats, cards, metrics=protocol.metrics)
    return {name: frame(table) for name, table in made.items()}


def _cells(layout: Layout, grid: Grid, model: str) -> dict[str, Cell]:
    cells = {threat: grid.get((model, threat), NOT_RUN) for threat in layout.threats}
    if layout.average:
        cells[AVERAGE] = average([cells[threat] for threat in layout.threats])
    if layout.worst:
        cells[WORST] = worst([grid.get((model, threat), NOT_RUN) for threat in layout.worst])
    return cells


def _ranked(
    rows: Sequence[Mapping[str, Cell]], layout: Layout, metrics: Sequence[str]
) -> list[dict[tuple[str, str], int]]:
    """Rank complete cells column by column, on the figures as shown; equal figures share the better rank."""
    ranks: list[dict[tuple[str, str], int]] = [{} for _ in rows]
    for column in layout.columns:
        for metric in metrics:
            full = [r for r, row in enumerate(rows) if row[column].ok and not np.isnan(row[column].value(metric))]
            shown = [-sign(metric) * round(rows[r][column].value(metric), METRICS[metric].decimals) for r in full]
            for r, rank in zip(full, rankdata(shown, method="min"), strict=True):
                ranks[r][column, metric] = int(rank)
    return ranks


def _tied(rows: Sequence[Mapping[str, Cell]], layout: Layout, metrics: Sequence[str]) -> list[set[tuple[str, str]]]:
    """For each row where it is tied with the best (see `tied_with_best`), in columns that images can separate."""
    tied: list[set[tuple[str, str]]] = [set() for _ in rows]
    for column in layout.columns:
        full = [r for r, row in enumerate(rows) if row[column].ok and row[column].shares]
        sets = {tuple(sorted(rows[r][column].shares)) for r in full}
        if len(sets) != 1:
            continue
        images = sets.pop()
        for metric in metrics:
            cells = [rows[r][column] for r in full]
            scores = [np.array([cell.of(metric, cell.shares[image]) for image in images]) for cell in cells]
            whole = [(r, s) for r, s in zip(full, scores, strict=True) if not np.isnan(s).any()]
            found = tied_with_best([s for _, s in whole], images, METRICS[metric].higher_is_better)
            for (r, _), is_tied in zip(whole, found or [], strict=bool(found)):
                if is_tied:
                    tied[r].add((column, metric))
    return tied


def frame(table: Table) -> pd.DataFrame:
    """A row for each model; for each column c its `c_n`, `c_status`, `c_reason`, and for each metric m `c_m`,
    `c_m_low`, `c_m_high` (95% interval), `c_m_rank`, empty where the cell is not complete, and `c_m_mark`.
    """
    import pandas as pd

    lines = []
    for row in table.rows:
        line: dict[str, Any] = {"model": row.card.id, "title": row.card.title, "in_paper": table.in_paper(row.card)}
        line |= {"retrains": row.card.retrains}
        if table.layout.provenance:
            line |= {"training_data": row.card.training_data, "fine_tuning_data": row.card.fine_tuning_data}
        for column, cell in row.cells.items():
            line |= {f"{column}_n": cell.n, f"{column}_status": cell.status, f"{column}_reason": cell.reason}
            for metric in table.metrics:
                estimate, name = cell.estimate(metric), f"{column}_{metric}"
                line |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
                line |= {
                    f"{name}_rank": row.ranks.get((column, metric)),
                    f"{name}_mark": row.mark(column, metric) or None,
                }
        lines.append(line)
    made = pd.DataFrame(lines)
    return made.astype({name: "Int64" for name in made if str(name).endswith("_rank")})


def show(estimate: Estimate, metric: str) -> str:
    """A figure with its interval at the metric's digits: "27.91 [27.02, 28.83]"; a dash where there is none."""
    if np.isnan(estimate.value):
        return "–"
    value, low, high = map(METRICS[metric].shown, (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


FLAG = " ⚑"
"""Stands beside a figure whose attack is suspected of being weak."""

_MARKS = {"best": ("**", "**"), "second": ("<ins>", "</ins>"), "": ("", "")}


def markdown(table: Table) -> str:
    """The table in Markdown: best bold, second underlined, each figure with its interval, incomplete cells with n."""
    layout = table.layout
    metrics = [(m, METRICS[m].heading) for m in table.metrics]
    header = ["Model", *["Training data", "Fine-tuning data"] * layout.provenance]
    rows = []
    for row in table.rows:
        standing = table.standing(row.card)
        line = [escape(row.card.title) + (f" ({standing})" if standing else "")]
        if layout.provenance:
            line += [escape(row.card.training_data), escape(row.card.fine_tuning_data)]
        figures = [
            _shown(cell, metric, row.mark(column, metric)) + FLAG * (column in row.flagged)
            for column, cell in row.cells.items()
            for metric, _ in metrics
        ]
        # A row without any figure says why once, and is quiet after.
        rows.append(line + (figures if row.evaluated else [figures[0], *["–"] * (len(figures) - 1)]))
    fixed = len(header)
    header += [f"{escape(layout.heading(column))} {title}" for column in layout.columns for _, title in metrics]
    return markdown_table(header, rows, fixed)


def _shown(cell: Cell, metric: str, mark: str) -> str:
    if not cell.n:
        return cell.status
    before, after = _MARKS[mark]
    return before + show(cell.estimate(metric), metric) + after + ("" if cell.ok else f" (n = {cell.n}, not ranked)")


def blanks(rows: Sequence[tuple[CardInfo, Mapping[str, Cell]]]) -> list[str]:
    """What `rows`, cards with their cells by threat, lack altogether and so need not show, a line for each kind.

    Kinds: models without weights, other models without any figure, threats without any; ids with reasons in few words.
    """
    scored = {threat for _, cells in rows for threat, cell in cells.items() if cell.n}
    threats = {threat for _, cells in rows for threat in cells}
    weightless, silent, columns = (dict[str, list[str]]() for _ in range(3))
    others = []
    for card, cells in rows:
        why = Counter(cell.reason for cell in cells.values())
        if any(cell.n for cell in cells.values()):
            others.append(cells)
        elif why and (reason := why.most_common(1)[0][0]).startswith(NO_WEIGHTS):
            weightless.setdefault(_few_words(reason, card), []).append(card.id)
        else:
            others.append(cells)
            if asked := Counter(cells[threat].reason for threat in cells if threat in scored):
                silent.setdefault(_few_words(asked.most_common(1)[0][0], card), []).append(card.id)
    for threat in dict.fromkeys(threat for _, cells in rows for threat in cells if threat in threats - scored):
        if reasons := Counter(cells[threat].reason for cells in others):
            columns.setdefault(_few_words(reasons.most_common(1)[0][0]), []).append(threat)
    found = {"No weights here": weightless, "Models without figures": silent, "Threats without figures": columns}
    return [
        f"{kind}: " + "; ".join(f"{', '.join(ids)}: {reason}" for reason, ids in groups.items()) + "."
        for kind, groups in found.items()
        if groups
    ]


def _few_words(reason: str, card: CardInfo | None = None) -> str:
    """The gist of a reason: the same for models that differ in nothing but their ids; sites by their hosts."""
    text = re.sub(r"https?://[^\s:]+", lambda m: urlsplit(m[0]).netloc, reason.removeprefix(f"{NO_WEIGHTS}: "))
    text = re.split(r"; | \(| and put |, or put ", text)[0]
    for name in (card.base, card.id) if card else ():
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "MODEL", text) if name else text
    return textwrap.shorten(text, 120, placeholder=" …")


@dataclass(frozen=True)
class Note:
    """Why cells of `models` (titles) under `threats` are missing or incomplete."""

    models: tuple[str, ...]
    threats: tuple[str, ...]
    reason: str


def notes(tables: Iterable[Table]) -> list[Note]:
    """A note for every incomplete cell and for every metric without figures, one for all models that lack the same
    threats for the same reason.
    """
    threats: dict[tuple[str, str], dict[str, None]] = {}
    for table in tables:
        for row in table.rows:
            for threat in table.layout.threats:
                cell = row.cells[threat]
                if not cell.ok or (cell.reason and any(np.isnan(cell.value(m)) for m in table.metrics)):
                    reason = cell.reason if cell.ok else f"{cell.status}: {cell.reason}"
                    threats.setdefault((row.card.title, reason), {})[threat] = None
    models: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for (title, reason), lacking in threats.items():
        models.setdefault((tuple(lacking), reason), []).append(title)
    return [Note(tuple(titles), lacking, reason) for (lacking, reason), titles in models.items()]
