"""The smoothed model against a median written out here, its gradient against finite differences, its memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import images, tiny_rrdb
from torch import Tensor, nn

import benchsr.defences.smoothing
from benchsr.base.errors import InputError
from benchsr.base.rng import generator
from benchsr.defences.smoothing import Smoothed, smooth


class Curved(nn.Module):
    """x4 and nonlinear, with one parameter; element by element, so that batching cannot change its rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(torch.sin(5 * self.gain * x) + x**3, scale_factor=4)


def by_hand(network: nn.Module, x: Tensor, sigma: float, n: int, sample_id: str, seed: int = 0) -> np.ndarray:
    gen = generator(seed, sample_id, "evaluation-0")
    with torch.no_grad():
        noisy = torch.stack([x + sigma * torch.randn(x.shape, generator=gen) for _ in range(n)])
        outputs = torch.cat([network(rows) for rows in noisy.split(7)])  # of x up to 24 x 24
    return np.asarray(np.median(outputs.numpy(), axis=0))


def test_it_is_the_median_over_noisy_copies() -> None:
    network, (lr, _) = tiny_rrdb(), images(2, 8)
    smoothed = smooth(network, 0.05, n=5, seed=3)(lr, ["a", "b"])
    for row, x, name in zip(smoothed, lr, "ab", strict=True):
        np.testing.assert_array_equal(row.numpy(), by_hand(network, x, 0.05, 5, name, seed=3))


def test_the_chunks_are_the_same_for_everyone() -> None:
    """Convolutions round differently for another number of images: whoever has less memory must not get other SR."""
    network, (lr, _) = tiny_rrdb(), images(1, 12)
    outputs = [Smoothed(network, 0.05, 9, draws_at_once=k)(lr) for k in (1, 3, 7)]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_draws_of_small_images_go_through_the_network_together() -> None:
    seen: list[int] = []
    network = Curved()
    network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    for side, expected in ((8, [7, 2]), (32, [3, 3, 3]), (48, [1] * 9)):
        seen.clear()
        with torch.no_grad():
            Smoothed(network, 0.05, 9)(images(1, side)[0])
        assert seen == expected


def test_an_even_number_of_draws_gives_the_lower_middle() -> None:
    model, (lr, _) = smooth(Curved(), 0.1, n=4), images(1, 4)
    expected = model.draws(lr[0], "0").sort(dim=0).values[1]
    assert torch.equal(model(lr)[0], expected)


def test_each_image_keeps_its_draws_in_any_batch_and_order() -> None:
    model, (lr, _) = smooth(tiny_rrdb(), 0.05, n=3), images(3, 8)
    together = model(lr, ["a", "b", "c"])
    assert torch.equal(together[1:2], model(lr[1:2], ["b"]))
    assert torch.equal(together, model(lr.flip(0), ["c", "b", "a"]).flip(0))
    assert not torch.equal(together[1:2], model(lr[1:2], ["a"]))
    assert not torch.equal(together[1:2], model(lr[1:2], ["b"], "another purpose"))


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_chunks_change_nothing(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(n: int, lr: Tensor, most: int) -> Iterator[slice]:
        return (slice(i, min(i + size, n)) for i in range(0, n, size))

    x = images(1, 6)[0].requires_grad_()
    model = smooth(Curved(), 0.1, n=9)
    whole = model(x)
    (gradient,) = torch.autograd.grad(whole.square().sum(), x)
    monkeypatch.setattr(benchsr.defences.smoothing, "draw_slices", cut)
    assert torch.equal(model(x), whole)
    torch.testing.assert_close(torch.autograd.grad(model(x).square().sum(), x)[0], gradient, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n", [1, 4])
def test_gradient_equals_finite_differences(n: int) -> None:
    model = smooth(Curved().double(), 0.1, n=n)
    x = images(2, 2)[0].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model(x, ["a", "b"]), x)


@pytest.mark.parametrize("n", [7, 9])  # one chunk, and two
def test_gradient_reaches_input_and_parameters_as_through_stored_draws(n: int) -> None:
    network, (lr, _) = Curved(), images(1, 6)
    x = lr.clone().requires_grad_()
    gen = generator(0, "0", "evaluation-0")
    stored = torch.cat([network(x + 0.1 * torch.randn(x.shape[1:], generator=gen)) for _ in range(n)])
    expected = torch.autograd.grad(stored.median(dim=0).values.square().sum(), (x, network.gain))
    found = torch.autograd.grad(smooth(network, 0.1, n=n)(x).square().sum(), (x, network.gain))
    torch.testing.assert_close(found, expected)
    assert all(g.abs().max() > 0.1 for g in found)


@pytest.mark.parametrize(("n", "passes"), [(1, 1), (7, 1), (8, 4)])
def test_draws_of_one_chunk_are_not_made_again_for_their_gradient(n: int, passes: int) -> None:
    network, seen = tiny_rrdb(), []
    network.register_forward_hook(lambda *_: seen.append(1))
    x = images(1, 8)[0].requires_grad_()
    torch.autograd.grad(smooth(network, 0.1, n)(x).sum(), x)
    assert len(seen) == passes


def test_a_network_of_the_zoos_kind_has_a_gradient_too() -> None:
    network, (lr, _) = tiny_rrdb(), images(1, 8)
    x = lr.requires_grad_()
    (gradient,) = torch.autograd.grad(smooth(network, 0.02, n=5)(x).mean(), x)
    step = 1e-3 * gradient.sign()
    with torch.no_grad():
        model = smooth(network, 0.02, n=5)
        rise = (model(x + step).double().mean() - model(x - step).double().mean()) / 2
    assert float(rise) == pytest.approx(float((gradient * step).sum()), rel=0.05)


@pytest.mark.parametrize(("sigma", "n"), [(0.0, 5), (-0.1, 5), (float("nan"), 5), (0.1, 0)])
def test_settings_without_meaning_are_refused(sigma: float, n: int) -> None:
    with pytest.raises(InputError, match="sigma > 0 and n >= 1"):
        Smoothed(nn.Identity(), sigma, n)


MEMORY = """
import re, torch
from pathlib import Path
from benchsr.defences.smoothing import smooth
from benchsr.defences.certificate import certify

def peak():  # not ru_maxrss: that starts at the peak of the process that spawned this one
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

torch.set_num_threads(1)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 48, 1), torch.nn.PixelShuffle(4)).requires_grad_(False)
x = torch.rand(1, 3, 16, 16)
stored = 4 * 3 * 64 * 64

def gradient(n):
    v = x.clone().requires_grad_()
    torch.autograd.grad(smooth(net, 0.1, n)(v).sum(), v)

for work in (gradient, lambda n: certify(net, x, 0.1, 0.05, n)):
    work(21)
    before = peak()
    work(1001)
    print((peak() - before) / (980 * stored))
"""


def test_memory_grows_by_the_stored_draws_alone() -> None:
    """n = 1001 takes the 980 more outputs (48 MB), and less than half of that besides."""
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    median, certificate = map(float, run.stdout.split())
    assert 0.5 < median < 1.5
    assert certificate < 1.5
