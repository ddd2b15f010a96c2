"""Text for people to read: Markdown whose strange words are made safe, and templates."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def escape(text: object) -> str:
    """Text made safe inside a Markdown table cell: one line, neither HTML nor markup nor a cell's end."""
    return re.sub(r"([\\`*_{}\[\]|~])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], numeric_from: int = 1) -> str:
    """A GitHub Markdown table of cells that are Markdown already; columns from `numeric_from` on are aligned right."""
    rule = ["---" if i < numeric_from else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *rows])


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
