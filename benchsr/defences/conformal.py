"""What smoothing proves of a data set, from one noisy answer an image (RCP1: Zargarbashi et al., NeurIPS 2025).

The statement is about a new image that is exchangeable with the calibration images, answered once under noise: a score
kept with probability 1 - a' on clean images is kept with probability Phi(Phi^-1(1 - a') - radius / sigma) or more under
any perturbation of l2 norm at most `radius`, by Jensen's inequality, since that map is convex. It is of a single-draw
model, and its probability is over image, calibration and noise together.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor

import torch
from scipy.stats import norm
from torch import Tensor

from benchsr.base.errors import InputError


@dataclass(frozen=True)
class DatasetBound:
    """At least a share `coverage` of images keep a score of `threshold` or better; its 1-based `rank` of n scores.

    Rank 0 stands for a threshold that every score keeps: so few calibration images cannot support more.
    """

    threshold: float
    coverage: float
    rank: int
    n: int

    @property
    def feasible(self) -> bool:
        """Whether the calibration images suffice to say anything."""
        return self.rank >= 1


def robust_coverage(coverage: float, radius: float) -> float:
    """What is left of `coverage` under perturbations of `radius` sigma: Phi(Phi^-1(coverage) - radius)."""
    return float(norm.cdf(norm.ppf(coverage) - radius))


def dataset_rank(n: int, coverage: float, radius: float) -> int:
    """The 1-based rank of n calibration scores, worst first, that a share `coverage` keeps under `radius` sigma; or 0.

    A new score is worse than the k-th worst of n with probability at most k / (n + 1), which must leave
    Phi(Phi^-1(coverage) + radius) on clean images.
    """
    if n < 1 or not 0 < coverage < 1 or not radius >= 0:
        raise InputError(f"need n >= 1, coverage in (0, 1) and radius >= 0; got {n}, {coverage}, {radius}")
    # sf, not 1 - cdf: the share that may fail is tiny. The nudge keeps (n + 1) * 1 / (n + 1) at 1.
    return min(n, floor((n + 1) * float(norm.sf(norm.ppf(coverage) + radius)) * (1 + 1e-12)))


def largest_radius(n: int, coverage: float) -> float:
    """The largest radius, in sigma, at which n calibration images can support `coverage`; 0.0 where none."""
    return max(0.0, float(norm.isf(1 / (n + 1)) - norm.ppf(coverage)))


def images_needed(coverage: float, radius: float) -> int:
    """The fewest calibration images that can support `coverage` under `radius` sigma: those of rank 1."""
    n = max(1, ceil(1 / float(norm.sf(norm.ppf(coverage) + radius)) * (1 - 1e-12)) - 1)
    return n if dataset_rank(n, coverage, radius) else n + 1


def dataset_bound(
    scores: Tensor, sigma: float, radius: float, coverage: float = 0.9, *, higher_is_better: bool = True
) -> DatasetBound:
    """The score that a share `coverage` of images keep under every perturbation of l2 norm at most `radius`.

    `scores` (n,): of one noisy answer to each calibration image, each with noise of its own. Raises InputError for
    settings out of range and for NaN among the scores.
    """
    if not sigma > 0 or scores.dim() != 1 or bool(scores.isnan().any()):
        raise InputError(f"need sigma > 0 and a vector of scores without NaN; got {sigma}, {tuple(scores.shape)}")
    rank = dataset_rank(len(scores), coverage, radius / sigma)
    sign = 1.0 if higher_is_better else -1.0
    ordered = torch.sort(sign * scores.double()).values
    return DatasetBound(sign * (float(ordered[rank - 1]) if rank else float("-inf")), coverage, rank, len(scores))
