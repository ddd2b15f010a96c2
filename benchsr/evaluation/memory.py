"""How many images an attack takes at once, and whether it must save memory: planned from a measurement."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from torch import Tensor, nn

from benchsr.metrics.objective import Objective

MOST = 0.8
"""Share of the free memory that is used unless a budget is given."""

HEADROOM = 1.5
"""Peak bytes of an attack step over the bytes kept for backward: docs/performance.md has what was measured.

With glibc's defaults a process may grow beyond that where buffers are small, by about `benchsr.base.heap.SLACK`.
Buffers above 32 MB go back at once.
"""

PROBE_SIDE = 48
"""LR side, in pixels, of the largest image that memory is measured with."""


@dataclass(frozen=True)
class Plan:
    """Images (or draws of one image) at once, and whether backward computes blocks again instead of keeping them."""

    batch_size: int
    checkpoint: bool


def free_bytes(device: torch.device) -> int:
    """Bytes of memory that are free on `device`, what torch holds in reserve there included.

    Of this machine's memory no more than the process's control groups leave it, as in a container or a batch job.
    """
    if device.type != "cuda":
        return int(min(psutil.virtual_memory().available, cgroup_free()))
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + reserve


class _Group(NamedTuple):
    """How a version of Linux's control groups names a group's limit, its use, and what of that can be taken back."""

    limit: str
    used: str
    reclaimable: str


_GROUPS = {
    "": _Group("memory.max", "memory.current", "inactive_file"),
    "memory": _Group("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""By the controller that /proc/self/cgroup names: none in version 2, "memory" in version 1."""


def cgroup_free(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Bytes that the control groups of this process still allow it; infinity where there is no limit.

    `own` says which group is its own, a line for each hierarchy: number, controllers, path. A group's limit binds
    those below it. In a container the path may be the host's, and then only the top of `root` is there.
    """
    groups = ((folder, group) for folder, name in own_groups(root, own) if (group := _GROUPS.get(name)))
    return min((_group_free(folder, group) for folder, group in groups), default=math.inf)


def own_groups(root: Path, own: Path) -> Iterator[tuple[Path, str]]:
    """The folders of this process's control groups, the inner ones first, each with its controller ("": version 2)."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in lines:
        for name in controllers.split(","):
            top = root / name
            inner = top / path.strip("/")
            yield from ((folder, name) for folder in (inner, *inner.parents) if folder.is_relative_to(top))


def _group_free(folder: Path, group: _Group) -> float:
    try:
        limit = float((folder / group.limit).read_text())  # "max": none
        used = float((folder / group.used).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return math.inf
    return max(0.0, limit - used + float(stat.get(group.reclaimable, 0)))


def bytes_per_pixel(network: nn.Module, objective: Objective, device: torch.device, side: int = PROBE_SIDE) -> float:
    """Bytes per LR pixel that one gradient of `objective` through `network` keeps, measured on side x side pixels.

    Counted are the distinct buffers, apart from parameters, that autograd saves in one forward pass.
    """
    kept: dict[int, int] = {}

    def count(saved: Tensor) -> Tensor:
        if not isinstance(saved, nn.Parameter):
            kept[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    lr = torch.full((1, 3, side, side), 0.5, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved):
        sr = network(lr)
        loss = objective.bind(torch.full_like(sr, 0.5))(sr)  # the graph lives until all is counted: no buffer is reused
    del loss
    return sum(kept.values()) / side**2


def plan_batch(per_pixel: float, pixels: int, batch_size: int, budget: float) -> Plan:
    """At most `batch_size` images of `pixels` LR pixels within `budget` bytes; blocks are kept where one image fits.

    An image that does not fit is attacked whole all the same, alone and with its blocks computed again.
    """
    fitting = int(budget / (HEADROOM * per_pixel * pixels)) if per_pixel else batch_size
    return Plan(batch_size=max(1, min(batch_size, fitting)), checkpoint=fitting < 1)
