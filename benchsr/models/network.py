"""From a card to a differentiable network."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchsr.base.errors import InputError, IntegrityError, ModelError
from benchsr.base.files import shown
from benchsr.base.inference import freeze
from benchsr.base.pairs import SCALE
from benchsr.models.adapters import merge_adapter
from benchsr.models.cards import MAX_WEIGHT_BYTES, Card, Live
from benchsr.models.ncnn import read_ncnn
from benchsr.models.zoo import Found, find_weights, load_card, root_card

MAX_PARAMETERS = 1 << 28


def network_bytes(card: Card) -> int:
    """Size of the files of a card's network, those of the network that an adapter changes included; 0 without weights.

    Raises as `network_key` does.
    """
    root = root_card(card)
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
    except (RuntimeError, ValueError, EOFError, KeyError, AttributeError, TypeError, OSError) as error:
        raise IntegrityError(f"{shown(files[0])} is not a torch checkpoint ({type(error).__name__})") from error
    return state


_READERS: dict[str, Callable[[tuple[Path, ...]], dict[str, Any] | nn.Module]] = {
    "safetensors": _read_safetensors,
    "pth": _read_pth,
    "ncnn": lambda files: read_ncnn(files[1], files[0]),
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
    """Bicubic interpolation (Keys 1981, a = -0.5) to four times the size, as MATLAB's imresize does inside the image.

    Edges are replicated. Maps (N, 3, h, w) to (N, 3, 4h, 4w), unclamped and differentiable.
    """

    PAD = 4  # the kernel reaches two pixels; torch shortens it at the border instead of replicating

    def forward(self, x: Tensor) -> Tensor:
        """Interpolate `x`."""
        padded = F.pad(x, (self.PAD,) * 4, mode="replicate")
        sr = F.interpolate(padded, scale_factor=SCALE, mode="bicubic", antialias=True)  # plain "bicubic" has a = -0.75
        crop = SCALE * self.PAD
        return sr[..., crop:-crop, crop:-crop]


def _build(state: dict[str, Tensor] | nn.Module, name: str) -> nn.Module:
    """The network that spandrel recognises in `state`, with a check of the sizes that it takes."""
    if isinstance(state, nn.Module):
        return state
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
    if not isinstance(descriptor, ImageModelDescriptor) or kind != (SCALE, 3, 3):
        raise ModelError(
            f"{name}: needs a x{SCALE} network from RGB to RGB; {descriptor.architecture.name} here is x{kind[0]} "
            f"from {kind[1]} to {kind[2]} channels"
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


def _check_output(network: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
    n, _, h, w = inputs[0].shape
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if shape != (n, 3, SCALE * h, SCALE * w):
        raise ModelError(
            f"{type(network).__name__} made {shape} of LR {(n, 3, h, w)}; expected {(n, 3, SCALE * h, SCALE * w)}"
        )


def _copied(card: Live) -> nn.Module:
    """A copy of the caller's network, which stays as it is, with whatever it is hooked to."""
    try:
        return copy.deepcopy(card._network)
    except Exception as error:  # whatever its own code raises
        raise ModelError(f"{card.id}: the network cannot be copied ({type(error).__name__}: {error})") from error


def load_network(card: Card | str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """The network f of a card or id, without smoothing: eval mode, fixed float32 weights.

    It maps LR (N, 3, h, w), RGB in [0, 1], to SR (N, 3, 4h, 4w), unclamped and differentiable in its input, and raises
    ModelError where its output has another shape. Raises UnknownIdError, CardError, UnavailableError (weights cannot
    be had: says what to do), IntegrityError (they are not what they should be) or ModelError (no x4 RGB network).
    """
    root = root_card(card if isinstance(card, Card) else load_card(card))
    network: nn.Module = Bicubic()
    if isinstance(root, Live):
        network = _copied(root)
    if root.weights:
        found = find_weights(root.weights, root._folder)
        if found.base:
            return merge_adapter(load_network(found.base, device), found.files[0], found.base.id)
        network = _build(_read_state(found), root.id)
    network.register_forward_hook(_check_output)
    return freeze(network.float().to(device))
