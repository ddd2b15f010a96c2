"""Which numbers a machine computes fast with: bfloat16 where its units have it, else float32."""

from __future__ import annotations

import math
import time
from functools import cache
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F

from benchsr.base.errors import InputError

Precision = Literal["fp32", "bf16"]

TRIAL = (1, 64, 48, 48)
"""Shape of what the trial convolves: the first layer of an RRDB block at LR 48x48. In smaller ones the overhead of a
call hides what the arithmetic takes, and a machine with bfloat16 units looks like one without."""

WEIGHT = (32, 64, 3, 3)
"""Shape of the kernels that it is convolved with."""

ROUNDS = 8
"""Convolutions in each precision: about 50 ms in all where bfloat16 is emulated."""


@cache
def bf16_speedup(device: torch.device) -> float:
    """How many times as fast as float32 `device` computes a convolution in bfloat16: 2 to 4, or a tenth in emulation.

    Asked of torch for a GPU; a CPU is tried, for about 50 ms: by turns, on one thread and by the shortest time of each,
    because a trial so short may lose the core to other work, and threads that wait for each other then take a hundred
    times as long.
    """
    if device.type == "cuda":
        return 2.0 if torch.cuda.is_bf16_supported(including_emulation=False) else 0.1
    shortest = {torch.float32: math.inf, torch.bfloat16: math.inf}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _, dtype in product(range(ROUNDS), shortest):
            x, weight = (torch.ones(s, dtype=dtype).to(memory_format=torch.channels_last) for s in (TRIAL, WEIGHT))
            started = time.perf_counter()
            F.conv2d(x, weight, padding=1)
            shortest[dtype] = min(shortest[dtype], time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return shortest[torch.float32] / shortest[torch.bfloat16]


def pick_precision(name: str, device: torch.device) -> Precision:
    """The precision "fp32", "bf16", or for "auto" bf16 where `device` gains by it. Raises InputError for others."""
    if name == "auto":
        return "bf16" if bf16_speedup(device) > 1 else "fp32"
    if name not in ("fp32", "bf16"):
        raise InputError(f"unknown precision {name!r}; use auto, fp32 or bf16")
    return "bf16" if name == "bf16" else "fp32"
