"""Median randomized smoothing (paper, section 4; Chiang et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchsr.batching import row_slices
from benchsr.models import Card, load_card, load_network, sigma_for
from benchsr.rng import generator
from benchsr.types import InputError


class Smoothed(nn.Module):
    """q_0.5: the per-pixel median of `network` over `n` draws of x + N(0, sigma^2 I) (paper, Lemma 4.1 with p = 0.5).

    `ids` given to `forward` (default "0", "1", ...) and `seed` fix each image's draws. The noisy input is not clipped:
    the certificate is about Gaussian noise. For even n the median is the lower of the two middle draws. Memory beyond
    one forward pass: the n outputs of one image.
    """

    def __init__(self, network: nn.Module, sigma: float, n: int = 21, seed: int = 0, draws_at_once: int = 7) -> None:
        if not sigma > 0 or n < 1:
            raise InputError(f"smoothing needs sigma > 0 and n >= 1; got sigma={sigma}, n={n}")
        super().__init__()
        self.network = network
        self.sigma = sigma
        self.n = n
        self.seed = seed
        self.draws_at_once = draws_at_once

    def noisy(self, x: Tensor, sample_id: str, purpose: str = "mrs") -> Tensor:
        """The n noisy copies (n, 3, h, w) of one image `x` (3, h, w)."""
        gen = generator(self.seed, sample_id, purpose)
        noise = torch.stack([torch.randn(x.shape, generator=gen) for _ in range(self.n)])
        return x + self.sigma * noise.to(x)

    def draws(self, x: Tensor, sample_id: str) -> Tensor:
        """The network's n outputs (n, 3, 4h, 4w) for one image `x` (3, h, w)."""
        noisy = self.noisy(x, sample_id)
        parts = [self.network(noisy[rows]) for rows in row_slices(self.n, x.device, self.draws_at_once)]
        return torch.cat(parts)

    def forward(self, x: Tensor, ids: Sequence[str] | None = None) -> Tensor:
        """Median SR (N, 3, 4h, 4w), unclamped, of `x` (N, 3, h, w) in [0, 1]."""
        ids = [str(i) for i in range(len(x))] if ids is None else ids
        return torch.stack([self.draws(image, i).median(dim=0).values for image, i in zip(x, ids, strict=True)])


def smooth(model: nn.Module, sigma: float, n: int = 21, seed: int = 0) -> Smoothed:
    """The median-smoothed version of `model`; see `Smoothed`. Raises InputError unless sigma > 0 and n >= 1."""
    return Smoothed(model, sigma, n, seed)


def smoothed_for(card: Card, threat: str, network: nn.Module, seed: int = 0) -> nn.Module:
    """`network` as `card` deploys it against `threat`: smoothed with the card's sigma, or itself where that is 0."""
    sigma = sigma_for(card, threat)
    if card.smoothing is None or sigma == 0:
        return network
    return Smoothed(network, sigma, card.smoothing.n, seed)


def load_model(model: str | Card, threat: str = "clean", device: str | torch.device = "cpu") -> nn.Module:
    """Load a model of the zoo by id, by the path of a card, or from a Card: an `nn.Module` in eval mode.

    It maps LR (N, 3, h, w) in [0, 1] to SR (N, 3, 4h, 4w), unclamped and differentiable in its input. A card with a
    smoothing section gives the median-smoothed network, with the sigma that the card sets for `threat`.
    Raises UnknownIdError, CardError, UnavailableError (weights cannot be had: says what to do) or IntegrityError.
    """
    card = model if isinstance(model, Card) else load_card(model)
    return smoothed_for(card, threat, load_network(card, device=device))
