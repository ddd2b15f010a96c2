"""What can be taken out of a leaderboard, and the costs that are put beside it: benchsr export and benchsr costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from itertools import chain, product
from pathlib import Path

import pandas as pd

from benchsr.base.drawing import drawn
from benchsr.base.errors import InputError, UnknownIdError
from benchsr.base.files import write_atomic
from benchsr.commands.costs import Costs
from benchsr.leaderboard import read_leaderboard
from benchsr.leaderboard.export import COSTS, FORMATS, PARETO, SMALLEST_EPS, by_family, exhibit, model_page, read_costs
from benchsr.leaderboard.plots import plot_pareto
from benchsr.leaderboard.tables import FAMILIES, metric_groups
from benchsr.models.zoo import zoo
from benchsr.results.transfers import TRANSFER


def export(name: str, form: str, board: Path, missing: bool = False) -> bytes:
    """A table of the board in the folder `board`, or a model's page (Markdown), in a format of FORMATS.

    `missing`: rows and columns without figures too; in csv and parquet they always are.
    Raises UnknownIdError for other names and formats, InputError for a board without results or a page in another
    format than Markdown.
    """
    write = FORMATS[form]
    read = replace(read_leaderboard(board, zoo()), missing=missing)
    if name in read.cards:
        if form != "markdown":
            raise InputError(f"{name} is a model, and its page is Markdown; leave out --format {form}")
        return model_page(read, read.cards[name]).encode()
    try:
        return write(exhibit(read, board, name))
    except UnknownIdError:
        further = by_family(TRANSFER, read.transfers), by_family(SMALLEST_EPS, read.smallest)
        tables = ", ".join([*read.tables, *chain(*further), COSTS])
        raise UnknownIdError(f"{name!r} is no table of {board} and no model; its tables: {tables}") from None


def write_costs(board: Path, measured: Iterable[Costs]) -> pd.DataFrame:
    """Write costs.csv into the folder `board`, and Pareto plots where it has results; returns what costs.csv holds.

    Rows of earlier measurements at the same LR size stay, unless their model is measured anew.
    """
    fresh = pd.DataFrame([asdict(costs) for costs in measured])
    if (board / f"{COSTS}.csv").is_file():
        old = read_costs(board)
        kept = old[~old["model"].isin(fresh["model"]) & old["lr_side"].isin(fresh["lr_side"])]
        fresh = pd.concat([part for part in (kept, fresh) if len(part)], ignore_index=True)
    counts = ["parameters", "macs_pass", "passes", "macs", "peak_bytes"]
    whole = fresh.astype(dict.fromkeys(counts, "Int64")).sort_values("model")
    write_atomic(board / f"{COSTS}.csv", whole.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    data = read_costs(board)
    if (board / "leaderboard.json").is_file():
        read = read_leaderboard(board, zoo())
        groups = metric_groups(read.protocol.metrics)
        for (family, members), (end, metrics) in product(read.families.items(), groups.items()):
            figure = plot_pareto(family, members, read.grid, read.protocol, data, metrics)
            if figure:
                write_atomic(board / f"{PARETO}{end}{FAMILIES[family][0]}.png", drawn(figure))
    return data
