"""Which numbers a machine computes fast with: bfloat16 where its units have it, else float32."""

from __future__ import annotations

import time
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F

from benchsr.base.errors import InputError

Precision = Literal["fp32", "bf16"]

TRIAL = (1, 32, 24, 24)
"""Shape of what the trial convolves: a layer of an RRDB generator at a small LR image."""


@cache
def bf16_speedup(device: torch.device) -> float:
    """How many times as fast as float32 `device` computes a convolution in bfloat16: about 2, or a tenth in emulation.

    Asked of torch for a GPU; a CPU is tried, for about 50 ms.
    """
    if device.type == "cuda":
        return 2.0 if torch.cuda.is_bf16_supported(including_emulation=False) else 0.1
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.ones(TRIAL, dtype=dtype), torch.ones((32, 32, 3, 3), dtype=dtype)
        F.conv2d(x, weight, padding=1)
        started = time.perf_counter()
        for _ in range(3):
            F.conv2d(x, weight, padding=1)
        seconds.append(time.perf_counter() - started)
    return seconds[0] / seconds[1]


def pick_precision(name: str, device: torch.device) -> Precision:
    """The precision "fp32", "bf16", or for "auto" bf16 where `device` gains by it. Raises InputError for others."""
    if name == "auto":
        return "bf16" if bf16_speedup(device) > 1 else "fp32"
    if name not in ("fp32", "bf16"):
        raise InputError(f"unknown precision {name!r}; use auto, fp32 or bf16")
    return "bf16" if name == "bf16" else "fp32"
