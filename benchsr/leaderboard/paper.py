"""Our figures beside the paper's: cell by cell, in rank correlation, and claim by claim."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import kendalltau

from benchsr.leaderboard.scores import NOT_RUN, SCORED, SIGN, Cell, Estimate, Grid, average, subtract
from benchsr.leaderboard.tables import AVERAGE, COMPACT, LAYOUTS, REPRODUCED, CardInfo, paper_folder
from benchsr.metrics.quality import METRICS

PAPER_DATASETS = ("div2k-valid", "ntire-track1-valid", "aim-valid")
"""The data sets of the printed tables."""

FEWEST_ROWS = 3
"""Kendall's tau over fewer rows says nothing."""


@dataclass(frozen=True)
class Scale:
    """Which of our figures are read as the paper's.

    Its rows are `prefix` + id, but the card that `reproduced` names for them, where there is one. Claims about a domain
    are checked on the threat of `stand_ins`.
    """

    prefix: str = ""
    reproduced: Mapping[str, str] = field(default_factory=dict)
    stand_ins: Mapping[str, str] = field(default_factory=dict)

    def model(self, row: str) -> str:
        """The card that is judged as a row of the paper; bicubic has no scale."""
        return self.reproduced.get(row, row if row == "bicubic" else self.prefix + row)

    def cell(self, grid: Grid, row: str, threat: str) -> Cell:
        """Our cell of a row of the paper."""
        return grid.get((self.model(row), threat), NOT_RUN)


SCALES = {
    "paper": Scale(),
    # The domain models among the compact networks were trained on the stand-ins.
    "compact": Scale(COMPACT, stand_ins={"ntire": "standin-ntire", "aim": "standin-aim"}),
}
"""How each family spells the rows of the paper."""


def scale_of(family: str, grid: Grid, cards: Mapping[str, CardInfo]) -> Scale:
    """The family's scale. A row without any figure under its own id is read from a card that retrains it and has some;
    of several, from the first.
    """
    scored = {model for (model, _), cell in grid.items() if cell.n}
    own = SCALES[family]
    stands: dict[str, str] = {}
    for card in cards.values():
        row = card.retrains
        if row and card.family == family and card.id in scored and own.model(row) not in scored:
            stands.setdefault(row, card.id)
    return replace(own, reproduced=stands)


@cache
def printed_table(name: str) -> pd.DataFrame:
    """A table of the paper as printed ("table1", "table2", "table3"), a row for each model id."""
    return pd.read_csv(paper_folder() / f"{name}.csv", index_col="model")


def printed_grid(name: str) -> Grid:
    """A printed table as cells, its averages as printed. They are exact: their intervals have no width."""
    table = printed_table(name)
    cells: dict[tuple[str, str], Cell] = {}
    for column in LAYOUTS[name].among(()).columns:  # nothing derived by us
        values = table[[f"{column}_{metric}" for metric in SCORED]].to_numpy(dtype=np.float64)
        cells |= {(str(m), column): Cell(1, v, v[None], "ok") for m, v in zip(table.index, values, strict=True)}
    return cells


def with_average(name: str, grid: Grid, stand_ins: Mapping[str, str] = {}) -> Grid:
    """`grid` with each model's average over the threats of table `name`, where the table has one and `grid` has not.

    `stand_ins`: threats that take the place of others.
    """
    layout = LAYOUTS[name]
    if not layout.average:
        return grid
    models = {model for model, _ in grid}
    threats = [stand_ins.get(t, t) for t in layout.threats]
    averages = {(m, AVERAGE): average([grid.get((m, t), NOT_RUN) for t in threats]) for m in models}
    return {**averages, **grid}


def beside_paper(grid: Grid) -> pd.DataFrame:
    """Each printed figure beside ours: table, model, threat, metric, paper, ours, low, high (95% interval), difference
    (ours - paper), status and reason of our cell. Figures of incomplete cells are left empty.
    """
    lines = []
    for name in ("table1", "table2", "table3"):
        ours, printed = with_average(name, grid), printed_grid(name)
        for (model, threat), theirs in printed.items():
            cell = ours.get((model, threat), NOT_RUN)
            for metric in SCORED:
                paper = theirs.estimate(metric).value
                own = cell.estimate(metric) if cell.ok else Estimate(np.nan, np.nan, np.nan)
                figures = {"paper": paper, "ours": own.value, "low": own.low, "high": own.high}
                lines.append(
                    {"table": name, "model": model, "threat": threat, "metric": metric, **figures}
                    | {"difference": own.value - paper, "status": cell.status, "reason": cell.reason}
                )
    return pd.DataFrame(lines)


def rank_correlation(grid: Grid, scale: Scale = SCALES["paper"]) -> pd.DataFrame:
    """Kendall's tau-b between our column and the printed one: table, threat, metric, rows, reproduced, tau, p_value.

    Rows are the models that are complete at `scale`, of which `reproduced` are not the paper's own; tau is empty where
    there are fewer than three.
    """
    lines = []
    for name in ("table1", "table2", "table3"):
        ours, printed = with_average(name, grid), printed_grid(name)
        for threat in dict.fromkeys(threat for _, threat in printed):
            models = [m for m, t in printed if t == threat and scale.cell(ours, m, threat).ok]
            reproduced = sum(m in scale.reproduced for m in models)
            for i, metric in enumerate(SCORED):
                tau = p = np.nan
                if len(models) >= FEWEST_ROWS:
                    own = [scale.cell(ours, m, threat).mean[i] for m in models]
                    tau, p = kendalltau(own, [printed[m, threat].mean[i] for m in models])
                lines.append(
                    {"table": name, "threat": threat, "metric": metric, "rows": len(models), "reproduced": reproduced}
                    | {"tau": tau, "p_value": p}
                )
    return pd.DataFrame(lines)


class Verdict(StrEnum):
    """What becomes of a claim, and of each comparison that it is made of."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "cannot be judged"


class Check(BaseModel):
    """`subject` is "best" or "worst" (alone or tied) among itself and `than`, in every metric under every threat."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    subject: str
    is_: Literal["best", "worst"] = Field(alias="is")
    than: tuple[str, ...] | Literal["others"]
    threats: tuple[str, ...]
    metrics: tuple[Literal["psnr", "ssim", "lpips"], ...]
    since: str | None = None
    margin: float = Field(0.0, ge=0)


class Claim(BaseModel):
    """A claim of the paper: it holds if all its checks do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    text: str
    reading: str = ""
    table: Literal["table1", "table2", "table3"]
    check: tuple[Check, ...]


@dataclass(frozen=True)
class Comparison:
    """Two models in one figure. `lead` is oriented so that positive speaks for the claim (NaN if not to be had)."""

    subject: str
    other: str
    threat: str
    metric: str
    lead: Estimate
    margin: float
    missing: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Holds if the whole interval is at or above -margin, fails if all of it is below, else cannot be judged."""
        if self.lead.low >= -self.margin:
            return Verdict.HOLDS
        return Verdict.FAILS if self.lead.high < -self.margin else Verdict.OPEN

    def __str__(self) -> str:
        lead, name = self.lead, f"{METRICS[self.metric].title} {self.threat}"
        span = "" if lead.low == lead.high else f" [{lead.low:+.3f}, {lead.high:+.3f}]"
        return f"{self.subject} and {self.other}, {name}, {lead.value + 0.0:+.3f}{span}"


@dataclass(frozen=True)
class Judgement:
    """A claim with all comparisons that it rests on, and the cards `reproduced` for rows that it speaks of."""

    claim: Claim
    comparisons: Sequence[Comparison]
    reproduced: Sequence[str] = ()

    @property
    def verdict(self) -> Verdict:
        """Fails with any comparison that fails; holds if all hold; else cannot be judged."""
        found = {comparison.verdict for comparison in self.comparisons}
        return next(v for v in (Verdict.FAILS, Verdict.OPEN, Verdict.HOLDS) if v in found)

    @property
    def missing(self) -> list[str]:
        """Models without the complete cells that the claim needs."""
        return sorted({model for comparison in self.comparisons for model in comparison.missing})

    def count(self, verdict: Verdict) -> int:
        """How many comparisons come to `verdict`."""
        return sum(comparison.verdict is verdict for comparison in self.comparisons)

    @property
    def weakest(self) -> Comparison | None:
        """Of the comparisons behind the verdict the one that speaks least for the claim; None without any figures."""
        scale = {"psnr": 20.0, "ssim": 1.0, "lpips": 1.0}  # from good to bad, roughly: only to pick one to show
        judged = [c for c in self.comparisons if not np.isnan(c.lead.value) and c.verdict is self.verdict]
        return min(judged, key=lambda c: (c.lead.value + c.margin) / scale[c.metric], default=None)

    @property
    def evidence(self) -> str:
        """The verdict's grounds in words."""
        counts = [f"{verdict}: {self.count(verdict)}" for verdict in Verdict if self.count(verdict)]
        parts = [f"{len(self.comparisons)} comparisons, {', '.join(counts)}"]
        if self.weakest:
            parts.append(f"weakest: {self.weakest}")
        if self.missing:
            parts.append(f"not complete here: {', '.join(self.missing)}")
        if self.reproduced:
            parts.append(f"{REPRODUCED}, not the paper's weights: {', '.join(self.reproduced)}")
        return "; ".join(parts)


def load_claims() -> list[Claim]:
    """The paper's claims from claims.toml."""
    text = (paper_folder() / "claims.toml").read_text(encoding="utf-8")
    return [Claim.model_validate(claim) for claim in tomllib.loads(text)["claim"]]


def judge(claim: Claim, grid: Grid, scale: Scale = SCALES["paper"]) -> Judgement:
    """Check a claim on `grid`, reading the rows of the paper at `scale`."""
    full, printed = with_average(claim.table, grid, scale.stand_ins), printed_table(claim.table).index
    comparisons = []
    for check in claim.check:
        others = [m for m in printed if m != check.subject] if check.than == "others" else check.than
        for threat in check.threats:
            for other in others:
                comparisons += list(_compare(check, full, other, scale.stand_ins.get(threat, threat), scale))
    spoken_of = {model for comparison in comparisons for model in (comparison.subject, comparison.other)}
    return Judgement(claim, comparisons, [model for model in scale.reproduced.values() if model in spoken_of])


def judge_all(grid: Grid, scale: Scale = SCALES["paper"]) -> list[Judgement]:
    """Check every claim at `scale`."""
    return [judge(claim, grid, scale) for claim in load_claims()]


def judge_printed() -> list[Judgement]:
    """Check every claim on the paper's own printed tables."""
    return [judge(claim, printed_grid(claim.table)) for claim in load_claims()]


def _compare(check: Check, grid: Grid, other: str, threat: str, scale: Scale) -> Iterable[Comparison]:
    def figure(row: str) -> Cell:
        cell = scale.cell(grid, row, threat)
        return subtract(cell, scale.cell(grid, row, check.since)) if check.since else cell

    mine, theirs = figure(check.subject), figure(other)
    named = {row: scale.model(row) for row in (check.subject, other)}
    missing = tuple(named[m] for m, cell in ((check.subject, mine), (other, theirs)) if not cell.ok)
    lead = subtract(mine, theirs)
    sign = SIGN if check.is_ == "best" else -SIGN
    oriented = Cell(lead.n, sign * lead.mean, sign * lead.draws, lead.status)
    where = f"{threat} - {check.since}" if check.since else threat
    for metric in check.metrics:
        yield Comparison(
            named[check.subject], named[other], where, metric, oriented.estimate(metric), check.margin, missing
        )


def claims_frame(judged: Mapping[str, Sequence[Judgement]]) -> pd.DataFrame:
    """Every comparison of every claim: family, claim, verdict, subject, other, threat, metric, lead, low, high, margin,
    comparison (its own verdict).
    """
    return pd.DataFrame(
        [
            {"family": family, "claim": j.claim.id, "verdict": str(j.verdict), "subject": c.subject, "other": c.other}
            | {"threat": c.threat, "metric": c.metric, "lead": c.lead.value, "low": c.lead.low, "high": c.lead.high}
            | {"margin": c.margin, "comparison": str(c.verdict)}
            for family, judgements in judged.items()
            for j in judgements
            for c in j.comparisons
        ]
    )
