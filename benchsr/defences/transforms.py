"""Defences that change LR before the network sees it, or pool what the network makes of several views of it.

A transform is a function from LR (N, 3, h, w) to LR, with its settings as keyword arguments. One whose gradient says
nothing (rounding, a codec) is attacked through a straight-through estimate: its answer, the gradient of the identity
(BPDA, Athalye et al. 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchsr.base import pixels
from benchsr.base.rng import Randomised, generator

Transform = Callable[[Tensor], Tensor]


def straight_through(x: Tensor, changed: Tensor) -> Tensor:
    """`changed`, to the last bit, with the gradient of `x`."""
    return changed.detach() + (x - x.detach())


class Transformed(nn.Module):
    """`network` behind `transform`; see the module for what an attack sees of one that is not `differentiable`."""

    def __init__(self, network: nn.Module, transform: Transform, differentiable: bool) -> None:
        super().__init__()
        self.network, self.transform, self.differentiable = network, transform, differentiable

    def forward(self, x: Tensor) -> Tensor:
        """SR (N, 3, 4h, 4w), unclamped, of `x` (N, 3, h, w)."""
        changed = self.transform(x)
        sr: Tensor = self.network(changed if self.differentiable else straight_through(x, changed))
        return sr


def jpeg(x: Tensor, *, quality: int = 75) -> Tensor:
    """LR is sent through JPEG of `quality`, chroma 4:2:0 (Dziugaite et al. 2016)."""
    return pixels.jpeg(x, quality)


def bit_depth(x: Tensor, *, bits: int = 5) -> Tensor:
    """LR is rounded to `bits` bits a channel (Xu et al. 2018)."""
    return pixels.levels(x, bits)


def median_filter(x: Tensor, *, size: int = 3) -> Tensor:
    """Each pixel becomes the median of its `size` x `size` neighbours, borders mirrored (Xu et al. 2018)."""
    around = F.pad(x, (size // 2,) * 4, mode="reflect")
    windows = around.unfold(2, size, 1).unfold(3, size, 1).flatten(4)
    middle: Tensor = windows.median(-1).values
    return middle


def blur(x: Tensor, *, sigma: float = 0.8) -> Tensor:
    """LR is blurred by a Gaussian of `sigma` pixels."""
    from torchvision.transforms.functional import gaussian_blur  # seconds to import, in every worker and command

    blurred: Tensor = gaussian_blur(x, [2 * ceil(3 * sigma) + 1] * 2, [sigma] * 2)
    return blurred


def resize(x: Tensor, *, factor: float = 0.5) -> Tensor:
    """LR is shrunk to `factor` of its side and enlarged again, both bicubic: fine detail is lost."""
    small = [max(1, round(side * factor)) for side in x.shape[-2:]]
    shrunk = F.interpolate(x, size=small, mode="bicubic", antialias=True)
    return F.interpolate(shrunk, size=x.shape[-2:], mode="bicubic", antialias=True)


def denoise(x: Tensor, *, weight: float = 0.05) -> Tensor:
    """The image near LR of least total variation (Chambolle 2004; as a defence Guo et al. 2018), by scikit-image."""
    from skimage.restoration import denoise_tv_chambolle

    return pixels.by_image(x, lambda image: denoise_tv_chambolle(image, weight=weight, channel_axis=-1))  # type: ignore[no-untyped-call]


class RandomResizePad(Randomised):
    """LR enlarged by a random factor up to 1 + `grow` and put anywhere on a canvas of that size, edges repeated.

    (Xie et al. 2018.) SR of the place where LR lies is shrunk to LR's multiple again. `ids`, `purpose` and `seed` fix
    each image's draws.
    """

    def __init__(self, network: nn.Module, seed: int, grow: float) -> None:
        super().__init__()
        self.network, self.seed, self.grow = network, seed, grow

    def forward(self, x: Tensor, ids: Sequence[str] | None = None, purpose: str = "evaluation-0") -> Tensor:
        """SR (N, 3, 4h, 4w), unclamped, of `x` (N, 3, h, w)."""
        ids = [str(i) for i in range(len(x))] if ids is None else ids
        return torch.cat([self._one(image[None], i, purpose) for image, i in zip(x, ids, strict=True)])

    def _one(self, x: Tensor, sample_id: str, purpose: str) -> Tensor:
        gen = generator(self.seed, sample_id, f"resize-pad-{purpose}")
        height, width = x.shape[-2:]
        by = float(torch.rand((), generator=gen)) * self.grow
        sides = [round(side * (1 + by)) for side in (height, width)]
        room = [ceil(side * (1 + self.grow)) - own for side, own in zip((height, width), sides, strict=True)]
        top, left = (int(torch.randint(free + 1, (), generator=gen)) for free in room)
        larger = F.interpolate(x, size=sides, mode="bicubic", antialias=True)
        canvas = F.pad(larger, (left, room[1] - left, top, room[0] - top), mode="replicate")
        sr = self.network(canvas)
        scale = sr.shape[-1] // canvas.shape[-1]
        place = sr[..., scale * top : scale * (top + sides[0]), scale * left : scale * (left + sides[1])]
        return F.interpolate(place, size=(scale * height, scale * width), mode="bicubic", antialias=True)


class SelfEnsemble(nn.Module):
    """The mean of what `network` makes of 8 turned and mirrored views of LR, each turned back (Timofte et al. 2016).

    Gradients cost one more pass and the memory of one view.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """SR (N, 3, 4h, 4w), unclamped, of `x` (N, 3, h, w)."""
        views = [(turns, mirrored) for turns in range(4) for mirrored in (False, True)]
        answers = [checkpoint(self._view, x, *view, use_reentrant=False) for view in views]
        return torch.stack(answers).mean(0)

    def _view(self, x: Tensor, turns: int, mirrored: bool) -> Tensor:
        view = x.rot90(turns, (-2, -1))
        sr: Tensor = self.network(view.flip(-1) if mirrored else view)
        return (sr.flip(-1) if mirrored else sr).rot90(-turns, (-2, -1))
