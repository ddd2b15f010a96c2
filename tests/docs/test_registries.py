"""Every threat and defence has a line in the docs."""

from __future__ import annotations

from registries import PAGE, page


def test_the_page_of_threats_and_defences_is_of_today() -> None:
    assert PAGE.read_text() == page(), "write it anew: python tests/docs/registries.py"
