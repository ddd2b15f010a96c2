"""`benchsr certify`: its files, and attacks beside the radius only where both are about images of one size."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import images, tiny_rrdb

from benchsr.commands.certify import Norms, Settings, as_deployed, attack_norms, describe, write_report
from benchsr.defences.certificate import certify
from benchsr.evaluation.ledger import Ledger
from benchsr.evaluation.protocol import Protocol
from benchsr.models.zoo import load_card
from benchsr.results.records import Record, Status, write_results

SIGMA = 0.1


def test_report_files(tmp_path: Path) -> None:
    lr, _ = images(1, 8)
    norms = Norms(8, {"pgd": (4.5, 5.0), "tiny": (0.01, 0.02), "l2-0.05": (0.04, 0.06)})
    lines = write_report(tmp_path / "new", tiny_rrdb(), lr[0], Settings(SIGMA, 0.05, 31), norms)
    made = {"lower.png", "upper.png", "width.png", "curves.png", "certificate.txt"}
    assert {p.name for p in (tmp_path / "new").iterdir()} == made
    text = "\n".join(lines)
    for words in (
        "pgd: mean l2 norm 4.5, largest 5 on LR crops of 8 x 8 pixels, outside the certified radius: not covered.",
        "tiny: mean l2 norm 0.01, largest 0.02 on LR crops of 8 x 8 pixels, inside the certified radius.",
        "l2-0.05: mean l2 norm 0.04, largest 0.06 on LR crops of 8 x 8 pixels, partly outside the certified radius:",
    ):
        assert words in text
    assert "exact median" in text
    assert "covered by bounds made for 0.0839 or more" in text  # the deployed median of 21 draws: 0.839 sigma
    assert (tmp_path / "new" / "certificate.txt").read_text() == text + "\n"


@pytest.mark.parametrize("crop", [6, 16, None])
def test_norms_of_other_sizes_are_told_but_not_judged(crop: int | None) -> None:
    found = certify(tiny_rrdb(), images(1, 8)[0], SIGMA, 0.05, 31)
    text = "\n".join(describe(found, (8, 8), Norms(crop, {"pgd": (4.5, 5.0)})))
    size = f"LR crops of {crop} x {crop} pixels" if crop else "LR images of other sizes"
    assert f"measured on {size} and not comparable with the radius over 8 x 8 pixels: pgd 4.5" in text
    assert (f"--crop {crop}" in text) == (crop is not None)
    assert "side the certified radius" not in text


def test_norms_know_the_crop_of_their_leaderboard(tmp_path: Path) -> None:
    protocol = Protocol.model_validate({"id": "p", "title": "P", "dataset": "photos", "crop": 24})
    key = "0" * 64
    lines = [
        Record("p", "photos", model, "pgd", "cat", Status.OK, attack_l2=norm, key=key)
        for model, norm in (("a", 1.0), ("b", 2.0))
    ]
    write_results(tmp_path / "results.csv", lines)
    assert attack_norms(tmp_path / "results.csv") == Norms(None, {"pgd": (1.5, 2.0)})
    (tmp_path / "results.csv").unlink()
    Ledger(tmp_path, protocol, {}).open()
    write_results(tmp_path / "results.csv", lines)
    assert attack_norms(tmp_path / "results.csv") == Norms(24, {"pgd": (1.5, 2.0)})


def test_it_says_whether_the_certificate_is_of_the_model_as_it_is_deployed() -> None:
    assert "covers no attack on the model as it is" in as_deployed(load_card("compact-esrgan"), 0.06)
    assert "with the same sigma, as a median of 21 draws" in as_deployed(load_card("compact-certsr"), 0.06)
    assert "with sigma 0.06: this certificate covers it under sigma 0.03" in as_deployed(
        load_card("compact-certsr"), 0.03
    )
    assert "a sigma for each threat" in as_deployed(load_card("compact-certsr-oracle"), 0.06)
