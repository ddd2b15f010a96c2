"""The table of defences: what stands around a network when a card deploys it.

Every defence is attacked through what it does: of one that is random the loss is averaged over draws (expectation over
transformation), of one that is not differentiable the gradient is a straight-through estimate (BPDA; Athalye et al.
2018). An entry says which of the two it needs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial, wraps

import torch
from torch import nn

from benchsr.base.errors import InputError
from benchsr.base.registry import Registry
from benchsr.defences import transforms
from benchsr.defences.averaging import Averaged
from benchsr.defences.smoothing import Smoothed
from benchsr.models.cards import MRS, Card, DefenceSetting, Deployment, sigma_for
from benchsr.models.network import load_network
from benchsr.models.zoo import load_card


@dataclass(frozen=True)
class Defence:
    """One entry of the table: `make(network, seed=..., **settings)` gives the defended network.

    `random`: it draws noise, and is a `Randomised` network; `seed` is for it alone. `differentiable`: its gradient is
    its own; otherwise it is a straight-through estimate. A setting `n` is the number of draws that one answer pools.
    """

    title: str
    make: Callable[..., nn.Module]
    random: bool = False
    differentiable: bool = True

    @property
    def defaults(self) -> dict[str, DefenceSetting]:
        """The settings that need not be given, with their values."""
        parameters = inspect.signature(self.make).parameters.values()
        settings = (p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "seed")
        return {p.name: p.default for p in settings if p.default is not p.empty}

    @property
    def about(self) -> str:
        """What it does, in a line."""
        return (inspect.getdoc(self.make) or self.title).splitlines()[0]

    @property
    def attacked(self) -> str:
        """How an attack that knows it looks through it, in words."""
        ways = [("expectation over its draws", self.random), ("straight-through estimate", not self.differentiable)]
        return ", ".join(way for way, needed in ways if needed) or "its own gradient"


def _before(transform: Callable[..., torch.Tensor], differentiable: bool) -> Callable[..., nn.Module]:
    """What puts `transform` before a network: its settings are the transform's."""

    @wraps(transform)
    def make(network: nn.Module, *, seed: int, **settings: DefenceSetting) -> nn.Module:
        return transforms.Transformed(network, partial(transform, **settings), differentiable)

    return make


def _smoothed(network: nn.Module, *, seed: int, sigma: float = 0.06, n: int = 21) -> nn.Module:
    """Each pixel is the median of `n` answers to LR with Gaussian noise `sigma` (the paper's; Chiang et al. 2020)."""
    return Smoothed(network, sigma, n, seed)


def _averaged(network: nn.Module, *, seed: int, sigma: float = 0.06, n: int = 21) -> nn.Module:
    """Each pixel is the mean of `n` answers, clamped, to LR with Gaussian noise `sigma` (Salman et al. 2019)."""
    return Averaged(network, sigma, n, seed)


def _resized_and_padded(network: nn.Module, *, seed: int, grow: float = 0.2) -> nn.Module:
    """LR is enlarged by a random factor up to 1 + `grow` and put at a random place of a canvas (Xie et al. 2018)."""
    return transforms.RandomResizePad(network, seed, grow)


def _ensembled(network: nn.Module, *, seed: int) -> nn.Module:
    """The mean of the answers to LR turned and mirrored in all 8 ways, each turned back (Timofte et al. 2016)."""
    return transforms.SelfEnsemble(network)


DEFENCES: Registry[Defence] = Registry(
    "defence",
    {
        MRS: Defence("Median randomized smoothing", _smoothed, random=True),
        "mean-smoothing": Defence("Mean randomized smoothing", _averaged, random=True),
        **{
            name: Defence(title, _before(transform, differentiable), differentiable=differentiable)
            for name, title, transform, differentiable in (
                ("jpeg", "JPEG", transforms.jpeg, False),
                ("bit-depth", "Fewer bits", transforms.bit_depth, False),
                ("median-filter", "Median filter", transforms.median_filter, True),
                ("gaussian-blur", "Gaussian blur", transforms.blur, True),
                ("resize", "Shrink and enlarge", transforms.resize, True),
                ("denoise", "Total-variation denoiser", transforms.denoise, False),
            )
        },
        "random-resize-pad": Defence("Random size and place", _resized_and_padded, random=True),
        "self-ensemble": Defence("Self-ensemble (x8)", _ensembled),
    },
    group="benchsr.defences",
    of=Defence,
)


def _settings(card: Card, name: str, given: Mapping[str, DefenceSetting]) -> tuple[tuple[str, DefenceSetting], ...]:
    """All settings of a defence by name, defaults spelled out, so that no key depends on what a default was."""
    defence = DEFENCES[name]
    required = inspect.signature(defence.make).parameters.keys() - defence.defaults.keys() - {"seed"}
    settings = dict(defence.defaults)
    for setting, value in given.items():
        kind = type(settings.get(setting, value))
        if setting not in settings and setting not in required:
            near = get_close_matches(setting, settings, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(settings) or 'none'}"
            raise InputError(f"{card.file}: defence {name!r} has no setting {setting!r}; {hint}")
        if not isinstance(value, kind) and not (kind is float and type(value) is int):
            raise InputError(f"{card.file}: defence {name!r}: {setting} must be {kind.__name__}, got {value!r}")
        settings[setting] = kind(value)
    return tuple(sorted(settings.items()))


def deployment(card: Card, threat: str) -> Deployment | None:
    """How `card` meets a threat; None where nothing stands around its network.

    Raises UnknownIdError for a defence that there is not, InputError for settings that it does not take.
    """
    if card.defence:
        return Deployment(card.defence.name, _settings(card, card.defence.name, card.defence.settings))
    sigma = sigma_for(card, threat)
    return Deployment(MRS, (("n", card.smoothing.n), ("sigma", sigma))) if card.smoothing and sigma else None


def deploy(card: Card, threat: str, network: nn.Module, seed: int = 0, draws: int | None = None) -> nn.Module:
    """`network` as `card` deploys it against `threat`; itself where nothing stands around it.

    `draws`: of a defence that pools so many, in the place of the card's. Raises as `deployment` does.
    """
    deployed = deployment(card, threat)
    if deployed is None:
        return network
    settings = dict(deployed.settings)
    if draws and "n" in settings:
        settings["n"] = draws
    try:
        return DEFENCES[deployed.defence].make(network, seed=seed, **settings)
    except TypeError as error:
        raise InputError(f"{card.file}: defence {deployed.defence!r} does not take {settings}: {error}") from None


def load_model(model: str | Card, threat: str = "clean", device: str | torch.device = "cpu") -> nn.Module:
    """Load a model of the zoo by id, by the path of a card, or from a Card: an `nn.Module` in eval mode.

    It maps LR (N, 3, h, w) in [0, 1] to SR (N, 3, sh, sw), unclamped and differentiable in its input. A card with a
    smoothing section gives the median-smoothed network, with the sigma that the card sets for `threat`; one with
    another defence the defended network, as does `jpeg+impressionism-ntire`.
    Raises UnknownIdError, CardError, UnavailableError (weights cannot be had: says what to do) or IntegrityError.

    Examples:
        >>> import benchsr, torch
        >>> model = benchsr.load_model("compact-certsr")
        >>> model(torch.rand(1, 3, 16, 16)).shape
        torch.Size([1, 3, 64, 64])
    """
    card = model if isinstance(model, Card) else load_card(model)
    return deploy(card, threat, load_network(card, device=device))
