"""The Python reference: it names all that is public, and the examples in docstrings come to what they say."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

import benchsr

EXAMPLES = {
    name: test
    for name in benchsr.__all__
    for test in doctest.DocTestFinder(recurse=False).find(getattr(benchsr, name), name)
    if test.examples
}


def test_the_reference_names_all_that_is_public() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference.md").read_text(encoding="utf-8")
    shown = {line.removeprefix("::: ") for line in page.splitlines() if line.startswith("::: ")}
    homes = {name: getattr(benchsr, name).__module__ for name in benchsr.__all__}
    assert [name for name, home in homes.items() if not {home, f"{home}.{name}"} & shown] == []


def test_what_a_newcomer_calls_first_has_an_example() -> None:
    assert EXAMPLES.keys() >= {"load_model", "load_threat", "psnr", "ssim", "smooth", "certify", "Seeded"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_come_to_what_they_say(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    failed = doctest.DocTestRunner().run(EXAMPLES[name]).failed
    assert not failed, capsys.readouterr().out
