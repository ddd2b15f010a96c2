"""Images shrunk as MATLAB does: how LR is made, and how SR is taken back to it."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from benchsr.base.errors import InputError
from benchsr.base.pairs import USUAL, Scale

Boundary = Literal["edge", "symmetric"]


def bicubic_downscale(hr: Tensor, scale: Scale = USUAL, *, boundary: Boundary = "edge", round8: bool = True) -> Tensor:
    """Downscale `hr` (..., 3, H, W) in [0, 1], three or four dimensions, as MATLAB's `imresize(hr, 1/scale)` does.

    Antialiased bicubic (a = -0.5, 4 taps times `scale`; Keys 1981), columns first, then rows. Rows and columns beyond a
    multiple of `scale` are cut off at the bottom and right. `boundary` says what lies beyond the edge: its replica, or
    (newer MATLAB) its mirror image. With `round8` each pass ends in 8-bit rounding (half up) and clamping, as for
    MATLAB's uint8 images; without, nothing is rounded or clamped. Returns (..., 3, H // scale, W // scale) in [0, 1],
    dtype and device kept. Raises InputError for another shape or dtype, or an image of fewer than `scale` pixels a
    side.
    """
    if hr.dim() not in (3, 4) or not hr.is_floating_point() or min(hr.shape[-2:]) < scale:
        raise InputError(
            f"bicubic_downscale needs a float image (3, H, W) or batch (N, 3, H, W) of at least {scale} x {scale} "
            f"pixels; got {hr.dtype} {tuple(hr.shape)}"
        )
    # In grey levels float32 sums of 8-bit pixels are exact at x2 and x4, whose weights are multiples of 1/4096, and
    # never near a half at x3 (1/81); at x8 (1/65536) a half would be lost.
    x = (hr if hr.dim() == 4 else hr[None]) * 255
    x = x.double() if scale == 8 else x
    for dim in (2, 3):
        x = _downscale_axis(x, dim, scale, boundary)
        if round8:
            x = (x + 0.5).floor().clamp(0, 255)
    x = x.to(hr.dtype) / 255
    return x if hr.dim() == 4 else x[0]


def _downscale_axis(x: Tensor, dim: int, scale: Scale, boundary: Boundary) -> Tensor:
    pad = 2 * scale  # the kernel reaches 1.5 LR pixels beyond the image
    size = x.shape[dim] // scale
    places = torch.arange(-pad, size * scale + pad, device=x.device)
    last = size * scale - 1
    if boundary == "symmetric":
        places = places.remainder(2 * (last + 1))
        places = torch.minimum(places, 2 * last + 1 - places)
    padded = x.index_select(dim, places.clamp(0, last))
    target = [x.shape[2], x.shape[3]]
    target[dim - 2] = size + 2 * pad // scale
    small = F.interpolate(padded, size=target, mode="bicubic", antialias=True)
    return small.narrow(dim, pad // scale, size)
