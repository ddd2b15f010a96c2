"""Mean randomized smoothing: the baseline beside the median, and what it proves."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch
from scipy.special import ndtr, ndtri
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchsr.base.errors import InputError
from benchsr.defences.certificate import failure
from benchsr.defences.smoothing import Smoothed


class Averaged(Smoothed):
    """The per-pixel mean of `network`'s answers, clamped to [0, 1], to `n` draws of x + N(0, sigma^2 I).

    Draws, settings and errors are those of `Smoothed`. The clamp belongs to the defence, since only a bounded answer
    has a certified mean; its gradient is passed straight through, so that it hides nothing from an attack. Gradients
    cost one more pass and the memory of one chunk of draws.
    """

    def forward(self, x: Tensor, ids: Sequence[str] | None = None, purpose: str = "evaluation-0") -> Tensor:
        """Mean SR (N, 3, sh, sw), in [0, 1], of `x` (N, 3, h, w) in [0, 1]."""
        ids = [str(i) for i in range(len(x))] if ids is None else ids
        return torch.stack([self._mean(image, i, purpose) for image, i in zip(x, ids, strict=True)])

    def _mean(self, x: Tensor, sample_id: str, purpose: str) -> Tensor:
        sums = [checkpoint(self._sum, noisy, use_reentrant=False) for _, noisy in self.noisy(x, sample_id, purpose)]
        return torch.stack(sums).sum(0) / self.n

    def _sum(self, noisy: Tensor) -> Tensor:
        sr: Tensor = self.network(noisy)
        return (sr + (sr.clamp(0, 1) - sr).detach()).sum(0)


def mean_bounds(
    draws: Tensor, sigma: float, radius: float, confidence: float = 0.95, *, simultaneous: bool = False
) -> tuple[Tensor, Tensor]:
    """Bounds (lower, upper), each (3, H, W) float64 in [0, 1], of the exact mean of clamped answers.

    They hold for every change of the LR of l2 norm at most `radius`: Phi(Phi^-1(m) -+ radius / sigma) (Salman et al.
    2019, Lemma 2), with m bounded from `draws` (n, 3, H, W), n >= 2, by the empirical Bernstein inequality (Maurer &
    Pontil 2009, Theorem 4), which holds for continuous answers in [0, 1] and, unlike Hoeffding's, is narrow where they
    vary little. The mean of a few draws, which a deployed model returns, is not covered. `confidence` is that of each
    bound, or with `simultaneous` of all. Raises InputError for settings out of range.
    """
    if not (sigma > 0 and radius >= 0) or len(draws) < 2:
        raise InputError(f"need sigma > 0, radius >= 0 and 2 draws; got {sigma}, {radius}, {len(draws)}")
    n, allowed = len(draws), failure(confidence, draws[0].numel() if simultaneous else None)
    answers = draws.clamp(0, 1).double()
    margin = (2 * answers.var(0) * log(2 / allowed) / n).sqrt() + 7 * log(2 / allowed) / (3 * (n - 1))
    mean, move = answers.mean(0), radius / sigma
    ends = [((mean + side * margin).clamp(0, 1), side * move) for side in (-1, 1)]
    lower, upper = (torch.from_numpy(ndtr(ndtri(m.cpu().numpy()) + by)).to(draws.device) for m, by in ends)
    return lower, upper
