"""The paper's attacks and adaptive ones side by side: what each leaves of a model, and whether smoothing helps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchsr.leaderboard.scores import NOT_RUN, SCORED, SIGN, Cell, Estimate, make_cell, subtract
from benchsr.leaderboard.tables import CardInfo
from benchsr.models.zoo import BEHIND
from benchsr.results.records import Record, Status
from benchsr.threats.table import ADAPTIVE, SWEEP

FIXED_ATTACKS = ("fgsm", "bim", "pgd")
"""The paper's attacks that share the eps of the adaptive ones; CW has no eps and is left out of the comparison."""

ADAPTIVE_ATTACKS = tuple(t for t, spec in ADAPTIVE.items() if spec.kind == "attack" and t not in SWEEP)


@dataclass(frozen=True, eq=False)
class Contrast:
    """One model under the worst of the paper's attacks on each image, under the worst of all, and the difference.

    "Worst" is taken for each image and metric by itself, so the figures bound what any one attack does.
    """

    card: CardInfo
    fixed: Cell
    adaptive: Cell

    @property
    def change(self) -> Cell:
        """adaptive - fixed: what the paper's protocol overstates."""
        return subtract(self.adaptive, self.fixed)


@dataclass(frozen=True)
class Help:
    """What smoothing adds to a network by one metric: under the paper's attacks, and under adaptive ones."""

    smoothed: CardInfo
    plain: CardInfo
    metric: str
    fixed: Estimate
    adaptive: Estimate

    @property
    def words(self) -> str:
        """The outcome as the end of a sentence that begins with "smoothing"."""
        before, now = (effect(e, self.metric) for e in (self.fixed, self.adaptive))
        if before == now:
            return f"still {now}" if now == EFFECTS[1] else f"{now}, under the paper's attacks as under adaptive ones"
        return f"{before} under the paper's attacks, but {now} under adaptive ones"


EFFECTS = {1: "helps", 0: "makes no certain difference", -1: "harms"}


def effect(difference: Estimate, metric: str) -> str:
    """Whether a difference speaks for or against smoothing with its whole interval."""
    sign = SIGN[SCORED.index(metric)]
    low, high = sorted((sign * difference.low, sign * difference.high))
    return EFFECTS[int(low > 0) - int(high < 0)]


def worst_case(records: Iterable[Record], threats: Sequence[str], expected: int) -> dict[str, Cell]:
    """For each model a cell of its images' worst figures over `threats`; images without all of them do not count."""
    images: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.threat in threats and record.status is Status.OK:
            images.setdefault((record.model, record.image), []).append(record)
    models: dict[str, list[Record]] = {}
    for (model, _), found in images.items():
        if {r.threat for r in found} == set(threats):
            scores = np.array([[r.scores.get(metric, np.nan) for metric in SCORED] for r in found])
            worst = SIGN * (SIGN * scores).min(axis=0)
            models.setdefault(model, []).append(
                replace(found[0], scores=dict(zip(SCORED, worst.tolist(), strict=True)))
            )
    return {model: make_cell(rows, expected) for model, rows in models.items()}


def contrasts(records: Sequence[Record], cards: Mapping[str, CardInfo], expected: int) -> list[Contrast]:
    """Every model that met both the paper's attacks and the adaptive ones; `expected` images make a full set."""
    fixed = worst_case(records, FIXED_ATTACKS, expected)
    every = worst_case(records, (*FIXED_ATTACKS, *ADAPTIVE_ATTACKS), expected)
    return [Contrast(card, fixed.get(model, NOT_RUN), every[model]) for model, card in cards.items() if model in every]


def helps(found: Sequence[Contrast], cards: Mapping[str, CardInfo]) -> list[Help]:
    """Each smoothed model beside its own network without smoothing, by every metric, where both are complete."""
    made = []
    for smoothed in found:
        for plain in found:
            pair = smoothed.card.smoothing and not plain.card.smoothing
            if pair and root_card(smoothed.card, cards) == root_card(plain.card, cards):
                gains = [subtract(getattr(smoothed, name), getattr(plain, name)) for name in ("fixed", "adaptive")]
                if all(gain.ok for gain in gains):
                    made += [Help(smoothed.card, plain.card, m, *(gain.estimate(m) for gain in gains)) for m in SCORED]
    return made


def root_card(card: CardInfo, cards: Mapping[str, CardInfo]) -> str:
    """The card that owns the network."""
    while card.base is not None and card.base in cards:
        card = cards[card.base]
    return card.id.rpartition(BEHIND)[2]
