"""What the first screen says, against hand-made figures whose answer is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from benchsr.evaluation.protocol import load_protocol
from benchsr.leaderboard import Leaderboard, LeaderboardInfo
from benchsr.leaderboard.headline import Headline, asked, smallest_difference
from benchsr.leaderboard.scores import average, make_cell
from benchsr.models.zoo import zoo
from benchsr.results.records import Record, Status

IMAGES = ("a", "b", "c", "d", "e", "f")
SPREAD = (-1.0, -0.5, 0.0, 0.2, 0.4, 0.9)
"""Sums to zero: what the images' figures differ by."""


def records(psnr: Mapping[tuple[str, str], float], images: Sequence[str] = IMAGES) -> list[Record]:
    """Records whose mean PSNR is given by (model, threat)."""
    made = Record("made-up", "photos", "", "", "", Status.OK, key="0" * 64)
    return [
        replace(
            made,
            model=model,
            threat=threat,
            image=image,
            scores={"psnr": float(value + off - np.mean(SPREAD[: len(images)])), "ssim": 0.5, "lpips": 1 / value},
        )
        for (model, threat), value in psnr.items()
        for image, off in zip(images, SPREAD, strict=False)
    ]


def headline(psnr: Mapping[tuple[str, str], float], threats: Sequence[str], images: Sequence[str] = IMAGES) -> Headline:
    info = LeaderboardInfo("made-up", "Made up", "0" * 64, (), ("clean", *threats), images)
    return Leaderboard(info, zoo(), records(psnr, images)).headlines["paper"]


NAMES = ("bicubic", "impressionism-ntire", "mrs-impressionism-ntire")
TITLES = {name: zoo()[name].title for name in NAMES}


def board(attacks: Sequence[str], figures: Mapping[str, tuple[float, float]]) -> Headline:
    """Models with (clean, attacked) PSNR; the last attack does 1 dB more than the others."""
    psnr = {(m, "clean"): clean for m, (clean, _) in figures.items()}
    for threat in attacks:
        psnr |= {(m, threat): hit + (threat != attacks[-1]) for m, (_, hit) in figures.items()}
    return headline(psnr, attacks)


def test_the_answer_names_the_best_network_interpolation_and_what_smoothing_gives_back() -> None:
    made = board(("fgsm", "pgd"), dict(zip(NAMES, ((25.0, 24.0), (26.0, 14.0), (25.5, 20.0)), strict=True)))
    assert [(place.card.id, place.rank) for place in made.places] == [(NAMES[0], 1), (NAMES[2], 2), (NAMES[1], 3)]
    first, base, smoothing = made.answer
    assert first.startswith(
        f"Under the strongest of 2 attacks of one size on each image, {TITLES[NAMES[2]]} keeps most of 2 networks: "
    )
    assert "20.00 [" in first
    assert "of 25.50 [" in first
    assert base.startswith(f"{TITLES['bicubic']}, which learns nothing, keeps more: 24.00 [")
    assert smoothing == (
        "Smoothing gives back 6.00 [6.00, 6.00] dB against these attacks, which do not know of it; "
        "clean images change by -0.50 [-0.50, -0.50] dB (one network)."
    )
    assert {card.id for card in made.lacking} >= {"esrgan", "certsr"}


def test_smoothing_may_take_away_and_attackers_may_know_it() -> None:
    made = board(("pgd", "apgd-median"), dict(zip(NAMES, ((25.0, 12.0), (26.0, 14.0), (25.5, 13.0)), strict=True)))
    assert made.smoothing is not None
    assert made.smoothing.words.startswith(
        "Smoothing takes away -1.00 [-1.00, -1.00] dB against attacks that know of it;"
    )
    assert "which learns nothing, keeps 12.00 [" in made.answer[1]


def test_models_that_no_paired_test_separates_are_said_to_be_so() -> None:
    psnr = {(m, t): 20.0 for m in NAMES for t in ("clean", "pgd")}
    psnr[NAMES[1], "pgd"], psnr[NAMES[2], "pgd"] = 20.1, 20.1
    made = headline(psnr, ("pgd",))
    assert [place.tied for place in made.places if place.card.id != "bicubic"] == [False, True]
    assert "No paired test separates 1 other network from it." in made.answer


def test_a_row_that_knows_its_threat_is_ranked_but_not_named_the_best() -> None:
    figures = {"re-certsr-oracle": (26.0, 24.0), "re-certsr": (26.0, 23.0), "re-certsr-plain": (26.0, 15.0)}
    made = board(("fgsm", "pgd"), figures)
    assert [place.card.id for place in made.places] == list(figures)
    assert made.best is not None
    assert made.best.card.id == "re-certsr"
    assert made.smoothing is not None
    assert made.smoothing.networks == 1
    assert made.smoothing.attacked.value("psnr") == pytest.approx(8.0)


def test_without_attacks_figures_are_averaged_over_the_corruptions() -> None:
    psnr = {("impressionism-ntire", t): v for t, v in {"clean": 26.0, "noise": 20.0, "blur": 24.0}.items()}
    made = headline(psnr, ("noise", "blur"))
    assert made.answer[0].startswith("On average over 2 corruptions, ")
    assert made.places[0].attacked.value("psnr") == pytest.approx(22.0)


@pytest.mark.parametrize("name", ["quick", "standard", "adaptive", "attacks", "certified", "corruptions", "defences"])
def test_sweeps_and_other_statistics_stay_out_of_the_headline_where_there_are_others(name: str) -> None:
    threats, worst = asked(load_protocol(name).threats)
    assert threats
    assert worst == (name != "corruptions")
    assert "clean" not in threats
    assert not [t for t in threats if t.startswith(("eps-", "single", "partial"))]
    if name == "quick":
        assert threats == ("fgsm", "bim", "pgd")
    if name == "certified":
        assert threats == ("l2-0.87", "pgd-l2-0.87")


def test_the_smallest_difference_is_found_with_the_chance_that_is_said() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(20, 2, (2, 8))
    made = Record("p", "d", "m", "pgd", "", Status.OK)
    cells = [
        make_cell([replace(made, image=f"i{k}", scores={"psnr": float(v)}) for k, v in enumerate(row)], 8)
        for row in values
    ]
    size, spread = smallest_difference(cells, "psnr"), np.std(values[0] - values[1], ddof=1)
    found = stats.nct.sf(stats.t.ppf(0.975, 7), 7, size / spread * np.sqrt(8))
    assert found == pytest.approx(0.8, abs=1e-6)


def test_the_smallest_difference_of_an_average_is_in_its_own_unit() -> None:
    rng = np.random.default_rng(1)
    made = Record("p", "d", "m", "noise", "", Status.OK)
    cells = [
        make_cell([replace(made, image=f"i{k}", scores={"psnr": float(v)}) for k, v in enumerate(row)], 8)
        for row in rng.normal(20, 2, (2, 8))
    ]
    twice = [average([cell, cell]) for cell in cells]
    assert smallest_difference(twice, "psnr") == pytest.approx(smallest_difference(cells, "psnr"))


def test_five_images_can_show_nothing_and_the_page_says_so() -> None:
    psnr = {(m, t): v for m, v in zip(NAMES, (20.0, 21.0, 25.0), strict=True) for t in ("clean", "pgd")}
    assert "can show no difference" in headline(psnr, ("pgd",), IMAGES[:5]).power
    assert headline(psnr, ("pgd",)).power.startswith(
        "The smallest difference that 6 images show between two models: 0.00 dB"
    )


def test_a_board_without_a_ranked_model_has_no_headline() -> None:
    info = LeaderboardInfo("made-up", "Made up", "0" * 64, (), ("clean",), IMAGES)
    assert Leaderboard(info, zoo(), records({("bicubic", "clean"): 20.0})).headlines == {}
