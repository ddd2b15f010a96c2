"""Names of transferred attacks: lines of results.csv about an attack that was made on another model."""

from __future__ import annotations

import logging
from pathlib import Path

from benchsr.results.records import Record, read_results

log = logging.getLogger(__name__)

TRANSFER = "transfer"
"""Folder, inside of a board's, of the ledger that holds them."""

_FROM = "@"


def sent_from(threat: str, source: str) -> str:
    """What stands for the threat of a line: `threat` as it was made on the model `source`."""
    return f"{threat}{_FROM}{source}"


def origin(threat: str) -> tuple[str, str]:
    """The threat and the source that `sent_from` joined."""
    name, _, source = threat.partition(_FROM)
    return name, source


def transferred(folder: Path) -> list[Record]:
    """Lines about transferred attacks that lie with the board in `folder`."""
    path = folder / TRANSFER / "results.csv"
    records, problems = read_results(path) if path.exists() else ([], [])
    for problem in problems:
        log.warning("%s: %s", path, problem)
    return records
