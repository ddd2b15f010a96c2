"""The certificate against scipy's binomial, percentiles known in closed form, and real perturbations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import images, tiny_rrdb
from scipy.stats import binom, norm
from torch import Tensor, nn

from benchsr.base.errors import InputError
from benchsr.commands.certify import describe
from benchsr.defences.certificate import certify, failure, largest_eps, order_statistics, ranks, width_curves
from benchsr.defences.smoothing import smooth

SIGMA = 0.1
ELEMENTS = 2040 * 1356 * 3


@pytest.mark.parametrize("n", [21, 101, 1001])
@pytest.mark.parametrize("radius", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("allowed", [0.05, 0.001, 0.05 / 2 / ELEMENTS])
def test_ranks_equal_scipys_binomial_quantiles(n: int, radius: float, allowed: float) -> None:
    """X_(k) >= q_p unless k draws or more fall below q_p; their number is binomial, k - 1 its 1 - allowed quantile."""
    above = int(binom.isf(allowed, n, norm.cdf(radius))) + 1
    below = int(binom.ppf(allowed, n, norm.cdf(-radius)))
    assert ranks(n, radius, allowed) == (below, min(above, n + 1))


def test_ranks_are_tight_to_one() -> None:
    low, high = ranks(101, 0.5, 0.05)
    assert binom.cdf(high - 1, 101, norm.cdf(0.5)) >= 0.95 > binom.cdf(high - 2, 101, norm.cdf(0.5))
    assert binom.sf(low - 1, 101, norm.cdf(-0.5)) >= 0.95 > binom.sf(low, 101, norm.cdf(-0.5))


def test_largest_radii_are_the_known_ones() -> None:
    each = {21: 1.113, 101: 1.892, 1001: 2.749, 10_000: 3.432}
    assert {n: round(largest_eps(n, 1.0, 0.95), 3) for n in each} == each
    together = {21: 0.0, 101: 0.929, 1001: 2.066}
    assert {n: round(largest_eps(n, 1.0, 0.95, ELEMENTS), 3) for n in together} == together
    for n, radius in each.items():
        assert ranks(n, radius - 1e-3, 0.05)[1] == n
        assert ranks(n, radius + 1e-3, 0.05) == (0, n + 1)


def test_infeasible_bounds_are_infinite_never_the_extreme_draws() -> None:
    certificate = certify(nn.Upsample(scale_factor=4), images(2, 64)[0], SIGMA, 0.0, 21, simultaneous=True)
    assert not certificate.feasible
    assert certificate.ranks == (0, 22)
    assert bool((certificate.lower == -torch.inf).all())
    assert bool((certificate.upper == torch.inf).all())
    assert certificate.largest_eps == 0
    assert certificate.fraction_within(0.5).tolist() == [0, 0]
    assert any("Not certifiable" in line for line in describe(certificate, (64, 64)))


def test_order_statistics_are_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchsr.defences.certificate.SORTED_AT_ONCE", 30)
    draws = torch.rand(11, 3, 4, 5)
    found = order_statistics(draws, [1, 6, 11, 0, 12])
    np.testing.assert_array_equal(found[:3].numpy(), np.sort(draws.numpy(), axis=0)[[0, 5, 10]])
    assert bool((found[3] == -torch.inf).all())
    assert bool((found[4] == torch.inf).all())


class Map(nn.Module):
    """f(x) = g(x . a) for every output: monotone g of a Gaussian has the percentiles g(x . a + sigma |a| Phi^-1(p))."""

    def __init__(self, g: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.g = g
        self.a = torch.tensor([0.6, -0.8]).view(1, 2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.g((x * self.a).sum(1, keepdim=True))


MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda t: 2 * t - 1,
    "monotone": lambda t: torch.tanh(3 * t) + t**3,
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(("n", "radius", "confidence"), [(21, 0.5, 0.95), (101, 1.0, 0.95), (101, 0.25, 0.8)])
def test_coverage_over_1000_repetitions(name: str, n: int, radius: float, confidence: float) -> None:
    """Each side fails no more often than stated, and fails too often one rank further in: the bounds are tight.

    1,000 repetitions: each is one pixel with its own noise, since `Map` mixes channels only.
    """
    network, x = Map(MAPS[name]), torch.tensor([0.3, 0.5]).view(1, 2, 1, 1).expand(1, 2, 25, 40)
    certificate = certify(network, x, SIGMA, radius * SIGMA, n, confidence, seed=1)
    centre = float((x[0, :, 0, 0] * network.a[0, :, 0, 0]).sum())
    low, high = (float(MAPS[name](torch.tensor(centre + side * radius * SIGMA))) for side in (-1, 1))
    # 1,000 binomial trials: 3 standard errors above the allowed rate.
    slack = 3 * np.sqrt(confidence * (1 - confidence) / 1000)
    assert float((certificate.lower > low).double().mean()) <= 1 - confidence + slack
    assert float((certificate.upper < high).double().mean()) <= 1 - confidence + slack
    draws = smooth(network, SIGMA, n, seed=1).draws(x[0], "0", "certificate")
    inner = order_statistics(draws, [certificate.ranks[0] + 1, certificate.ranks[1] - 1])
    expected = binom.sf(certificate.ranks[1] - 2, n, norm.cdf(radius))
    assert expected > 1 - confidence
    for failed in (inner[0] > low, inner[1] < high):
        assert float(failed.double().mean()) == pytest.approx(expected, abs=4 * np.sqrt(expected / 1000))


def test_simultaneous_bounds_hold_for_all_elements_at_once() -> None:
    """An identity network: 192 elements, each with percentiles x -+ eps; the whole image fails in at most 5%."""
    network, (lr, _), n, radius = nn.Identity(), images(1, 8), 101, 0.5
    failures = {True: 0, False: 0}
    for seed in range(100):
        for simultaneous in failures:
            c = certify(network, lr, SIGMA, radius * SIGMA, n, 0.95, seed, simultaneous=simultaneous)
            held = (c.lower <= lr - radius * SIGMA).all() and (c.upper >= lr + radius * SIGMA).all()
            failures[simultaneous] += not bool(held)
    assert failures[True] <= 0.05 * 100 + 3 * np.sqrt(100 * 0.05 * 0.95)
    assert failures[False] > 0.9 * 100


def test_bounds_hold_for_perturbations_of_a_network() -> None:
    """Against the median of many draws of a perturbed input; the perturbation follows the gradient of the mean."""
    network, (lr, _) = tiny_rrdb(), images(1, 8)
    c = certify(network, lr, SIGMA, 0.05, 201, 0.999)
    x = lr.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(x).sum(), x)
    for sign in (-1, 1):
        moved = smooth(network, SIGMA, 201, seed=9)(lr + sign * 0.0499 * gradient / gradient.norm())
        assert float(((moved < c.lower) | (moved > c.upper)).double().mean()) < 0.002


def test_width_fraction_and_curves() -> None:
    network, (lr, _) = tiny_rrdb(), images(1, 8)
    c = certify(network, lr, SIGMA, 0.05, 101)
    assert bool((c.width >= 0).all())
    assert c.fraction_within(1.0).tolist() == [1.0]
    fractions = [float(c.fraction_within(t)) for t in (0.01, 0.05, 0.2)]
    assert fractions == sorted(fractions)
    assert c.width_percentiles([50])[50] == pytest.approx(float(c.width.median()), abs=1e-3)
    draws = smooth(network, SIGMA, 101).draws(lr[0], "0", "certificate")
    curves = width_curves(draws, SIGMA, 0.95, [21, 101], [0.0, 0.05, 0.15], simultaneous=False)
    assert curves[101][1] == pytest.approx(float(c.width.mean()), rel=1e-5)
    assert curves[101] == sorted(curves[101])
    assert curves[21][0] > curves[101][0]
    assert np.isnan(curves[21][2])


def test_a_smoothed_model_is_certified_by_its_network() -> None:
    network, (lr, _) = tiny_rrdb(), images(1, 8)
    assert torch.equal(
        certify(smooth(network, 0.3), lr, SIGMA, 0.05, 21).lower, certify(network, lr, SIGMA, 0.05, 21).lower
    )


def test_the_certificates_draws_are_not_the_deployed_ones() -> None:
    lr, _ = images(1, 8)
    deployed = smooth(nn.Identity(), SIGMA, 21)
    assert not torch.equal(deployed.draws(lr[0], "0"), deployed.draws(lr[0], "0", "certificate"))


@pytest.mark.parametrize(
    "spoiled", [{"sigma": 0.0}, {"eps": -1.0}, {"n": 0}, {"confidence": 1.0}, {"confidence": 0.0}], ids=str
)
def test_settings_out_of_range_are_refused(spoiled: dict[str, float]) -> None:
    settings = {"sigma": SIGMA, "eps": 0.05, "n": 5, "confidence": 0.95} | spoiled
    with pytest.raises(InputError):
        certify(nn.Identity(), images(1, 8)[0], **settings)  # type: ignore[arg-type]
    assert failure(0.9) == pytest.approx(0.1)
