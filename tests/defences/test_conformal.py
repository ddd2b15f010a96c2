"""The robust conformal bound: its known radii, and its coverage in simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from benchsr.base.errors import InputError
from benchsr.defences.conformal import dataset_bound, dataset_rank, largest_radius, robust_coverage


def test_known_radii() -> None:
    assert largest_radius(100, 0.9) == pytest.approx(1.05, abs=0.005)
    assert largest_radius(1000, 0.9) == pytest.approx(1.81, abs=0.005)
    for n in (100, 1000):
        edge = largest_radius(n, 0.9)
        assert dataset_rank(n, 0.9, edge) == 1
        assert dataset_rank(n, 0.9, edge + 1e-3) == 0
    assert largest_radius(5, 0.9) == 0


@pytest.mark.parametrize("n", [19, 100, 999])
@pytest.mark.parametrize("radius", [0.0, 0.4, 1.0])
def test_the_rank_is_the_largest_that_leaves_the_coverage(n: int, radius: float) -> None:
    rank = dataset_rank(n, 0.9, radius)
    left = [robust_coverage(1 - k / (n + 1), radius) for k in (rank, rank + 1)] if rank else [1.0, 0.0]
    assert left[0] >= 0.9 - 1e-9 > left[1]


@pytest.mark.parametrize("radius", [0.0, 0.5, 1.0])
def test_coverage_over_repetitions(radius: float) -> None:
    """Score = what the image has - noise; the worst perturbation adds `radius` sigma to the noise of every image.

    1,000 calibration sets of 200 images of two kinds, and for each 20 new images under attack.
    """
    rng = np.random.default_rng(0)

    def scores(count: tuple[int, ...], shift: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return (
            25
            + 2.0 * (rng.random(count) < 0.3)
            + 0.5 * rng.standard_normal(count)
            - (rng.standard_normal(count) + shift)
        )

    held = 0.0
    for calibration in scores((1000, 200), 0.0):
        bound = dataset_bound(torch.from_numpy(calibration), 1.0, radius, 0.9)
        held += float((scores((20,), radius) >= bound.threshold).mean()) / 1000
    assert held >= 0.9 - 3 * np.sqrt(0.09 / 20_000) - 0.002
    if radius == 0:
        assert held <= 0.91


def test_a_pure_shift_attains_the_guarantee() -> None:
    """Images all alike: Jensen's inequality is an equality, and the share under attack is 90% and little more."""
    rng = np.random.default_rng(1)
    held = 0.0
    for _ in range(1000):
        bound = dataset_bound(torch.from_numpy(-rng.standard_normal(1000)), 1.0, 0.5, 0.9)
        held += float(norm.cdf(-bound.threshold - 0.5)) / 1000
    assert 0.9 <= held <= 0.905


def test_lower_is_better_is_the_mirror_image_and_too_few_images_say_nothing() -> None:
    scores = torch.rand(200, generator=torch.Generator().manual_seed(0))
    up, down = dataset_bound(scores, 1.0, 0.3), dataset_bound(-scores, 1.0, 0.3, higher_is_better=False)
    assert up.threshold == -down.threshold
    assert up.rank == down.rank >= 1
    few = dataset_bound(scores[:20], 1.0, 2.0)
    assert not few.feasible
    assert few.threshold == -torch.inf
    assert dataset_bound(scores[:20], 1.0, 2.0, higher_is_better=False).threshold == torch.inf


def test_settings_out_of_range_are_refused() -> None:
    scores = torch.rand(20)
    for sigma, radius, coverage in ((0.0, 0.1, 0.9), (1.0, -1.0, 0.9), (1.0, 0.1, 1.0), (1.0, 0.1, 0.0)):
        with pytest.raises(InputError):
            dataset_bound(scores, sigma, radius, coverage)
    with pytest.raises(InputError):
        dataset_bound(scores * torch.nan, 1.0, 0.1)
    with pytest.raises(InputError):
        dataset_rank(0, 0.9, 0.1)
