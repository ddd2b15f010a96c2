"""Writes docs/registries.md, a line for each threat and defence: `python tests/docs/registries.py`."""

from __future__ import annotations

from pathlib import Path

from benchsr.base.text import escape, markdown_table
from benchsr.defences.table import DEFENCES
from benchsr.threats.table import THREATS

PAGE = Path(__file__).parents[2] / "docs" / "registries.md"

HEAD = """# Threats and defences

Written by `python tests/docs/registries.py`. Not to be edited by hand. `benchsr show ID` has the settings of each.
"""


def page() -> str:
    """The page: threats that do the same at several sizes share a line."""
    threats: dict[tuple[str, str], list[str]] = {}
    for name, threat in THREATS.items():
        threats.setdefault((threat.group or threat.title, threat.about), []).append(name)
    lines = [
        [", ".join(f"`{name}`" for name in names), escape(title), escape(about)]
        for (title, about), names in threats.items()
    ]
    defences = [[f"`{name}`", escape(defence.title), escape(defence.about)] for name, defence in DEFENCES.items()]
    head = ["id", "", "what it does"]
    return "\n".join(
        [HEAD, "## Threats\n", markdown_table(head, lines, 3), "\n## Defences\n", markdown_table(head, defences, 3), ""]
    )


if __name__ == "__main__":
    PAGE.write_text(page())
