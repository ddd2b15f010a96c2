"""From names to a leaderboard: plan the cells, reuse what results.csv holds already, compute the rest, write it all."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchsr.cache import AttackCache
from benchsr.data import Dataset, load_dataset
from benchsr.downloads import cache_dir, locked, write_atomic
from benchsr.executors import Executor, load_executor
from benchsr.leaderboard import LeaderboardInfo, write_leaderboard
from benchsr.models import Card, load_card, network_key, sigma_for, zoo
from benchsr.protocol import CODE_VERSION, Protocol, digest, load_protocol
from benchsr.records import append_record, read_results, write_results
from benchsr.threats import THREATS, Threat
from benchsr.types import BenchsrError, InputError, Record, Status
from benchsr.worker import Cell, Worker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One model of the leaderboard: its card, and the key of its network, or why its weights cannot be had."""

    card: Card
    network: str
    reason: str = ""


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


def select_cards(models: str) -> list[Card]:
    """Cards for "all" or for a comma-separated list of ids and paths of card files."""
    names = [name.strip() for name in models.split(",") if name.strip()]
    if models.strip() == "all" or not names:
        return [zoo()[name] for name in zoo().select(models)]
    return [load_card(name) for name in dict.fromkeys(names)]


def select_threats(threats: str, protocol: Protocol) -> list[str]:
    """Ids for "all" of the protocol's threats or a comma-separated list. Raises InputError for one outside of them."""
    if threats.strip() == "all":
        return list(protocol.threats)
    ids = THREATS.select(threats)
    for threat in ids:
        if threat not in protocol.threats:
            raise InputError(
                f"protocol {protocol.id!r} has no threat {threat!r}; it has: {', '.join(protocol.threats)}"
            )
    return ids


def resolve(cards: Iterable[Card]) -> list[Row]:
    """Find each card's weights; a card whose weights cannot be had keeps its row, with the reason."""
    rows = []
    for card in cards:
        try:
            rows.append(Row(card, network_key(card)))
        except BenchsrError as error:
            rows.append(Row(card, f"unavailable:{card.id}", str(error)))
    return rows


def plan(
    protocol: Protocol, rows: Sequence[Row], threats: Sequence[str], dataset: Dataset, limit: int | None = None
) -> tuple[list[Cell], list[Record]]:
    """The cells to compute, network by network, and the records of what cannot be evaluated, with their reasons."""
    cells: list[Cell] = []
    missing: list[Record] = []
    data = {threat: _samples(protocol, threat, dataset) for threat in threats}
    # One attack serves all models that look alike to it: one network, smoothed alike if the attack sees the smoothing.
    groups: dict[tuple[str, str, tuple[float, ...]], list[Row]] = {}
    for network in dict.fromkeys(row.network for row in rows):
        for threat_id in threats:
            for row in (row for row in rows if row.network == network):
                seen = _smoothing(row.card, protocol.threat(threat_id)) if protocol.threat(threat_id).median_of else ()
                groups.setdefault((network, threat_id, seen), []).append(row)
    for (network, threat_id, seen), group in groups.items():
        threat, (samples, absent) = protocol.threat(threat_id), data[threat_id]
        images = samples.ids[:limit] if samples else [""]
        templates = [
            Record(
                protocol=protocol.id,
                dataset=threat.spec.dataset or dataset.id,
                model=row.card.id,
                threat=threat_id,
                image=image,
                status=Status.UNAVAILABLE if row.reason or absent else Status.OK,
                reason=row.reason or absent,
                seed=protocol.seed,
            )
            for image in images
            for row in group
        ]
        if samples is None or group[0].reason:
            missing += [replace(t, key=digest([t.model, t.threat, t.image, t.reason])) for t in templates]
            continue
        cause: dict[str, Any] = {"threat": threat_id, "settings": dict(threat.settings), "seed": protocol.seed}
        cause |= {"quantise_lr": protocol.quantise_lr}
        if threat.objective:
            cause |= {"network": network, "precision": protocol.precision, "smoothing": seen}
        if threat.median_of and not seen:  # a model without noise looks the same from everywhere
            cause["settings"] |= {"median_of": 0, "draws": 1}
        if threat.objective and threat.spec.make:  # attacks of equal settings are one attack, whatever they are called
            cause["threat"] = threat.spec.make.__name__
        attack_keys = {image: digest([CODE_VERSION, cause, samples.sample_key(image)]) for image in images}
        scored = [network, protocol.metrics.model_dump(), protocol.evaluations, protocol.seed]
        smoothing = {row.card.id: _smoothing(row.card, threat) for row in group}
        records = (replace(t, key=digest([attack_keys[t.image], scored, smoothing[t.model]])) for t in templates)
        cells.append(Cell(threat_id, {r.card.id: r.card for r in group}, samples, tuple(records), attack_keys))
    return cells, missing


def _samples(protocol: Protocol, threat_id: str, dataset: Dataset) -> tuple[Dataset | None, str]:
    """The images of a threat: its own paired data set, or the protocol's; None and the reason where absent."""
    own = protocol.threat(threat_id).spec.dataset
    if not own:
        return dataset, ""
    try:
        return load_dataset(own, crop=protocol.crop), ""
    except BenchsrError as error:
        return None, str(error)


def _smoothing(card: Card, threat: Threat) -> tuple[float, ...]:
    """Sigma and number of draws with which a card meets a threat; empty for a model that is not smoothed."""
    sigma = sigma_for(card, threat.like)
    return (sigma, card.smoothing.n) if card.smoothing and sigma else ()


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
    workers: int | None = None,
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
    todo = [s for cell in cells for s in cell.shards((r for r in cell.records if fresh.get(r.key) is r), size)]
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
    `benchsr.executors.load_executor`) and `console` (a rich Console to show progress on).
    Raises BenchsrError for unusable arguments; what goes wrong with one evaluation becomes the reason of its line.
    """
    outcome = evaluate(models, threats, protocol, **options)
    return pd.DataFrame([asdict(record) for record in outcome.planned])


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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _about(protocol: Protocol, rows: Sequence[Row], device: torch.device) -> dict[str, Any]:
    """What run.json says: enough to tell whether two leaderboards can be compared, and to run this one again."""
    packages = ("benchsr", "torch", "torchvision", "torchattacks", "lpips", "spandrel", "scikit-image", "numpy")
    return {
        "protocol": protocol.id,
        "fingerprint": protocol.fingerprint,
        "figures": protocol.figures(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "platform": f"{platform.system()} {platform.machine()}",
        "networks": {row.card.id: row.network for row in rows if not row.reason},
        "unavailable": {row.card.id: row.reason for row in rows if row.reason},
        "started": _now(),
        "finished": None,
    }


def _open_results(folder: Path, protocol: Protocol, about: dict[str, Any]) -> list[Record]:
    """What results.csv of this protocol holds already. One of another fingerprint is moved aside, never mixed in."""
    results, run_json = folder / "results.csv", folder / "run.json"
    if results.exists():
        before = _fingerprint(run_json)
        if before != protocol.fingerprint:
            aside = results.with_name(f"results-{before[:8]}.csv")
            results.replace(aside)
            log.warning("%s was made with other settings; it is kept as %s", results, aside.name)
    write_atomic(run_json, json.dumps(about, indent=2) + "\n")
    return _read(results) if results.exists() else []


def _read(results: Path) -> list[Record]:
    records, problems = read_results(results)
    for problem in problems:
        log.warning("%s: %s", results, problem)
    return records


def _fingerprint(run_json: Path) -> str:
    """The fingerprint of the protocol that the folder's results were made with."""
    try:
        return str(json.loads(run_json.read_text(encoding="utf-8"))["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def _require_ours(folder: Path, protocol: Protocol) -> None:
    if _fingerprint(folder / "run.json") != protocol.fingerprint:
        raise InputError(
            f"{folder} was taken over by a run with other settings, which moved these results aside; give one of them "
            "another --out, and run this command again"
        )


def _kept(known: Sequence[Record], planned: Sequence[Record], dataset: Dataset) -> list[Record]:
    """Rows of earlier runs that this run did not plan, as long as they speak of images that are still there."""
    pairs = {(r.model, r.threat) for r in planned}
    cells = {(r.model, r.threat, r.image) for r in planned}
    return [
        r
        for r in known
        if (r.model, r.threat, r.image) not in cells
        and (r.status is Status.OK or (r.model, r.threat) not in pairs)
        and (r.dataset != dataset.id or r.image in dataset.ids)
    ]
