"""Cells that do nothing but compute, as long as a board's are to each other: what the scheduler is timed with."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F

from benchmarks.scale import measured
from benchsr.evaluation.executors import START_SECONDS, MakeWorker, Processes, Remote
from benchsr.results.records import Record, Status

PIECE = (1, 32, 24, 24)
"""Shape of what a piece of work convolves: features of a small LR image, which stay in a core's own caches."""


@dataclass(frozen=True)
class Toil:
    """A cell of so many pieces of work."""

    pieces: int
    records: tuple[Record, ...] = ()


class Toiler:
    """A worker for such cells."""

    def __init__(self, device: torch.device, *, share: float) -> None:
        self._x, self._weight = torch.ones(PIECE), torch.ones((32, 32, 3, 3)) / 288

    def run(self, cell: Toil) -> Iterator[Record]:
        """Do the work of a cell."""
        for _ in range(cell.pieces):
            for _ in range(4):
                F.conv2d(self._x, self._weight, padding=1)
        yield from cell.records


@dataclass(frozen=True)
class Started(Processes):
    """Processes that are waited for until they are ready; `ready`: when each was."""

    ready: list[float] = field(default_factory=list)

    def start(self, make: MakeWorker, number: int, share: float) -> Remote:
        """Start a process, and wait for it."""
        remote = super().start(make, number, share)
        wait([remote.pending], START_SECONDS)
        self.ready.append(time.perf_counter())
        return remote


def spread(board: Path, cells: int) -> list[float]:
    """How long so many cells are, the longest first, as those of `board` are spread; their sum is one."""
    seconds = sorted(measured(board)[0].stack().dropna(), reverse=True)
    chosen = [float(seconds[k * len(seconds) // cells]) for k in range(cells)]
    return [value / sum(chosen) for value in chosen]


def toil(shares: Sequence[float], pieces: int) -> list[Toil]:
    """A cell for each of `shares` of so many pieces of work, and one piece at the least."""
    record = Record("toil", "none", "none", "clean", "0", Status.OK)
    return [Toil(max(1, round(pieces * share)), (record,)) for share in shares]


def seconds(cells: Sequence[Toil], workers: int) -> dict[str, float]:
    """Seconds that so many workers take for `cells`, and, apart, until all of them were ready."""
    executor, begun = Started(torch.device("cpu"), workers), time.perf_counter()
    done = len(list(executor.run(cast(Any, Toiler), cast(Any, cells))))
    assert done == len(cells)
    return {"seconds": time.perf_counter() - max(executor.ready), "start": max(executor.ready) - begun}
