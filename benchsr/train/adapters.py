"""Low-rank adapters (LoRA, Hu et al. 2021): what is trained of a network whose own weights stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchsr.base.errors import InputError
from benchsr.base.inference import FrozenConv2d


class LowRank(nn.Module):
    """The update W + B A of a convolution's weight W (out, in, k, k); alpha equals the rank, so that nothing scales it.

    `lora_A` (rank, in, k, k) starts as N(0, 1 / fan_in), `lora_B` (out, rank, 1, 1) at zero: the network as it is.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        fan_in = weight[0].numel()
        self.lora_A = nn.Parameter(torch.randn(rank, *weight.shape[1:]) / fan_in**0.5)
        self.lora_B = nn.Parameter(torch.zeros(len(weight), rank, 1, 1))

    def forward(self, weight: Tensor) -> Tensor:
        """The updated weight."""
        return weight + (self.lora_B[..., 0, 0] @ self.lora_A.flatten(1)).view_as(weight)


class _LowRankConv2d(torch.autograd.Function):
    """Convolution by a merged weight W + B A, with gradients to input, A and B; the dearest, W's own, is left out."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, how: tuple[Any, ...]
    ) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        ctx.how = how
        return torch.conv2d(x, weight, bias, *how)  # autocast applies in here

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        grad = grads[0]
        x, weight, a, b = (saved.to(grad.dtype) for saved in ctx.saved_tensors)
        stride, padding, dilation, groups = ctx.how
        how = (None, stride, padding, dilation, False, (0, 0), groups)
        wants_x = ctx.needs_input_grad[0]
        to_x = torch.ops.aten.convolution_backward(grad, x, weight, *how, (True, False, False))[0] if wants_x else None
        within = torch.conv2d(grad, b.transpose(0, 1))  # the gradient of A's answer
        to_a = torch.ops.aten.convolution_backward(within, x, a, *how, (False, True, False))[1]
        to_b = torch.einsum("nohw,nrhw->or", grad, torch.conv2d(x, a, None, *ctx.how))[..., None, None]
        return to_x, None, None, to_a.to(ctx.saved_tensors[2]), to_b.to(ctx.saved_tensors[3]), None


class AdaptedConv2d(FrozenConv2d):
    """A convolution with an adapter: same answers and gradients as by parametrization alone, at less cost."""

    @property
    def update(self) -> LowRank:
        """The adapter."""
        held: Any = self.parametrizations
        found: LowRank = held["weight"][0]
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` (N, C, H, W)."""
        update = self.update
        if self.padding_mode != "zeros" or isinstance(self.padding, str) or not update.lora_A.requires_grad:
            return super().forward(x)
        with torch.no_grad():
            weight = self.weight
        how = (self.stride, self.padding, self.dilation, self.groups)
        out: Tensor = _LowRankConv2d.apply(x, weight, self.bias, update.lora_A, update.lora_B, how)
        return out


def add_adapters(network: nn.Module, rank: int, seed: int = 0) -> nn.Module:
    """Put an adapter on every plain convolution of `network`, in place; nothing else gets gradients from then on."""
    network.requires_grad_(False)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d) and module.groups == 1]
    if not convolutions:
        raise InputError("adapters need a network with convolutions")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for convolution in convolutions:
            convolution.__class__ = AdaptedConv2d
            parametrize.register_parametrization(convolution, "weight", LowRank(convolution.weight, rank))
    return network


def trained_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that training changes: of a network with adapters theirs alone."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


@contextmanager
def weights_fixed(network: nn.Module) -> Iterator[None]:
    """No gradient reaches a weight of `network` in here: an attack on it, whose convolutions then keep no inputs."""
    trained = trained_parameters(network)
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def adapter_state(network: nn.Module) -> dict[str, Tensor]:
    """The adapters of `network` by the names that LoRA users know: `<module>.lora_A.weight` and `.lora_B.weight`."""
    found: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, AdaptedConv2d):
            update = module.update
            found |= {f"{name}.lora_A.weight": update.lora_A.detach(), f"{name}.lora_B.weight": update.lora_B.detach()}
    return found


def adapter_rank(network: nn.Module) -> int:
    """The rank of the adapters of `network`; 0 where it has none."""
    return max((len(value) for name, value in adapter_state(network).items() if ".lora_A" in name), default=0)


def merge_adapters(network: nn.Module) -> nn.Module:
    """Write the updates into the weights, in place: the plain architecture again."""
    for module in network.modules():
        if isinstance(module, AdaptedConv2d):
            plain: nn.Module = parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
            plain.__class__ = FrozenConv2d
    return network
