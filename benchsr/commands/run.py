"""From names to a leaderboard: plan the cells, reuse what results.csv holds already, compute the rest, write it all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchsr.base.errors import InputError
from benchsr.base.files import cache_dir, locked, write_atomic
from benchsr.commands.report import about_leaderboard
from benchsr.data.datasets import load_dataset
from benchsr.evaluation.cache import AttackCache
from benchsr.evaluation.executors import Executor, load_executor
from benchsr.evaluation.ledger import _about, _kept, _now, _open_results, _read, _require_ours
from benchsr.evaluation.plan import plan, resolve
from benchsr.evaluation.protocol import Protocol, load_protocol, select_threats
from benchsr.evaluation.worker import Worker, slowest_first
from benchsr.leaderboard import write_leaderboard
from benchsr.models.cards import Card
from benchsr.models.zoo import select_cards, zoo
from benchsr.results.records import Record, Status, append_record, write_results


@dataclass(frozen=True)
class Outcome:
    """What a run did. `records` are all of the leaderboard in `folder`, `planned` those of this run, `cards` by id."""

    folder: Path
    records: list[Record]
    planned: list[Record]
    computed: int
    cards: Mapping[str, Card]

    @property
    def failures(self) -> list[Record]:
        """Evaluations of this run that could have been done but went wrong."""
        return [record for record in self.planned if record.status is Status.FAILED]


def evaluate(
    models: str = "all",
    threats: str = "all",
    protocol: str | Path | Protocol = "quick",
    *,
    dataset: str | None = None,
    limit: int | None = None,
    out: str | Path = "leaderboards",
    cache: str | Path | None = None,
    device: str = "auto",
    precision: str | None = None,
    batch_size: int = 8,
    memory_budget: float | None = None,
    seed: int | None = None,
    perceptual_net: str | None = None,
    executor: str | Executor = "local",
    workers: int | str | None = None,
    cell_timeout: float | None = None,
    ray_address: str | None = None,
    console: Console | None = None,
) -> Outcome:
    """Run the benchmark and write the leaderboard; `run` documents the arguments. `console` None: no progress shown."""
    console = console or Console(quiet=True)
    base = protocol if isinstance(protocol, Protocol) else load_protocol(protocol)
    chosen = base.override(dataset=dataset, seed=seed, precision=precision, perceptual_net=perceptual_net)
    if limit is not None and limit < 1:
        raise InputError(f"--limit must be at least 1; got {limit}")
    if batch_size < 1:
        raise InputError(f"--batch-size must be at least 1; got {batch_size}")
    if memory_budget is not None and not memory_budget > 0:
        raise InputError(f"--memory-budget must be positive; got {memory_budget}")
    if isinstance(executor, str):
        executor = load_executor(executor, device, workers, cell_timeout, ray_address)
    threat_ids = select_threats(threats, chosen)
    cards = select_cards(models)
    data = load_dataset(chosen.dataset, crop=chosen.crop).first(chosen.images)
    folder = Path(out) / chosen.id

    with console.status("Looking for weights"):
        rows = resolve(cards)
    cells, missing = plan(chosen, rows, threat_ids, data, limit)
    about = _about(chosen, rows, executor.device)
    with locked(folder / "results.csv"):
        known = _open_results(folder, chosen, about)
    by_key = {record.key: record for record in known if record.status is Status.OK}
    planned = [record for cell in cells for record in cell.records] + missing
    fresh = {r.key: r for cell in cells for r in cell.records if r.key not in by_key}
    console.print(
        f"{chosen.title}: {len(rows)} models x {len(threat_ids)} threats; {len(fresh)} evaluations to do, "
        f"{len(planned) - len(missing) - len(fresh)} known already, {len(missing)} unavailable",
        markup=False,
    )

    make = partial(
        Worker,
        chosen,
        cache=AttackCache(cache or cache_dir() / "attacked"),
        batch_size=batch_size,
        memory_budget=None if memory_budget is None else memory_budget * 1e9,
    )
    size = batch_size if executor.device.type == "cuda" else 1  # the CPU gains nothing from more images at once
    # Rows that come to the same figure, such as a smoothed model where its sigma is 0, share a key.
    todo = [
        s
        for cell in slowest_first(cells, chosen)
        for s in cell.shards((r for r in cell.records if fresh.get(r.key) is r), size)
    ]
    results = folder / "results.csv"
    with _progress(console) as progress, closing(executor.run(make, todo)) as done:
        bar = progress.add_task("", total=len(fresh), visible=bool(fresh))
        for record in done:
            with locked(results):
                _require_ours(folder, chosen)
                append_record(results, record)
            by_key[record.key] = record
            progress.update(bar, advance=1, description=f"{record.model} / {record.threat}")
            if record.status is Status.FAILED:
                where = f"{record.model} / {record.threat} / {record.image}"
                console.print(f"[red]failed[/] {escape(where)}: {escape(record.reason)}")  # a stranger's words

    cards_by_id = {**zoo(), **{card.id: card for card in cards}}
    with locked(results):
        _require_ours(folder, chosen)
        known = _read(results) if results.exists() else []  # with what other runs have added meanwhile
        by_key |= {record.key: record for record in known if record.status is Status.OK}
        ours = [replace(by_key.get(r.key, r), model=r.model, threat=r.threat) for r in planned]
        records = _kept(known, planned, data) + ours
        write_results(results, records)
        write_leaderboard(folder, records, protocol=about_leaderboard(chosen, data), cards=cards_by_id)
        write_atomic(folder / "run.json", json.dumps({**about, "finished": _now()}, indent=2) + "\n")
    return Outcome(folder, records, ours, len(fresh), cards_by_id)


def run(
    models: str = "all",
    threats: str = "all",
    protocol: str | Path | Protocol = "quick",
    **options: Any,
) -> pd.DataFrame:
    """Run the benchmark and return this run's lines of results.csv, one for each model x threat x image.

    `models` and `threats`: "all" or comma-separated ids (models: also paths of card files). `protocol`: an id or the
    path of a protocol file. Options, all by keyword: `dataset` (another data set or folder), `limit` (first images
    only), `out` (default "leaderboards": the folder that gets <protocol>/results.csv and the rest), `cache` (folder or
    fsspec address of attacked images), `device` ("auto", "cpu", "cuda"), `precision` ("fp32", "bf16"), `batch_size`,
    `memory_budget` (GB for attacks, of each worker; default: most of what is free), `seed`, `perceptual_net` ("vgg16",
    "vgg19"), `executor` ("local", "ray", or an Executor), `workers`, `cell_timeout` and `ray_address` (see
    `benchsr.evaluation.executors.load_executor`) and `console` (a rich Console to show progress on).
    Raises BenchsrError for unusable arguments; what goes wrong with one evaluation becomes the reason of its line.
    """
    outcome = evaluate(models, threats, protocol, **options)
    return pd.DataFrame([asdict(record) for record in outcome.planned])


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
    )
