"""Attacks on one model scored on another: against attacks and scores made by hand, and against the white-box cells."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import FakeLpips, call, photos, protocol, toy_card

from benchsr.base.errors import InputError
from benchsr.commands.run import Outcome, evaluate
from benchsr.data.datasets import load_dataset
from benchsr.evaluation import worker
from benchsr.evaluation.options import RunOptions
from benchsr.evaluation.protocol import load_protocol
from benchsr.metrics.quality import score
from benchsr.models.network import load_network

NAMES = ("bicubic", "toy-a", "toy-b")


@dataclass
class Bench:
    """Three models, and a toy protocol."""

    folder: Path
    models: list[str]
    protocol: Path

    def run(self, out: str = "out", models: list[str] | None = None, **options: Any) -> Outcome:
        places: dict[str, Any] = {"out": self.folder / out, "cache": self.folder / "cache", "device": "cpu"}
        told = RunOptions(**{"transfer": True, **places, **options})
        return evaluate(",".join(models or self.models), "clean,pgd", self.protocol, told)

    def lines(self, out: str = "out", folder: str = "transfer") -> dict[tuple[str, str, str], dict[str, str]]:
        """Model, threat and image -> the rest of the line."""
        with (self.folder / out / "toy" / folder / "results.csv").open() as file:
            return {(r.pop("model"), r.pop("threat"), r.pop("image")): r for r in csv.DictReader(file)}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", FakeLpips)
    monkeypatch.setattr("benchsr.commands.run.write_leaderboard", lambda *_, **__: None)  # plots take seconds
    models = ["bicubic", toy_card(tmp_path, "toy-a", seed=1), toy_card(tmp_path, "toy-b", seed=2)]
    return Bench(tmp_path, models, protocol(tmp_path, photos(tmp_path / "photos", 2)))


def test_the_diagonal_is_the_white_box_line_and_all_else_is_what_the_other_network_makes_of_the_attack(
    bench: Bench,
) -> None:
    outcome = bench.run()
    assert not outcome.failures
    found: Any = bench.lines()
    own: Any = bench.lines(folder="")
    assert len(found) == len(outcome.transferred) == 3 * 3 * 2
    chosen = load_protocol(bench.protocol)
    data = load_dataset(chosen.dataset, crop=chosen.crop)
    for name, image in product(NAMES, data.ids):
        assert found[name, f"pgd@{name}", image] == own[name, "pgd", image]

    networks = {name: load_network(card) for name, card in zip(NAMES, bench.models, strict=True)}
    for sample in (data.sample(image) for image in data.ids):
        lr, hr = sample.lr[None], sample.hr[None]
        for source in NAMES:
            attacked = chosen.threat("pgd")(networks[source], lr, hr, [sample.id], chosen.seed)
            for victim in NAMES:
                with torch.no_grad():
                    sr = networks[victim](attacked).clamp(0, 1)
                by_hand = score(sr, hr, lr, chosen.metrics).figures["psnr"].item()
                line = found[victim, f"pgd@{source}", sample.id]
                assert float(line["psnr"]) == pytest.approx(by_hand, abs=1e-4)
                assert line["attack_l2"] == own[source, "pgd", sample.id]["attack_l2"]
        crossed = found["toy-b", "pgd@toy-a", sample.id]["psnr"]
        unmoved = {own["toy-b", threat, sample.id]["psnr"] for threat in ("clean", "pgd")}
        assert crossed not in unmoved, "neither the clean figure nor its own attack's"


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_neither_order_nor_workers_nor_the_cache_change_a_line(bench: Bench, workers: int) -> None:
    with bench.protocol.open("a") as file:
        file.write('[metrics]\nnames = ["psnr", "ssim"]\n')  # processes know nothing of the fake LPIPS
    bench.run()
    bench.run("other", bench.models[::-1], workers=workers, cache=bench.folder / "other-cache")
    files = [bench.folder / out / "toy" / "transfer" / "results.csv" for out in ("out", "other")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_matrix_is_scored_from_cached_attacks_and_goes_on_where_it_stopped(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run(transfer=False)
    monkeypatch.setattr(worker.Worker, "_attack_batch", lambda *_: pytest.fail("attacked again"))
    scored: list[str] = []
    real = worker.Worker._score

    def counted(self: worker.Worker, cell: Any, template: Any, attacked: Any) -> Any:
        scored.append(template.threat)
        return real(self, cell, template, attacked)

    monkeypatch.setattr(worker.Worker, "_score", counted)
    bench.run()
    assert len(scored) == 3 * 2 * 2, "the diagonal is known already"
    before = (bench.folder / "out" / "toy" / "transfer" / "results.csv").read_bytes()
    bench.run()
    bench.run(models=bench.models[1:])
    assert len(scored) == 3 * 2 * 2
    assert (bench.folder / "out" / "toy" / "transfer" / "results.csv").read_bytes() == before


def test_an_attack_that_cannot_be_had_from_the_cache_is_made_on_its_source(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run()
    monkeypatch.setattr("benchsr.evaluation.cache.AttackCache.get", lambda *_: None)
    bench.run("other")
    assert bench.lines() == bench.lines("other")


def test_without_an_attack_there_is_nothing_to_transfer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="needs an attack"):
        evaluate("bicubic", "clean,noise", bench.protocol, RunOptions(out=bench.folder / "out", transfer=True))
    assert not (bench.folder / "out").exists()
    where = f"--protocol {bench.protocol} --out {bench.folder}/out --device cpu --workers 1"
    assert call(monkeypatch, f"run --models bicubic --threats clean --transfer {where}") == 2
