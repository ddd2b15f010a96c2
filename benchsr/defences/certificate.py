"""What median smoothing proves: bounds on the smoothed image under any small perturbation (Chiang et al. 2020).

For every perturbation of l2 norm below eps, each element of the median-smoothed image stays between the smoothed
percentiles Phi(-eps / sigma) and Phi(eps / sigma) of that element (paper, Lemma 4.1). The percentiles are not known;
order statistics of n draws bound them with a stated confidence, by the exact binomial distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
import torch
from scipy.stats import beta, binom, norm
from torch import Tensor, nn

from benchsr.base.errors import InputError
from benchsr.defences.smoothing import Smoothed

SORTED_AT_ONCE = 2**18
"""Draws sorted together, so that the sort needs a few MB and not a copy of all draws."""


@dataclass(frozen=True)
class Certificate:
    """Bounds on the exact median-smoothed SR of N images, for every perturbation of the LR of l2 norm below `eps`.

    `lower`, `upper`: (N, 3, sh, sw), unclamped; -inf or +inf where n draws cannot bound an element at this confidence.
    `ranks`: the 1-based order statistics used, 0 and n + 1 standing for -inf and +inf. `sigma` and `eps` are in [0, 1]
    pixel units, `eps` over all elements of the LR image. If `simultaneous`, all bounds of an image hold together with
    probability `confidence` (union bound over both sides of every element); otherwise each single bound does.

    The median of k draws, which is what a deployed model returns, stays within the same bounds for perturbations of a
    smaller norm: see `covering_radius`.
    """

    lower: Tensor
    upper: Tensor
    ranks: tuple[int, int]
    sigma: float
    eps: float
    n: int
    confidence: float
    simultaneous: bool

    @property
    def feasible(self) -> bool:
        """Whether n draws suffice to bound both sides at this confidence."""
        return self.ranks[0] >= 1 and self.ranks[1] <= self.n

    @property
    def width(self) -> Tensor:
        """upper - lower after clamping both to [0, 1], as the scored image is: (N, 3, sh, sw) in [0, 1]."""
        return self.upper.clamp(0, 1) - self.lower.clamp(0, 1)

    def width_percentiles(self, percent: Sequence[float] = (5, 25, 50, 75, 95)) -> dict[float, float]:
        """Percentiles of `width` over all elements."""
        return dict(zip(percent, np.percentile(self.width.cpu().numpy(), percent).tolist(), strict=True))

    def fraction_within(self, tolerance: float) -> Tensor:
        """Share of each image's elements that cannot move by more than `tolerance` ([0, 1] units), (N,)."""
        return (self.width <= tolerance).flatten(1).float().mean(1)

    @property
    def largest_eps(self) -> float:
        """The largest l2 radius that n draws could certify at this confidence and number of bounds."""
        return largest_eps(self.n, self.sigma, self.confidence, self.lower[0].numel() if self.simultaneous else None)


def failure(confidence: float, elements: int | None = None) -> float:
    """How often one bound may fail: 1 - confidence, or its share where 2 x `elements` bounds must hold together."""
    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie between 0 and 1; got {confidence}")
    return (1 - confidence) / (2 * elements if elements else 1)


def ranks(n: int, radius: float, allowed: float) -> tuple[int, int]:
    """1-based ranks (lower, upper) of n draws that bound the percentiles Phi(-+radius), radius = eps / sigma.

    upper = min{k: BinCDF(k - 1; n, Phi(radius)) >= 1 - allowed} or n + 1 where no draw is high enough, lower its mirror
    image n + 1 - upper; each bound fails with probability at most `allowed` (Chiang et al. 2020, section 4).
    """
    if n < 1 or radius < 0:
        raise InputError(f"need n >= 1 draws and eps >= 0; got n={n}, eps/sigma={radius}")
    k = np.arange(1, n + 1)
    enough = np.flatnonzero(binom.sf(k - 1, n, norm.cdf(radius)) <= allowed)
    upper = int(k[enough[0]]) if len(enough) else n + 1
    return n + 1 - upper, upper


def largest_eps(n: int, sigma: float, confidence: float, elements: int | None = None) -> float:
    """The largest l2 radius ([0, 1] units) that n draws of noise `sigma` can certify; 0.0 where not even eps = 0.

    Per bound, or, given `elements`, for both bounds of all elements of an image together. The largest draw exceeds the
    percentile p with probability 1 - p^n, so p = failure^(1/n) is the highest that can be bounded.
    """
    return max(0.0, sigma * float(norm.ppf(failure(confidence, elements) ** (1 / n))))


def deployment_cost(k: int, eta: float) -> float:
    """By how many sigma of radius the median of k draws is harder to certify than the exact median.

    Phi^-1(p) for the p with P(Bin(k, 1 - p) >= ceil(k / 2)) = eta, by the beta distribution: the k-draw median exceeds
    the percentile p of one draw only if ceil(k / 2) draws do, hence with probability at most `eta`; likewise below
    1 - p. Holds for even k too, whose median is the lower of the two middle draws. Raises InputError unless k >= 1 and
    0 < eta < 1/2.
    """
    if k < 1 or not 0 < eta < 0.5:
        raise InputError(f"need k >= 1 draws and eta between 0 and 1/2; got k={k}, eta={eta}")
    half = ceil(k / 2)
    return max(0.0, -float(norm.ppf(beta.ppf(eta, half, k - half + 1))))


def covering_radius(radius: float, sigma: float, k: int, eta: float, elements: int = 1) -> float:
    """The radius at which a bound of the exact median covers the deployed k-draw median under changes up to `radius`.

    The deployed answer then breaks a bound that holds with probability at most `eta` over its own k draws: each bound
    by itself, or all of `elements` one-sided bounds together (both sides of m elements are 2 m). That comes on top of
    1 - confidence, which is over the certificate's draws. Raises InputError for settings out of range.
    """
    if not (sigma > 0 and radius >= 0 and elements >= 1):
        raise InputError(f"need sigma > 0, radius >= 0 and elements >= 1; got {sigma}, {radius}, {elements}")
    return radius + sigma * deployment_cost(k, eta / elements)


def order_statistics(draws: Tensor, wanted: Sequence[int]) -> Tensor:
    """Of `draws` (n, ...), the order statistics of 1-based rank in `wanted`: (len(wanted), ...).

    Rank 0 and below gives -inf, ranks above n +inf. Needs a few MB beyond input and output.
    """
    n, flat = len(draws), draws.flatten(1)
    inside = torch.tensor([min(max(k, 1), n) - 1 for k in wanted], device=draws.device)
    parts = [part.sort(dim=0).values[inside] for part in flat.split(max(1, SORTED_AT_ONCE // n), dim=1)]
    found = torch.cat(parts, dim=1)
    for row, k in zip(found, wanted, strict=True):
        if not 1 <= k <= n:
            row.fill_(-torch.inf if k < 1 else torch.inf)
    return found.view(len(wanted), *draws.shape[1:])


def certify(
    model: nn.Module,
    lr: Tensor,
    sigma: float,
    eps: float,
    n: int = 1001,
    confidence: float = 0.95,
    seed: int = 0,
    *,
    simultaneous: bool = False,
    ids: Sequence[str] | None = None,
) -> Certificate:
    """Bound the median-smoothed SR of `lr` (N, 3, h, w) in [0, 1] against every perturbation of l2 norm below `eps`.

    `model` is the network that is smoothed; of a smoothed model its network is taken. `sigma` and `eps` are in [0, 1]
    units. Draws are independent of those that a deployed model makes. Memory beyond one forward pass: n outputs of one
    image, 4 bytes an element (n = 1001, LR 64 x 64: 0.8 GB), and a few MB. Raises InputError for settings out of range.
    Source: Chiang et al. 2020, "Detection as Regression: Certified Object Detection with Median Smoothing".

    Examples:
        >>> import benchsr, torch
        >>> lr = torch.full((1, 3, 16, 16), 0.5)
        >>> certificate = benchsr.certify(benchsr.load_model("bicubic"), lr, sigma=0.06, eps=0.05, n=101)
        >>> certificate.feasible, round(certificate.largest_eps, 3), certificate.lower.shape
        (True, 0.114, torch.Size([1, 3, 64, 64]))
    """
    if not (sigma > 0 and eps >= 0 and n >= 1 and len(lr)):
        raise InputError(f"need images, sigma > 0, eps >= 0 and n >= 1; got {len(lr)}, {sigma}, {eps}, {n}")
    ids = [str(i) for i in range(len(lr))] if ids is None else ids
    found = []
    for image, sample_id in zip(lr, ids, strict=True):
        draws = noisy_outputs(model, image, sigma, n, seed, sample_id)
        found.append(certify_draws(draws, sigma, eps, confidence, simultaneous))
    lower, upper = (torch.cat([getattr(c, side) for c in found]) for side in ("lower", "upper"))
    return replace(found[0], lower=lower, upper=upper)


def certify_draws(draws: Tensor, sigma: float, eps: float, confidence: float, simultaneous: bool) -> Certificate:
    """The certificate of one image that its `draws` (n, 3, sh, sw) support; see `certify`."""
    pair = ranks(len(draws), eps / sigma, failure(confidence, draws[0].numel() if simultaneous else None))
    lower, upper = order_statistics(draws, pair)
    return Certificate(lower[None], upper[None], pair, sigma, eps, len(draws), confidence, simultaneous)


def noisy_outputs(model: nn.Module, image: Tensor, sigma: float, n: int, seed: int, sample_id: str) -> Tensor:
    """The n outputs (n, 3, sh, sw) for one `image` (3, h, w) that a certificate rests on."""
    network = model.network if isinstance(model, Smoothed) else model
    return Smoothed(network, sigma, n, seed).draws(image, sample_id, "certificate")


def width_curves(
    draws: Tensor, sigma: float, confidence: float, counts: Sequence[int], eps: Sequence[float], simultaneous: bool
) -> dict[int, list[float]]:
    """Mean width of the bounds at each radius of `eps`, for the first n of `draws` (n, 3, sh, sw), by n of `counts`.

    Bounds are clamped to [0, 1] first; NaN where n draws cannot bound both sides.
    """
    allowed = failure(confidence, draws[0].numel() if simultaneous else None)
    curves = {}
    for n in counts:
        pairs = [ranks(n, radius / sigma, allowed) for radius in eps]
        found = order_statistics(draws[:n], [k for pair in pairs for k in pair]).clamp(0, 1)
        widths = (found[1::2] - found[::2]).flatten(1).mean(1).tolist()
        curves[n] = [w if low >= 1 else float("nan") for w, (low, _) in zip(widths, pairs, strict=True)]
    return curves
