"""Networks that make LR of a source domain: DSGAN's generator, and pools of blur kernels and noise patches.

Each is called as `degrader(hr, lr, gens)`: HR (N, 3, 4h, 4w) and its bicubic LR (N, 3, h, w) in [0, 1], and a generator
of random draws for each row -> degraded LR (N, 3, h, w), neither clipped nor rounded, differentiable in the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchsr.base.errors import InputError
from benchsr.base.inference import to_8bit
from benchsr.base.rng import generators
from benchsr.train.networks import SCALE
from benchsr.train.recipe import Stage

MAX_PATCHES = 1024
"""Noise patches that a pool keeps at most."""

EXPOSED = (0.1, 0.9)
"""Mean brightness of patches that noise is taken from: near black and white, clipping hides it."""


class DSGAN(nn.Module):
    """DSGAN's generator (Fritsche et al. 2019): a residual network from LR to LR, which starts as the identity.

    `noise` channels of N(0, 1), drawn for each row, join the input, and reach the output through a 5x5 convolution too,
    which starts by making noise of standard deviation START out of 3x3 pixels; the paper has none. Without it, or with
    white noise, the judge wins at once, and the network learns to make no noise at all.
    """

    START = 0.03

    def __init__(self, features: int, blocks: int, noise: int) -> None:
        super().__init__()

        def convolution(wide: int, out: int) -> nn.Conv2d:
            return nn.Conv2d(wide, out, 3, padding=1, padding_mode="replicate")

        self.noise = noise
        self.head = convolution(3 + noise, features)
        pairs = [(convolution(features, features), convolution(features, features)) for _ in range(blocks)]
        self.blocks = nn.ModuleList(nn.Sequential(a, nn.ReLU(), b) for a, b in pairs)
        self.tail = convolution(features, 3)
        for zeroed in (self.tail.weight, self.tail.bias):
            nn.init.zeros_(zeroed)  # type: ignore[arg-type]  # an optional that is there
        self.straight = nn.Conv2d(noise, 3, 5, padding=2, bias=False) if noise else None
        if self.straight is not None:
            taps = F.pad(torch.tensor([1.0, 2.0, 1.0]), (1, 1))
            taps = torch.outer(taps, taps)
            with torch.no_grad():
                colours = torch.eye(3, noise)[..., None, None]
                self.straight.weight.copy_(self.START * colours * taps / taps.square().sum().sqrt())

    def forward(self, hr: Tensor, lr: Tensor, gens: Sequence[torch.Generator]) -> Tensor:
        """Degrade `lr`; see the module."""
        noise = torch.stack([torch.randn((self.noise, *lr.shape[2:]), generator=g) for g in gens]).to(lr)
        x = F.relu(self.head(torch.cat([lr, noise], dim=1)))
        for block in self.blocks:
            x = x + block(x)
        degraded: Tensor = lr + self.tail(x)
        return degraded if self.straight is None else degraded + self.straight(noise)


def bicubic_kernel(taps: int) -> Tensor:
    """The kernel (taps, taps) of antialiased bicubic x1/4 (Keys 1981, a = -0.5), centred; float32, of sum 1."""
    x = ((torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2) / SCALE).abs()
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    line = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    return torch.outer(line, line).div(line.sum() ** 2).float()


def shrink(hr: Tensor, kernels: Tensor) -> Tensor:
    """Row i of `hr` (N, 3, 4h, 4w) filtered with `kernels`[i] (N, t, t), t even, every fourth pixel kept: (N, 3, h, w).

    LR pixel j sits at HR position 4j + 1.5, the kernel's middle, as in bicubic shrinking. Edges are replicated.
    """
    n, colours = hr.shape[:2]
    padded = F.pad(hr, ((kernels.shape[-1] - SCALE) // 2,) * 4, mode="replicate")
    weight = kernels.repeat_interleave(colours, dim=0)[:, None]
    lr = F.conv2d(padded.reshape(1, n * colours, *padded.shape[2:]), weight, stride=SCALE, groups=n * colours)
    return lr.reshape(n, colours, *lr.shape[2:])


def noise_patches(images: Sequence[Tensor], side: int, smooth: float) -> Tensor:
    """Noise (P, 3, side, side) cut from smooth regions of `images` (3, h, w) uint8, each patch of zero mean a colour.

    Of all patches on a grid, neither too dark nor too bright, the share `smooth` of least variance is kept (Ji et al.
    2020 set the bound by hand). At most MAX_PATCHES, the smoothest first. Raises InputError where there are none.
    """
    grids = [image.unfold(1, side, side).unfold(2, side, side) for image in images if min(image.shape[1:]) >= side]
    if not grids:
        raise InputError(f"no image of the source domain holds a patch of {side} x {side} pixels")
    patches = torch.cat([grid.permute(1, 2, 0, 3, 4).flatten(0, 1) for grid in grids]).float() / 255
    bright = patches.mean((1, 2, 3))
    patches = patches[(bright > EXPOSED[0]) & (bright < EXPOSED[1])]
    if not len(patches):
        raise InputError("the source domain's images are too dark or too bright to take noise from")
    kept = patches.var((2, 3)).mean(1).argsort()[: min(MAX_PATCHES, max(1, round(smooth * len(patches))))]
    return patches[kept] - patches[kept].mean((2, 3), keepdim=True)


class KernelPool(nn.Module):
    """A pool of `members` blur kernels, learnt as KernelGAN does (Bell-Kligler et al. 2019), and of noise `patches`.

    A kernel is that of a deep linear network, `features` wide, which shrinks HR by 4. A linear network of one channel
    is one convolution: its kernel is worked out first, by sending an impulse through the layers, and only this touches
    images. Added to the bicubic kernel and divided by the sum, it starts as bicubic and keeps brightness.

    In training the rows are `members` equal blocks, one for each kernel; in eval mode each row draws its kernel. Every
    row draws a patch of noise: with it the judge is left to compare blur, where KernelGAN alone sharpens a kernel to
    keep the noise of its input.
    """

    LAYERS = (8, 7, 5, 5, 3, 1)
    TAPS = 24  # the sum of (size - 1) over the layers, plus 1

    bicubic: Tensor
    patches: Tensor

    def __init__(self, members: int, features: int, patches: Tensor) -> None:
        super().__init__()
        self.members = members
        widths = [1, *[features] * (len(self.LAYERS) - 1), 1]
        layers = []
        for wide, out, size in zip(widths[:-1], widths[1:], self.LAYERS, strict=True):
            shape = (members * wide, members * out, size)
            layers.append(nn.Conv2d(*shape, padding=size - 1, groups=members, bias=False))
            nn.init.normal_(layers[-1].weight, std=(wide * size) ** -0.5)
        nn.init.zeros_(layers[-1].weight)
        self.layers = nn.Sequential(*layers)
        self.register_buffer("bicubic", bicubic_kernel(self.TAPS))
        self.register_buffer("patches", patches)

    def kernels(self) -> Tensor:
        """The kernels (members, 24, 24), each of sum 1."""
        impulse = torch.ones((1, self.members, 1, 1), device=self.bicubic.device)
        kernels: Tensor = self.bicubic + self.layers(impulse)[0] / self.TAPS**2
        return kernels / kernels.sum((1, 2), keepdim=True)

    def forward(self, hr: Tensor, lr: Tensor, gens: Sequence[torch.Generator]) -> Tensor:
        """Shrink `hr` and add noise; see the module. Raises InputError for LR larger than the noise patches."""
        h, w = lr.shape[2:]
        if max(h, w) > self.patches.shape[-1]:
            raise InputError(f"LR of {w} x {h} pixels needs noise patches as large; they have {self.patches.shape[-1]}")
        if self.training and len(hr) % self.members:
            raise InputError(f"{len(hr)} images cannot be shared out among {self.members} kernels evenly")
        drawn = [torch.randint(len(self.patches), (), generator=g) for g in gens]
        noise = self.patches[torch.stack(drawn).to(self.patches.device), :, :h, :w]
        with torch.autocast(hr.device.type, enabled=False):  # bfloat16 would round the image to less than 8 bit
            kernels = self.kernels()
            if self.training:
                kernels = kernels.repeat_interleave(len(hr) // self.members, dim=0)
            else:
                kernels = kernels[[int(torch.randint(self.members, (), generator=g)) for g in gens]]
            return shrink(hr.float(), kernels) + noise


_MAKERS: dict[str, Callable[[Any, Stage, Sequence[Tensor]], nn.Module]] = {
    "dsgan": lambda shape, stage, images: DSGAN(shape.features, shape.blocks, shape.noise),
    "kernels": lambda shape, stage, images: KernelPool(
        shape.members, shape.features, noise_patches(images, stage.crop, shape.smooth)
    ),
}


def new_degrader(stage: Stage, images: Sequence[Tensor], seed: int) -> nn.Module:
    """The untrained network of a stage with a `degrader`; `images` (3, h, w) uint8 are those of the source domain."""
    if stage.degrader is None:
        raise InputError(f"stage {stage.name!r} has no degrader")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _MAKERS[stage.degrader.kind](stage.degrader, stage, images)


def degrade(degrader: nn.Module, hr: Tensor, lr: Tensor, ids: Sequence[str], seed: int) -> Tensor:
    """LR (N, 3, h, w) that a trained `degrader` (eval mode) makes, clipped and rounded to 8 bit as LR images are.

    Row i draws from (seed, ids[i]).
    """
    with torch.no_grad():
        degraded: Tensor = degrader(hr, lr, generators(seed, ids, "degrader"))
    return to_8bit(degraded.float().clamp(0, 1))
