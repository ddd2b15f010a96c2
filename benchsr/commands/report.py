"""`benchsr report`: tables, plots and report of a results.csv, written again."""

from __future__ import annotations

from pathlib import Path

from benchsr.base.errors import InputError
from benchsr.data.datasets import Dataset, load_dataset
from benchsr.evaluation.ledger import _read
from benchsr.evaluation.protocol import Protocol, load_protocol
from benchsr.leaderboard import LeaderboardInfo, write_leaderboard
from benchsr.models.zoo import zoo


def rewrite(protocol: str | Path, dataset: str | None = None, out: str | Path = "leaderboards") -> Path:
    """Write the tables, plots and report of <out>/<protocol>/results.csv again, and return their folder.

    Raises InputError where there is no such file.
    """
    chosen = load_protocol(protocol).override(dataset=dataset)
    folder = Path(out) / chosen.id
    if not (folder / "results.csv").exists():
        raise InputError(f"{folder / 'results.csv'} does not exist; make it with: benchsr run --protocol {protocol}")
    records = _read(folder / "results.csv")
    data = load_dataset(chosen.dataset, crop=chosen.crop).first(chosen.images)
    write_leaderboard(folder, records, protocol=about_leaderboard(chosen, data), cards=zoo())
    return folder


def about_leaderboard(protocol: Protocol, dataset: Dataset) -> LeaderboardInfo:
    """What a leaderboard's tables and report say of their protocol."""
    return LeaderboardInfo(
        id=protocol.id,
        title=protocol.title,
        fingerprint=protocol.fingerprint,
        description=protocol.description,
        threats=list(protocol.threats),
        images=dataset.ids,
    )
