"""Attacks that know the defence: their schedules, their noise, and that they are no weaker than transfer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import scene, tiny_rrdb
from torch import Tensor, nn
from toys import FakeLpips, photos, toy_card

from benchsr.base.errors import InputError
from benchsr.base.rng import Randomised
from benchsr.commands.run import evaluate
from benchsr.defences.smoothing import smooth
from benchsr.evaluation.options import RunOptions
from benchsr.evaluation.protocol import Protocol, load_protocol
from benchsr.leaderboard import Leaderboard, LeaderboardInfo
from benchsr.leaderboard.contrasts import contrasts, effect, helps
from benchsr.leaderboard.report import report
from benchsr.leaderboard.scores import Estimate, make_grid
from benchsr.leaderboard.tables import ADAPTIVE_ATTACKS, FIXED_ATTACKS
from benchsr.metrics.objective import Objective
from benchsr.models.cards import Card
from benchsr.results.records import Record, Status
from benchsr.threats.adaptive import APGD, Square, StrongPGD
from benchsr.threats.attacks import PGD
from benchsr.threats.table import ADAPTIVE, ENSEMBLE, GROUPS, SWEEP, THREATS, VIEWS, load_threat

L1 = Objective(l1_weight=1.0, perceptual_weight=0.0)
EPS = 8 / 255

ATTACKS: dict[str, Callable[[nn.Module], StrongPGD]] = {
    "pgd": lambda m: StrongPGD(m, eps=EPS, steps=8, restarts=2, objective=L1),
    "apgd": lambda m: APGD(m, eps=EPS, steps=8, restarts=2, objective=L1),
    "square": lambda m: Square(m, eps=EPS, steps=30, objective=L1),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_each_raises_the_loss_inside_the_ball(name: str) -> None:
    network = tiny_rrdb()
    lr, hr = scene(network, 2, 12)
    result = ATTACKS[name](network).run(lr, hr, ["a", "b"])
    assert float((result.lr - lr).abs().max()) <= EPS + 1e-6
    assert 0 <= result.lr.min() <= result.lr.max() <= 1
    assert bool((result.loss_attacked > 1.05 * result.loss_clean).all())
    noise = (lr + EPS * torch.randn_like(lr).sign()).clamp(0, 1)
    assert bool((result.loss_attacked > (network(noise) - hr).abs().flatten(1).mean(1)).all())


@pytest.mark.parametrize("name", ATTACKS)
def test_each_image_is_attacked_alike_in_any_batch(name: str) -> None:
    model = smooth(tiny_rrdb(), 0.05, n=2)
    lr, hr = scene(model.network, 2, 8)
    attack = ATTACKS[name](model)
    assert torch.equal(attack(lr, hr, ["a", "b"])[1:], attack(lr[1:], hr[1:], ["b"]))


def test_strong_pgd_is_pgd_with_its_pace_and_the_better_of_its_runs() -> None:
    network = tiny_rrdb()
    lr, hr = scene(network, 2, 12)
    plain = PGD(network, eps=EPS, alpha=2.5 * EPS / 8, steps=8, objective=L1)
    plain.attack = "StrongPGD"  # the name that seeds the start
    once = StrongPGD(network, eps=EPS, steps=8, restarts=1, objective=L1).run(lr, hr)
    assert torch.equal(once.lr, plain(lr, hr))
    thrice = StrongPGD(network, eps=EPS, steps=8, restarts=3, objective=L1).run(lr, hr)
    assert bool((thrice.loss_attacked >= once.loss_attacked).all())
    torch.testing.assert_close(thrice.loss_attacked, (network(thrice.lr) - hr).abs().flatten(1).mean(1))


def test_apgds_checkpoints_are_those_of_its_paper() -> None:
    """Croce & Hein 2020, section 3.1, with p = 0, 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99 for 100 steps."""
    assert APGD.checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


def reference_apgd(x: Tensor, v: Tensor, gains: Sequence[float], grads: Tensor, eps: float) -> list[Tensor]:
    """Croce & Hein 2020, algorithm 1, on one image whose gains and gradients are given: what follows each iterate."""

    def inside(image: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(image, x - eps), x + eps).clamp(0, 1)

    checkpoints = APGD.checkpoints(len(gains))
    size, before, last, halved, then = 2 * eps, v, 0, True, -float("inf")
    seen: list[Tensor] = []
    for k, grad in enumerate(grads):
        seen.append(v)
        best = max(range(k + 1), key=lambda i: gains[i])
        if k in checkpoints:
            rises = sum(gains[i] > gains[i - 1] for i in range(last + 1, k + 1))
            stuck = not halved and gains[best] == then
            halved = rises < 0.75 * (k - last) or stuck
            last, then = k, gains[best]
            if halved:
                size, v, grad = size / 2, seen[best], grads[best]
        ahead = inside(v + size * grad.sign())
        before, v = v, inside(v + 0.75 * (ahead - v) + 0.25 * (v - before)) if k else ahead
    return [*seen[1:], v]


STEPS = 40
GAINS = {
    "rising": [float(k) for k in range(STEPS)],
    "falling": [-float(k) for k in range(STEPS)],
    "oscillating": [float(k % 3) for k in range(STEPS)],
    "stuck below its best": [float(k + 100 * (k == 9)) for k in range(STEPS)],  # 9: the first checkpoint
}


def test_apgd_is_its_papers_algorithm() -> None:
    gen = torch.Generator().manual_seed(0)
    x, start = torch.rand((len(GAINS), 3, 4, 4), generator=gen), torch.rand((len(GAINS), 3, 4, 4), generator=gen)
    grads = torch.randn((STEPS, *x.shape), generator=gen)
    attack = APGD(nn.Identity(), eps=0.3, steps=STEPS, objective=L1)
    v = start = attack.inside(start, x)
    step = attack.stepper(x, [])
    expected = [reference_apgd(x[i], start[i], row, grads[:, i], 0.3) for i, row in enumerate(GAINS.values())]
    for k in range(STEPS):
        v = step(v, grads[k], torch.tensor([row[k] for row in GAINS.values()]))
        for i, name in enumerate(GAINS):
            torch.testing.assert_close(v[i], expected[i][k], msg=f"{name}, step {k}")


def test_apgd_halves_its_step_where_the_gain_oscillates() -> None:
    """On -|v - centre| every step of 2 eps overshoots; halving alone lets the attack reach the centre."""
    attack = APGD(nn.Identity(), eps=0.5, steps=40, objective=L1)
    centre = 0.5 + 0.2 * torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    step, v = attack.stepper(torch.full_like(centre, 0.5), []), torch.full_like(centre, 0.1)
    reached = []
    for _ in range(40):
        gain = -(v - centre).abs().flatten(1).mean(1)
        reached.append(float(gain))
        v = step(v, (centre - v).sign(), gain)
    assert max(reached) > -0.05 > max(reached[:9])


def test_square_needs_no_gradient_and_shrinks_its_squares() -> None:
    class Rounded(nn.Module):
        """No gradient comes through."""

        def __init__(self) -> None:
            super().__init__()
            self.network = tiny_rrdb()

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                sr: Tensor = self.network(x)
            return sr

    model = Rounded()
    lr, hr = scene(model.network, 1, 12)
    attack = Square(model, eps=EPS, steps=60, objective=L1)
    result = attack.run(lr, hr)
    assert float(result.loss_attacked) > 1.05 * float(result.loss_clean)
    assert float(result.losses[0, 0]) < float(result.loss_attacked)
    sides = [attack.side(t, 12, 12) for t in range(60)]
    assert sides == sorted(sides, reverse=True)
    assert sides[0] > 6
    assert sides[-1] == 1


def test_square_starts_from_stripes_and_paints_one_square_on_the_best_image() -> None:
    """Andriushchenko et al. 2020, section 4: columns of one sign in each channel, then one square, a sign a channel."""
    attack = Square(nn.Identity(), eps=EPS, steps=40, share=0.1, objective=L1)
    x, gens = torch.full((1, 3, 16, 12), 0.5), [torch.Generator().manual_seed(0)]
    best = attack.start(x, gens)
    signs = (best - x).sign()
    assert torch.equal(signs, signs[:, :, :1].expand_as(signs))
    assert {int(sign) for sign in signs.flatten()} == {-1, 1}
    torch.testing.assert_close((best - x).abs(), torch.full_like(x, EPS))
    step, candidate, mixed = attack.stepper(x, gens), best, 0
    for k in range(40):  # only the start is any good
        candidate = step(candidate, torch.zeros_like(x), torch.tensor([1.0 if k == 0 else 0.0]))
        rows, columns = torch.nonzero((candidate != best).any(1)[0], as_tuple=True)
        if len(rows):
            side = attack.side(k, 16, 12)
            assert max(int(n.max() - n.min()) for n in (rows, columns)) < side
        painted = [{float(value) for value in channel.flatten()} for channel in candidate[0][:, rows, columns]]
        mixed += len({min(values) for values in painted if len(values) == 1}) == 2
    assert mixed > 0


class Recorder(Randomised):
    """Remembers the purposes it is asked with."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, ids: Sequence[str] | None = None, purpose: str = "evaluation-0") -> Tensor:
        self.asked.append(purpose)
        return nn.functional.interpolate(x * self.weight, scale_factor=4)


def test_every_look_at_a_randomised_model_has_noise_of_its_own() -> None:
    model = Recorder()
    lr, hr = torch.full((1, 3, 8, 8), 0.4), torch.full((1, 3, 32, 32), 0.6)
    StrongPGD(model, eps=EPS, steps=4, restarts=2, draws=3, objective=L1)(lr, hr)
    assert len(model.asked) == 2 * (5 + 1) * 3  # two runs of five iterates and the clean image, three draws each
    assert len(set(model.asked)) == len(model.asked)
    assert not any(purpose.startswith("evaluation") for purpose in model.asked)


def test_the_expected_loss_is_a_mean_over_draws_and_so_is_its_gradient() -> None:
    network = tiny_rrdb()
    lr, hr = scene(network, 1, 12)
    model = smooth(network, 0.05, n=1)
    attack = StrongPGD(model, eps=EPS, steps=1, restarts=1, draws=4, objective=L1)
    attack.random_start = False
    attack.alpha = EPS
    result = attack.run(lr, hr, ["a"])
    x = lr.clone().requires_grad_()
    losses = [(model(x, ["a"], f"0-strongpgd-0-{k}") - hr).abs().mean() for k in range(4)]
    (gradient,) = torch.autograd.grad(torch.stack(losses).mean(), x)
    torch.testing.assert_close(result.loss_clean[0], torch.stack(losses).mean().detach())
    expected = (lr + EPS * gradient.sign()).clamp(0, 1)
    assert int(result.best_step) == 1
    assert float((result.lr != expected).double().mean()) < 0.01  # signs of gradients near zero may flip


class Wavy(nn.Module):
    """A ripple on the identity: the base network's gradient follows the ripple, which smoothing takes away."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x + 0.3 * torch.sin(40 * x), scale_factor=4)


@pytest.mark.parametrize(("network", "margin"), [(tiny_rrdb(), -0.005), (Wavy(), 0.02)], ids=["tiny", "wavy"])
def test_what_knows_the_smoothing_is_no_weaker_than_transfer(network: nn.Module, margin: float) -> None:
    """On the loss of the deployed median, with noise that no attack saw, meaned over 5 draws of 21.

    The tiny network is nearly linear: there knowing more brings nothing, and may lose by as much as the draws' noise.
    """
    lr, hr = scene(network, 1, 12)
    deployed = smooth(network, 0.1, n=21)
    views: dict[str, tuple[nn.Module, int]] = {
        "transfer": (network, 1),
        "eot": (smooth(network, 0.1, n=1), 4),
        "median": (smooth(network, 0.1, n=5), 1),
    }
    loss = {}
    for name, (model, draws) in views.items():
        attacked = StrongPGD(model, eps=EPS, steps=10, restarts=1, draws=draws, objective=L1)(lr, hr)
        with torch.no_grad():
            answers = [deployed(attacked, None, f"evaluation-{k}") for k in range(5)]
        loss[name] = float(torch.stack([(sr - hr).abs().mean() for sr in answers]).mean())
    assert max(loss["eot"], loss["median"]) > (1 + margin) * loss["transfer"]


def test_the_table_of_adaptive_threats() -> None:
    for name, spec in ADAPTIVE.items():
        if spec.kind == "attack" and name not in SWEEP:
            settings = load_threat(name).settings
            assert settings["eps"] == pytest.approx(10 / 255)
            assert int(settings["steps"]) >= 50
            assert int(settings["restarts"]) >= 2 or name == "square"
    assert [round(255 * eps) for eps in SWEEP.values()] == [1, 2, 4, 8, 16, 32]
    seen = [load_threat(f"pgd-{view}") for view in ("transfer", "eot", "median")]
    assert [t.median_of for t in seen] == [0, 1, 5]
    assert all(t.like == "pgd" for t in seen)
    assert load_threat("pgd").median_of == 0
    assert load_threat("fgsm").like == "fgsm"


def test_the_protocol() -> None:
    protocol = load_protocol("adaptive")
    knowing = (f"apgd-{view}" for view in VIEWS)
    assert {"random", *FIXED_ATTACKS, *knowing, *ENSEMBLE, *SWEEP} <= set(protocol.threats)
    assert protocol.evaluations >= 3
    assert protocol.precision == "fp32"
    assert not set(load_protocol("paper").threats) & set(ADAPTIVE)
    assert any("evaluations" in line for line in protocol.description)


@pytest.mark.parametrize("bad", [{"restarts": 0}, {"draws": 0}, {"steps": 0}, {"eps": -1.0}])
def test_bad_settings_are_refused(bad: dict[str, float]) -> None:
    for make in (StrongPGD, APGD, Square):
        with pytest.raises(InputError):
            make(nn.Identity(), **bad)  # type: ignore[arg-type]


# Worst cases, and what is said of them.


def card(model: str, base: str | None = None, sigma: float | None = None) -> Card:
    fields = {"id": model, "title": model.title(), "family": "compact", "licence": "MIT", "paper": "none"}
    origin = {"base": base} if base else {"architecture": "bicubic"}
    smoothing = {"smoothing": {"sigma": sigma}} if sigma else {}
    texts = {"training_data": "none", "fine_tuning_data": "none"}
    return Card.model_validate({**fields, **texts, **origin, **smoothing})


def rows(model: str, psnr: dict[str, float], images: int = 6) -> list[Record]:
    return [
        Record("p", "d", model, t, f"i{i}", Status.OK, scores={"psnr": p + 0.01 * i, "ssim": 0.5, "lpips": 1 - p / 50})
        for t, p in psnr.items()
        for i in range(images)
    ]


def every(fixed: float, adaptive: float) -> dict[str, float]:
    return {**dict.fromkeys(FIXED_ATTACKS, fixed), **dict.fromkeys(ADAPTIVE_ATTACKS, adaptive)}


OUTCOMES = {
    "still": ((24.0, 22.0), "still helps"),
    "gone": ((24.0, 17.0), "helps under the paper's attacks, but harms under adaptive ones"),
    "none": ((19.0, 17.0), "harms, under the paper's attacks as under adaptive ones"),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_whether_smoothing_still_helps_is_said_in_words(name: str) -> None:
    (fixed, adaptive), words = OUTCOMES[name]
    cards = {c.id: c for c in (card("plain"), card("soft", "plain", 0.05), card("other"))}
    made = rows("plain", every(20.0, 19.0)) + rows("soft", every(fixed, adaptive)) + rows("other", every(1.0, 1.0))
    found = contrasts(make_grid(made, dict.fromkeys(THREATS, 6)), cards, [*FIXED_ATTACKS, *ADAPTIVE_ATTACKS])
    change = next(c for c in found if c.card.id == "soft").change.estimate("psnr")
    assert change.value == pytest.approx(adaptive - fixed)
    said = {h.metric: h for h in helps(found, cards)}
    assert set(said) == {"psnr", "ssim", "lpips"}
    assert (said["psnr"].smoothed.id, said["psnr"].plain.id) == ("soft", "plain")
    assert said["psnr"].words == said["lpips"].words == words
    assert said["ssim"].words == "makes no certain difference, under the paper's attacks as under adaptive ones"


def test_what_is_said_of_worst_cases_follows_the_metrics_of_the_board() -> None:
    """Lower is better for DISTS: its worst is the largest. A report has a row, and a column, for each metric."""
    threats = (*FIXED_ATTACKS, *ADAPTIVE_ATTACKS, *GROUPS["autoattack-sr"])
    cards = {c.id: c for c in (card("plain"), card("soft", "plain", 0.05))}
    made = [
        replace(r, scores={"psnr": r.scores["psnr"], "dists": 1 - r.scores["psnr"] / 40})
        for r in rows("plain", dict.fromkeys(threats, 20.0) | {"pgd": 18.0})
        + rows("soft", dict.fromkeys(threats, 24.0) | {"pgd": 22.0})
    ]
    info = LeaderboardInfo("p", "P", "0" * 64, (), threats, [f"i{i}" for i in range(6)], ("psnr", "dists"))
    board = Leaderboard(info, cards, made)
    plain = next(c for c in board.contrasts if c.card.id == "plain")
    assert plain.fixed.value("dists") == pytest.approx(1 - 18.025 / 40)
    assert {h.metric: h.words for h in board.helps} == {"psnr": "still helps", "dists": "still helps"}
    text = report(board, [])
    assert "| Plain | DISTS | 0.549 [" in text
    assert "by DISTS: smoothing still helps" in text
    assert "| Model | Attack | PSNR | DISTS |\n" in text


def test_an_interval_that_holds_zero_decides_nothing() -> None:
    assert effect(Estimate(0.1, -0.2, 0.4), "psnr") == "makes no certain difference"
    assert effect(Estimate(-0.1, -0.2, -0.05), "lpips") == "helps"
    assert effect(Estimate(-0.1, -0.2, -0.05), "psnr") == "harms"


def test_contrasts_are_of_the_boards_own_attacks() -> None:
    cards = {"plain": card("plain")}
    grid = make_grid(rows("plain", {**dict.fromkeys(FIXED_ATTACKS, 20.0), "apgd-eot": 18.0}), dict.fromkeys(THREATS, 6))
    (found,) = contrasts(grid, cards, [*FIXED_ATTACKS, "apgd-eot"])
    assert found.change.estimate("psnr").value == pytest.approx(-2.0)
    assert contrasts(grid, cards, [*FIXED_ATTACKS, "apgd-eot", "apgd-median"]) == []
    assert contrasts(grid, cards, FIXED_ATTACKS) == contrasts(grid, cards, ["pgd", "apgd-eot"]) == []
    assert set(THREATS) >= set(ADAPTIVE)


# The whole protocol, end to end.


def test_the_protocol_runs_on_a_smoothed_model_and_its_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", FakeLpips)
    plain = toy_card(tmp_path, "toy")
    soft = tmp_path / "soft.toml"
    texts = "\n".join(line for line in Path(plain).read_text().split("[[weights]]")[0].splitlines())
    soft.write_text(texts.replace('"toy"', '"soft"') + '\nbase = "toy"\n[smoothing]\nn = 3\nsigma = 0.05\n')
    protocol = load_protocol("adaptive").model_dump() | {"id": "small", "dataset": str(photos(tmp_path / "photos"))}
    few = {"steps": 1, "restarts": 1, "draws": 2, "median_of": 2}
    protocol["objective"]["perceptual_weight"] = 0.0
    protocol["settings"] = {
        threat: {k: v for k, v in few.items() if k in THREATS[threat].defaults and THREATS[threat].preset.get(k) != 0}
        for threat in protocol["threats"]
    } | {"apgd-eot": {**few, "median_of": 1}}
    outcome = evaluate(
        f"{plain},{soft}",
        protocol=Protocol.model_validate(protocol | {"images": 2, "crop": 12}),
        options=RunOptions(out=tmp_path / "out", cache=tmp_path / "cache", device="cpu"),
    )
    assert not outcome.failures
    found = {(r.model, r.threat, r.image): r for r in outcome.planned}
    assert len(found) == 2 * len(protocol["threats"]) * 2
    for image in ("photo0", "photo1"):
        same = [found["toy", f"apgd-{view}", image] for view in ("transfer", "eot", "median")]
        assert (
            len({(r.scores["psnr"], r.loss_attacked) for r in same}) == 1
        )  # without noise there is nothing more to know
        knowing = [found["soft", f"apgd-{view}", image] for view in ("transfer", "eot", "median")]
        assert len({(r.scores["psnr"], r.loss_attacked) for r in knowing}) == 3
        assert knowing[0].loss_attacked == same[0].loss_attacked  # one attack on one network
        assert knowing[0].scores != same[0].scores
    written = (outcome.folder / "report.md").read_text()
    assert "Does smoothing still help?" in written
    assert "## Health of the attacks" in written
    assert (outcome.folder / "robustness-curves-compact.png").exists()
