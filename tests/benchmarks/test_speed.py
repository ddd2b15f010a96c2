"""Time, memory and strength side by side with the plain implementation, how cost grows, and what commands, runner and
scheduler take. `tox -e bench` runs them.

Within a round all contestants run one after another, so that what disturbs the machine disturbs all of them; what
pytest-benchmark itself times is the last. Everything that `report.py` needs is in `extra_info`.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from faults import make_bench
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from toys import toy_card

from benchmarks import toil
from benchmarks.workloads import (
    ATTACKS,
    CONTESTANTS,
    DEVICE,
    Job,
    flop,
    kept_bytes,
    network,
    peak_bytes,
    perceptual,
    prepare,
    strength,
    timed,
)
from benchsr.commands.run import evaluate
from benchsr.evaluation.executors import InProcess, MakeWorker
from benchsr.evaluation.options import RunOptions
from benchsr.evaluation.plan import Cell
from benchsr.results.records import Record

SPEED = (
    Job("rrdb-23", "pgd", "", 48, 48),
    Job("rrdb-23", "mrs", "", 24, 24),
    Job("rrdb-23", "metrics", "", 48, 48),
    Job("compact", "pgd", "", 64, 64),
    Job("compact", "cw", "", 64, 64),
)
ROUNDS = 2
DIV2K = (339, 510)
"""LR height and width of a typical DIV2K validation image."""


def contestants(task: str) -> list[str]:
    """bf16 is an option of attacks only: what is scored is computed in float32. Draws are also taken one by one."""
    if task == "mrs":
        return ["plain", "one by one", "fp32"]
    return [c for c in CONTESTANTS if c != "bf16" or task in ATTACKS]


def side_by_side(benchmark: BenchmarkFixture, job: Job, rounds: int = ROUNDS) -> None:
    """Time all contestants at `job`, round by round, and judge how far the attacks got."""
    jobs = {c: replace(job, contestant=c) for c in contestants(job.attack)}
    works: dict[str, Callable[[], Tensor]] = {}
    for name, own in jobs.items():
        prepare(replace(own, attack="fgsm", steps=None) if job.attack in ATTACKS else replace(own, draws=2))()
        works[name] = prepare(own)
    *others, last = works
    times: dict[str, list[dict[str, float]]] = {name: [] for name in works}

    results: dict[str, Tensor] = {}

    def run(names: Iterable[str]) -> None:
        for name in names:
            results[name], taken = timed(works[name])
            times[name].append(taken)

    benchmark.pedantic(run, args=([last],), setup=lambda: run(others), rounds=rounds)
    benchmark.extra_info |= {
        "kind": "speed",
        "job": asdict(job),
        "weights": network(job.network)[1],
        "trunk": perceptual(job.trunk)[1],
        "load": os.getloadavg()[0],
        "times": times,
        "flop": flop(works["fp32"]),
        "flop_per_second": product(torch.float32, DEVICE, 2048),
    }
    if job.attack in ATTACKS:
        benchmark.extra_info["strength"] = {name: strength(job, r) for name, r in results.items()}


@pytest.mark.parametrize("job", SPEED, ids=lambda job: f"{job.network} {job.attack}")
def test_speed(benchmark: BenchmarkFixture, job: Job) -> None:
    side_by_side(benchmark, job)


MALLOC: dict[str, dict[str, str]] = {"live": {"MALLOC_MMAP_THRESHOLD_": "262144"}}
if DEVICE == "cpu":
    MALLOC["resident"] = {}
"""glibc returns large blocks to the system at once ("live"), or keeps what it thinks it can use again ("resident")."""


@pytest.mark.parametrize("malloc", MALLOC)
@pytest.mark.parametrize("job", [job for job in SPEED if job.attack == "pgd"], ids=lambda job: job.network)
def test_memory(benchmark: BenchmarkFixture, job: Job, malloc: str) -> None:
    """Peak growth of a fresh process. Two steps: from the second on the peak of an attack stays where it is."""
    jobs = {c: replace(job, contestant=c, steps=2) for c in contestants(job.attack)}

    def measure() -> dict[str, int]:
        return {c: in_fresh_process(job, MALLOC[malloc]) for c, job in jobs.items()}

    benchmark.extra_info |= {"kind": "memory", "malloc": malloc, "job": asdict(jobs["plain"])}
    benchmark.extra_info["kept_bytes"] = {c: kept_bytes(job) for c, job in jobs.items() if c != "plain"}
    benchmark.extra_info["peak_bytes"] = benchmark.pedantic(measure, rounds=1)


def in_fresh_process(job: Job, environment: dict[str, str]) -> int:
    """Peak bytes of `job`."""
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.workloads", json.dumps(asdict(job))],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        check=True,
    )
    return int(done.stdout.split()[-1])


GROWTH = {
    # A CPU takes images one by one.
    **{f"images {n}": Job("compact", "pgd", "", 32, 32, images=n, steps=2) for n in (1, 2, 4, 8) if DEVICE != "cpu"},
    **{f"side {s}": Job("compact", "pgd", "", s, s, steps=2) for s in (24, 48, 96)},
    **{f"draws {n}": Job("compact", "mrs", "", 24, 24, draws=n) for n in (21, 101)},
}


@pytest.mark.parametrize("case", GROWTH)
def test_growth(benchmark: BenchmarkFixture, case: str) -> None:
    side_by_side(benchmark, GROWTH[case], rounds=1)
    benchmark.extra_info["kind"] = "growth"


COMMANDS = {
    "report": "report",
    "site": "site --leaderboards leaderboards --out site",
    "run, all known": "run --models all --threats all --device cpu",  # whose figures the board holds
    "list": "list models",
}
"""Commands on a copy of leaderboards/quick in which nothing changes."""

BOARD = Path(__file__).parents[2] / "leaderboards" / "quick"


def test_commands(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """Whole processes. The first of each may draw or fetch what it lacks, and is not counted."""
    shutil.copytree(BOARD, tmp_path / "leaderboards" / "quick")
    main = [sys.executable, "-c", "from benchsr.cli import main; main()"]

    def seconds(command: str) -> float:
        begun = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": str(BOARD.parents[1])}
        subprocess.run([*main, *command.split()], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - begun

    def measure() -> dict[str, list[float]]:
        return {name: [seconds(command) for _ in range(4)][1:] for name, command in COMMANDS.items()}

    before = (tmp_path / "leaderboards" / "quick" / "results.csv").read_bytes()
    benchmark.extra_info |= {"kind": "commands", "seconds": benchmark.pedantic(measure, rounds=1)}
    benchmark.extra_info["load"] = os.getloadavg()[0]
    assert (tmp_path / "leaderboards" / "quick" / "results.csv").read_bytes() == before


CELLS, PIECES = 1_000, 60_000
"""Cells, and pieces of work in all of them: about 40 s of one core."""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two workers need two cores")
def test_workers(benchmark: BenchmarkFixture) -> None:
    """Cells of mixed cost on one worker process and on two."""
    cells = toil.toil(toil.spread(BOARD, CELLS), PIECES)

    def measure() -> dict[str, dict[str, float]]:
        return {str(workers): toil.seconds(cells, workers) for workers in (1, 2)}

    benchmark.extra_info |= {"kind": "workers", "cells": CELLS, "workers": benchmark.pedantic(measure, rounds=1)}
    benchmark.extra_info["load"] = os.getloadavg()[0]


def test_again(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """A second identical run finds everything known."""
    benchmark.extra_info |= {"kind": "again", "load": os.getloadavg()[0]}

    def seconds() -> float:
        started = time.perf_counter()
        options = RunOptions(limit=2, out=tmp_path, cache=tmp_path / "cache", device=DEVICE)
        evaluate("impressionism-ntire", options=options)
        return time.perf_counter() - started

    warm = RunOptions(limit=1, out=tmp_path / "warm", cache=tmp_path / "cache")
    evaluate("bicubic", "clean", options=warm)  # imports, fonts
    benchmark.extra_info["first_seconds"] = seconds()
    benchmark.extra_info["second_seconds"] = benchmark.pedantic(seconds, rounds=1)


class Instant(InProcess):
    """Computes nothing: what a run takes is the runner's own work."""

    def run(self, make: MakeWorker, cells: Sequence[Cell]) -> Generator[Record, None, None]:
        for cell in cells:
            yield from (
                replace(r, scores={"psnr": 30.0, "ssim": 0.9, "lpips": 0.1}, attack_linf=0.0, attack_l2=0.0)
                for r in cell.records
            )


def test_runner(benchmark: BenchmarkFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner's own work for each of 10,000 evaluations."""
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    bench = make_bench(tmp_path, n_images=500)
    models = ",".join(toy_card(tmp_path, f"toy-{i}", seed=i) for i in range(5))

    def seconds() -> float:
        started = time.process_time()
        outcome = bench.run("out", Instant(torch.device("cpu")), models, threats="clean,noise,fgsm,pgd")
        return (time.process_time() - started) / outcome.computed

    benchmark.extra_info |= {"kind": "runner", "load": os.getloadavg()[0]}
    benchmark.extra_info["cpu_seconds_an_evaluation"] = benchmark.pedantic(seconds, rounds=1)


def product(dtype: torch.dtype, device: str, side: int) -> float:
    """FLOP a second of a matrix product of `side` x `side`."""
    a = torch.ones(side, side, dtype=dtype, device=device)
    return 2 * side**3 / median_seconds(lambda: a @ a)


def ceilings(device: str, copy_bytes: int = 1 << 30) -> dict[str, float]:
    """What the device can do: bytes moved a second (read and written) by a copy, FLOP a second of a bf16 product."""
    source = torch.zeros(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    moved = 2 * copy_bytes / median_seconds(lambda: target.copy_(source))
    return {"bytes_per_second": moved, "flop_per_second": product(torch.bfloat16, device, 8192)}


def median_seconds(work: Callable[[], Tensor], rounds: int = 5) -> float:
    """Median of `rounds` after one to warm up."""
    return statistics.median([timed(work)[1]["seconds"] for _ in range(rounds + 1)][1:])


def whole_image(job: Job) -> dict[str, float]:
    """One PGD step, one forward pass, peak memory and arithmetic of one image; `job.steps` is how many are averaged."""
    assert job.steps
    short, long = prepare(replace(job, steps=1)), prepare(replace(job, steps=1 + job.steps))
    model = network(job.network)[0].to(job.device)
    lr = torch.rand(1, 3, job.height, job.width, device=job.device)

    def forward() -> Tensor:
        with torch.no_grad():
            sr: Tensor = model(lr)
        return sr

    return {
        "step_seconds": (median_seconds(long, 3) - median_seconds(short, 3)) / job.steps,
        "forward_seconds": median_seconds(forward, 3),
        "step_flop": (flop(long) - flop(short)) / job.steps,
        "peak_bytes": peak_bytes(job),
    }


@pytest.mark.skipif(DEVICE == "cpu", reason="whole DIV2K images through RRDB-23 need a GPU to be timed in minutes")
@pytest.mark.parametrize("contestant", ["plain", "fp32", "bf16"])
def test_whole_image(benchmark: BenchmarkFixture, contestant: str) -> None:
    if contestant not in CONTESTANTS:  # not left out above: a short trial decides, and xdist's workers collect alike
        pytest.skip("this device has no bf16")
    job = Job("rrdb-23", "pgd", contestant, *DIV2K, steps=10, trunk="vgg19")
    benchmark.extra_info |= {"kind": "whole image", "job": asdict(job), "weights": network(job.network)[1]}
    try:
        benchmark.extra_info |= benchmark.pedantic(lambda: whole_image(job), rounds=1)
    except torch.OutOfMemoryError:
        pytest.skip(f"a whole image does not fit into this GPU's memory ({contestant})")
    benchmark.extra_info["ceilings"] = ceilings(DEVICE)
