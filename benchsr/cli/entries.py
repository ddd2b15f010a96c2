"""`benchsr list`, `show` and `fetch`: what there is, and what can be had."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from benchsr.base.errors import InputError
from benchsr.base.registry import Registry
from benchsr.base.text import terminal_table
from benchsr.cli.options import err, out

if TYPE_CHECKING:
    from benchsr.data.cards import DataCard
    from benchsr.defences.table import Defence
    from benchsr.evaluation.protocol import Protocol
    from benchsr.metrics.quality import Metric
    from benchsr.models.cards import Card
    from benchsr.threats.table import ThreatSpec

Rows = Iterator[tuple[str, ...]]


def _scales(scales: Sequence[int | str]) -> str:
    return ", ".join(f"x{scale}" if isinstance(scale, int) else scale for scale in scales)


def _models(cards: Registry[Card]) -> Rows:
    from benchsr.models.zoo import availability

    for card in cards.values():
        state, _, _ = availability(card)[1].partition(":")
        yield card.id, card.title, card.family, _scales([card.scale]), state


def _threats(threats: Registry[ThreatSpec]) -> Rows:
    from benchsr.threats.severities import KINDS, SEVERITIES

    for threat, spec in threats.items():
        if spec.group in KINDS:
            continue
        pairs = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in spec.defaults.items())
        yield threat, spec.title, spec.kind, ", ".join(pairs)
    for name, kind in KINDS.items():
        values = (f"{k}={', '.join(map(str, v))}" for k, v in kind.settings.items())
        yield f"{name}-1 ... -{len(SEVERITIES)}", kind.title, "corruption", "; ".join(values)


def _metrics(metrics: Registry[Metric]) -> Rows:
    return ((m.name, m.title, m.unit, m.direction, m.details) for m in metrics.values())


def _defences(defences: Registry[Defence]) -> Rows:
    for name, defence in defences.items():
        yield name, defence.title, ", ".join(f"{k}={v}" for k, v in defence.defaults.items()), defence.attacked


def _datasets(cards: Registry[DataCard]) -> Rows:
    from benchsr.data.fetching import state

    return ((card.id, card.title, str(card.count), _scales(card.scales), state(card)[1]) for card in cards.values())


def _protocols(protocols: Registry[Protocol]) -> Rows:
    return ((protocol.id, protocol.title, protocol.dataset) for protocol in protocols.values())


LISTINGS: dict[str, tuple[str, tuple[str, ...], Callable[[Registry[Any]], Rows]]] = {
    "models": ("benchsr.models.zoo:zoo", ("id", "title", "family", "scale", "weights"), _models),
    "threats": ("benchsr.threats.table:THREATS", ("id", "title", "kind", "settings"), _threats),
    "metrics": ("benchsr.metrics.quality:METRICS", ("id", "title", "unit", "direction", "computed"), _metrics),
    "defences": ("benchsr.defences.table:DEFENCES", ("id", "title", "settings", "attacked through"), _defences),
    "datasets": ("benchsr.data.cards:DATASETS", ("id", "title", "images", "scales", "files"), _datasets),
    "protocols": ("benchsr.evaluation.protocol:protocols", ("id", "title", "data"), _protocols),
}
"""What can be listed: the table, or what makes it, imported only when it is; columns, and how entries become rows."""


def list_entries(
    kind: Annotated[str, typer.Argument(help="models, threats, metrics, defences, datasets or protocols.")],
) -> None:
    """List what benchsr knows, and which package brought what is not its own."""
    name, columns, rows = Registry("kind of entry", LISTINGS)[kind]
    found = resolve_name(name)
    entries: Registry[Any] = found if isinstance(found, Registry) else found()
    listed = list(rows(entries))
    brought = entries.origins(row[0] for row in listed)
    table = terminal_table(*columns, *["from"] * bool(brought), figures=False)
    for row in listed:
        table.add_row(*map(escape, row), *[brought.get(row[0], "benchsr")] * bool(brought))
    out.print(table)
    err.print("benchsr show ID has all about one", highlight=False)


def show(
    entry: Annotated[str, typer.Argument(metavar="ID", help="A model, threat, metric, defence, data set or protocol.")],
) -> None:
    """Show everything about one entry."""
    from benchsr.data.cards import DATASETS, is_data_card, load_data_card
    from benchsr.data.fetching import state
    from benchsr.defences.table import DEFENCES
    from benchsr.evaluation.protocol import protocols
    from benchsr.metrics.quality import METRICS
    from benchsr.models.zoo import BEHIND, FACTORY, WEIGHTS, availability, load_card, zoo
    from benchsr.threats.table import THREATS

    if is_data_card(entry):
        dataset = load_data_card(entry)
        _tell({"files": state(dataset)[1], "dataset": dataset.model_dump()})
    elif entry.endswith((".toml", *WEIGHTS)) or FACTORY.fullmatch(entry) or entry in zoo() or BEHIND in entry:
        card = load_card(entry)
        recognised = _recognised(card) if entry.endswith(tuple(WEIGHTS)) else {}
        _tell({"weights": availability(card)[1], **recognised, "model": card.model_dump()})
    elif entry in THREATS:
        spec = THREATS[entry]
        _tell({"threat": entry, "title": spec.title, "kind": spec.kind, "settings": spec.defaults})
        if spec.make is not None:
            _explain("\n\n".join(filter(None, (spec.line, inspect.getdoc(spec.make)))))
    elif entry in METRICS:
        metric = METRICS[entry]
        _tell({"metric": entry, "title": metric.title, "unit": metric.unit, "asks": metric.asks})
        _explain(f"{inspect.getdoc(metric.function) or metric.details}\n\n{metric.direction.capitalize()}.")
    elif entry in DEFENCES:
        defence = DEFENCES[entry]
        _tell({"defence": entry, "title": defence.title, "random": defence.random, "settings": defence.defaults})
        _explain(f"{defence.about}\n\nAttacked through: {defence.attacked}.")
    elif entry in protocols():
        protocol = protocols()[entry]
        _tell({"fingerprint": protocol.fingerprint, "protocol": protocol.figures()})
        out.print("\n".join(protocol.description), markup=False, highlight=False)
    else:
        known = [*zoo(), *THREATS, *METRICS, *DEFENCES, *DATASETS, *protocols()]
        Registry("entry", dict.fromkeys(known))[entry]


def _tell(facts: Mapping[str, Any]) -> None:
    """Print what is known as TOML, the language of cards, from which parts can be taken over."""
    import tomlkit

    told = json.loads(json.dumps(facts, default=list))
    out.print(tomlkit.dumps(_without_nothing(told)), markup=False, highlight=False, soft_wrap=True)


def _without_nothing(value: Any) -> Any:
    """`value` less what is None in its tables, for which TOML has no word."""
    if isinstance(value, dict):
        return {k: _without_nothing(v) for k, v in value.items() if v is not None}
    return [_without_nothing(v) for v in value] if isinstance(value, list) else value


def _explain(text: str) -> None:
    """Print paragraphs, without the line breaks that they have in the code."""
    out.print(re.sub(r"(?<!\n)\n(?!\n)", " ", text), markup=False, highlight=False)


def _recognised(card: Card) -> dict[str, object]:
    """What network a weights file holds."""
    from benchsr.models.network import load_network

    network = load_network(card)
    return {"architecture": type(network).__name__, "parameters": sum(p.numel() for p in network.parameters())}


def fetch(
    name: Annotated[str, typer.Argument(help="A data set, or a model whose weights are wanted.")],
    origin: Annotated[
        Path | None,
        typer.Option("--from", help="Take the data set's files over from this folder, found by content or name."),
    ] = None,
) -> None:
    """Download a data set or a model's weights: with progress, resumed after a break, checked against its hash."""
    from benchsr.data.cards import is_data_card
    from benchsr.data.fetching import fetch as fetch_data
    from benchsr.models.zoo import load_card, network_key, zoo

    if is_data_card(name) or not (name.endswith(".toml") or name in zoo()):
        out.print(f"{name}: {fetch_data(name, origin)}")
    elif origin is not None:
        raise InputError(f"--from {origin}: data sets are taken over from a folder; {name} is a model")
    else:
        out.print(f"{name}: network {network_key(load_card(name))}")
