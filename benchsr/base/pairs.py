"""Images as pairs of LR and HR, and what makes a pair usable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from benchsr.base.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Scale = Literal[2, 3, 4, 8]
SCALES: tuple[Scale, ...] = get_args(Scale)
"""The super-resolution factors that benchsr evaluates."""

USUAL: Scale = 4
"""The factor of a protocol, a card and a board that name none."""


@dataclass(frozen=True)
class Sample:
    """One evaluation image.

    `lr` is float32 (3, h, w) and `hr` float32 (3, sh, sw), RGB in [0, 1], s being its `scale`. `id` is unique within
    its data set and is what per-image seeds are derived from, so that an image keeps its random draws wherever it is
    evaluated.
    """

    id: str
    lr: Tensor
    hr: Tensor

    @property
    def scale(self) -> Scale:
        """The super-resolution factor."""
        return scale_of(self.lr, self.hr)


def scale_of(lr: Tensor, hr: Tensor) -> Scale:
    """How many times the sides of `lr` (..., h, w) the sides of `hr` are. Raises InputError unless it is of SCALES."""
    (h, w), sides = lr.shape[-2:], tuple(hr.shape[-2:])
    for scale in SCALES:
        if sides == (scale * h, scale * w):
            return scale
    raise InputError(
        f"hr must be {', '.join(map(str, SCALES[:-1]))} or {SCALES[-1]} times lr: got LR of {h} x {w} pixels and HR of "
        f"{sides[0]} x {sides[1]} (rows x columns)"
    )


def check_pair(lr: Tensor, hr: Tensor) -> None:
    """Raise InputError unless `lr` (N, 3, h, w) and `hr` (N, 3, sh, sw) are float tensors in [0, 1] of one device,
    for one factor s of SCALES.
    """
    for name, image in (("lr", lr), ("hr", hr)):
        if image.dim() != 4 or image.shape[1] != 3:
            raise InputError(f"{name} must have shape (N, 3, H, W); got {tuple(image.shape)}")
        if not image.is_floating_point():
            raise InputError(f"{name} must be floating point in [0, 1]; got {image.dtype} (divide 8-bit images by 255)")
        if not bool(((image >= 0) & (image <= 1)).all()):
            raise InputError(f"{name} must be finite and in [0, 1]; it spans {image.min():g} to {image.max():g}")
    if len(hr) != len(lr):
        raise InputError(f"hr must be as many images as lr: got {len(hr)} and {len(lr)}")
    scale_of(lr, hr)
    if lr.device != hr.device:
        raise InputError(f"lr is on {lr.device} but hr on {hr.device}; move them to one device")
