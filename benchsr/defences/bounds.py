"""What smoothing proves of a score: of the median score of single noisy answers, and of the median image's PSNR.

Every bound holds for each change of the LR image of l2 norm at most `radius` and rests on n answers to the clean image
under N(0, sigma^2 I). Chiang et al. 2020, Lemma 1: the percentile p of any scalar of one noisy answer cannot rise above
its percentile Phi(Phi^-1(p) + radius / sigma) on the clean image, nor fall below the mirror image of that. `confidence`
is the probability, over the n answers, that what is said is true.

Of what: `median_score_bound` speaks of the median score of a single-draw model, `median_psnr_bound` of the exact median
image. Neither is the image that a deployed model returns, the median of k draws: of that one `deployed_psnr_within`
speaks, whose bound is taken further out.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log10

import torch
from torch import Tensor

from benchsr.base.errors import InputError
from benchsr.defences.certificate import covering_radius, failure, order_statistics, ranks


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
    See `distance_squares` and `median_psnr_within`, of which it is made. Raises InputError for unlike shapes or
    settings out of range.
    """
    elements = hr[..., border : hr.shape[-2] - border, border : hr.shape[-1] - border].numel()
    return median_psnr_within(distance_squares(draws, hr, border=border), elements, sigma, radius, confidence)


def distance_squares(draws: Tensor, hr: Tensor, *, border: int = 0) -> Tensor:
    """The mean square distance from truth `hr` (3, H, W) of the closest, second closest ... answer: (n + 1,) float64.

    Element j - 1 is the mean over the elements, `border` pixels inside, of the square of the j-th smallest distance
    among `draws` (n, 3, H, W). They are clamped to [0, 1] as the scored image is; no distance then exceeds
    max(y_i, 1 - y_i), whose mean square comes last: what an element is charged where n draws cannot bound it. Rounding
    to 8 bit, like clamping, is monotone: rounded draws give the bound of the rounded median. All that a bound of the
    PSNR needs of the draws, whatever its radius and confidence. Raises InputError for unlike shapes.
    """
    if draws.shape[1:] != hr.shape:
        raise InputError(f"draws {tuple(draws.shape)} must be (n, *{tuple(hr.shape)}), as the truth is")
    inside = (..., slice(border, hr.shape[-2] - border), slice(border, hr.shape[-1] - border))
    truth = hr[inside]
    distance = (draws[inside].clamp(0, 1) - truth).abs()
    ordered = order_statistics(distance, range(1, len(draws) + 1))
    farthest = torch.maximum(truth, 1 - truth)
    return torch.stack([d.double().square().mean() for d in (*ordered, farthest)])


def median_psnr_within(
    squares: Tensor, elements: int, sigma: float, radius: float, confidence: float = 0.95
) -> ScoreBound:
    """`median_psnr_bound` from `distance_squares` (n + 1,) of so many `elements`. Raises InputError as that does."""
    _check(sigma, radius)
    n = len(squares) - 1
    _, rank = ranks(n, radius / sigma, failure(confidence) / elements)
    return ScoreBound(_decibel(float(squares[rank - 1])), rank, n)


def deployed_psnr_within(
    squares: Tensor, elements: int, sigma: float, radius: float, k: int, eta: float = 1e-3, confidence: float = 0.95
) -> ScoreBound:
    """The lowest expected PSNR in dB of the median of `k` new draws, which is what a deployed model returns.

    From `distance_squares` (n + 1,) of so many `elements`, the expectation being over the k draws. Each element of the
    k-draw median stays within Q_i, taken `deployment_cost(k, eta)` sigma further out than `median_psnr_bound`'s, but
    for a share `eta` of its draws, in which it is charged the farthest that there is: the expected MSE is at most
    mean(Q_i^2) + eta mean(max(y_i, 1 - y_i)^2). Expectations add up, so k draws pay nothing for the number of elements;
    and the PSNR being convex in the MSE, its expectation is no less than the PSNR of the expected MSE. Raises
    InputError for settings out of range.
    """
    _check(sigma, radius)
    n = len(squares) - 1
    _, rank = ranks(n, covering_radius(radius, sigma, k, eta) / sigma, failure(confidence) / elements)
    return ScoreBound(_decibel(float(squares[rank - 1] + eta * squares[-1])), rank, n)


def psnr_bound_within(lower: Tensor, upper: Tensor, hr: Tensor, *, border: int = 0) -> float:
    """The lowest PSNR in dB of any image between `lower` and `upper` (3, H, W), clamped to [0, 1], against `hr`.

    mean max((u - y)^2, (y - l)^2): what a `Certificate` whose bounds hold simultaneously says of its median image. With
    the true percentiles it is never below `median_psnr_bound`, since u <= y + Q and l >= y - Q; but it needs two bounds
    an element where that needs one, and so can say nothing where draws are just enough for one.
    """
    inside = (..., slice(border, hr.shape[-2] - border), slice(border, hr.shape[-1] - border))
    low, high, truth = lower[inside].clamp(0, 1), upper[inside].clamp(0, 1), hr[inside]
    return _decibel(float(torch.maximum((high - truth).abs(), (truth - low).abs()).double().square().mean()))


def _check(sigma: float, radius: float) -> None:
    if not (sigma > 0 and radius >= 0):
        raise InputError(f"need sigma > 0 and radius >= 0; got {sigma}, {radius}")


def _decibel(mse: float) -> float:
    return -10 * log10(mse) if mse else float("inf")
