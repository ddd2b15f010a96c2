"""Threats that need other images too, and threats that score a part: from the plan to the scores."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import FakeLpips, photos, toy_card

from benchsr.base.inference import to_8bit
from benchsr.data.datasets import Dataset, load_dataset
from benchsr.evaluation.cache import AttackCache
from benchsr.evaluation.plan import Cell, plan, resolve
from benchsr.evaluation.protocol import Protocol
from benchsr.evaluation.worker import Answer, Worker
from benchsr.metrics.quality import psnr
from benchsr.models.network import load_network
from benchsr.models.zoo import load_card
from benchsr.results.records import Status
from benchsr.threats.table import load_threat
from benchsr.threats.variants import Universal

THREATS = ("clean", "pgd-targeted", "universal", "partial-clean", "partial")
FEW = {"steps": 2}


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", FakeLpips)


def chosen(**fields: Any) -> Protocol:
    settings = {"pgd-targeted": FEW, "universal": {**FEW, "median_of": 0}, "partial": FEW}
    base = {"id": "p", "title": "P", "dataset": "d", "crop": 16, "objective": {"perceptual_weight": 0.0}}
    return Protocol.model_validate({**base, "threats": THREATS, "settings": settings, **fields})


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return load_dataset(photos(tmp_path / "photos", 5), crop=16)


def cells(data: Dataset, model: str, *threats: str, limit: int | None = None) -> list[Cell]:
    return plan(chosen(), resolve([load_card(model)]), threats, data, "cpu", limit)[0]


def answers(cell: Cell, cache: Path) -> dict[str, Answer]:
    worker = Worker(chosen(), torch.device("cpu"), AttackCache(cache))
    found = {answer.record.image: answer for answer in worker.answers(cell)}
    assert {a.record.status for a in found.values()} == {Status.OK}, [a.record.reason for a in found.values()]
    return found


def test_a_universal_perturbation_is_fitted_once_on_each_half_for_the_other(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[list[str]] = []
    fit = Universal.fit

    def counted(self: Universal, lr: Any, hr: Any, ids: Any, *rest: Any, **more: Any) -> torch.Tensor:
        fits.append(list(ids))
        return fit(self, lr, hr, ids, *rest, **more)

    monkeypatch.setattr(Universal, "fit", counted)
    model = toy_card(tmp_path, "toy")
    [cell] = cells(data, model, "universal")
    found = answers(cell, tmp_path / "one")
    even, odd = data.ids[::2], data.ids[1::2]
    assert sorted(fits) == sorted([even, odd])
    again = [answers(shard, tmp_path / "two") for shard in reversed(cell.shards(cell.records, 1))]  # as other workers
    assert len(fits) == 4
    assert {i: a.record.scores for part in again for i, a in part.items()} == {
        i: a.record.scores for i, a in found.items()
    }
    network, threat = load_network(load_card(model)), chosen().threat("universal")
    for mine, others in ((even, odd), (odd, even)):
        samples = [data.sample(i) for i in others]
        attack = threat.attack(network)
        assert isinstance(attack, Universal)
        shift = fit(attack, torch.stack([s.lr for s in samples]), torch.stack([s.hr for s in samples]), others)
        for image in mine:
            assert torch.equal(found[image].lr, (data.sample(image).lr + shift).clamp(0, 1))  # type: ignore[arg-type]
            assert found[image].record.attack_linf == pytest.approx(10 / 255, abs=1e-6)


def test_a_target_is_the_next_image(tmp_path: Path, data: Dataset) -> None:
    model = toy_card(tmp_path, "toy")
    [cell] = cells(data, model, "pgd-targeted")
    found = answers(cell, tmp_path / "cache")
    threat = load_threat("pgd-targeted", **FEW)
    assert threat.objective
    for image, following in zip(data.ids, data.ids[1:] + data.ids[:1], strict=True):
        sample, target = data.sample(image), data.sample(following)
        bound = threat.objective.bind(target.hr[None])
        by_hand = threat.run(load_network(load_card(model)), sample.lr[None], sample.hr[None], [image], bound=bound)
        assert torch.equal(found[image].lr, by_hand.lr[0])  # type: ignore[arg-type]


def test_keys_follow_the_other_images(tmp_path: Path, data: Dataset) -> None:
    """That of an image whose target changes, and those of the half whose perturbation does; no other."""
    model = toy_card(tmp_path, "toy")
    before = {cell.threat: cell.attack_keys for cell in cells(data, model, *THREATS)}
    assert {t: cell.attack_keys for cell in cells(data, model, *THREATS, limit=2) for t in [cell.threat]} == {
        threat: {image: keys[image] for image in data.ids[:2]} for threat, keys in before.items()
    }
    changed = data.ids[1]
    source = data.sources[changed].hr
    source.write_bytes(data.sources[data.ids[4]].hr.read_bytes())
    after = {cell.threat: cell.attack_keys for cell in cells(data, model, *THREATS)}
    moved = {t: {i for i in data.ids if before[t][i] != after[t][i]} for t in THREATS}
    assert moved["pgd-targeted"] == {data.ids[0], changed}
    assert moved["universal"] == {changed, *data.ids[::2]}
    assert moved["clean"] == moved["partial"] == {changed}


def test_what_is_scored_of_a_partial_attack_was_not_attacked(tmp_path: Path, data: Dataset) -> None:
    model = toy_card(tmp_path, "toy")
    clean, attacked = (answers(cell, tmp_path / "cache") for cell in cells(data, model, "partial-clean", "partial"))
    for image in data.ids:
        sample, lr = data.sample(image), attacked[image].lr
        assert lr is not None
        assert torch.equal(lr[..., 8:], sample.lr[..., 8:])
        assert not torch.equal(lr[..., :8], sample.lr[..., :8])
        for answer in (clean[image], attacked[image]):
            assert answer.sr is not None
            right = (answer.sr[..., 48:], sample.hr[None, ..., 48:])  # 8 attacked, 4 between, of 16 LR columns
            by_hand = float(psnr(to_8bit(right[0]), right[1], chosen().metrics.border))
            assert answer.record.scores["psnr"] == pytest.approx(by_hand)
            assert "the images are (1, 3, 64, 16)" in answer.record.reason  # too narrow for LPIPS
    mean = {
        name: sum(a.record.scores["psnr"] for a in found.values()) for name, found in (("c", clean), ("a", attacked))
    }
    assert mean["a"] < mean["c"]


def test_bicubic_interpolation_is_not_reached_beyond_the_margin(tmp_path: Path, data: Dataset) -> None:
    clean, attacked = (answers(c, tmp_path / "cache") for c in cells(data, "bicubic", "partial-clean", "partial"))
    assert {i: a.record.scores for i, a in clean.items()} == {i: a.record.scores for i, a in attacked.items()}


@pytest.mark.parametrize("threat", ["pgd-targeted", "universal"])
def test_images_that_are_of_no_use_are_said(threat: str, tmp_path: Path) -> None:
    model = toy_card(tmp_path, "toy")
    alone = load_dataset(photos(tmp_path / "alone", 1), crop=16)
    unlike = photos(tmp_path / "unlike", 1, side=80)
    (unlike / "photo0.png").rename(unlike / "other.png")
    photos(unlike, 1)
    for data, reason in (
        (alone, f"threat '{threat}' needs other images too, and the data set has but one"),
        (
            load_dataset(unlike),
            r"needs LR images of one size, unlike other \(20 x 20\) and photo0 \(16 x 16\); set crop",
        ),
    ):
        [cell] = cells(data, model, threat)
        records = list(Worker(chosen(), torch.device("cpu"), AttackCache(tmp_path / "cache")).run(cell))
        assert {r.status for r in records} == {Status.FAILED}
        assert re.search(reason, records[0].reason)
