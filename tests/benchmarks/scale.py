"""What a grid of many models costs, and how evenly many workers share it: writes docs/scale.md.

`python tests/benchmarks/scale.py leaderboards/quick`: the seconds are those of that board's timings.csv, stretched to
DIV2K's images; the workers are simulated, but the code that hands cells out to them is benchsr's own.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jinja2
import pandas as pd
import torch

from benchsr.evaluation.executors import MakeWorker, Remote, Remotes, Reply, WorkerLostError
from benchsr.results.records import Record

MODELS, IMAGES, THREATS = 100, 100, 40
"""The grid that the page is about."""

DIV2K_LR = 510 * 340
"""LR pixels of a typical image of DIV2K's validation set at x4: 2040 x 1360 in HR."""

WORKERS = (1, 10, 100, 1000)
START, LOSS, BATCH = 60.0, 1e-3, 8
"""Seconds that a worker takes to start, the share of cells that its worker does not survive, images in a cell."""

TEMPLATE = Path(__file__).with_name("scale.md.j2")

ATTACKS = ("fgsm", "bim", "pgd", "cw")


@dataclass
class Clock:
    """Simulated seconds."""

    now: float = 0.0


@dataclass(eq=False)
class Answer:
    """One that will be there at `due`."""

    due: float
    records: list[Record] = field(default_factory=list)
    lost: bool = False


class SimulatedWorker(Remote):
    """A worker that takes `START` s to start, and its `seconds` for each cell; a share `LOSS` of cells kills it."""

    def __init__(self, clock: Clock, draws: random.Random) -> None:
        self._clock, self._draws = clock, draws
        self.pending: Answer = Answer(clock.now + START)

    def send(self, cell: Any) -> None:
        """Start on a cell."""
        lost = self._draws.random() < LOSS
        self.pending = Answer(self._clock.now + cell.seconds, cell.records, lost)

    def answer(self) -> Reply:
        """The records of the cell. Raises WorkerLostError."""
        if self.pending.lost:
            raise WorkerLostError("simulated")
        return Reply(self.pending.records, [])

    def stop(self) -> None:
        """Nothing is left behind."""


@dataclass(frozen=True)
class Simulated(Remotes):
    """benchsr's own way of handing out cells, on a clock of its own."""

    clock: Clock = field(default_factory=Clock)
    draws: random.Random = field(default_factory=lambda: random.Random(0))

    def start(self, make: MakeWorker, number: int, share: float) -> Remote:
        """Start a worker."""
        return SimulatedWorker(self.clock, self.draws)

    def wait(self, pending: list[Any], seconds: float) -> list[Any]:
        """Move the clock on to the next answer."""
        self.clock.now = min(answer.due for answer in pending)
        return [answer for answer in pending if answer.due <= self.clock.now]


@dataclass(frozen=True)
class Outcome:
    """What so many workers came to: simulated seconds, the ideal ones, and real seconds of handing out."""

    workers: int
    cells: int
    seconds: float
    ideal: float
    handing_out: float
    answers: Sequence[Any]

    @property
    def efficiency(self) -> float:
        """The ideal time over the time taken."""
        return self.ideal / self.seconds


def simulate(seconds: Sequence[float], workers: int) -> Outcome:
    """Hand out a cell for each of `seconds`, in this order, to so many simulated workers."""
    executor = Simulated(torch.device("cpu"), workers)
    cells = [SimpleNamespace(seconds=value, records=[number]) for number, value in enumerate(seconds)]
    begun = time.perf_counter()
    answers = list(cast(Generator[Any, None, None], executor.run(cast(Any, None), cast(Any, cells))))
    return Outcome(
        workers,
        len(cells),
        executor.clock.now,
        sum(seconds) / workers,
        time.perf_counter() - begun,
        answers,
    )


def measured(board: Path) -> tuple[pd.DataFrame, int]:
    """Seconds of one evaluation by model (rows) and threat (columns), and the LR pixels of an image of the board."""
    crop = json.loads((board / "protocol.json").read_text())["protocol"]["crop"]
    lines = pd.read_csv(board / "results.csv").merge(pd.read_csv(board / "timings.csv"), on="key")
    lines["seconds"] = lines.seconds_attack.fillna(0) + lines.seconds_sr.fillna(0)
    # A median: a machine that was busy with other work makes single evaluations long.
    return lines.pivot_table(values="seconds", index="model", columns="threat", aggfunc="median"), crop**2


def grid(table: pd.DataFrame, pixels: int) -> list[float]:
    """Seconds of each cell of `BATCH` images of the grid, slowest networks first, as a run orders them.

    Its models are the board's paper-scale networks with all attacks, in turn; its threats, for each of them, the
    measured ones in turn.
    """
    models = table[[*ATTACKS]].dropna().index
    networks = [m for m in models if not m.startswith("compact-") and m != "bicubic"]
    chosen = [table.loc[networks[k % len(networks)]].dropna() for k in range(MODELS)]
    cells = []
    for row in sorted(chosen, key=lambda row: -row.sum()):
        of_model = sorted((row.iloc[k % len(row)] for k in range(THREATS)), reverse=True)
        parts = [BATCH] * (IMAGES // BATCH) + [IMAGES % BATCH] * (IMAGES % BATCH > 0)
        cells += [seconds * DIV2K_LR / pixels * part for seconds in of_model for part in parts]
    return cells


def write(board: Path) -> str:
    """The page. Raises OSError where the board or its timings are missing."""
    table, pixels = measured(board)
    cells = grid(table, pixels)
    attacked = [t for t in table.columns if t in ATTACKS]
    share = len(attacked) / len(table.columns)
    page: str = (
        jinja2.Template(TEMPLATE.read_text())
        .render(
            board=board,
            models=MODELS,
            images=IMAGES,
            threats=THREATS,
            side=round(pixels**0.5),
            stretch=round(DIV2K_LR / pixels),
            evaluations=f"{MODELS * IMAGES * THREATS:,}",
            hours=f"{sum(cells) / 3600:,.0f}",
            gigabytes=f"{MODELS * IMAGES * THREATS * share * DIV2K_LR * 3 * 4 / 1e9:,.0f}",
            batch=BATCH,
            start=f"{START:g}",
            loss=f"{LOSS:.1%}",
            outcomes=[simulate(cells, workers) for workers in WORKERS],
            wrong=lambda o: o.cells - len(set(o.answers)) + len(o.answers) - len(set(o.answers)),
        )
        .rstrip("\n")
        + "\n"
    )
    return page


if __name__ == "__main__":
    (Path(__file__).parents[2] / "docs" / "scale.md").write_text(write(Path(sys.argv[1])))
