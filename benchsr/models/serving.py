"""The program at the other end of `benchsr.models.isolated`: it runs code that is not ours and asks its network.

It trusts what it is told, and nobody trusts what it answers.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from contextlib import nullcontext, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchsr.base.errors import BenchsrError, InputError, ModelError
from benchsr.base.inference import checkpoint_blocks, full_float32
from benchsr.base.inner import inner_gradients
from benchsr.models.isolated import COOKIE, kill_marked, receive, send
from benchsr.models.live import live
from benchsr.models.network import load_network, network_bytes


def network_of(factory: str) -> nn.Module:
    """What package.module:factory, called without arguments, returns. Raises InputError or ModelError."""
    module, _, path = factory.partition(":")
    if str(Path.cwd()) not in sys.path:  # as `python -m` has it
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: object = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever the module's own code raises
        raise InputError(f"{factory} cannot be imported ({type(error).__name__}: {error})") from error
    if not callable(found):
        raise InputError(f"{factory} is no callable ({type(found).__name__}); it must be one without arguments")
    try:
        network = found()
    except Exception as error:
        raise ModelError(f"{factory} failed ({type(error).__name__}: {error})") from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"{factory} returned a {type(network).__name__}, not a network (torch.nn.Module)")
    return network


class _Server:
    """A network, and the graph of its last answer."""

    def __init__(self, about: dict[str, Any]) -> None:
        card = live(about["row"], network_of(about["factory"]), about["scale"])
        self.facts = {"key": card._key, "random": card.random, "bytes": network_bytes(card)}
        self.device = torch.device(about["device"])
        self.network = load_network(card, self.device)
        self.number = 0
        self.graph: tuple[int, Tensor, Tensor] | None = None

    def answer(self, said: dict[str, Any], x: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The network's answer to `x`, and what to remember of it."""
        self.graph = None
        kept: dict[int, int] = {}

        def count(saved: Tensor) -> Tensor:
            if not isinstance(saved, nn.Parameter):
                kept[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
            return saved

        leaf = x.to(self.device).requires_grad_(bool(said.get("grad")))
        how = () if said.get("purpose") is None else (said["ids"], said["purpose"])
        autocast = said.get("autocast")
        checkpoint_blocks(self.network, bool(said.get("checkpoint")))
        with (
            torch.set_grad_enabled(leaf.requires_grad),
            inner_gradients() as inner,
            torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved),
            torch.autocast(self.device.type, getattr(torch, autocast)) if autocast else nullcontext(),
        ):
            sr: Tensor = self.network(leaf, *how)
        told: dict[str, Any] = {"inner": bool(inner)}
        if leaf.requires_grad:
            self.number += 1
            self.graph = self.number, leaf, sr
            told |= {"number": self.number, "kept": sum(kept.values()), "differentiable": sr.requires_grad}
        return told, {"sr": sr}

    def gradient(self, said: dict[str, Any], x: Tensor, gradient: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The gradient at `x`, through the graph that is kept, or one that is made again."""
        if self.graph is None or self.graph[0] != said["number"]:
            self.answer({**said, "grad": True}, x)
        assert self.graph
        (_, leaf, sr), self.graph = self.graph, None
        return {}, {"gradient": torch.autograd.grad(sr, leaf, gradient.to(sr))[0]}


class _Collector(logging.Handler):
    """Keeps what is logged until the next answer."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.messages.append(record.getMessage())

    def taken(self) -> list[str]:
        """What there is, and no more of it."""
        found, self.messages = self.messages[:5], []
        return found


def main(pipe_number: int, parent: int) -> None:
    """Make the network that the first message tells of, and answer until the parent is gone."""
    threading.Thread(target=_end_with, args=(parent, os.environ[COOKIE]), daemon=True).start()
    with suppress(OSError):  # where memory runs out, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    pipe = Connection(socket.socket(fileno=pipe_number).detach())
    logged = _Collector()
    logging.getLogger("benchsr").addHandler(logged)
    server: _Server | None = None
    with suppress(EOFError, OSError):
        send(pipe, {})  # all is imported; from here on memory is the stranger's
        while True:
            said, tensors = receive(pipe)
            told: dict[str, Any]
            answers: dict[str, Tensor] = {}
            try:
                torch.set_num_threads(1)
                with full_float32():
                    if server is None:
                        server = _Server(said)
                        told = server.facts
                    else:
                        told, answers = getattr(server, said.pop("do"))(said, **tensors)
            except BaseException as error:  # sys.exit() and Ctrl-C are what a stranger's code may raise too
                text = str(error) if isinstance(error, BenchsrError) else f"{type(error).__name__}: {error}"
                told = {"error": text[:1000], "kind": type(error).__name__}
            send(pipe, {**told, "warnings": logged.taken()}, **answers)


def _end_with(parent: int, token: str) -> None:
    """End this process, and all that it started, once the parent is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    kill_marked(token)
    os.killpg(0, signal.SIGKILL)
