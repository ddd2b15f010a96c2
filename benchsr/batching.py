"""How many images a network sees at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def row_slices(n: int, device: torch.device, batch_size: int | None = None) -> Iterator[slice]:
    """Cut `n` images into the slices that are evaluated together.

    On the CPU always one image: its convolution kernels round differently for different batch sizes, one flipped
    gradient sign then changes an attack, and larger batches gain nothing there for the networks of this benchmark
    (draws of one image, 21 at once: 1.25 of the time one by one). Elsewhere `batch_size`, or all at once.
    """
    size = 1 if device.type == "cpu" else (batch_size or n)
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
