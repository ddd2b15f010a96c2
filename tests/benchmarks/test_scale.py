"""The simulation behind docs/scale.md: cells handed out by benchsr's own code, on a clock of its own."""

from __future__ import annotations

import pytest

from benchmarks import scale
from benchmarks.scale import simulate


def test_simulated_workers_take_what_a_pencil_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "START", 1.0)
    monkeypatch.setattr(scale, "LOSS", 0.0)
    outcome = simulate([5.0, 3.0, 2.0, 2.0], 2)  # 5 + 2 on one, 3 + 2 on the other, after a second of start
    assert outcome.seconds == 1 + 3 + 2 + 2
    assert outcome.ideal == 6
    assert sorted(outcome.answers) == [0, 1, 2, 3]


def test_what_dying_workers_held_is_done_by_others_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "LOSS", 0.05)
    outcome = simulate([10.0] * 400, 20)
    assert sorted(outcome.answers) == list(range(400))
    assert outcome.seconds > 60 + 200  # repeated cells and new starts cost time


def test_a_thousand_workers_are_kept_busy() -> None:
    seconds = [float(10 + k % 50) for k in range(20_000, 0, -1)]
    assert simulate(seconds, 1_000).efficiency > 0.8
