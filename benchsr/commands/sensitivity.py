"""`benchsr sensitivity`: how far each network's answer moves with its input, image by image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchsr.base.errors import BenchsrError, InputError
from benchsr.base.files import digest, locked, write_atomic
from benchsr.base.inference import one_thread
from benchsr.data.datasets import Dataset, load_dataset
from benchsr.evaluation.protocol import Protocol
from benchsr.leaderboard.sensitivity import COLUMNS, COUNTS, SENSITIVITY, read_sensitivity
from benchsr.metrics.sensitivity import GRID, TOLERANCE, fourier_gains, largest_singular_value
from benchsr.models.cards import Card
from benchsr.models.network import load_network
from benchsr.models.zoo import BEHIND, network_key, root_card

SIDE = 24
"""LR side where the protocol takes whole images: the Jacobian's products keep all that the network computes."""

RMS = 8 / 255
"""Root mean square, over the elements of LR, of the waves whose gain is measured."""

VERSION = 1
"""Raised whenever a change of code changes a figure; part of every key."""


@dataclass(frozen=True)
class Job:
    """One model at one image, and the key of all that its figures hang on."""

    card: Card
    image: str
    network: str
    key: str


@dataclass(frozen=True)
class Plan:
    """What is to be measured: `jobs`, of which `known` have lines already; `lacking`: model -> why it has none."""

    data: Dataset
    jobs: Sequence[Job]
    lacking: Mapping[str, str]
    seed: int
    device: torch.device


def plan(
    cards: Sequence[Card], protocol: Protocol, device: torch.device, crop: int | None = None, limit: int | None = None
) -> Plan:
    """Every card at the protocol's images, of `crop` x `crop` LR pixels (the protocol's, or SIDE), the first `limit`.

    Raises InputError for a limit below 1, and what `load_dataset` raises.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit must be at least 1; got {limit}")
    side = crop or protocol.crop or SIDE
    data = load_dataset(protocol.dataset, crop=side, scale=protocol.scale).first(protocol.images)
    settings = [VERSION, RMS, GRID, TOLERANCE, protocol.seed, device.type]
    jobs, lacking = list[Job](), dict[str, str]()
    for card in cards:
        if card.smoothing or card.defence:
            lacking[card.id] = (
                f"deployed with a defence; its network is measured as {root_card(card).id.rpartition(BEHIND)[2]}"
            )
            continue
        try:
            key = network_key(card)
        except BenchsrError as error:
            lacking[card.id] = " ".join(str(error).split())
            continue
        jobs += [Job(card, i, key[:12], digest([settings, key, data.sample_key(i)])) for i in data.ids[:limit]]
    return Plan(data, jobs, lacking, protocol.seed, device)


def measure(plan: Plan, folder: Path) -> Iterator[tuple[Job, str]]:
    """Do the jobs one by one, and yield each with the reason why it could not be done (empty: it is).

    Lines are written into sensitivity.csv of `folder` as they come; those that stand there already are not measured
    again, and of a model and image only the newest stay. Several runs may share the file.
    """
    data = read_sensitivity(folder)
    known, network = set(zip(data["model"], data["key"], strict=True)), None
    for job in plan.jobs:
        if (job.card.id, job.key) in known:
            yield job, ""
            continue
        try:
            if network is None or network[0] != job.network:
                network = None  # frees the last one before the next is loaded
                network = (job.network, load_network(job.card, plan.device))
            with one_thread():
                lines = list(_lines(job, plan, network[1]))
        except BenchsrError as error:
            yield job, " ".join(str(error).split())
            continue
        _write(folder, job, pd.DataFrame(lines, columns=list(COLUMNS)))
        yield job, ""


def _write(folder: Path, job: Job, fresh: pd.DataFrame) -> None:
    """Put the lines of a job into sensitivity.csv, in the place of those about the same model and image."""
    path = folder / f"{SENSITIVITY}.csv"
    with locked(path):
        data = read_sensitivity(folder)
        old = (data["model"] == job.card.id) & (data["image"] == job.image)
        kept = [part for part in (data[~old], fresh.astype(COUNTS)) if len(part)]
        whole = pd.concat(kept, ignore_index=True).sort_values(["model", "image", "figure", "ky", "kx"])
        write_atomic(path, whole.to_csv(index=False, float_format="%.9g", lineterminator="\n"))


def _lines(job: Job, plan: Plan, network: torch.nn.Module) -> Iterator[dict[str, Any]]:
    lr = plan.data.sample(job.image).lr[None].to(plan.device)
    base = {"model": job.card.id, "network": job.network, "image": job.image, "side": lr.shape[-1], "key": job.key}
    found = largest_singular_value(network, lr, job.image, plan.seed)
    steps = {"products": found.products, "residual": found.residual}
    yield {**base, "figure": "singular", "value": found.value, **steps}
    for ky, kx, gain in fourier_gains(network, lr, job.image, RMS * math.sqrt(lr.numel()), plan.seed):
        yield {**base, "figure": "gain", "ky": ky, "kx": kx, "value": gain}
