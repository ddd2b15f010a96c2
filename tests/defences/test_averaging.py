"""Mean smoothing: the mean it says it is, its gradient, and its bound in closed form and over repetitions."""

from __future__ import annotations

from math import log, sqrt
from statistics import NormalDist, fmean, variance

import numpy as np
import pytest
import torch
from conftest import images, tiny_rrdb
from scipy.stats import norm
from torch import Tensor, nn

from benchsr.base.errors import InputError
from benchsr.defences.averaging import Averaged, mean_bounds


def test_the_mean_of_clamped_draws_and_its_gradient() -> None:
    network, (lr, _) = tiny_rrdb(), images(2, 8)
    model = Averaged(network, 0.1, n=5)
    x = lr.clone().requires_grad_()
    sr = model(x, ["a", "b"])
    draws = torch.stack([model.draws(image, name) for image, name in zip(lr, "ab", strict=True)])
    assert bool((draws.max() > 1) & (draws.min() < 0))
    torch.testing.assert_close(sr.detach(), draws.clamp(0, 1).mean(1))
    (gradient,) = torch.autograd.grad(sr.sum(), x)
    noisy = torch.cat([part for _, part in model.noisy(lr[0], "a", "evaluation-0")]).requires_grad_()
    (straight,) = torch.autograd.grad(network(noisy).sum() / 5, noisy)  # as if nothing were clamped
    torch.testing.assert_close(gradient[0], straight.sum(0), rtol=1e-4, atol=1e-4)


def test_chunks_of_draws_change_nothing_but_rounding() -> None:
    lr, _ = images(1, 8)
    one, seven = (Averaged(tiny_rrdb(), 0.1, 9, draws_at_once=k)(lr) for k in (1, 7))
    torch.testing.assert_close(one, seven)


def test_the_bound_tends_to_its_closed_form() -> None:
    """A step at its own threshold: the mean is Phi(t), and a shift by r makes it Phi(t +- r) exactly."""
    z = torch.randn(200_000, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = mean_bounds((z < 0.3).double(), 2.0, 1.0)
    assert float(low) == pytest.approx(norm.cdf(0.3 - 0.5), abs=0.01)
    assert float(high) == pytest.approx(norm.cdf(0.3 + 0.5), abs=0.01)
    assert float(low) < norm.cdf(0.3 - 0.5) < norm.cdf(0.3 + 0.5) < float(high)


class Step(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x < 0.3).to(x)


def test_coverage_over_1000_repetitions_and_all_elements_at_once() -> None:
    """Steps attain the lemma's bound: so the share of failures is the inequality's on the mean."""
    radius = 0.5
    for simultaneous, elements in ((False, 1000), (True, 1000)):
        failures = []
        for seed in range(10):
            z = torch.randn(101, 10, 10, 10, generator=torch.Generator().manual_seed(seed))
            low, high = mean_bounds(Step()(z), 1.0, radius, 0.9, simultaneous=simultaneous)
            failures += [bool(bad) for bad in (low > norm.cdf(0.3 - radius)).flatten()]
            failures += [bool(bad) for bad in (high < norm.cdf(0.3 + radius)).flatten()]
        assert len(failures) == 20 * elements
        assert np.mean(failures) <= (0 if simultaneous else 0.1)


@pytest.mark.parametrize("simultaneous", [False, True])
def test_the_bound_is_the_formula_worked_out_apart(simultaneous: bool) -> None:
    answers = [1.3, 0.9, 0.5, 0.4, 0.6, -0.2, 0.8, 0.7] * 50  # clamped: 1.3 counts as 1, -0.2 as 0
    clamped = [min(max(a, 0.0), 1.0) for a in answers]
    draws = torch.tensor(answers).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    share = log(2 / (0.05 / 24 if simultaneous else 0.05))  # two bounds of each of 12 elements
    margin = sqrt(2 * variance(clamped) * share / 400) + 7 * share / (3 * 399)
    low, high = mean_bounds(draws, 0.5, 0.2, 0.95, simultaneous=simultaneous)
    normal = NormalDist()
    for bound, side in ((low, -1), (high, 1)):
        expected = normal.cdf(normal.inv_cdf(fmean(clamped) + side * margin) + side * 0.2 / 0.5)
        assert bound.flatten().tolist() == pytest.approx([expected] * 12, abs=1e-6)


def test_answers_that_vary_little_are_bounded_tightly() -> None:
    draws = 0.5 + 0.01 * torch.randn(1001, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    low, high = mean_bounds(draws, 1.0, 0.0)
    hoeffding = np.sqrt(np.log(1 / 0.05) / 2002)
    assert float((high - low).max()) < hoeffding


def test_settings_out_of_range_are_refused() -> None:
    draws = torch.rand(5, 3, 4, 4)
    for bad in ((draws, 0.0, 0.1), (draws, 1.0, -0.1), (draws[:1], 1.0, 0.1), (draws, 1.0, 0.1, 1.0)):
        with pytest.raises(InputError):
            mean_bounds(*bad)
