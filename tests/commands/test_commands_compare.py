"""benchsr compare: what it prints and writes, and how it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from toys import call, records

from benchsr.results.records import Status, write_results


@pytest.fixture
def boards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two boards of ten images: a leads b by 1 dB; in the second, a has lost half of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    base = np.linspace(20, 30, 10)
    for name, lead in (("old", 1.0), ("new", 0.5)):
        made = [r for t in ("clean", "pgd") for r in records("a", t, base + lead) + records("b", t, base)]
        blank = {"status": Status.UNAVAILABLE, "reason": "no weights", "scores": {}}
        made += [replace(r, **blank) for r in records("c", "clean", base)]  # type: ignore[arg-type]
        made = [replace(r, key=("a" if name == "new" and r.model == "a" else "0") * 64) for r in made]
        (tmp_path / "out" / name).mkdir(parents=True)
        write_results(tmp_path / "out" / name / "results.csv", made)
    return tmp_path


def test_compare_models(boards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = "compare a b --protocol old --leaderboards out --out made"
    assert call(monkeypatch, command) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    line = next(line for line in shown.splitlines() if line.startswith("clean"))
    assert line.split() == ["clean", "10", "26.00", "25.00", "+1.00", "[+1.00,", "+1.00]", ".002", ".004", "0.00", "A"]
    data = pd.read_csv(boards / "made" / "compare.csv").set_index(["threat", "metric"])
    assert data.loc[("pgd", "psnr"), "p"] == pytest.approx(2 / 1024, rel=1e-5)
    assert data.loc[("pgd", "lpips"), "better"] == "A"
    assert "+1.00 \\[+1.00, +1.00\\]" in (boards / "made" / "compare.md").read_text()
    with Image.open(boards / "made" / "compare.png") as image:
        assert min(image.size) > 200


def test_compare_boards(boards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "compare out/new out/old --out made") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "a: PSNR (dB), higher is better" in shown
    assert "20 of 40 common evaluations are of the same data, weights and settings" in shown
    data = pd.read_csv(boards / "made" / "compare.csv").set_index(["model", "threat", "metric"])
    assert data.loc[("a", "clean", "psnr"), "difference"] == pytest.approx(-0.5)
    assert data.loc[("a", "clean", "psnr"), "better"] == "B"
    assert data.loc[("b", "clean", "psnr"), "p_holm"] == 1


def test_what_cannot_be_shown_is_said(
    boards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [r for t in ("clean", "pgd") for m, v in (("a", 25.0), ("b", 24.0)) for r in records(m, t, [v] * 6)]
    write_results(boards / "out" / "old" / "results.csv", few)
    assert call(monkeypatch, "compare a b --protocol old --leaderboards out") == 0
    shown = capsys.readouterr().out
    assert "6 images are too few" in shown
    assert "none" in next(line for line in shown.splitlines() if line.startswith("clean"))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("compare a bb --protocol old --leaderboards out", "did you mean 'b'"),
        ("compare a c --protocol old --leaderboards out", "unavailable: no weights"),
        ("compare a b --protocol quick --leaderboards out", "boards here: new, old"),
        ("compare a out/old", "not one of each"),
        ("compare out out/old", "no results.csv"),
    ],
)
def test_refusals(
    command: str,
    message: str,
    boards: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, command) == 2
    assert message in " ".join(capsys.readouterr().err.split())
