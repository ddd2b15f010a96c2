"""Two models of a leaderboard, or two leaderboards, compared in words: behind `benchsr compare`."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchsr.base.drawing import drawn
from benchsr.base.errors import InputError
from benchsr.base.files import write_atomic
from benchsr.base.pairs import USUAL, Scale
from benchsr.base.registry import Registry
from benchsr.base.text import escape, markdown_table
from benchsr.evaluation.ledger import stored_protocol
from benchsr.evaluation.protocol import load_protocol
from benchsr.leaderboard.compare import LEVEL, POWER, Difference, compare, compare_boards, frame, smallest_p
from benchsr.leaderboard.plots import plot_differences
from benchsr.metrics.quality import METRICS
from benchsr.results.records import Record, Status, read_results

log = logging.getLogger(__name__)

FEW_IMAGES = 20
"""Below so many, 95% bootstrap intervals are noticeably narrow: on normal figures they cover 86% at 6 images, 90% at
10 and 93% at 20 (simulated)."""

HEADER = ("threat", "n", "A", "B", "A - B", "p", "Holm", "finds", "better")
"""Columns of a comparison; `legend` says what they mean."""


@dataclass(frozen=True)
class Comparison:
    """A minus B, two models or two boards: `found` for each model, or for the pair."""

    title: str
    a: str
    b: str
    found: Mapping[str, Sequence[Difference]]
    note: str = ""

    def sections(self) -> Iterator[tuple[str, list[list[str]]]]:
        """A title and rows, in the columns of HEADER, for each metric of each model."""
        for name, differences in self.found.items():
            for metric in dict.fromkeys(d.metric for d in differences):
                about = METRICS[metric]
                lead = f"{name}: " if len(self.found) > 1 else ""
                yield f"{lead}{about.label}, {about.direction}", [_row(d) for d in differences if d.metric == metric]

    @property
    def table(self) -> pd.DataFrame:
        """A row for each difference; see `leaderboard.compare.frame`."""
        return frame(self.found)

    def to_markdown(self) -> str:
        """The tables of all metrics and the legend; notebooks show this."""
        parts = [f"# {escape(self.title)}: {escape(self.a)} and {escape(self.b)}"]
        for title, rows in self.sections():
            parts += [f"## {escape(title)}", markdown_table(HEADER, ([escape(v) for v in row] for row in rows))]
        return "\n\n".join([*parts, *map(escape, self.legend)]) + "\n"

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    @property
    def legend(self) -> list[str]:
        """What the figures mean, and what they cannot show."""
        every = [d for differences in self.found.values() for d in differences]
        family = max(Counter(d.metric for d in every if d.n).values(), default=0) // len(self.found)
        lines = [
            f"A is {self.a}, B is {self.b}. A - B: mean over the images that both have figures of, with its 95% "
            "bootstrap interval.",
            "p: sign-flip test of the paired differences. Holm: the same, adjusted for all threats of the metric; "
            f'"better" names a model where it is at most {LEVEL:g}.',
            f"finds: the smallest true difference that so many images show with a chance of {POWER:.0%} at the "
            'strictest step of Holm; "none" where they cannot show any.',
        ]
        fewest = min((d.n for d in every if d.n), default=0)
        if smallest_p(fewest) * family > LEVEL:
            lines.append(
                f"{fewest} images are too few: their smallest p is {smallest_p(fewest):.2g}, after Holm over {family} "
                f"threats {min(1.0, smallest_p(fewest) * family):.2g}. A protocol with more images can tell."
            )
        if fewest < FEW_IMAGES:
            lines.append(
                f"Intervals from fewer than {FEW_IMAGES} images are narrow: at 6 they cover about 86%, at 10 90%."
            )
        reasons = dict.fromkeys(f"{d.threat}: {d.reason}" for d in every if d.reason)
        lines += [self.note] * bool(self.note)
        return [*lines, *(f"Not compared: {reason}" for reason in reasons)]


def _row(d: Difference) -> list[str]:
    shown = METRICS[d.metric].shown
    if not d.n:
        return [d.threat, "0", *["–"] * 6, ""]
    e = d.difference
    means = [shown(v) for v in (d.a, d.b)]
    if math.isnan(e.value):
        return [d.threat, str(d.n), *means, *["–"] * 4, ""]
    span = f"{shown(e.value, '+')} [{shown(e.low, '+')}, {shown(e.high, '+')}]"
    finds = shown(d.detectable) if math.isfinite(d.detectable) else "none"
    return [d.threat, str(d.n), *means, span, _p(d.p), _p(d.p_holm), finds, d.better]


def _p(p: float) -> str:
    return "<.001" if p < 0.001 else f"{p:.3f}".lstrip("0")


def compare_named(a: str, b: str, protocol: str, leaderboards: Path) -> Comparison:
    """Two models of the board of `protocol` in `leaderboards`, or two boards where `a` and `b` are folders.

    Raises UnknownIdError for a model that the board does not know, InputError for one without figures, for a board
    without results, boards of unlike scales and where no image is in common.
    """
    folders = [Path(name) for name in (a, b)]
    boards = [folder.is_dir() for folder in folders]
    if all(boards):
        sides = [_records(folder) for folder in folders]
        of_a, of_b = (_scale(folder) for folder in folders)
        if of_a != of_b:
            raise InputError(f"{a} is of x{of_a} and {b} of x{of_b}: boards of unlike scales cannot be compared")
        return Comparison("Two boards", a, b, compare_boards(*sides), _same_keys(*sides))
    if any(boards):
        raise InputError(f"{a} and {b}: name two models, or the folders of two boards, not one of each")
    board = board_folder(protocol, leaderboards)
    records = _records(board)
    sides = [side(records, model, board) for model in (a, b)]
    try:
        found = compare(*sides)
    except InputError as error:
        raise InputError(f"{a} and {b} on board {board}: {error}; run both with the same benchsr run") from None
    return Comparison(f"Board {board.name}", a, b, {f"{a} - {b}": found})


def _scale(board: Path) -> Scale:
    """The super-resolution factor of a board; the usual one where no protocol.json tells."""
    try:
        return stored_protocol(board)[0].scale
    except InputError:
        return USUAL


def _same_keys(a: Sequence[Record], b: Sequence[Record]) -> str:
    """How many evaluations the two boards made from the same data, weights and settings."""
    keys = [{(r.model, r.threat, r.image): r.key for r in side if r.status is Status.OK} for side in (a, b)]
    common = keys[0].keys() & keys[1].keys()
    same = sum(keys[0][cell] == keys[1][cell] for cell in common)
    return f"{same} of {len(common)} common evaluations are of the same data, weights and settings (equal keys)."


def board_folder(protocol: str, leaderboards: Path) -> Path:
    """The folder of a protocol's board: by the id, or by the id in a protocol file."""
    return leaderboards / (load_protocol(protocol).board if protocol.endswith(".toml") else protocol)


def _records(board: Path) -> list[Record]:
    """The board's records. Raises InputError where there are none, naming the boards beside it."""
    if not (board / "results.csv").is_file():
        beside = ", ".join(sorted(path.parent.name for path in board.parent.glob("*/results.csv")))
        raise InputError(
            f"{board}: no results.csv; " + (f"boards here: {beside}" if beside else "make it: benchsr run")
        )
    records, problems = read_results(board / "results.csv")
    for problem in problems:
        log.warning("%s: %s", board / "results.csv", problem)
    return records


def side(records: Sequence[Record], model: str, board: Path) -> list[Record]:
    """One model's records. Raises UnknownIdError or, for a model without any figure, InputError with the reasons."""
    Registry("model of this board", dict.fromkeys(r.model for r in records))[model]
    own = [r for r in records if r.model == model]
    if not any(r.status is Status.OK for r in own):
        reasons = "; ".join(dict.fromkeys(f"{r.status}: {r.reason}" for r in own))
        raise InputError(f"{model} has no figures on board {board} ({reasons})")
    return own


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write compare.csv, compare.md and a plot for each model, compare*.png; returns the files."""
    files: dict[str, str | bytes] = {
        "compare.csv": comparison.table.to_csv(index=False, float_format="%.6g", lineterminator="\n"),
        "compare.md": comparison.to_markdown(),
    }
    for name, differences in comparison.found.items():
        several = len(comparison.found) > 1
        title = f"{comparison.title}: {name}" if several else comparison.title
        figure = plot_differences(title, comparison.a, comparison.b, differences)
        files[f"compare-{name}.png" if several else "compare.png"] = drawn(figure)
    for file, content in files.items():
        write_atomic(folder / file, content)
    return [folder / file for file in files]
