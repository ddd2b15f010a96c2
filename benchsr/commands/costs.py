"""What an answer of a model costs: parameters, arithmetic, passes, memory and seconds."""

from __future__ import annotations

import platform
import time
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchsr.base.errors import BenchsrError, InputError
from benchsr.defences.table import deploy
from benchsr.models.cards import Card
from benchsr.models.network import load_network

SIDE = 64
"""LR side, in pixels, that costs are stated for."""

RUNS, ENOUGH = 5, 1.0
"""An answer is timed up to so many times, or until so many seconds have passed; the median counts."""


@dataclass(frozen=True)
class Costs:
    """A model's costs for one LR image of `lr_side` x `lr_side` pixels; None, with a `reason`, where not to be had.

    `macs_pass` are the multiply-accumulates of convolutions and matrix products of one forward pass (half of what
    torch's FlopCounterMode counts); interpolation, normalisation and activations do not count. `passes` make an
    answer, whose own are `macs`: the draws of a smoothed model wherever it smooths, what another defence asks of the
    network, else 1. `peak_bytes` is the most that all tensors alive at once hold, weights and input included, scratch
    space of kernels not: the same on every machine of a kind. `seconds` is what an answer took on `machine`, and
    nowhere else.
    """

    model: str
    lr_side: int
    parameters: int | None = None
    macs_pass: int | None = None
    passes: int | None = None
    macs: int | None = None
    peak_bytes: int | None = None
    seconds: float | None = None
    machine: str = ""
    reason: str = ""


class PeakMemory(TorchDispatchMode):
    """While active, `peak` is the largest sum of bytes of tensors that were made in here and alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self.alive = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        self.peak = max(self.peak, self.alive)
        return result

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were there before."""
        for tensor in tensors:
            self._note(tensor.untyped_storage())

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.alive += size
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


def costs(card: Card, side: int = SIDE, device: str | torch.device = "cpu") -> Costs:
    """The costs of a card's model for an LR image of `side` x `side` pixels, measured here.

    Raises InputError for a side below 1, and what `load_network` raises.
    """
    if side < 1:
        raise InputError(f"costs need an LR side of at least 1 pixel; got {side}")
    network = load_network(card, device)
    model = deploy(card, _most_asked(card), network)
    lr = torch.full((1, 3, side, side), 0.5, device=device)
    single, whole, memory = FlopCounterMode(display=False), FlopCounterMode(display=False), PeakMemory()
    passes = list[int]()
    with torch.no_grad():
        with single:
            network(lr)
        counting = network.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
        with whole, memory:
            memory.hold([*network.parameters(), *network.buffers(), lr])
            model(lr)
        counting.remove()
        seconds = _seconds(model, lr)
    return Costs(
        card.id,
        side,
        parameters=sum(p.numel() for p in network.parameters()),
        macs_pass=single.get_total_flops() // 2,
        passes=sum(passes),
        macs=whole.get_total_flops() // 2,
        peak_bytes=memory.peak,
        seconds=seconds,
        machine=_machine(lr.device),
    )


def cost_table(cards: Iterable[Card], side: int = SIDE, device: str | torch.device = "cpu") -> Iterator[Costs]:
    """The costs of each card; a row with a reason for a model that cannot be had here, or that fails."""
    for card in cards:
        try:
            yield costs(card, side, device)
        except BenchsrError as error:
            yield Costs(card.id, side, reason=" ".join(str(error).split()))


def _most_asked(card: Card) -> str:
    """The threat against which it smooths most, where that differs from threat to threat."""
    sigma = card.smoothing.sigma if card.smoothing else 0.0
    return max(sigma, key=lambda threat: sigma[threat], default="clean") if isinstance(sigma, dict) else "clean"


def _seconds(model: nn.Module, lr: Tensor) -> float:
    taken: list[float] = []
    while len(taken) < RUNS and sum(taken) < ENOUGH:
        started = time.perf_counter()
        model(lr)
        if lr.device.type == "cuda":
            torch.cuda.synchronize(lr.device)
        taken.append(time.perf_counter() - started)
    return median(taken)


def _machine(device: torch.device) -> str:
    threads = torch.get_num_threads()
    on_cpu = f"CPU, {threads} thread{'s' * (threads != 1)}"
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else on_cpu
    return f"{what}, {platform.system()} {platform.machine()}, torch {torch.__version__}"
