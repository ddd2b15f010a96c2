"""Attacks with other aims and means: each against torchattacks or a reference written out here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from conftest import images, scene, tiny_rrdb
from torch import Tensor, nn

from benchsr.base.errors import InputError
from benchsr.base.inference import to_8bit
from benchsr.metrics.objective import LOSSES, Objective
from benchsr.threats.adaptive import StrongPGD
from benchsr.threats.attacks import PGD, GradientAttack
from benchsr.threats.health import attack_flags
from benchsr.threats.table import VARIANTS, load_threat
from benchsr.threats.variants import DIMIFGSM, MIFGSM, EightBitPGD, Part, PartialPGD, Universal

L1 = Objective(l1_weight=1.0, perceptual_weight=0.0)
EPS = 8 / 255


def l1(network: nn.Module, x: Tensor, hr: Tensor) -> Tensor:
    loss: Tensor = (network(x) - hr).abs().flatten(1).mean(1)
    return loss


class TwoLogits(nn.Module):
    """Logits (0, L): with label 0 the cross-entropy log(1 + exp(L)) rises with L, so gradients have L's sign."""

    def __init__(self, answer: Callable[[Tensor], Tensor], hr: Tensor) -> None:
        super().__init__()
        self.answer, self.hr = answer, hr
        self.register_buffer("device_of", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        loss = (self.answer(x) - self.hr).abs().flatten(1).mean(1)
        return torch.stack([torch.zeros_like(loss), loss], dim=1)


def test_momentum_equals_torchattacks() -> None:
    network, (lr, hr) = tiny_rrdb(3), images(1, 12)
    theirs = torchattacks.MIFGSM(TwoLogits(network, hr), eps=EPS, alpha=EPS / 5, steps=5, decay=0.8)
    ours = MIFGSM(network, eps=EPS, steps=5, decay=0.8, objective=L1)(lr, hr)
    torch.testing.assert_close(ours, theirs(lr, torch.zeros(1, dtype=torch.long)), atol=1e-6, rtol=0)
    plain = MIFGSM(network, eps=EPS, steps=5, decay=0.0, objective=L1)(lr, hr)
    bim = PGD(network, eps=EPS, alpha=EPS / 5, steps=5, random_start=False, keep_best=False, objective=L1)(lr, hr)
    torch.testing.assert_close(plain, bim, atol=1e-6, rtol=0)
    assert not torch.equal(ours, plain)


def test_diverse_inputs_equal_torchattacks_where_it_has_one_choice() -> None:
    """12 pixels a side at 0.92 leave one size, 11, and one place, the upper left corner."""
    network, (lr, hr) = tiny_rrdb(3), images(1, 12)

    def answer(x: Tensor) -> Tensor:
        sr: Tensor = F.interpolate(network(x)[..., :44, :44], size=(48, 48), mode="bilinear", align_corners=False)
        return sr

    settings = {"eps": EPS, "alpha": EPS / 4, "steps": 4, "decay": 1.0, "resize_rate": 0.92, "diversity_prob": 1.0}
    theirs = torchattacks.DIFGSM(TwoLogits(answer, hr), **settings)
    ours = DIMIFGSM(network, eps=EPS, steps=4, shrink=0.92, probability=1.0, objective=L1)(lr, hr)
    torch.testing.assert_close(ours, theirs(lr, torch.zeros(1, dtype=torch.long)), atol=1e-6, rtol=0)


def test_diverse_inputs_vary_by_image_and_step_and_stay_aligned(network: nn.Module) -> None:
    lr, hr = scene(network, 2, 12)
    diverse = DIMIFGSM(network, eps=EPS, steps=4, objective=L1)
    assert not torch.equal(diverse(lr, hr, ["a", "b"]), MIFGSM(network, eps=EPS, steps=4, objective=L1)(lr, hr))
    never = DIMIFGSM(network, eps=EPS, steps=4, probability=0.0, objective=L1)
    assert torch.equal(never(lr, hr), MIFGSM(network, eps=EPS, steps=4, objective=L1)(lr, hr))
    ramp = torch.linspace(0.2, 0.8, 40).expand(6, 3, 20, 40)
    atk = DIMIFGSM(nn.Upsample(scale_factor=4, mode="bilinear"), shrink=0.6, probability=1.0, objective=L1)
    ids = list("abcdef")
    here, there = (atk.answer(ramp, ids, noise, True) for noise in ("step-0", "step-1"))
    plain = atk.answer(ramp, ids, "step-0", False)
    inner = (..., slice(12, -12), slice(24, -24))  # resampling has borders
    torch.testing.assert_close(here[inner], plain[inner], atol=0.01, rtol=0)
    assert len({tuple(y.flatten()[:50].tolist()) for y in torch.cat([here, there])}) > 6


def test_the_record_of_diverse_inputs_is_of_the_image_itself(network: nn.Module) -> None:
    lr, hr = scene(network, 2, 12)
    result = DIMIFGSM(network, eps=EPS, steps=3, probability=1.0, objective=L1).run(lr, hr, ["a", "b"])
    torch.testing.assert_close(result.loss_clean, l1(network, lr, hr))
    torch.testing.assert_close(result.loss_attacked, l1(network, result.lr, hr))
    assert torch.equal(result.losses, torch.stack([result.loss_clean, result.loss_attacked], dim=1))
    assert attack_flags(result) == ["", ""]


def test_cospgd_equals_a_reference(network: nn.Module) -> None:
    lr, hr = scene(network, 2, 12)
    adv = lr.clone()
    for _ in range(4):
        adv = adv.detach().requires_grad_()
        sr = network(adv)
        cosine = F.cosine_similarity(F.softmax(sr, dim=1), F.softmax(hr, dim=1), dim=1).detach()
        (cosine * (sr - hr).abs().mean(dim=1)).mean().backward()
        assert adv.grad is not None
        adv = adv + 2 / 255 * adv.grad.sign()
        adv = torch.max(torch.min(adv, lr + EPS), lr - EPS).clamp(0, 1).detach()
    atk = PGD(
        network, eps=EPS, alpha=2 / 255, steps=4, random_start=False, keep_best=False, objective=LOSSES["aligned"]
    )
    torch.testing.assert_close(atk(lr, hr), adv, atol=1e-6, rtol=0)
    spread = torch.rand_like(hr)  # colours far apart: the weights differ, and so does the gradient
    found = LOSSES["aligned"].bind(hr)(spread)
    weights = F.cosine_similarity(F.softmax(spread, dim=1), F.softmax(hr, dim=1), dim=1)
    torch.testing.assert_close(found, (weights * (spread - hr).abs().mean(1)).flatten(1).mean(1))
    assert (found < 0.99 * l1(nn.Identity(), spread, hr)).all()
    towards = Objective(1.0, 0.0, toward=True, aligned=True).bind(hr)(spread)
    torch.testing.assert_close(towards, -((1 - weights) * (spread - hr).abs().mean(1)).flatten(1).mean(1))


@pytest.mark.parametrize("pace", [0.1, 2.5])
def test_8_bit_results_lie_on_the_grid_and_in_the_ball(pace: float, network: nn.Module) -> None:
    lr, hr = scene(network, 2, 12)
    for x in (lr, to_8bit(lr)):
        result = EightBitPGD(network, eps=EPS, steps=5, restarts=1, pace=pace, objective=L1).run(x, hr, ["a", "b"])
        assert torch.equal(result.lr, to_8bit(result.lr))
        assert (result.lr - x).abs().max() <= EPS + 1e-6
        assert (result.loss_attacked > 1.02 * result.loss_clean).all()
    plain = StrongPGD(network, eps=EPS, steps=5, restarts=1, objective=L1)(lr, hr)
    assert not torch.equal(plain, to_8bit(plain))


def test_8_bit_images_at_the_rim_of_the_ball(network: nn.Module) -> None:
    atk = EightBitPGD(network, eps=1.5 / 255, objective=L1)
    x = torch.tensor([0.0, 0.4, 100.0, 100.4, 254.9, 255.0]).view(1, 1, 1, 6) / 255
    for far, expected in ((1.0, [1, 1, 101, 101, 255, 255]), (-1.0, [0, 0, 99, 99, 254, 254])):
        assert (atk.rounded(x + far, x) * 255).flatten().tolist() == pytest.approx(expected)


def test_a_target_comes_closer(network: nn.Module) -> None:
    lr, hr = scene(network, 2, 12)
    target = hr.flip(0)
    threat = load_threat("pgd-targeted")
    assert threat.objective
    result = threat.run(network, lr, hr, ["a", "b"], bound=threat.objective.bind(target))
    assert (l1(network, result.lr, target) < 0.98 * l1(network, lr, target)).all()
    assert (result.lr - lr).abs().max() <= 10 / 255 + 1e-6
    with pytest.raises(InputError, match="needs the image that it leads towards"):
        threat(network, lr, hr)


def test_without_the_truth_the_answer_moves_as_far_whatever_the_truth(network: nn.Module) -> None:
    lr, hr = scene(network, 2, 12)
    threat = load_threat("pgd-answer")
    attacked = threat(network, lr, hr, ["a", "b"])
    assert torch.equal(attacked, threat(network, lr, 1 - hr, ["a", "b"]))
    clean = network(lr)
    random = (lr + 10 / 255 * torch.randn_like(lr).sign()).clamp(0, 1)
    assert (l1(network, attacked, clean) > 1.5 * l1(network, random, clean)).all()


@pytest.mark.parametrize("make", [MIFGSM, DIMIFGSM, EightBitPGD])
def test_variants_raise_the_loss_inside_the_ball(make: Callable[..., GradientAttack], network: nn.Module) -> None:
    """A no-op attack fails here."""
    lr, hr = scene(network, 2, 12)
    result = make(network, eps=EPS, steps=4, objective=L1).run(lr, hr, ["a", "b"])
    assert 0 <= result.lr.min() <= result.lr.max() <= 1
    assert (result.lr - lr).abs().max() <= EPS + 1e-6
    torch.testing.assert_close(result.loss_attacked, l1(network, result.lr, hr))
    assert (result.loss_attacked > 1.02 * result.loss_clean).all()


def textured(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Smooth LR images and the truth that `tiny_rrdb` comes near to: different images of one kind."""
    gen = torch.Generator().manual_seed(seed)
    lr = F.interpolate(torch.rand((n, 3, 3, 3), generator=gen), size=(12, 12), mode="bicubic").clamp(0.1, 0.9)
    return lr, F.interpolate(lr, scale_factor=4, mode="bicubic").clamp(0, 1)


def test_a_universal_perturbation_harms_images_that_it_was_not_fitted_on(network: nn.Module) -> None:
    """More than random signs of its size do, on each: a no-op attack fails here."""
    attack = Universal(network, eps=EPS, steps=10, objective=L1)
    shift, (lr, hr) = attack.fit(*textured(4, 0)), textured(4, 1)
    assert shift.shape == lr.shape[1:]
    assert shift.abs().max() <= EPS + 1e-6
    found = attack.apply(shift, lr, hr)
    assert torch.equal(found.lr, (lr + shift).clamp(0, 1))
    signs = torch.randn((20, *lr.shape[1:]), generator=torch.Generator().manual_seed(2)).sign() * EPS
    random = torch.stack([l1(network, (lr + delta).clamp(0, 1), hr) for delta in signs])
    assert found.loss_clean is not None
    assert found.loss_attacked is not None
    torch.testing.assert_close(found.loss_clean, l1(network, lr, hr))
    torch.testing.assert_close(found.loss_attacked, l1(network, found.lr, hr))
    assert (found.loss_attacked > found.loss_clean).all()
    assert (found.loss_attacked > random.amax(0)).all()


def test_a_universal_perturbation_follows_the_mean_gradient(network: nn.Module) -> None:
    lr, hr = textured(3, 0)
    shift = torch.zeros_like(lr[0])
    for _ in range(3):
        shift.requires_grad_()
        loss = torch.stack(
            [(network((x + shift).clamp(0, 1)[None])[0] - y).abs().mean() for x, y in zip(lr, hr, strict=True)]
        )
        (grad,) = torch.autograd.grad(loss.mean(), shift)
        shift = (shift + 2 * EPS / 3 * grad.sign()).clamp(-EPS, EPS).detach()
    fitted = Universal(network, eps=EPS, steps=3, pace=2.0, objective=L1).fit(lr, hr, ["a", "b", "c"])
    torch.testing.assert_close(fitted, shift, atol=1e-6, rtol=0)


def test_a_universal_perturbation_says_what_it_needs(network: nn.Module) -> None:
    lr, hr = images(2, 12)
    attack = Universal(network, objective=L1)
    with pytest.raises(InputError, match="fitted on other images"):
        attack(lr, hr)
    with pytest.raises(InputError, match="does not fit"):
        attack.apply(torch.zeros(3, 12, 16), lr, hr)


def test_a_partial_attack_changes_the_left_and_harms_the_right(network: nn.Module) -> None:
    """A no-op attack fails here."""
    lr, hr = scene(network, 2, 16)
    result = PartialPGD(network, eps=EPS, steps=4, restarts=1, margin=1, objective=L1).run(lr, hr, ["a", "b"])
    assert torch.equal(result.lr[..., 8:], lr[..., 8:])
    assert ((result.lr - lr)[..., :8].abs() > 0.5 * EPS).float().mean() > 0.5

    def right(x: Tensor) -> Tensor:
        """The loss to the right of 9 LR columns, of images whose left 8 are those of `x`."""
        answer: Tensor = network(torch.cat([x[..., :8], lr[..., 8:]], dim=-1))
        return (answer - hr)[..., 36:].abs().flatten(1).mean(1)

    torch.testing.assert_close(result.loss_attacked, right(result.lr))
    torch.testing.assert_close(result.loss_clean, right(lr))
    signs = torch.randn((20, *lr.shape), generator=torch.Generator().manual_seed(2)).sign() * EPS
    random = torch.stack([right((lr + delta).clamp(0, 1)) for delta in signs]).amax(0)
    assert (result.loss_attacked - result.loss_clean > 2 * (random - result.loss_clean)).all()
    assert (result.loss_attacked > result.loss_clean).all()
    assert (result.loss_attacked > right(StrongPGD(network, eps=EPS, steps=4, restarts=1, objective=L1)(lr, hr))).all()


def test_bicubic_carries_nothing_over_a_margin_of_2() -> None:
    lr, hr = images(2, 16)
    bicubic = nn.Upsample(scale_factor=4, mode="bicubic")
    runs = {m: PartialPGD(bicubic, eps=EPS, steps=3, margin=m, objective=L1).run(lr, hr) for m in (0, 2)}
    assert torch.equal(runs[2].loss_attacked, runs[2].loss_clean)
    assert (runs[0].loss_attacked > runs[0].loss_clean).all()


def test_what_is_scored_of_an_image_is_that_part_at_every_scale() -> None:
    part = Part(0.5, 4)
    assert part.scored(torch.arange(96.0).expand(3, 96, 96), 24)[0, 0].tolist() == list(range(64, 96))
    assert part.scored(torch.arange(24.0).expand(3, 24, 24), 24)[0, 0].tolist() == list(range(16, 24))
    with pytest.raises(InputError, match="leaves nothing to score"):
        Part(0.9, 4).scored(torch.zeros(3, 48, 48), 12)
    for attacked, margin in ((0.0, 4), (1.0, 4), (0.5, -1)):
        with pytest.raises(InputError, match="need 0 < attacked < 1"):
            Part(attacked, margin)


def test_every_variant_stands_in_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "attacks.md").read_text()
    assert [name for name in VARIANTS if f"| `{name}` |" not in text] == []


def test_bad_settings_are_refused(network: nn.Module) -> None:
    for make in (
        lambda: EightBitPGD(network, eps=0.5 / 255),
        lambda: MIFGSM(network, decay=-1.0),
        lambda: DIMIFGSM(network, shrink=1.0),
        lambda: DIMIFGSM(network, probability=1.5),
    ):
        with pytest.raises(InputError):
            make()
