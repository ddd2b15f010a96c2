"""From names to a leaderboard: plan the cells, reuse what results.csv holds already, compute the rest, write it all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchsr.base.errors import InputError
from benchsr.base.files import cache_dir
from benchsr.commands.report import about_leaderboard
from benchsr.data.datasets import Dataset, load_dataset
from benchsr.defences.table import DEFENCES
from benchsr.evaluation.cache import AttackCache
from benchsr.evaluation.executors import Executor, InProcess
from benchsr.evaluation.ledger import Ledger, environment, identity
from benchsr.evaluation.options import RunOptions
from benchsr.evaluation.plan import Cell, Row, keys_today, plan, plan_transfer, plugins, resolve, transferable
from benchsr.evaluation.protocol import Protocol, load_protocol, select_threats
from benchsr.evaluation.worker import Worker, slowest_first
from benchsr.leaderboard import write_leaderboard
from benchsr.models.cards import Card
from benchsr.models.live import Model, require_picklable, select
from benchsr.models.zoo import availability, defended, defended_cards, zoo, zoo_at
from benchsr.results.records import Record, Status, flat
from benchsr.results.transfers import TRANSFER

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Outcome:
    """What a run did. `records` are all of the leaderboard in `folder`, `planned` those of this run, `cards` by id;
    `transferred` those of this run about attacks made on other models.
    """

    folder: Path
    records: list[Record]
    planned: list[Record]
    computed: int
    cards: Mapping[str, Card]
    transferred: Sequence[Record] = ()

    @property
    def failures(self) -> list[Record]:
        """Evaluations of this run that could have been done but went wrong."""
        return [record for record in (*self.planned, *self.transferred) if record.status is Status.FAILED]


def evaluate(
    models: str | Mapping[str, Model] = "all",
    threats: str = "all",
    protocol: str | Path | Protocol = "quick",
    options: RunOptions = RunOptions(),  # noqa: B008  # frozen
) -> Outcome:
    """Run the benchmark and write the leaderboard; `run` documents the arguments."""
    console = options.console or Console(quiet=True)
    chosen = (protocol if isinstance(protocol, Protocol) else load_protocol(protocol)).override(
        scale=options.scale,
        dataset=options.dataset,
        seed=options.seed,
        precision=options.precision,
        perceptual_net=options.perceptual_net,
    )
    threat_ids, cards = select_threats(threats, chosen), select(models, options.trust_code, chosen.scale)
    if options.transfer and not transferable(chosen, threat_ids):
        raise InputError(f"--transfer needs an attack among --threats; {threats} are none")
    around = DEFENCES.select(options.defence) if options.defence else []
    bare = {card.id for card in cards if not card.guarded} or {card.id for card in cards}  # the latter are refused
    cards = [each for card in cards for each in (card, *(defended(card, name) for name in around if card.id in bare))]
    executor = options.load_executor()
    if not isinstance(executor, InProcess):
        require_picklable(cards)
    data = load_dataset(chosen.dataset, crop=chosen.crop, scale=chosen.scale).first(chosen.images)
    with console.status("Looking for weights"):
        rows = resolve(cards)
    cells, missing = plan(chosen, rows, threat_ids, data, executor.device.type, options.limit)
    planned = [record for cell in cells for record in cell.records] + missing

    made_in = environment(executor.device, plugins(chosen, threat_ids, cards).values())
    ledger = Ledger(Path(options.out) / chosen.board, chosen, made_in)
    known = ledger.open()
    found = {**zoo(), **zoo_at(chosen.scale), **defended_cards(dict.fromkeys(r.model for r in known))}
    if {(identity(r), r.key) for r in known} - {(identity(r), r.key) for r in planned}:  # else all of it is today's
        others = [found[m] for m in {r.model for r in known} - {card.id for card in cards} if m in found]
        told = rows + resolve(card for card in others if availability(card)[0])
        ledger.retire(keys_today(chosen, told, data, planned))
    done = {record.key: record for record in known if record.status is Status.OK}
    fresh = {r.key: r for cell in cells for r in cell.records if r.key not in done}
    said = f"{len(rows)} models x {len(threat_ids)} threats; {_counts(planned, fresh, done)}"
    console.print(f"{chosen.heading}: {said}", markup=False)
    _compute(cells, fresh, done, executor, ledger, options)
    transferred: list[Record] = []
    if options.transfer:
        transferred = _transfer(rows, threat_ids, data, executor, ledger, done, options)

    cards_by_id = {**found, **{card.id: card.described for card in cards}}
    with ledger.merged(planned, done) as records:
        write_leaderboard(ledger.folder, records, protocol=about_leaderboard(chosen, data), cards=cards_by_id)
    here = {identity(record) for record in planned}
    ours = [r for r in records if identity(r) in here]
    return Outcome(ledger.folder, records, ours, len(fresh), cards_by_id, transferred)


def _transfer(
    rows: Sequence[Row],
    threats: Sequence[str],
    data: Dataset,
    executor: Executor,
    board: Ledger,
    white_box: Mapping[str, Record],
    options: RunOptions,
) -> list[Record]:
    """Score what was attacked for each of `rows` on all of them, into the ledger beside the board's; this run's lines.

    `white_box`: what the board has by key, in which the attacks on the models themselves are found.
    """
    ledger = Ledger(board.folder / TRANSFER, board.protocol, board.made_in)
    cells, _ = plan_transfer(board.protocol, rows, threats, data, executor.device.type, options.limit)
    planned = [record for cell in cells for record in cell.records]
    known = ledger.open()
    ledger.retire(keys_today(board.protocol, rows, data, planned, plan_transfer))
    done = {**white_box, **{record.key: record for record in known if record.status is Status.OK}}
    fresh = {r.key: r for r in planned if r.key not in done}
    if options.console:
        options.console.print(f"Transfer, attacks on each model against all: {_counts(planned, fresh, done)}")
    _compute(cells, fresh, done, executor, ledger, options)
    here = {identity(record) for record in planned}
    with ledger.merged(planned, done) as records:
        return [record for record in records if identity(record) in here]


def _counts(planned: Sequence[Record], fresh: Mapping[str, Record], done: Mapping[str, Record]) -> str:
    """How many evaluations of a plan are to be done, known and so on, in words."""
    keys = [record.key for record in planned if record.status is Status.OK]
    known = sum(key in done for key in keys)
    counts = {
        "evaluations to do": len(fresh),
        "known already": known,
        "equal to another row's": len(keys) - known - len(fresh),
        "unavailable": sum(record.status is Status.UNAVAILABLE for record in planned),
        "failed": sum(record.status is Status.FAILED for record in planned),
    }
    return ", ".join(f"{n} {what}" for what, n in counts.items() if n or what == "evaluations to do")


def _compute(
    cells: Sequence[Cell],
    fresh: Mapping[str, Record],
    done: dict[str, Record],
    executor: Executor,
    ledger: Ledger,
    options: RunOptions,
) -> None:
    """Compute the evaluations `fresh`, write each into the ledger as it is done, and add it to `done`."""
    console = options.console or Console(quiet=True)
    make = partial(
        Worker,
        ledger.protocol,
        cache=AttackCache(options.cache or cache_dir() / "attacked"),
        batch_size=options.batch_size,
        memory_budget=None if options.memory_budget is None else options.memory_budget * 1e9,
    )
    size = options.batch_size if executor.device.type == "cuda" else 1  # the CPU gains nothing from more images at once
    # Rows that come to the same figure, such as a smoothed model where its sigma is 0, share a key.
    open_cells = [cell for cell in cells if any(fresh.get(r.key) is r for r in cell.records)]
    todo = [
        shard
        for cell in slowest_first(open_cells, ledger.protocol)
        for shard in cell.shards((r for r in cell.records if fresh.get(r.key) is r), size)
    ]
    with _progress(console) as progress, closing(executor.run(make, todo)) as answers:
        bar = progress.add_task("", total=len(fresh), visible=bool(fresh))
        for record in answers:
            done[record.key] = ledger.append(record)
            progress.update(bar, advance=1, description=f"{record.model} / {record.threat}")
            if record.status is Status.FAILED:
                where = f"{record.model} / {record.threat} / {record.image}"
                console.print(f"[red]failed[/] {escape(where)}: {escape(record.reason)}")  # a stranger's words


def run(
    models: str | Mapping[str, Model] = "all",
    threats: str = "all",
    protocol: str | Path | Protocol = "quick",
    *,
    scale: int | None = None,
    defence: str | None = None,
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
    trust_code: bool = False,
    transfer: bool = False,
) -> pd.DataFrame:
    """Run the benchmark and return this run's lines of results.csv, one for each model x threat x image.

    `models` and `threats`: "all" or comma-separated ids. Models may also be paths of cards (.toml) or weights files
    (.safetensors, .pth), each as [ID=]MODEL; or a mapping from ids to any of these or to live networks, as in
    {"mine": net, "bicubic": "bicubic"} (see `benchsr.models.live.live`). `trust_code`: package.module:factory is a
    model too, and its code is run. `protocol`: an id or the path of a protocol file. `scale`: another super-resolution
    factor, 2, 3, 4 or 8; `defence`: entries of the table of defences, each around each model too. `dataset`: another
    data set or folder; `limit`: first images only; `out`: the folder that gets <protocol>/results.csv and the rest
    (<protocol>-x2 and so on at another scale than 4); `cache`: folder or fsspec address of attacked images; `device`:
    "auto", "cpu", "cuda"; `precision`: "fp32", "bf16"; `memory_budget`: GB for attacks, of each worker (default: most
    of what is free); `perceptual_net`: "vgg16", "vgg19"; `executor`: "local", "ray", or an Executor; `workers`,
    `cell_timeout` and `ray_address`: see `benchsr.evaluation.executors.load_executor`; `console`: a rich Console to
    show progress on; `transfer`: score the attacks on each model on all of them too, into <protocol>/transfer/.
    Raises BenchsrError for unusable arguments; what goes wrong with one evaluation becomes the reason of its line.
    """
    import pandas as pd

    given = {name: value for name, value in locals().items() if name in RunOptions.__dataclass_fields__}
    outcome = evaluate(models, threats, protocol, RunOptions(**given))
    return pd.DataFrame([flat(record) for record in outcome.planned])


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
