"""The networks of training: a generator that starts as an upsampler, and the discriminators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from spandrel.architectures.ESRGAN import ESRGAN
from torch import Tensor, nn

from benchsr.base.errors import InputError
from benchsr.base.pairs import Scale

_COLOURS = 3

SCALE: Scale = 4
"""The factor of the networks that are trained here: the paper's."""


def new_generator(filters: int, blocks: int, seed: int = 0) -> nn.Module:
    """A fresh RRDB generator (ESRGAN, Wang et al. 2018; growth 32) that starts as bilinear upsampling.

    It maps (N, 3, h, w) to (N, 3, 4h, 4w). Three of its `filters` channels carry the image: nearest-neighbour doubling
    followed by a [1 2 1]/4 filter is bilinear doubling, and positive values pass the activations unchanged. Everything
    else starts random but unheard, because the last layer reads the image channels alone. Training then refines an
    interpolation, instead of first spending thousands of steps to find one. Raises InputError for filters < 3.
    """
    if filters < _COLOURS:
        raise InputError(f"a generator needs at least {_COLOURS} filters; got {filters}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net: nn.Module = ESRGAN(num_filters=filters, num_blocks=blocks, scale=SCALE)
        convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
        first, *residual, body, up1, up2, hr, last = convs
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, a=0.2)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # an optional of Conv2d that RRDB always has
    taps = torch.tensor([1.0, 2.0, 1.0]) / 4
    bilinear = torch.outer(taps, taps)
    identity = torch.zeros(3, 3)
    identity[1, 1] = 1
    with torch.no_grad():
        for conv in residual:
            conv.weight.mul_(0.5)
        body.weight.zero_()
        last.weight.zero_()
        for conv, kernel in ((first, identity), (up1, bilinear), (up2, bilinear), (hr, identity), (last, identity)):
            for colour in range(_COLOURS):
                conv.weight[colour] = 0
                conv.weight[colour, colour] = kernel
    return net


class VGGDiscriminator(nn.Module):
    """The VGG-128 discriminator of ESRGAN (Wang et al. 2018) for square images of `side` pixels, 32 dividing `side`.

    `features` is the width of the first layer (64 in ESRGAN). Five stages halve the image; batch norm but for the first
    convolution; two linear layers give one logit.
    """

    def __init__(self, side: int = 128, features: int = 64) -> None:
        super().__init__()
        if side < 32 or side % 32:
            raise InputError(f"the discriminator needs images whose side 32 divides; got {side}")
        layers: list[nn.Module] = []
        width = _COLOURS
        for factor in (1, 2, 4, 8, 8):
            out = factor * features
            layers += [nn.Conv2d(width, out, 3, 1, 1, bias=width == _COLOURS)]
            layers += [nn.BatchNorm2d(out)] if width != _COLOURS else []
            layers += [nn.LeakyReLU(0.2)]
            layers += [nn.Conv2d(out, out, 4, 2, 1, bias=False), nn.BatchNorm2d(out), nn.LeakyReLU(0.2)]
            width = out
        flat = width * (side // 32) ** 2
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, 100), nn.LeakyReLU(0.2), nn.Linear(100, 1))

    def forward(self, *batches: Tensor) -> tuple[Tensor, ...]:
        """Logits (N, 1) of each batch of images (N, 3, side, side) in [0, 1]; one call, as distribution needs it."""
        return tuple(self.layers(images) for images in batches)


class PatchDiscriminator(nn.Module):
    """A logit for every patch (PatchGAN, Isola et al. 2017) of square images of any size.

    A convolution of `kernel` taps for each of `strides`, the first with `features` channels and each further one with
    twice as many, up to eight times; batch norm but for the first; a last convolution gives the logits. Batch norm
    takes all batches of a call together: over one alone it would hide how strong its noise is. With `groups` > 1 the
    rows of a batch are `groups` equal blocks, each judged by a network of its own.
    """

    def __init__(self, features: int, kernel: int, strides: Sequence[int], groups: int = 1) -> None:
        super().__init__()
        self.groups = groups
        layers: list[nn.Module] = []
        width, padding = _COLOURS, (kernel - 1) // 2
        for i, stride in enumerate(strides):
            out = features * min(2**i, 8)
            shape = (groups * width, groups * out, kernel, stride, padding)
            layers += [nn.Conv2d(*shape, groups=groups, bias=i == 0)]
            layers += [nn.BatchNorm2d(groups * out)] if i else []
            layers += [nn.LeakyReLU(0.2)]
            width = out
        layers += [nn.Conv2d(groups * width, groups, kernel, 1, padding, groups=groups)]
        self.layers = nn.Sequential(*layers)

    def forward(self, *batches: Tensor) -> tuple[Tensor, ...]:
        """Logits (N / groups, groups, h, w) of each batch of images (N, 3, H, W); one call, for distribution's sake."""
        rows = [torch.cat(images.chunk(self.groups), dim=1) for images in batches]
        logits: tuple[Tensor, ...] = self.layers(torch.cat(rows)).split([len(part) for part in rows])
        return logits
