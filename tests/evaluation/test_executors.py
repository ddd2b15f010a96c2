"""Executors: the same figures everywhere, and every misbehaviour of a network is a row that says what happened."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from faults import FAULTS, Note, ToyBench, ToyExecutor, compare, needs_ray
from toys import toy_card

from benchsr.base.errors import InputError, Stopped, UnknownIdError
from benchsr.base.registry import Registry
from benchsr.data.datasets import Dataset
from benchsr.evaluation import executors
from benchsr.evaluation.cache import ONCE
from benchsr.evaluation.executors import (
    Executor,
    InProcess,
    Processes,
    WorkerLostError,
    _Head,
    load_executor,
    usable_cores,
)
from benchsr.evaluation.plan import Cell
from benchsr.evaluation.worker import Worker
from benchsr.results.records import Record, Status

CPU = torch.device("cpu")


def test_processes_give_the_figures_of_this_process(bench: ToyBench) -> None:
    here = bench.run("here", ToyExecutor(InProcess(CPU)))
    there = bench.run("there", ToyExecutor(Processes(CPU, 2)))
    assert (here.computed, there.computed) == (36, 36)
    assert {r.status for r in here.records} == {Status.OK, Status.UNAVAILABLE}
    pd.testing.assert_frame_equal(bench.table("here"), bench.table("there"))
    assert multiprocessing.active_children() == []


@pytest.mark.reliability
def test_every_misbehaviour_is_a_row(bench: ToyBench, record_property: Note) -> None:
    """Networks that raise, answer nonsense, fill the memory, hang or die: rows that fail with the reason."""
    names = [f"toy-{fault}" for fault in FAULTS]
    cards = [toy_card(bench.folder, name, seed=10 + i) for i, name in enumerate(names)]
    models = ",".join([*cards, str(bench.folder / "toy-a.toml")])
    outcome = bench.run("out", ToyExecutor(Processes(CPU, 2, timeout=4.0)), models, threats="clean", limit=1)
    table = bench.table("out")
    assert len(table) == len(FAULTS) + 1
    assert table.status.to_dict() == {
        **{(name, "clean", "photo0"): "failed" for name in names},
        ("toy-a", "clean", "photo0"): "ok",
    }
    reasons = {record.model.removeprefix("toy-"): record.reason for record in outcome.failures}
    for fault, (_, words) in FAULTS.items():
        assert words in reasons[fault]
    record_property("misbehaviours", ", ".join(FAULTS))
    assert multiprocessing.active_children() == []


def test_workers_end_with_the_run(bench: ToyBench) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run("out", ToyExecutor(Processes(CPU, 2), watch=interrupt), threats="clean")
    assert multiprocessing.active_children() == []


def no_worker(device: torch.device, *, share: float) -> Worker:
    raise RuntimeError(f"no worker on {device}")


def test_workers_that_cannot_be_started_end_the_run(bench: ToyBench) -> None:
    class Broken(ToyExecutor):
        def run(self, make, cells):  # type: ignore[no-untyped-def]
            return self.inner.run(no_worker, cells)

    with pytest.raises(WorkerLostError, match="exit code 1"):
        bench.run("out", Broken(Processes(CPU, 1)), threats="clean")


class Telling:
    """Computes nothing, and tells with how many threads and what share of the memory it would."""

    def __init__(self, device: torch.device, *, share: float) -> None:
        self.share = share

    def run(self, cell: Cell) -> Iterator[Record]:
        for record in cell.records:
            yield replace(record, reason=f"{torch.get_num_threads()} {self.share:g}")


class Warns:
    """Computes nothing, and warns of what every worker meets, and of its cell."""

    def __init__(self, device: torch.device, *, share: float) -> None:
        pass

    def run(self, cell: Cell) -> Iterator[Record]:
        log = logging.getLogger("benchsr.store")
        log.warning("no store, says %s", os.getpid(), extra={ONCE: "store"})
        for record in cell.records:
            log.warning("%s is damaged", record.image)
            yield record


def test_what_workers_log_is_logged_by_the_run_and_once(caplog: pytest.LogCaptureFixture) -> None:
    assert len(list(Processes(CPU, 2).run(Warns, some_cells(4)))) == 4  # type: ignore[arg-type]
    said = [record.getMessage().partition(",")[0] for record in caplog.records]
    assert sorted(said) == [*(f"i{i} is damaged" for i in range(4)), "no store"]


def test_a_cluster_whose_head_is_gone_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "HEAD_SECONDS", 0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = _Head(f"127.0.0.1:{server.getsockname()[1]}")
        head.require()
    head.require()  # asked for a second ago or less
    head._asked = 0
    head.require()  # it may come back
    head._asked = 0
    with pytest.raises(WorkerLostError, match=r"cluster at 127\.0\.0\.1:\d+ is gone.*what was computed is kept"):
        head.require()


def asleep(device: torch.device, *, share: float) -> Worker:
    time.sleep(600)
    raise AssertionError("nobody waits so long")


def some_cells(n: int) -> list[Cell]:
    record = Record("p", "d", "m", "clean", "i", Status.OK)
    return [Cell("clean", {}, Dataset("d", Registry("image")), (replace(record, image=f"i{i}"),), {}) for i in range(n)]


@pytest.mark.parametrize("executor", [InProcess(CPU), Processes(CPU, 2), Processes(CPU, 8)])
def test_every_worker_has_one_thread_and_its_share_of_the_memory(executor: Executor) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        said = [record.reason for record in executor.run(Telling, some_cells(3))]  # type: ignore[arg-type]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    workers = min(executor.workers, 3) if isinstance(executor, Processes) else 1
    assert said == [f"1 {1 / workers:g}"] * 3


def test_no_process_is_started_for_nothing_or_for_one_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processes, "start", lambda *_: pytest.fail("a process was started"))
    assert list(Processes(CPU, 4).run(Telling, [])) == []  # type: ignore[arg-type]
    assert len(list(Processes(CPU, 4).run(Telling, some_cells(1)))) == 1  # type: ignore[arg-type]


def test_a_worker_that_does_not_start_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "START_SECONDS", 0.3)
    with pytest.raises(WorkerLostError, match=r"did not start within 0\.3 s"):
        list(Processes(CPU, 2).run(asleep, some_cells(2)))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_asks_to_stop_waits_until_a_process_is_started(number: signal.Signals) -> None:
    def stop(number: int, _: object) -> None:
        raise Stopped(number)

    started, over = [], threading.Event()

    def start() -> None:
        with executors.uninterrupted():
            os.kill(os.getpid(), number)
            for _ in range(10):
                time.sleep(0.01)
            started.append(True)

    other = threading.Thread(target=over.wait)  # takes signals that the main thread blocks
    other.start()
    before = signal.signal(number, stop)
    try:
        with pytest.raises(Stopped):
            start()
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
        over.set()
        other.join()
    assert started


def test_sigterm_while_ray_connects_is_answered_as_ever() -> None:
    def stop(number: int, _: object) -> None:
        raise Stopped(number)

    def connect() -> None:
        with executors._own_sigterm():
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))  # as Ray does
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(Stopped):
            connect()
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals cannot be blocked here")
def test_the_first_process_that_a_program_spawns_is_not_interrupted_while_it_imports() -> None:
    blocked = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    script = f"""
import multiprocessing
from benchsr.evaluation.executors import uninterrupted
child = multiprocessing.get_context("spawn").Process(target=exec, args=({blocked!r},))
with uninterrupted():
    child.start()
child.join()
{blocked}
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_auto_is_as_many_workers_as_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, expected in ((3, Processes(CPU, 3)), (1, InProcess(CPU))):
        monkeypatch.setattr(executors, "usable_cores", lambda cores=cores: cores)
        assert load_executor("local", "cpu", "auto") == expected
    assert load_executor("local", "cpu", "2") == Processes(CPU, 2)
    assert load_executor("local", "cpu") == InProcess(CPU)  # Python's default: others import the main module


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 64), ("150000 100000", 2), ("1000 100000", 1)])
def test_cores_are_no_more_than_the_groups_give_time_of(
    tmp_path: Path, quota: str, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    root, own = tmp_path / "cgroup", tmp_path / "own"
    (root / "ours").mkdir(parents=True)
    (root / "ours" / "cpu.max").write_text(f"{quota}\n")
    own.write_text("0::/ours\n")
    assert usable_cores(root, own) == cores
    (root / "cpu").mkdir()
    for name, value in zip(("quota", "period"), quota.replace("max", "-1").split(), strict=True):
        (root / "cpu" / f"cpu.cfs_{name}_us").write_text(f"{value}\n")
    own.write_text("3:cpu,cpuacct:/docker/abc\n")
    assert usable_cores(root, own) == cores


@needs_ray
@pytest.mark.slow
@pytest.mark.reliability
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_ray_gives_the_figures_of_this_process(
    bench: ToyBench, workers: int, ray_cores: None, record_property: Note
) -> None:
    """Ray against this process: equal to the last digit."""
    assert not bench.run("out", ToyExecutor(load_executor("ray", "cpu", workers))).failures
    record_property("workers", workers)
    compare(bench, "out", record_property)


@pytest.mark.slow
@pytest.mark.reliability
def test_two_workers_are_faster_than_one(bench: ToyBench, record_property: Note) -> None:
    """Evaluations a second of the toy benchmark, from the first one on; two cores or more."""
    cards = ",".join(toy_card(bench.folder, f"toy-{i}", seed=i) for i in range(6))
    for workers in (1, 2):
        moments: list[float] = []
        toy = ToyExecutor(Processes(CPU, workers), watch=lambda _, moments=moments: moments.append(time.monotonic()))  # type: ignore[misc]
        assert not bench.run(f"out{workers}", toy, cards).failures
        record_property(f"a second, {workers} workers", f"{(len(moments) - 1) / (moments[-1] - moments[0]):.1f}")


@needs_ray
@pytest.mark.slow
def test_ray_says_what_went_wrong(bench: ToyBench, ray_cores: None) -> None:
    cards = [toy_card(bench.folder, f"toy-{fault}", seed=10 + i) for i, fault in enumerate(("hangs", "dies", "raises"))]
    toy = ToyExecutor(load_executor("ray", "cpu", 2, timeout=4.0))
    outcome = bench.run("out", toy, ",".join([*cards, "bicubic"]), threats="clean", limit=1)
    reasons = {record.model: record.reason for record in outcome.failures}
    assert reasons.keys() == {"toy-hangs", "toy-dies", "toy-raises"}
    assert "no answer" in reasons["toy-hangs"]
    assert "Ray worker was lost" in reasons["toy-dies"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("local", "cpu", 0), "--workers"),
        (("local", "cpu", "many"), "--workers"),
        (("local", "cpu", 1, 0.0), "--cell-timeout"),
        (("local", "cpu", 1, None, "auto"), "--ray-address"),
        (("local", "tpu"), "device"),
    ],
)
def test_unusable_options(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        load_executor(*arguments)  # type: ignore[arg-type]


def test_unknown_executor() -> None:
    with pytest.raises(UnknownIdError, match="local"):
        load_executor("locale")
