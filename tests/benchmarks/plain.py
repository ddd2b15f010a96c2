"""What one would write by hand in torchattacks' style, as the yardstick: one image at a time, contiguous float32,
features of the truth computed at every step, `loss.backward()` through weights that require gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchsr.base.inference import FROZEN

Attack = Callable[[nn.Module, nn.Module, Tensor, Tensor, Tensor], Tensor]
"""(network, perceptual trunk, LR (1, 3, h, w), HR (1, 3, 4h, 4w), LR where the search starts) -> attacked LR."""


def thawed(network: nn.Module) -> nn.Module:
    """A copy of a frozen network as its library gives it: ordinary contiguous modules that want gradients."""
    network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    plain = {frozen: ordinary for ordinary, frozen in FROZEN.items()}
    for module in network.modules():
        module.__class__ = plain.get(type(module), type(module))
    return network.requires_grad_(True).eval()


def loss(network: nn.Module, trunk: nn.Module, lr: Tensor, hr: Tensor) -> Tensor:
    sr = network(lr)
    with torch.no_grad():
        truth = trunk(hr)
    return F.l1_loss(sr, hr) + F.l1_loss(trunk(sr), truth)


def fgsm(network: nn.Module, trunk: nn.Module, lr: Tensor, hr: Tensor, start: Tensor, eps: float = 10 / 255) -> Tensor:
    x = start.clone().requires_grad_()
    loss(network, trunk, x, hr).backward()
    return (lr + eps * gradient(x).sign()).clamp(0, 1)


def pgd(
    network: nn.Module,
    trunk: nn.Module,
    lr: Tensor,
    hr: Tensor,
    start: Tensor,
    eps: float = 10 / 255,
    alpha: float = 2 / 255,
    steps: int = 10,
) -> Tensor:
    adv = start
    for _ in range(steps):
        x = adv.detach().requires_grad_()
        network.zero_grad()
        trunk.zero_grad()
        loss(network, trunk, x, hr).backward()
        adv = x.detach() + alpha * gradient(x).sign()
        adv = (lr + (adv - lr).clamp(-eps, eps)).clamp(0, 1)
    return adv


def cw(
    network: nn.Module,
    trunk: nn.Module,
    lr: Tensor,
    hr: Tensor,
    start: Tensor,
    c: float = 0.01,
    rate: float = 0.01,
    steps: int = 6,
) -> Tensor:
    w = torch.atanh((2 * start - 1).clamp(-1 + 1e-6, 1 - 1e-6)).requires_grad_()
    adam = torch.optim.Adam([w], lr=rate)
    for _ in range(steps):
        adv = (torch.tanh(w) + 1) / 2
        norm = ((adv - lr).square().sum() + 1e-12).sqrt()
        cost = norm - c * hr.numel() * loss(network, trunk, adv, hr)
        adam.zero_grad()
        cost.backward()
        adam.step()
    return (torch.tanh(w.detach()) + 1) / 2


def gradient(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad


def median_of_draws(network: nn.Module, lr: Tensor, sigma: float, n: int) -> Tensor:
    with torch.no_grad():
        draws = torch.stack([network(lr + sigma * torch.randn_like(lr)) for _ in range(n)])
        return draws.sort(dim=0).values[n // 2]


def ssim(sr: Tensor, hr: Tensor) -> Tensor:
    """With a dense 11 x 11 window, as most torch implementations have it."""
    taps = torch.exp(-((torch.arange(11.0) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(taps, taps)
    window = (window / window.sum()).expand(3, 1, 11, 11).to(sr)
    means = [F.conv2d(x, window, groups=3) for x in (sr, hr, sr * sr, hr * hr, sr * hr)]
    a, b, aa, bb, ab = means
    c1, c2 = 0.01**2, 0.03**2
    scores = (2 * a * b + c1) * (2 * (ab - a * b) + c2) / ((a * a + b * b + c1) * (aa - a * a + bb - b * b + c2))
    return scores.mean()


def metrics(lpips_net: nn.Module, sr: Tensor, hr: Tensor) -> tuple[float, float, float]:
    psnr = -10 * (sr - hr).square().mean().log10()
    return float(psnr), float(ssim(sr, hr)), float(lpips_net(2 * sr - 1, 2 * hr - 1).detach())
