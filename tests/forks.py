"""Commands in processes of their own without their seconds of imports: forked from a process that has done them.

    python tests/forks.py FOLDER [COMMAND ...]

runs each `benchsr COMMAND` in FOLDER, so that all is imported and has been used once; then it reads a request (JSON) a
line, forks, answers with the child's process id and, once it has ended, with its exit code and CPU seconds.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

MARK = "BENCHSR_TRIAL"
"""In the environment of every process that a command starts, so that none is overlooked."""


@dataclass
class Command:
    """A command that runs, or has run. Its process leads a group, so that a terminal's Ctrl-C can be played."""

    pid: int
    said: Path
    mark: str
    _answers: IO[bytes]
    cpu_seconds: float = 0.0

    @property
    def ended(self) -> bool:
        try:
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    @property
    def spent(self) -> float:
        """CPU seconds up to now, of its workers too."""
        total = 0.0
        with suppress(OSError, psutil.Error):
            # psutil would look at every process for its parent, and so take more time than what is watched
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
            for pid in (self.pid, *map(int, children)):
                total += sum(psutil.Process(pid).cpu_times()[:2])
        return total

    def wait(self) -> int:
        """The exit code; negative: the signal that ended it."""
        code, seconds = self._answers.readline().split()
        self.cpu_seconds = float(seconds)
        return int(code)

    def stop(self, number: signal.Signals) -> None:
        """Ctrl-C reaches all processes of a terminal, other signals the one that they are sent to."""
        with suppress(ProcessLookupError):
            (os.killpg if number is signal.SIGINT else os.kill)(self.pid, number)

    @property
    def error(self) -> str:
        return self.said.with_suffix(".err").read_text(errors="replace")

    def left_behind(self, seconds: float = 30.0) -> list[str]:
        """What of it still runs, after it was given some time to notice."""
        until = time.monotonic() + seconds
        while (found := [p for p in psutil.process_iter() if self._is_ours(p)]) and time.monotonic() < until:
            time.sleep(0.1)
        names = []
        for process in found:
            with suppress(psutil.Error):
                names.append(" ".join(process.cmdline())[:80])
        return names

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return os.getpgid(process.pid) == self.pid or process.environ().get(MARK) == self.mark
        except (psutil.Error, ProcessLookupError):
            return False


class Forks:
    """Starts commands, one at a time."""

    def __init__(self, server: subprocess.Popen[bytes], folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._count = 0

    def start(self, command: str, folder: Path, prepare: str = "", **settings: Any) -> Command:
        """`benchsr COMMAND` in `folder`, once its process has called `prepare` ("module:function") with `settings`."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._count += 1
        said, mark = self._folder / f"said-{self._count}", f"{self._server.pid}-{self._count}"
        request = {"command": command.split(), "folder": str(folder), "said": str(said), "mark": mark}
        hook = {"prepare": prepare, "settings": settings}
        self._server.stdin.write(json.dumps({**request, **hook}).encode() + b"\n")
        self._server.stdin.flush()
        return Command(int(self._server.stdout.readline()), said, mark, self._server.stdout)


@contextmanager
def forks(folder: Path, said: Path, warm: Sequence[str], environment: Mapping[str, str]) -> Iterator[Forks]:
    """A server that has run the commands `warm` in `folder`; its children print into files of the folder `said`."""
    one_thread = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200", "NO_COLOR": "1"}
    command = [sys.executable, str(Path(__file__)), str(folder), *warm]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, env={**os.environ, **one_thread, **environment}) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n", "the server could not run its commands"
        yield Forks(server, said)
        assert server.stdin is not None
        server.stdin.close()


def _call(command: Sequence[str]) -> int:
    """Run a command of benchsr; its exit code."""
    sys.argv = ["benchsr", *command]
    try:
        importlib.import_module("benchsr.cli").main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def _serve() -> dict[str, Any] | None:
    """Answer requests; in a child, return its own."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.chdir(sys.argv[1])
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        for command in sys.argv[2:]:
            assert _call(command.split()) == 0, command
    gc.collect()
    gc.freeze()  # what children share is not to be looked through, and so copied, by each of them
    answers.write("ready\n")
    for line in iter(sys.stdin.readline, ""):
        request: dict[str, Any] = json.loads(line)
        pid = os.fork()
        if not pid:
            answers.close()
            return request
        answers.write(f"{pid}\n")
        _, status, used = os.wait4(pid, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)} {used.ru_utime + used.ru_stime:.3f}\n")
    return None


def _become(request: Mapping[str, Any]) -> None:
    """The command that was asked for."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.setpgrp()
    os.environ[MARK] = request["mark"]
    said = Path(request["said"])
    for number, target in {0: Path(os.devnull), 1: said.with_suffix(".out"), 2: said.with_suffix(".err")}.items():
        opened = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(request["folder"])
    # Its own lock is one for all that are forked here: a child killed while it draws a bar would keep it from the rest.
    importlib.import_module("tqdm").tqdm.set_lock(threading.RLock())
    if request["prepare"]:
        module, _, name = request["prepare"].partition(":")
        getattr(importlib.import_module(module), name)(**request["settings"])
    code = _call(request["command"])
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(code)  # without the second that Python takes to forget all that is imported


if __name__ == "__main__" and (asked := _serve()) is not None:
    _become(asked)
