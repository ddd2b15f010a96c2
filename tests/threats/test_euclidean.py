"""Attacks of bounded l2 norm, the ensemble, and the smallest perturbation that does harm."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, sqrt

import pytest
import torch
from conftest import images, scene, tiny_rrdb
from torch import Tensor, nn

from benchsr.base.errors import InputError, ModelError, UnknownIdError
from benchsr.base.rng import normal_like, uniform_like
from benchsr.defences.smoothing import smooth
from benchsr.evaluation.protocol import load_protocol
from benchsr.evaluation.worker import verify
from benchsr.metrics.objective import LOSSES, Objective
from benchsr.threats.adaptive import APGD, StrongPGD
from benchsr.threats.attacks import PGD, GradientAttack
from benchsr.threats.breaking import smallest_eps
from benchsr.threats.table import ADAPTIVE, CROP_24, ENSEMBLE, EUCLIDEAN, L2_SWEEP, THREATS, load_threat, select_ids

L1 = Objective(l1_weight=1.0, perceptual_weight=0.0)
MSE = LOSSES["mse"]
EPS = 0.5

ATTACKS: dict[str, Callable[[nn.Module], PGD]] = {
    "pgd": lambda m: PGD(m, eps=EPS, alpha=0.2, steps=6, norm="l2", objective=L1),
    "strong pgd": lambda m: StrongPGD(m, eps=EPS, steps=6, restarts=2, norm="l2", objective=L1),
    "apgd": lambda m: APGD(m, eps=EPS, steps=6, restarts=2, norm="l2", objective=L1),
}


def norms(delta: Tensor) -> Tensor:
    found: Tensor = delta.flatten(1).norm(dim=1)
    return found


@pytest.mark.parametrize("name", ATTACKS)
def test_each_beats_random_noise_of_its_norm_and_stays_in_its_ball(name: str) -> None:
    network = tiny_rrdb()
    lr, hr = scene(network, 2, 12)
    result = ATTACKS[name](network).run(lr, hr, ["a", "b"])
    assert float(norms(result.lr - lr).max()) <= EPS * (1 + 1e-5)
    assert float(norms(result.lr - lr).min()) > 0.9 * EPS
    assert float((result.lr - lr).abs().max()) > EPS / sqrt(lr[0].numel())  # not the L-infinity ball inside it
    assert 0 <= result.lr.min() <= result.lr.max() <= 1
    noise = torch.randn(20, *lr.shape, generator=torch.Generator().manual_seed(0))
    for away in noise:
        moved = (lr + EPS * away / norms(away).view(-1, 1, 1, 1)).clamp(0, 1)
        assert bool((result.loss_attacked > (network(moved) - hr).abs().flatten(1).mean(1)).all())


@pytest.mark.parametrize("name", ATTACKS)
def test_each_image_is_attacked_alike_in_any_batch(name: str) -> None:
    network = tiny_rrdb()
    lr, hr = scene(network, 2, 8)
    attack = ATTACKS[name](network)
    assert torch.equal(attack(lr, hr, ["a", "b"])[1:], attack(lr[1:], hr[1:], ["b"]))


class Linear(nn.Module):
    """Nearest upsampling of weight * x: on its own output any loss is a function of the weighted distance."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(self.weight * x, scale_factor=4)


def test_one_step_on_a_linear_model_reaches_the_optimum_in_closed_form() -> None:
    """L1 from below the truth rises linearly along -weight: the worst change of norm eps is -eps weight / |weight|."""
    weight = 0.2 + torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    lr, hr = torch.full((1, 3, 6, 6), 0.5), torch.ones(1, 3, 24, 24)
    attack = PGD(Linear(weight * 0.5), eps=0.3, alpha=1.0, steps=1, random_start=False, norm="l2", objective=L1)
    torch.testing.assert_close(attack(lr, hr), lr - 0.3 * weight / weight.norm())


def test_a_coarse_start_stays_in_the_ball() -> None:
    lr, hr = images(1, 12)
    attack = PGD(tiny_rrdb(), eps=EPS, alpha=0.0, steps=1, start_scale=0.5, norm="l2", objective=L1, keep_best=False)
    assert float(norms(attack(lr, hr) - lr)) <= EPS * (1 + 1e-5)


def test_the_table_of_l2_threats_spans_the_certificates_and_8_of_255() -> None:
    assert pytest.approx(1.304, abs=5e-4) == CROP_24
    for name, spec in EUCLIDEAN.items():
        threat = load_threat(name)
        assert threat.ball is not None
        assert type(threat.ball).__name__ == "L2"
        assert threat.ball.eps == L2_SWEEP.get(name.removeprefix("pgd-"), CROP_24)
        assert threat.median_of == 5
        assert spec.like == "pgd"
    assert min(L2_SWEEP.values()) < 2.2 * 0.03 < CROP_24  # what n = 1001 certifies of a 24 x 24 crop at sigma 0.03


def test_the_protocol_of_certificates_attacks_from_inside_them_to_8_of_255_in_every_element() -> None:
    protocol = load_protocol("certified")
    assert protocol.crop
    largest = sqrt(3 * protocol.crop**2) * 8 / 255
    for make in (APGD, StrongPGD):
        deployed = [t for t in map(protocol.threat, protocol.threats) if t.spec.make is make and not t.singles]
        radii = [t.ball.eps for t in deployed if t.ball]
        assert len(radii) >= 3
        assert min(radii) <= 0.05 < 0.06 * (2.066 - 0.839)  # of all elements of any image, less the cost of 21 draws
        assert max(radii) == pytest.approx(largest, abs=1e-3)


def test_settings_of_the_other_threats_are_what_they_were() -> None:
    """They are part of the keys of results: a new one would make all of them be computed again."""
    attack = ["l1_weight", "perceptual_weight", "perceptual_net"]
    assert list(THREATS["pgd"].defaults) == [
        "eps",
        "alpha",
        "steps",
        "random_start",
        "start_scale",
        "keep_best",
        *attack,
    ]
    for spec in ADAPTIVE.values():
        assert not {"norm", "loss", "mse_weight", "against", "toward"} & set(spec.defaults)


def test_what_an_attack_may_move_is_checked_in_its_own_norm() -> None:
    lr = torch.full((3, 8, 8), 0.5)
    spike, spread = lr.clone(), lr + 0.5 / sqrt(lr.numel())
    spike[0, 0, 0] += 0.45
    l2, linf = load_threat("pgd-l2", eps=0.5), load_threat("pgd", eps=0.1)
    verify(l2, lr, spike, 0.0)
    verify(l2, lr, spread, 0.0)
    verify(linf, lr, spread, 0.0)
    with pytest.raises(ModelError, match="beyond its eps"):
        verify(linf, lr, spike, 0.0)
    with pytest.raises(ModelError, match="beyond its eps"):
        verify(l2, lr, lr + 0.52 / sqrt(lr.numel()), 0.0)
    verify(l2, lr, lr + 0.5 / sqrt(lr.numel()) + 0.4 / 255, rounding=0.5 / 255)
    verify(load_threat("noise"), lr, spike, 0.0)


@pytest.mark.parametrize("bad", [{"norm": "l1"}, {"norm": "l2", "eps": -0.1}, {"norm": "linf", "eps": 1.5}])
def test_bad_balls_are_refused(bad: dict[str, str]) -> None:
    with pytest.raises(InputError):
        PGD(nn.Identity(), alpha=0.0, **bad)  # type: ignore[arg-type]


# The ensemble.


@pytest.mark.parametrize("name", ENSEMBLE)
def test_each_member_beats_random_noise_of_its_size_at_what_it_raises(name: str, trunk: nn.Module) -> None:
    network = tiny_rrdb()
    lr, hr = scene(network, 2, 8)
    few = {"steps": 40 if name == "aa-square" else 8}
    threat = load_threat(name, **few)
    result = threat.attack(network).run(lr, hr, ["a", "b"])
    assert threat.objective is not None
    with torch.no_grad():
        answer = network(lr)
        against = {"truth": hr, "answer": answer, "turned": hr.flip(-1).flip(-2)}[threat.objective.against]
        bound = threat.objective.bind(against)
        torch.testing.assert_close(bound(network(result.lr)), result.loss_attacked)
        gen = [torch.Generator().manual_seed(i) for i in range(2)]
        noises = [uniform_like(lr, gen) for _ in range(10)] + [normal_like(lr, gen).sign() for _ in range(10)]
        for noise in noises:
            moved = (lr + 10 / 255 * noise).clamp(0, 1)
            assert bool((result.loss_attacked > bound(network(moved))).all())


def test_a_target_can_be_given() -> None:
    network = tiny_rrdb()
    lr, hr = scene(network, 1, 8)
    target, _ = images(1, 32, seed=7)
    objective = Objective(1.0, 0.0, toward=True)
    attack: GradientAttack = APGD(network, eps=0.2, steps=10, restarts=1, objective=objective)
    attacked = attack.run(lr, hr, bound=objective.bind(target)).lr
    assert float((network(attacked) - target).abs().mean()) < 0.97 * float((network(lr) - target).abs().mean())


def test_the_clean_answer_of_a_randomised_model_has_noise_of_its_own() -> None:
    """Away from its own answer: the two halves of a batch are attacked as each alone, draws and all."""
    model = smooth(tiny_rrdb(), 0.05, n=2)
    lr, hr = scene(model.network, 2, 8)
    attack = APGD(model, eps=0.05, steps=3, restarts=1, objective=LOSSES["answer"])
    together = attack.run(lr, hr, ["a", "b"])
    assert torch.equal(together.lr[1:], attack(lr[1:], hr[1:], ["b"]))
    assert bool((together.loss_attacked > together.loss_clean).all())


def test_the_terms_of_an_objective() -> None:
    _, hr = images(2, 4)
    sr = hr.flip(0)
    bound = Objective(0.5, 0.0, mse_weight=2.0).bind(hr)
    expected = 0.5 * (sr - hr).abs().mean(dim=(1, 2, 3)) + 2 * (sr - hr).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(bound(sr), expected)
    torch.testing.assert_close(Objective(0.5, 0.0, mse_weight=2.0, toward=True).bind(hr)(sr), -expected)
    with pytest.raises(InputError, match="not all zero"):
        Objective(0.0, 0.0)
    with pytest.raises(UnknownIdError, match="did you mean 'mse'"):
        load_threat("aa-mse", loss="mze").objective  # noqa: B018


def test_members_have_nothing_but_a_budget_to_tune() -> None:
    assert load_threat("aa-mse").settings == {**load_threat("aa-l1").settings, "loss": "mse"}
    assert "perceptual_net" not in load_threat("aa-l1").settings
    net = load_threat("aa-perceptual", perceptual_net="vgg19").objective
    assert net == Objective(0.0, 1.0, "vgg19")


# The smallest perturbation.


class Amplifier(nn.Module):
    """x4 of 0.5 + 4 (x - 0.5): a change of L-infinity size e moves every output by 4 e."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(0.5 + 4 * (x - 0.5), scale_factor=4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_smallest_eps_equals_its_closed_form(norm: str) -> None:
    """A clean error of c everywhere: 3 dB is an error of c 10^(3/20), hence a change of c (10^(3/20) - 1) / 4."""
    c, side = 0.04, 6
    lr = torch.full((2, 3, side, side), 0.5)
    hr = torch.full((2, 3, 4 * side, 4 * side), 0.5 - c)
    hr[1] -= c  # twice the error, twice the change
    change = c * (10 ** (3 / 20) - 1) / 4 * (sqrt(3 * side**2) if norm == "l2" else 1)
    largest = 0.1 if norm == "linf" else 1.0

    def make(eps: float) -> PGD:
        return PGD(Amplifier(), eps=eps, alpha=eps / 2, steps=4, norm=norm, objective=MSE, random_start=False)  # type: ignore[arg-type]

    found = smallest_eps(make, Amplifier(), lr, hr, largest, rounds=9)
    for eps, exact in zip(found.tolist(), (change, 2 * change), strict=True):
        assert exact * (1 - 1e-4) <= eps <= exact + largest / 2**9 * 1.01
    assert smallest_eps(make, Amplifier(), lr, hr, 0.5 * change).tolist() == [inf, inf]
    assert smallest_eps(make, Amplifier(), lr[1:], hr[1:], largest, rounds=9).tolist() == found[1:].tolist()


def test_a_randomised_model_is_judged_by_noise_that_no_attack_saw() -> None:
    model = smooth(tiny_rrdb(), 0.05, n=3)
    lr, hr = scene(model.network, 1, 8)
    found = smallest_eps(
        lambda eps: StrongPGD(model, eps=eps, steps=5, restarts=1, objective=L1),
        model, lr, hr, 0.3, drop=1.0, rounds=4, evaluations=3,
    )  # fmt: skip
    assert 0 < float(found) < 0.3
    with pytest.raises(InputError):
        smallest_eps(lambda eps: PGD(model, eps=eps), model, lr, hr, 0.3, drop=0.0)


def test_one_name_stands_for_the_ensemble() -> None:
    assert select_ids("clean,autoattack-sr") == ["clean", *ENSEMBLE]
    assert select_ids("aa-l1,autoattack-sr") == list(ENSEMBLE)
    assert select_ids("all") == list(THREATS)
    with pytest.raises(UnknownIdError, match="autoattack"):
        select_ids("autoattack")
