"""Networks from TensorFlow.js's layers-model files: model.json, Keras layers and a list of weights, and its shards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from torch import Tensor, nn

from benchsr.base.errors import IntegrityError
from benchsr.base.files import shown
from benchsr.base.pairs import SCALES, Scale
from benchsr.models.graph import Function, Graph, Step

_MAX_MODEL_BYTES = 4 << 20

_MAX_CHANNELS = 1 << 12

_Name = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,200}$")]
"""What may stand in a message."""


class _Read(BaseModel):
    """A part of model.json. Keras writes much that matters in training only: unknown fields are left alone."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class _Weight(_Read):
    name: _Name
    shape: tuple[Annotated[int, Field(ge=1, le=1 << 20)], ...] = Field(max_length=4)
    dtype: Literal["float32"]
    quantization: None = None


class _Group(_Read):
    paths: tuple[_Name, ...] = Field(max_length=64)
    weights: tuple[_Weight, ...]


_Port = tuple[_Name, Literal[0], Literal[0]]

_Call = tuple[_Name, Literal[0], Literal[0], Annotated[dict[str, Any], Field(max_length=0)]]


class _Layer(_Read):
    class_name: _Name
    name: _Name
    config: dict[str, Any]
    inbound_nodes: tuple[tuple[_Call, ...], ...] = Field(max_length=1)  # more: a layer that is used more than once

    @property
    def inputs(self) -> tuple[str, ...]:
        """The layers that it takes."""
        return tuple(call[0] for call in self.inbound_nodes[0]) if self.inbound_nodes else ()


class _Functional(_Read):
    layers: tuple[_Layer, ...] = Field(min_length=1, max_length=10_000)
    output_layers: tuple[_Port]


class _Keras(_Read):
    class_name: Literal["Functional", "Model"]
    config: _Functional


class _Topology(_Read):
    keras: _Keras = Field(alias="model_config")


class _Model(_Read):
    format: Literal["layers-model"]
    topology: _Topology = Field(alias="modelTopology")
    manifest: tuple[_Group, ...] = Field(alias="weightsManifest", max_length=64)


class _Weights:
    """The weights of all shards by name, each taken once."""

    def __init__(self, manifest: Sequence[_Group], shards: dict[str, Path]) -> None:
        self._left: dict[str, Tensor] = {}
        listed = [path for group in manifest for path in group.paths]
        if sorted(listed) != sorted(shards):
            raise ValueError(f"weightsManifest lists {listed}, and the card {list(shards)}")
        for group in manifest:
            self._read(group, b"".join(shards[path].read_bytes() for path in group.paths))

    def _read(self, group: _Group, data: bytes) -> None:
        needed = 4 * sum(math.prod(weight.shape) for weight in group.weights)
        if needed != len(data):
            raise ValueError(f"the weights of {', '.join(group.paths)} need {needed} bytes, and there are {len(data)}")
        at = 0
        for weight in group.weights:
            values = np.frombuffer(data, "<f4", math.prod(weight.shape), at).astype(np.float32)
            if not np.isfinite(values).all():
                raise ValueError(f"{weight.name}: holds NaN or infinity")
            if weight.name in self._left:
                raise ValueError(f"{weight.name}: is there twice")
            self._left[weight.name] = torch.from_numpy(values.reshape(weight.shape))
            at += values.nbytes

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The weight `name`, which must be of `shape`."""
        if name not in self._left:
            raise ValueError(f"there is no weight {name}")
        found = self._left.pop(name)
        if tuple(found.shape) != shape:
            raise ValueError(f"the weight {name} is of shape {tuple(found.shape)}, and the layer needs {shape}")
        return found

    def require_none_left(self) -> None:
        """Raise ValueError if a weight was not taken."""
        if self._left:
            raise ValueError(f"the weight {next(iter(self._left))} belongs to no layer")


class _Blob(NamedTuple):
    """What a layer gives: its channels, and its size as a multiple of LR's."""

    channels: int
    factor: int


class _Kind(_Read):
    """The settings of a layer that matter here, as its `config` has them: only what can be computed is valid."""

    def build(self, name: str, given: Sequence[_Blob], weights: _Weights) -> tuple[nn.Module, _Blob]:
        """The layer's module, and what it gives when it is given that."""
        raise NotImplementedError


def _one(given: Sequence[_Blob]) -> _Blob:
    if len(given) != 1:
        raise ValueError(f"takes one input, and has {len(given)}")
    return given[0]


def _alike(given: Sequence[_Blob], aspect: Callable[[_Blob], object]) -> _Blob:
    if len({aspect(blob) for blob in given}) != 1:
        raise ValueError(f"its inputs do not go together: {', '.join(map(str, given)) or 'there are none'}")
    return given[0]


class _Input(_Kind):
    batch_input_shape: tuple[None, None, None, Literal[3]]

    def build(self, name: str, given: Sequence[_Blob], weights: _Weights) -> tuple[nn.Module, _Blob]:
        if given:
            raise ValueError("an input takes nothing")
        return nn.Identity(), _Blob(3, 1)


_Side = Literal[1, 3, 5, 7, 9]

_ONE = Literal[1]

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"linear": nn.Identity, "relu": nn.ReLU}


class _Convolution(_Kind):
    filters: int = Field(ge=1, le=_MAX_CHANNELS)
    kernel_size: tuple[_Side, _Side]
    strides: tuple[_ONE, _ONE]
    dilation_rate: tuple[_ONE, _ONE]
    groups: _ONE = 1
    padding: Literal["same"]
    data_format: Literal["channels_last"]
    activation: Literal["linear", "relu"]
    use_bias: bool

    def build(self, name: str, given: Sequence[_Blob], weights: _Weights) -> tuple[nn.Module, _Blob]:
        channels, factor = _one(given)
        kernel = weights.take(f"{name}/kernel", (*self.kernel_size, channels, self.filters))
        conv = nn.Conv2d(channels, self.filters, self.kernel_size, padding="same", bias=self.use_bias)
        conv.weight.data = kernel.permute(3, 2, 0, 1).contiguous()
        if conv.bias is not None:
            conv.bias.data = weights.take(f"{name}/bias", (self.filters,))
        module = conv if self.activation == "linear" else nn.Sequential(conv, _ACTIVATIONS[self.activation]())
        return module, _Blob(self.filters, factor)


class _Activation(_Kind):
    activation: Literal["linear", "relu"]

    def build(self, name: str, given: Sequence[_Blob], weights: _Weights) -> tuple[nn.Module, _Blob]:
        return _ACTIVATIONS[self.activation](), _one(given)


class _Concatenate(_Kind):
    axis: Literal[3, -1]

    def build(self, name: str, given: Sequence[_Blob], weights: _Weights) -> tuple[nn.Module, _Blob]:
        factor = _alike(given, lambda blob: blob.factor).factor
        return Function(lambda *x: torch.cat(x, dim=1)), _Blob(sum(blob.channels for blob in given), factor)


class _Add(_Kind):
    def build(self, name: str, given: Sequence[_Blob], weights: _Weights) -> tuple[nn.Module, _Blob]:
        return Function(lambda first, *rest: sum(rest, start=first)), _alike(given, lambda blob: blob)


class _MultiplyBeta(_Kind):
    beta: float

    def build(self, name: str, given: Sequence[_Blob], weights: _Weights) -> tuple[nn.Module, _Blob]:
        return Function(lambda x: self.beta * x), _one(given)


def _depth_to_space(x: Tensor, scale: int) -> Tensor:
    """TensorFlow's depth_to_space: a channel's place in the pixel is its slow index, and torch's pixel_shuffle's fast.

    (N, s * s * c, h, w) to (N, c, s * h, s * w).
    """
    n, channels, h, w = x.shape
    by_colour = x.view(n, scale * scale, channels // scale**2, h, w).transpose(1, 2)
    return F.pixel_shuffle(by_colour.reshape(n, channels, h, w), scale)


class _PixelShuffle(_Kind):
    scale: Scale

    def build(self, name: str, given: Sequence[_Blob], weights: _Weights) -> tuple[nn.Module, _Blob]:
        channels, factor = _one(given)
        if channels % self.scale**2:
            raise ValueError(f"{channels} channels are no multiple of {self.scale**2}")
        shuffle = Function(lambda x: _depth_to_space(x, self.scale))
        return shuffle, _Blob(channels // self.scale**2, factor * self.scale)


_KINDS: dict[str, type[_Kind]] = {
    "InputLayer": _Input,
    "Conv2D": _Convolution,
    "Activation": _Activation,
    "Concatenate": _Concatenate,
    "Add": _Add,
    "MultiplyBeta": _MultiplyBeta,
    **{f"PixelShuffle{scale}x": _PixelShuffle for scale in SCALES},
}
"""Classes of layers: Keras's, and those that idealo's image-super-resolution adds to them."""


def _explained(error: ValidationError) -> str:
    """The first of pydantic's complaints, as "field: what is wrong"."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"


def _step(layer: _Layer, blobs: dict[str, _Blob], weights: _Weights) -> tuple[Step, _Blob]:
    """The layer as a step of the graph, and what it gives. Raises ValueError that names it."""
    try:
        if layer.class_name not in _KINDS:
            raise ValueError(f"such layers cannot be read; known: {', '.join(_KINDS)}")
        if layer.name in blobs:
            raise ValueError("there is a layer of that name before it")
        if missing := [name for name in layer.inputs if name not in blobs]:
            raise ValueError(f"takes {missing[0]}, which no layer before it gives")
        kind = _KINDS[layer.class_name].model_validate(layer.config)
        module, gives = kind.build(layer.name, [blobs[name] for name in layer.inputs], weights)
        if gives.channels > _MAX_CHANNELS or gives.factor not in (1, *SCALES):
            raise ValueError(f"gives {gives.channels} channels at {gives.factor} times the size, which is too much")
    except ValueError as error:
        said = _explained(error) if isinstance(error, ValidationError) else str(error)
        raise ValueError(f"layer {layer.name} ({layer.class_name}): {said}") from error
    return Step(layer.inputs, (layer.name,), module), gives


def _graph(model: _Model, weights: _Weights) -> Graph:
    network = model.topology.keras.config
    blobs: dict[str, _Blob] = {}
    steps = []
    for layer in network.layers:
        step, blobs[layer.name] = _step(layer, blobs, weights)
        steps.append(step)
    last, ((output, *_),) = network.layers[-1].name, network.output_layers
    if output != last or blobs[last].channels != 3:
        raise ValueError(f"its last layer, {last}, is not its output {output}, or gives no three channels")
    weights.require_none_left()
    return Graph(steps)


def read_tfjs(files: tuple[Path, ...]) -> Graph:
    """The network of a model.json, the first of `files`, and of its shards, the others: RGB in [0, 1] in and out.

    Nothing that the file names is run: layers are those of a table, float32 weights are taken to the last byte, and the
    shards are the caller's files, whatever `paths` says. Raises IntegrityError, naming the file and the layer or field.
    """
    path, *shards = files
    try:
        if path.stat().st_size > _MAX_MODEL_BYTES:
            raise ValueError(f"larger than {_MAX_MODEL_BYTES} bytes")
        model = _Model.model_validate_json(path.read_bytes())
        return _graph(model, _Weights(model.manifest, {shard.name: shard for shard in shards}))
    except ValueError as error:
        said = _explained(error) if isinstance(error, ValidationError) else str(error)
        raise IntegrityError(f"{shown(path)} is no network that can be read here: {said}") from error
