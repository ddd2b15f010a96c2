"""Commands that are stopped, lack room or rights, or share files with other programs, and then are given again.

What each leaves is compared with what an undisturbed one left, and somebody else's files lie in every folder.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from faults import Note, needs_ray, ray_workers
from workshop import WORKS, Workshop, workshop

KILL, TERM, CTRL_C = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
HOW = {KILL: "kill -9", TERM: "SIGTERM", CTRL_C: "Ctrl-C"}
TIMES = {"run": 24, "run, 2 workers": 6, "report": 20, "site": 14, "train": 12, "fetch": 14, "cache prune": 10}
"""How often each command is killed with kill -9: 100 times. It is asked to stop half as often."""

CLEAN = ("lost", "doubled", "changed", "foreign_files_touched", "tracebacks", "processes_left", "without_words")
"""Counts that must be 0."""

DISK_BYTES = 64 << 20

FULL = {"run": 20, "report": 8, "site": 6, "train": 8, "fetch": 8}
"""How often each command finds the disk full: 50 times."""

BOARD, CACHE = (
    ("a line more", "another figure", "an older copy", "cut in half", "emptied", "removed"),
    (
        "a bit flipped",
        "another entry's",
        "cut in half",
        "emptied",
        "removed",
        "a folder",
    ),
)
"""What another program does to results.csv, and to entries of the cache (tests/hooks.py)."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.reliability,
    pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc"),
]


@dataclass(frozen=True)
class Disk:
    """Where the work is done; `mounted`: alone on a file system."""

    folder: Path
    mounted: bool

    @property
    def free(self) -> int:
        about = os.statvfs(self.folder)
        return about.f_bavail * about.f_frsize

    @contextmanager
    def with_room(self, room: int) -> Iterator[None]:
        """No more than `room` bytes are free."""
        ballast = self.folder / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, self.free - room)
        yield
        ballast.unlink()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)
        yield
        subprocess.run(["mount", "-o", "remount,rw", str(self.folder)], check=True)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """A file system of its own, where that may be mounted; else a folder."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        yield Disk(folder, mounted=False)
        return
    yield Disk(folder, mounted=True)
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def shop(disk: Disk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    with workshop(disk.folder, tmp_path_factory.mktemp("said")) as made:
        yield made


@pytest.fixture(scope="module")
def ray_shop(ray_cores: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """A workshop whose commands begin when Ray runs: they know the token that it asks for."""
    with workshop(tmp_path_factory.mktemp("ray"), tmp_path_factory.mktemp("said")) as made:
        yield made


@pytest.fixture
def mounted(disk: Disk) -> Disk:
    if not disk.mounted:
        pytest.skip("mounting a file system is not allowed here")
    return disk


@pytest.mark.parametrize("number", [KILL, TERM, CTRL_C], ids=["kill-9", "sigterm", "ctrl-c"])
@pytest.mark.parametrize("name", WORKS)
def test_a_command_stopped_again_and_again_goes_on(
    shop: Workshop, name: str, number: signal.Signals, record_property: Note
) -> None:
    """A command stopped at random moments, then given again until it is done."""
    record_property("trial", f"benchsr {name}: {HOW[number]} at random moments, then the same again")
    counts: Counter[str] = Counter(dict.fromkeys(["kills", *CLEAN], 0))
    dice = random.Random(f"{name} {number}")
    times = TIMES[name] if number is KILL else TIMES[name] // 2
    shop.fresh(name)
    done = False
    while counts["kills"] < times or not done:
        command = shop.start(name)
        if counts["kills"] < times:
            shop.wait_a_while(command, name, dice)
            command.stop(number)
        code = command.wait()
        counts["processes_left"] += len(command.left_behind())
        counts["tracebacks"] += "Traceback" in command.error
        done = code == 0
        if done:
            counts.update(shop.compare(name))
            shop.fresh(name)
            continue
        counts["foreign_files_touched"] += shop.touched()
        assert code in (-number, 128 + number), command.error
        if code == -number and number is not KILL:  # before it began or after it was done it has nothing to say
            counts["before_or_after"] += 1
            continue
        counts["kills"] += 1
        if code == 128 + number:
            last = command.error.replace("\r", "\n").strip().splitlines()[-1]
            counts["without_words"] += not last.startswith("benchsr: stopped; ")
    tell(counts, record_property)


@needs_ray
@pytest.mark.parametrize("number", [KILL, TERM, CTRL_C], ids=["kill-9", "sigterm", "ctrl-c"])
def test_a_run_on_ray_stopped_again_and_again_goes_on(
    ray_shop: Workshop, number: signal.Signals, record_property: Note
) -> None:
    """A run on two workers of a Ray cluster stopped at random moments, then given again until it is done."""
    ray: Any = pytest.importorskip("ray")
    record_property("trial", f"benchsr run, 2 Ray workers: {HOW[number]} at random moments, then the same again")
    counts: Counter[str] = Counter(dict.fromkeys(["kills", *CLEAN], 0))
    dice = random.Random(number)
    cluster = f"--executor ray --workers 2 --ray-address {ray.get_runtime_context().gcs_address}"
    command = WORKS["run"].command.replace("--workers 1", cluster)
    ray_shop.fresh("run")
    started, seconds = time.monotonic(), 0.0
    done = False
    while counts["kills"] < 4 or not done:
        run = ray_shop.forks.start(command, ray_shop.folder)
        if seconds and counts["kills"] < 4:
            time.sleep(dice.uniform(0, seconds))
            run.stop(number)
        code = run.wait()
        until = time.monotonic() + 60
        while (alive := ray_workers()) and time.monotonic() < until:
            time.sleep(0.2)
        counts["processes_left"] += len(alive)
        counts["tracebacks"] += "Traceback" in run.error
        done = code == 0
        if done:
            seconds = seconds or time.monotonic() - started
            counts.update(ray_shop.compare("run"))
            ray_shop.fresh("run")
        else:
            assert code in (-number, 128 + number), run.error
            counts["kills"] += 1
            counts["without_words"] += code > 0 and "benchsr: stopped; " not in run.error
    tell(counts, record_property)


@pytest.mark.parametrize("number", [KILL, TERM, CTRL_C], ids=["kill-9", "sigterm", "ctrl-c"])
def test_a_program_stopped_while_it_starts_goes_on(
    shop: Workshop, number: signal.Signals, tmp_path: Path, record_property: Note
) -> None:
    """A program of its own, stopped while it imports and plans."""
    record_property("trial", f"benchsr run: {HOW[number]} while the program starts, then the same again")
    counts: Counter[str] = Counter(dict.fromkeys(["kills", "before_or_after", *CLEAN], 0))
    dice = random.Random(number)
    shop.fresh("run")
    said = tmp_path / "said.err"
    program = [sys.executable, "-c", "from benchsr.cli import main; main()", *WORKS["run"].command.split()]
    environment = {**os.environ, "BENCHSR_CACHE": str(shop.folder / "user"), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    for _ in range(5):
        with said.open("wb") as file:
            run = subprocess.Popen(
                program, cwd=shop.folder, env=environment, stdout=subprocess.DEVNULL, stderr=file, process_group=0
            )
        seen, until = psutil.Process(run.pid), dice.uniform(0, 6)
        with suppress(psutil.NoSuchProcess, ProcessLookupError):  # it was done first
            while run.poll() is None and sum(seen.cpu_times()[:2]) < until:
                time.sleep(0.01)
            os.killpg(run.pid, number)
        code, words = run.wait(), said.read_text()
        assert code in (0, -number, 128 + number), words
        counts["foreign_files_touched"] += shop.touched()
        counts["kills"] += code == 128 + number or number is KILL
        if code == 128 + number:
            counts["tracebacks"] += "Traceback" in words
            counts["without_words"] += not words.strip().startswith("benchsr: stopped; ")
        elif number is not KILL:  # before benchsr's own first line was run, or after it was done
            counts["before_or_after"] += 1
    finish(shop, "run", counts)
    tell(counts, record_property)


def tell(counts: Counter[str], record_property: Note) -> None:
    """Hand the counts on, and fail where one is not what it must be."""
    for what, count in counts.items():
        record_property(what, count)
    assert {what: counts[what] for what in CLEAN} == dict.fromkeys(CLEAN, 0)


def finish(shop: Workshop, name: str, counts: Counter[str], *may_lack: str) -> None:
    """Give the command again, undisturbed, and compare what it leaves."""
    last = shop.start(name)
    assert last.wait() == 0, last.error
    counts.update(shop.compare(name, *may_lack))


@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_costs_nothing(shop: Workshop, mounted: Disk, name: str, record_property: Note) -> None:
    """The disk full at random moments."""
    record_property("trial", f"benchsr {name}: the disk full at random moments, then the same again with room")
    counts: Counter[str] = Counter(dict.fromkeys(["disks_full", "went_on", *CLEAN], 0))
    dice = random.Random(name)
    shop.fresh(name)
    before = mounted.free
    finish(shop, name, counts)
    pages = (before - mounted.free) // 4096
    while counts["disks_full"] < FULL[name]:
        shop.fresh(name)
        with mounted.with_room(4096 * dice.randrange(pages)):
            command = shop.start(name)
            code = command.wait()
        counts["tracebacks"] += "Traceback" in command.error
        counts["foreign_files_touched"] += shop.touched()
        said = " ".join(command.error.split())
        counts["disks_full"] += "No space left" in said
        if code == 0:  # only the cache had no room, or what is drawn
            counts["went_on"] += 1
        else:
            assert code == 2, said
            counts["without_words"] += not ("benchsr: " in said and "No space left" in said and "/" in said)
            finish(shop, name, counts, "cache")  # a line had room, but not its attack: a figure stands without it
            continue
        counts.update(shop.compare(name, "cache"))
    tell(counts, record_property)


@pytest.mark.parametrize("name", [name for name in WORKS if name != "run, 2 workers"])
def test_a_read_only_disk_is_named(shop: Workshop, mounted: Disk, name: str, record_property: Note) -> None:
    """A disk that may not be written to."""
    record_property("trial", f"benchsr {name}: on a read-only disk: an error that names it; then the same again")
    counts: Counter[str] = Counter(dict.fromkeys(CLEAN, 0))
    shop.fresh(name)
    with mounted.read_only():
        command = shop.start(name)
        code, said = command.wait(), " ".join(command.error.split())
    assert (code, "Read-only file system" in said, "benchsr: " in said) == (2, True, True), said
    counts["tracebacks"] += "Traceback" in said
    counts["foreign_files_touched"] += shop.touched()
    finish(shop, name, counts)
    tell(counts, record_property)


@pytest.mark.parametrize(("step", "moments"), [("append", (2, 13)), ("read", (1,))])
def test_a_board_changed_by_another_program_keeps_its_figures(
    shop: Workshop, step: str, moments: tuple[int, ...], record_property: Note
) -> None:
    """results.csv changed by another program."""
    when = {"append": "between two lines that a run adds", "read": "between its last reading and writing"}[step]
    record_property("trial", f"results.csv changed by another program, {when}: {', '.join(BOARD)}")
    counts: Counter[str] = Counter(dict.fromkeys(["changes", *CLEAN], 0))
    for how in BOARD:
        for moment in moments:
            shop.fresh("run")
            command = shop.start("run", "hooks:results_changed", how=how, step=step, at=moment)
            assert command.wait() == 0, command.error
            counts["changes"] += 1
            counts.update(shop.compare("run"))
            if how == "a line more":  # it stays, and the report says that its model has no card
                counts.subtract(["doubled", "changed"])
    tell(counts, record_property)


def test_a_cache_changed_by_another_program_changes_no_figure(shop: Workshop, record_property: Note) -> None:
    """Every second entry of the cache changed by another program while a run fills it; a second run reads it."""
    counts: Counter[str] = Counter(dict.fromkeys(["changes", *CLEAN], 0))
    for how in CACHE:
        shop.fresh("run")
        for _ in range(2):
            command = shop.start("run", "hooks:cache_changed", how=how)
            assert command.wait() == 0, command.error
            counts["tracebacks"] += "Traceback" in command.error
            for file in ("results.csv", "timings.csv"):
                (shop.folder / "out" / "toy" / file).unlink()
        finish(shop, "run", counts, "cache")  # a folder in an entry's place stays
        counts["changes"] += 1
    tell(counts, record_property)


@pytest.mark.parametrize("name", ["run", "train", "cache prune", "fetch"])
def test_a_clock_set_back_changes_nothing(shop: Workshop, name: str, record_property: Note) -> None:
    """The clock set back."""
    record_property("trial", f"benchsr {name}: the clock set back by an hour or ten years, at a random moment")
    counts: Counter[str] = Counter(dict.fromkeys(["changes", *CLEAN], 0))
    dice = random.Random(name)
    for seconds in (3600, 3e8):
        shop.fresh(name)
        command = shop.start(name, "hooks:clock_set_back", seconds=seconds, at=dice.randrange(10))
        assert command.wait() == 0, command.error
        counts["changes"] += 1
        counts.update(shop.compare(name))
    tell(counts, record_property)
