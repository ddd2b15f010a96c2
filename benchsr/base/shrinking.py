"""Images shrunk as MATLAB does: how LR is made, and how SR is taken back to it."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from benchsr.base.errors import InputError
from benchsr.base.pairs import SCALE

Boundary = Literal["edge", "symmetric"]


def bicubic_downscale(hr: Tensor, *, boundary: Boundary = "edge", round8: bool = True) -> Tensor:
    """Downscale `hr` (..., 3, H, W) in [0, 1], three or four dimensions, by 4 as MATLAB's `imresize(hr, 1/4)` does.

    Antialiased bicubic (a = -0.5, 16 taps; Keys 1981), columns first, then rows. Rows and columns beyond a multiple of
    4 are cut off at the bottom and right. `boundary` says what lies beyond the edge: its replica, or (newer MATLAB)
    its mirror image. With `round8` each pass ends in 8-bit rounding (half up) and clamping, as for MATLAB's uint8
    images; without, nothing is rounded or clamped. Returns (..., 3, H // 4, W // 4) in [0, 1], dtype and device kept.
    Raises InputError for another shape or dtype, or an image of fewer than 4 pixels a side.
    """
    if hr.dim() not in (3, 4) or not hr.is_floating_point() or min(hr.shape[-2:]) < SCALE:
        raise InputError(
            f"bicubic_downscale needs a float image (3, H, W) or batch (N, 3, H, W) of at least {SCALE} x {SCALE} "
            f"pixels; got {hr.dtype} {tuple(hr.shape)}"
        )
    # In units of grey levels the kernel's weights (multiples of 1/4096) make float32 sums of 8-bit pixels exact.
    x = (hr if hr.dim() == 4 else hr[None]) * 255
    for dim in (2, 3):
        x = _downscale_axis(x, dim, boundary)
        if round8:
            x = (x + 0.5).floor().clamp(0, 255)
    x = x / 255
    return x if hr.dim() == 4 else x[0]


def _downscale_axis(x: Tensor, dim: int, boundary: Boundary) -> Tensor:
    pad = 2 * SCALE  # the kernel reaches 6 pixels beyond the image
    size = x.shape[dim] // SCALE
    places = torch.arange(-pad, size * SCALE + pad, device=x.device)
    last = size * SCALE - 1
    if boundary == "symmetric":
        places = places.remainder(2 * (last + 1))
        places = torch.minimum(places, 2 * last + 1 - places)
    padded = x.index_select(dim, places.clamp(0, last))
    target = [x.shape[2], x.shape[3]]
    target[dim - 2] = size + 2 * pad // SCALE
    small = F.interpolate(padded, size=target, mode="bicubic", antialias=True)
    return small.narrow(dim, pad // SCALE, size)
