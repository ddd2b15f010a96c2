"""Figures: equal bytes for equal figures, and no half-written file."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from benchsr.base.drawing import DPI, drawn, save


def line() -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1], [1, 0], label="words")
    return figure


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_equal_figures_are_equal_bytes(kind: str, tmp_path: Path) -> None:
    assert drawn(line(), kind) == drawn(line(), kind)
    save(line(), tmp_path / "new" / f"figure.{kind}")
    assert (tmp_path / "new" / f"figure.{kind}").read_bytes() == drawn(line(), kind)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"figure.{kind}"]


def test_resolution(tmp_path: Path) -> None:
    save(line(), tmp_path / "figure.png")
    assert Image.open(tmp_path / "figure.png").size == (2 * DPI, DPI)
