"""From records to tables, plots, report and claims: every figure against a hand computation."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from scipy.stats import kendalltau
from toys import changed

from benchsr.base.drawing import drawn
from benchsr.base.text import escape
from benchsr.leaderboard import (
    CardInfo,
    Leaderboard,
    LeaderboardInfo,
    read_leaderboard,
    summary,
    tables,
    write_leaderboard,
)
from benchsr.leaderboard.paper import (
    SCALES,
    Verdict,
    beside_paper,
    judge,
    judge_all,
    judge_printed,
    load_claims,
    printed_grid,
    printed_table,
    rank_correlation,
    scale_of,
)
from benchsr.leaderboard.plots import plot_curves, plot_scatter, plot_table, rank_draws
from benchsr.leaderboard.report import report, table_page
from benchsr.leaderboard.scores import (
    RESAMPLES,
    SCORED,
    Cell,
    interval,
    make_cell,
    make_grid,
    resampled_means,
    subtract,
)
from benchsr.leaderboard.tables import LAYOUTS, make_tables, markdown
from benchsr.models.cards import PAPER_ROWS, Card
from benchsr.models.zoo import zoo
from benchsr.results.records import Record, Status, write_results
from benchsr.threats.table import SWEEP

IMAGES = ("cat", "coffee", "rocket")
THREATS = (
    "clean",
    "noise",
    "blur",
    "fgsm",
    "bim",
    "pgd",
    "cw",
    "ntire",
    "aim",
    "standin-ntire",
    "standin-aim",
    "standin-dped",
)
INFO = LeaderboardInfo("toy", "Toy protocol", "ab" * 32, ("Data: photos.",), THREATS, IMAGES)


def card(model: str, family: str = "paper", *, title: str = "", paper_row: bool = True) -> Card:
    origin = {"architecture": "bicubic"} if model == "bicubic" else {"base": "bicubic"}
    fields = {"id": model, "title": title or model.upper(), "family": family, "paper_row": paper_row, **origin}
    texts = dict.fromkeys(("licence", "paper", "training_data", "fine_tuning_data"), f"about {model}")
    return Card.model_validate(fields | texts)


def cards(*models: str) -> dict[str, Card]:
    families = {"bicubic": "both"}
    return {m: card(m, families.get(m, "compact" if m.startswith("compact-") else "paper")) for m in models}


def record(model: str, threat: str, image: str, psnr: float | None, **changes: object) -> Record:
    made = Record("toy", "photos", model, threat, image, Status.OK, key="0" * 64)
    return changed(made, **{"psnr": psnr, "ssim": 0.5, "lpips": 0.25, **changes})


def row(model: str, threat: str, psnrs: Iterable[float]) -> list[Record]:
    return [record(model, threat, image, psnr) for image, psnr in zip(IMAGES, psnrs, strict=True)]


def unavailable(model: str, reason: str) -> list[Record]:
    blank = {"status": Status.UNAVAILABLE, "reason": reason, "ssim": None, "lpips": None}
    return [record(model, threat, image, None, **blank) for threat in THREATS[:7] for image in IMAGES]


def test_means_and_columns_by_hand() -> None:
    records = row("bicubic", "clean", (20, 22, 27)) + row("esrgan", "clean", (30, 30, 30))
    table = tables(records, INFO, cards("bicubic", "esrgan"))["table1"].set_index("model")
    assert table.loc["bicubic", "clean_psnr"] == pytest.approx(23.0)
    assert table.loc["bicubic", "clean_ssim"] == pytest.approx(0.5)
    assert table.loc["bicubic", "clean_n"] == 3
    # With three images one resample in 27 is thrice the worst image, more than 2.5%: the interval is their range.
    assert table.loc["bicubic", "clean_psnr_low"] == pytest.approx(20.0)
    assert table.loc["bicubic", "clean_psnr_high"] == pytest.approx(27.0)
    assert table.loc["esrgan", "clean_psnr_low"] == pytest.approx(30.0)
    assert table.loc["esrgan", "clean_psnr_high"] == pytest.approx(30.0)
    assert table.loc["esrgan", "clean_psnr_rank"] == 1
    assert table.loc["bicubic", "clean_psnr_rank"] == 2
    expected = [f"{t}_{m}{end}" for t in ("clean", "noise", "blur") for m in SCORED for end in ("", "_low", "_high")]
    assert set(expected) <= set(table)


def test_interval_covers_the_true_mean() -> None:
    trials, n = 400, 40
    values = np.random.default_rng(0).normal(25.0, 3.0, size=(n, trials))
    draws = resampled_means(values, tuple(f"image {i}" for i in range(n)))
    assert draws.shape == (RESAMPLES, trials)
    ends = [interval(column) for column in draws.T]
    covered = np.mean([low <= 25.0 <= high for low, high in ends])
    assert 0.90 <= covered <= 0.98  # the percentile bootstrap at n = 40 is a little too narrow
    spread = 3.0 / math.sqrt(n)
    assert np.mean([high - low for low, high in ends]) == pytest.approx(2 * 1.96 * spread, rel=0.05)


def test_intervals_do_not_depend_on_order_or_on_other_rows() -> None:
    rng = np.random.default_rng(1)
    mine, other = row("esrgan", "clean", rng.normal(25, 3, 3)), row("bicubic", "clean", rng.normal(25, 3, 3))
    alone = make_grid(mine, {"clean": 3})["esrgan", "clean"]
    among = make_grid([*other, *reversed(mine)], {"clean": 3})["esrgan", "clean"]
    np.testing.assert_array_equal(alone.draws, among.draws)


def test_differences_are_paired() -> None:
    values = np.array([18.0, 25.0, 33.0])
    grid = make_grid(row("esrgan", "clean", values) + row("esrgan", "pgd", values - 6), {"clean": 3, "pgd": 3})
    change = subtract(grid["esrgan", "pgd"], grid["esrgan", "clean"]).estimate("psnr")
    assert (change.value, change.low, change.high) == pytest.approx((-6, -6, -6))
    fewer = make_cell(row("esrgan", "clean", values)[:2], 2)
    assert [subtract(*pair).n for pair in ((grid["esrgan", "pgd"], fewer), (fewer, grid["esrgan", "pgd"]))] == [2, 2]


def test_infinite_psnr() -> None:
    grid = make_grid(row("a", "clean", (20, 20, math.inf)) + row("b", "clean", [math.inf] * 3), {"clean": 3})
    some, all_ = grid["a", "clean"].estimate("psnr"), grid["b", "clean"].estimate("psnr")
    assert (some.value, some.low, some.high) == (math.inf, 20.0, math.inf)
    assert (all_.value, all_.low, all_.high) == (math.inf, math.inf, math.inf)
    ssim = grid["a", "clean"].estimate("ssim")
    assert ssim.value == pytest.approx(0.5)
    assert (ssim.low, ssim.high) == pytest.approx((0.5, 0.5))


def test_ties_share_a_rank_as_shown() -> None:
    psnrs = {"esrgan": 25.001, "certsr": 24.999, "bicubic": 24.0, "ad-l-cw": math.inf}
    records = [r for model, psnr in psnrs.items() for r in row(model, "clean", [psnr] * 3)]
    table = tables(records, INFO, cards(*psnrs))["table1"].set_index("model")
    assert table["clean_psnr_rank"].to_dict() == {"ad-l-cw": 1, "esrgan": 2, "certsr": 2, "bicubic": 4}
    assert set(table["clean_lpips_rank"]) == {1}


def test_lower_lpips_ranks_first() -> None:
    records = [changed(r, lpips=0.1) for r in row("esrgan", "clean", (20, 20, 20))] + row("certsr", "clean", (9, 9, 9))
    table = tables(records, INFO, cards("esrgan", "certsr"))["table1"].set_index("model")
    assert table["clean_lpips_rank"].to_dict() == {"esrgan": 1, "certsr": 2}


def test_incomplete_cells_are_shown_but_not_ranked() -> None:
    failed = record("esrgan", "clean", "rocket", None, status=Status.FAILED, reason="NaN", ssim=None, lpips=None)
    records = [
        *row("bicubic", "clean", (20, 21, 22)),
        *row("esrgan", "clean", (30, 30, 0))[:2],
        failed,
        *row("certsr", "clean", (31, 31, 0))[:2],
        *unavailable("ad-l-cw", "no public weights"),
    ]
    made = tables(records, INFO, cards("bicubic", "esrgan", "certsr", "ad-l-cw", "ad-l-pgd"))
    table = made["table1"].set_index("model")
    assert table["clean_status"].to_dict() == {
        "bicubic": "ok",
        "esrgan": "partial",
        "ad-l-pgd": "not run",
        "ad-l-cw": "unavailable",
        "certsr": "partial",
    }
    assert table.loc["esrgan", "clean_reason"] == "2 of 3 images; 1 failed: NaN"
    assert table.loc["certsr", "clean_reason"] == "2 of 3 images"
    assert table.loc["esrgan", "clean_psnr"] == pytest.approx(30)
    assert table.loc["esrgan", "clean_n"] == 2
    assert table.loc["ad-l-cw", "clean_reason"] == "no public weights"
    assert table["clean_psnr_rank"].dropna().to_dict() == {"bicubic": 1}
    assert table["clean_psnr"].isna().to_dict()["ad-l-cw"]


def test_a_metric_that_was_not_computed_stays_empty() -> None:
    records = row("esrgan", "clean", (1, 2, 3))
    cell = make_cell([changed(records[0], lpips=None), *records[1:]], 3)
    assert np.isnan(cell.estimate("lpips").value)
    assert cell.estimate("psnr").value == pytest.approx(2)


def test_a_cell_with_an_image_that_failed_is_partial_however_many_were_wanted() -> None:
    records = row("esrgan", "clean", (1, 2, 3))
    failed = replace(records[2], status=Status.FAILED, reason="out of memory", scores={})
    assert (make_cell(records, 2).status, make_cell([*records[:2], failed], 2).status) == ("ok", "partial")


def test_averages_need_every_threat() -> None:
    records = row("esrgan", "standin-ntire", (20, 20, 20)) + row("esrgan", "standin-aim", (10, 10, 10))
    records += row("esrgan", "standin-dped", (15, 15, 15)) + row("certsr", "standin-aim", (10, 10, 10))
    table = tables(records, INFO, cards("esrgan", "certsr"))["standins"].set_index("model")
    assert table.loc["esrgan", "avg_psnr"] == pytest.approx(15)
    assert table.loc["esrgan", "avg_psnr_rank"] == 1
    assert table.loc["esrgan", "avg_n"] == 9
    assert table.loc["certsr", "avg_status"] == "not run"
    assert table["avg_psnr"].isna().to_dict()["certsr"]


def test_real_sets_count_their_own_images() -> None:
    records = [record("esrgan", "ntire", f"{i:04}", 20.0, dataset="ntire-track1-valid") for i in range(100)]
    info = replace(INFO, images=IMAGES)
    full = tables(records, info, cards("esrgan"))["table3"].set_index("model")
    assert full.loc["esrgan", "ntire_status"] == "ok"
    cut = tables(records[:99], info, cards("esrgan"))["table3"].set_index("model")
    assert cut.loc["esrgan", "ntire_status"] == "partial"


def test_families_never_mix() -> None:
    models = ("bicubic", "esrgan", "compact-esrgan", "compact-certsr")
    known = cards(*models) | {"realesrgan-x4plus": card("realesrgan-x4plus", paper_row=False)}
    records = [r for model in known for r in row(model, "clean", (20, 21, 22))]
    made = tables(records, INFO, known)
    for name, table in made.items():
        compact = {model.startswith("compact-") for model in table["model"] if model != "bicubic"}
        assert compact == {name.endswith("-compact")}, name
        assert "bicubic" in set(table["model"])
        in_paper = table.set_index("model")["in_paper"]
        assert not in_paper.filter(like="compact-").any()
    assert dict(made["table1"][["model", "in_paper"]].to_numpy()) == {
        "bicubic": True,
        "esrgan": True,
        "realesrgan-x4plus": False,
    }
    text = markdown(make_tables(make_grid(records, {"clean": 3}), ["clean"], known)["table1"])
    assert "REALESRGAN-X4PLUS (not in the paper)" in text
    assert "ESRGAN (not" not in text.replace("REALESRGAN", "").replace("-X4PLUS (not", "")


def test_only_bicubic_makes_no_compact_table() -> None:
    made = tables(row("bicubic", "clean", (1, 2, 3)), INFO, cards("bicubic", "esrgan"))
    assert set(made) == {"table1", "table2", "table3", "standins"}


def test_stand_ins_never_enter_table_3() -> None:
    records = row("esrgan", "standin-ntire", (20, 20, 20)) + row("esrgan", "standin-aim", (20, 20, 20))
    table = tables(records, INFO, cards("esrgan"))["table3"]
    assert not [column for column in table if "standin" in str(column)]
    assert table.filter(regex="psnr").isna().all(axis=None)
    assert set(LAYOUTS["table3"].threats) == {"ntire", "aim"}


def test_paper_rows_are_in_the_papers_order_and_all_have_cards() -> None:
    known = zoo()
    assert {c.id for c in known.values() if c.paper_row and c.family != "compact"} == set(PAPER_ROWS)
    table = tables([], INFO, known)["table3"]
    assert list(table["model"]) == list(PAPER_ROWS) == list(printed_table("table3").index)


@pytest.mark.parametrize(
    "title", ["a | b", "<script>alert(1)</script>", "two\nlines", "*bold* _it_ `code` [x](y)", "~~s~~"]
)
def test_markdown_is_escaped(title: str) -> None:
    known = {"esrgan": card("esrgan", title=title), "bicubic": card("bicubic", "both")}
    grid = make_grid(row("esrgan", "clean", (1, 2, 3)) + row("bicubic", "clean", (1, 2, 3)), {"clean": 3})
    lines = markdown(make_tables(grid, ["clean"], known)["table1"]).splitlines()
    assert len(lines) == 4
    widths = {line.replace("\\|", "").count("|") for line in lines}
    assert widths == {11}
    row_text = lines[3].split("|")[1] if "\\|" not in lines[3] else lines[3]
    assert "<script" not in row_text
    for mark in "*_`[~":
        assert escape(title).count("\\" + mark) == title.count(mark)


# The paper: its printed tables and claims.


def test_printed_slips_are_kept() -> None:
    table = printed_table("table3")
    off = {
        model
        for model in table.index
        if abs(table.loc[model, ["ntire_psnr", "aim_psnr"]].mean() - table.loc[model, "avg_psnr"]) > 0.02
    }
    assert off == {"esrgan", "ad-l-fgsm", "ad-l-bim", "ad-l-cw"}
    assert table.loc["esrgan", "avg_psnr"] == 21.03
    assert (len(printed_table("table1")), len(printed_table("table2")), len(table)) == (6, 6, 13)


def test_claims_hold_on_the_printed_tables_as_one_can_read_there() -> None:
    judged = {j.claim.id: j for j in judge_printed()}
    assert {name: j.verdict for name, j in judged.items()} == dict.fromkeys("12345", Verdict.HOLDS)
    one, two, three = (printed_table(name) for name in ("table1", "table2", "table3"))
    for threat in ("noise", "blur"):
        assert one[f"{threat}_lpips"].idxmin() == "certsr"
    drop = (one["clean_psnr"] - one["noise_psnr"]).sort_values()
    assert list(drop.index[-2:]) == ["esrgan", "ad-l-cw"]
    assert two["fgsm_psnr"].idxmax() == "ad-l-fgsm"
    assert three["avg_lpips"].idxmin() == "certsr"
    assert "certsr and ad-l-pgd, LPIPS pgd, +0.000" in judged["3"].evidence  # the tie that the slips mention
    assert "certsr and esrgan, LPIPS clean, +0.000" in judged["1"].evidence


@pytest.mark.parametrize(
    ("claim", "model", "column", "metric", "value"),
    [
        ("1", "certsr", "noise", "lpips", 0.40),
        ("1", "esrgan", "clean", "lpips", 0.11),
        ("2", "ad-l-pgd", "noise", "psnr", 10.0),
        ("2", "ad-l-cw", "noise", "ssim", 0.60),
        ("3", "ad-l-bim", "cw", "psnr", 27.0),
        ("3", "certsr", "fgsm", "ssim", 0.71),
        ("4", "ad-l-cw", "bim", "lpips", 0.20),
        ("5", "ad-l-pgd", "avg", "lpips", 0.26),
        ("5", "esrgan-fs-aim", "ntire", "lpips", 0.20),
        ("5", "impressionism-dped", "aim", "lpips", 0.30),
    ],
)
def test_one_contrary_figure_refutes_a_claim(claim: str, model: str, column: str, metric: str, value: float) -> None:
    [tested] = [c for c in load_claims() if c.id == claim]
    grid = dict(printed_grid(tested.table))
    cell = grid[model, column]
    mean = cell.mean.copy()
    mean[SCORED.index(metric)] = value
    judged = judge(tested, grid | {(model, column): replace(cell, mean=mean, draws=mean[None])})
    assert judged.verdict is Verdict.FAILS
    assert model in judged.evidence


def test_intervals_across_zero_and_missing_rows_leave_a_claim_open() -> None:
    [claim] = [c for c in load_claims() if c.id == "4"]
    grid = dict(printed_grid("table2"))
    cell = grid["ad-l-cw", "fgsm"]
    wide = cell.mean + np.linspace(-30, 30, 100)[:, None]
    assert judge(claim, grid | {("ad-l-cw", "fgsm"): replace(cell, draws=wide)}).verdict is Verdict.OPEN
    del grid["certsr", "cw"]
    judged = judge(claim, grid)
    assert judged.verdict is Verdict.OPEN
    assert judged.missing == ["certsr"]
    assert judged.count(Verdict.HOLDS) == 45
    # One clear contradiction refutes it, whatever else is missing.
    bad = replace(cell, mean=grid["ad-l-bim", "fgsm"].mean + 1, draws=grid["ad-l-bim", "fgsm"].mean[None] + 1)
    assert judge(claim, grid | {("ad-l-cw", "fgsm"): bad}).verdict is Verdict.FAILS


def test_compact_networks_are_judged_under_their_own_ids() -> None:
    printed = printed_grid("table2")
    compact = {("compact-" + model, threat): cell for (model, threat), cell in printed.items()}
    assert {j.claim.id: j.verdict for j in judge_all(compact, SCALES["compact"])}["4"] is Verdict.HOLDS
    assert {j.verdict for j in judge_all(compact)} == {Verdict.OPEN}


def test_compact_networks_are_judged_on_the_stand_ins_of_their_domains() -> None:
    compact = {
        (model if model == "bicubic" else f"compact-{model}", f"standin-{threat}"): cell
        for (model, threat), cell in printed_grid("table3").items()
        if threat != "avg"
    }
    claim = {j.claim.id: j for j in judge_all(compact, SCALES["compact"])}["5"]
    assert claim.verdict is Verdict.HOLDS
    assert {c.threat for c in claim.comparisons} == {"standin-ntire", "standin-aim", "avg"}
    assert {j.claim.id: j.verdict for j in judge_all(compact)}["5"] is Verdict.OPEN


ROBUST = ("esrgan", "ad-l-pgd", "ad-l-fgsm", "ad-l-bim", "ad-l-cw", "certsr")


def retrained(row: str) -> Card:
    """A card of a network trained anew for a row of the paper."""
    recipe = {"start": ["impressionism-ntire"], "stages": [{"steps": 100}, {"steps": 200}]}
    told = {**card(f"re-{row}", paper_row=False).model_dump(), "retrains": row, "recipe": recipe}
    return Card.model_validate(told)


def test_rows_reproduced_here_are_judged_where_the_papers_weights_are_missing() -> None:
    """The printed figures under the ids of reproduced rows: claims and ranks come out as in print, and say on whom."""
    known = {**cards(*PAPER_ROWS), **{f"re-{row}": retrained(row) for row in ROBUST}}
    ours: dict[tuple[str, str], Cell] = {}
    for name in ("table1", "table2"):
        ours |= {(f"re-{row}" if row in ROBUST else row, t): cell for (row, t), cell in printed_grid(name).items()}
    assert {j.verdict for j in judge_all(ours)} == {Verdict.OPEN}

    scale = scale_of("paper", ours, known)
    assert scale.reproduced == {row: f"re-{row}" for row in ROBUST}
    judged = {j.claim.id: j for j in judge_all(ours, scale)}
    printed = {j.claim.id: j.verdict for j in judge_printed()}
    assert {c: j.verdict for c, j in judged.items() if c != "5"} == {c: v for c, v in printed.items() if c != "5"}
    assert "reproduced here, not the paper's weights: re-esrgan, " in judged["2"].evidence
    assert judged["4"].missing == []
    tau = rank_correlation(ours, scale).query("table == 'table2' and threat == 'pgd' and metric == 'psnr'")
    assert tau[["rows", "reproduced", "tau"]].to_numpy().tolist() == [[6, 6, pytest.approx(1.0)]]

    # The paper's own weights come first, and a reproduced row without a figure stands for nothing.
    ours["esrgan", "clean"] = printed_grid("table1")["esrgan", "clean"]
    ours = {key: cell for key, cell in ours.items() if key[0] != "re-ad-l-cw"}
    assert set(scale_of("paper", ours, known).reproduced) == set(ROBUST) - {"esrgan", "ad-l-cw"}
    assert scale_of("compact", ours, known).reproduced == {}


def test_reproduced_rows_stand_beside_the_papers_and_say_how_they_were_made() -> None:
    known = {**cards("bicubic", "esrgan", "certsr"), "re-esrgan": retrained("esrgan")}
    records = [r for m in ("bicubic", "re-esrgan") for r in row(m, "clean", (20, 21, 22))]
    board = Leaderboard(INFO, known, records)
    assert [r.card.id for r in board.tables["table1"].rows] == ["bicubic", "esrgan", "re-esrgan", "certsr"]
    origin = "start impressionism-ntire; 300 steps; data: about re-esrgan"
    for text in (table_page(board.tables["table1"], INFO), report(board, [])):
        assert "RE-ESRGAN (reproduced here) | 21.00" in text.replace("**", "").replace("<ins>", "")
        assert f"- RE-ESRGAN, for `esrgan`: {origin}" in text
    assert "judged in their place: `re-esrgan` for `esrgan`." in report(board, [])
    frames = tables(records, INFO, known)["table1"].set_index("model")
    assert frames["retrains"].dropna().to_dict() == {"re-esrgan": "esrgan"}


def test_cell_by_cell_and_rank_correlation() -> None:
    psnrs = {"esrgan": 20.0, "ad-l-pgd": 25.0, "certsr": 24.0}
    records = [r for model, psnr in psnrs.items() for r in row(model, "noise", [psnr] * 3)]
    grid = make_grid(records, {"noise": 3})
    beside = beside_paper(grid).set_index(["model", "threat", "metric"])
    assert beside["difference"].to_dict()["esrgan", "noise", "psnr"] == pytest.approx(20.0 - 20.25)
    assert beside["status"].to_dict()["ad-l-cw", "noise", "psnr"] == "not run"
    assert len(beside) == 6 * 9 + 6 * 12 + 13 * 9
    tau = rank_correlation(grid).set_index(["table", "threat", "metric"])
    assert tau["rows"].to_dict()["table1", "noise", "psnr"] == 3
    assert tau["tau"].to_dict()["table1", "noise", "psnr"] == pytest.approx(
        kendalltau([20, 25, 24], [20.25, 22.63, 26.35])[0]
    )
    two = make_grid([r for r in records if r.model != "certsr"], {"noise": 3})
    assert rank_correlation(two)["tau"].isna().all()


def test_ranks_follow_the_resampled_images() -> None:
    good, bad, mixed = (
        make_cell(row(m, "pgd", v), 3) for m, v in (("a", (30, 30, 30)), ("b", (10, 10, 10)), ("c", (40, 20, 28)))
    )
    ranks = rank_draws([good, bad, mixed], "psnr")
    assert set(ranks[1]) == {3.0}
    assert set(ranks[0]) == {1.0, 2.0}
    assert interval(ranks[2]) == (1.0, 2.0)


# The files.


@dataclass(frozen=True)
class Written:
    board: Leaderboard
    folder: Path
    calls: dict[str, int]


@pytest.mark.parametrize("plot", [plot_scatter, plot_curves])
def test_plots_tell_many_models_apart_and_show_the_whole_legend(plot: Callable[..., Figure | None]) -> None:
    sweep = ("clean", *SWEEP, "fgsm", "bim", "pgd", "cw")
    known = [card(f"m{i}", title="CertSR with a sigma for each threat (oracle), compact") for i in range(30)]
    records = [r for c in known for threat in sweep for r in row(c.id, threat, (20, 25, 30))]
    figure = plot("paper", known, make_grid(records, dict.fromkeys(sweep, 3)), INFO)
    assert figure is not None
    drawn(figure)  # lays it out
    [legend] = figure.legends
    lines = legend.get_lines()
    assert len({(str(line.get_color()), str(line.get_marker())) for line in lines}) == 30
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0
    assert box.x1 <= whole.x1
    assert whole.y0 <= box.y0


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """25 models under 11 threats on 8 images: some unavailable, one failed, one without a card."""
    known = cards(*PAPER_ROWS, *(f"compact-{m}" for m in PAPER_ROWS[1:]))
    known["realesrgan-x4plus"] = card("realesrgan-x4plus", title="Real <b>| ESRGAN", paper_row=False)
    rng = np.random.default_rng(0)
    records = []
    for model, threat, i in product([*known, "stranger"], THREATS, range(8)):
        attacked = {"loss_clean": 0.1, "loss_attacked": 0.4} if threat in LAYOUTS["table2"].threats else {}
        psnr = 28 - THREATS.index(threat) + rng.normal()
        made = record(model, threat, f"i{i}", psnr, attack_linf=0.03, attack_l2=0.5, **attacked)
        if model in ("certsr", "esrgan") or threat in ("ntire", "aim"):
            made = changed(made, status=Status.UNAVAILABLE, reason="not | here", psnr=None, ssim=None, lpips=None)
        elif (model, threat, i) == ("ad-l-cw", "pgd", 3):
            made = changed(made, status=Status.FAILED, reason="returned NaN <i>", psnr=None)
        elif (model, threat) == ("ad-l-bim", "fgsm"):
            made = replace(made, health="still-rising")
        records.append(made)
    info = replace(INFO, title="Toy | <b>", images=[f"i{i}" for i in range(8)])
    folder = tmp_path_factory.mktemp("board")
    (folder / "curves-compact.md").write_text("of an earlier run")
    write_results(folder / "results.csv", records)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchsr.base.drawing.cache_dir", lambda: folder.parent / "none drawn yet")
        calls = {
            "drawn": _counted(patch, drawn, "benchsr.base.drawing"),
            "make_grid": _counted(patch, make_grid, "benchsr.leaderboard.report"),
        }
        write_leaderboard(folder, records, protocol=info, cards=known)
    return Written(Leaderboard(info, known, records), folder, {name: next(count) for name, count in calls.items()})


def _counted(patch: pytest.MonkeyPatch, function: Callable[..., object], module: str) -> Iterator[int]:
    """Count the calls of a function by a module from now on."""
    count = itertools.count()
    patch.setattr(f"{module}.{function.__name__}", lambda *args: (next(count), function(*args))[1])
    return count


def test_all_files_are_written_and_nothing_is_computed_twice(written: Written) -> None:
    stems = [f"{t}{s}" for t in ("table1", "table2", "table3", "standins") for s in ("", "-compact")]
    plots = [f"{p}{s}.png" for p in ("heatmap", "clean-vs-robust", "rank-stability") for s in ("", "-compact")]
    expected = {f"{stem}.{kind}" for stem in stems for kind in ("csv", "md", "png")}
    expected |= {*plots, "report.md", "claims.csv", "paper-comparison.csv", "leaderboard.json", "results.csv"}
    assert {path.name for path in written.folder.iterdir()} == expected
    pictures = list(written.folder.glob("*.png"))
    assert written.calls == {"drawn": len(pictures), "make_grid": 1}
    for path in pictures:
        with Image.open(path) as image:
            assert image.width > 500
    table = pd.read_csv(written.folder / "table2.csv")
    numbers = table.filter(regex="_(psnr|ssim|lpips)(_low|_high)?$")
    assert all(pd.api.types.is_float_dtype(kind) for kind in numbers.dtypes)


def test_everything_follows_from_results_csv_alone(written: Written) -> None:
    again = read_leaderboard(written.folder, written.board.cards)
    assert report(again, sorted(p.name for p in written.folder.glob("*.png"))) == written.folder.joinpath(
        "report.md"
    ).read_text(encoding="utf-8")
    for name, table in again.tables.items():
        assert table_page(table, again.protocol) == (written.folder / f"{name}.md").read_text(encoding="utf-8")
    figure = plot_table(again.tables["table1"], again.protocol)
    assert drawn(figure) == (written.folder / "table1.png").read_bytes()


def test_report_says_what_it_must(written: Written) -> None:
    board = written.board
    assert board.without_card == ["stranger"]
    change = board.changes["bicubic", "pgd", "clean"]["psnr"]
    clean, pgd = (
        [r.scores.get("psnr", 0) for r in board.records if (r.model, r.threat) == ("bicubic", t)]
        for t in ("clean", "pgd")
    )
    assert change.value == pytest.approx(np.mean(pgd) - np.mean(clean))
    assert set(board.attacks["family"]) == {"paper", "compact", "both"}
    text = (written.folder / "report.md").read_text(encoding="utf-8")
    for said in (
        "Data: photos.",
        "One metric alone misleads",
        "not the paper's models",
        "### Claim 5",
        "cannot be judged",
        "not \\| here",
        "returned NaN &lt;i&gt;",
        "still-rising",
        "stranger",
        "![Table 1",
        "Real &lt;b&gt;\\| ESRGAN",
        "says nothing about whether a figure reproduces",
    ):
        assert said in text, said
    assert "<b>" not in text
    assert "<i>" not in text


def printed(records: Sequence[Record], known: Mapping[str, CardInfo], width: int = 80) -> list[str]:
    """The lines that a log without colours gets of a summary."""
    console = Console(width=width, no_color=True, file=io.StringIO(), record=True)
    for part in summary(records, known, width):
        console.print(part)
    return console.export_text().splitlines()


WEIGHTLESS = "weights cannot be had: no weights were published and put the file at ~/.cache/x"


def test_rows_and_columns_without_figures_are_one_line_and_a_switch_shows_them() -> None:
    known = cards("bicubic", "esrgan", "certsr", "ad-l-cw", "ad-l-pgd")
    train = "weights cannot be had: train with `benchsr train {}`; or put it at ~/.cache/{}.pth"
    site = "weights cannot be had: https://a.org/x/esrgan.pth: cannot be fetched (ConnectionError: no)"
    no_data = {"status": Status.UNAVAILABLE, "reason": "no data", "psnr": None, "ssim": None, "lpips": None}
    records = row("bicubic", "clean", (20, 21, 22))
    records += [r for m in ("certsr", "ad-l-cw") for r in unavailable(m, train.format(m, m))]
    records += unavailable("esrgan", site)
    records += [changed(r, **no_data) for r in row("bicubic", "blur", [1] * 3)]
    table = Leaderboard(INFO, known, records).tables["table1"]
    brief, whole = table_page(table, INFO), table_page(table, INFO, missing=True)
    lines = [line for line in brief.splitlines() if line.startswith("|")]
    assert len(lines) == 3
    assert "Clean" in lines[0]
    assert "Sensor noise" not in lines[0]
    why = "No weights here: esrgan: a.org: cannot be fetched; ad-l-cw, certsr: train with `benchsr train MODEL`."
    assert escape(why) in brief
    assert "Models without figures: ad-l-pgd: was not part of any run so far." in brief
    assert "Threats without figures: noise: was not part of any run so far; blur: no data." in brief
    assert "train with" not in "".join(lines)
    assert "No weights here" not in whole
    assert sum(line.startswith("|") for line in whole.splitlines()) == 2 + len(known)
    assert "Sensor noise" in whole
    # The data keeps every row; a board without any figure makes no empty grid.
    assert set(tables(records, INFO, known)["table1"]["model"]) == set(known)
    assert "No model has figures here." in table_page(Leaderboard(INFO, known, records).tables["table2"], INFO)
    text = report(Leaderboard(INFO, known, records), [])
    assert text.count("No weights here") == 1
    assert "| ESRGAN |" not in text
    assert "| ESRGAN |" in report(Leaderboard(INFO, known, records, missing=True), [])


def test_terminal_tables() -> None:
    records = row("bicubic", "clean", (20, 21, 22)) + row("compact-esrgan", "clean", (30, 31, 32))[:2]
    known = cards("bicubic", "compact-esrgan", "esrgan")
    text = " ".join(" ".join(printed([*records, *unavailable("esrgan", WEIGHTLESS)], known)).split())
    assert "21.00" in text
    assert "30.50*" in text
    assert "No weights here: esrgan: no weights were published." in text
    assert text.count("PSNR in dB") == 2


def test_terminal_tables_follow_the_metrics() -> None:
    more = {"psnr-y": 1234.567, "dists": 0.125}
    records = [replace(r, scores={**r.scores, **more}) for t in THREATS for r in row("bicubic", t, (20, 21, 22))]
    lines = printed(records, known := cards("bicubic", "esrgan"), 100)
    assert lines[0].endswith("PSNR in dB above LPIPS above PSNR-Y in dB above DISTS, image means")
    assert [line.split()[-1] for line in lines[3:7]] == ["21.00", "0.250", "1234.57", "0.125"]
    assert max(map(len, lines)) <= 100
    alone = [replace(r, scores={"ssim": 0.5}) for r in records]
    assert printed(alone, known)[0].endswith("networks: SSIM, image means")


def test_a_family_without_figures_has_no_table_on_the_terminal() -> None:
    lines = printed(row("compact-a", "clean", (20, 21, 22)), cards("compact-a", "esrgan"))
    assert [line for line in lines if line.startswith("model")] == ["model      clean"]


@pytest.mark.parametrize("width", [80, 200])
def test_terminal_tables_keep_ids_whole(width: int) -> None:
    """At 80 columns and at 200: every id of the zoo and of the threats on one line, and no line too long."""
    known, longest = dict(zoo()), "x" * 64
    known[longest] = card(longest, paper_row=False)
    threats = [t for layout in LAYOUTS.values() for t in layout.threats]
    absent = {"esrgan", "compact-certsr"}
    records = [r for m in known for t in threats for r in row(m, t, (20, 21, 22)) if m not in absent]
    records += [r for m in absent for r in unavailable(m, "no")]
    lines = printed(records, known, width)
    assert max(map(len, lines)) <= width
    words = [word.rstrip(",:") for line in lines for word in line.split()]
    assert {*known, *threats} <= set(words)
    headers = [line.split()[1:] for line in lines if line.startswith("model")]
    assert {t for header in headers for t in header} == set(threats)
    if width == 200:
        assert max(map(len, headers)) > 8
