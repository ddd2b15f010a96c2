"""The paper's attacks and adaptive ones side by side: what each leaves of a model, and whether smoothing helps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchsr.leaderboard.scores import NOT_RUN, Cell, Estimate, Grid, sign, subtract, worst
from benchsr.leaderboard.tables import LAYOUTS, CardInfo
from benchsr.models.zoo import BEHIND


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
    low, high = sorted((sign(metric) * difference.low, sign(metric) * difference.high))
    return EFFECTS[int(low > 0) - int(high < 0)]


def contrasts(grid: Grid, cards: Mapping[str, CardInfo], threats: Collection[str]) -> list[Contrast]:
    """Every model that is complete under those of the paper's attacks and of the adaptive ones that are in `threats`;
    none where one of the two kinds is not.
    """
    groups = [LAYOUTS[name].among(threats).worst for name in ("table2", "adaptive")]
    if not groups[0] or groups[0] == groups[1]:
        return []
    found = []
    for model, card in cards.items():
        fixed, every = (worst([grid.get((model, threat), NOT_RUN) for threat in group]) for group in groups)
        if every.ok:
            found.append(Contrast(card, fixed, every))
    return found


def helps(found: Sequence[Contrast], cards: Mapping[str, CardInfo]) -> list[Help]:
    """Each smoothed model beside its own network without smoothing, by every metric that both have figures of, where
    both are complete.
    """
    made = []
    for smoothed in found:
        for plain in found:
            pair = smoothed.card.smoothing and not plain.card.smoothing
            if pair and root_card(smoothed.card, cards) == root_card(plain.card, cards):
                gains = [subtract(getattr(smoothed, name), getattr(plain, name)) for name in ("fixed", "adaptive")]
                if all(gain.ok for gain in gains):
                    metrics = [m for m in gains[0].metrics if not any(np.isnan(gain.value(m)) for gain in gains)]
                    made += [Help(smoothed.card, plain.card, m, *(gain.estimate(m) for gain in gains)) for m in metrics]
    return made


def root_card(card: CardInfo, cards: Mapping[str, CardInfo]) -> str:
    """The card that owns the network."""
    while card.base is not None and card.base in cards:
        card = cards[card.base]
    return card.id.rpartition(BEHIND)[2]
