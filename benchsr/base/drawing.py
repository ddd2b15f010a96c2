"""How every figure looks and is saved: one palette, one resolution, and equal bytes for equal figures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from benchsr.base.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
"""Okabe and Ito's palette (2008), grey for yellow: colour-blind readers tell them apart; markers say it again."""

MARKERS = "osD^vPX*"
GREY = "#666666"
GRID = "#dddddd"
DPI = 110

_METADATA = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None, "Creator": None},
}


def drawn(figure: Figure, kind: str = "png") -> bytes:
    """The figure as "png", "pdf" or "svg" (with real text, on no background), without a date or version in it."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "benchsr"}):
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=_METADATA[kind], transparent=kind == "svg")
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write the figure to `path`, whose suffix says the format, atomically. Raises InputError where it cannot."""
    write_atomic(path, drawn(figure, path.suffix.removeprefix(".")))
