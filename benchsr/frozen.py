"""Networks whose weights never change: gradients flow to the input only, so most of backward's memory is not needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input


class _InputOnlyConv2d(torch.autograd.Function):
    """Convolution that keeps its weight but not its input for backward: only a weight's gradient would need it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.how = x.shape, how
        return torch.conv2d(x, weight, bias, *how)  # autocast applies in here

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return conv2d_input(ctx.shape, weight.to(grads[0].dtype), grads[0], *ctx.how), None, None, None


class FrozenConv2d(nn.Conv2d):
    """`nn.Conv2d` for fixed weights: same output and, bit for bit, same gradient to its input, none to its weight."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` (N, C, H, W)."""
        if self.padding_mode != "zeros" or isinstance(self.padding, str) or not x.requires_grad:
            return super().forward(x)
        how = (self.stride, self.padding, self.dilation, self.groups)
        out: Tensor = _InputOnlyConv2d.apply(x, self.weight, self.bias, how)
        return out


def freeze(network: nn.Module) -> nn.Module:
    """Put `network` into eval mode with fixed weights, in place, and return it.

    Its plain convolutions stop keeping their inputs for backward: for an RRDB generator attacked through its input,
    0.2 to 0.3 of the bytes at the same time and the same gradient. Convolutions are laid out channels-last.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = FrozenConv2d
    network.requires_grad_(False)
    return network.eval().to(memory_format=torch.channels_last)
