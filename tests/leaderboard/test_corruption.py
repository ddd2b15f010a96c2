"""Corruption errors against a computation by hand."""

from __future__ import annotations

import numpy as np
import pytest
from toys import records

from benchsr.leaderboard.corruption import profiles
from benchsr.leaderboard.scores import make_grid
from benchsr.models.zoo import load_card
from benchsr.threats.severities import SEVERITIES


def test_errors_are_relative_to_bicubic_and_paired() -> None:
    rng = np.random.default_rng(0)
    base = {severity: rng.uniform(18, 25, 6) for severity in SEVERITIES}
    made = []
    for severity, psnr in base.items():
        made += records("bicubic", f"shot-{severity}", psnr) + records("esrgan", f"shot-{severity}", psnr + 3)
        made += records("bicubic", f"jpeg-{severity}", psnr) + records("esrgan", f"jpeg-{severity}", psnr - severity)
    grid = make_grid(made, {record.threat: 6 for record in made})
    found = profiles(grid, [load_card("bicubic"), load_card("esrgan"), load_card("certsr")])
    own = {(p.card.id, p.metric): p for p in found}
    assert {card for card, _ in own} == {"bicubic", "esrgan"}, "certsr was not run"
    plain = own["bicubic", "psnr"]
    assert (plain.mean.low, plain.mean.value, plain.mean.high) == pytest.approx((1, 1, 1))
    better = own["esrgan", "psnr"].kinds["shot"]
    assert (better.low, better.value, better.high) == pytest.approx((10**-0.3,) * 3), "3 dB for every image"
    errors = [10 ** (-np.array(list(base.values())) / 10), 10 ** (-(np.array([v - s for s, v in base.items()])) / 10)]
    worse = own["esrgan", "psnr"].kinds["jpeg"]
    assert worse.value == pytest.approx(errors[1].mean() / errors[0].mean())
    assert worse.low < worse.value < worse.high
    assert own["esrgan", "psnr"].mean.value == pytest.approx((better.value + worse.value) / 2)
