"""`benchsr report`: tables, plots and report of a results.csv, written again."""

from __future__ import annotations

from pathlib import Path

from benchsr.base.errors import InputError
from benchsr.data.datasets import Dataset, load_dataset
from benchsr.evaluation.ledger import read_ledger, stored_protocol
from benchsr.evaluation.protocol import Protocol, load_protocol
from benchsr.leaderboard import LeaderboardInfo, write_leaderboard
from benchsr.models.zoo import defended_cards, zoo


def rewrite(
    protocol: str | Path, dataset: str | None = None, out: str | Path = "leaderboards", missing: bool = False
) -> Path:
    """Write the tables, plots and report of <out>/<protocol>/results.csv again, and return their folder.

    `missing`: tables show their rows and columns without figures too.
    Settings and fingerprint are those that the results were made with. Raises InputError where there are no results, or
    where `protocol` is a file with other settings, or `dataset` another one.
    """
    asked = load_protocol(protocol)
    folder = Path(out) / asked.board
    made, fingerprint = stored_protocol(folder)
    wrong = dataset is not None and dataset != made.dataset
    if wrong or (str(protocol).endswith(".toml") and asked.fingerprint != fingerprint):
        raise InputError(
            f"{folder / 'results.csv'} was made with other settings (fingerprint {fingerprint[:8]}, {made.dataset}): "
            f"report on them with --protocol {made.board} alone, or run the benchmark with yours"
        )
    records = read_ledger(folder)
    if strange := [r for r in records if (r.protocol, r.seed) != (made.board, made.seed)]:
        raise InputError(
            f"{folder / 'results.csv'}: a line of protocol {strange[0].protocol}, seed {strange[0].seed}, was not made "
            f"with {folder / 'protocol.json'}; run the benchmark again"
        )
    data = load_dataset(made.dataset, crop=made.crop, scale=made.scale).first(made.images)
    write_leaderboard(
        folder,
        records,
        protocol=about_leaderboard(made, data, fingerprint),
        cards={**zoo(), **defended_cards(r.model for r in records)},
        missing=missing,
    )
    return folder


def about_leaderboard(protocol: Protocol, dataset: Dataset, fingerprint: str | None = None) -> LeaderboardInfo:
    """What a leaderboard's tables and report say of their protocol; `fingerprint`: that of results made earlier."""
    return LeaderboardInfo(
        id=protocol.board,
        title=protocol.heading,
        fingerprint=fingerprint or protocol.fingerprint,
        description=protocol.description,
        threats=list(protocol.threats),
        images=dataset.ids,
        metrics=protocol.metrics.names,
        scale=protocol.scale,
    )
