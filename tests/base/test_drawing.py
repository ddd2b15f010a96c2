"""Figures: equal bytes for equal figures, and no half-written file."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from benchsr.base.drawing import DPI, drawn, drawn_once, save


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


def test_a_plot_has_few_colours_and_a_photograph_all_of_them(tmp_path: Path) -> None:
    save(line(), tmp_path / "plot.png")
    plain = io.BytesIO()
    line().savefig(plain, format="png", dpi=DPI)
    plot, full = Image.open(tmp_path / "plot.png"), Image.open(plain)
    assert plot.mode == "P"
    assert np.abs(np.asarray(plot.convert("RGB"), int) - np.asarray(full.convert("RGB"), int)).max() <= 8

    figure = Figure(figsize=(2, 2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(np.random.default_rng(0).random((2 * DPI, 2 * DPI, 3)), interpolation="none")
    save(figure, tmp_path / "photograph.png")
    shown = np.asarray(Image.open(tmp_path / "photograph.png").convert("RGB")).reshape(-1, 3)
    assert len(np.unique(shown, axis=0)) > 10_000


def diagonal(end: float) -> Figure | None:
    if end < 0:
        return None
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1], [0, end])
    return figure


def test_a_figure_is_drawn_once_for_the_same_inputs_and_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchsr.base.drawing.cache_dir", lambda: tmp_path)
    calls: list[str] = []

    def counted(figure: Figure, kind: str = "png") -> bytes:
        calls.append(kind)
        return drawn(figure, kind)

    monkeypatch.setattr("benchsr.base.drawing.drawn", counted)
    first = drawn_once(diagonal, 1.0)
    assert first == drawn_once(diagonal, 1.0) == drawn(diagonal(1.0) or line())
    assert calls == ["png"]
    assert drawn_once(diagonal, 2.0) != first
    assert drawn_once(diagonal, 1.0, kind="svg").startswith(b"<?xml")
    assert drawn_once(diagonal, -1.0) == b""
    monkeypatch.setattr("benchsr.base.drawing._made_with", lambda: "other code")
    assert drawn_once(diagonal, 1.0) == first
    assert calls == ["png", "png", "svg", "png"]


HASHED = """
from dataclasses import dataclass
from benchsr.base.drawing import _hash
from benchsr.models.zoo import load_card

@dataclass(frozen=True)
class Row:
    marked: frozenset
    twice: tuple

one = "".join(["a", "b"])
print(_hash((Row(frozenset(map(str, range(50))), (one, {twice})), load_card("bicubic"))))
"""


def test_equal_inputs_are_known_again_in_another_process() -> None:
    """Sets come in an order that hangs on the process, and equal strings may be one or two."""
    hashes = [
        subprocess.run(
            [sys.executable, "-c", HASHED.format(twice=twice)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, twice in (("1", "one"), ("2", "''.join(['a', 'b'])"))
    ]
    assert hashes[0] == hashes[1]
    assert len(hashes[0].strip()) == 64


def test_without_a_cache_folder_a_figure_is_just_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("benchsr.base.drawing.cache_dir", lambda: tmp_path / "file")
    assert drawn_once(diagonal, 1.0) == drawn(diagonal(1.0) or line())
