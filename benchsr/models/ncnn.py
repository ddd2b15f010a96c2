"""Networks from ncnn's two files: `.param`, the layers as text, and `.bin`, the numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchsr.base.errors import IntegrityError
from benchsr.models.graph import Function, Graph, Step

_MAGIC = "7767517"

_MAX_PARAM_BYTES = 4 << 20

_MAX_LAYERS = 10_000

_STORAGE = {0x01306B47: "<f2", 0: "<f4"}
"""The tag before a convolution's weights, and how they are stored: half precision or single."""

_RRDB_KINDS = {"BinaryOp", "Concat", "Convolution", "Eltwise", "Input", "Interp", "Split"}

_PER_BLOCK = 15

_BEFORE, _AFTER = ("conv_first",), ("conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last")


@dataclass(frozen=True)
class Layer:
    """One line of a .param file: its kind, the blobs that it takes and gives, and its attributes by number.

    Attributes are lists of numbers; those that ncnn numbers -23300 and below, arrays, stand under their own number.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[int, list[float]]

    def number(self, attribute: int, default: float = 0.0) -> float:
        """The attribute's only, or first, number."""
        return self.attributes.get(attribute, [default])[0]


def _layer(line: str) -> Layer:
    kind, _, inputs, outputs, *rest = line.split()
    m, n = int(inputs), int(outputs)
    attributes: dict[int, list[float]] = {}
    for pair in rest[m + n :]:
        name, _, text = pair.partition("=")
        values = [float(value) for value in text.split(",")]
        array = int(name) <= -23300
        attributes[-23300 - int(name) if array else int(name)] = values[1:] if array else values
    return Layer(kind, tuple(rest[:m]), tuple(rest[m : m + n]), attributes)


def _layers(param: Path) -> list[Layer]:
    if param.stat().st_size > _MAX_PARAM_BYTES:
        raise IntegrityError(f"{param}: larger than {_MAX_PARAM_BYTES} bytes, no network that can be read here is")
    magic, _, *lines = param.read_text(encoding="ascii").splitlines()
    if magic.strip() != _MAGIC:
        raise IntegrityError(f"{param} is not an ncnn text file: it does not begin with {_MAGIC}")
    layers = [_layer(line) for line in filter(str.strip, lines)]
    for layer in layers:
        if layer.kind not in _OPERATIONS:
            raise IntegrityError(
                f"{param}: layers of kind {layer.kind} cannot be read; known: {', '.join(_OPERATIONS)}"
            )
    if not 0 < len(layers) <= _MAX_LAYERS:
        raise ValueError(f"{len(layers)} layers")
    return layers


class _Numbers:
    """The numbers of a .bin file, taken in the order of the layers."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def plain(self, count: int) -> Tensor:
        """`count` float32 numbers."""
        values = np.frombuffer(self.data, "<f4", count, self.at)
        self.at += values.nbytes
        return torch.from_numpy(values.astype(np.float32))

    def tagged(self, count: int) -> Tensor:
        """`count` numbers after a tag that says how they are stored; padded to four bytes."""
        storage = np.dtype(_STORAGE[int.from_bytes(self.data[self.at : self.at + 4], "little")])
        values = np.frombuffer(self.data, storage, count, self.at + 4)
        self.at += 4 + -(-count * storage.itemsize // 4) * 4
        return torch.from_numpy(values.astype(np.float32))


def _plain_convolution(layer: Layer, numbers: _Numbers) -> nn.Conv2d:
    out, side, count = (int(layer.number(i)) for i in (0, 1, 6))
    if min(out, side, count) < 1:
        raise ValueError(f"a convolution of nothing: {layer.attributes}")
    weight = numbers.tagged(count).view(out, -1, side, side)
    stride, padding, dilation = int(layer.number(3, 1)), int(layer.number(4)), int(layer.number(2, 1))
    conv = nn.Conv2d(weight.shape[1], out, side, stride, padding, dilation, bias=bool(layer.number(5)))
    conv.weight.data = weight
    if conv.bias is not None:
        conv.bias.data = numbers.plain(out)
    return conv


def _convolution(layer: Layer, numbers: _Numbers) -> nn.Module:
    conv = _plain_convolution(layer, numbers)
    kind = int(layer.number(9))
    if kind not in (0, 1, 2):
        raise ValueError(f"activation {kind} of a convolution is unknown")
    slope = 0.0 if kind == 1 else layer.number(10, 0.0)
    return nn.Sequential(conv, nn.LeakyReLU(slope)) if kind else conv


def _prelu(layer: Layer, numbers: _Numbers) -> nn.Module:
    prelu = nn.PReLU(int(layer.number(0)))
    prelu.weight.data = numbers.plain(int(layer.number(0)))
    return prelu


def _interp(layer: Layer, _: _Numbers) -> nn.Module:
    modes, kind = {1: "nearest", 2: "bilinear"}, int(layer.number(0))
    if kind not in modes or layer.number(1) != layer.number(2):
        raise ValueError(f"interpolation {layer.attributes} is unknown")
    return nn.Upsample(scale_factor=layer.number(1), mode=modes[kind])


def _concat(layer: Layer, _: _Numbers) -> nn.Module:
    if layer.number(0):
        raise ValueError("only channels can be put together")
    return Function(lambda *x: torch.cat(x, dim=1))


def _weighted_sum(layer: Layer, _: _Numbers) -> nn.Module:
    if layer.number(0) != 1:
        raise ValueError("of the element-wise layers only the sum is known")
    weights = layer.attributes.get(1) or [1.0] * len(layer.inputs)
    if len(weights) != len(layer.inputs):
        raise ValueError(f"{len(weights)} weights for {len(layer.inputs)} inputs")
    return Function(lambda *x: torch.stack([w * part for w, part in zip(weights, x, strict=True)]).sum(0))


_BINARY: dict[int, Callable[[Tensor, Tensor | float], Tensor]] = {0: torch.add, 1: torch.sub, 2: torch.mul}


def _binary(layer: Layer, _: _Numbers) -> nn.Module:
    operation = _BINARY[int(layer.number(0))]
    scalar = layer.number(2) if layer.number(1) else None
    return Function(operation if scalar is None else lambda x: operation(x, scalar))


_OPERATIONS: dict[str, Callable[[Layer, _Numbers], nn.Module]] = {
    "Input": lambda layer, _: nn.Identity(),
    "Split": lambda layer, _: nn.Identity(),
    "Convolution": _convolution,
    "PReLU": _prelu,
    "ReLU": lambda layer, _: nn.LeakyReLU(layer.number(0)),
    "PixelShuffle": lambda layer, _: nn.PixelShuffle(int(layer.number(0))),
    "Concat": _concat,
    "Eltwise": _weighted_sum,
    "BinaryOp": _binary,
    "Interp": _interp,
}
"""Kinds of layers, and what makes a module of one (ncnn's documentation of operators gives the attributes)."""


def _graph(layers: Sequence[Layer], numbers: _Numbers) -> Graph:
    return Graph([Step(layer.inputs, layer.outputs, _OPERATIONS[layer.kind](layer, numbers)) for layer in layers])


def _rrdb_names(count: int) -> list[str]:
    """The names that an RRDB generator of `count` convolutions gives them, in the order of computation."""
    blocks, rest = divmod(count - len(_BEFORE) - len(_AFTER), _PER_BLOCK)
    if blocks < 1 or rest:
        raise ValueError(f"{count} convolutions do not make an RRDB generator of scale 4")
    body = [f"body.{i}.rdb{j}.conv{k}" for i in range(blocks) for j in range(1, 4) for k in range(1, 6)]
    return [*_BEFORE, *body, *_AFTER]


def _rrdb(layers: Sequence[Layer], numbers: _Numbers) -> dict[str, Tensor]:
    """Tensors under the names of Real-ESRGAN's RRDBNet, as spandrel knows them."""
    convolutions = [layer for layer in layers if layer.kind == "Convolution"]
    state: dict[str, Tensor] = {}
    for name, layer in zip(_rrdb_names(len(convolutions)), convolutions, strict=True):
        conv = _plain_convolution(layer, numbers)
        state |= {f"{name}.{part}": value.data for part, value in conv.named_parameters()}
    return state


def read_ncnn(param: Path, binary: Path) -> dict[str, Tensor] | Graph:
    """An RRDB generator as float32 tensors that spandrel recognises; any other network as its graph.

    Raises IntegrityError, naming the file, for layers that are not known, and anything that does not fit to the last
    byte.
    """
    kind = "an ncnn network"
    try:
        layers, numbers = _layers(param), _Numbers(binary.read_bytes())
        rrdb = {layer.kind for layer in layers} <= _RRDB_KINDS
        kind = "an RRDB generator" if rrdb else kind
        found = _rrdb(layers, numbers) if rrdb else _graph(layers, numbers)
        if numbers.at != len(numbers.data):
            raise ValueError(f"{len(numbers.data) - numbers.at} bytes more than the layers need")
    except (
        ValueError,
        KeyError,
        IndexError,
        RuntimeError,
        ZeroDivisionError,
        OverflowError,
        UnicodeDecodeError,
    ) as error:
        raise IntegrityError(f"{param.name} and {binary.name} are not {kind} ({error!r})") from error
    return found
