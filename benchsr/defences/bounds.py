"""What smoothing proves of a score: of the median score of single noisy answers, and of the median image's PSNR.

Every bound holds for each change of the LR image of l2 norm at most `radius` and rests on n answers to the clean image
under N(0, sigma^2 I). Chiang et al. 2020, Lemma 1: the percentile p of any scalar of one noisy answer cannot rise above
its percentile Phi(Phi^-1(p) + radius / sigma) on the clean image, nor fall below the mirror image of that. `confidence`
is the probability, over the n answers, that what is said is true.

Of what: `median_score_bound` speaks of the median score of a single-draw model, `median_psnr_bound` of the exact median
image. Neither is the image that a deployed model returns, the median of k draws; `certificate.covering_radius` says how
much further out a bound of the exact median must be taken to hold for that one too.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log10

import torch
from torch import Tensor

from benchsr.base.errors import InputError
from benchsr.defences.certificate import failure, order_statistics, ranks


@dataclass(frozen=True)
class ScoreBound:
    """A guaranteed score, the 1-based rank of the order statistic behind it, and the number of answers.

    Where the answers are too few to guarantee anything (`feasible` is False), `value` says no more than holds in any
    case: -inf for a score's lower bound, +inf for an upper one, and the PSNR of the worst possible image.
    """

    value: float
    rank: int
    n: int

    @property
    def feasible(self) -> bool:
        """Whether the answers suffice to bound anything."""
        return 1 <= self.rank <= self.n


def median_score_bound(
    scores: Tensor, sigma: float, radius: float, confidence: float = 0.95, *, higher_is_better: bool = True
) -> ScoreBound:
    """The worst that the median score of single noisy answers can become, from `scores` (n,), in the scores' unit.

    A lower bound where `higher_is_better` (PSNR, SSIM), else an upper one (LPIPS). One scalar, so no union bound.
    Raises InputError for settings out of range and for NaN among the scores.
    """
    _check(sigma, radius)
    if scores.dim() != 1 or bool(scores.isnan().any()):
        raise InputError(f"scores must be a vector without NaN, one for each noisy answer; got {tuple(scores.shape)}")
    low, high = ranks(len(scores), radius / sigma, failure(confidence))
    rank = low if higher_is_better else high
    return ScoreBound(float(order_statistics(scores[:, None], [rank])), rank, len(scores))


def median_psnr_bound(
    draws: Tensor, hr: Tensor, sigma: float, radius: float, confidence: float = 0.95, *, border: int = 0
) -> ScoreBound:
    """The lowest PSNR in dB that the exact median image can have, from `draws` (n, 3, H, W) and truth `hr` (3, H, W).

    If Q_i bounds the Phi(radius / sigma) percentile of |f_i - y_i|, the median of that distance stays below Q_i under
    every perturbation, and with it the median of f_i stays within Q_i of y_i: the MSE is at most mean(Q_i^2). The
    bounds of all m elements, `border` pixels inside, hold together (one-sided: each may fail in (1 - confidence) / m).
    Draws are clamped to [0, 1] as the scored image is; no distance then exceeds max(y_i, 1 - y_i), which is what an
    element is charged where n draws cannot bound it. Rounding to 8 bit, like clamping, is monotone: rounded
    draws give the bound of the rounded median. Raises InputError for unlike shapes or settings out of range.
    """
    _check(sigma, radius)
    if draws.shape[1:] != hr.shape:
        raise InputError(f"draws {tuple(draws.shape)} must be (n, *{tuple(hr.shape)}), as the truth is")
    inside = (..., slice(border, hr.shape[-2] - border), slice(border, hr.shape[-1] - border))
    truth, n = hr[inside], len(draws)
    distance = (draws[inside].clamp(0, 1) - truth).abs()
    _, rank = ranks(n, radius / sigma, failure(confidence) / truth.numel())
    (bound,) = order_statistics(distance, [rank])
    return ScoreBound(_psnr(torch.minimum(bound, _farthest(truth))), rank, n)


def psnr_bound_within(lower: Tensor, upper: Tensor, hr: Tensor, *, border: int = 0) -> float:
    """The lowest PSNR in dB of any image between `lower` and `upper` (3, H, W), clamped to [0, 1], against `hr`.

    mean max((u - y)^2, (y - l)^2): what a `Certificate` whose bounds hold simultaneously says of its median image. With
    the true percentiles it is never below `median_psnr_bound`, since u <= y + Q and l >= y - Q; but it needs two bounds
    an element where that needs one, and so can say nothing where draws are just enough for one.
    """
    inside = (..., slice(border, hr.shape[-2] - border), slice(border, hr.shape[-1] - border))
    low, high, truth = lower[inside].clamp(0, 1), upper[inside].clamp(0, 1), hr[inside]
    return _psnr(torch.maximum((high - truth).abs(), (truth - low).abs()))


def _check(sigma: float, radius: float) -> None:
    if not (sigma > 0 and radius >= 0):
        raise InputError(f"need sigma > 0 and radius >= 0; got {sigma}, {radius}")


def _farthest(truth: Tensor) -> Tensor:
    """The distance of each element from the farther end of [0, 1]."""
    return torch.maximum(truth, 1 - truth)


def _psnr(distance: Tensor) -> float:
    mse = float(distance.double().square().mean())
    return -10 * log10(mse) if mse else float("inf")
