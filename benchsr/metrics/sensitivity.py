"""How much a network's answer moves with its input: the Jacobian's largest singular value, and gains by frequency."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn

from benchsr.base.errors import ModelError
from benchsr.base.inference import full_float32
from benchsr.base.rng import generator

TOLERANCE = 1e-2
"""Relative accuracy that is asked of the largest eigenvalue of J'J; that of the singular value is half of it."""

STEPS, RESTARTS = 12, 20
"""Products before the iteration first looks whether it has converged, and how often it may begin anew from its best
vector."""

GRID = 12
"""Frequencies along each axis at most."""


@dataclass(frozen=True)
class Singular:
    """The largest singular value, the products with J'J that it took, and the residual |J'J v - s^2 v| / s^2."""

    value: float
    products: int
    residual: float


def largest_singular_value(network: nn.Module, lr: Tensor, sample_id: str, seed: int = 0) -> Singular:
    """The largest singular value of the Jacobian J of `network` at `lr` (1, 3, h, w): how far SR moves, in l2, per unit
    of l2 that LR moves, for the worst small change.

    Power iteration on J'J whose steps are all kept (Lanczos; ARPACK), begun at noise of `sample_id`. J itself is never
    built: its products are a derivative of J'u by u, and a derivative of SR. Raises ModelError where the network is not
    twice differentiable by torch, or the iteration does not converge.
    """
    count = 0
    with torch.enable_grad(), full_float32():
        x = lr.detach().clone().requires_grad_()
        sr = network(x)
        u = torch.zeros_like(sr, requires_grad=True)
        try:
            (pulled,) = torch.autograd.grad(sr, x, u, create_graph=True)

            def product(v: NDArray[np.float64]) -> NDArray[np.float64]:
                nonlocal count
                count += 1
                pushed = torch.autograd.grad(pulled, u, torch.from_numpy(v).to(x).view_as(x), retain_graph=True)
                (back,) = torch.autograd.grad(sr, x, pushed, retain_graph=True)
                found: NDArray[np.float64] = back.flatten().cpu().numpy().astype(np.float64)
                return found

            start = torch.randn(x.numel(), generator=generator(seed, sample_id, "singular value"), dtype=torch.float64)
            operator = LinearOperator((x.numel(), x.numel()), matvec=product, dtype=np.float64)
            squares, vectors = eigsh(operator, k=1, v0=start.numpy(), tol=TOLERANCE, ncv=STEPS, maxiter=RESTARTS)
            square, vector = float(squares[0]), vectors[:, 0]
            taken = count
            residual = float(np.linalg.norm(product(vector) - square * vector)) / square if square > 0 else 0.0
        except ArpackNoConvergence:
            raise ModelError(f"its largest singular value did not converge within {count} products") from None
        except RuntimeError as error:
            raise ModelError(f"its Jacobian has no products: {error}") from None
    return Singular(math.sqrt(max(square, 0.0)), taken, residual)


def wave(height: int, width: int, ky: int, kx: int) -> Tensor:
    """The real Fourier basis image (height, width) of l2 norm 1 with `ky` and `kx` cycles per image."""
    y, x = torch.arange(height, dtype=torch.float64) * ky, torch.arange(width, dtype=torch.float64) * kx
    image = torch.cos(2 * math.pi * (y[:, None] / height + x / width))
    return image.div(image.norm())


def opposite(height: int, width: int, ky: int, kx: int) -> tuple[int, int]:
    """The other frequency that has the same wave, counted from -n // 2 on as all are."""
    return (height // 2 - ky) % height - height // 2, (width // 2 - kx) % width - width // 2


def frequencies(height: int, width: int, most: int = GRID) -> list[tuple[int, int]]:
    """(ky, kx), of two opposite ones the larger: evenly spaced from 0, `most` along each axis."""
    axes = []
    for n in (height, width):
        step = math.ceil(n / most)
        axes.append([k for k in range(-(n // 2), (n + 1) // 2) if k % step == 0])
    return [(ky, kx) for ky in axes[0] for kx in axes[1] if (ky, kx) >= opposite(height, width, ky, kx)]


def fourier_gains(
    network: nn.Module, lr: Tensor, sample_id: str, norm: float, seed: int = 0, most: int = GRID
) -> Iterator[tuple[int, int, float]]:
    """(ky, kx, gain) for `frequencies`: how far SR of `lr` (1, 3, h, w) moves, in l2, per unit of `norm` (Yin et al.
    2019, section 3.2, with the change of the output in place of the error rate).

    LR changes by a wave of that frequency in each channel, of l2 norm `norm` over all, each channel's sign drawn by
    `sample_id`. It is not clamped: the change has its norm.
    """
    height, width = lr.shape[-2:]
    with torch.no_grad(), full_float32():
        before = network(lr).double()
        for ky, kx in frequencies(height, width, most):
            signs = torch.randint(0, 2, (3, 1, 1), generator=generator(seed, sample_id, f"wave {ky} {kx}")) * 2 - 1
            change = (signs * wave(height, width, ky, kx) * (norm / math.sqrt(3))).to(lr)
            yield ky, kx, float((network(lr + change).double() - before).norm()) / norm
