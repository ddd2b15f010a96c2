"""What a board says at first sight: which model keeps most, what smoothing gives back, what its images can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

import numpy as np
from scipy.stats import rankdata

from benchsr.leaderboard.compare import LEVEL, POWER, detectable, paired, tied_with_best
from benchsr.leaderboard.contrasts import EFFECTS, effect, root_card
from benchsr.leaderboard.corruption import BASELINE
from benchsr.leaderboard.scores import NOT_RUN, SCORED, Cell, Grid, average, sign, subtract, worst
from benchsr.leaderboard.tables import CardInfo, LeaderboardInfo, show
from benchsr.metrics.quality import METRICS
from benchsr.threats.table import THREATS

METRIC = SCORED[0]
"""Models are ranked by it, and the sentences speak of it."""


def competes(card: CardInfo) -> bool:
    """Whether a model may be named the best: interpolation is no network, and none in use knows its threat's sigma."""
    return card.id != BASELINE and not isinstance(getattr(card.smoothing, "sigma", None), Mapping)


@dataclass(frozen=True, eq=False)
class Place:
    """One model: its rank under attack by METRIC (1 keeps most), unattacked and attacked figures, and whether no paired
    test separates it from the best that competes.
    """

    rank: int
    card: CardInfo
    clean: Cell
    attacked: Cell
    tied: bool = False


@dataclass(frozen=True, eq=False)
class Smoothing:
    """Smoothed minus plain, averaged over `networks` that were run both ways: under attack, and unattacked.

    `known`: whether any of the attacks looks through the smoothing; None where there was no attack.
    """

    networks: int
    attacked: Cell
    clean: Cell
    known: bool | None

    @property
    def words(self) -> str:
        """The outcome as a sentence."""
        gain, cost = (show(cell.estimate(METRIC), METRIC) for cell in (self.attacked, self.clean))
        said = {EFFECTS[1]: "gives back", EFFECTS[0]: "makes no certain difference:", EFFECTS[-1]: "takes away"}
        found, unit = effect(self.attacked.estimate(METRIC), METRIC), METRICS[METRIC].unit
        against = {
            None: "",
            True: " against attacks that know of it",
            False: " against these attacks, which do not know of it",
        }[self.known]
        over = f"mean over {self.networks} networks" if self.networks > 1 else "one network"
        return f"Smoothing {said[found]} {gain} {unit}{against}; clean images change by {cost} {unit} ({over})."


@dataclass(frozen=True, eq=False)
class Headline:
    """The answer of one family on one board.

    `threats` are the attacks of which each image's worst figure counts; where the board has no attack, the corruptions
    over which figures are averaged (`attacked` is False). `places` are the models with complete figures, best first;
    `lacking` those without. `smallest` is for each metric the difference under attack that so many images show between
    two models (see `smallest_difference`).
    """

    threats: tuple[str, ...]
    attacked: bool
    images: int
    places: Sequence[Place]
    lacking: Sequence[CardInfo]
    smoothing: Smoothing | None
    smallest: Mapping[str, float]

    @property
    def under(self) -> str:
        """What `places` are ranked under, in words."""
        if not self.attacked:
            return f"On average over {len(self.threats)} corruptions"
        if len(self.threats) == 1:
            return f"Under {THREATS[self.threats[0]].title}"
        return f"Under the strongest of {len(self.threats)} attacks of one size on each image"

    @property
    def best(self) -> Place | None:
        """The model that keeps most of those that compete."""
        return next((place for place in self.places if competes(place.card)), None)

    @property
    def answer(self) -> list[str]:
        """The sentences."""
        if (best := self.best) is None:
            return ["No network has complete figures here yet."]
        unit, tied = METRICS[METRIC].unit, sum(place.tied for place in self.places)
        clean, attacked = (show(cell.estimate(METRIC), METRIC) for cell in (best.clean, best.attacked))
        networks = sum(competes(place.card) for place in self.places)
        said = [
            f"{self.under}, {best.card.title} keeps most of {networks} networks: {attacked} {unit}, "
            f"of {clean} {unit} on clean images."
        ]
        for base in (place for place in self.places if place.card.id == BASELINE):
            more = "keeps more:" if base.rank < best.rank else "keeps"
            kept = show(base.attacked.estimate(METRIC), METRIC)
            said.append(f"{base.card.title}, which learns nothing, {more} {kept} {unit}.")
        if tied:
            said.append(f"No paired test separates {tied} other network{'s' * (tied > 1)} from it.")
        if self.smoothing:
            said.append(self.smoothing.words)
        return said

    @property
    def power(self) -> str:
        """The smallest difference that the board can show, as a sentence."""
        known = {m: size for m, size in self.smallest.items() if np.isfinite(size)}
        if not known:
            return f"{self.images} images can show no difference between two models: each order may be chance."
        sizes = " or ".join(
            f"{METRICS[m].shown(size)} {METRICS[m].unit or METRICS[m].title}" for m, size in known.items()
        )
        return (
            f"The smallest difference that {self.images} images show between two models: {sizes} (found with a chance "
            f"of {POWER:.0%} at the {LEVEL:.0%} level; median over pairs of models)."
        )


def asked(threats: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """The threats that a board's headline is about, and whether the worst of them counts or their mean.

    Of the attacks those of one size count together: the largest group, and of equal ones that of the largest size.
    """
    whole = [t for t in threats if THREATS[t].unattacked == "clean"]
    sizes: dict[tuple[object, object], list[str]] = {}
    for threat in (t for t in whole if THREATS[t].kind == "attack"):
        settings = THREATS[threat].defaults
        sizes.setdefault((settings.get("norm"), settings.get("eps")), []).append(threat)
    if sizes:
        return tuple(max(sizes.items(), key=lambda found: (len(found[1]), found[0][1] or 0))[1]), True
    return tuple(t for t in whole if t != "clean" and not THREATS[t].dataset), False


def smallest_difference(cells: Sequence[Cell], metric: str) -> float:
    """The true difference between two models that so many images show in `compare.detectable`'s sense, as the median
    over all pairs of complete `cells` on the same images. Infinite where they can show none, NaN without a pair.
    """
    found = []
    for a, b in combinations([cell for cell in cells if cell.shares], 2):
        if a.shares.keys() == b.shares.keys():
            sides = [np.array([c.of(metric, c.shares[i]) * len(c.shares) for i in sorted(c.shares)]) for c in (a, b)]
            difference = paired(*sides)
            if np.isfinite(difference).all() and len(difference):
                spread = float(difference.std(ddof=1)) if len(difference) > 1 else np.nan
                found.append(detectable(spread, len(difference)))
    return float(median(found)) if found else np.nan


def make_headline(
    grid: Grid, cards: Sequence[CardInfo], known: Mapping[str, CardInfo], protocol: LeaderboardInfo
) -> Headline | None:
    """The headline of `cards`, models of one family; None where the board has nothing to rank them by.

    `known` are all cards, by which networks are found that were run with smoothing and without.
    """
    threats, attacked = asked(protocol.threats)
    if not threats or METRIC not in protocol.metrics:
        return None
    fold, images = worst if attacked else average, len(protocol.images)
    whole = [
        (card, grid.get((card.id, "clean"), NOT_RUN), fold([grid.get((card.id, t), NOT_RUN) for t in threats]))
        for card in cards
    ]
    full = [row for row in whole if row[1].ok and row[2].ok and np.isfinite(row[2].value(METRIC))]
    return Headline(
        threats,
        attacked,
        images,
        _places(full),
        [card for card, *_ in whole if card not in [c for c, *_ in full]],
        _smoothing(full, known, threats if attacked else ()),
        {m: smallest_difference([cell for *_, cell in full], m) for m in (METRIC, "lpips") if m in protocol.metrics},
    )


def _places(rows: Sequence[tuple[CardInfo, Cell, Cell]]) -> list[Place]:
    """Rows of (card, clean, attacked), best first; ranks and ties as in the tables."""
    about = METRICS[METRIC]
    ranks = rankdata([-sign(METRIC) * round(cell.value(METRIC), about.decimals) for *_, cell in rows], method="min")
    networks = [(card.id, cell) for card, _, cell in rows if competes(card)]
    tied: set[str] = set()
    if networks and len({tuple(sorted(cell.shares)) for _, cell in networks}) == 1:
        images = tuple(sorted(networks[0][1].shares))
        scores = [np.array([cell.of(METRIC, cell.shares[i]) for i in images]) for _, cell in networks]
        marks = tied_with_best(scores, images, about.higher_is_better) or [False] * len(networks)
        best = max(networks, key=lambda row: sign(METRIC) * row[1].value(METRIC))[0]
        tied = {name for (name, _), mark in zip(networks, marks, strict=True) if mark} - {best}
    made = [Place(int(r), *row, tied=row[0].id in tied) for r, row in zip(ranks, rows, strict=True)]
    return sorted(made, key=lambda place: (-sign(METRIC) * place.attacked.value(METRIC), place.card.id))


def _smoothing(
    rows: Sequence[tuple[CardInfo, Cell, Cell]], known: Mapping[str, CardInfo], attacks: Sequence[str]
) -> Smoothing | None:
    """What smoothing does to the networks that were run with it and, behind no other defence, without it."""
    bare = [row for row in rows if not (row[0].smoothing or row[0].defence)]
    plain = {root_card(card, known): (clean, cell) for card, clean, cell in bare}
    pairs = [
        (subtract(clean, plain[root][0]), subtract(cell, plain[root][1]))
        for card, clean, cell in rows
        if card.smoothing and competes(card) and (root := root_card(card, known)) in plain
    ]
    if not pairs:
        return None
    knowing = any(THREATS[t].defaults.get("median_of") for t in attacks) if attacks else None
    return Smoothing(
        len(pairs), average([under for _, under in pairs]), average([clean for clean, _ in pairs]), knowing
    )
