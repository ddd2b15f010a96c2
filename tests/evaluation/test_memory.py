from __future__ import annotations

import pytest
import torch
from conftest import tiny_rrdb
from torch import nn

from benchsr.base.inference import freeze
from benchsr.evaluation.memory import Plan, bytes_per_pixel, free_bytes, plan_batch
from benchsr.metrics.objective import Objective

CPU = torch.device("cpu")
L1 = Objective(perceptual_weight=0.0)


class Squares(nn.Module):
    """Upsampling and one product: autograd keeps the four bytes of each of 3 x 16 elements, and the loss its sign."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = nn.functional.interpolate(x, scale_factor=4, mode="nearest")
        return up * up


def test_bytes_per_pixel_of_a_known_network() -> None:
    elements = 3 * 16
    assert bytes_per_pixel(Squares(), L1, CPU) == pytest.approx(2 * 4 * elements, rel=0.01)  # the factor; SR - HR


def test_bytes_per_pixel_hardly_depend_on_the_probe() -> None:
    network = freeze(tiny_rrdb(0, 16, 2))
    assert bytes_per_pixel(network, L1, CPU, 16) == pytest.approx(bytes_per_pixel(network, L1, CPU, 32), rel=0.02)


def test_freezing_saves_bytes() -> None:
    network = tiny_rrdb(0, 16, 2)
    before = bytes_per_pixel(network, L1, CPU)
    assert bytes_per_pixel(freeze(network), L1, CPU) < 0.5 * before


@pytest.mark.parametrize(
    ("budget", "plan"),
    [
        (1.5e6, Plan(8, False)),
        (1.5e5, Plan(8, False)),
        (1.5e4 * 3.5, Plan(3, False)),
        (1.5e4, Plan(1, False)),
        (1.4e4, Plan(1, True)),
        (0.0, Plan(1, True)),
    ],
)
def test_plan_fits_the_budget(budget: float, plan: Plan) -> None:
    assert plan_batch(per_pixel=100.0, pixels=100, batch_size=8, budget=budget) == plan


def test_free_bytes_are_some() -> None:
    assert 0 < free_bytes(CPU) < 1 << 50
