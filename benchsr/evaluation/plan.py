"""From models and threats to cells: what is to be computed, under which keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchsr.base.errors import BenchsrError, InputError, UnavailableError
from benchsr.base.files import digest
from benchsr.base.registry import Registry
from benchsr.data.datasets import Dataset, load_dataset
from benchsr.defences.table import DEFENCES, deployment
from benchsr.evaluation.protocol import CODE_VERSION, Protocol
from benchsr.metrics.perceptual import TRUNKS, trunk_sha256
from benchsr.metrics.quality import METRICS
from benchsr.models.cards import MRS, Card, Deployment
from benchsr.models.zoo import network_key, zoo
from benchsr.results.records import Record, Status
from benchsr.results.transfers import sent_from
from benchsr.threats.table import THREATS, Threat


@dataclass(frozen=True)
class Others:
    """Images that an attack is given beside the one that it attacks, in order; `key`: of what it finds on them."""

    ids: tuple[str, ...]
    key: str


@dataclass(frozen=True)
class Cell:
    """One threat against one network on the images of a data set, scored for every model that deploys the network.

    `records` are templates, one for each (model, image), that hold all that is known before the work starts.
    `attack_keys` maps images to the keys of their attacked LR, `others` to what else an attack on them is given.
    `source`: another model, whose network is attacked in their place (a transferred attack).
    """

    threat: str
    models: Mapping[str, Card]
    samples: Dataset
    records: tuple[Record, ...]
    attack_keys: Mapping[str, str]
    others: Mapping[str, Others] = field(default_factory=dict)
    source: Card | None = None

    @property
    def network_card(self) -> Card:
        """A card whose weights are the network's."""
        return next(iter(self.models.values()))

    @property
    def attacked_card(self) -> Card:
        """A card whose weights are those of the network that is attacked."""
        return self.source or self.network_card

    def shards(self, todo: Iterable[Record], size: int) -> list[Cell]:
        """This cell cut into cells of `size` images, holding only those of its records that are in `todo`."""
        by_image: dict[str, list[Record]] = {}
        for record in todo:
            by_image.setdefault(record.image, []).append(record)
        images = list(by_image)
        return [
            replace(
                self,
                records=tuple(record for image in part for record in by_image[image]),
                attack_keys={image: self.attack_keys[image] for image in part},
                others={image: self.others[image] for image in part if image in self.others},
            )
            for part in (images[start : start + size] for start in range(0, len(images), size))
        ]


@dataclass(frozen=True)
class Row:
    """One model of the leaderboard: its card, and the key of its network, or why it has none.

    `status`: unavailable where the weights cannot be had here, failed where they are not what they should be.
    """

    card: Card
    network: str
    reason: str = ""
    status: Status = Status.OK


@dataclass(frozen=True)
class Column:
    """One threat of the leaderboard: as the protocol sets it, and its images, or why there are none."""

    threat: Threat
    samples: Dataset | None
    reason: str = ""
    status: Status = Status.OK


def _lacking(error: BenchsrError) -> tuple[str, Status]:
    """Why something is not there: it cannot be had, or something is wrong with it."""
    return str(error), Status.UNAVAILABLE if isinstance(error, UnavailableError) else Status.FAILED


def resolve(cards: Iterable[Card]) -> list[Row]:
    """Find each card's weights; a card without any keeps its row, with the reason.

    Raises InputError, naming both files, for two cards of one id.
    """
    rows: dict[str, Row] = {}
    for card in cards:
        if card.id in rows:
            files = " and ".join(str(c.file) for c in (rows[card.id].card, card))
            raise InputError(f"two models have the id {card.id!r}: {files}; give one of the cards another id and name")
        try:
            rows[card.id] = Row(card, network_key(card))
        except BenchsrError as error:
            rows[card.id] = Row(card, f"none:{card.id}", *_lacking(error))
    return list(rows.values())


def columns(protocol: Protocol, threats: Sequence[str], dataset: Dataset) -> list[Column]:
    """The threats with their images: those of the protocol's data set, or of a threat's own paired one."""
    found = []
    for threat in map(protocol.threat, threats):
        samples: Dataset | None = dataset
        reason, status = "", Status.OK
        try:
            if threat.spec.dataset:
                samples = load_dataset(threat.spec.dataset, crop=protocol.crop, scale=protocol.scale)
            _perceptual_key(threat)
        except BenchsrError as error:
            samples, (reason, status) = None, _lacking(error)
        found.append(Column(threat, samples, reason, status))
    return found


def _perceptual_key(threat: Threat) -> str:
    """The hash of the weights of the loss that the threat raises; empty where it needs none.

    It is known without reading them, where it can be: a plan of everything must not wait for a fetch.
    """
    objective = threat.objective
    if not objective or not objective.perceptual_weight:
        return ""
    return TRUNKS[objective.net].sha256 or trunk_sha256(objective.net)


def plan(
    protocol: Protocol,
    rows: Sequence[Row],
    threats: Sequence[str],
    dataset: Dataset,
    device: str,
    limit: int | None = None,
) -> tuple[list[Cell], list[Record]]:
    """The cells to compute, network by network, and the records of what cannot be evaluated, with their reasons.

    `device`: "cpu" or "cuda", whose kernels round differently. How many threads compute is in no key: each worker
    takes one on the CPU.
    """
    cells: list[Cell] = []
    missing: list[Record] = []
    found = columns(protocol, threats, dataset)
    for network in dict.fromkeys(row.network for row in rows):
        for column in found:
            # One attack serves all models that look alike to it: defended alike, if the attack sees the defence.
            groups: dict[tuple[Deployment | None, str], list[Row]] = {}
            for row in (_asked(row, column.threat) for row in rows if row.network == network):
                groups.setdefault((_seen(row, column.threat), row.reason), []).append(row)
            for group in groups.values():
                templates = _templates(protocol, column, group, dataset, limit)
                if column.samples is None or group[0].reason:
                    missing += [replace(t, key=digest([t.model, t.threat, t.image, t.reason])) for t in templates]
                else:
                    cells.append(_cell(protocol, column.threat, column.samples, group, templates, device))
    return cells, missing


def plan_transfer(
    protocol: Protocol,
    rows: Sequence[Row],
    threats: Sequence[str],
    dataset: Dataset,
    device: str,
    limit: int | None = None,
) -> tuple[list[Cell], list[Record]]:
    """As `plan`: each attack among `threats` on each row, scored for every row, in cells of one network and source.

    Their records' threats are named by `sent_from`. Keys are those of `plan`, so that a row under the attack on itself
    is the line that `plan` has. What cannot be evaluated there is left out here.
    """
    cells: list[Cell] = []
    here = [row for row in rows if not row.reason]
    for column in columns(protocol, transferable(protocol, threats), dataset):
        if column.samples is None:
            continue
        for source in here:
            for network in dict.fromkeys(row.network for row in here):
                group = [row for row in here if row.network == network]
                templates = _templates(protocol, column, group, dataset, limit)
                named = [replace(t, threat=sent_from(t.threat, source.card.id)) for t in templates]
                cells.append(_cell(protocol, column.threat, column.samples, group, named, device, source))
    return cells, []


def transferable(protocol: Protocol, threats: Iterable[str]) -> list[str]:
    """Those of `threats` that attack one network and whose result any other can be shown."""
    return [t for t in threats if protocol.threat(t).objective and not protocol.threat(t).singles]


def _seen(row: Row, threat: Threat) -> Deployment | None:
    """The defence that `threat` sees around a row's network; None where it looks at the network alone."""
    return deployment(row.card, threat.like) if threat.median_of else None


def _asked(row: Row, threat: Threat) -> Row:
    """The row as the threat finds it: one that asks for single noisy answers finds none where no median is taken."""
    deployed = deployment(row.card, threat.like)
    if row.reason or not threat.singles or (deployed and deployed.defence == MRS):
        return row
    return replace(row, reason="not median-smoothed: no noisy answers to certify", status=Status.UNAVAILABLE)


def _templates(
    protocol: Protocol, column: Column, group: Sequence[Row], dataset: Dataset, limit: int | None
) -> list[Record]:
    """What is known of each evaluation before the work starts."""
    return [
        Record(
            protocol=protocol.board,
            dataset=column.threat.spec.dataset or dataset.id,
            model=row.card.id,
            threat=column.threat.id,
            image=image,
            status=max((row.status, column.status), key=list(Status).index),
            reason=row.reason or column.reason,
            seed=protocol.seed,
            network="" if row.reason else row.network[:12],
        )
        for image in (column.samples.ids[:limit] if column.samples else [""])
        for row in group
    ]


def facing(threat: Threat, card: Card) -> Threat:
    """`threat` with the draws that it takes to know `card`'s defence.

    A model without noise looks the same from everywhere. Of a defence that pools n draws the attack is shown fewer;
    of any other random one it averages its loss over as many answers instead.
    """
    seen = deployment(card, threat.like)
    pools = "n" in dict(seen.settings) if seen else card.random
    if not threat.median_of or pools:
        return threat
    random = card.random or (seen is not None and DEFENCES[seen.defence].random)
    draws = max(threat.median_of, int(threat.settings.get("draws", 1)))
    return replace(threat, settings={**threat.settings, "median_of": int(random), "draws": draws if random else 1})


def _attacks(
    protocol: Protocol, threat: Threat, samples: Dataset, row: Row, images: Sequence[str], device: str
) -> tuple[dict[str, str], dict[str, Others]]:
    """Image -> the key of its LR after `threat` against the network of `row`, and what else the attack is given."""
    seen = _seen(row, threat)
    settings = {name: value for name, value in threat.settings.items() if name != "singles"}  # of scoring, below
    cause: dict[str, Any] = {"threat": threat.id, "settings": settings, "seed": protocol.seed}
    cause |= {"quantise_lr": protocol.quantise_lr, **_origin(THREATS, threat.id)}
    if threat.objective:
        cause |= {"network": row.network, "precision": protocol.precision, "smoothing": _keyed(seen), "device": device}
        cause |= {"perceptual": _perceptual_key(threat)}
        cause["settings"] = dict(facing(threat, row.card).settings)
        if seen and not DEFENCES[seen.defence].differentiable:
            cause["gradient"] = "straight-through"
    if threat.objective and threat.spec.make:  # attacks of equal settings are one attack, whatever they are called
        cause["threat"] = threat.spec.make.__name__
    others = _others(threat, samples, images, cause)
    return {
        image: digest([CODE_VERSION, cause, samples.sample_key(image), *([others[image].key] if others else [])])
        for image in images
    }, others


def _cell(
    protocol: Protocol,
    threat: Threat,
    samples: Dataset,
    group: Sequence[Row],
    templates: Sequence[Record],
    device: str,
    source: Row | None = None,
) -> Cell:
    images = list(dict.fromkeys(template.image for template in templates))
    attack_keys, others = _attacks(protocol, threat, samples, source or group[0], images, device)
    metrics = protocol.metrics
    scored: list[Any] = [group[0].network, metrics.model_dump(), protocol.evaluations, protocol.seed]
    scored += [metrics.versions] * bool(metrics.versions)
    scored += [{"singles": threat.singles}] * bool(threat.singles)
    deployed = {row.card.id: _keyed(deployment(row.card, threat.like)) for row in group}
    records = (replace(t, key=digest([attack_keys[t.image], scored, deployed[t.model]])) for t in templates)
    cards, attacked = {row.card.id: row.card for row in group}, source.card if source else None
    return Cell(threat.id, cards, samples, tuple(records), attack_keys, others, attacked)


def _others(threat: Threat, samples: Dataset, images: Sequence[str], cause: Mapping[str, Any]) -> dict[str, Others]:
    """What an attack on each of `images` is given beside it; empty where it needs nothing."""
    if threat.spec.others is None:
        return {}
    groups = {image: tuple(threat.spec.others(samples.ids, image)) for image in images}
    made = {
        ids: Others(ids, digest([CODE_VERSION, cause, "others", [samples.sample_key(i) for i in ids]]))
        for ids in set(groups.values())
    }
    return {image: made[ids] for image, ids in groups.items()}


def _origin(table: Registry[Any], name: str) -> dict[str, str]:
    """What the key of something computed by an entry of `table` adds: the package that brought it, if one did."""
    return {"origin": found} if (found := table.origins([name]).get(name)) else {}


def _keyed(deployed: Deployment | None) -> Any:
    """A deployment as keys have it."""
    origin = _origin(DEFENCES, deployed.defence) if deployed else {}
    return [deployed, origin] if origin else deployed


def plugins(protocol: Protocol, threats: Iterable[str], cards: Iterable[Card]) -> dict[str, str]:
    """What other packages bring to a plan, in words ("threat darker"), with the package and its version.

    A model is a card, whose weights its key is made of: its package is in no key.
    """
    cards = list(cards)
    files = {zoo()[model].file: model for model in zoo().origins(zoo())}
    used: dict[str, tuple[Registry[Any], Iterable[str]]] = {
        "threat": (THREATS, threats),
        "metric": (METRICS, protocol.metrics.names),
        "defence": (DEFENCES, (card.defence.name for card in cards if card.defence)),
        "model": (zoo(), (files[card.file] for card in cards if card.file in files)),
    }
    return {
        f"{kind} {name}": origin
        for kind, (table, names) in used.items()
        for name, origin in table.origins(names).items()
    }


def keys_today(
    protocol: Protocol,
    rows: Sequence[Row],
    dataset: Dataset,
    planned: Sequence[Record],
    plan: Callable[..., tuple[list[Cell], list[Record]]] = plan,
) -> dict[tuple[str, str, str], set[str]]:
    """(model, threat, image) -> the keys that each evaluation of `rows` may have under the whole protocol.

    What this run has `planned` with `plan` has one; anything else that of either class of device, as another may have
    computed it. Of a model whose weights cannot be had here nothing is told.
    """
    found: dict[tuple[str, str, str], set[str]] = {}
    here = {row.card.id: row for row in rows if row.status is not Status.UNAVAILABLE}
    for device in ("cpu", "cuda"):
        cells, missing = plan(protocol, list(here.values()), protocol.threats, dataset, device)
        for r in [record for cell in cells for record in cell.records] + missing:
            found.setdefault((r.model, r.threat, r.image), set()).add(r.key)
    return found | {(r.model, r.threat, r.image): {r.key} for r in planned if r.model in here}
