"""Pictures of figures: their style, and how they are kept."""

from __future__ import annotations

import io

import matplotlib as mpl
from matplotlib.figure import Figure

COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
"""Okabe and Ito's palette (2008), grey for yellow: colour-blind readers tell them apart; markers say it again."""

MARKERS = "osD^vPX*"

DPI = 110


def png(figure: Figure) -> bytes:
    """The figure as PNG, without a date or version in it: the same figure is the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: Figure) -> bytes:
    """The figure as SVG with real text; the same figure is the same bytes."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "benchsr"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return buffer.getvalue()
