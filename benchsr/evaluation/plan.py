"""From models and threats to cells: what is to be computed, under which keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchsr.base.errors import BenchsrError
from benchsr.base.files import digest
from benchsr.data.datasets import Dataset, load_dataset
from benchsr.evaluation.protocol import CODE_VERSION, Protocol
from benchsr.models.cards import Card, sigma_for
from benchsr.models.zoo import network_key
from benchsr.results.records import Record, Status
from benchsr.threats.table import Threat


@dataclass(frozen=True)
class Row:
    """One model of the leaderboard: its card, and the key of its network, or why its weights cannot be had."""

    card: Card
    network: str
    reason: str = ""


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


@dataclass(frozen=True)
class Cell:
    """One threat against one network on the images of a data set, scored for every model that deploys the network.

    `records` are templates, one for each (model, image), that hold all that is known before the work starts.
    `attack_keys` maps images to the keys of their attacked LR.
    """

    threat: str
    models: Mapping[str, Card]
    samples: Dataset
    records: tuple[Record, ...]
    attack_keys: Mapping[str, str]

    @property
    def network_card(self) -> Card:
        """A card whose weights are the network's."""
        return next(iter(self.models.values()))

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
            )
            for part in (images[start : start + size] for start in range(0, len(images), size))
        ]
