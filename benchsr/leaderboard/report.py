"""The whole leaderboard as one value, and what its files hold: CSV, Markdown, PNG and report.md."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from benchsr.base.drawing import drawn, drawn_once
from benchsr.base.errors import InputError, UnknownIdError
from benchsr.base.pairs import USUAL
from benchsr.base.schema import read_json
from benchsr.base.text import markdown_table, templates
from benchsr.defences.table import DEFENCES
from benchsr.leaderboard.certified import Certificates, plot_sandwich, table4
from benchsr.leaderboard.contrasts import Contrast, Help, contrasts, helps
from benchsr.leaderboard.corruption import ERRORS, Profile, profiles
from benchsr.leaderboard.defended import Defended, defended
from benchsr.leaderboard.flags import FLAGS, flags
from benchsr.leaderboard.headline import Headline, make_headline
from benchsr.leaderboard.optimality import optimality
from benchsr.leaderboard.paper import (
    PAPER_DATASETS,
    Judgement,
    Scale,
    Verdict,
    beside_paper,
    claims_frame,
    judge_all,
    judge_printed,
    rank_correlation,
    scale_of,
)
from benchsr.leaderboard.plots import PLOTS, SENSITIVITY_PLOTS, all_plots, plot_transfer
from benchsr.leaderboard.scores import CONFIDENCE, NOT_RUN, RESAMPLES, Estimate, Grid, brief, make_grid, subtract
from benchsr.leaderboard.sensitivity import (
    DROP,
    LARGEST,
    SENSITIVITY,
    SPLIT,
    Sensitivity,
    Smallest,
    digits,
    most_sensitive,
    read_sensitivity,
    sensitivities,
    smallest_changes,
    unmeasured,
)
from benchsr.leaderboard.tables import (
    FAMILIES,
    LAYOUTS,
    MORE,
    CardInfo,
    LeaderboardInfo,
    Table,
    blanks,
    cards_at,
    expected_images,
    family_cards,
    frame,
    make_tables,
    markdown,
    metric_groups,
    notes,
    show,
)
from benchsr.leaderboard.transfer import Matrix, matrices, transfer_frame
from benchsr.metrics.quality import METRICS
from benchsr.models.zoo import defended_cards
from benchsr.results.records import Record, Status, flat, read_results
from benchsr.results.singles import read_singles
from benchsr.results.transfers import TRANSFER, transferred
from benchsr.threats.table import GROUPS, THREATS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

CHANGES = (("noise", "clean"), ("pgd", "clean"), ("pgd", "noise"))
"""Pairs of threats whose paired difference the report gives for each model."""


@dataclass(frozen=True)
class Leaderboard:
    """All that is derived from results.csv: the data behind the files, the page and the terminal."""

    protocol: LeaderboardInfo
    cards: Mapping[str, CardInfo]
    records: Sequence[Record]
    missing: bool = False
    """Whether tables show the rows and columns that have no figures."""
    transferred: Sequence[Record] = ()
    """Lines of the ledger beside it: attacks made on one model and scored on others."""
    measured: pd.DataFrame = field(default_factory=unmeasured)
    """sensitivity.csv beside it."""

    @cached_property
    def grid(self) -> Grid:
        """Cells by (model, threat)."""
        return make_grid(self.records, expected_images(self.protocol))

    @cached_property
    def tables(self) -> dict[str, Table]:
        """Tables by name; those of the compact family end in "-compact"."""
        return make_tables(self.grid, self.protocol.threats, self.cards, self.flags, self.protocol.metrics)

    @property
    def shown(self) -> dict[str, Table]:
        """The tables as they are shown."""
        return {name: table if self.missing else table.filled for name, table in self.tables.items()}

    @cached_property
    def families(self) -> dict[str, list[CardInfo]]:
        """The rows of each family that has any."""
        members = {family: family_cards(family, self.grid, self.cards) for family in FAMILIES}
        return {family: cards for family, cards in members.items() if cards}

    @property
    def comparable_with_paper(self) -> Grid:
        """The figures of the paper's super-resolution factor, the usual one; none on a board of another."""
        return self.grid if self.protocol.scale == USUAL else {}

    @cached_property
    def scales(self) -> dict[str, Scale]:
        """Which figures of each family are read as the paper's."""
        return {family: scale_of(family, self.grid, self.cards) for family in self.families}

    @property
    def stands(self) -> Mapping[str, str]:
        """Row of the paper -> the card reproduced here that is judged in its place."""
        return self.scales["paper"].reproduced if "paper" in self.scales else {}

    @property
    def reproduced(self) -> list[CardInfo]:
        """Cards with figures whose networks were trained anew for a row of the paper."""
        return [c for cards in self.families.values() for c in cards if c.retrains and c.id in self.scored]

    @cached_property
    def scored(self) -> set[str]:
        """Models with any figure."""
        return {model for (model, _), cell in self.grid.items() if cell.n}

    @cached_property
    def judgements(self) -> dict[str, list[Judgement]]:
        """The paper's claims, checked on each family."""
        return {family: judge_all(self.comparable_with_paper, scale) for family, scale in self.scales.items()}

    @cached_property
    def correlations(self) -> pd.DataFrame:
        """Kendall's tau of each column with the paper's, for each family."""
        found = [
            rank_correlation(self.comparable_with_paper, scale).assign(family=f) for f, scale in self.scales.items()
        ]
        return pd.concat(found, ignore_index=True) if found else pd.DataFrame()

    @cached_property
    def beside_paper(self) -> pd.DataFrame:
        """Paper-scale figures beside the printed ones."""
        return beside_paper(self.comparable_with_paper)

    @cached_property
    def changes(self) -> dict[tuple[str, str, str], dict[str, Estimate]]:
        """(model, threat, baseline) -> metric -> mean paired difference with its interval, where both are complete."""
        found = {}
        for card in chain.from_iterable(self.families.values()):
            for threat, baseline in CHANGES:
                both = (self.grid.get((card.id, t), NOT_RUN) for t in (threat, baseline))
                difference = subtract(*both)
                if difference.ok:
                    found[card.id, threat, baseline] = {m: difference.estimate(m) for m in self.protocol.metrics}
        return found

    @cached_property
    def attacks(self) -> pd.DataFrame:
        """What each threat did to LR and loss: family, threat, evaluations, linf (largest), l2 (mean), losses (mean).

        Distances are in [0, 1] units. Rows that share a network share its attack and are counted once for each image.
        """
        lines = pd.DataFrame([flat(r) for r in self.records if r.attack_linf is not None])
        if lines.empty:
            return lines
        lines["family"] = lines["model"].map({c.id: c.family for c in self.cards.values()})
        figures = ["attack_linf", "attack_l2", "loss_clean", "loss_attacked"]
        lines = lines.astype(dict.fromkeys(figures, "float64")).drop_duplicates(["family", "threat", "image", *figures])
        grouped = lines.groupby(["family", "threat"], sort=False).agg(
            evaluations=("image", "size"),
            linf=("attack_linf", "max"),
            l2=("attack_l2", "mean"),
            loss_clean=("loss_clean", "mean"),
            loss_attacked=("loss_attacked", "mean"),
        )
        order = {threat: i for i, threat in enumerate(self.protocol.threats)}
        return grouped.reset_index().sort_values(["family", "threat"], key=lambda c: c.map(order).fillna(0))

    @property
    def failures(self) -> list[tuple[str, str, str, int]]:
        """Evaluations that went wrong: (model, threat, reason, images)."""
        failed = Counter((r.model, r.threat, r.reason) for r in self.records if r.status is Status.FAILED)
        return [(*what, n) for what, n in failed.items()]

    @cached_property
    def flags(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """Signs of weak attacks, by (model, threat)."""
        return flags(self.records, self.cards)

    @cached_property
    def contrasts(self) -> list[Contrast]:
        """Models under the worst of the paper's attacks and under the worst of all."""
        return contrasts(self.grid, self.cards, self.protocol.threats)

    @cached_property
    def headlines(self) -> dict[str, Headline]:
        """What is said first of each family that can be ranked."""
        made = {f: make_headline(self.grid, c, self.cards, self.protocol) for f, c in self.families.items()}
        return {family: headline for family, headline in made.items() if headline and headline.places}

    @cached_property
    def optimality(self) -> dict[tuple[str, str], dict[str, float]]:
        """(model, member of the ensemble) -> metric -> mean distance from the worst member, image by image."""
        return optimality(self.grid, GROUPS["autoattack-sr"])

    @cached_property
    def helps(self) -> list[Help]:
        """What smoothing adds to the networks that were also run without it."""
        return helps(self.contrasts, self.cards)

    @cached_property
    def defended(self) -> dict[str, list[Defended]]:
        """What defences cost and give back, for each family."""
        return {f: defended(self.grid, c, self.cards, self.protocol.threats) for f, c in self.families.items()}

    @cached_property
    def profiles(self) -> dict[str, list[Profile]]:
        """Corruption errors of each family."""
        return {family: profiles(self.grid, cards) for family, cards in self.families.items()}

    @cached_property
    def certificates(self) -> Certificates:
        """What is proven of smoothed models, beside what attacks have reached."""
        return Certificates(self.records)

    @cached_property
    def transfers(self) -> dict[str, list[Matrix]]:
        """The matrices of sources and victims of each family, one for each attack."""
        threats, images = self.protocol.threats, len(self.protocol.images)
        return {
            family: matrices(self.records, self.transferred, cards, threats, images)
            for family, cards in self.families.items()
        }

    @cached_property
    def sensitivities(self) -> dict[str, list[Sensitivity]]:
        """How far the networks of each family move with their input, where that was measured."""
        return {f: sensitivities(self.measured, cards, self._networks) for f, cards in self.families.items()}

    @cached_property
    def smallest(self) -> dict[str, list[Smallest]]:
        """The smallest changes of LR that cost the models of each family so much, where they were sought."""
        return {f: smallest_changes(self.measured, cards, self._networks) for f, cards in self.families.items()}

    @cached_property
    def _networks(self) -> dict[str, str]:
        return {r.model: r.network for r in self.records if r.network}

    def sandwich(self, family: str) -> Figure | None:
        """The plot of a family's certificates; None where it has none."""
        proven = self.certificates.by_model
        models = [(c.title, proven[c.id]) for c in self.families.get(family, []) if c.id in proven]
        return plot_sandwich(models, f"Certified and attacked – {FAMILIES[family][1]}\n{self.protocol.title}")

    @property
    def table4(self) -> str:
        """Certified beside attacked figures, in Markdown; empty where nothing is certified."""
        titles = {card.id: card.title for card in self.cards.values()}
        return table4(self.certificates, titles) if self.certificates.by_model else ""

    @property
    def without_card(self) -> list[str]:
        """Models of results.csv that no card describes: they belong to no family, and so stand in no table."""
        return sorted({r.model for r in self.records} - set(self.cards))

    @property
    def on_paper_data(self) -> bool:
        """Whether all figures are of the data sets that the paper used."""
        return {r.dataset for r in self.records if r.status is Status.OK} <= set(PAPER_DATASETS)

    @property
    def datasets(self) -> dict[str, list[str]]:
        """Data set -> the threats evaluated on it."""
        pairs = {(r.dataset, r.threat) for r in self.records}
        names = sorted({dataset for dataset, _ in pairs})
        return {name: [t for t in self.protocol.threats if (name, t) in pairs] for name in names}


def board_files(board: Leaderboard) -> dict[str, str | bytes | None]:
    """The files of a leaderboard's folder by name; None: one that boards may have and this one has not."""
    files: dict[str, str | bytes] = {}
    for name, table in board.tables.items():
        files[f"{name}.csv"] = _csv(frame(table))
        files[f"{name}.md"] = table_page(table, board.protocol, board.missing)
    plots = [*all_plots(board.tables, board.grid, board.protocol, board.cards), *further_plots(board)]
    figures = {f"{name}.png": content for name, content in plots}
    files |= figures
    for family, found in board.transfers.items():
        if found:
            name = f"{TRANSFER}{FAMILIES[family][0]}.csv"
            files[name] = _csv(transfer_frame(found, board.protocol.metrics))
    if board.certificates.by_model:
        files["certificates.csv"] = _csv(board.certificates.frame)
    files["paper-comparison.csv"] = _csv(board.beside_paper)
    files["claims.csv"] = _csv(claims_frame(board.judgements))
    files["report.md"] = report(board, sorted(figures))
    files["leaderboard.json"] = json.dumps(asdict(board.protocol), indent=2) + "\n"
    ends = [f"{end}{suffix}" for end in ("", MORE) for suffix, _ in FAMILIES.values()]
    stems = [
        f"{stem}{end}"
        for stem in (*LAYOUTS, *PLOTS, "sandwich", "certificates", TRANSFER, *SENSITIVITY_PLOTS)
        for end in ends
    ]
    possible = {f"{stem}.{kind}" for stem in stems for kind in ("csv", "md", "png")} - {f"{SENSITIVITY}.csv"}
    return dict.fromkeys(sorted(possible)) | files


def further_plots(board: Leaderboard) -> Iterator[tuple[str, bytes]]:
    """Plots of what not all boards have: (name, content)."""
    for family in board.families:
        suffix = FAMILIES[family][0]
        if figure := board.sandwich(family):
            yield f"sandwich{suffix}", drawn(figure)
        if crossed := board.transfers[family]:
            for end, metrics in metric_groups(board.protocol.metrics).items():
                inputs = (family, crossed, board.protocol, metrics)
                yield f"{TRANSFER}{end}{suffix}", drawn_once(plot_transfer, *inputs)
        if moved := board.sensitivities[family]:
            clean = {pair: cell for pair, cell in board.grid.items() if pair[1] == "clean"}
            for name, plot in SENSITIVITY_PLOTS.items():
                if content := drawn_once(plot, family, moved, clean, board.protocol):
                    yield f"{name}{suffix}", content


def read_leaderboard(folder: Path, cards: Mapping[str, CardInfo]) -> Leaderboard:
    """The leaderboard that `write_leaderboard` has put into `folder`; neither protocol nor data set are needed here.

    Raises InputError where leaderboard.json or results.csv is missing or unusable.
    """
    about = folder / "leaderboard.json"
    protocol = read_json(about, LeaderboardInfo, "make it with: benchsr report")
    try:
        for threat in protocol.threats:
            THREATS[threat]
        for metric in protocol.metrics:
            METRICS[metric]
    except UnknownIdError as error:
        raise InputError(f"{about}: {error}; make it with: benchsr report") from None
    records, problems = read_results(folder / "results.csv")
    for problem in problems:
        log.warning("%s: %s", folder / "results.csv", problem)
    singles = read_singles(folder / "singles.csv")
    records = [replace(r, singles=singles.get(r.key)) for r in records]
    known = {**cards, **defended_cards(r.model for r in records)}
    beside = transferred(folder), read_sensitivity(folder)
    return Leaderboard(protocol, cards_at(protocol.scale, known), records, False, *beside)


def table_page(table: Table, protocol: LeaderboardInfo, missing: bool = False) -> str:
    """A table as a Markdown file: title, table, how to read it, and why cells are missing."""
    shown = table if missing else table.filled
    return _render("table.md.j2", table=table, shown=shown, protocol=protocol)


def report(board: Leaderboard, plots: Sequence[str]) -> str:
    """report.md: settings, tables, plots (names of files beside it), comparison with the paper, and what is missing."""
    return _render("report.md.j2", board=board, protocol=board.protocol, plots=plots, printed=judge_printed())


def _csv(data: pd.DataFrame) -> str:
    return str(data.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def _render(template: str, **values: object) -> str:
    environment = templates("benchsr.leaderboard")
    environment.filters |= {"markdown": markdown, "notes": notes, "blanks": blanks}
    environment.filters |= {"digits": digits, "most_sensitive": most_sensitive}
    environment.filters |= {"show": show, "label": lambda m: METRICS[m].label, "brief": brief}
    environment.globals |= {
        "families": FAMILIES,
        "more": MORE,
        "layouts": LAYOUTS,
        "metrics": METRICS,
        "threats": THREATS,
        "changes": CHANGES,
        "verdicts": list(Verdict),
        "flag_texts": FLAGS,
        "defences": DEFENCES,
        "errors": ERRORS,
        "split": SPLIT,
        "drop": f"{DROP:g}",
        "largest": f"{LARGEST * 255:g}",
        "markdown_table": markdown_table,
        "resamples": RESAMPLES,
        "confidence": f"{CONFIDENCE:.0%}",
    }
    return environment.get_template(template).render(values).rstrip("\n") + "\n"
