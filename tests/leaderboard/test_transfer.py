"""Matrices of transferred attacks against a computation by hand, and where they are shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from toys import changed, names, records

from benchsr.commands.export import export
from benchsr.leaderboard import LeaderboardInfo, write_leaderboard
from benchsr.leaderboard.transfer import Matrix, matrices
from benchsr.models.zoo import load_card, zoo
from benchsr.results.records import Record, write_results
from benchsr.results.transfers import TRANSFER, origin, sent_from

MODELS = ("bicubic", "re-esrgan", "realesrgan-x4plus", "dat-light-x4")
HARM = dict(zip(MODELS, (0.0, 1.0, 4.0, 1.0), strict=True))
"""dB that an attack on the model takes from any other."""

LEVEL = {model: np.random.default_rng(i).uniform(24, 30, 5) for i, model in enumerate(MODELS)}
NOISE = {model: np.random.default_rng(10 + i).uniform(-0.1, 0.1, 5) for i, model in enumerate(MODELS)}


def figures(source: str, victim: str) -> np.ndarray:
    white_box = 10.0 if source == victim else HARM[source]
    made: np.ndarray = LEVEL[victim] - white_box + NOISE[source]
    return made


OWN = [r for model in MODELS for r in records(model, "pgd", figures(model, model))]
CROSSED = [r for v in MODELS for s in MODELS for r in records(v, sent_from("pgd", s), figures(s, v))]


def matrix(own: list[Record], transferred: list[Record]) -> Matrix:
    (found,) = matrices(own, transferred, [load_card(model) for model in MODELS], ["clean", "pgd"], 5)
    return found


def test_names_of_transferred_attacks() -> None:
    assert origin(sent_from("apgd-median", "jpeg+re-esrgan")) == ("apgd-median", "jpeg+re-esrgan")


def test_a_source_is_judged_on_the_others_whatever_their_level_and_its_own_cell() -> None:
    found = matrix(OWN, CROSSED)
    assert [found.cell(s, v).value("psnr") for s in MODELS for v in MODELS] == pytest.approx(
        [figures(s, v).mean() for s in MODELS for v in MODELS]
    )
    for source in MODELS:
        gaps = [
            np.mean([figures(source, v) - figures(other, v) for other in MODELS if other not in (source, v)])
            for v in MODELS
            if v != source
        ]
        assert found.advantages[source].value("psnr") == pytest.approx(np.mean(gaps))
    words = found.words("psnr")
    assert (
        f"pgd transfers best to others from {load_card('realesrgan-x4plus').title}: their PSNR changes by -3." in words
    )
    assert "not told" not in words
    assert load_card("realesrgan-x4plus").title in found.words("lpips"), "the same records: more LPIPS where less PSNR"


def test_sources_that_no_interval_tells_apart_are_named_together() -> None:
    same = [changed(r, psnr=20.0) if "realesrgan" in r.threat else r for r in CROSSED]
    twins = [changed(r, psnr=20.0) if "dat-light" in r.threat else r for r in same]
    words = matrix(OWN, twins).words("psnr")
    assert "not told from it" in words
    assert {load_card(m).title in words for m in ("realesrgan-x4plus", "dat-light-x4")} == {True}
    assert load_card("bicubic").title not in words


def test_lines_of_weights_that_changed_since_are_left_out() -> None:
    newer = [changed(r, key="1" * 64) if r.model == "re-esrgan" else r for r in OWN]
    left = matrix(newer, CROSSED)
    assert [card.id for card in left.cards] == [m for m in MODELS if m != "re-esrgan"]
    assert "re-esrgan" not in {model for pair in left.cells for model in pair}
    assert not matrices([], CROSSED, [load_card(model) for model in MODELS], ["pgd"], 5)


def test_two_models_or_a_missing_image_say_nothing_of_who_transfers_best() -> None:
    (pair,) = matrices(OWN, CROSSED, [load_card(model) for model in MODELS[:2]], ["pgd"], 5)
    assert (pair.advantages, pair.words("psnr")) == ({}, "")
    assert len(pair.cells) == 4
    lost = [r for r in CROSSED if (r.model, r.threat, r.image) != (MODELS[0], f"pgd@{MODELS[1]}", "image-000")]
    part = matrix(OWN, lost)
    assert part.cell(MODELS[1], MODELS[0]).status == "partial"
    assert part.words("psnr") == ""


def test_the_matrix_stands_in_report_plots_and_export(tmp_path: Path) -> None:
    info = LeaderboardInfo("toy", "Toy", "f" * 64, [], ["clean", "pgd"], names(5))
    write_results(tmp_path / "results.csv", OWN)
    write_results(tmp_path / TRANSFER / "results.csv", CROSSED)
    write_leaderboard(tmp_path, OWN, protocol=info, cards=zoo())
    words = matrix(OWN, CROSSED).words("psnr")
    text = (tmp_path / "report.md").read_text()
    assert "![Paper-scale networks: every source against every model](transfer.png)" in text
    assert words.split(":")[0] in text
    assert (tmp_path / "transfer.png").read_bytes()[:4] == b"\x89PNG"
    data = pd.read_csv(tmp_path / "transfer.csv").set_index(["attack", "source", "victim"])
    assert len(data) == 16
    assert data.loc[("pgd", "bicubic", "re-esrgan"), "psnr"] == pytest.approx(
        figures("bicubic", "re-esrgan").mean(), rel=1e-5
    )
    shown = export("transfer", "markdown", tmp_path).decode()
    assert words.split(":")[0] in shown
    assert f"| pgd made on {load_card('bicubic').title} |" in shown
    assert export("transfer", "csv", tmp_path).decode() == (tmp_path / "transfer.csv").read_text()
    (tmp_path / TRANSFER / "results.csv").unlink()
    write_leaderboard(tmp_path, OWN, protocol=info, cards=zoo())
    assert not list(tmp_path.glob("transfer*.*"))
    assert "Transferred attacks" not in (tmp_path / "report.md").read_text()
