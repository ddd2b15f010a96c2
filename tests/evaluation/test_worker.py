"""The worker: each network by its content, full float32, memory that is shared and given back, features kept."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import FakeLpips, photos, toy_card

from benchsr.base.registry import Registry
from benchsr.data.datasets import Dataset, load_dataset
from benchsr.defences.smoothing import Smoothed
from benchsr.evaluation import worker
from benchsr.evaluation.cache import AttackCache
from benchsr.evaluation.memory import HEADROOM, MOST
from benchsr.evaluation.plan import Cell, plan, resolve
from benchsr.evaluation.protocol import Protocol
from benchsr.evaluation.worker import Worker, slowest_first
from benchsr.models.cards import Card
from benchsr.models.zoo import load_card
from benchsr.results.records import Record, Status

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", FakeLpips)


def protocol(perceptual: float = 0.0, **fields: Any) -> Protocol:
    objective = {"perceptual_weight": perceptual}
    settings = {"pgd": {"steps": 2}}
    return Protocol.model_validate(
        {"id": "p", "title": "P", "dataset": "d", "crop": 12, "objective": objective, "settings": settings, **fields}
    )


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return load_dataset(photos(tmp_path / "photos", 2), crop=12)


def cells(chosen: Protocol, cards: list[Card], threats: list[str], data: Dataset) -> list[Cell]:
    return plan(chosen, resolve(cards), threats, data, "cpu")[0]


def made(tmp_path: Path, chosen: Protocol, **options: Any) -> Worker:
    return Worker(chosen, CPU, AttackCache(tmp_path / "attacks"), **options)


def test_two_cards_of_one_id_meet_their_own_networks(tmp_path: Path, data: Dataset) -> None:
    chosen, cards = protocol(), []
    for seed, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        cards.append(load_card(toy_card(tmp_path / name, "toy", seed=seed)))
    parts = [cell for card in cards for cell in cells(chosen, [card], ["clean", "fgsm"], data)]
    one = made(tmp_path, chosen)
    together = [[r.scores for r in one.run(cell)] for cell in parts]
    alone = [[r.scores for r in Worker(chosen, CPU, AttackCache(tmp_path / "other")).run(cell)] for cell in parts]
    assert together == alone
    assert together[0] != together[2]


def test_attacks_and_super_resolution_compute_in_full_float32(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags: list[tuple[bool, bool, bool]] = []

    class Watching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
            flags.append((*tf32, x.requires_grad))
            return nn.functional.interpolate(x, scale_factor=4)

    monkeypatch.setattr(worker, "load_network", lambda *_, **__: Watching())
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    chosen = protocol()
    (cell,) = cells(chosen, [load_card("bicubic")], ["pgd"], data)
    try:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        results = list(made(tmp_path, chosen, memory_budget=1e9).run(cell))
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (True, True)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
    assert {r.status for r in results} == {Status.OK}
    computed = flags[1:]  # the first measures memory
    assert {grad for *_, grad in computed} == {True, False}
    assert {flag for *tf32, _ in computed for flag in tf32} == {False}


def test_what_went_wrong_is_kept_without_its_tensors(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_here: list[weakref.ref[Tensor]] = []

    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            large = torch.zeros(1000) + x.sum().detach()
            made_here.append(weakref.ref(large))
            raise RuntimeError("boom")

    monkeypatch.setattr(worker, "load_network", lambda *_, **__: Fails())
    chosen = protocol()
    (cell,) = cells(chosen, [load_card("bicubic")], ["fgsm"], data)
    records = made(tmp_path, chosen).run(cell)
    first = next(records)  # the rest of the batch waits, with what went wrong
    assert (first.status, first.reason) == (Status.FAILED, "RuntimeError: boom")
    assert made_here
    assert all(ref() is None for ref in made_here)


def test_the_truths_features_are_computed_once_a_run(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Trunk(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if not images.requires_grad:
                asked.append(len(images))
            return nn.functional.avg_pool2d(images, 4)

    monkeypatch.setattr("benchsr.metrics.objective.vgg_trunk", lambda net: Trunk())
    monkeypatch.setattr(worker, "bytes_per_pixel", lambda *_: 1.0)
    chosen = protocol(perceptual=1.0)
    sources = data.sources[data.ids[0]]
    many = replace(data, sources=Registry("image", {f"i{n}": replace(sources, id=f"i{n}") for n in range(100)}))
    hr = torch.rand(1, 3, 48, 48)
    samples = [replace(data[0], id=name) for name in many.ids]
    (cell,) = cells(chosen, [load_card("bicubic")], ["pgd"], many)
    objective = chosen.threat("pgd").objective
    assert objective is not None
    one = made(tmp_path, chosen)
    for weight in (1.0, 0.5):  # the features are those of the images, whatever the weights
        for sample in samples:
            one._bound(cell, [sample], hr, replace(objective, l1_weight=weight))
    assert len(asked) == 100
    size = objective.features(hr).nbytes  # what does not fit is computed again, the rest is not
    tight = made(tmp_path, chosen, memory_budget=60.5 * size / worker.FEATURES)
    asked.clear()
    for sample in samples * 2:
        tight._bound(cell, [sample], hr, objective)
    assert len(asked) == 100 + 40


def test_workers_share_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "free_bytes", lambda device: 1000)
    assert made(tmp_path, protocol())._budget() == 1000 * MOST
    assert made(tmp_path, protocol(), share=0.25)._budget() == 250 * MOST
    assert made(tmp_path, protocol(), share=0.25, memory_budget=7.0)._budget() == 7


SOFT = """
id = "soft"
title = "Smoothed"
family = "compact"
licence = "MIT"
paper = "none"
training_data = "none"
fine_tuning_data = "none"
base = "toy"
[smoothing]
n = 9
sigma = 0.05
"""


@pytest.fixture
def cards(tmp_path: Path) -> list[Card]:
    plain = load_card(toy_card(tmp_path, "toy"))
    (tmp_path / "soft.toml").write_text(SOFT)
    return [plain, load_card(tmp_path / "soft.toml")]


def test_smoothed_scoring_is_planned_on_a_gpu_and_fixed_on_the_cpu(
    tmp_path: Path, data: Dataset, cards: list[Card], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "bytes_per_pixel", lambda *_: 100.0)
    (cell,) = cells(protocol(), cards, ["clean"], data)
    lr = data[0].lr[None]
    budget = 100.0 * 144 * HEADROOM * 3.5  # of three draws and a half
    gpu = made(tmp_path, protocol(), memory_budget=budget)
    gpu._load(cell.network_card)
    gpu.device = torch.device("cuda")
    model = gpu._model(cell, "soft", lr)
    assert isinstance(model, Smoothed)
    assert model.draws_at_once == 3
    rows = {}
    for budget in (1e-9, 1e12):
        rows[budget] = [dict(r.scores) for r in made(tmp_path, protocol(), memory_budget=budget).run(cell)]
    assert rows[1e-9] == rows[1e12]


def test_cells_of_large_networks_and_long_attacks_come_first(tmp_path: Path, data: Dataset, cards: list[Card]) -> None:
    chosen = protocol(threats=["clean", "fgsm", "pgd", "pgd-eot"], settings={"pgd": {"steps": 40}})
    planned = cells(chosen, [load_card("bicubic"), *cards], list(chosen.threats), data)
    ordered = [(cell.network_card.id, cell.threat) for cell in slowest_first(planned, chosen)]
    networks = [card for card, _ in ordered]
    assert networks == sorted(networks, key=lambda card: card == "bicubic")  # it has no weights
    toy = [threat for card, threat in ordered if card != "bicubic"]
    assert toy.index("pgd-eot") < toy.index("pgd") < toy.index("fgsm") < toy.index("clean")
    assert sorted(map(id, slowest_first(planned, chosen))) == sorted(map(id, planned))


def test_answers_are_the_records_with_their_pictures(tmp_path: Path, data: Dataset, cards: list[Card]) -> None:
    chosen = protocol(evaluations=2)
    (cell,) = cells(chosen, cards, ["noise"], data)
    answers = list(made(tmp_path, chosen).answers(cell))
    untimed: list[Record] = [replace(answer.record, seconds_sr=None) for answer in answers]
    assert untimed == [replace(r, seconds_sr=None) for r in made(tmp_path, chosen).run(cell)]
    for answer in answers:
        assert answer.lr is not None
        assert answer.sr is not None
        assert answer.lr.shape == (3, 12, 12)
        assert answer.sr.shape == (2 if answer.record.model == "soft" else 1, 3, 48, 48)
