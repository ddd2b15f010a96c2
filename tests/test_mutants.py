"""The tests of what figures hang on notice at least nine of ten faults: see mutants.py and its table."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mutants
import pytest


def test_the_table_fits_the_package() -> None:
    table = mutants.read_table()
    assert len({mutant.name for mutant in table}) == len(table) >= 50


def test_a_mutant_of_code_that_is_gone_is_an_error(tmp_path: Path) -> None:
    table = tmp_path / "mutants.toml"
    table.write_text('[[file]]\npath = "benchsr/threats/balls.py"\ntests = []\nmutants = [["no such line", "pass"]]\n')
    with pytest.raises(mutants.MutantError, match=r"no such line.*stands 0 times in benchsr/threats/balls\.py"):
        mutants.read_table(table)


@pytest.mark.slow
@pytest.mark.reliability
def test_nine_of_ten_mutants_are_noticed(record_property: Callable[[str, object], None]) -> None:
    """Faults put into attacks, smoothing, certificate, scores and ledger, one at a time, for the tests to notice."""
    # A process of its own has imported nothing of the package yet.
    ran = subprocess.run([sys.executable, mutants.__file__], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    survivors = [verdict["mutant"] for verdict in found if verdict["state"] == "survived"]
    record_property("mutants", len(found))
    record_property("killed", len(found) - len(survivors))
    record_property("survivors", "; ".join(survivors))
    assert len(survivors) <= 0.1 * len(found), survivors
