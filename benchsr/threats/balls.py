"""Norm balls around an LR image, as values: where a perturbation may start, step and stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from benchsr.base.errors import InputError
from benchsr.base.rng import normal_like, uniform_like

Norm = Literal["linf", "l2"]


def _column(values: Tensor, x: Tensor) -> Tensor:
    """Reshape per-image `values` (N,) so that they broadcast against the batch `x` (N, ...)."""
    return values.view(-1, *[1] * (x.dim() - 1))


@dataclass(frozen=True)
class Linf:
    """The L-infinity ball of radius `eps` ([0, 1] pixel units)."""

    eps: float

    def random(self, x: Tensor, gens: Sequence[torch.Generator]) -> Tensor:
        """A perturbation uniform in the ball, shaped like the batch `x` (N, C, H, W); row i from `gens[i]`."""
        return uniform_like(x, gens) * self.eps

    def steepest(self, grad: Tensor) -> Tensor:
        """The unit step that raises a linear function of gradient `grad` (N, C, H, W) most: its sign."""
        return grad.sign()

    def project(self, delta: Tensor) -> Tensor:
        """The nearest point of the ball to each perturbation of `delta` (N, C, H, W)."""
        return delta.clamp(-self.eps, self.eps)

    def norm(self, delta: Tensor) -> Tensor:
        """Norm of each perturbation of `delta` (N, ...): shape (N,)."""
        return delta.flatten(1).abs().amax(1)


@dataclass(frozen=True)
class L2:
    """The Euclidean ball of radius `eps`, over all elements of an image in [0, 1] units."""

    eps: float

    def random(self, x: Tensor, gens: Sequence[torch.Generator]) -> Tensor:
        """A perturbation of uniform direction, norm `eps`, shaped like the batch `x`; row i from `gens[i]`."""
        return self.steepest(normal_like(x, gens)) * self.eps

    def steepest(self, grad: Tensor) -> Tensor:
        """The unit step that raises a linear function most: the normalised gradient (zero stays zero)."""
        return grad / _column(self.norm(grad).clamp_min(1e-20), grad)

    def project(self, delta: Tensor) -> Tensor:
        """The nearest point of the ball to each perturbation of `delta` (N, C, H, W)."""
        scale = (self.eps / self.norm(delta).clamp_min(1e-20)).clamp_max(1.0)
        return delta * _column(scale, delta)

    def norm(self, delta: Tensor) -> Tensor:
        """Norm of each perturbation of `delta` (N, ...): shape (N,)."""
        norms: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        return norms


Ball = Linf | L2


def make_ball(norm: Norm, eps: float) -> Ball:
    """The ball of radius `eps` by the name of its norm; "linf" in pixel units, "l2" over all elements of an image.

    Raises InputError for an unknown norm, a negative or NaN radius, and an L-infinity radius above 1.
    """
    if norm not in get_args(Norm):
        raise InputError(f"unknown norm {norm!r}; use {' or '.join(get_args(Norm))}")
    if not eps >= 0 or (norm == "linf" and eps > 1):
        raise InputError(f"need eps >= 0, and at most 1 in linf; got eps={eps}, norm {norm!r}")
    return Linf(eps) if norm == "linf" else L2(eps)
