"""Whether figures moved that should not have: fresh results against committed ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isinf
from pathlib import Path
from statistics import fmean

from benchsr.base.errors import InputError
from benchsr.base.text import escape, markdown_table
from benchsr.results.records import Record, Status, metrics_of, read_results

TOLERANCE = {"psnr": 0.1, "ssim": 0.005, "lpips": 0.005}
"""How far the mean of a cell may move between machines (ours): other processors round sums differently, which flips
signs of gradients and so changes attacks a little."""

OTHER_TOLERANCE = 0.005
"""The same for any other metric, as a share of its mean."""


@dataclass(frozen=True)
class Moved:
    """A cell whose mean over images moved beyond its tolerance, or was lost (`now` None, and why)."""

    model: str
    threat: str
    metric: str
    before: float
    now: float | None
    reason: str = ""

    def __str__(self) -> str:
        where = f"{self.model} / {self.threat} / {self.metric}"
        if self.now is None:
            return f"{where}: was {self.before:.4f}, now missing: {self.reason}"
        return f"{where}: {self.before:.4f} -> {self.now:.4f} by more than its tolerance"


def drift(fresh: Sequence[Record], committed: Sequence[Record]) -> tuple[list[Moved], int]:
    """Cells that moved, and how many could be compared.

    Only evaluations of equal keys are compared: a key covers protocol, data, attack and weights, so that a figure under
    the same key has no reason to move. A committed figure whose evaluation now fails, is unavailable or is not there at
    all has moved too.
    """
    now = {(r.model, r.threat, r.image): r for r in fresh}
    cells: dict[tuple[str, str], list[tuple[Record, Record]]] = {}
    lost: dict[tuple[str, str], tuple[Record, str]] = {}
    whole = {(r.model, r.threat): r for r in fresh if r.status is not Status.OK}
    for old in (r for r in committed if r.status is Status.OK):
        new = now.get((old.model, old.threat, old.image)) or whole.get((old.model, old.threat))
        if new is None:
            lost[old.model, old.threat] = (old, f"{old.image} was not evaluated")
        elif new.status is not Status.OK:
            lost[old.model, old.threat] = (old, f"{new.status}: {new.reason}")
        elif new.key == old.key:
            cells.setdefault((old.model, old.threat), []).append((old, new))
    moved = [
        Moved(*cell, metric, value, None, why)
        for cell, (old, why) in lost.items()
        for metric, value in [*old.scores.items()][:1]
    ]
    moved += [found for cell, pairs in cells.items() for found in _moved(*cell, pairs)]
    return moved, len(cells.keys() | lost.keys())


def _moved(model: str, threat: str, pairs: Sequence[tuple[Record, Record]]) -> Iterator[Moved]:
    for metric in metrics_of(old for old, _ in pairs):
        if any(metric not in old.scores for old, _ in pairs):
            continue
        if gone := [new for _, new in pairs if metric not in new.scores]:
            before = fmean(old.scores[metric] for old, _ in pairs)
            yield Moved(model, threat, metric, before, None, gone[0].reason or f"no figure of {gone[0].image}")
            continue
        values = [(old.scores[metric], new.scores[metric]) for old, new in pairs]
        before, after = (fmean(side) for side in zip(*values, strict=True))
        tolerance = TOLERANCE.get(metric, OTHER_TOLERANCE * abs(before))
        same = isinf(before) and isinf(after)
        if not same and not abs(after - before) <= tolerance:
            yield Moved(model, threat, metric, before, after)


def issue(moved: Sequence[Moved], compared: int, board: str) -> str:
    """The text of an issue, in Markdown: which figures of the `compared` cells of `board` moved, from what to what."""
    rows = [
        [
            *(f"`{escape(name)}`" for name in (cell.model, cell.threat, cell.metric)),
            f"{cell.before:.4f}",
            f"missing: {escape(cell.reason)}" if cell.now is None else f"{cell.now:.4f}",
        ]
        for cell in moved
    ]
    return (
        f"# Figures of `{board}` moved\n\n"
        f"{len(moved)} figures of {compared} cells moved by more than their tolerance, or were lost, although the keys "
        "say that data, weights and settings are the same. Either a change of code changed a figure without raising "
        "`CODE_VERSION`, or a library computes differently now, or the committed figure was wrong. The committed "
        "figures stay as they are until that is known.\n\n"
        f"{markdown_table(['Model', 'Threat', 'Metric', 'Committed', 'Now'], rows, numeric_from=3)}\n"
    )


def news(fresh: Sequence[Record], committed: Sequence[Record]) -> int:
    """How many figures of `fresh` are not in `committed`, or under another key there: what a commit would add.

    Those that moved a little on another machine are none, nor are other words for why something is unavailable:
    committing them every night would let the baseline creep.
    """
    known = {(r.model, r.threat, r.image, r.key) for r in committed if r.status is Status.OK}
    return sum((r.model, r.threat, r.image, r.key) not in known for r in fresh if r.status is Status.OK)


def check(fresh: Path, committed: Path) -> tuple[list[Moved], int, int]:
    """`drift` and `news` between two results.csv.

    Raises InputError where one is missing, the fresh one has damaged lines, or no cell can be compared.
    """
    records, problems = read_results(fresh)
    if problems:
        raise InputError(f"{fresh}: {problems[0]} (and {len(problems) - 1} more); run the benchmark again")
    before = read_results(committed)[0]
    moved, compared = drift(records, before)
    if not compared:
        raise InputError(
            f"{fresh} and {committed} have no evaluation of equal key: other settings, data, weights or code "
            "made them, and nothing can be checked"
        )
    return moved, compared, news(records, before)
