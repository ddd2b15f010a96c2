"""Freed memory, given back to the system before much of it lies idle.

torch aligns its buffers by posix_memalign, whose remainders glibc gives to small objects that live as long as a graph:
between these a freed buffer has no room for another of its size, and a forward pass takes new memory all the time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress

import psutil
from torch import Tensor

SLACK = 160 << 20
"""Bytes by which the process may grow before freed ones are given back.

They must be fetched again, which takes time: PGD through an RRDB-23 at 48 x 48 grows by 176 instead of 240 to 270 MB,
and takes 4% longer; what keeps less never comes so far.
"""

LOOK = 2 << 20
"""Bytes that are kept for backward between two looks at the process's size."""


def malloc_trim() -> Callable[[int], int] | None:
    """glibc's function that gives all freed memory back; None with another C library."""
    with suppress(AttributeError, OSError, TypeError):  # Windows has no handle of the process itself
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
        return trim
    return None


class Heap:
    """The memory of this process. `trim` gives freed memory back, `size` says how many bytes are resident."""

    def __init__(self, trim: Callable[[int], int] | None, size: Callable[[], int]) -> None:
        self._trim, self._size = trim, size
        self._kept = 0
        self._least: int | None = None

    def keep(self, kept: Tensor) -> None:
        """Take note of what has just been kept for backward."""
        if self._trim is None or kept.device.type != "cpu":
            return
        self._kept += kept.nbytes
        if self._kept < LOOK:
            return
        self._kept, now = 0, self._size()
        if self._least is not None and now > self._least + SLACK:
            self._trim(0)
            self._least = self._size()
        else:
            self._least = min(self._least or now, now)


HEAP = Heap(malloc_trim(), lambda: int(psutil.Process().memory_info().rss))
