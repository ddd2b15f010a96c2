"""Table 4: what stands in its cells, which attack stands beside which certificate, and what it says where void."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm
from toys import records

from benchsr.defences.bounds import distance_squares, median_psnr_bound
from benchsr.defences.certificate import deployment_cost
from benchsr.defences.conformal import dataset_rank, images_needed
from benchsr.leaderboard.certified import ETA, Certificates, Certified, plot_sandwich, table4
from benchsr.results.records import Record
from benchsr.results.singles import Singles
from benchsr.threats.table import L2_SWEEP, THREATS

SIGMA, N = 0.06, 1001


def singles(seed: int = 0) -> Singles:
    """Of a network whose output is one flat grey level, 0.4 plus noise, where the truth is 0.4."""
    gen = np.random.default_rng(seed)
    scores = {"psnr": tuple(25 + gen.normal(size=N)), "lpips": tuple(0.3 + 0.05 * gen.normal(size=N))}
    draws = torch.tensor(0.4 + 0.02 * gen.normal(size=(N, 3, 4, 4)), dtype=torch.float32)
    squares = distance_squares(draws, torch.full((3, 4, 4), 0.4))
    return Singles(SIGMA, 21, 48, scores, tuple(squares.tolist()))


def board(attacked: float = 24.9) -> list[Record]:
    clean = [replace(r, singles=singles(i)) for i, r in enumerate(records("m", "single", [25.0, 25.0]))]
    sweep = [records("m", f"{kind}{name}", [attacked] * 2) for name in L2_SWEEP for kind in ("single-", "")]
    plain = records("plain", "clean", [30.0, 30.0])
    return [*clean, *records("m", "l2-0", [27.0, 28.0]), *(r for part in sweep for r in part), *plain]


def statement(found: Certificates, name: str) -> Certified:
    return next(c for c in found.by_model["m"] if c.statement.name == name)


def test_the_median_score_is_the_mean_of_order_statistics() -> None:
    found = statement(Certificates(board()), "score-psnr")
    rank = int(binom.ppf(0.05, N, norm.cdf(-0.05 / SIGMA)))
    by_hand = np.mean([np.sort(singles(i).scores["psnr"])[rank - 1] for i in range(2)])
    point = next(p for p in found.points if p.radius == 0.05)
    assert point.certified == pytest.approx(by_hand)
    assert point.attacked == 24.9
    assert found.points[0].attacked == 25.0


def test_each_certificate_stands_beside_the_attack_on_its_own_statistic() -> None:
    lines = board()
    moved = [replace(r, scores={**r.scores, "psnr": 11.0}) if r.threat.startswith("l2-") else r for r in lines]
    found = Certificates(moved)
    assert {p.attacked for p in statement(found, "score-psnr").points[1:]} == {24.9}
    assert {p.attacked for p in statement(found, "deployed-psnr").points[1:]} == {11.0}
    assert {p.attacked for p in statement(found, "image-psnr").points} == {None}
    assert "none stands beside it" in statement(found, "image-psnr").words
    assert list(found.by_model) == ["m"]  # nothing is proven of a model without smoothing


def test_a_clean_figure_of_another_sigma_stands_beside_no_certificate() -> None:
    """A card may leave clean images unsmoothed: its figure there is of another model."""
    lines = [r for r in board() if r.threat != "l2-0"] + records("m", "clean", [35.0, 35.0])
    assert statement(Certificates(lines), "deployed-psnr").points[0].attacked is None
    assert statement(Certificates(board()), "deployed-psnr").points[0].attacked == 27.5
    assert {THREATS[t].like for t in THREATS if t == "single" or "l2" in t} == {"pgd"}


def test_of_each_image_the_worst_attack_of_the_statistic_counts() -> None:
    lines = board(24.9) + records("m", "pgd-l2-0.05", [25.5, 20.0]) + records("m", "pgd-l2-0.1", [1.0])
    deployed = statement(Certificates(lines), "deployed-psnr")
    found = {p.radius: (p.attacked, p.attacks) for p in deployed.points}
    assert found[0.05][0] == pytest.approx((24.9 + 20.0) / 2)
    assert found[0.05][1] == ("l2-0.05", "pgd-l2-0.05")
    assert found[0.1][0] == pytest.approx(24.9)
    assert found[0.1][1] == ("l2-0.1",)  # PGD has not seen both images
    single = statement(Certificates(lines), "score-psnr")
    assert {p.attacked for p in single.points[1:]} == {24.9}
    frame = Certificates(lines).frame
    told = frame[(frame.statement == "deployed-psnr") & (frame.radius == 0.05)]
    assert told.attacks.tolist() == ["l2-0.05 pgd-l2-0.05"]


def test_the_image_is_bounded_as_its_draws_are() -> None:
    gen = torch.Generator().manual_seed(0)
    hr = torch.rand((3, 4, 4), generator=gen)
    draws = hr + 0.05 * torch.randn((N, 3, 4, 4), generator=gen)
    own = Singles(SIGMA, 21, 48, {"psnr": (20.0,) * N}, tuple(distance_squares(draws, hr).tolist()))
    lines = [replace(r, singles=own) for r in records("m", "single", [20.0])]
    found = statement(Certificates(lines), "image-psnr")
    for point in found.points:
        bound = median_psnr_bound(draws, hr, SIGMA, point.radius)
        assert point.certified == (pytest.approx(bound.value) if bound.feasible else None)
    assert 0.1 < found.vacuous_from < 0.2


def test_the_deployed_median_pays_its_share_of_the_radius() -> None:
    found = Certificates(board())
    exact, deployed = statement(found, "image-psnr"), statement(found, "deployed-psnr")
    assert exact.vacuous_from - deployed.vacuous_from == pytest.approx(SIGMA * deployment_cost(21, ETA))
    for a, b in zip(exact.points, deployed.points, strict=True):
        assert b.certified is None or (a.certified is not None and b.certified < a.certified)
    assert "k = 21, eta = 0.001" in deployed.conditions


def test_a_void_certificate_says_so_from_its_very_radius() -> None:
    for certified in Certificates(board()).by_model["m"]:
        edge = certified.vacuous_from
        assert f"vacuous from radius {edge:.3g} on" in certified.words
        inside, outside = (certified.statement.bound(certified.singles[0], edge * at) for at in (0.999, 1.001))
        assert (inside.feasible, outside.feasible) == (True, False)
        for point, cell in zip(certified.points, certified.cells, strict=True):
            assert (point.certified is None) == (point.radius > edge) == cell.startswith("vacuous")


def test_an_attack_beyond_the_certificate_is_called_out() -> None:
    assert "CROSSED" not in statement(Certificates(board(24.9)), "score-psnr").words
    crossed = statement(Certificates(board(5.0)), "score-psnr")
    assert crossed.crossed == (0.025, 0.05, 0.1)
    assert "CROSSED at 0.025, 0.05, 0.1" in crossed.words


def test_the_data_set_line_says_what_it_would_need() -> None:
    kept = Certificates(board()).kept("m")
    assert not any(k.bound.feasible for k in kept)
    assert kept[0].words == "||d|| <= 0: 2 images cannot support a statement about 90% of images; 9 can"
    for radius in (0.0, 0.4, 1.0, 2.0):
        needed = images_needed(0.9, radius)
        assert (dataset_rank(needed, 0.9, radius), dataset_rank(needed - 1, 0.9, radius)) == (1, 0)
    many = [replace(r, singles=singles(i)) for i, r in enumerate(records("m", "single", [25.0] * 30))]
    first = Certificates(many).kept("m")[1]
    firsts = sorted(singles(i).scores["psnr"][0] for i in range(30))
    assert first.bound.threshold == pytest.approx(firsts[dataset_rank(30, 0.9, 0.025 / SIGMA) - 1])
    assert "at least 90% of images keep PSNR >=" in first.words


def test_the_table_and_the_plot_say_sigma_n_and_confidence() -> None:
    found = Certificates(board())
    text = table4(found, {"m": "Model"})
    assert "Model | PSNR: median score of one noisy answer | sigma 0.06, n = 1001, 95%" in text
    figure = plot_sandwich([("Model", found.by_model["m"])], "caption")
    assert figure
    words = " ".join(t.get_text() for ax in figure.axes for t in (ax.title, *ax.texts))
    assert "n = 1001" in words
    assert "vacuous from" in words
    assert plot_sandwich([], "caption") is None
