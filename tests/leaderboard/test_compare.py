"""Paired differences, tests and tie groups, against enumeration, scipy, closed forms and simulation."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.stats import permutation_test, ttest_1samp
from test_leaderboard import card
from toys import names, records

from benchsr.base.errors import InputError
from benchsr.leaderboard.compare import (
    FLIPS,
    LEVEL,
    POWER,
    compare,
    compare_boards,
    detectable,
    frame,
    holm,
    sign_flip_test,
    smallest_p,
    tied_with_best,
)
from benchsr.leaderboard.scores import SCORED, interval, make_cell, make_grid, resampled_means, resampling_weights
from benchsr.leaderboard.tables import make_tables
from benchsr.results.records import Record, Status


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_p_is_that_of_every_flip(n: int) -> None:
    d = np.random.default_rng(n).normal(0.4, 1.0, n)
    sums = [abs(sum(s * v for s, v in zip(signs, d, strict=True))) for signs in product((1, -1), repeat=n)]
    expected = np.mean([s >= abs(d.sum()) - 1e-12 for s in sums])
    assert sign_flip_test(d[:, None], names(n))[0] == pytest.approx(expected)


def test_p_agrees_with_scipy() -> None:
    d = np.random.default_rng(3).normal(0.5, 1.0, (8, 3))
    exact = permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
    np.testing.assert_allclose(sign_flip_test(d, names(8)), exact.pvalue)
    many = np.random.default_rng(4).normal(0.25, 1.0, (60, 1))
    drawn = permutation_test((many[:, 0],), np.mean, permutation_type="samples", n_resamples=9_999, rng=5)
    assert sign_flip_test(many, names(60))[0] == pytest.approx(drawn.pvalue, abs=0.01)


def test_p_of_equal_models_is_one_and_of_a_constant_lead_the_smallest() -> None:
    for n in (6, 14, 40):
        equal, lead = np.zeros(n), np.full(n, 0.3)
        np.testing.assert_allclose(sign_flip_test(np.stack([equal, lead], 1), names(n)), [1.0, smallest_p(n)])
    assert smallest_p(6) == 1 / 32
    assert smallest_p(100) == 1 / (FLIPS + 1)


def test_p_is_uniform_where_nothing_differs() -> None:
    d = np.random.default_rng(6).normal(0.0, 1.0, (20, 2000))
    assert np.mean(sign_flip_test(d, names(20)) <= LEVEL) == pytest.approx(LEVEL, abs=0.015)


def test_holm_by_hand() -> None:
    # 0.01 * 4; max(0.04, 0.02 * 3); max(0.06, 0.03 * 2); max(0.06, 0.5 * 1)
    np.testing.assert_allclose(holm(np.array([0.03, 0.01, 0.5, 0.02])), [0.06, 0.04, 0.5, 0.06])
    np.testing.assert_allclose(holm(np.array([0.6, np.nan, 0.7])), [1.0, np.nan, 1.0])


def test_holm_bounds_the_chance_of_any_false_finding() -> None:
    p = np.random.default_rng(7).uniform(size=(2000, 9))
    assert np.mean([holm(row).min() <= LEVEL for row in p]) <= LEVEL + 0.015


@pytest.mark.parametrize("n", [15, 60])
def test_a_detectable_difference_is_detected(n: int) -> None:
    d = np.random.default_rng(n).normal(detectable(2.0, n), 2.0, (n, 1500))
    assert np.mean(sign_flip_test(d, names(n)) <= LEVEL) == pytest.approx(POWER, abs=0.04)
    assert np.mean(ttest_1samp(d, 0).pvalue <= LEVEL) == pytest.approx(POWER, abs=0.035)


def test_detectable_against_a_published_table() -> None:
    # Cohen (1988): a paired t-test finds an effect of 0.5 standard deviations with power 0.80 at n = 34.
    assert detectable(1.0, 34) == pytest.approx(0.5, abs=0.01)
    assert detectable(1.0, 100) < detectable(1.0, 25) < detectable(1.0, 25, level=LEVEL / 9)
    assert detectable(1.0, 5) == math.inf  # the smallest p-value is 1/16
    assert detectable(1.0, 6, level=LEVEL / 2) == math.inf


def test_a_cell_without_figures_failed_if_any_image_did() -> None:
    failed, unavailable = (
        replace(r, status=status, scores={}, reason=status)
        for r, status in zip(records("m", "t", [1.0, 2.0]), (Status.FAILED, Status.UNAVAILABLE), strict=True)
    )
    assert make_cell([unavailable, failed], 2).status == "failed"
    assert make_cell([unavailable], 2).status == "unavailable"


def test_an_interval_leaves_as_many_draws_out_on_either_side() -> None:
    assert interval(np.random.default_rng(0).permutation(2000.0 + np.arange(2000))) == (2050.0, 3949.0)


def test_equal_images_are_resampled_alike_and_others_independently() -> None:
    ours, others = names(5), tuple(f"other-{name}" for name in names(5))
    assert np.array_equal(resampling_weights(ours), resampling_weights(names(5)))
    correlations = np.corrcoef(resampling_weights(ours)[:, 0], resampling_weights(others)[:, 0])
    assert abs(correlations[0, 1]) < 0.1


def test_interval_of_the_difference_covers_the_truth() -> None:
    n, trials = 60, 400
    rng = np.random.default_rng(8)
    scene = rng.normal(25, 4, (n, trials))  # models err alike on an image: pairing removes it
    a, b = scene + rng.normal(0.5, 1, (n, trials)), scene + rng.normal(0, 1, (n, trials))
    ends = [interval(draws) for draws in resampled_means(a - b, names(n)).T]
    assert np.mean([low <= 0.5 <= high for low, high in ends]) == pytest.approx(0.94, abs=0.03)
    assert np.mean([high - low for low, high in ends]) == pytest.approx(2 * 1.96 * math.sqrt(2 / n), rel=0.05)


def test_figures_by_hand_and_pairing() -> None:
    base = np.linspace(20, 30, 10)
    found = compare(records("a", "clean", base + 1), records("b", "clean", base[:8]) + records("b", "pgd", base))
    clean = {d.metric: d for d in found if d.threat == "clean"}
    psnr, lpips = clean["psnr"], clean["lpips"]
    assert (psnr.n, psnr.a, psnr.b) == pytest.approx((8, base[:8].mean() + 1, base[:8].mean()))
    assert (psnr.difference.value, psnr.difference.low, psnr.difference.high) == pytest.approx((1, 1, 1))
    assert (psnr.p, psnr.p_holm) == (2 / 256, 2 / 256)
    assert (psnr.better, lpips.better) == ("A", "A")  # lower LPIPS is better
    pgd = next(d for d in found if d.threat == "pgd")
    assert (pgd.n, pgd.reason, pgd.better) == (0, "A not run", "")
    assert math.isnan(pgd.p_holm)


def test_swapping_the_models_turns_every_figure_round() -> None:
    rng = np.random.default_rng(9)
    a, b = records("a", "clean", rng.normal(25, 1, 12)), records("b", "clean", rng.normal(27, 1, 12))
    for there, back in zip(compare(a, b), compare(b, a), strict=True):
        assert there.difference.value == pytest.approx(-back.difference.value)
        assert there.p == back.p
        assert {there.better, back.better} == {"A", "B"}


def test_holm_runs_over_the_threats() -> None:
    base = np.linspace(20, 30, 10)
    threats = ("clean", "noise", "pgd")
    a = [r for t in threats for r in records("a", t, base + 1)]
    b = [r for t in threats for r in records("b", t, base)]
    assert {d.p_holm for d in compare(a, b)} == {3 * 2 / 1024}


def test_other_data_sets_and_perfect_images_are_not_paired_in_silence() -> None:
    base = np.linspace(20, 30, 10)
    other = [replace(r, dataset="div2k-valid") for r in records("b", "clean", base)]
    with pytest.raises(InputError, match="no image"):
        compare(records("a", "clean", base), other)
    perfect = records("a", "clean", [math.inf, math.inf, 20.0]), records("b", "clean", [math.inf, 21.0, 20.0])
    psnr = compare(*perfect)[0]
    assert math.isnan(psnr.p)
    assert "infinite" in psnr.reason
    both = records("a", "clean", [math.inf, 22.0, 20.0]), records("b", "clean", [math.inf, 21.0, 20.0])
    assert compare(*both)[0].difference.value == pytest.approx(1 / 3)


def test_boards_are_compared_model_by_model() -> None:
    base = np.linspace(20, 30, 10)
    old = records("a", "clean", base) + records("b", "clean", base)
    new = records("a", "clean", base + 0.5) + records("c", "clean", base)
    found = compare_boards(new, old)
    assert set(found) == {"a"}
    data = frame(found).set_index("metric")
    assert data.loc["psnr", "difference"] == pytest.approx(0.5)
    assert data.loc["psnr", "better"] == "A"
    with pytest.raises(InputError, match="no model"):
        compare_boards(new, records("d", "clean", base))


def test_ties_are_those_that_no_test_separates() -> None:
    rng = np.random.default_rng(10)
    scene = rng.normal(25, 4, 30)
    best, near, far = scene + 1, scene + 1 + rng.normal(-0.01, 0.5, 30), scene
    assert tied_with_best([far, best, near], names(30), True) == [False, True, True]
    assert tied_with_best([-far, -best, -near], names(30), False) == [False, True, True]


def test_too_few_images_make_no_tie_groups() -> None:
    scores = [np.linspace(20, 21, 6) + k for k in range(3)]
    assert tied_with_best(scores[:2], names(6), True) == [False, True]  # p = 1/32
    assert tied_with_best(scores, names(6), True) is None  # after Holm at least 1/16


def marks(made: list[Record], threat: str = "clean") -> dict[str, dict[str, str]]:
    cards = {m: card(m) for m in {r.model for r in made}}
    images = {r.threat: len({o.image for o in made if o.threat == r.threat}) for r in made}
    table = make_tables(make_grid(made, images), images, cards)["table3" if "aim" in images else "table1"]
    return {row.card.id: {m: row.mark(threat, m) for m in SCORED} for row in table.rows if row.evaluated}


def test_tied_models_share_the_mark_of_the_best() -> None:
    rng = np.random.default_rng(11)
    scene = rng.normal(25, 4, 12)
    made = records("best", "clean", scene + 1) + records("near", "clean", scene + 1 + rng.normal(-0.01, 0.5, 12))
    made += records("far", "clean", scene)
    assert {m: found["psnr"] for m, found in marks(made).items()} == {"best": "best", "near": "best", "far": ""}
    few = [r for r in made if r.image < "image-004"]
    assert sorted(found["psnr"] for found in marks(few).values()) == ["", "best", "second"]


def test_an_average_is_tested_over_the_images_of_all_its_threats() -> None:
    scene = np.linspace(20, 30, 4)
    leads = {"best": np.full(4, 1.0), "near": np.array([1.3, 0.6, 0.8, 1.2]), "far": np.zeros(4)}
    made = [
        replace(r, image=f"{threat}-{r.image}")
        for threat in ("ntire", "aim")
        for model, lead in leads.items()
        for r in records(model, threat, scene + lead)
    ]
    # Four images can separate nobody; eight can.
    assert [marks(made, "aim")[m]["psnr"] for m in leads] == ["best", "second", ""]
    assert [marks(made, "avg")[m]["psnr"] for m in leads] == ["best", "best", ""]


def test_an_average_adds_up_the_differences_of_an_image() -> None:
    # Under each threat alone the lead is certain; together the two cancel.
    scene = np.linspace(20, 30, 8)
    made = [r for threat, lead in (("ntire", 1.0), ("aim", -0.9)) for r in records("a", threat, scene + lead)]
    made += [r for threat in ("ntire", "aim") for r in records("b", threat, scene + np.array([0.2, -0.1] * 4))]
    found = {where: marks(made, where) for where in ("ntire", "aim", "avg")}
    assert [found[where]["b"]["psnr"] for where in found] == ["second", "best", "best"]
    assert [found[where]["a"]["psnr"] for where in found] == ["best", "second", "best"]
