"""Kills, full disks, flipped bytes, rivals: whatever happens, the table ends up the same, no line lost or doubled.

Trials of docs/reliability.md (tests/docs/reliability.py); tests/cli/test_disturbed.py has those of whole commands.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from faults import Note, ToyBench, ToyExecutor, compare, make_bench, needs_ray, ray_workers, started

from benchsr.base.errors import InputError
from benchsr.evaluation import executors
from benchsr.evaluation.cache import AttackCache, AttackReport
from benchsr.evaluation.executors import Executor, InProcess, Processes, load_executor
from benchsr.results.records import Record

CPU = torch.device("cpu")
KILLS = 20

pytestmark = pytest.mark.reliability


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ToyBench:
    """A toy benchmark of 36 evaluations, or of 120 where time does not matter."""
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", None)  # ToyMake sets it, and pytest puts the real one back
    monkeypatch.setattr("benchsr.evaluation.worker.load_network", None)
    return make_bench(tmp_path, n_images=10 if request.node.get_closest_marker("slow") else 3)


def start(bench: ToyBench, out: str, workers: int, seconds: float, models: str = "") -> subprocess.Popen[bytes]:
    """The benchmark as a program of its own."""
    command = [sys.executable, str(Path(__file__).parents[1] / "faults.py"), str(bench.folder), out, str(workers)]
    return subprocess.Popen([*command, str(seconds), *([models] if models else [])], stderr=subprocess.PIPE)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not condition() and process.poll() is None:
        time.sleep(0.02)


def lines(bench: ToyBench, out: str) -> int:
    path = bench.folder / out / "toy" / "results.csv"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_killed_again_and_again_goes_on(bench: ToyBench, workers: int, record_property: Note) -> None:
    """A run killed with kill -9 at random moments, then resumed; what was in flight is repeated."""
    moments, kills = random.Random(workers), 0
    while kills < KILLS:
        before = lines(bench, "out")
        run = start(bench, "out", workers, seconds=0.1)
        wait_for(lambda before=before: lines(bench, "out") > before, run)  # type: ignore[misc]
        time.sleep(moments.uniform(0, 0.3))
        if run.poll() is not None:
            break
        run.send_signal(signal.SIGKILL)
        run.wait()
        kills += 1
    last = start(bench, "out", workers, seconds=0.001)
    said = last.communicate(timeout=300)[1].decode()
    assert last.returncode == 0, said
    computed = (bench.folder / "log-out").read_text().split()
    for name, count in {"workers": workers, "kills": kills, "computed": len(computed)}.items():
        record_property(name, count)
    compare(bench, "out", record_property)
    assert kills >= 10
    assert (
        len(computed) - bench.evaluations <= kills * workers * 2
    )  # in flight: an image each, with the models it is for


class Reaper:
    """Kills a random worker process, over and over, each time after another evaluation came in."""

    def __init__(self, workers: Callable[[], list[psutil.Process]]) -> None:
        self.workers = workers
        self.kills = 0
        self._random = random.Random(0)
        self._next = 1

    def watch(self, _: Record) -> None:
        self._next -= 1
        alive = self.workers()
        if self.kills < KILLS and self._next <= 0 and alive:
            victim = self._random.choice(alive)
            threading.Timer(self._random.uniform(0, 0.2), victim.kill).start()
            self.kills += 1
            self._next = self._random.randint(2, 5)


def spawned() -> list[psutil.Process]:
    return started(lambda process: "spawn_main" in " ".join(process.cmdline()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", pytest.param("ray", marks=needs_ray)])
def test_workers_killed_again_and_again_lose_nothing(
    bench: ToyBench,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    record_property: Note,
) -> None:
    """A random worker killed with kill -9, over and over, the run going on."""
    monkeypatch.setattr(executors, "ATTEMPTS", 10)  # one cell may be hit several times
    if kind == "ray":
        request.getfixturevalue("ray_cores")
    inner: Executor = load_executor("ray", "cpu", 2) if kind == "ray" else Processes(CPU, 2)
    reaper = Reaper(ray_workers if kind == "ray" else spawned)
    outcome = bench.run("out", ToyExecutor(inner, seconds=0.2, watch=reaper.watch))
    record_property("workers", f"2, {kind}")
    record_property("kills", reaper.kills)
    assert reaper.kills >= 10
    assert not outcome.failures
    compare(bench, "out", record_property)


@pytest.mark.slow
@pytest.mark.parametrize("rivals", [2, 4])
def test_concurrent_runs_share_cache_and_leaderboard(bench: ToyBench, rivals: int, record_property: Note) -> None:
    """Runs at once on one cache and one leaderboard, sharing evaluations."""
    a, b = str(bench.folder / "toy-a.toml"), str(bench.folder / "toy-b.toml")
    share = [f"bicubic,{a}", f"{a},{b}", f"{b},bicubic", f"{b},{a}"]  # overlapping: some evaluations come twice
    runs = [start(bench, "out", 1, 0.02, models) for models in share[:rivals]]
    for run in runs:
        said = run.communicate(timeout=500)[1].decode()
        assert run.returncode == 0, said
    record_property("runs at once", rivals)
    compare(bench, "out", record_property)
    assert AttackCache(bench.folder / "cache").damaged() == {}


@pytest.mark.slow
def test_a_cache_pruned_under_four_runs(bench: ToyBench, record_property: Note) -> None:
    """Four runs at once on one cache and one leaderboard, and somebody who empties the cache, over and over."""
    a, b = str(bench.folder / "toy-a.toml"), str(bench.folder / "toy-b.toml")
    notes = bench.folder / "cache" / "ab" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("somebody else's")
    before = notes.stat().st_mtime_ns
    runs = [start(bench, "out", 1, 0.02, models) for models in (f"bicubic,{a}", f"{a},{b}", f"{b},bicubic", f"{b},{a}")]
    prunes = deleted = 0
    while any(run.poll() is None for run in runs):
        deleted += len(AttackCache(bench.folder / "cache").prune(days=0))
        prunes += 1
        time.sleep(0.1)
    for run in runs:
        said = run.communicate()[1].decode()
        assert run.returncode == 0, said
    assert deleted > 0
    touched = int((notes.read_text(), notes.stat().st_mtime_ns) != ("somebody else's", before))
    for name, count in {"prunes": prunes, "entries deleted": deleted, "foreign_files_touched": touched}.items():
        record_property(name, count)
    compare(bench, "out", record_property)
    assert touched == 0


def test_a_run_with_other_settings_in_the_same_folder_is_noticed(bench: ToyBench) -> None:
    """A run with other settings takes the folder over: the first ends with an error that says so."""

    def rival(_: Record) -> None:
        if not (bench.folder / "rival").exists():
            (bench.folder / "rival").touch()
            bench.run("out", ToyExecutor(InProcess(CPU)), "bicubic", threats="clean", limit=1, seed=7)

    with pytest.raises(InputError, match="taken over"):
        bench.run("out", ToyExecutor(InProcess(CPU), watch=rival), "bicubic", threats="clean", limit=2)
    assert set(pd.read_csv(bench.folder / "out" / "toy" / "results.csv").seed) == {7}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KB, mounted where that is allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_cache_costs_no_result(
    bench: ToyBench, small_disk: Path, caplog: pytest.LogCaptureFixture, record_property: Note
) -> None:
    """The cache on a full file system (tmpfs of 64 KB): one warning."""
    (small_disk / "ballast").write_bytes(b"x" * 40_000)
    outcome = bench.run("out", ToyExecutor(InProcess(CPU)), cache=small_disk)
    assert not outcome.failures
    assert caplog.text.count("cannot be written") == 1
    assert "No space left" in caplog.text
    compare(bench, "out", record_property)


def test_a_read_only_cache_costs_no_result(
    bench: ToyBench, small_disk: Path, caplog: pytest.LogCaptureFixture, record_property: Note
) -> None:
    """The cache on a read-only file system: one warning."""
    AttackCache(small_disk).put("ab" * 32, torch.zeros(3, 4, 4), AttackReport(0.0))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    bench.run("out", ToyExecutor(InProcess(CPU)), cache=small_disk)
    assert caplog.text.count("Read-only file system") == 1
    compare(bench, "out", record_property)


def test_a_full_disk_ends_the_run_and_keeps_its_results(
    bench: ToyBench, small_disk: Path, record_property: Note
) -> None:
    """The results on a full file system: an error that names the file; with room again the run goes on."""
    (small_disk / "ballast").write_bytes(b"x" * 44_000)
    with pytest.raises(InputError, match=r"(results|timings).csv.*No space left"):
        bench.run(str(small_disk), ToyExecutor(InProcess(CPU)))
    kept = (small_disk / "toy" / "results.csv").read_bytes().count(b"\n") - 1
    assert kept > 5
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    outcome = bench.run(str(small_disk), ToyExecutor(InProcess(CPU)))
    assert outcome.computed <= bench.evaluations - kept + 1
    compare(bench, str(small_disk), record_property)


def test_flipped_bytes_in_the_cache_are_found(
    bench: ToyBench, caplog: pytest.LogCaptureFixture, record_property: Note
) -> None:
    """A bit flipped in every second cache entry: each is reported and computed again."""
    cache, dice = AttackCache(bench.folder / "cache"), random.Random(0)
    bench.run("first", ToyExecutor(InProcess(CPU)), cache=cache.folder)
    entries = sorted(Path(entry.path) for entry in cache.entries())
    for path in entries[::2]:
        content = bytearray(path.read_bytes())
        place = len(content) - 1 - dice.randrange(3 * 12 * 12 * 4)  # within the pixels
        content[place] ^= 1 << dice.randrange(8)
        path.write_bytes(content)
    assert set(cache.damaged()) == {str(path) for path in entries[::2]}
    bench.run("out", ToyExecutor(InProcess(CPU)), cache=cache.folder)
    assert caplog.text.count("is damaged") == len(entries[::2])
    assert cache.damaged() == {}
    record_property("flipped", len(entries[::2]))
    compare(bench, "out", record_property)


@pytest.mark.slow
def test_memory_stays_level_over_500_cells(bench: ToyBench, record_property: Note) -> None:
    """Soak: cells of toy networks in one process, whose memory stays level."""
    models = ",".join(str(bench.folder / f"toy-{name}.toml") for name in "ab")
    seen: list[int] = []

    def watch(_: Record) -> None:
        seen.append(psutil.Process().memory_info().rss)

    rounds = 0
    while len(seen) < 500:
        bench.run(f"out{rounds}", ToyExecutor(InProcess(CPU), watch=watch), models, threats="clean,noise,fgsm,pgd")
        rounds += 1
    early, late = max(seen[60:120]), max(seen[-60:])
    for name, count in {"cells": len(seen), "MB early": round(early / 1e6), "MB at the end": round(late / 1e6)}.items():
        record_property(name, count)
    assert late - early < 40e6


def test_two_workers_are_at_work_at_the_same_time(bench: ToyBench, tmp_path: Path) -> None:
    """Two workers, each of which begins only when the other has begun too."""
    met = tmp_path / "met"
    met.mkdir()
    card = str(bench.folder / "toy-a.toml")
    outcome = bench.run("out", ToyExecutor(Processes(CPU, 2), meet=met), models=card, threats="clean")
    assert not outcome.failures
    assert len(list(met.iterdir())) == 2
