"""Networks whose weights never change: what they run on, and how little of them backward needs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchsr.base.errors import InputError, ModelError
from benchsr.base.heap import HEAP


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put `model` into eval mode, and afterwards each of its submodules back into the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


MOST_DRAWS = 7
"""Draws of one image that a network sees at once, where they are small enough to gain by it."""

DRAWN_PIXELS = 7 * 24 * 24
"""LR pixels of all the draws that a network sees at once on the CPU, unless one draw alone has more."""


def row_slices(n: int, device: torch.device, batch_size: int | None = None) -> Iterator[slice]:
    """Cut `n` images into the slices that are evaluated together.

    On the CPU always one image: its convolution kernels round differently for different batch sizes, one flipped
    gradient sign then changes an attack, and images of this benchmark's size gain nothing there. Elsewhere
    `batch_size`, or all at once.
    """
    return _cut(n, 1 if device.type == "cpu" else (batch_size or n))


def draw_slices(n: int, lr: Tensor, most: int = MOST_DRAWS) -> Iterator[slice]:
    """Cut `n` draws of one image `lr` (3, h, w) into the slices that are evaluated together.

    On the CPU the size of `lr` alone decides, 7 up to 24 x 24 pixels, 3 at 32 x 32, 1 from 48 x 48: convolutions round
    differently for another number of small images, so this is part of what a smoothed model is. Time a draw against
    one by one: 0.67 at 24 x 24, 0.9 at 32 x 32, no gain from 40 x 40 on. Elsewhere `most` at once.
    """
    if lr.device.type == "cpu":
        most = max(1, min(MOST_DRAWS, DRAWN_PIXELS // (lr.shape[-2] * lr.shape[-1])))
    return _cut(n, most)


def _cut(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


@contextmanager
def full_float32() -> Iterator[None]:
    """Float32 is float32 inside: TF32, which keeps 10 of its 23 bits in products on a GPU, is off."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes with one thread inside: sums round differently for another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Stopwatch:
    """Wall-clock `seconds` of a `with` block on a device: a GPU's queue is empty when they start and when they end."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def __enter__(self) -> Stopwatch:
        self._started = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = self._now() - self._started


def to_8bit(images: Tensor) -> Tensor:
    """`images` in [0, 1] with every value at the nearest of 256 levels (ties: the even one), still in [0, 1]."""
    return (images * 255).round() / 255


def to_bytes(images: Tensor) -> Tensor:
    """`images` in [0, 1] (values beyond are clamped) as uint8: the levels of `to_8bit`."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


REPEATED = 1e-4
"""Largest difference of two answers to one input that rounding may make, in [0, 1] pixel units."""


def require_repeated(who: str, answer: Tensor, again: Tensor) -> None:
    """Raise ModelError where two answers to one input differ by more than rounding: randomness that nobody declared."""
    apart = float((answer - again).abs().max())
    if not apart <= REPEATED:
        raise ModelError(
            f"{who} gave one input two answers, {apart:.3g} apart: if it is random by design, declare it by "
            "benchsr.Seeded(network), which fixes the draws of torch's generator for each image; a defence must be a "
            "benchsr.base.rng.Randomised network"
        )


def pick_device(name: str, *, has_cuda: bool | None = None) -> torch.device:
    """The torch device for "auto", "cpu" or "cuda". Raises InputError where there is no such device."""
    has_cuda = torch.cuda.is_available() if has_cuda is None else has_cuda
    if name == "auto":
        name = "cuda" if has_cuda else "cpu"
    if name not in ("cpu", "cuda"):
        raise InputError(f"unknown device {name!r}; use auto, cpu or cuda")
    if name == "cuda" and not has_cuda:
        raise InputError("device cuda was asked for, but there is none; use --device cpu")
    return torch.device(name)


class _InputOnlyConv2d(torch.autograd.Function):
    """Convolution that keeps its weight but not its input for backward: only a weight's gradient would need it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.how = x.shape, how
        return torch.conv2d(x, weight, bias, *how)  # autocast applies in here

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,), grad = ctx.saved_tensors, grads[0]
        stride, padding, dilation, groups = ctx.how
        # Of the input only the shape is read. torch.nn.grad.conv2d_input does the same but fills one, which takes time.
        unread = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)
        how = (None, stride, padding, dilation, False, (0, 0), groups, (True, False, False))
        found = torch.ops.aten.convolution_backward(grad, unread, weight.to(grad.dtype), *how)
        return found[0], None, None, None


class FrozenConv2d(nn.Conv2d):
    """`nn.Conv2d` for fixed weights: same output and, bit for bit, same gradient to its input.

    While its weight requires a gradient, as in training, it is an ordinary convolution.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` (N, C, H, W)."""
        ordinary = self.padding_mode != "zeros" or isinstance(self.padding, str)
        if ordinary or self.weight.requires_grad or not x.requires_grad:
            return super().forward(x)
        how = (self.stride, self.padding, self.dilation, self.groups)
        out: Tensor = _InputOnlyConv2d.apply(x, self.weight, self.bias, how)
        return out


class _SignOnly(torch.autograd.Function):
    """An activation that keeps its signs alone: a byte an element instead of four."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, act: nn.ReLU | nn.LeakyReLU) -> Tensor:
        if act.inplace:
            ctx.mark_dirty(x)
        out = F.relu(x, act.inplace) if isinstance(act, nn.ReLU) else F.leaky_relu(x, act.negative_slope, act.inplace)
        sign = out.sign().to(torch.int8)  # `out > 0` takes twice as long, and so does its way back
        ctx.save_for_backward(sign)
        HEAP.keep(sign)
        ctx.act = act
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (sign,), grad = ctx.saved_tensors, grads[0]
        # torch's own kernels: of the activation's input or output they read whether it is positive.
        if isinstance(ctx.act, nn.ReLU):
            return torch.ops.aten.threshold_backward(grad, sign, 0), None
        return torch.ops.aten.leaky_relu_backward(grad, sign, ctx.act.negative_slope, False), None


class FrozenReLU(nn.ReLU):
    """`nn.ReLU`: bit for bit the same output and gradient, from a quarter of the bytes."""

    def forward(self, x: Tensor) -> Tensor:
        """Activate `x`."""
        return _SignOnly.apply(x, self) if x.requires_grad else super().forward(x)


class FrozenLeakyReLU(nn.LeakyReLU):
    """`nn.LeakyReLU`: bit for bit the same output and gradient, from a quarter of the bytes."""

    def forward(self, x: Tensor) -> Tensor:
        """Activate `x`."""
        ordinary = self.negative_slope <= 0 or not x.requires_grad  # the output's sign is the input's at slopes above 0
        return super().forward(x) if ordinary else _SignOnly.apply(x, self)


FROZEN: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: FrozenConv2d,
    nn.ReLU: FrozenReLU,
    nn.LeakyReLU: FrozenLeakyReLU,
}
"""What plain modules of a frozen network become: they hold and compute the same, and keep less for backward."""


def freeze(network: nn.Module) -> nn.Module:
    """Put `network` into eval mode with fixed weights, in place, and return it.

    Its plain convolutions stop keeping their inputs for backward, its activations all but signs: for an RRDB generator
    attacked through its input, 0.1 of the bytes at the same time and the same gradient. Convolutions are laid out
    channels-last.
    """
    for module in network.modules():
        module.__class__ = FROZEN.get(type(module), type(module))
    network.requires_grad_(False)
    return network.eval().to(memory_format=torch.channels_last)


def repeated_blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The outermost composite modules that stand next to siblings of their own class: the RRDBs of an RRDB network."""
    children = list(network.children())
    for child in children:
        siblings = sum(type(other) is type(child) for other in children)
        if siblings > 1 and type(child) is not nn.Sequential and any(child.children()):
            yield child
        else:
            yield from repeated_blocks(child)


class Elsewhere(nn.Module):
    """A network whose blocks are in another process, which is told whether to compute them again."""

    checkpointed = False


def checkpoint_blocks(network: nn.Module, active: bool = True) -> None:
    """Let backward compute each repeated block again instead of keeping what is inside it, in place.

    Output and gradients stay the same; for an RRDB generator time grows by about a quarter and 0.1 of the bytes are
    kept. `active=False` undoes it.
    """
    if isinstance(network, Elsewhere):
        network.checkpointed = active
    for block in repeated_blocks(network):
        block.__dict__.pop("forward", None)
        if active:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


class Autocast(nn.Module):
    """`network` in bfloat16 where that is safe, its output in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """SR (N, 3, sh, sw) of `x` (N, 3, h, w)."""
        with torch.autocast(x.device.type, torch.bfloat16):
            sr: Tensor = self.network(x)
        return sr.float()
