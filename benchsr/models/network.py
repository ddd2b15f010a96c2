"""From a card to a differentiable network."""

from __future__ import annotations

import copy
import logging
import pickle
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchsr.base.errors import InputError, IntegrityError, ModelError
from benchsr.base.files import shown
from benchsr.base.inference import freeze
from benchsr.base.pairs import SCALES, Scale
from benchsr.base.settings import Snapshot
from benchsr.models.adapters import merge_adapter
from benchsr.models.cards import MAX_WEIGHT_BYTES, Card, Coded, Live
from benchsr.models.isolated import isolated
from benchsr.models.ncnn import read_ncnn
from benchsr.models.tfjs import read_tfjs
from benchsr.models.zoo import Found, find_weights, load_card, root_card

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor

log = logging.getLogger(__name__)

MAX_PARAMETERS = 1 << 28


def network_bytes(card: Card) -> int:
    """Size of the files of a card's network, those of the network that an adapter changes included; 0 without weights.

    Raises as `network_key` does.
    """
    root = root_card(card)
    if isinstance(root, Coded):
        return root._bytes
    if isinstance(root, Live):
        return sum(value.nbytes for value in root._network.state_dict().values() if isinstance(value, Tensor))
    if not root.weights:
        return 0
    found = find_weights(root.weights, root._folder)
    return sum(file.stat().st_size for file in found.files) + (network_bytes(found.base) if found.base else 0)


def _read_safetensors(files: tuple[Path, ...]) -> dict[str, Any]:
    try:
        return safetensors.torch.load_file(files[0])
    except safetensors.SafetensorError as error:
        raise IntegrityError(f"{shown(files[0])} is not a safetensors file ({error})") from error


def _read_pth(files: tuple[Path, ...]) -> dict[str, Any]:
    """Read a torch checkpoint without ever running code that it names."""
    try:
        state: dict[str, Any] = torch.load(files[0], map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it names {named[1]}" if named else "it holds more than tensors, or is damaged"
        raise IntegrityError(f"{shown(files[0])}: refused, nothing was run: {what}") from error
    except Exception as error:  # torch trusts the structure of what it reads, and damage breaks it in many ways
        raise IntegrityError(f"{shown(files[0])} is not a torch checkpoint ({type(error).__name__})") from error
    return state


_READERS: dict[str, Callable[[tuple[Path, ...]], dict[str, Any] | nn.Module]] = {
    "safetensors": _read_safetensors,
    "pth": _read_pth,
    "ncnn": lambda files: read_ncnn(files[1], files[0]),
    "tfjs": read_tfjs,
}


def _read_state(found: Found) -> dict[str, Tensor] | nn.Module:
    """The tensors of the files, bounded in size; or the network, where its file holds the graph too."""
    if sum(file.stat().st_size for file in found.files) > MAX_WEIGHT_BYTES:
        raise IntegrityError(f"{shown(found.files[0])}: more than {MAX_WEIGHT_BYTES} bytes of weights")
    state = _READERS[found.format](found.files)
    if isinstance(state, nn.Module):
        return state
    from spandrel import canonicalize_state_dict  # it imports torchvision, which takes seconds

    state = dict(canonicalize_state_dict(state)) if isinstance(state, dict) else {}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise IntegrityError(f"{shown(found.files[0])} holds no table of tensors")
    if sum(value.numel() for value in state.values()) > MAX_PARAMETERS:
        raise IntegrityError(f"{shown(found.files[0])}: more than {MAX_PARAMETERS} parameters")
    return state


class Bicubic(nn.Module):
    """Bicubic interpolation (Keys 1981, a = -0.5) to `scale` times the size: MATLAB's imresize, inside the image.

    Edges are replicated. Maps (N, 3, h, w) to (N, 3, sh, sw), s being the scale, unclamped and differentiable.
    """

    PAD = 4  # the kernel reaches two pixels; torch shortens it at the border instead of replicating

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Interpolate `x`."""
        padded = F.pad(x, (self.PAD,) * 4, mode="replicate")
        sr = F.interpolate(
            padded, scale_factor=self.scale, mode="bicubic", antialias=True
        )  # plain "bicubic" has a = -0.75
        crop = self.scale * self.PAD
        return sr[..., crop:-crop, crop:-crop]


def _recognised(state: dict[str, Tensor], name: str) -> ImageModelDescriptor:
    """What spandrel recognises in `state`: a network from RGB to RGB, of a factor that we know."""
    from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError

    try:
        descriptor = ModelLoader().load_from_state_dict(state)
    except UnsupportedModelError as error:
        raise ModelError(
            f"{name}: spandrel knows no architecture with these weights: {sorted(state)[:3]}..."
        ) from error
    except Exception as error:  # spandrel reads shapes out of the weights, and damaged ones break it in many ways
        raise ModelError(
            f"{name}: the weights do not fit their architecture ({type(error).__name__}: {error})"
        ) from error
    kind = (descriptor.scale, descriptor.input_channels, descriptor.output_channels)
    if not isinstance(descriptor, ImageModelDescriptor) or kind[0] not in SCALES or kind[1:] != (3, 3):
        raise ModelError(
            f"{name}: needs a network from RGB to RGB, x{', x'.join(map(str, SCALES))}; {descriptor.architecture.name} "
            f"here is x{kind[0]} from {kind[1]} to {kind[2]} channels"
        )
    return descriptor


def at_own_scale(card: Card) -> Card:
    """`card` at the factor of its weights where nobody has stated one; as it is where it has none, as bicubic
    interpolation. Raises as `load_network` does.
    """
    root = root_card(card)
    found = find_weights(root.weights, root._folder) if card.scale == "any" and root.weights else None
    state = _read_state(found) if found and not found.base else None
    return card.at(_recognised(state, root.id).scale) if isinstance(state, dict) else card


def _build(state: dict[str, Tensor] | nn.Module, name: str, scale: Scale | Literal["any"]) -> nn.Module:
    """The network in `state`, of the factor `scale`, with a check of the sizes it takes."""
    if isinstance(state, nn.Module):
        return state
    descriptor = _recognised(state, name)
    own = descriptor.scale
    if scale not in ("any", own):
        raise ModelError(
            f"{name}: scale: {descriptor.architecture.name} here is x{own}, not x{scale}; write scale = {own} into its "
            f"card, or without one give --scale {own}"
        )
    network: nn.Module = descriptor.model  # not the descriptor: its call clamps, and cuts the gradient
    needs = descriptor.size_requirements
    if not needs.none:

        def check_size(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            h, w = inputs[0].shape[-2:]
            if not needs.check(w, h):
                raise InputError(f"{name} cannot take LR of {w} x {h} pixels: {needs}")

        network.register_forward_pre_hook(check_size)
    return network


def _check_output(scale: Scale, network: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
    n, _, h, w = inputs[0].shape
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if shape != (n, 3, scale * h, scale * w):
        others = [other for other in SCALES if shape == (n, 3, other * h, other * w)]
        raise ModelError(
            f"{type(network).__name__} made {shape} of LR {(n, 3, h, w)}; expected {(n, 3, scale * h, scale * w)}"
            + "".join(f": it is x{other}, not x{scale}; see scale in its card, or --scale" for other in others)
        )


def _copied(card: Live) -> nn.Module:
    """A copy of the caller's network, which stays as it is, with whatever it is hooked to."""
    try:
        return copy.deepcopy(card._network)
    except Exception as error:  # whatever its own code raises
        raise ModelError(f"{card.id}: the network cannot be copied ({type(error).__name__}: {error})") from error


def _guard(who: str, network: nn.Module) -> None:
    """Undo after each call, in place, whatever the code of `network` does to its input or to torch's settings.

    The settings that it changed are named in the log, once.
    """
    calls: list[Snapshot] = []
    told: set[str] = set()

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        calls.append(Snapshot())
        return inputs[0].clone(), *inputs[1:]

    def after(*_: Any) -> None:
        changed = set(calls.pop().restore()) - told
        if changed:
            told.update(changed)
            log.warning("%s changed settings of torch; they are set back: %s", who, ", ".join(sorted(changed)))

    network.register_forward_pre_hook(before)
    network.register_forward_hook(after, always_call=True)


def load_network(card: Card | str | Path, device: str | torch.device = "cpu", memory: float | None = None) -> nn.Module:
    """The network f of a card or id, without smoothing: eval mode, fixed float32 weights.

    It maps LR (N, 3, h, w), RGB in [0, 1], to SR (N, 3, sh, sw), s being the card's factor, unclamped and
    differentiable in its input, and raises ModelError where its output has another shape. `memory`: bytes that the
    process of a network made by code may take, by default most of what is free. Raises UnknownIdError,
    CardError, UnavailableError (weights cannot be had: says what to do), IntegrityError (they are not what they should
    be) or ModelError (no RGB network of the card's scale).
    """
    asked = card if isinstance(card, Card) else load_card(card)
    root = root_card(asked)
    network: nn.Module = Bicubic(asked.factor)
    if isinstance(root, Coded):
        network = isolated(root, torch.device(device), memory)
    elif isinstance(root, Live):
        network = _copied(root)
        _guard(root.id, network)
    if root.weights:
        found = find_weights(root.weights, root._folder)
        if found.base:
            return merge_adapter(load_network(found.base, device), found.files[0], found.base.id)
        network = _build(_read_state(found), root.id, asked.scale)
    if asked.scale != "any":
        network.register_forward_hook(partial(_check_output, asked.scale))
    return freeze(network.float().to(device))
