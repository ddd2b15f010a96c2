"""Models without a card: live networks, code that makes one, weights files; and what is asked of them before a run."""

from __future__ import annotations

import hashlib
import inspect
import pickle
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchsr.base.errors import BenchsrError, InputError, ModelError
from benchsr.base.inference import require_repeated
from benchsr.base.pairs import USUAL, Scale
from benchsr.base.rng import Randomised
from benchsr.base.schema import require_id
from benchsr.models.cards import UNSTATED, Card, Coded, Live
from benchsr.models.isolated import coded
from benchsr.models.network import load_network
from benchsr.models.zoo import FACTORY, WEIGHTS, load_card, named, renamed, require_free, select_cards

TRIAL_SIDE = 32
"""LR side, in pixels, of the image that a network without a card must answer first."""

Model = str | Path | Card | nn.Module


def select(models: str | Mapping[str, Model], trust_code: bool = False, scale: Scale = USUAL) -> list[Card]:
    """Cards of a factor for "all", a comma-separated list of `[ID=]MODEL`, or a mapping from ids to models.

    A model is an id, the path of a card or of a weights file, package.module:factory (code, run only with
    `trust_code`), and in a mapping also a Card or a live network. Raises what `load_card`, `live` and `made` raise.
    """
    load = partial(_named_card, trust_code=trust_code, scale=scale)
    if isinstance(models, str):
        return select_cards(models, scale, load)
    if not isinstance(models, Mapping):
        raise InputError(f"models must be a string or a mapping from ids to models; got {type(models).__name__}")
    return [_mapped_card(row, model, trust_code, scale) for row, model in models.items()]


def _mapped_card(row: str, model: Model, trust_code: bool, scale: Scale) -> Card:
    require_id(row)
    if isinstance(model, nn.Module):
        return live(row, model, scale)
    if isinstance(model, Card):
        return renamed(model, row).at(scale)
    if isinstance(model, str | Path):
        return _named_card(f"{row}={model}", trust_code, scale)
    raise InputError(f"model {row!r} is a {type(model).__name__}; give a network (torch.nn.Module), an id or a path")


def _named_card(text: str, trust_code: bool, scale: Scale) -> Card:
    row, what = named(text)
    if FACTORY.fullmatch(what) and trust_code:
        return made(what, row, scale)
    card = load_card(text).at(scale)
    if Path(what).suffix in WEIGHTS:
        try_out(card)
    return card


def live(row: str, network: nn.Module, scale: Scale = USUAL) -> Live:
    """The row `row` for a network in eval mode and float32, on any device; it is copied for each use, never changed.

    It maps LR (N, 3, h, w), RGB in [0, 1], to SR of factor `scale`, unclamped. Raises InputError or ModelError,
    saying what to do, for an id that is taken, train mode, other precisions, NaN in weights or answers, wrong shapes,
    and answers that differ (see `benchsr.Seeded`).
    """
    require_free(row)
    if any(module.training for module in network.modules()):
        raise InputError(
            f"{row}: the network is in train mode; call its eval() first: benchsr changes nothing about it"
        )
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        if value.is_meta:
            raise InputError(f"{row}: {name} is on the device meta, without values; load the weights first")
        if value.is_floating_point() and value.dtype != torch.float32:
            raise InputError(f"{row}: {name} is {value.dtype}; call the network's float(): figures are made in float32")
        if not bool(torch.isfinite(value).all()):
            raise ModelError(f"{row}: {name} holds NaN or infinite values")
    card = Live(id=row, title=row, scale=scale, **UNSTATED)
    card._network, card._key, card._name = network, live_key(network), row
    card._random = isinstance(network, Randomised)
    try_out(card)
    return card


def live_key(network: nn.Module) -> str:
    """SHA-256 of a network: the qualified names and sources of its classes, its settings as torch prints them, and
    every tensor (name, type, shape, bytes).

    What `forward` calls outside of those classes is not seen.
    """
    kinds = {f"{kind.__module__}.{kind.__qualname__}": _source(kind) for kind in map(type, network.modules())}
    key = hashlib.sha256(repr((type(network).__qualname__, sorted(kinds.items()), repr(network))).encode())
    state = {**network.state_dict(), **dict(network.named_buffers())}  # some buffers are in no state_dict
    for name, value in sorted(state.items()):
        if isinstance(value, Tensor):
            key.update(f"\x1f{name} {value.dtype} {tuple(value.shape)}\x1f".encode())
            key.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            key.update(f"\x1f{name} {value!r}\x1f".encode())
    return key.hexdigest()


def _source(kind: type) -> str:
    """The source of a class of somebody's own; empty where it cannot be had, and for torch's."""
    try:
        return "" if kind.__module__.startswith("torch.") else inspect.getsource(kind)
    except (OSError, TypeError):
        return ""


def made(factory: str, row: str = "", scale: Scale = USUAL) -> Coded:
    """The row for what package.module:factory, called without arguments, returns; by default named after it.

    Its module is looked for in the current folder too. This runs that code, in a process of its own. Raises InputError
    where it cannot be imported, ModelError where it fails, and what `live` raises.
    """
    row = row or factory.rpartition(":")[2].rpartition(".")[2].lower().replace("_", "-").strip("-")
    require_id(row)
    require_free(row)
    return coded(factory, row, scale)


def trial(device: torch.device) -> Tensor:
    """The image (1, 3, h, w) that a network without a card is shown first."""
    return torch.rand((1, 3, TRIAL_SIDE, TRIAL_SIDE), generator=torch.Generator().manual_seed(0)).to(device)


def try_out(card: Card) -> None:
    """Ask a network twice for a small image. Raises ModelError unless both answers are finite, alike, and SR in shape.

    An architecture that takes larger images only is left to the run.
    """
    parameter = next(card._network.parameters(), None) if isinstance(card, Live) else None
    device = parameter.device if parameter is not None else torch.device("cpu")
    network = load_network(card, device)
    x = trial(device)
    try:
        with torch.no_grad():
            answers = network(x), network(x)
    except InputError:
        return
    except BenchsrError as error:
        raise ModelError(f"{card.id}: {error}") from error
    except Exception as error:  # whatever its own code raises
        raise ModelError(f"{card.id} fails on LR of {tuple(x.shape)} ({type(error).__name__}: {error})") from error
    if not bool(torch.isfinite(answers[0]).all()):
        raise ModelError(f"{card.id} answers with NaN or infinite values")
    require_repeated(card.id, *answers)


def require_picklable(cards: Iterable[Card]) -> None:
    """Raise InputError where a live network cannot be sent to worker processes."""
    for card in (card for card in cards if isinstance(card, Live) and not isinstance(card, Coded)):
        modules = {type(module).__module__ for module in card._network.modules()}
        why = ""
        if "__main__" in modules and not hasattr(sys.modules["__main__"], "__file__"):
            why = "its class is defined in a notebook or console, which workers cannot import"
        try:
            pickle.dumps(card)
        except Exception as error:  # __reduce__ may be anybody's
            why = f"{type(error).__name__}: {error}"
        if why:
            raise InputError(
                f"{card.id}: the network cannot be sent to workers ({why}); move its class into a module, or stay in "
                "this process (--workers 1, without --cell-timeout)"
            )
