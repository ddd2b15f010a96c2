"""Sensitivity of linear maps, where numpy and torch know the answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_rrdb
from torch import Tensor, nn

from benchsr.base.errors import ModelError
from benchsr.base.inference import freeze
from benchsr.metrics.sensitivity import fourier_gains, frequencies, largest_singular_value, opposite, wave


class Linear(nn.Module):
    """A map from 3 x 6 x 5 to 3 x 24 x 20 elements by a matrix, moved by a constant."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.matrix = torch.randn(3 * 24 * 20, 3 * 6 * 5, generator=torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor) -> Tensor:
        return (self.matrix @ x.flatten() + 0.3).view(1, 3, 24, 20)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_linear_map_has_the_singular_value_of_its_matrix(seed: int) -> None:
    network = Linear(seed)
    found = largest_singular_value(network, torch.rand(1, 3, 6, 5), "a")
    expected = torch.linalg.svdvals(network.matrix.double())[0].item()
    assert found.value == pytest.approx(expected, rel=5e-3)
    assert found.value <= expected * (1 + 1e-6), "it is found from below"
    assert 1 < found.products < 150
    assert found.residual < 2e-2


@pytest.mark.parametrize("frozen", [True, False])
def test_a_network_has_the_singular_value_of_its_whole_jacobian(frozen: bool) -> None:
    network = freeze(tiny_rrdb()) if frozen else tiny_rrdb()
    lr = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    jacobian = torch.func.jacfwd(network)(lr).reshape(3 * 16 * 16, -1)
    found = largest_singular_value(network, lr, "a")
    assert found.value == pytest.approx(torch.linalg.svdvals(jacobian.double())[0].item(), rel=5e-3)
    assert found == largest_singular_value(network, lr, "a")
    assert found != largest_singular_value(network, lr, "b"), "begun elsewhere"


def test_what_has_no_derivative_is_refused() -> None:
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach()

    with pytest.raises(ModelError, match="Jacobian"):
        largest_singular_value(Cut(), torch.rand(1, 3, 4, 4), "a")


class Filter(nn.Module):
    """Each channel convolved with one kernel, round and round."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = torch.randn(3, 3, generator=torch.Generator().manual_seed(4))

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.expand(3, 1, 3, 3)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), kernel, groups=3)


@pytest.mark.parametrize("shape", [(12, 12), (9, 14)])
def test_the_map_of_a_filter_is_its_frequency_response(shape: tuple[int, int]) -> None:
    network, padded = Filter(), np.zeros(shape)
    padded[:3, :3] = network.kernel.numpy()
    response = np.abs(np.fft.fft2(padded))
    found = list(fourier_gains(network, torch.rand(1, 3, *shape), "a", norm=1.3, most=max(shape)))
    known = {(ky, kx) for ky, kx, _ in found}
    both = known | {opposite(*shape, *k) for k in known}
    assert len(both) == shape[0] * shape[1], "each frequency or its opposite, and none else"
    assert len(known) == (shape[0] * shape[1] + len([k for k in known if k == opposite(*shape, *k)])) / 2
    for ky, kx, gain in found:
        assert gain == pytest.approx(response[ky, kx], rel=1e-4, abs=1e-5)
        assert response[opposite(*shape, ky, kx)] == pytest.approx(response[ky, kx])


def test_waves_have_norm_one_and_one_frequency() -> None:
    for ky, kx in [(0, 0), (1, 2), (-4, 3), (4, 0)]:
        image = wave(8, 10, ky, kx).numpy()
        assert np.linalg.norm(image) == pytest.approx(1)
        spectrum = np.abs(np.fft.fft2(image)) > 1e-9
        expected = np.zeros((8, 10), dtype=bool)
        expected[ky, kx] = expected[opposite(8, 10, ky, kx)] = True
        assert (spectrum == expected).all()


def test_large_images_have_a_coarse_grid() -> None:
    grid = frequencies(24, 48)
    assert {ky for ky, _ in grid} <= set(range(-12, 12, 2))
    assert {kx for _, kx in grid} <= set(range(-24, 24, 4))
    assert len(grid) == (144 + 4) / 2
    assert (0, 0) in grid


def test_a_change_of_the_signs_needs_another_image() -> None:
    network, lr = tiny_rrdb(), torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    first, again, other = (list(fourier_gains(network, lr, name, 0.5, most=3)) for name in ("a", "a", "b"))
    assert first == again
    assert first != other
