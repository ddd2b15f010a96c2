"""Each sign of a weak attack: raised where the attack is made to fail that way, and not raised where it works."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import log10
from threading import Thread

import pytest
import torch
from conftest import scene, tiny_rrdb
from torch import Tensor, nn
from torch.autograd import grad as grad_by_name

from benchsr.base.inner import inner_gradients
from benchsr.defences.smoothing import smooth
from benchsr.leaderboard.flags import FLAGS, flags
from benchsr.metrics.objective import Objective
from benchsr.metrics.quality import METRICS, Metric
from benchsr.models.cards import Card, Smoothing
from benchsr.models.zoo import load_card
from benchsr.results.records import Record, Status
from benchsr.threats.attacks import FGSM, PGD, AttackTrace
from benchsr.threats.health import attack_flags

L1 = Objective(l1_weight=1.0, perceptual_weight=0.0)
EPS = 8 / 255


class Quantised(nn.Module):
    """Rounds its input to 8 bit, as a defence that masks gradients does: they are zero everywhere."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        sr: Tensor = self.network((x * 255).round() / 255)
        return sr


def test_a_working_attack_is_not_flagged() -> None:
    network = tiny_rrdb()
    result = PGD(network, eps=EPS, alpha=4 / 255, steps=20, objective=L1).run(*scene(network, 2, 12))
    assert attack_flags(result) == ["", ""]
    single = FGSM(network, eps=EPS, objective=L1).run(*scene(network, 2, 12))
    assert attack_flags(single) == ["", ""]


def test_masked_gradients_are_flagged() -> None:
    network = Quantised(tiny_rrdb())
    result = PGD(network, eps=EPS, steps=3, random_start=False, objective=L1).run(*scene(network, 1, 12))
    assert attack_flags(result) == ["zero-gradient no-gain"]


def test_too_short_a_walk_is_flagged() -> None:
    network = tiny_rrdb()
    result = PGD(network, eps=0.3, alpha=0.5 / 255, steps=10, objective=L1).run(*scene(network, 1, 12))
    assert attack_flags(result) == ["still-rising"]


def test_discarding_the_best_iterate_is_flagged() -> None:
    gains, one = torch.tensor([[0.0, 1.0, 0.8]]), torch.ones(1)
    kept = {
        step: AttackTrace(torch.zeros(1, 3, 1, 1), 0 * one, one, gains, gains, torch.tensor([step]), 0 * one)
        for step in (1, 2)
    }
    assert {step: attack_flags(result) for step, result in kept.items()} == {1: [""], 2: ["best-discarded"]}


class BackProjected(nn.Module):
    """Answers with what descends from the network's SR towards one that shrinks to its input."""

    def __init__(self, network: nn.Module, how: str) -> None:
        super().__init__()
        self.network = network
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        sr: Tensor = self.network(x).detach().requires_grad_()
        if self.how == "optimiser":  # with a gradient in closed form
            sr.grad = nn.functional.interpolate(nn.functional.avg_pool2d(sr.detach(), 4) - x, scale_factor=4)
            torch.optim.SGD([sr], lr=0.1).step()
            return sr.detach()
        with torch.enable_grad():
            loss = (nn.functional.avg_pool2d(sr, 4) - x).square().sum()
            if self.how == "backward":
                loss.backward()
                gradient = sr.grad
            else:
                (gradient,) = grad_by_name(loss, sr)
        assert gradient is not None
        return sr.detach() - 0.1 * gradient


@pytest.mark.parametrize("how", ["grad", "backward", "optimiser"])
def test_a_gradient_inside_of_a_model_is_flagged(how: str) -> None:
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad(), inner_gradients() as found:
        answer = BackProjected(tiny_rrdb(), how)(x)
    assert found == ["inner-gradient"]
    assert found[0] in FLAGS
    with torch.no_grad():
        assert not torch.equal(answer, tiny_rrdb()(x))


def test_models_that_take_none_are_not_flagged_nor_is_what_comes_after() -> None:
    x = torch.rand(1, 3, 8, 8, requires_grad=True)
    with inner_gradients() as found:
        sr = smooth(tiny_rrdb(), 0.1, 9)(x)
    torch.autograd.grad(sr.sum(), x)
    assert found == []


def test_gradients_of_other_threads_are_not_the_models() -> None:
    def elsewhere() -> None:
        x = torch.ones(2, requires_grad=True)
        x.square().sum().backward()

    with inner_gradients() as found:
        thread = Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert found == []


def test_flags_are_per_image() -> None:
    gains = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.5, 1.0]])
    ones = torch.ones(2)
    result = AttackTrace(torch.zeros(2, 3, 1, 1), 0 * ones, ones, gains, gains, torch.tensor([1, 2]), 0 * ones)
    assert attack_flags(result) == ["", "still-rising"]


def records(psnr: Mapping[str, float], linf: float = 10 / 255, health: str = "", **l2: float) -> list[Record]:
    return [
        Record(
            "p",
            "d",
            "m",
            t,
            image,
            Status.OK,
            scores={"psnr": p},
            attack_linf=linf,
            attack_l2=l2.get(t, 1.0),
            health=health,
        )
        for t, p in psnr.items()
        for image in ("a", "b")
    ]


def rising(given: list[Record]) -> list[Record]:
    return [replace(r, loss_clean=0.1, loss_attacked=0.2) for r in given]


CASES: dict[str, tuple[list[Record], str]] = {
    "transfer beats the attack that knows more": (
        records({"pgd-transfer": 18.0, "pgd-eot": 18.5, "pgd-median": 17.0}),
        "pgd-eot transfer-stronger not-the-best",
    ),
    "another attack's transfer does not count": (records({"apgd-transfer": 18.0, "pgd-eot": 18.5}), ""),
    "nor does the transfer of another loss": (records({"apgd-transfer": 18.0, "aa-mse": 18.5}), ""),
    "an attack of small l2 norm may change one pixel much": (records({"clean": 30.0, "l2-0.1": 29.0}, linf=0.09), ""),
    "a difference within the margin": (records({"pgd-transfer": 18.0, "pgd-eot": 18.05}), ""),
    "noise as strong": (records({"random": 20.0, "pgd": 20.05}), "pgd random-as-strong"),
    "larger noise may do more": (records({"noise": 20.0, "cw": 25.0}, noise=1.2), ""),
    "noise is weaker": (records({"noise": 20.0, "pgd": 15.0}), ""),
    "not destroyed": (records({"clean": 30.0, "eps-32": 20.0}, linf=32 / 255), "eps-32 not-destroyed"),
    "destroyed": (records({"clean": 30.0, "eps-32": 16.0}, linf=32 / 255), ""),
    "small eps need not destroy": (records({"clean": 30.0, "eps-8": 29.0}, linf=8 / 255), ""),
    "a search without gradients beats gradients": (
        records({"square": 18.0, "pgd-median": 18.3}),
        "pgd-median black-box-stronger",
    ),
    "gradients that see less may lose to it": (records({"square": 18.0, "pgd-transfer": 18.3}), ""),
    "a smaller eps harms more": (records({"eps-4": 20.0, "eps-8": 20.5}, linf=0.03), "eps-8 not-monotone"),
    "a larger eps harms more": (records({"eps-4": 20.5, "eps-8": 20.0}, linf=0.03), ""),
    "in l2 too": (records({"single-l2-0.1": 20.0, "single-l2-0.2": 20.5}), "single-l2-0.2 not-monotone"),
    "two statistics are not compared": (records({"l2-0.1": 20.0, "single-l2-0.1": 28.0}), ""),
    "the loss rose, PSNR did not fall": (rising(records({"clean": 28.0, "l2-0.1": 28.0})), "l2-0.1 metric-unmoved"),
    "of single answers too": (
        rising(records({"single": 20.0, "clean": 28.0, "single-l2-0.1": 20.0})),
        "single-l2-0.1 metric-unmoved",
    ),
    "the loss rose and PSNR fell": (rising(records({"clean": 28.0, "l2-0.1": 27.0})), ""),
    "the loss did not rise either": (records({"clean": 28.0, "l2-0.1": 28.0}), ""),
    "far behind the best of its size": (records({"apgd-median": 17.0, "aa-mse": 18.0}), "aa-mse not-the-best"),
    "what is limited by design may be behind": (records({"apgd-median": 17.0, "pgd-targeted": 25.0}), ""),
    "what is not may not": (records({"apgd-median": 17.0, "cospgd": 18.0}), "cospgd not-the-best"),
    "two parts of an image are not compared": (
        rising(records({"clean": 28.0, "random": 27.0, "partial": 28.0, "pgd-median": 20.0})),
        "",
    ),
    "one part with itself is": (
        rising(records({"clean": 20.0, "partial-clean": 28.0, "partial": 28.0})),
        "partial metric-unmoved",
    ),
    "found while it ran": (records({"pgd": 15.0}, health="still-rising"), "pgd still-rising"),
}


@pytest.mark.parametrize("name", CASES)
def test_flags_that_show_by_comparison(name: str) -> None:
    given, expected = CASES[name]
    found = " ".join(f"{threat} {' '.join(raised)}" for (_, threat), raised in flags(given, {}).items())
    assert found == expected
    assert all(flag in FLAGS for raised in flags(given, {}).values() for flag in raised)


def test_cells_on_other_images_are_not_compared() -> None:
    given = records({"pgd-transfer": 18.0, "pgd-eot": 18.5})
    assert flags(given[:-1], {}) == {}


SIGMAS: Mapping[str, float | dict[str, float]] = {"each": {"pgd": 0.06, "cw": 0.03}, "one": 0.06}
"""How a model is smoothed: with a sigma for each threat, or with one."""


def smoothed(sigma: float | dict[str, float]) -> Card:
    return load_card("bicubic").model_copy(update={"id": "m", "smoothing": Smoothing(sigma=sigma)})


@pytest.mark.parametrize(
    ("sigma", "given", "expected"),
    [
        ("one", rising(records({"clean": 28.0, "pgd": 28.0})), "pgd metric-unmoved"),
        ("each", rising(records({"clean": 28.0, "pgd": 28.0})), ""),
        ("each", rising(records({"clean": 31.0, "l2-0": 28.0, "pgd": 28.0})), "pgd metric-unmoved"),
        ("each", rising(records({"clean": 28.0, "l2-0": 31.0, "pgd": 28.0})), ""),
        ("each", rising(records({"l2-0": 28.0, "cw": 28.0})), ""),  # which has another sigma
        ("one", records({"clean": 30.0, "eps-32": 20.0}, linf=32 / 255), "eps-32 not-destroyed"),
        ("each", records({"clean": 30.0, "eps-32": 20.0}, linf=32 / 255), ""),
        ("each", records({"clean": 15.0, "l2-0": 30.0, "eps-32": 20.0}, linf=32 / 255), "eps-32 not-destroyed"),
        ("one", records({"noise": 20.0, "pgd": 20.0}), "pgd random-as-strong"),
        ("each", records({"noise": 20.0, "pgd": 20.0}), ""),
        ("each", records({"random": 20.0, "pgd": 20.0}), "pgd random-as-strong"),
    ],
)
def test_a_sigma_for_each_threat_is_compared_with_itself(sigma: str, given: list[Record], expected: str) -> None:
    found = flags(given, {"m": smoothed(SIGMAS[sigma])}).items()
    assert " ".join(f"{threat} {' '.join(raised)}" for (_, threat), raised in found) == expected


def test_a_brightness_shift_is_what_an_attack_must_beat() -> None:
    """The formula behind "not-destroyed"."""
    noise = 0.05 * torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    eps = 32 / 255
    clean, shifted = (-10 * log10(float(error.square().mean())) for error in (noise, noise + eps))
    assert shifted == pytest.approx(-10 * log10(10 ** (-clean / 10) + eps**2), abs=0.05)


@pytest.mark.parametrize(
    ("psnr", "sharpness", "higher", "flagged"),
    [
        (28.9, 0.6, True, True),
        (28.9, 0.4, False, True),
        (28.9, 0.4, True, False),  # the score falls too
        (29.1, 0.6, True, False),  # PSNR hardly falls
    ],
)
def test_a_score_without_reference_that_an_attack_improves_is_gamed(
    psnr: float, sharpness: float, higher: bool, flagged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sharp(sr: Tensor) -> Tensor:
        return sr.flatten(1).std(1)

    monkeypatch.setattr(METRICS, "_entries", {**METRICS, "sharp": Metric("sharp", "Sharp", "", higher, sharp)})

    def cell(threat: str, psnr: float, sharpness: float) -> list[Record]:
        scores = {"psnr": psnr, "sharp": sharpness}
        return [Record("p", "d", "m", threat, f"i{k}", Status.OK, scores=scores, key="0" * 64) for k in range(3)]

    raised = flags([*cell("clean", 30.0, 0.5), *cell("pgd", psnr, sharpness)], {})
    assert ("metric-gaming" in raised.get(("m", "pgd"), ())) is flagged
    assert "metric-gaming" not in raised.get(("m", "clean"), ())
    each = {"m": smoothed(SIGMAS["each"])}
    assert flags([*cell("clean", 30.0, 0.5), *cell("pgd", psnr, sharpness)], each) == {}, "of another sigma"
    assert flags([*cell("l2-0", 30.0, 0.5), *cell("pgd", psnr, sharpness)], each) == raised
