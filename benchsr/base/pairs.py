"""Images as pairs of LR and HR, and what makes a pair usable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchsr.base.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

SCALE = 4
"""The only super-resolution factor that benchsr evaluates."""


@dataclass(frozen=True)
class Sample:
    """One evaluation image.

    `lr` is float32 (3, h, w) and `hr` float32 (3, 4h, 4w), RGB in [0, 1]. `id` is unique within its data set and is
    what per-image seeds are derived from, so that an image keeps its random draws wherever it is evaluated.
    """

    id: str
    lr: Tensor
    hr: Tensor


def check_pair(lr: Tensor, hr: Tensor) -> None:
    """Raise InputError unless `lr` (N, 3, h, w) and `hr` (N, 3, 4h, 4w) are float tensors in [0, 1] of one device."""
    for name, image in (("lr", lr), ("hr", hr)):
        if image.dim() != 4 or image.shape[1] != 3:
            raise InputError(f"{name} must have shape (N, 3, H, W); got {tuple(image.shape)}")
        if not image.is_floating_point():
            raise InputError(f"{name} must be floating point in [0, 1]; got {image.dtype} (divide 8-bit images by 255)")
        if not bool(((image >= 0) & (image <= 1)).all()):
            raise InputError(f"{name} must be finite and in [0, 1]; it spans {image.min():g} to {image.max():g}")
    n, _, h, w = lr.shape
    if hr.shape != (n, 3, SCALE * h, SCALE * w):
        raise InputError(f"hr must be {SCALE} times lr: expected {(n, 3, SCALE * h, SCALE * w)}, got {tuple(hr.shape)}")
    if lr.device != hr.device:
        raise InputError(f"lr is on {lr.device} but hr on {hr.device}; move them to one device")
