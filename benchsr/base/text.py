"""Text for Markdown and terminals."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence


def escape(text: object) -> str:
    """Text made safe inside a Markdown table cell: one line, neither HTML nor markup nor a cell's end."""
    return re.sub(r"([\\`*_{}\[\]|~])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], numeric_from: int = 1) -> str:
    """A GitHub Markdown table of cells that are Markdown already; columns from `numeric_from` on are aligned right."""
    rule = ["---" if i < numeric_from else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *rows])
