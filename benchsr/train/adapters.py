"""Low-rank adapters (LoRA, Hu et al. 2021): what is trained of a network whose own weights stay as they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchsr.base.errors import InputError


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


def add_adapters(network: nn.Module, rank: int, seed: int = 0) -> nn.Module:
    """Put an adapter on every plain convolution of `network`, in place; nothing else gets gradients from then on."""
    network.requires_grad_(False)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d) and module.groups == 1]
    if not convolutions:
        raise InputError("adapters need a network with convolutions")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for convolution in convolutions:
            parametrize.register_parametrization(convolution, "weight", LowRank(convolution.weight, rank))
    return network


def adapter_state(network: nn.Module) -> dict[str, Tensor]:
    """The adapters of `network` by the names that LoRA users know: `<module>.lora_A.weight` and `.lora_B.weight`."""
    found: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            update = module.parametrizations["weight"][0]
            found |= {f"{name}.lora_A.weight": update.lora_A.detach(), f"{name}.lora_B.weight": update.lora_B.detach()}
    return found


def adapter_rank(network: nn.Module) -> int:
    """The rank of the adapters of `network`; 0 where it has none."""
    return max((len(value) for name, value in adapter_state(network).items() if ".lora_A" in name), default=0)


def merge_adapters(network: nn.Module) -> nn.Module:
    """Write the updates into the weights, in place: the plain architecture again."""
    for module in network.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return network
