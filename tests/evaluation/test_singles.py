"""Single noisy answers: what is written of them, that nothing is computed twice, and that none is lost."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import FakeLpips, photos, protocol, toy_card

from benchsr.base.inference import to_8bit
from benchsr.commands.run import Outcome, evaluate
from benchsr.data.datasets import load_dataset
from benchsr.defences.smoothing import Smoothed
from benchsr.evaluation.ledger import read_ledger
from benchsr.evaluation.options import RunOptions
from benchsr.metrics.quality import psnr
from benchsr.models.network import load_network
from benchsr.models.zoo import load_card
from benchsr.results.records import Status
from benchsr.results.singles import Singles, append_singles, read_singles, write_singles

THREATS = "clean,single,single-l2-0.1"
SMOOTHED = "[smoothing]\nn = 3\nsigma = 0.05\n"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", FakeLpips)
    monkeypatch.setattr("benchsr.leaderboard.report.all_plots", lambda *_: iter(()))
    file = protocol(tmp_path, photos(tmp_path / "photos", 2))
    threats = '["clean", "single", "single-l2-0.1"]'
    text = re.sub(r"threats = .*", f"threats = {threats}", file.read_text())
    settings = '[settings.single]\nsingles = 9\n[settings."single-l2-0.1"]\nsingles = 5\nsteps = 2\ndraws = 2\n'
    file.write_text(text.split("[settings.pgd]")[0] + settings)
    return file


def run(toy: Path, models: str, out: str = "out", **options: Any) -> Outcome:
    places: dict[str, Any] = {"out": toy.parent / out, "cache": toy.parent / "cache", "device": "cpu"}
    return evaluate(models, THREATS, toy, RunOptions(**places | options))


def test_every_noisy_answer_is_scored_as_by_hand(toy: Path) -> None:
    card = toy_card(toy.parent, "toy-a", more=SMOOTHED)
    outcome = run(toy, card)
    found = {(r.threat, r.image): r for r in read_ledger(outcome.folder)}
    data = load_dataset(toy.parent / "photos", crop=12)
    for image in data.ids:
        sample, record = data.sample(image), found["single", image]
        assert record.singles
        draws = Smoothed(load_network(load_card(card)), 0.05, 9).draws(sample.lr, image, "certificate").clamp(0, 1)
        by_hand = psnr(draws, sample.hr.expand_as(draws), 4)
        assert np.allclose(record.singles.scores["psnr"], to_8bit_psnr(draws, sample.hr), atol=1e-3)
        assert not np.allclose(record.singles.scores["psnr"], by_hand, atol=1e-6)  # rounded to 8 bit, as all scores
        assert record.scores["psnr"] == pytest.approx(np.median(record.singles.scores["psnr"]), abs=1e-4)
        assert (record.singles.sigma, record.singles.k, record.singles.elements) == (0.05, 3, 3 * 40 * 40)
        distance = np.sort((to_8bit(draws) - sample.hr)[..., 4:-4, 4:-4].abs().double().numpy(), axis=0)
        assert np.allclose(record.singles.squares[:-1], (distance**2).mean(axis=(1, 2, 3)), rtol=1e-5)
        attacked = found["single-l2-0.1", image]
        assert attacked.singles
        assert (len(attacked.singles.scores["lpips"]), attacked.singles.squares) == (5, ())
        assert attacked.attack_l2
        assert attacked.loss_attacked
        assert attacked.loss_clean
        assert 0.05 < attacked.attack_l2 <= 0.1 + 1e-6
        assert attacked.loss_attacked > attacked.loss_clean
        assert found["clean", image].singles is None


def to_8bit_psnr(draws: torch.Tensor, hr: torch.Tensor) -> list[float]:
    """Scores of rounded answers, an image at a time."""
    inside = (..., slice(4, -4), slice(4, -4))
    errors = ((draws * 255).round() / 255 - hr)[inside].double()
    return [float(-10 * torch.log10(e.square().mean())) for e in errors]


def test_a_second_run_and_more_workers_change_no_byte(toy: Path) -> None:
    card = toy_card(toy.parent, "toy-a", more=SMOOTHED)
    first = run(toy, card)
    before = {name: (first.folder / name).read_bytes() for name in ("results.csv", "singles.csv")}
    again = run(toy, card)
    assert again.computed == 0
    assert before == {name: (first.folder / name).read_bytes() for name in before}
    other = run(toy, card, "other", cache=toy.parent / "empty", batch_size=1)
    assert (other.folder / "singles.csv").read_bytes() == before["singles.csv"]


def test_an_evaluation_whose_single_answers_are_lost_is_computed_again(toy: Path) -> None:
    card = toy_card(toy.parent, "toy-a", more=SMOOTHED)
    first = run(toy, card)
    file = first.folder / "singles.csv"
    before = file.read_bytes()
    file.write_bytes(before[: len(before) - 70])  # as a full disk may leave it
    again = run(toy, card)
    assert again.computed == 1
    assert file.read_bytes() == before


def test_single_answers_of_other_settings_are_moved_aside(toy: Path) -> None:
    card = toy_card(toy.parent, "toy-a", more=SMOOTHED)
    before = (run(toy, card).folder / "singles.csv").read_bytes()
    folder = run(toy, card, seed=7).folder
    (aside,) = folder.glob("singles-*.csv")
    assert aside.read_bytes() == before
    assert (folder / "singles.csv").read_bytes() != before


def test_a_model_without_smoothing_has_none_and_says_so(toy: Path) -> None:
    outcome = run(toy, toy_card(toy.parent, "toy-a"))
    lines = {(r.threat, r.status) for r in outcome.planned}
    kinds = {("clean", Status.OK), ("single", Status.UNAVAILABLE), ("single-l2-0.1", Status.UNAVAILABLE)}
    assert lines == kinds
    assert {r.reason for r in outcome.planned if r.threat == "single"} == {
        "not median-smoothed: no noisy answers to certify"
    }
    assert not (outcome.folder / "singles.csv").exists()


def test_singles_come_back_as_they_were_written(tmp_path: Path) -> None:
    singles = Singles(0.06, 21, 300, {"psnr": (20.125, 30.5), "ssim": (0.5, 0.25)}, (0.25, 0.5, 1.0))
    path, names = tmp_path / "singles.csv", ("psnr", "ssim", "lpips")
    for key in ("a" * 64, "b" * 64):
        append_singles(path, key, singles, names)
    assert read_singles(path) == {"a" * 64: singles, "b" * 64: singles}
    write_singles(tmp_path / "again.csv", read_singles(path), names)
    assert (tmp_path / "again.csv").read_bytes() == path.read_bytes()
    write_singles(path, {}, names)
    assert not path.exists()
    assert read_singles(path) == {}
