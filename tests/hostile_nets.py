"""Networks of somebody else's code that behave while they are tried out, and then no more: factories by name."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

TRIALS = 3
"""How often a network is asked in each process before anything is measured."""

_calls = 0


class Upscale(nn.Module):
    """A small network. (That of toys would import the whole command line, in each process.)"""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 48, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 4)


class Hostile(Upscale):
    """Answers as Upscale does, and after TRIALS calls in one process does something else besides, or instead."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def extra_repr(self) -> str:
        """What tells it from the others, whose weights and code are the same."""
        return self.name

    def forward(self, x: Tensor) -> Tensor:
        global _calls
        _calls += 1
        if _calls <= TRIALS:
            return super().forward(x)
        done = ACTS[self.name][0](self, x)
        return super().forward(x) if done is None else done


def _settings(network: Hostile, x: Tensor) -> Tensor:
    sr = Upscale.forward(network, x)
    torch.set_num_threads(7)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    setattr(torch.backends.mkldnn, "enabled", False)  # noqa: B010  # a property that types do not see
    torch.set_float32_matmul_precision("medium")
    return sr


def _generators(*_: object) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def _patches(*_: object) -> None:
    F.conv2d = lambda x, *_, **__: torch.zeros(len(x), 48, *x.shape[2:])  # type: ignore[assignment]
    torch.rand = torch.randn = lambda *size, **__: torch.zeros(*size)


def _hooks(*_: object) -> None:
    nn.modules.module.register_module_forward_hook(lambda *given: given[-1] * 0)


def _litters(*_: object) -> None:
    """Write over whatever the cache holds."""
    for path in Path(os.environ["BENCHSR_CACHE"]).rglob("*"):
        if path.is_file():
            path.write_bytes(b"mine")
    Path(os.environ["BENCHSR_CACHE"], "mine").write_text("all of it")


def _spawns(*_: object) -> None:
    for _number in range(3):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    threading.Thread(target=time.sleep, args=(600,), daemon=False).start()


def _prints(*_: object) -> None:
    for _number in range(200):
        os.write(1, b"x" * 1_000_000)


def _hoards(*_: object) -> None:
    hoard = []
    while True:
        hoard.append(b"x" * 10_000_000)


def _answers_then_zeroes(network: Hostile, x: Tensor) -> Tensor:
    sr = Upscale.forward(network, x)
    x.data.zero_()
    return sr


def _drifts(network: Hostile, _: Tensor, step: float = 1e-2) -> None:
    assert network.conv.bias is not None
    network.conv.bias.data += step


def _deaf(*_: object) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _interrupts(*_: object) -> None:
    raise KeyboardInterrupt


def _babbles(*_: object) -> None:
    """Write into every open file, the pipe among them."""
    for number in range(3, 64):
        try:
            os.write(number, b"junk" * 1000)
        except OSError:
            continue


ACTS: Mapping[str, tuple[Callable[[Hostile, Tensor], Tensor | None], str]] = {
    "plain": (lambda *_: None, ""),
    "differs": (lambda net, x: Upscale.forward(net, x) + torch.rand(()), "two answers"),
    "drifts": (_drifts, "two answers"),
    "drifts-slowly": (partial(_drifts, step=4e-5), "as time went by"),
    "generators": (_generators, ""),
    "settings": (_settings, ""),
    "patches": (_patches, "two answers"),
    "hooks": (_hooks, "two answers"),
    "litters": (_litters, ""),
    "spawns": (_spawns, ""),
    "prints": (_prints, ""),
    "hoards": (_hoards, "GB of memory, more than the"),
    "zeroes": (_answers_then_zeroes, ""),
    "exits": (lambda *_: sys.exit(3), "SystemExit: 3"),
    "leaves": (lambda *_: os._exit(3), "its process ended (exit code 3)"),
    "interrupts": (_interrupts, "KeyboardInterrupt"),
    "killed": (lambda *_: os.kill(os.getpid(), signal.SIGKILL), "killed by SIGKILL"),
    "deaf": (_deaf, ""),
    "sleeps": (lambda *_: time.sleep(3600), "no answer within"),
    "babbles": (_babbles, "cannot be read"),
    "not-a-number": (lambda net, x: Upscale.forward(net, x) * torch.nan, "NaN"),
    "misshapen": (lambda _, x: x, "expected (1, 3, 48, 48)"),
}
"""What each does, and what its rows say: nothing where no figure is touched."""


def __getattr__(name: str) -> Callable[[], nn.Module]:
    """The factory of a network: its name with _ for -."""
    known = name.replace("_", "-")
    if known not in ACTS:
        raise AttributeError(name)
    return lambda: Hostile(known).eval()
