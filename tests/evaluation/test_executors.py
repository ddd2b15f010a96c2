"""Executors: the same figures everywhere, and every misbehaviour of a network is a row that says what happened."""

from __future__ import annotations

import importlib.util
import multiprocessing
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from faults import FAULTS, ToyBench, ToyExecutor, make_bench
from toys import toy_card

from benchsr.base.errors import InputError, UnknownIdError
from benchsr.evaluation.executors import InProcess, Processes, WorkerLostError, load_executor
from benchsr.evaluation.worker import Worker
from benchsr.results.records import Status

CPU = torch.device("cpu")
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: benchsr[ray]")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToyBench:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", None)  # ToyMake sets it, and pytest puts the real one back
    monkeypatch.setattr("benchsr.evaluation.worker.load_network", None)
    return make_bench(tmp_path, n_images=3)


def test_processes_give_the_figures_of_this_process(bench: ToyBench) -> None:
    here = bench.run("here", ToyExecutor(InProcess(CPU)))
    there = bench.run("there", ToyExecutor(Processes(CPU, 2)))
    assert (here.computed, there.computed) == (36, 36)
    assert {r.status for r in here.records} == {Status.OK, Status.UNAVAILABLE}
    pd.testing.assert_frame_equal(bench.table("here"), bench.table("there"))
    assert multiprocessing.active_children() == []


def test_every_misbehaviour_is_a_row(bench: ToyBench) -> None:
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
    assert multiprocessing.active_children() == []


def test_workers_end_with_the_run(bench: ToyBench) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run("out", ToyExecutor(Processes(CPU, 2), watch=interrupt), threats="clean")
    assert multiprocessing.active_children() == []


def no_worker(device: torch.device) -> Worker:
    raise RuntimeError(f"no worker on {device}")


def test_workers_that_cannot_be_started_end_the_run(bench: ToyBench) -> None:
    class Broken(ToyExecutor):
        def run(self, make, cells):  # type: ignore[no-untyped-def]
            return self.inner.run(no_worker, cells)

    with pytest.raises(WorkerLostError, match="exit code 1"):
        bench.run("out", Broken(Processes(CPU, 1)), threats="clean")


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_ray_gives_the_figures_of_this_process(bench: ToyBench, workers: int, ray_cores: None) -> None:
    bench.run("here", ToyExecutor(InProcess(CPU)))
    bench.run("there", ToyExecutor(load_executor("ray", "cpu", workers)))
    pd.testing.assert_frame_equal(bench.table("here"), bench.table("there"))


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
