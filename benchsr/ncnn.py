"""Weights from ncnn's two files: `.param`, the layers as text, and `.bin`, the numbers. RRDB generators only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchsr.types import IntegrityError

_MAGIC = "7767517"
_MAX_PARAM_BYTES = 4 << 20
_STORAGE = {0x01306B47: "<f2", 0: "<f4"}
"""The tag before a convolution's weights, and how they are stored: half precision or single."""
_WEIGHTLESS = {"BinaryOp", "Concat", "Eltwise", "Input", "Interp", "Split"}
_PER_BLOCK = 15
_BEFORE, _AFTER = ("conv_first",), ("conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last")


def _convolutions(param: Path) -> list[tuple[int, int, int]]:
    """(out channels, kernel side, number of weights) of the convolutions in file order."""
    if param.stat().st_size > _MAX_PARAM_BYTES:
        raise IntegrityError(f"{param}: larger than {_MAX_PARAM_BYTES} bytes, no RRDB is")
    magic, _, *lines = param.read_text(encoding="ascii").splitlines()
    if magic.strip() != _MAGIC:
        raise IntegrityError(f"{param} is not an ncnn text file: it does not begin with {_MAGIC}")
    found = []
    for line in filter(str.strip, lines):
        kind, _, inputs, outputs, *rest = line.split()
        if kind == "Convolution":
            attributes = dict(pair.split("=") for pair in rest[int(inputs) + int(outputs) :])
            found.append((int(attributes["0"]), int(attributes["1"]), int(attributes["6"])))
            if min(found[-1]) < 1:
                raise ValueError(f"a convolution of nothing: {line.strip()[:80]}")
        elif kind not in _WEIGHTLESS:
            raise IntegrityError(f"{param}: a layer {kind} has no place in an RRDB generator")
    return found


def _rrdb_names(count: int) -> list[str]:
    """The names that an RRDB generator of `count` convolutions gives them, in the order of computation."""
    blocks, rest = divmod(count - len(_BEFORE) - len(_AFTER), _PER_BLOCK)
    if blocks < 1 or rest:
        raise ValueError(f"{count} convolutions do not make an RRDB generator of scale 4")
    body = [f"body.{i}.rdb{j}.conv{k}" for i in range(blocks) for j in range(1, 4) for k in range(1, 6)]
    return [*_BEFORE, *body, *_AFTER]


def read_ncnn(param: Path, binary: Path) -> dict[str, Tensor]:
    """Read an RRDB generator: float32 tensors under the names of Real-ESRGAN's RRDBNet, as spandrel knows them.

    Raises IntegrityError, naming the file, for anything that is not such a generator to the last byte.
    """
    try:
        convolutions = _convolutions(param)
        names = _rrdb_names(len(convolutions))
        data, at, state = binary.read_bytes(), 0, {}
        for name, (out, side, count) in zip(names, convolutions, strict=True):
            storage = np.dtype(_STORAGE[int.from_bytes(data[at : at + 4], "little")])
            weight = np.frombuffer(data, storage, count, at + 4).reshape(out, -1, side, side)
            at += 4 + -(-count * storage.itemsize // 4) * 4  # padded to four bytes
            bias = np.frombuffer(data, "<f4", out, at)
            at += bias.nbytes
            state[f"{name}.weight"] = torch.from_numpy(weight.astype(np.float32))
            state[f"{name}.bias"] = torch.from_numpy(bias.astype(np.float32))
        if at != len(data):
            raise ValueError(f"{len(data) - at} bytes more than the layers need")
    except (ValueError, KeyError, ZeroDivisionError, OverflowError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{param.name} and {binary.name} are not an RRDB generator ({error!r})") from error
    return state
