"""Networks and workers that misbehave; and a toy benchmark as a program of its own, so that it can be killed.

    python tests/faults.py FOLDER OUT WORKERS SECONDS

runs the toy benchmark in FOLDER (see `make_bench`), slowed down by SECONDS an evaluation, into FOLDER/OUT.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
from torch import Tensor, nn
from toys import FakeLpips, photos, protocol, toy_card

from benchsr.cli import main
from benchsr.commands.run import Outcome, evaluate
from benchsr.evaluation import cache, executors, options, worker
from benchsr.evaluation.executors import Executor, InProcess, MakeWorker, load_executor
from benchsr.evaluation.options import RunOptions
from benchsr.evaluation.plan import Cell
from benchsr.evaluation.worker import Worker
from benchsr.metrics import quality as metrics
from benchsr.models import isolated
from benchsr.models import network as models
from benchsr.results.records import Record

PATIENCE, SCARCE = 20.0, 1_000_000_000
"""Seconds for an answer of a stranger's network, and bytes that it may take, where ToyMake is harsh."""

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: benchsr[ray]")
FIGURES = ["psnr", "ssim", "lpips", "attack_linf", "attack_l2", "loss_clean", "loss_attacked", "status", "key"]
"""Columns of results.csv that no executor, interruption or repetition may change. The others are times."""


class Misbehaving(nn.Module):
    """A network that does something instead of super-resolution."""

    def __init__(self, act: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Any:
        return self.act(x)


def _raise(_: Tensor) -> None:
    raise RuntimeError("boom")


def _cuda_memory(_: Tensor) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


FAULTS: Mapping[str, tuple[Callable[[Tensor], Any], str]] = {
    "raises": (_raise, "RuntimeError: boom"),
    "nan": (lambda x: nn.functional.interpolate(x, scale_factor=4) * torch.nan, "NaN"),
    "wrong-shape": (lambda x: nn.functional.interpolate(x, scale_factor=2), "24, 24"),
    "no-tensor": (lambda _: "sorry", "Error"),
    "cuda-memory": (_cuda_memory, "out of memory"),
    "cpu-memory": (lambda _: torch.empty(1 << 50), "memory"),
    "hangs": (lambda _: time.sleep(3600), "no answer within 4.0 s"),
    "dies": (lambda _: os.kill(os.getpid(), signal.SIGKILL), "killed by SIGKILL"),
}
"""What a network of the card toy-<name> does, and what its rows say then."""


@dataclass(frozen=True)
class ToyMake:
    """Makes workers with a stand-in for LPIPS and faulty networks, that take `seconds` longer for each evaluation.

    `harsh`: with little patience and memory for networks of a stranger's code. `cache`: other values
    of the cache's constants.
    """

    make: MakeWorker
    seconds: float = 0.0
    log: Path | None = None
    meet: Path | None = None
    harsh: bool = False
    cache: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, device: torch.device, *, share: float) -> Worker:
        metrics.lpips_net = FakeLpips  # type: ignore[assignment, attr-defined]
        worker.load_network = _load_network  # type: ignore[attr-defined]
        if self.harsh:
            isolated.ANSWER_SECONDS = PATIENCE
            worker.free_bytes = lambda device: int(SCARCE / share)  # type: ignore[attr-defined]
        made = self.make(device, share=share)
        for name, value in self.cache.items():
            setattr(cache, name, value)
        if self.meet:
            return _Meeting(made, self.meet)  # type: ignore[return-value]
        return _Slow(made, self.seconds, self.log) if self.seconds else made  # type: ignore[return-value]


@dataclass(frozen=True)
class _Slow:
    """A worker that takes its time, and writes down the key of every evaluation that it computed."""

    worker: Worker
    seconds: float
    log: Path | None

    def run(self, cell: Cell) -> Iterator[Record]:
        for record in self.worker.run(cell):
            time.sleep(self.seconds)
            if self.log:
                with self.log.open("a") as file:
                    file.write(f"{record.key}\n")
            yield record


@dataclass(frozen=True)
class _Meeting:
    """A worker that computes its first cell only when another process has one to compute too."""

    worker: Worker
    folder: Path

    def run(self, cell: Cell) -> Iterator[Record]:
        (self.folder / str(os.getpid())).touch()
        while len(list(self.folder.iterdir())) < 2:
            time.sleep(0.01)
        yield from self.worker.run(cell)


_real_load_network = models.load_network


def _load_network(card: Any, device: Any = "cpu", memory: float | None = None) -> nn.Module:
    fault = FAULTS.get(card.id.removeprefix("toy-"))
    return Misbehaving(fault[0]) if fault else _real_load_network(card, device, memory)


@dataclass(frozen=True)
class ToyExecutor:
    """An executor whose workers are made by ToyMake, which takes the rest. `watch` is called with every record."""

    inner: Executor
    seconds: float = 0.0
    log: Path | None = None
    watch: Callable[[Record], None] = field(default=lambda _: None)
    meet: Path | None = None
    harsh: bool = False
    cache: Mapping[str, float] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.inner.device

    def run(self, make: MakeWorker, cells: Sequence[Cell]) -> Generator[Record, None, None]:
        toys = ToyMake(make, self.seconds, self.log, self.meet, self.harsh, self.cache)
        with closing(self.inner.run(toys, cells)) as records:
            for record in records:
                self.watch(record)
                yield record


@dataclass(frozen=True)
class ToyBench:
    """A toy benchmark in a folder: two networks and bicubic, four threats, some images."""

    folder: Path

    @property
    def evaluations(self) -> int:
        """How many there are, apart from those that have no data."""
        return 3 * 4 * len(list((self.folder / "photos").iterdir()))

    def run(self, out: str, executor: Executor, models: str = "", **options: Any) -> Outcome:
        cards = models or f"bicubic,{self.folder / 'toy-a.toml'},{self.folder / 'toy-b.toml'}"
        options.setdefault("cache", self.folder / f"cache-{Path(out).name}")
        threats = options.pop("threats", "all")
        given = RunOptions(out=self.folder / out, executor=executor, **options)
        return evaluate(cards, threats, self.folder / "toy.toml", given)

    def table(self, out: str) -> pd.DataFrame:
        """Figures of results.csv as text, to the last digit, by (model, threat, image)."""
        frame = pd.read_csv(self.folder / out / "toy" / "results.csv", dtype=str, keep_default_na=False)
        return frame.set_index(["model", "threat", "image"]).sort_index()[FIGURES]


def make_bench(folder: Path, n_images: int) -> ToyBench:
    """Write cards, weights, images and the protocol of a toy benchmark."""
    toy_card(folder, "toy-a", seed=1)
    toy_card(folder, "toy-b", seed=2)
    protocol(folder, photos(folder / "photos", n_images))
    return ToyBench(folder)


def started(is_one: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """Processes that descend from this one, live and are what was asked for; those that die meanwhile are not."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and is_one(process):
                found.append(process)
    return found


def ray_workers() -> list[psutil.Process]:
    return started(lambda process: process.name().startswith("ray::_RayWorker"))


Note = Callable[[str, object], None]
"""pytest's `record_property`."""


def compare(bench: ToyBench, out: str, note: Note = lambda *_: None) -> None:
    """Assert that no line is lost, doubled or different from those of an undisturbed run; `note` gets the counts."""
    if not (bench.folder / "whole").exists():
        bench.run("whole", ToyExecutor(InProcess(torch.device("cpu"))), cache=bench.folder / "cache-whole")
    whole, found = bench.table("whole"), bench.table(out)
    assert len(whole.query("status == 'ok'")) == bench.evaluations
    lost, doubled = len(whole.index.difference(found.index)), int(found.index.duplicated().sum())
    note("lost", lost)
    note("doubled", doubled)
    assert (lost, doubled) == (0, 0)
    pd.testing.assert_frame_equal(whole, found)


def command_line(seconds: float) -> None:
    """`benchsr`, whose workers take `seconds` longer for each evaluation, and any time to start."""
    executors.START_SECONDS = 1800
    options.load_executor = lambda *given: ToyExecutor(load_executor(*given), seconds)  # type: ignore[attr-defined]
    main()


if __name__ == "__main__":
    where, into, count, pause = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    toy = ToyExecutor(load_executor("local", "cpu", count), pause, where / f"log-{into}")
    ToyBench(where).run(into, toy, cache=where / "cache", **{"models": sys.argv[5]} if len(sys.argv) > 5 else {})
