"""Random draws that depend on the image and the purpose alone, never on batch, order, device or machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def generator(seed: int, sample_id: str, purpose: str) -> torch.Generator:
    """Return a CPU generator for one (seed, image, purpose).

    Draws are always made on the CPU, where torch's stream is the same on every machine, and moved to the device after.
    """
    digest = hashlib.sha256(f"{seed}\x1f{sample_id}\x1f{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def generators(seed: int, ids: Sequence[str], purpose: str) -> list[torch.Generator]:
    """One `generator` per image of a batch."""
    return [generator(seed, sample_id, purpose) for sample_id in ids]


def normal_like(x: Tensor, gens: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise of the shape, dtype and device of the batch `x` (N, ...), row i drawn from `gens[i]`."""
    rows = [torch.randn(x.shape[1:], generator=g) for g in gens]
    return torch.stack(rows).to(x)


def uniform_like(x: Tensor, gens: Sequence[torch.Generator]) -> Tensor:
    """Noise uniform on [-1, 1) of the shape, dtype and device of the batch `x` (N, ...), row i from `gens[i]`."""
    rows = [torch.rand(x.shape[1:], generator=g) * 2 - 1 for g in gens]
    return torch.stack(rows).to(x)


class Randomised(nn.Module):
    """A model that draws noise of its own: `forward(x, ids=None, purpose=...)`.

    Equal ids and purposes draw equal noise, so whoever attacks such a model names a new purpose for every step.
    """
