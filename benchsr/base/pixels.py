"""What cameras, files and screens do to pixels: (N, 3, h, w) in [0, 1] -> the same shape, on any device."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchsr.base.inference import to_bytes

Pixels = NDArray[Any]
"""An image as libraries take it: (h, w, 3), in [0, 1]."""


def by_image(images: Tensor, change: Callable[[Pixels], Pixels]) -> Tensor:
    """`images` (N, 3, h, w) after `change`, a library's, of each by itself; values beyond [0, 1] are clamped before."""
    rows = (image.detach().clamp(0, 1).permute(1, 2, 0).contiguous().cpu().numpy() for image in images)
    changed = [torch.from_numpy(np.ascontiguousarray(change(row), dtype=np.float32)) for row in rows]
    return torch.stack(changed).permute(0, 3, 1, 2).contiguous().to(images)


def jpeg(images: Tensor, quality: int) -> Tensor:
    """`images` (N, 3, h, w) rounded to 8 bit and sent through JPEG with 4:2:0 chroma."""

    def sent(pixels: Pixels) -> Pixels:
        buffer = io.BytesIO()
        levels = to_bytes(torch.from_numpy(pixels)).numpy()
        Image.fromarray(levels).save(buffer, format="JPEG", quality=quality, subsampling=2)
        return np.asarray(Image.open(buffer), dtype=np.float32) / 255

    return by_image(images, sent)


def levels(images: Tensor, bits: int) -> Tensor:
    """`images` in [0, 1] with every value at the nearest of 2^bits levels."""
    top = 2**bits - 1
    nearest: Tensor = (images * top).round() / top
    return nearest
