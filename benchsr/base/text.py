"""Text for people to read: Markdown whose strange words are made safe, templates, and tables of the terminal."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment
    from rich.table import Table


def escape(text: object) -> str:
    """Text made safe inside a Markdown table cell: one line, neither HTML nor markup nor a cell's end."""
    return re.sub(r"([\\`*_{}\[\]|~])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], numeric_from: int = 1) -> str:
    """A GitHub Markdown table of cells that are Markdown already; columns from `numeric_from` on are aligned right."""
    rule = ["---" if i < numeric_from else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *rows])


def terminal_table(*columns: str, title: str | None = None, gap: int = 2, figures: bool = True) -> Table:
    """An empty table of the terminal: no frame but a rule under its head, which leaves the width to what is told.

    The first column has names, which are kept whole; the others figures, aligned right, or words, which are wrapped.
    `gap`: characters between two columns, at least 1.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, gap - 1, 0, 0),
    )
    for i, column in enumerate(columns):
        table.add_column(column, no_wrap=i == 0, overflow="fold", justify="right" if figures and i else "left")
    return table


@cache
def templates(package: str, *, is_html: bool = False) -> Environment:
    """The environment of the templates in `package`/templates. HTML is escaped unasked, Markdown by the filter `md`.

    One for each package, which keeps what it has compiled.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=is_html,
    )
    environment.filters["md"] = escape
    return environment
