"""Low-rank adapters (LoRA, Hu et al. 2021): small updates of a network's convolutions, merged into its weights.

A file holds, for each convolution that it changes, `<module>.lora_A.weight` (rank, in, k, k) and
`<module>.lora_B.weight` (out, rank, 1, 1); its metadata names rank and alpha. The merged weight is
W + (alpha / rank) B A, so that the network is the plain architecture, as fast, and attackable by the same code.
"""

from __future__ import annotations

from math import isfinite
from pathlib import Path

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from benchsr.base.errors import IntegrityError

MAX_ADAPTER_BYTES = 64 << 20

_A, _B = ".lora_A.weight", ".lora_B.weight"


def adapter_about(path: Path) -> dict[str, str] | None:
    """The metadata of the adapter in `path`; None where it is a safetensors file of something else.

    Raises IntegrityError where it is no safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:
            about = dict(file.metadata() or {})
            return about if any(name.endswith(_A) for name in file.keys()) else None  # noqa: SIM118  # no mapping
    except (safetensors.SafetensorError, OSError) as error:
        raise IntegrityError(f"{path} is not a safetensors file ({error})") from error


def read_adapter(path: Path) -> tuple[dict[str, Tensor], float]:
    """The tensors of an adapter file, as float32, and alpha / rank.

    Raises IntegrityError, naming the file and what is wrong: its size, its metadata, numbers that are not finite.
    """
    if path.stat().st_size > MAX_ADAPTER_BYTES:
        raise IntegrityError(f"{path}: an adapter may have {MAX_ADAPTER_BYTES} bytes at most")
    about = adapter_about(path)
    if about is None:
        raise IntegrityError(f"{path} holds no adapter: it has no tensor named <module>{_A}")
    try:
        rank, alpha = int(about["rank"]), float(about["alpha"])
        if rank < 1 or not isfinite(alpha):
            raise ValueError(f"rank {rank}, alpha {alpha}")
    except (KeyError, ValueError) as error:
        raise IntegrityError(
            f"{path}: its metadata must name rank (1 or more) and alpha, a number ({error})"
        ) from error
    state = {name: value.float() for name, value in safetensors.torch.load_file(path).items()}
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise IntegrityError(f"{path} holds NaN or infinite values")
    return state, alpha / rank


def merge_adapter(network: nn.Module, path: Path, base: str) -> nn.Module:
    """Add the adapter in `path` to the weights of `network`, in place, and return it.

    Raises IntegrityError where the file is no adapter, or does not fit: an unknown module, half of a pair, a shape that
    is not the convolution's.
    """
    state, scale = read_adapter(path)
    names = {name.removesuffix(_A).removesuffix(_B) for name in state}
    convolutions = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    for name in sorted(names):
        if name not in convolutions:
            raise IntegrityError(f"{path}: {base} has no convolution {name!r}")
        a, b, weight = state.get(name + _A), state.get(name + _B), convolutions[name].weight
        if a is None or b is None:
            raise IntegrityError(f"{path}: {name} needs both lora_A.weight and lora_B.weight")
        if a.shape[1:] != weight.shape[1:] or tuple(b.shape) != (weight.shape[0], a.shape[0], 1, 1):
            raise IntegrityError(
                f"{path}: {name} is {tuple(weight.shape)} in {base}; {tuple(a.shape)} and {tuple(b.shape)} do not fit"
            )
        with torch.no_grad():
            weight += (scale * (b[..., 0, 0] @ a.flatten(1))).view_as(weight).to(weight)
    return network
