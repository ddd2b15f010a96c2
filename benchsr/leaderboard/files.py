"""The folder of a leaderboard: its files are made once of the same figures, and written where they changed.

What makes them is imported where they must be made: a run that finds everything known does not wait for it.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from benchsr.base.drawing import recall, remember
from benchsr.base.files import require_ordinary, sweep, write_changed
from benchsr.defences.table import DEFENCES
from benchsr.leaderboard.tables import CardInfo, LeaderboardInfo, cards_at, paper_folder
from benchsr.metrics.quality import METRICS
from benchsr.results.records import Record
from benchsr.results.transfers import transferred
from benchsr.threats.table import THREATS


def write_leaderboard(
    folder: Path,
    records: Sequence[Record],
    *,
    protocol: LeaderboardInfo,
    cards: Mapping[str, CardInfo],
    missing: bool = False,
) -> None:
    """Write everything that is derived from `records` into `folder`, each file atomically.

    table1, table2, table3, standins (.csv, .md, .png), the same for the compact family with "-compact", plots of whole
    families, paper-comparison.csv, claims.csv, report.md and leaderboard.json (`protocol`); transfer.csv and its plots
    of the transferred attacks that lie there, plots of what sensitivity.csv holds. Files of tables that have
    no rows any more are removed. Rows and columns without figures stand in the .csv alone, unless `missing`. Raises
    InputError for a folder that cannot be written.
    """
    ordered = sorted(records, key=lambda r: (r.model, r.threat, r.image))
    shown, sent = cards_at(protocol.scale, cards), transferred(folder)
    beside = sorted(folder.glob("sensitivity.csv")) + sorted(paper_folder().iterdir())
    made_of = (protocol, shown, ordered, missing, sent, [(path.name, _content(path)) for path in beside])
    ours = not _brought(protocol, shown)
    packed = recall(*made_of) if ours else None
    if packed is None:
        from benchsr.leaderboard.report import Leaderboard, board_files
        from benchsr.leaderboard.sensitivity import read_sensitivity

        packed = pickle.dumps(
            board_files(Leaderboard(protocol, shown, ordered, missing, sent, read_sensitivity(folder)))
        )
        if ours:
            remember(packed, *made_of)
    files: dict[str, str | bytes | None] = pickle.loads(packed)
    for name, content in files.items():
        if content is None:
            (folder / name).unlink(missing_ok=True)
    sweep(folder, files)
    for name, content in files.items():
        if content is not None:
            write_changed(folder / name, content)


def _brought(protocol: LeaderboardInfo, cards: Mapping[str, CardInfo]) -> dict[str, str]:
    """Entries of other packages on the board, whose code and words are in no key of what is remembered."""
    defences = (card.defence.name for card in cards.values() if card.defence)
    return {
        **THREATS.origins(protocol.threats),
        **METRICS.origins(protocol.metrics),
        **DEFENCES.origins(defences),
    }


def _content(path: Path) -> bytes:
    """What a file holds; where it cannot be read, those who need it say so."""
    require_ordinary(path)
    with suppress(OSError):
        return path.read_bytes()
    return b""
