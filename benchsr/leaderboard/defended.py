"""What defences cost without an attack, what they give back under one, and which fall to attackers who know them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchsr.leaderboard.contrasts import EFFECTS, effect, root_card
from benchsr.leaderboard.scores import NOT_RUN, Cell, Grid, average, subtract
from benchsr.leaderboard.tables import CardInfo
from benchsr.models.cards import MRS
from benchsr.threats.table import THREATS


@dataclass(frozen=True, eq=False)
class Defended:
    """A defence around several networks: defended minus plain, image by image, averaged over the networks.

    `changes`: threat -> the difference. Under `clean` it is what the defence costs.
    """

    defence: str
    networks: Sequence[CardInfo]
    changes: Mapping[str, Cell]

    def under(self, knows: bool) -> Cell:
        """The mean over the attacks that know the defence, or over those that do not."""
        attacks = [t for t in self.changes if THREATS[t].kind == "attack"]
        chosen = [t for t in attacks if bool(THREATS[t].defaults.get("median_of")) == knows]
        return average([self.changes[t] for t in chosen]) if chosen else NOT_RUN

    def words(self, metric: str) -> str:
        """Whether it stands or falls, as the end of a sentence that begins with the defence.

        Empty where no attack of either sort is complete.
        """
        blind, knowing = self.under(False), self.under(True)
        if not (blind.ok and knowing.ok):
            return ""
        before, now = (effect(cell.estimate(metric), metric) for cell in (blind, knowing))
        if before == EFFECTS[1] != now:
            return f"falls: {before} against attacks that do not know it, but {now} against attacks that do"
        said = "stands" if now == EFFECTS[1] else "is no defence"
        return f"{said}: {now} against attacks that know it, {before} against others"


def defended(
    grid: Grid, cards: Sequence[CardInfo], known: Mapping[str, CardInfo], threats: Sequence[str]
) -> list[Defended]:
    """Each defence of `cards` whose networks were run without it too, under every threat that all of them met."""
    return list(_defended(grid, cards, known, threats))


def _defended(
    grid: Grid, cards: Sequence[CardInfo], known: Mapping[str, CardInfo], threats: Sequence[str]
) -> Iterator[Defended]:
    plain = {root_card(card, known): card for card in cards if not _name(card)}
    for name in dict.fromkeys(_name(card) for card in cards if _name(card)):
        pairs = [(c, plain[root_card(c, known)]) for c in cards if _name(c) == name and root_card(c, known) in plain]
        changes = {
            threat: average([subtract(*(grid.get((card.id, threat), NOT_RUN) for card in pair)) for pair in pairs])
            for threat in threats
            if pairs
        }
        whole = {threat: cell for threat, cell in changes.items() if cell.ok}
        if "clean" in whole:
            yield Defended(name, [card for _, card in pairs], whole)


def _name(card: CardInfo) -> str:
    """The defence that a card is deployed with; empty where it stands alone."""
    return card.defence.name if card.defence else MRS if card.smoothing else ""
