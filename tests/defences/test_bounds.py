"""Certified scores against closed forms, over repetitions, and against attacks inside the radius."""

from __future__ import annotations

from math import ceil, log10

import numpy as np
import pytest
import torch
from conftest import scene
from scipy.stats import binom, norm
from torch import Tensor, nn

from benchsr.base.errors import InputError
from benchsr.defences.bounds import (
    deployed_psnr_within,
    distance_squares,
    median_psnr_bound,
    median_score_bound,
    psnr_bound_within,
)
from benchsr.defences.certificate import certify_draws, covering_radius, deployment_cost, largest_eps, noisy_outputs
from benchsr.defences.smoothing import smooth
from benchsr.metrics.objective import Objective
from benchsr.metrics.quality import psnr
from benchsr.threats.adaptive import APGD

SIGMA = 0.1


def gaussians(repetitions: int, n: int, seed: int = 0) -> Tensor:
    return torch.randn(repetitions, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slack(rate: float, repetitions: int) -> float:
    """Three standard errors of a binomial share."""
    return 3 * float(np.sqrt(rate * (1 - rate) / repetitions))


@pytest.mark.parametrize("higher", [True, False])
def test_the_bound_of_a_score_is_the_order_statistic_of_its_binomial_rank(higher: bool) -> None:
    """A linear score of n given noises: the bound is that noise's score, the rank scipy's binomial quantile."""
    z = gaussians(1, 1001)[0]
    bound = median_score_bound(30 + 2 * SIGMA * z, SIGMA, 0.5 * SIGMA, 0.95, higher_is_better=higher)
    below = int(binom.ppf(0.05, 1001, norm.cdf(-0.5)))
    rank = below if higher else 1002 - below
    assert (bound.rank, bound.n) == (rank, 1001)
    assert bound.value == pytest.approx(30 + 2 * SIGMA * float(z.sort().values[rank - 1]), abs=1e-5)


@pytest.mark.parametrize("monotone", [lambda t: 25 - 4 * t, lambda t: 30 * torch.tanh(2 - t)])
def test_the_bound_of_a_score_holds_as_often_as_it_says(monotone: object) -> None:
    """The median score at the worst perturbation is known: h falls along the noise, so the shift is +radius."""
    assert callable(monotone)
    radius, confidence = 0.7, 0.9
    truth = float(monotone(torch.tensor(radius)))
    bounds = [median_score_bound(monotone(z), 1.0, radius, confidence).value for z in gaussians(1000, 101)]
    failed = np.mean([bound > truth for bound in bounds])
    assert failed <= 1 - confidence + slack(1 - confidence, 1000)
    assert failed > 0.02  # and it is not far below the truth either


def test_a_scalar_needs_no_union_bound() -> None:
    """The known radii: 2.75 sigma for a score, 2.20 sigma for all elements of a 24 x 24 crop."""
    scores = gaussians(1, 1001)[0]
    assert median_score_bound(scores, 1.0, 2.74).feasible
    assert not median_score_bound(scores, 1.0, 2.76).feasible
    assert median_score_bound(scores, 1.0, 2.76).value == -torch.inf
    assert largest_eps(1001, 1.0, 0.95, 27_648) == pytest.approx(2.20, abs=0.005)


def test_the_median_images_psnr_has_its_closed_form_for_a_linear_map() -> None:
    """f = x + noise of one pixel each: |f - y| is a folded normal, whose ranks the bound takes element by element."""
    hr = 0.3 + 0.4 * torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(1))
    draws = hr + 0.02 * torch.randn(501, 3, 2, 4, generator=torch.Generator().manual_seed(2))
    bound = median_psnr_bound(draws, hr, 1.0, 1.0, 0.95)
    rank = int(binom.isf(0.05 / 24, 501, norm.cdf(1.0))) + 1
    assert bound.rank == rank
    errors = np.sort(np.abs((draws - hr).numpy()), axis=0)[rank - 1]
    assert bound.value == pytest.approx(-10 * log10(float((errors.astype(np.float64) ** 2).mean())), abs=1e-4)
    inner = median_psnr_bound(
        torch.nn.functional.pad(draws, (1, 1, 1, 1)), torch.nn.functional.pad(hr, (1, 1, 1, 1)), 1.0, 1.0, border=1
    )
    assert inner == bound


def test_the_deployed_medians_psnr_has_its_closed_form_for_a_linear_map() -> None:
    """The same ranks as of the exact median, further out by what k draws cost, and a share eta of the worst image."""
    hr = 0.3 + 0.4 * torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(1))
    draws = hr + 0.02 * torch.randn(2001, 3, 2, 4, generator=torch.Generator().manual_seed(2))
    squares, k, eta = distance_squares(draws, hr), 21, 1e-3
    bound = deployed_psnr_within(squares, 24, 1.0, 1.0, k, eta, 0.95)
    assert bound.rank == int(binom.isf(0.05 / 24, 2001, norm.cdf(1.0 + deployment_cost(k, eta)))) + 1
    errors = np.sort(np.abs((draws - hr).numpy()), axis=0)[bound.rank - 1].astype(np.float64)
    farthest = np.maximum(hr.numpy(), 1 - hr.numpy()).astype(np.float64)
    expected = (errors**2).mean() + eta * (farthest**2).mean()
    assert bound.value == pytest.approx(-10 * log10(expected), abs=1e-4)
    assert not deployed_psnr_within(squares, 24, 1.0, 3.0, k, eta, 0.95).feasible


def test_where_draws_are_too_few_an_element_is_charged_the_worst_that_it_can_be() -> None:
    hr = torch.tensor([0.2, 0.9, 0.5]).view(3, 1, 1)
    bound = median_psnr_bound(torch.full((21, 3, 1, 1), 0.5), hr, 1.0, 3.0)
    assert not bound.feasible
    assert bound.value == pytest.approx(-10 * log10((0.8**2 + 0.9**2 + 0.5**2) / 3))


def test_the_two_bounds_of_the_median_images_psnr() -> None:
    """Two-sided intervals are tighter where draws abound; distances to the truth hold where draws barely suffice."""
    network = RandomNet(3)
    lr, hr = scene(network, 1, 8)
    draws = noisy_outputs(network, lr[0], SIGMA, 301, 0, "0")
    exact = float(psnr(draws.median(0).values.clamp(0, 1)[None], hr))
    both = {}
    for radius in (0.3, largest_eps(301, 1.0, 0.95, hr.numel()) + 1e-3):
        within = certify_draws(draws, SIGMA, radius * SIGMA, 0.95, True)
        two_sided = psnr_bound_within(within.lower[0], within.upper[0], hr[0])
        one_sided = median_psnr_bound(draws, hr[0], SIGMA, radius * SIGMA)
        assert one_sided.feasible
        both[within.feasible] = one_sided.value - two_sided
        assert max(one_sided.value, two_sided) < exact
    assert both[True] < 0 < both[False]


def test_the_interval_bound_is_the_worst_corner() -> None:
    hr, low, high = (torch.tensor(v).view(3, 1, 1) for v in ([0.2, 0.9, 0.5], [-1.0, 0.7, 0.5], [0.3, 2.0, 0.8]))
    assert psnr_bound_within(low, high, hr) == pytest.approx(-10 * log10((0.2**2 + 0.2**2 + 0.3**2) / 3))


def test_the_cost_of_a_deployed_median() -> None:
    assert deployment_cost(21, 1e-3) == pytest.approx(0.84, abs=0.005)
    assert deployment_cost(21, 1e-2) == pytest.approx(0.63, abs=0.005)
    assert deployment_cost(1, 0.1) == pytest.approx(norm.ppf(0.9))
    assert covering_radius(0.05, SIGMA, 21, 1e-3) == pytest.approx(0.05 + 0.084, abs=5e-4)
    for k in (1, 2, 7, 20, 21):
        above = 1 - norm.cdf(deployment_cost(k, 0.01))
        assert binom.sf(ceil(k / 2) - 1, k, above) == pytest.approx(0.01, rel=1e-6)


def test_the_covering_radius_holds_for_all_elements_at_once() -> None:
    """Of answers that are their noise, the percentile Phi(r) is r: no median of k of them may lie above it."""
    gen = torch.Generator().manual_seed(0)
    medians = torch.randn(5, 2000, 50, generator=gen).median(dim=0).values
    outside = medians > covering_radius(0.0, 1.0, 5, 0.1, elements=50)
    assert 0 < outside.any(1).double().mean().item() <= 0.1


@pytest.mark.parametrize("k", [1, 2, 5, 20, 21])
@pytest.mark.parametrize("eta", [0.05, 0.01])
def test_the_deployed_median_breaks_its_bounds_no_more_often_than_eta(k: int, eta: float) -> None:
    """The true percentiles of a Gaussian as bounds, the worst shift, and 20,000 medians of k draws."""
    radius = 0.8
    end = covering_radius(radius, 1.0, k, eta)
    for side in (-1, 1):
        medians = (side * radius + gaussians(20_000, k, seed=k)).median(dim=1).values
        broken = float((side * medians > end).double().mean())
        assert broken <= eta + slack(eta, 20_000)
        assert k == 2 or k == 20 or broken >= eta - slack(eta, 20_000)  # tight where the median is the middle draw


def test_no_attack_inside_the_radius_crosses_the_bounds_of_random_nets() -> None:
    """1,000 trials: of 10 nets, each bound under 99 random directions, and under APGD."""
    radius, trials = 0.6 * SIGMA, 0
    for seed in range(10):
        network, gen = RandomNet(seed), torch.Generator().manual_seed(seed)
        lr, hr = scene(network, 1, 3, seed)
        draws = network(lr + SIGMA * torch.randn(201, *lr.shape[1:], generator=gen))
        squares = distance_squares(draws, hr[0])
        image = median_psnr_bound(draws, hr[0], SIGMA, radius, 0.999)
        deployed = deployed_psnr_within(squares, hr.numel(), SIGMA, radius, 21, 1e-3, 0.999)
        single = median_score_bound(psnr(draws.clamp(0, 1), hr.expand_as(draws)), SIGMA, radius, 0.999)
        assert image.feasible
        assert deployed.feasible
        attack = APGD(smooth(network, SIGMA, n=5), eps=radius, steps=5, restarts=1, objective=MSE, norm="l2")
        away = torch.randn(99, *lr.shape[1:], generator=gen)
        moves = torch.cat([attack(lr, hr) - lr, radius * away / away.flatten(1).norm(dim=1).view(-1, 1, 1, 1)])
        noise = SIGMA * torch.randn(101, *lr.shape[1:], generator=gen)
        answers = network((lr + moves)[:, None].add(noise).flatten(0, 1)).unflatten(0, (len(moves), 101))
        of = [answers.median(dim=1).values, *(part.median(dim=1).values for part in answers[:, :84].split(21, dim=1))]
        exact, *some = (psnr(median.clamp(0, 1), hr.expand_as(median)) for median in of)
        assert bool((exact >= image.value).all())
        assert bool((torch.stack(some).mean(0) >= deployed.value).all())
        scores = psnr(answers.flatten(0, 1).clamp(0, 1), hr.expand(answers.shape[0] * 101, -1, -1, -1))
        assert bool((scores.unflatten(0, (len(moves), 101)).median(dim=1).values >= single.value).all())
        trials += len(moves)
    assert trials == 1000


MSE = Objective(0.0, 0.0, mse_weight=1.0)


class RandomNet(nn.Module):
    """A small random convolutional x4 network, quick enough for a thousand trials."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 48, 3, padding=1))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        sr: Tensor = nn.functional.pixel_shuffle(0.5 + self.body(4 * x - 2), 4)
        return sr


def test_the_image_bound_fails_no_more_often_than_it_says() -> None:
    """1,000 certificates of the linear map x + noise, each against the worst of its perturbations: a constant shift.

    The truth is beyond the clean answer, so the worst of unit length moves the noise of each of 4 elements by r / 2.
    """
    radius, n = 1.0, 101
    worst = -10 * log10((0.2 + 0.02 * radius / 2) ** 2)
    gen = torch.Generator().manual_seed(0)
    broken = 0
    for _ in range(1000):
        draws = 0.3 + 0.02 * torch.randn(n, 1, 2, 2, generator=gen)
        broken += median_psnr_bound(draws, torch.full((1, 2, 2), 0.5), 1.0, radius, 0.9).value > worst
    assert broken / 1000 <= 0.1 + slack(0.1, 1000)


def test_the_deployed_bound_fails_no_more_often_than_it_says() -> None:
    """1,000 certificates of the same map against the expected PSNR of 20,000 medians of k draws, shifted the worst."""
    radius, n, k, gen = 0.5, 201, 5, torch.Generator().manual_seed(0)
    medians = torch.randn(20_000, k, 4, generator=gen, dtype=torch.float64).median(dim=1).values
    errors = 0.2 + 0.02 * (radius / 2 + medians)
    truth = float((-10 * errors.square().mean(dim=1).log10()).mean())
    broken = 0
    for _ in range(1000):
        draws = 0.3 + 0.02 * torch.randn(n, 1, 2, 2, generator=gen)
        squares = distance_squares(draws, torch.full((1, 2, 2), 0.5))
        bound = deployed_psnr_within(squares, 4, 1.0, radius, k, 1e-2, 0.9)
        assert bound.feasible
        broken += bound.value > truth
    assert broken / 1000 <= 0.1 + slack(0.1, 1000)


def test_settings_out_of_range_are_refused() -> None:
    scores = torch.rand(21)
    for call in (
        lambda: median_score_bound(scores, 0.0, 0.1),
        lambda: median_score_bound(scores, 0.1, -1.0),
        lambda: median_score_bound(scores * torch.nan, 0.1, 0.1),
        lambda: median_score_bound(scores, 0.1, 0.1, 1.0),
        lambda: median_psnr_bound(torch.rand(5, 3, 4, 4), torch.rand(3, 4, 5), 0.1, 0.1),
        lambda: deployment_cost(0, 0.1),
        lambda: deployment_cost(21, 0.5),
        lambda: covering_radius(0.1, 0.0, 21, 0.1),
    ):
        with pytest.raises(InputError):
            call()


def test_answers_are_judged_as_the_image_that_is_saved() -> None:
    draws = 2 * torch.rand(9, 3, 4, 4, generator=torch.Generator().manual_seed(0)) - 0.5
    hr = torch.full((3, 4, 4), 0.3)
    assert torch.equal(distance_squares(draws, hr), distance_squares(draws.clamp(0, 1), hr))
