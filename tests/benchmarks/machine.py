"""What a machine computes with: part of every measurement."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

CPUINFO = Path("/proc/cpuinfo")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16", "i8mm")
"""Instruction sets of x86 and ARM that say how fast float32 and bfloat16 are, as /proc/cpuinfo names them."""


def machine(cpu: str) -> dict[str, Any]:
    """The device that computes, and versions; not the machine's name."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": 1,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "flags": cpu_flags(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def cpu_flags(cpuinfo: Path = CPUINFO) -> list[str]:
    """Those of `FLAGS` that the CPU has; none where nobody says."""
    said = _first(cpuinfo, "flags", "Features").split()
    return [flag for flag in FLAGS if flag in said]


def model_name(cpuinfo: Path = CPUINFO) -> str:
    """The CPU's name."""
    return _first(cpuinfo, "model name") or platform.machine()


def _first(cpuinfo: Path, *names: str) -> str:
    with suppress(OSError):
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in names:
                return value.strip()
    return ""
