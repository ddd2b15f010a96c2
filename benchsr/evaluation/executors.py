"""Where cells are computed: in this process, in worker processes of this machine, or by the workers of a Ray cluster.

Figures do not depend on the choice: random draws hang on the image alone, and every worker computes with as many
threads as the process that started the run, since sums round differently for another number of threads.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

import torch

from benchsr.base.errors import BenchsrError, InputError, ModelError
from benchsr.base.inference import pick_device
from benchsr.base.registry import Registry
from benchsr.evaluation.plan import Cell
from benchsr.evaluation.worker import Worker, failed
from benchsr.results.records import Record

MakeWorker = Callable[[torch.device], Worker]
"""What makes a worker for a device. It and the cells must be picklable for all executors but InProcess."""

ATTEMPTS = 3
"""How often a cell is given to a worker that then dies, before its evaluations fail."""


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
        worker = make(self.device)
        for cell in cells:
            yield from worker.run(cell)


class WorkerLostError(BenchsrError):
    """A worker that ended before it answered: killed, out of memory, or its machine went away."""


class Remote(ABC):
    """A worker outside of this process that handles one cell at a time."""

    pending: Any
    """What to wait for: the answer under way. A new worker's first answer, no records, says that it is ready."""

    @abstractmethod
    def send(self, cell: Cell) -> None:
        """Start on a cell."""

    @abstractmethod
    def answer(self) -> list[Record]:
        """The answer that was waited for. Raises WorkerLostError."""

    @abstractmethod
    def stop(self) -> None:
        """End the worker at once, whatever it is doing."""


@dataclass
class _Job:
    """What a worker does, for the `attempt`th time: a cell, until `deadline` at most; or, without a cell, it starts."""

    number: int
    remote: Remote
    cell: Cell | None = None
    attempt: int = 1
    deadline: float = float("inf")


@dataclass(frozen=True)
class Remotes(ABC):
    """`workers` remote workers, each replaced when it dies or takes longer than `timeout` seconds over a cell."""

    device: torch.device
    workers: int
    timeout: float | None = None

    @abstractmethod
    def start(self, make: MakeWorker, number: int) -> Remote:
        """Start worker `number`."""

    @abstractmethod
    def wait(self, pending: list[Any], seconds: float) -> list[Any]:
        """Those of `pending` that are there, after `seconds` at most."""

    def run(self, make: MakeWorker, cells: Sequence[Cell]) -> Generator[Record, None, None]:
        """Yield the records of each cell as it is done. Raises WorkerLostError where workers cannot even be started."""
        todo = deque((cell, 1) for cell in cells)
        idle: list[_Job] = []
        busy = [_Job(n, self.start(make, n)) for n in range(min(self.workers, len(cells)))]
        try:
            while todo or any(job.cell for job in busy):
                while todo and idle:
                    job = idle.pop()
                    job.cell, job.attempt = todo.popleft()
                    job.deadline = time.monotonic() + (self.timeout or float("inf"))
                    job.remote.send(job.cell)
                    busy.append(job)
                ready = self.wait([job.remote.pending for job in busy], min(1.0, self.timeout or 1.0) / 2)
                overdue = ModelError(f"no answer within {self.timeout} s, the limit of one cell (--cell-timeout)")
                now = time.monotonic()
                for job in [job for job in busy if job.remote.pending in ready or now > job.deadline]:
                    busy.remove(job)
                    try:
                        if job.remote.pending not in ready:
                            raise overdue
                        records = job.remote.answer()
                        idle.append(_Job(job.number, job.remote))
                    except BenchsrError as error:
                        job.remote.stop()
                        again, records = job.attempt < ATTEMPTS and error is not overdue, []
                        if job.cell and again:
                            todo.appendleft((job.cell, job.attempt + 1))
                        elif job.cell:
                            records = [failed(record, error) for record in job.cell.records]
                        elif not again:  # not even an empty worker can be started
                            raise
                        starts = 1 if job.cell else job.attempt + 1
                        busy.append(_Job(job.number, self.start(make, job.number), attempt=starts))
                    yield from records
        finally:
            for job in [*idle, *busy]:
                job.remote.stop()


class _Process(Remote):
    """A worker in a process of its own. `pending` is our end of the pipe to it."""

    def __init__(self, make: MakeWorker, device: torch.device) -> None:
        spawn = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
        self.pending, theirs = spawn.Pipe()
        arguments = (theirs, make, device, torch.get_num_threads())
        self._process = spawn.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def send(self, cell: Cell) -> None:
        """Start on a cell; that the process is dead shows when its answer is waited for."""
        with suppress(OSError):
            self.pending.send(cell)

    def answer(self) -> list[Record]:
        """The records of the cell. Raises WorkerLostError."""
        try:
            records: list[Record] = self.pending.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            self._process.join(10)
            code = self._process.exitcode or 0
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise WorkerLostError(f"the worker process died ({how}); was there enough memory?") from None
        return records

    def stop(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.join()
        self.pending.close()


def _serve(pipe: Connection, make: MakeWorker, device: torch.device, threads: int) -> None:
    """A worker process: answer cells until the run is over, or gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which then stops its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    worker = make(device)
    with suppress(EOFError, OSError):
        pipe.send([])
        while True:
            pipe.send(list(worker.run(pipe.recv())))


def _end_with_parent() -> None:
    """A cell that hangs must not outlive a run that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@dataclass(frozen=True)
class Processes(Remotes):
    """Worker processes on this machine; they share its GPUs in turn."""

    def start(self, make: MakeWorker, number: int) -> Remote:
        """Start a process."""
        gpu = self.device.type == "cuda"
        device = torch.device("cuda", number % torch.cuda.device_count()) if gpu else self.device
        return _Process(make, device)

    def wait(self, pending: list[Any], seconds: float) -> list[Any]:
        """Those pipes that hold an answer, or whose process is dead."""
        return wait(pending, seconds)


class _Actor(Remote):
    """A worker that is a Ray actor. `pending` is the reference of its answer."""

    def __init__(self, make: MakeWorker, device: torch.device) -> None:
        import ray

        threads = torch.get_num_threads()
        self._ray: Any = ray
        unit = self._ray.remote(**{"num_gpus" if device.type == "cuda" else "num_cpus": 1})
        self._actor = unit(_RayWorker).remote(make, device, threads, str(Path.cwd()))
        self.pending = self._actor.ready.remote()

    def send(self, cell: Cell) -> None:
        """Start on a cell."""
        self.pending = self._actor.run.remote(cell)

    def answer(self) -> list[Record]:
        """The records of the cell. Raises WorkerLostError."""
        try:
            records: list[Record] = self._ray.get(self.pending)
        except self._ray.exceptions.RayError as error:
            raise WorkerLostError(f"the Ray worker was lost ({type(error).__name__}: {str(error)[:300]})") from None
        return records

    def stop(self) -> None:
        """Kill the actor."""
        self._ray.kill(self._actor)


class _RayWorker:
    """What runs inside of a Ray actor: one Worker, and so one load of each network's weights."""

    def __init__(self, make: MakeWorker, device: torch.device, threads: int, folder: str) -> None:
        with suppress(OSError):  # relative paths mean what they mean to the run, where its folder is shared
            os.chdir(folder)
        torch.set_num_threads(threads)
        self.worker = make(device)

    def ready(self) -> list[Record]:
        """Nothing, once the worker is there."""
        return []

    def run(self, cell: Cell) -> list[Record]:
        """The records of one cell."""
        return list(self.worker.run(cell))


@dataclass(frozen=True)
class RayCluster(Remotes):
    """Ray actors, each on one GPU (or one CPU core of a cluster without), of a cluster or of this machine."""

    def start(self, make: MakeWorker, number: int) -> Remote:
        """Start an actor, wherever the cluster has room."""
        return _Actor(make, self.device)

    def wait(self, pending: list[Any], seconds: float) -> list[Any]:
        """The first answer that has come, or never will."""
        import ray

        return list(ray.wait(pending, timeout=seconds)[0])


def _local(device: str, workers: int | None, timeout: float | None, address: str | None) -> Executor:
    if address is not None:
        raise InputError("--ray-address goes with --executor ray")
    chosen = pick_device(device)
    if workers in (None, 1) and timeout is None:
        return InProcess(chosen)
    return Processes(chosen, workers or 1, timeout)


def _ray(device: str, workers: int | None, timeout: float | None, address: str | None) -> Executor:
    try:
        import ray
    except ImportError:
        raise InputError('--executor ray needs Ray: pip install "benchsr[ray]"') from None
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, include_dashboard=None if address else False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(f"--ray-address {address}: no Ray cluster answers there ({error})") from None
    cluster: Any = ray  # untyped, where Ray is installed at all
    resources: dict[str, float] = cluster.cluster_resources()
    chosen = pick_device(device, has_cuda=resources.get("GPU", 0) >= 1)
    return RayCluster(chosen, workers or int(resources["GPU" if chosen.type == "cuda" else "CPU"]), timeout)


EXECUTORS: Registry[Callable[[str, int | None, float | None, str | None], Executor]] = Registry(
    "executor", {"local": _local, "ray": _ray}
)


def load_executor(
    name: str = "local",
    device: str = "auto",
    workers: int | None = None,
    timeout: float | None = None,
    address: str | None = None,
) -> Executor:
    """The executor "local" or "ray" on `device` ("auto", "cpu", "cuda").

    `workers`: how many cells at a time; by default 1 locally, and as many as Ray has GPUs (or cores). `timeout`:
    seconds for one cell, after which its worker is killed and its evaluations fail. `address`: of a Ray cluster, as
    `ray.init` takes it; by default one is started on this machine. Raises InputError, or UnknownIdError.
    """
    if workers is not None and workers < 1:
        raise InputError(f"--workers must be at least 1; got {workers}")
    if timeout is not None and not timeout > 0:
        raise InputError(f"--cell-timeout must be positive; got {timeout}")
    return EXECUTORS[name](device, workers, timeout, address)
