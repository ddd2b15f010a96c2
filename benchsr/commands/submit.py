"""A submitted model: card checked, row computed, determinism tested, and the pull request's text written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from benchsr.base.errors import CardError
from benchsr.base.files import write_atomic
from benchsr.base.text import escape, markdown_table, templates
from benchsr.commands.report import about_leaderboard
from benchsr.commands.run import evaluate
from benchsr.data.datasets import load_dataset
from benchsr.evaluation.options import RunOptions
from benchsr.evaluation.plan import plugins
from benchsr.evaluation.protocol import Protocol, load_protocol
from benchsr.leaderboard import LeaderboardInfo
from benchsr.leaderboard.flags import FLAGS, flags
from benchsr.leaderboard.scores import CONFIDENCE, NOT_RUN, make_grid
from benchsr.leaderboard.tables import expected_images, show
from benchsr.metrics.quality import METRICS
from benchsr.models.cards import Card
from benchsr.models.zoo import load_card, network_key, zoo, zoo_dir
from benchsr.results.records import TIMINGS, Record, Status, flat
from benchsr.threats.table import THREATS

REPEATED = ("clean", "noise", "fgsm", "pgd")
"""Threats computed twice from nothing: those of them that the protocol has."""


@dataclass(frozen=True)
class Submission:
    """What became of a card: its row's records, what differed between two runs, and all of it as Markdown."""

    card: Card
    network: str
    records: Sequence[Record]
    differences: Sequence[str]
    text: str

    @property
    def failures(self) -> list[str]:
        """Why the card cannot be merged as it is: evaluations that failed, and figures that do not repeat."""
        failed = {f"{r.threat}: {r.reason}" for r in self.records if r.status is Status.FAILED}
        return [*sorted(failed), *self.differences]

    @property
    def ready(self) -> bool:
        """Whether every evaluation that is possible here went through and repeats."""
        return not self.failures


def submit(
    card_file: Path,
    protocol: str | Path | Protocol = "quick",
    *,
    device: str = "auto",
    out: Path | None = None,
    console: Console | None = None,
) -> Submission:
    """Evaluate a card under `protocol` and write the pull request's text to `out` (default: <id>-pull-request.md).

    Raises CardError, UnavailableError or IntegrityError where card or weights cannot be used; what goes wrong with an
    evaluation is told in the text.
    """
    if card_file.suffix != ".toml":
        raise CardError(
            f"{card_file}: a pull request brings a card (.toml); docs/CONTRIBUTING.md shows how to write one"
        )
    card = load_card(card_file)
    if card.id in zoo() and card_file.resolve().parent != zoo_dir().resolve():
        raise CardError(f"{card_file}: id: {card.id!r} is taken by a card of the zoo; choose another one")
    network = network_key(card)
    named = protocol if isinstance(protocol, Protocol) else load_protocol(protocol)
    chosen = named.override(scale=card.factor)
    with TemporaryDirectory() as scratch:
        options = RunOptions(device=device, out=Path(scratch) / "row", console=console)
        records = evaluate(str(card_file), "all", chosen, options).planned
        threats = ",".join(t for t in REPEATED if t in chosen.threats)
        again = [
            RunOptions(device=device, limit=1, out=f"{scratch}/{i}", cache=f"{scratch}/cache{i}") for i in range(2)
        ]
        twice = [evaluate(str(card_file), threats, chosen, options).planned for options in again]
    differences = list(compare(*twice))
    info = about_leaderboard(
        chosen, load_dataset(chosen.dataset, crop=chosen.crop, scale=chosen.scale).first(chosen.images)
    )
    brought = plugins(chosen, chosen.threats, [card])
    text = _text(card, network, records, differences, info, brought)
    write_atomic(out or Path(f"{card.id}-pull-request.md"), text)
    return Submission(card, network, records, differences, text)


def compare(first: Sequence[Record], second: Sequence[Record]) -> list[str]:
    """Figures of the same evaluations that differ at all, in words."""
    again = {(r.threat, r.image): r for r in second}
    return [
        f"{r.threat} / {r.image}: {name} {value} and then {flat(again[r.threat, r.image]).get(name)}"
        for r in first
        for name, value in flat(r).items()
        if name not in TIMINGS and flat(again[r.threat, r.image]).get(name) != value
    ]


def row(records: Sequence[Record], info: LeaderboardInfo, card: Card) -> str:
    """The row that the card would add, one line for each threat, in Markdown."""
    grid, raised = make_grid(records, expected_images(info)), flags(records, {card.id: card})
    header = [
        "Threat",
        *(METRICS[m].heading for m in info.metrics),
        "Remarks",
    ]
    lines = []
    for threat in info.threats:
        cells = [cell for (_, t), cell in grid.items() if t == threat] or [NOT_RUN]
        cell = cells[0]
        remarks = [f"{cell.status}: {cell.reason}"] * (not cell.ok)
        remarks += [flag for (_, t), found in raised.items() if t == threat for flag in found]
        figures = [show(cell.estimate(metric), metric) for metric in info.metrics]
        lines.append([THREATS[threat].title, *figures, escape("; ".join(remarks))])
    return markdown_table(header, lines)


def _text(
    card: Card,
    network: str,
    records: Sequence[Record],
    differences: Sequence[str],
    info: LeaderboardInfo,
    brought: Mapping[str, str],
) -> str:
    raised = sorted({flag for found in flags(records, {card.id: card}).values() for flag in found})
    values = {
        "card": card,
        "network": network,
        "protocol": info,
        "row": row(records, info, card),
        "differences": differences,
    }
    values |= {
        "brought": brought,
        "failed": sum(r.status is Status.FAILED for r in records),
        "confidence": f"{CONFIDENCE:.0%}",
    }
    values |= {"flags": {flag: FLAGS[flag] for flag in raised}, "repeated": [t for t in REPEATED if t in info.threats]}
    return templates("benchsr.commands").get_template("submission.md.j2").render(values)
