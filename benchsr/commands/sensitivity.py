"""`benchsr sensitivity`: how far each network's answer moves with its input, and the least that costs 3 dB."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchsr.base.errors import BenchsrError, InputError
from benchsr.base.files import digest, locked, write_atomic
from benchsr.base.inference import one_thread
from benchsr.data.datasets import Dataset, load_dataset
from benchsr.defences.table import deploy, deployment
from benchsr.evaluation.plan import facing
from benchsr.evaluation.protocol import Protocol
from benchsr.leaderboard.sensitivity import COLUMNS, COUNTS, DROP, LARGEST, SENSITIVITY, SMALLEST, read_sensitivity
from benchsr.metrics.sensitivity import GRID, TOLERANCE, fourier_gains, largest_singular_value
from benchsr.models.cards import Card
from benchsr.models.network import load_network
from benchsr.models.zoo import BEHIND, network_key, root_card, zoo
from benchsr.threats.adaptive import APGD
from benchsr.threats.balls import Norm, make_ball
from benchsr.threats.breaking import smallest_eps
from benchsr.threats.table import load_threat

SIDE = 24
"""LR side where the protocol takes whole images: the Jacobian's products keep all that the network computes."""

RMS = 8 / 255
"""Root mean square, over the elements of LR, of the waves whose gain is measured."""

STEPS, ROUNDS = 10, 8
"""Steps of each attack of that search, and halvings of the radius after the first attack."""

VIEW = "aa-mse"
"""The threat whose loss, sigma and view of a defence those attacks have: MSE is what PSNR measures."""

VERSION = 1
"""Raised whenever a change of code changes a figure; part of every key."""


@dataclass(frozen=True)
class Job:
    """One measure of one model at one image, and the key of all that its figures hang on."""

    card: Card
    image: str
    network: str
    measure: str
    key: str


@dataclass(frozen=True)
class Plan:
    """What is to be measured: `jobs`; `lacking`: model -> why it has none, or not all."""

    data: Dataset
    jobs: Sequence[Job]
    lacking: Mapping[str, str]
    protocol: Protocol
    device: torch.device


def plan(
    cards: Sequence[Card],
    protocol: Protocol,
    device: torch.device,
    crop: int | None = None,
    limit: int | None = None,
    smallest: bool = False,
) -> Plan:
    """Every card at the protocol's images, of `crop` x `crop` LR pixels (the protocol's, or SIDE), the first `limit`.

    `smallest`: the smallest changes that cost DROP dB too, of each card as it is deployed.
    Raises InputError for a limit below 1, and what `load_dataset` raises.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit must be at least 1; got {limit}")
    side = crop or protocol.crop or SIDE
    data = load_dataset(protocol.dataset, crop=side, scale=protocol.scale).first(protocol.images)
    moves = [VERSION, RMS, GRID, TOLERANCE, protocol.seed, device.type]
    search = [VERSION, SMALLEST, DROP, LARGEST, STEPS, ROUNDS, dict(load_threat(VIEW).settings)]
    search += [protocol.metrics.border, protocol.evaluations, protocol.seed, device.type]
    jobs, lacking = list[Job](), dict[str, str]()
    for card in cards:
        if card.guarded:
            lacking[card.id] = _stands_as(card)
        if card.guarded and not smallest:
            continue
        try:
            key, deployed = network_key(card), deployment(card, load_threat(VIEW).like)
        except BenchsrError as error:
            lacking[card.id] = " ".join(str(error).split())
            continue
        settings = {"moves": moves} if not card.guarded else {}
        settings |= {"smallest": [*search, deployed]} if smallest else {}
        jobs += [
            Job(card, image, key[:12], measure, digest([of, key, data.sample_key(image)]))
            for measure, of in settings.items()
            for image in data.ids[:limit]
        ]
    return Plan(data, jobs, lacking, protocol, device)


def _stands_as(card: Card) -> str:
    """Where to find what is measured of the network of a card with a defence alone."""
    root = root_card(card).id.rpartition(BEHIND)[2]
    plain = [c.id for c in zoo().values() if not c.guarded and root_card(c).id == root]
    return "deployed with a defence; " + (
        f"its network moves as that of {plain[0]}" if plain else "no card of the zoo has its network alone"
    )


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
                lines = list(MEASURES[job.measure](job, plan, network[1]))
        except BenchsrError as error:
            yield job, " ".join(str(error).split())
            continue
        _write(folder, job, pd.DataFrame(lines, columns=list(COLUMNS)))
        yield job, ""


def _write(folder: Path, job: Job, fresh: pd.DataFrame) -> None:
    """Put the lines of a job into sensitivity.csv, in the place of the same figures of that model and image."""
    path = folder / f"{SENSITIVITY}.csv"
    with locked(path):
        data = read_sensitivity(folder)
        old = (data["model"] == job.card.id) & (data["image"] == job.image) & data["figure"].isin(set(fresh["figure"]))
        kept = [part for part in (data[~old], fresh.astype(COUNTS)) if len(part)]
        whole = pd.concat(kept, ignore_index=True).sort_values(["model", "image", "figure", "ky", "kx"])
        write_atomic(path, whole.to_csv(index=False, float_format="%.9g", lineterminator="\n"))


def _base(job: Job, lr: torch.Tensor) -> dict[str, Any]:
    return {"model": job.card.id, "network": job.network, "image": job.image, "side": lr.shape[-1], "key": job.key}


def _moves(job: Job, plan: Plan, network: torch.nn.Module) -> Iterator[dict[str, Any]]:
    """The largest singular value, and gains by frequency."""
    lr = plan.data.sample(job.image).lr[None].to(plan.device)
    base, seed = _base(job, lr), plan.protocol.seed
    found = largest_singular_value(network, lr, job.image, seed)
    steps = {"products": found.products, "residual": found.residual}
    yield {**base, "figure": "singular", "value": found.value, **steps}
    for ky, kx, gain in fourier_gains(network, lr, job.image, RMS * math.sqrt(lr.numel()), seed):
        yield {**base, "figure": "gain", "ky": ky, "kx": kx, "value": gain}


def _smallest(job: Job, plan: Plan, network: torch.nn.Module) -> Iterator[dict[str, Any]]:
    """The smallest changes that cost DROP dB, by attacks that know the defence as `apgd-median` does."""
    sample, view, protocol = plan.data.sample(job.image), load_threat(VIEW), plan.protocol
    lr, hr = sample.lr[None].to(plan.device), sample.hr[None].to(plan.device)
    model = deploy(job.card, view.like, network, protocol.seed)
    seen = deploy(job.card, view.like, network, protocol.seed, view.median_of)
    draws = int(facing(view, job.card).settings["draws"])

    def attack(eps: float, norm: Norm) -> APGD:
        return APGD(seen, eps=eps, steps=STEPS, restarts=1, draws=draws, objective=view.objective, norm=norm)

    for figure, norm in SMALLEST.items():
        largest = float(make_ball(norm, LARGEST).norm(torch.full_like(lr, LARGEST)))
        found = float(
            smallest_eps(
                partial(attack, norm=norm),
                model,
                lr,
                hr,
                largest,
                drop=DROP,
                rounds=ROUNDS,
                border=protocol.metrics.border,
                evaluations=protocol.evaluations,
                ids=[job.image],
                seed=protocol.seed,
            )
        )
        reached = math.isfinite(found)
        why = "" if reached else f"not reached: attacks of size {largest:.3g} cost less than {DROP:g} dB"
        yield {**_base(job, lr), "figure": figure, "value": found if reached else None, "reason": why}


MEASURES: Mapping[str, Callable[[Job, Plan, torch.nn.Module], Iterator[dict[str, Any]]]] = {
    "moves": _moves,
    "smallest": _smallest,
}
"""What is measured: the lines that a job adds."""
