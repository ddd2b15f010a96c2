"""The attacks against references written out here and against torchattacks' own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchattacks
from conftest import images, scene, tiny_rrdb
from torch import Tensor, nn

from benchsr.base.errors import InputError, ModelError
from benchsr.base.pairs import SCALES, Scale
from benchsr.base.rng import generators
from benchsr.metrics.objective import Objective
from benchsr.threats.attacks import BIM, CW, FGSM, PGD, GradientAttack

L1 = Objective(l1_weight=1.0, perceptual_weight=0.0)
EPS = 8 / 255

ATTACKS: dict[str, Callable[[nn.Module], GradientAttack]] = {
    "fgsm": lambda m: FGSM(m, eps=EPS, objective=L1),
    "bim": lambda m: BIM(m, eps=EPS, steps=4, objective=L1),
    "pgd": lambda m: PGD(m, eps=EPS, alpha=2 / 255, steps=4, objective=L1),
    "cw": lambda m: CW(m, steps=4, objective=L1),
}


def l1(network: nn.Module, x: Tensor, hr: Tensor) -> Tensor:
    loss: Tensor = (network(x) - hr).abs().flatten(1).mean(1)
    return loss


def reference_bim(network: nn.Module, lr: Tensor, hr: Tensor, eps: float, steps: int) -> Tensor:
    """The textbook loop, one image at a time, loss.backward()."""
    out = []
    for x, y in zip(lr, hr, strict=True):
        adv = x[None].clone()
        for _ in range(steps):
            adv = adv.detach().requires_grad_()
            l1(network, adv, y[None]).sum().backward()
            assert adv.grad is not None
            adv = adv + eps / steps * adv.grad.sign()
            adv = torch.max(torch.min(adv, x + eps), x - eps).clamp(0, 1)
        out.append(adv.detach())
    return torch.cat(out)


class TwoLogits(nn.Module):
    """Logits (0, L): with label 0 the cross-entropy log(1 + exp(L)) rises with L, so gradients have L's sign."""

    def __init__(self, network: nn.Module, hr: Tensor) -> None:
        super().__init__()
        self.network, self.hr = network, hr

    def forward(self, x: Tensor) -> Tensor:
        loss = l1(self.network, x, self.hr)
        return torch.stack([torch.zeros_like(loss), loss], dim=1)


@pytest.mark.parametrize(("attack", "steps"), [(FGSM, 1), (BIM, 5)])
def test_fgsm_and_bim_equal_the_textbook_loop(network: nn.Module, attack: type[BIM], steps: int) -> None:
    lr, hr = scene(network, 3, 12)
    atk = FGSM(network, eps=EPS, objective=L1) if attack is FGSM else BIM(network, eps=EPS, steps=5, objective=L1)
    expected = reference_bim(network, lr, hr, EPS, steps)
    torch.testing.assert_close(atk(lr, hr), expected, atol=1e-6, rtol=0)
    assert (expected - lr).abs().max() > 0.9 * EPS


def test_pgd_from_the_clean_image_with_bims_step_is_bim(network: nn.Module) -> None:
    lr, hr = scene(network, 2, 12)
    pgd = PGD(network, eps=EPS, alpha=EPS / 5, steps=5, random_start=False, objective=L1)
    assert torch.equal(pgd(lr, hr), BIM(network, eps=EPS, steps=5, objective=L1)(lr, hr))


def test_equal_to_torchattacks() -> None:
    network = tiny_rrdb(3)
    lr, hr = images(1, 12)
    logits, label = TwoLogits(network, hr), torch.zeros(1, dtype=torch.long)
    pairs = [
        (torchattacks.FGSM(logits, eps=EPS), FGSM(network, eps=EPS, objective=L1)),
        (torchattacks.BIM(logits, eps=EPS, alpha=EPS / 4, steps=4), BIM(network, eps=EPS, steps=4, objective=L1)),
        (
            torchattacks.PGD(logits, eps=EPS, alpha=3 / 255, steps=4, random_start=False),
            PGD(network, eps=EPS, alpha=3 / 255, steps=4, random_start=False, objective=L1),
        ),
        (
            torchattacks.PGDL2(logits, eps=0.5, alpha=0.2, steps=4, random_start=False),
            PGD(network, eps=0.5, alpha=0.2, steps=4, random_start=False, norm="l2", objective=L1),
        ),
    ]
    for theirs, ours in pairs:
        torch.testing.assert_close(ours(lr, hr), theirs(lr, label), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_raises_the_loss_inside_its_ball(name: str, network: nn.Module) -> None:
    """A no-op attack fails here."""
    lr, hr = scene(network, 2, 12)
    result = ATTACKS[name](network).run(lr, hr, ["a", "b"])
    assert result.lr.min() >= 0
    assert result.lr.max() <= 1
    torch.testing.assert_close(result.loss_clean, l1(network, lr, hr))
    torch.testing.assert_close(result.loss_attacked, l1(network, result.lr, hr))
    assert (result.loss_attacked > 1.02 * result.loss_clean).all()
    if name != "cw":
        assert (result.lr - lr).abs().max() <= EPS + 1e-6


def test_cw_lowers_its_own_objective(network: nn.Module) -> None:
    lr, hr = scene(network, 2, 12)
    atk = CW(network, c=0.01, steps=6, objective=L1)

    def equation_2(x: Tensor) -> Tensor:
        value: Tensor = (x - lr).flatten(1).norm(dim=1) - 0.01 * (network(x) - hr).abs().flatten(1).sum(1)
        return value

    assert (equation_2(atk(lr, hr)) < equation_2(lr) - 1e-3).all()


def extreme() -> tuple[Tensor, Tensor]:
    """An LR image of black and white pixels alone, and a truth of other ones."""
    gen = torch.Generator().manual_seed(0)
    lr, hr = (torch.randint(2, (1, 3, side, side), generator=gen).float() for side in (12, 48))
    return lr, hr


def test_random_starts_are_images() -> None:
    lr, _ = extreme()
    pgd = PGD(nn.Identity(), eps=EPS, objective=L1)
    start = pgd.start(lr, generators(0, ["a"], "start"))
    assert 0 <= start.min() < start.max() <= 1
    assert 0 < (start - lr).abs().max() <= EPS
    assert bool((start == lr).any())  # where the draw left [0, 1]


def test_cw_moves_the_rest_of_an_image_with_black_and_white_pixels(network: nn.Module) -> None:
    lr, hr = extreme()
    lr[..., 6:] = 0.5
    found = CW(network, steps=6, objective=L1).run(lr, hr)
    torch.testing.assert_close(found.loss_clean, l1(network, lr, hr))
    assert bool((found.loss_attacked > found.loss_clean).all())
    assert 0 <= found.lr.min() <= found.lr.max() <= 1


@pytest.mark.parametrize("scale", SCALES)
def test_cw_sums_over_the_sr_image_of_any_scale(scale: Scale) -> None:
    network = nn.Upsample(scale_factor=scale)
    gen = torch.Generator().manual_seed(0)
    lr, hr = (torch.rand((2, 3, side, side), generator=gen) * 0.8 + 0.1 for side in (12, 12 * scale))
    found = CW(network, c=0.01, steps=3, objective=L1).run(lr, hr)
    summed = 0.01 * (network(found.lr) - hr).abs().flatten(1).sum(1) - (found.lr - lr).flatten(1).norm(dim=1)
    torch.testing.assert_close(found.gains.amax(1), summed, rtol=1e-4, atol=1e-4)


def test_the_best_iterate_is_kept_and_the_last_is_scored(network: nn.Module) -> None:
    lr, hr = scene(network, 2, 12)
    # A step far beyond the ball overshoots: some earlier iterate is better than the last.
    best = PGD(network, eps=0.3, alpha=0.6, steps=5, objective=L1).run(lr, hr)
    last = PGD(network, eps=0.3, alpha=0.6, steps=5, objective=L1, keep_best=False).run(lr, hr)
    assert best.losses.shape == (2, 6)
    assert torch.equal(best.loss_attacked, best.losses.amax(1))
    assert torch.equal(last.loss_attacked, last.losses[:, -1])
    torch.testing.assert_close(l1(network, last.lr, hr), last.losses[:, -1])


@pytest.mark.parametrize("name", ATTACKS)
def test_an_image_is_attacked_alike_in_any_batch_and_order(name: str, network: nn.Module) -> None:
    lr, hr = scene(network, 3, 12)
    together = ATTACKS[name](network)(lr, hr, ["a", "b", "c"], seed=5)
    alone = ATTACKS[name](network)(lr[1:2], hr[1:2], ["b"], seed=5)
    swapped = ATTACKS[name](network)(lr.flip(0), hr.flip(0), ["c", "b", "a"], seed=5).flip(0)
    assert torch.equal(together[1:2], alone)
    assert torch.equal(together, swapped)


def test_random_start_depends_on_seed_and_image_alone(network: nn.Module) -> None:
    lr, hr = images(1, 12)
    atk = PGD(network, eps=EPS, alpha=0.0, steps=1, objective=L1, keep_best=False)
    torch.manual_seed(1)
    first = atk(lr, hr, ["a"], seed=0)
    torch.manual_seed(2)
    assert torch.equal(first, atk(lr, hr, ["a"], seed=0))
    assert not torch.equal(first, atk(lr, hr, ["b"], seed=0))
    assert not torch.equal(first, atk(lr, hr, ["a"], seed=1))
    assert (first - lr).abs().std() > 0.2 * EPS
    drawn = atk.start(lr, generators(0, ["a"], "pgd-start"))  # the plain attack of tests/benchmarks starts from it too
    torch.testing.assert_close(first, drawn, rtol=0, atol=1e-6)


def test_coarse_random_start_is_blocky(network: nn.Module) -> None:
    lr, hr = images(1, 12)
    atk = PGD(network, eps=EPS, alpha=0.0, steps=1, start_scale=0.5, objective=L1, keep_best=False)
    delta = atk(lr, hr) - lr
    torch.testing.assert_close(delta[..., ::2, ::2], delta[..., 1::2, 1::2], atol=1e-6, rtol=0)


def test_every_submodule_keeps_its_mode() -> None:
    network = tiny_rrdb()
    network.train()
    next(iter(network.children())).eval()
    before = [module.training for module in network.modules()]
    FGSM(network, eps=EPS, objective=L1)(*images(1, 12))
    assert [module.training for module in network.modules()] == before


def test_a_network_is_attacked_as_it_is_deployed() -> None:
    """In eval mode, whatever mode it comes in."""
    lr, hr = images(1, 12)
    network = nn.Sequential(tiny_rrdb(), nn.Dropout(0.5))
    deployed, training = (PGD(network.train(mode), steps=2, objective=L1).run(lr, hr) for mode in (False, True))
    assert torch.equal(deployed.lr, training.lr)
    assert torch.equal(deployed.losses, training.losses)


def test_the_kept_iterate_and_its_loss_belong_together() -> None:
    network, (lr, hr) = tiny_rrdb(), images(6, 12)
    trace = PGD(network, eps=EPS, alpha=EPS, steps=5, objective=L1).run(lr, hr)
    assert bool((trace.best_step < 5).any())  # such steps overshoot
    assert torch.equal(trace.best_step, trace.gains.argmax(1))
    assert torch.equal(trace.loss_attacked, trace.losses.gather(1, trace.best_step[:, None])[:, 0])
    torch.testing.assert_close(l1(network, trace.lr, hr), trace.loss_attacked)


def test_a_gradient_that_vanished_once_is_told() -> None:
    class Blind(nn.Module):
        looks = 0

        def forward(self, x: Tensor) -> Tensor:
            self.looks += 1
            return nn.functional.interpolate(x, scale_factor=4) * (self.looks != 2)

    lr, hr = images(1, 12)
    assert PGD(Blind(), steps=3, objective=L1).run(lr, hr).zero_gradient.tolist() == [1.0]


def test_the_objective_is_l1_plus_perceptual(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = nn.Conv2d(3, 4, 3).requires_grad_(False)
    monkeypatch.setattr("benchsr.metrics.objective.vgg_trunk", lambda net: trunk)
    _, hr = images(2, 4)
    sr = hr.flip(0)
    bound = Objective(0.5, 2.0).bind(hr)
    terms = bound.components(sr)
    torch.testing.assert_close(terms["l1"], (sr - hr).abs().mean(dim=(1, 2, 3)))
    torch.testing.assert_close(terms["perceptual"], (trunk(sr) - trunk(hr)).abs().mean(dim=(1, 2, 3)))
    torch.testing.assert_close(bound(sr), 0.5 * terms["l1"] + 2.0 * terms["perceptual"])
    torch.testing.assert_close(bound[1:](sr[1:]), bound(sr)[1:])


BAD_INPUTS: dict[str, tuple[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], str]] = {
    "grey": (lambda x, y: (x[:, :1], y), "lr must have shape"),
    "8 bit": (lambda x, y: ((x * 255).byte(), y), "divide 8-bit images by 255"),
    "out of range": (lambda x, y: (x * 2, y), "in \\[0, 1\\]"),
    "nan": (lambda x, y: (x * torch.nan, y), "finite"),
    "hr does not match": (lambda x, y: (x, y[..., :-4]), "hr must be 2, 3, 4 or 8 times lr"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_is_refused(name: str, network: nn.Module) -> None:
    spoil, message = BAD_INPUTS[name]
    with pytest.raises(InputError, match=message):
        FGSM(network, eps=EPS, objective=L1)(*spoil(*images(1, 12)))


def test_models_that_break_their_contract_are_named() -> None:
    lr, hr = images(1, 12)
    with pytest.raises(ModelError, match="the shape of the truth"):
        FGSM(nn.Upsample(scale_factor=2), objective=L1)(lr, hr)

    class Broken(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.interpolate(x, scale_factor=4) * self.value

    for value in (torch.nan, torch.inf):
        with pytest.raises(ModelError, match="NaN"):
            FGSM(Broken(value), objective=L1)(lr, hr)


def test_bad_settings_are_refused(network: nn.Module) -> None:
    for make in (
        lambda: PGD(network, steps=0),
        lambda: PGD(network, eps=-1.0),
        lambda: PGD(network, start_scale=1.5),
        lambda: CW(network, c=0.0),
    ):
        with pytest.raises(InputError):
            make()


@pytest.mark.parametrize("make", [FGSM, BIM, PGD, CW])
def test_the_last_iterate_is_what_a_run_without_choice_returns(make: Callable[..., GradientAttack]) -> None:
    network, (lr, hr) = tiny_rrdb(), images(1, 12)
    atk = make(network, objective=L1, keep_best=False)
    expected = atk.run(lr, hr, ["a"], 3).lr
    network.train()
    torch.testing.assert_close(atk.last_iterate(lr, L1.bind(hr), ["a"], 3), expected)
    assert network.training
