"""A network that code which is not ours makes, in a process of its own: what that code does to torch, to random
generators, to memory or to its output is its own matter. Numbers alone come back, never objects.

The program at the other end of the pipe is `benchsr.models.serving`.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import inf
from multiprocessing.connection import Connection
from typing import IO, Any

import psutil
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.autograd.function import once_differentiable

from benchsr.base.errors import BenchsrError, InputError, ModelError
from benchsr.base.inference import Elsewhere
from benchsr.base.inner import note_inner_gradient
from benchsr.base.pairs import Scale
from benchsr.base.rng import Randomised
from benchsr.models.cards import UNSTATED, Coded

log = logging.getLogger(__name__)

START_SECONDS, ANSWER_SECONDS, STALL_SECONDS = 300.0, 3600.0, 60
"""How long code may take to make a network, and that one for one answer; and how long the pipe may stand still."""

LIVES = 3
"""How often a network may die or hang before no new process is started for it."""

MOST_FREE = 0.8
"""Share of the free memory that a process may take where it is told nothing else."""

MOST_SAID = 1 << 20
"""Bytes of a message beside its tensors."""

COOKIE = "BENCHSR_ISOLATED"
"""An environment variable that whatever the code starts inherits, so that it can be found and ended."""

_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from benchsr.models.serving import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)


def send(pipe: Connection, said: Mapping[str, Any], **tensors: Tensor) -> None:
    """Send a message: what is said, as JSON, and tensors, with how they lie in memory: sums round by that."""
    moved = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    last = [name for name, tensor in moved.items() if tensor.dim() == 4 and not tensor.is_contiguous()]
    pipe.send_bytes(json.dumps({**said, "channels_last": last}).encode())
    pipe.send_bytes(safetensors.torch.save({name: tensor.contiguous() for name, tensor in moved.items()}))


def receive(pipe: Connection, most: int | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The next message, of `most` bytes of tensors. Nothing in it is run. Raises OSError or ValueError."""
    try:
        said: dict[str, Any] = json.loads(pipe.recv_bytes(MOST_SAID))
        tensors = safetensors.torch.load(pipe.recv_bytes(most))
        for name in said.pop("channels_last"):
            tensors[name] = tensors[name].contiguous(memory_format=torch.channels_last)
    except (SafetensorError, ArithmeticError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    return said, tensors


class _Process:
    """The process, and what it printed last. Whatever it started ends with it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        patience = struct.pack("ll", STALL_SECONDS, 0)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, option, patience)
        token = secrets.token_hex(16)
        arguments = [json.dumps(sys.path), str(theirs.fileno()), str(os.getpid())]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno()],
            env=os.environ | {COOKIE: token},
            start_new_session=True,
        )
        theirs.close()
        self.pipe = Connection(ours.detach())
        self.taken: float = inf  # until its imports are done: these are ours
        self._printed: deque[bytes] = deque(maxlen=2)
        threading.Thread(target=_drain, args=(self._process.stdout, self._printed), daemon=True).start()
        self.end = weakref.finalize(self, _end, self._process, token, self.pipe)

    def memory(self) -> int:
        """Bytes that it takes now, with all that it started."""
        taken = 0
        with suppress(psutil.Error):
            root = psutil.Process(self._process.pid)
            for process in [root, *root.children(recursive=True)]:
                with suppress(psutil.Error):
                    taken += process.memory_info().rss
        return taken

    def obituary(self) -> str:
        """How it ended, and its last words."""
        code = 0
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(10)
        how = f"killed by {signal.Signals(-code).name}; was there enough memory?" if code < 0 else f"exit code {code}"
        words = " ".join(b"".join(self._printed).decode(errors="replace").split())[-200:]
        return f"its process ended ({how})" + (f"; it last printed: {words}" if words else "")


def _drain(stream: IO[bytes], printed: deque[bytes]) -> None:
    """Read whatever is printed, and keep the end."""
    with stream:
        while block := os.read(stream.fileno(), 1 << 16):
            printed.append(block)


def _end(process: subprocess.Popen[bytes], token: str, pipe: Connection) -> None:
    """Kill it with all that it started: those of its session, and those that left it but for the cookie."""
    pipe.close()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kill_marked(token)


def kill_marked(token: str) -> None:
    """Kill all other processes that have this cookie."""
    for other in psutil.process_iter():
        with suppress(psutil.Error):
            if other.environ().get(COOKIE) == token and other.pid != os.getpid():
                other.kill()


class Isolated(Elsewhere):
    """The network that `factory` makes, as the row `row`; its process ends with this object.

    `key`, `weight_bytes` and `random` are what `live` finds of it. A process that dies, hangs or takes more than
    `memory` bytes is an error of the answer that was asked for; the next one is asked of a new process, which must make
    the network of the same key.
    """

    def __init__(
        self,
        factory: str,
        row: str,
        scale: Scale,
        device: torch.device,
        memory: float | None = None,
        key: str | None = None,
    ) -> None:
        super().__init__()
        self.row, self.key, self.scale = row, key, scale
        self._about = {"factory": factory, "row": row, "scale": scale, "device": str(device)}
        self._memory = memory or MOST_FREE * psutil.virtual_memory().available
        self._deaths: list[str] = []
        self._process: _Process | None = None
        self._running()

    def _running(self) -> _Process:
        """The process, started where there is none, or no more."""
        if self._process is not None:
            return self._process
        if len(self._deaths) >= LIVES:
            raise ModelError(f"{self._deaths[-1]}; after {LIVES} processes no other one is started")
        self._process = started = _Process()
        try:
            self._ask(None, START_SECONDS, 0)
            started.taken = started.memory()
            said, _ = self._ask(self._about, START_SECONDS, 0)
            if self.key not in (None, said.get("key")):
                raise ModelError(
                    f"{self.row}: {self._about['factory']} makes another network each time it is called; let it make "
                    "one of fixed weights"
                )
            self.key, self.random = str(said["key"]), bool(said["random"])
            self.weight_bytes = int(said["bytes"])
        except BenchsrError:
            started.end()
            self._process = None
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise self._died(f"what its process says cannot be read ({type(error).__name__}: {error})") from None
        started.taken = started.memory()
        return started

    def _ask(
        self, request: Mapping[str, Any] | None, seconds: float, most: int, **tensors: Tensor
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The answer to a request, of `most` bytes at most; to none: that the process is there.

        Raises ModelError, or InputError where the network does.
        """
        process = self._running()
        try:
            if request is not None:
                send(process.pipe, request, **tensors)
            self._wait(process, seconds)
            said, answers = receive(process.pipe, most + MOST_SAID)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise self._died(process.obituary()) from None
        except (OSError, ValueError) as error:
            raise self._died(f"its answer cannot be read ({type(error).__name__}: {error})") from None
        for warning in list(said.get("warnings", []))[:5]:
            log.warning("%s", str(warning)[:300])
        if "error" in said:
            raise (InputError if said.get("kind") == "InputError" else ModelError)(str(said["error"])[:1000])
        return said, answers

    def _wait(self, process: _Process, seconds: float) -> None:
        """Wait for an answer. Raises ModelError where it takes too long, or too much memory."""
        deadline, pause = time.monotonic() + seconds, 0.05
        while not process.pipe.poll(pause):
            pause = min(0.25, 2 * pause)
            if time.monotonic() > deadline:
                raise self._died(f"no answer within {seconds:g} s")
            grown = process.memory() - process.taken
            if grown > self._memory:
                raise self._died(
                    f"it took {grown / 1e9:.1f} GB of memory, more than the {self._memory / 1e9:.1f} GB that it may"
                )

    def _died(self, why: str) -> ModelError:
        if self._process:
            self._process.end()
            self._process = None
        self._deaths.append(f"{self.row}: {why}")
        return ModelError(self._deaths[-1])

    def call(self, x: Tensor, **how: Any) -> tuple[Tensor, dict[str, Any]]:
        """The answer to `x`, and what is said of it."""
        most = 8 * 3 * x.shape[0] * self.scale**2 * x.shape[2] * x.shape[3]
        said, answers = self._ask({"do": "answer", **how}, ANSWER_SECONDS, most, x=x)
        if said.get("inner"):
            note_inner_gradient()
        return self._found(answers, "sr", x), said

    def pull(self, x: Tensor, gradient: Tensor, **how: Any) -> Tensor:
        """The gradient at `x` of the answer to it, weighted by `gradient`."""
        request = {"do": "gradient", **how}
        _, answers = self._ask(request, ANSWER_SECONDS, 8 * x.numel(), x=x, gradient=gradient)
        return self._found(answers, "gradient", x)

    def _found(self, answers: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
        if name not in answers:
            raise ModelError(f"{self.row}: its process answered without {name}")
        return answers[name].to(x.device)

    def forward(self, x: Tensor, ids: Sequence[str] | None = None, purpose: str | None = None) -> Tensor:
        """SR of `x` (N, 3, h, w)."""
        how: dict[str, Any] = {"checkpoint": self.checkpointed, "ids": ids and list(ids), "purpose": purpose}
        if torch.is_autocast_enabled(x.device.type):
            how["autocast"] = str(torch.get_autocast_dtype(x.device.type)).removeprefix("torch.")
        if torch.is_grad_enabled() and x.requires_grad:
            sr: Tensor = _Call.apply(x, self, how)
            return sr
        return self.call(x, **how)[0]


class IsolatedRandomised(Isolated, Randomised):
    """One that draws noise by ids and purpose."""


class _Call(torch.autograd.Function):
    """The network as a function with a gradient. Its process keeps the last answer's graph, or makes it again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, network: Isolated, how: dict[str, Any]) -> Tensor:
        sr, said = network.call(x, grad=True, **how)
        ctx.network, ctx.how, ctx.number = network, how, said.get("number")
        if not said.get("differentiable"):
            ctx.mark_non_differentiable(sr)
        # Stands for what that process keeps, so that memory is planned as for a network in this one.
        ctx.save_for_backward(x, torch.empty(int(said.get("kept", 0)), dtype=torch.uint8, device="meta"))
        return sr

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.network.pull(ctx.saved_tensors[0], gradient, number=ctx.number, **ctx.how), None, None


def isolated(card: Coded, device: torch.device, memory: float | None = None) -> Isolated:
    """The network of a card that code makes. Raises ModelError where that code makes another one than at first."""
    kind = IsolatedRandomised if card.random else Isolated
    return kind(card._factory, card.id, card.factor, device, memory, card._key)


def coded(factory: str, row: str, scale: Scale) -> Coded:
    """The card of the network that `factory` makes: made, and tried out as `live` says, in a process that then ends.

    Raises what `live` raises, InputError where it cannot be imported and ModelError where it fails.
    """
    network = Isolated(factory, row, scale, torch.device("cpu"))
    card = Coded(id=row, title=row, scale=scale, **UNSTATED)
    card._factory, card._name = factory, row
    card._key, card._random, card._bytes = str(network.key), network.random, network.weight_bytes
    return card
