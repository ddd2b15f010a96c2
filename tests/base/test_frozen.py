from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from conftest import images, tiny_rrdb
from torch import Tensor, nn

from benchsr.base.inference import checkpoint_blocks, freeze, repeated_blocks


def input_gradient(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Output, gradient of its weighted sum, and the bytes kept for backward."""
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if not isinstance(t, nn.Parameter):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    x = x.detach().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = network(x)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    (grad,) = torch.autograd.grad((out.float() * weights).sum(), x)
    return out.detach(), grad, sum(kept.values())


@pytest.mark.parametrize("autocast", [False, True])
def test_same_output_and_gradient_from_fewer_bytes(autocast: bool) -> None:
    plain = tiny_rrdb(0, 16, 2).to(memory_format=torch.channels_last)
    frozen = freeze(copy.deepcopy(plain))
    lr = images(1, 16)[0].contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out, grad, kept = input_gradient(plain, lr)
        frozen_out, frozen_grad, frozen_kept = input_gradient(frozen, lr)
    assert torch.equal(out, frozen_out)
    assert torch.equal(grad, frozen_grad)
    assert frozen_kept < 0.2 * kept
    assert grad.abs().max() > 0


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("act", [nn.ReLU, lambda inplace: nn.LeakyReLU(0.2, inplace)])
def test_activations_keep_signs_alone(act: Callable[..., nn.Module], dtype: torch.dtype, inplace: bool) -> None:
    conv = nn.Conv2d(3, 8, 1)
    nn.init.uniform_(conv.bias, -1.0, 1.0)  # type: ignore[arg-type]
    plain = nn.Sequential(conv, act(inplace=inplace)).to(dtype)
    frozen = freeze(copy.deepcopy(plain).to(memory_format=torch.channels_last))
    x = torch.cat([images(1, 16)[0], torch.zeros(1, 3, 16, 16)]).to(dtype)
    out, grad, kept = input_gradient(plain.requires_grad_(False).to(memory_format=torch.channels_last), x)
    frozen_out, frozen_grad, frozen_kept = input_gradient(frozen, x)
    assert torch.equal(out, frozen_out)
    assert torch.equal(grad, frozen_grad)
    assert frozen_kept == out.numel()
    assert kept >= out.nbytes
    with torch.no_grad():
        assert torch.equal(frozen(x), out)


def test_leaky_activations_of_other_slopes_are_left_as_they_are() -> None:
    x = torch.linspace(-1, 1, 9, requires_grad=True)
    for slope in (0.0, -0.5):
        act = freeze(nn.LeakyReLU(slope))
        (grad,) = torch.autograd.grad(act(x).sum(), x)
        assert grad.tolist() == [*[slope] * 5, *[1.0] * 4]


def test_other_convolutions_are_left_as_they_are() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", groups=2)
    )
    x = images(1, 8)[0].requires_grad_()
    before = network(x)
    torch.testing.assert_close(freeze(network)(x), before)
    assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("autocast", [False, True])
def test_checkpoints_change_the_bytes_kept_and_nothing_else(autocast: bool) -> None:
    network = freeze(tiny_rrdb(0, 16, 3))
    assert len(list(repeated_blocks(network))) == 3
    lr = images(1, 16)[0]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out, grad, kept = input_gradient(network, lr)
        checkpoint_blocks(network)
        again, again_grad, fewer = input_gradient(network, lr)
        checkpoint_blocks(network, active=False)
        back, back_grad, as_before = input_gradient(network, lr)
    assert torch.equal(out, again)
    assert torch.equal(out, back)
    assert torch.equal(grad, again_grad)
    assert torch.equal(grad, back_grad)
    assert fewer < 0.7 * kept == 0.7 * as_before


def test_thawed_weights_get_their_gradients() -> None:
    plain = tiny_rrdb().to(memory_format=torch.channels_last).requires_grad_(True)
    thawed = freeze(copy.deepcopy(plain)).requires_grad_(True)
    lr = images(1, 12)[0].requires_grad_()
    plain(lr).sum().backward()
    thawed(lr).sum().backward()
    for a, b in zip(plain.parameters(), thawed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3)  # channels-last sums in another order
