"""`benchsr run` on a Ray cluster of two nodes of this machine, one of which is lost in the middle of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from faults import Note, ToyBench, ToyExecutor, compare

from benchsr.evaluation.executors import InProcess

clusters: Any = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed: benchsr[ray]")

pytestmark = [pytest.mark.slow, pytest.mark.reliability]

TESTS = Path(__file__).parents[1]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes, each with room for one worker; the first is the head."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
    node = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    made = clusters.Cluster(initialize_head=True, head_node_args=node)
    made.add_node(**node)
    yield made
    made.shutdown()


def start(bench: ToyBench, cluster: Any, seconds: float = 1.0) -> subprocess.Popen[bytes]:
    """`benchsr run` with two workers, and `seconds` for each evaluation; once four lines are there."""
    where = bench.folder
    models = f"bicubic,{where / 'toy-a.toml'},{where / 'toy-b.toml'}"
    command = f"run --protocol {where / 'toy.toml'} --models {models} --out {where / 'out'} --cache {where / 'cache'}"
    command += f" --device cpu --executor ray --workers 2 --ray-address {cluster.address}"
    program = [sys.executable, "-c", f"import faults; faults.command_line({seconds=})", *command.split()]
    with (where / "said").open("wb") as said:
        run = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=said, env={**os.environ, "COLUMNS": "400"})
    while run.poll() is None and lines(bench) < 5:
        time.sleep(0.1)
    assert run.poll() is None, said_by(bench)
    return run


def lines(bench: ToyBench) -> int:
    path = bench.folder / "out" / "toy" / "results.csv"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def said_by(bench: ToyBench) -> str:
    return (bench.folder / "said").read_text()


def workers() -> list[psutil.Process]:
    found = psutil.process_iter(["name", "status"])
    return [
        p for p in found if p.info["name"].startswith("ray::_RayWorker") and p.info["status"] != psutil.STATUS_ZOMBIE
    ]


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.2)


def test_a_node_is_lost(bench: ToyBench, cluster: Any, record_property: Note) -> None:
    """The node of one of two workers killed in the middle of a run, which goes on with the other."""
    run = start(bench, cluster)
    (other,) = cluster.worker_nodes
    cluster.remove_node(other, allow_graceful=False)
    record_property("kills", 1)
    assert run.wait() == 0, said_by(bench)
    record_property("tracebacks", said_by(bench).count("Traceback"))
    compare(bench, "out", record_property)
    wait_until(lambda: not workers(), 60)
    record_property("processes_left", len(workers()))
    assert workers() == []


def test_the_head_is_lost(bench: ToyBench, cluster: Any, record_property: Note) -> None:
    """The head of the cluster killed in the middle of a run, which ends, and is given again without the cluster."""
    run = start(bench, cluster, seconds=3.0)  # else it is done before the head is missed
    for processes in list(cluster.head_node.all_processes.values()):
        for each in processes:
            each.process.kill()
    record_property("kills", 1)
    assert run.wait() == 2, said_by(bench)
    said = said_by(bench)
    record_property("tracebacks", said.count("Traceback"))
    last = said.replace("\r", "\n").strip().splitlines()[-1]
    assert last.startswith(f"benchsr: the Ray cluster at {cluster.address} is gone: its head has not answered")
    assert "give the same command again" in last
    wait_until(lambda: not workers(), 120)
    record_property("processes_left", len(workers()))
    assert workers() == []

    kept = lines(bench) - 1
    record_property("kept", kept)
    outcome = bench.run("out", ToyExecutor(InProcess(torch.device("cpu"))), cache=bench.folder / "cache")
    assert outcome.computed <= bench.evaluations - kept + 3  # but for those without data
    compare(bench, "out", record_property)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["sigterm", "ctrl-c"])
def test_a_signal_ends_the_run_as_it_does_without_ray(
    bench: ToyBench, cluster: Any, number: signal.Signals, code: int, record_property: Note
) -> None:
    """A run on the cluster asked to stop: its own words and exit code, not Ray's."""
    record_property("signal", number.name)
    run = start(bench, cluster)
    run.send_signal(number)
    assert run.wait() == code, said_by(bench)
    record_property("tracebacks", said_by(bench).count("Traceback"))
    assert said_by(bench).strip().splitlines()[-1].startswith("benchsr: stopped; ")
    wait_until(lambda: not workers(), 60)
    record_property("processes_left", len(workers()))
    assert workers() == []
