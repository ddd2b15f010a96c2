from __future__ import annotations

import pytest
import torch

from benchsr.base.errors import InputError
from benchsr.base.rng import generators
from benchsr.threats.balls import L2, Ball, Linf, Norm, make_ball


@pytest.mark.parametrize("ball", [Linf(0.1), L2(0.7)])
def test_projection_steps_and_random_points(ball: Ball) -> None:
    x = torch.zeros(2, 3, 5, 5)
    far = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    near = ball.project(far * 1e-3)
    assert (ball.norm(ball.project(far)) <= ball.eps * (1 + 1e-5)).all()
    assert torch.equal(near, far * 1e-3)
    assert (ball.norm(ball.random(x, generators(0, ["a", "b"], "t"))) <= ball.eps * (1 + 1e-5)).all()
    step = ball.steepest(far)
    # Of all steps of that norm none raises <far, step> more.
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    rival = other / ball.norm(other).view(-1, 1, 1, 1) * ball.norm(step).view(-1, 1, 1, 1)
    assert ((far * step).flatten(1).sum(1) > (far * rival).flatten(1).sum(1)).all()


def test_norms_are_the_textbooks() -> None:
    delta = torch.tensor([[3.0, -4.0], [0.0, 1.0]]).view(2, 1, 1, 2)
    assert Linf(1).norm(delta).tolist() == [4.0, 1.0]
    assert L2(1).norm(delta).tolist() == [5.0, 1.0]


def test_random_directions_are_uniform() -> None:
    points = L2(1.0).random(torch.zeros(1, 3, 200, 200), generators(0, ["a"], "t"))
    scaled = points * points.numel() ** 0.5  # its elements are standard normal then, in the limit
    assert scaled.square().mean().item() == pytest.approx(1, abs=1e-3)
    assert scaled.pow(4).mean().item() == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize(("norm", "eps"), [("linf", -0.1), ("linf", 1.1), ("linf", float("nan")), ("l2", float("nan"))])
def test_unusable_radii_are_refused(norm: Norm, eps: float) -> None:
    with pytest.raises(InputError, match="need eps >= 0"):
        make_ball(norm, eps)
