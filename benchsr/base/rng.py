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


class Seeded(Randomised):
    """A network that is random by design, made repeatable: what torch draws depends on image and purpose alone.

    Images go through `network` one by one, each after torch's generator was seeded from `seed`, its id and the purpose;
    the caller's generator stays as it was. What draws from elsewhere (numpy, Python) stays random, and is refused.

    Examples:
        >>> import benchsr, torch
        >>> x, network = torch.ones(1, 3, 8, 8), benchsr.Seeded(torch.nn.Dropout(0.5))
        >>> bool((network(x) == network(x)).all())
        True
    """

    def __init__(self, network: nn.Module, seed: int = 0) -> None:
        super().__init__()
        self.network = network
        self.seed = seed
        self.train(network.training)

    def extra_repr(self) -> str:
        """The seed, which is part of what the network is."""
        return f"seed={self.seed}"

    def forward(self, x: Tensor, ids: Sequence[str] | None = None, purpose: str = "evaluation-0") -> Tensor:
        """SR of `x` (N, 3, h, w)."""
        ids = [str(i) for i in range(len(x))] if ids is None else ids
        answers = []
        for image, sample_id in zip(x, ids, strict=True):
            with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
                torch.manual_seed(generator(self.seed, sample_id, purpose).initial_seed())
                answers.append(self.network(image[None]))
        return torch.cat(answers)
