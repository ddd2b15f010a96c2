"""The table of defences: what stands around a network when a card deploys it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from benchsr.base.errors import InputError
from benchsr.base.registry import Registry
from benchsr.defences.smoothing import Smoothed
from benchsr.models.cards import MRS, Card, deployment
from benchsr.models.network import load_network
from benchsr.models.zoo import load_card


@dataclass(frozen=True)
class Defence:
    """One entry of the table: `make(network, seed=..., **settings)` gives the defended network.

    A defence that draws noise is a `Randomised` network; `seed` is for it alone.
    """

    title: str
    make: Callable[..., nn.Module]


def _smoothed(network: nn.Module, *, seed: int, sigma: float, n: int) -> nn.Module:
    return Smoothed(network, sigma, n, seed)


DEFENCES: Registry[Defence] = Registry("defence", {MRS: Defence("Median randomized smoothing", _smoothed)})


def deploy(card: Card, threat: str, network: nn.Module, seed: int = 0, draws: int | None = None) -> nn.Module:
    """`network` as `card` deploys it against `threat`; itself where nothing stands around it.

    `draws`: of a smoothed network, in the place of the card's. Raises UnknownIdError for a defence that there is not,
    InputError for settings that it does not take.
    """
    deployed = deployment(card, threat)
    if deployed is None:
        return network
    settings = dict(deployed.settings) | ({"n": draws} if draws and deployed.defence == MRS else {})
    try:
        return DEFENCES[deployed.defence].make(network, seed=seed, **settings)
    except TypeError as error:
        raise InputError(f"{card.file}: defence {deployed.defence!r} does not take {settings}: {error}") from None


def load_model(model: str | Card, threat: str = "clean", device: str | torch.device = "cpu") -> nn.Module:
    """Load a model of the zoo by id, by the path of a card, or from a Card: an `nn.Module` in eval mode.

    It maps LR (N, 3, h, w) in [0, 1] to SR (N, 3, sh, sw), unclamped and differentiable in its input. A card with a
    smoothing section gives the median-smoothed network, with the sigma that the card sets for `threat`; one with
    another defence the defended network.
    Raises UnknownIdError, CardError, UnavailableError (weights cannot be had: says what to do) or IntegrityError.
    """
    card = model if isinstance(model, Card) else load_card(model)
    return deploy(card, threat, load_network(card, device=device))
