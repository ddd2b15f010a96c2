"""Where cells are computed: in this process, in worker processes of this machine, or by the workers of a Ray cluster.

Figures do not depend on the choice: random draws hang on the image alone, and every worker computes with one thread,
since sums round differently for another number of threads.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from logging.handlers import QueueHandler
from math import ceil
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol

import torch

from benchsr.base.errors import BenchsrError, InputError, ModelError
from benchsr.base.inference import one_thread, pick_device
from benchsr.base.registry import Registry
from benchsr.evaluation.cache import ONCE
from benchsr.evaluation.memory import own_groups
from benchsr.evaluation.plan import Cell
from benchsr.evaluation.worker import Worker, failed, reason
from benchsr.results.records import Record

log = logging.getLogger(__name__)


class MakeWorker(Protocol):
    """What makes a worker. It and the cells must be picklable for all executors but InProcess."""

    def __call__(self, device: torch.device, *, share: float) -> Worker:
        """A worker on `device`, of whose free memory it may plan with `share`, between 0 and 1."""


ATTEMPTS = 3
"""How often a cell is given to a worker that then dies, before its evaluations fail."""

START_SECONDS = 300
"""How long a worker may take to start: it imports torch, and a cluster may first look for a machine."""


HEAD_SECONDS = 20
"""How long the head of a Ray cluster may be away: it may be started again, and Ray itself gives up after a minute."""


class Executor(Protocol):
    """What computes cells."""

    @property
    def device(self) -> torch.device:
        """Where its workers compute."""

    def run(self, make: MakeWorker, cells: Sequence[Cell]) -> Generator[Record, None, None]:
        """Yield the record of each evaluation as it is done, in any order: nothing is lost, nothing comes twice.

        Whatever goes wrong with an evaluation becomes its record.
        """


@dataclass(frozen=True)
class InProcess:
    """One worker in this process, where nothing can be interrupted from outside."""

    device: torch.device

    def run(self, make: MakeWorker, cells: Sequence[Cell]) -> Generator[Record, None, None]:
        """Yield the record of each evaluation as it is done."""
        with one_thread():
            worker = make(self.device, share=1.0)
            for cell in cells:
                yield from worker.run(cell)


class WorkerLostError(BenchsrError):
    """A worker that ended before it answered: killed, out of memory, or its machine went away."""


class Reply(NamedTuple):
    """The records of a cell, and what was logged meanwhile."""

    records: list[Record]
    logged: list[logging.LogRecord]


class Remote(ABC):
    """A worker outside of this process that handles one cell at a time."""

    pending: Any
    """What to wait for: the answer under way. A new worker's first answer, without records, says that it is ready."""

    @abstractmethod
    def send(self, cell: Cell) -> None:
        """Start on a cell."""

    @abstractmethod
    def answer(self) -> Reply:
        """The answer that was waited for. Raises WorkerLostError."""

    @abstractmethod
    def stop(self) -> None:
        """End the worker at once, whatever it is doing."""


class _Served:
    """A worker in a process of its own, and what it logs: nobody reads that process's output."""

    def __init__(self, make: MakeWorker, device: torch.device, share: float) -> None:
        torch.set_num_threads(1)
        self._logged: SimpleQueue[logging.LogRecord] = SimpleQueue()
        logging.getLogger("benchsr").addHandler(QueueHandler(self._logged))
        self._worker = make(device, share=share)

    def run(self, cell: Cell | None = None) -> Reply:
        """The records of one cell; of none, once the worker is there."""
        records = list(self._worker.run(cell)) if cell else []
        return Reply(records, [self._logged.get() for _ in range(self._logged.qsize())])


@dataclass
class _Job:
    """What a worker does, for the `attempt`th time: a cell, until `deadline` at most; or, without a cell, it starts."""

    number: int
    remote: Remote
    cell: Cell | None = None
    attempt: int = 1
    deadline: float = float("inf")

    def answer(self, ready: bool, timeout: float | None) -> Reply:
        """What came of the cell. Raises ModelError where it took too long, and WorkerLostError."""
        if ready:
            return self.remote.answer()
        if self.cell:
            raise ModelError(f"no answer within {timeout} s, the limit of one cell (--cell-timeout)")
        raise WorkerLostError(
            f"a worker did not start within {START_SECONDS} s; is the machine overloaded, or is there no room on the "
            "cluster? Ask for fewer --workers"
        )


@dataclass(frozen=True)
class Remotes(ABC):
    """`workers` remote workers, each replaced when it dies or takes longer than `timeout` seconds over a cell.

    No more are started than there are cells.
    """

    device: torch.device
    workers: int
    timeout: float | None = None

    @abstractmethod
    def start(self, make: MakeWorker, number: int, share: float) -> Remote:
        """Start worker `number`; `share` as for MakeWorker."""

    @abstractmethod
    def wait(self, pending: list[Any], seconds: float) -> list[Any]:
        """Those of `pending` that are there, after `seconds` at most."""

    def share(self, workers: int) -> float:
        """The part of its device's memory that each of so many workers may plan with."""
        return 1 / workers

    def run(self, make: MakeWorker, cells: Sequence[Cell]) -> Generator[Record, None, None]:
        """Yield the records of each cell as it is done. Raises WorkerLostError where no worker can be had any more."""

        def started(number: int, attempt: int = 1) -> _Job:
            remote = self.start(make, number, self.share(workers))
            return _Job(number, remote, attempt=attempt, deadline=time.monotonic() + START_SECONDS)

        workers = min(self.workers, len(cells))
        todo = deque((cell, 1) for cell in cells)
        idle: list[_Job] = []
        told: set[str] = set()
        busy = [started(number) for number in range(workers)]
        try:
            while todo or any(job.cell for job in busy):
                while todo and idle:
                    job = idle.pop()
                    job.cell, job.attempt = todo.popleft()
                    job.deadline = time.monotonic() + (self.timeout or float("inf"))
                    job.remote.send(job.cell)
                    busy.append(job)
                ready = self.wait([job.remote.pending for job in busy], min(1.0, self.timeout or 1.0) / 2)
                now = time.monotonic()
                for job in [job for job in busy if job.remote.pending in ready or now > job.deadline]:
                    busy.remove(job)
                    records: list[Record] = []
                    try:
                        records, logged = job.answer(job.remote.pending in ready, self.timeout)
                        _tell(logged, told)
                        idle.append(_Job(job.number, job.remote))
                    except BenchsrError as error:
                        job.remote.stop()
                        again = job.attempt < ATTEMPTS and job.remote.pending in ready
                        if job.cell and again:
                            todo.appendleft((job.cell, job.attempt + 1))
                        elif job.cell:
                            records = [failed(record, reason(error)) for record in job.cell.records]
                        elif not again and (busy or idle):
                            log.warning("%s; going on with fewer workers", error)
                            continue
                        elif not again:
                            raise
                        busy.append(started(job.number, 1 if job.cell else job.attempt + 1))
                    yield from records
        finally:
            for job in [*idle, *busy]:
                job.remote.stop()


class _Process(Remote):
    """A worker in a process of its own. `pending` is our end of the pipe to it."""

    def __init__(self, make: MakeWorker, device: torch.device, share: float) -> None:
        spawn = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
        self.pending, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, make, device, share), daemon=True)
        with uninterrupted():
            self._process.start()
        theirs.close()

    def send(self, cell: Cell) -> None:
        """Start on a cell; that the process is dead shows when its answer is waited for."""
        with suppress(OSError):
            self.pending.send(cell)

    def answer(self) -> Reply:
        """What came of the cell. Raises WorkerLostError."""
        try:
            found: Reply = self.pending.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            self._process.join(10)
            code = self._process.exitcode or 0
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise WorkerLostError(f"the worker process died ({how}); was there enough memory?") from None
        return found

    def stop(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.join()
        self.pending.close()


def _tell(logged: Sequence[logging.LogRecord], told: set[str]) -> None:
    """Log here what workers have logged, but for what is in `told`, to which it is added."""
    for line in logged:
        what = getattr(line, ONCE, line.getMessage())
        if what not in told:
            told.add(what)
            logging.getLogger(line.name).handle(line)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Processes that are spawned here never see Ctrl-C, which a terminal sends to all: importing, they would answer.

    A signal that asks to stop is answered when they are started: one that is half started would find its pipe closed.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # else the first process would start it, which lets the signal through again
    with _later(signal.SIGINT), _later(signal.SIGTERM):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _later(number: signal.Signals) -> Iterator[None]:
    """Put off what answers a signal of Python's. To block it is not enough: any other thread may take it."""
    answer = signal.getsignal(number)
    if not callable(answer) or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(number, answer)
        if came:
            signal.raise_signal(number)


def _serve(pipe: Connection, make: MakeWorker, device: torch.device, share: float) -> None:
    """A worker process: answer cells until the run is over, or gone."""
    follow_parent()
    worker = _Served(make, device, share)
    with suppress(EOFError, OSError):
        pipe.send(worker.run())
        while True:
            pipe.send(worker.run(pipe.recv()))


def follow_parent() -> None:
    """Leave Ctrl-C to the process that started this one, which then stops it, and end when that is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A cell that hangs must not outlive a run that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@dataclass(frozen=True)
class Processes(Remotes):
    """Worker processes on this machine; they share its GPUs in turn. A single cell is computed in this process."""

    def run(self, make: MakeWorker, cells: Sequence[Cell]) -> Generator[Record, None, None]:
        """Yield the records of each cell as it is done. Raises WorkerLostError where no worker can be started."""
        alone = len(cells) == 1 < self.workers and self.timeout is None  # not worth the start of a process
        return InProcess(self.device).run(make, cells) if alone else super().run(make, cells)

    def start(self, make: MakeWorker, number: int, share: float) -> Remote:
        """Start a process."""
        gpu = self.device.type == "cuda"
        device = torch.device("cuda", number % torch.cuda.device_count()) if gpu else self.device
        return _Process(make, device, share)

    def share(self, workers: int) -> float:
        """Of this machine's memory; or of a GPU's, among those on one GPU."""
        return 1 / (ceil(workers / torch.cuda.device_count()) if self.device.type == "cuda" else workers)

    def wait(self, pending: list[Any], seconds: float) -> list[Any]:
        """Those pipes that hold an answer, or whose process is dead."""
        return wait(pending, seconds)


class _Actor(Remote):
    """A worker that is a Ray actor. `pending` is the reference of its answer."""

    def __init__(self, make: MakeWorker, device: torch.device, share: float) -> None:
        import ray

        self._ray: Any = ray
        unit = self._ray.remote(**{"num_gpus" if device.type == "cuda" else "num_cpus": 1})
        self._actor = unit(_RayWorker).remote(make, device, share, str(Path.cwd()))
        self.pending = self._actor.run.remote()

    def send(self, cell: Cell) -> None:
        """Start on a cell."""
        self.pending = self._actor.run.remote(cell)

    def answer(self) -> Reply:
        """What came of the cell. Raises WorkerLostError."""
        try:
            with _unwrapped():
                found: Reply = self._ray.get(self.pending)
        except self._ray.exceptions.RayError as error:
            raise WorkerLostError(f"the Ray worker was lost ({type(error).__name__}: {str(error)[:300]})") from None
        return found

    def stop(self) -> None:
        """Kill the actor."""
        self._ray.kill(self._actor)


@contextmanager
def _unwrapped() -> Iterator[None]:
    """What the handler of a signal raises while Ray waits comes as a SystemError's cause."""
    try:
        yield
    except SystemError as error:
        raise (error.__cause__ or error) from None


class _RayWorker(_Served):
    """What runs inside of a Ray actor: one Worker, and so one load of each network's weights."""

    def __init__(self, make: MakeWorker, device: torch.device, share: float, folder: str) -> None:
        with suppress(OSError):  # relative paths mean what they mean to the run, where its folder is shared
            os.chdir(folder)
        super().__init__(make, device, share)


@dataclass
class _Head:
    """The head of a Ray cluster. A minute after it is gone, Ray ends this process as if rows had failed."""

    address: str
    _asked: float = 0.0
    _away: float | None = None

    def require(self) -> None:
        """Raise WorkerLostError where it has not answered for HEAD_SECONDS."""
        now = time.monotonic()
        if now < self._asked + 1:
            return
        self._asked = now
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
            self._away = None
        except OSError as error:
            self._away = self._away or now
            if now > self._away + HEAD_SECONDS:
                raise WorkerLostError(
                    f"the Ray cluster at {self.address} is gone: its head has not answered for {HEAD_SECONDS} s "
                    f"({error.strerror or error}); what was computed is kept: start a cluster (ray start --head) and "
                    "give the same command again, with its --ray-address"
                ) from None


@dataclass(frozen=True)
class RayCluster(Remotes):
    """Ray actors, each on one GPU (or one CPU core of a cluster without), of a cluster or of this machine."""

    head: _Head | None = None
    """What is watched, where it can be reached."""

    def start(self, make: MakeWorker, number: int, share: float) -> Remote:
        """Start an actor, wherever the cluster has room."""
        return _Actor(make, self.device, share)

    def share(self, workers: int) -> float:
        """All of a GPU, which a worker has to itself; of a machine's memory as if all workers were on that machine."""
        return 1.0 if self.device.type == "cuda" else 1 / workers

    def wait(self, pending: list[Any], seconds: float) -> list[Any]:
        """The first answer that has come, or never will. Raises WorkerLostError where the cluster is gone."""
        import ray

        if self.head:
            self.head.require()
        with _unwrapped():
            return list(ray.wait(pending, timeout=seconds)[0])


def usable_cores(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Cores that this process may use: those that it may run on, or fewer where its control groups bound its time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder, _ in own_groups(root, own):
        with suppress(OSError, ValueError):
            if (folder / "cpu.max").is_file():
                quota, period = (folder / "cpu.max").read_text().split()  # "max": as much as there is
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if float(quota) > 0:
                cores = min(cores, max(1, ceil(float(quota) / float(period))))
    return cores


def _local(device: str, workers: int | None, timeout: float | None, address: str | None) -> Executor:
    if address is not None:
        raise InputError("--ray-address goes with --executor ray")
    chosen = pick_device(device)
    if workers is None:
        workers = torch.cuda.device_count() if chosen.type == "cuda" else usable_cores()
    return InProcess(chosen) if workers == 1 and timeout is None else Processes(chosen, workers, timeout)


def _ray(device: str, workers: int | None, timeout: float | None, address: str | None) -> Executor:
    try:
        import ray
    except ImportError:
        raise InputError('--executor ray needs Ray: pip install "benchsr[ray]"') from None
    if not ray.is_initialized():
        try:
            with _own_sigterm():
                ray.init(address=address, log_to_driver=False, include_dashboard=None if address else False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(f"--ray-address {address}: no Ray cluster answers there ({error})") from None
    cluster: Any = ray  # untyped, where Ray is installed at all
    resources: dict[str, float] = cluster.cluster_resources()
    chosen = pick_device(device, has_cuda=resources.get("GPU", 0) >= 1)
    workers = workers or int(resources["GPU" if chosen.type == "cuda" else "CPU"])
    remote = cluster.util.client.ray.is_connected()  # by ray://, from where the head itself may be out of reach
    return RayCluster(chosen, workers, timeout, None if remote else _Head(cluster.get_runtime_context().gcs_address))


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray would put its handler of SIGTERM, which exits, in the place of the run's, which says how to go on."""
    before, asked = signal.getsignal(signal.SIGTERM), False
    try:
        yield
    except SystemExit as ended:
        asked = ended.code == signal.SIGTERM
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
            if asked:
                signal.raise_signal(signal.SIGTERM)


EXECUTORS: Registry[Callable[[str, int | None, float | None, str | None], Executor]] = Registry(
    "executor", {"local": _local, "ray": _ray}
)


def load_executor(
    name: str = "local",
    device: str = "auto",
    workers: int | str | None = None,
    timeout: float | None = None,
    address: str | None = None,
) -> Executor:
    """The executor "local" or "ray" on `device` ("auto", "cpu", "cuda").

    `workers`: how many cells at a time; "auto": as many as there are cores (or GPUs); by default 1 locally, in this
    process, since others import the main module, which must then be guarded; with Ray "auto". `timeout`: seconds for
    one cell, after which its worker is killed and its evaluations fail. `address`: of a Ray cluster, as `ray.init`
    takes it; by default one is started on this machine. Raises InputError, or UnknownIdError.
    """
    if workers is None:
        workers = "auto" if name == "ray" else 1
    if workers != "auto" and not (str(workers).isdecimal() and int(workers) >= 1):
        raise InputError(f"--workers must be auto, or at least 1; got {workers}")
    if timeout is not None and not timeout > 0:
        raise InputError(f"--cell-timeout must be positive; got {timeout}")
    return EXECUTORS[name](device, None if workers == "auto" else int(workers), timeout, address)
