"""Defences in a run: what a row with one costs and means, and how attacks look through it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from toys import FakeLpips, photos, toy_card

from benchsr.base.errors import InputError
from benchsr.base.registry import Registry
from benchsr.commands.run import evaluate
from benchsr.data.datasets import load_dataset
from benchsr.defences.table import DEFENCES, Defence
from benchsr.evaluation.options import RunOptions
from benchsr.evaluation.plan import Row, facing, plan
from benchsr.evaluation.protocol import Protocol, load_protocol
from benchsr.models.zoo import defended, load_card
from benchsr.threats.table import load_threat


def toy_protocol(folder: Path) -> Path:
    file = folder / "toy.toml"
    file.write_text(
        f'id = "toy"\ntitle = "Toy"\ndataset = "{photos(folder / "photos", 2)}"\ncrop = 12\n'
        'threats = ["clean", "apgd-transfer", "apgd-median"]\n[objective]\nperceptual_weight = 0.0\n'
        + "".join(f"[settings.{t}]\nsteps = 3\nrestarts = 1\n" for t in ("apgd-transfer", "apgd-median"))
    )
    return file


def test_what_a_defence_costs_stands_in_the_report_and_one_that_does_nothing_changes_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", FakeLpips)
    table: Registry[Defence] = Registry("defence", {**DEFENCES})
    table.add("nothing", Defence("Nothing", lambda network, *, seed: network))
    monkeypatch.setattr(DEFENCES, "_entries", table._entries)
    card, out = toy_card(tmp_path, "net"), tmp_path / "out"
    options = RunOptions(out=out, cache=tmp_path / "cache", device="cpu", workers=1, defence="nothing,bit-depth")
    outcome = evaluate(card, "all", toy_protocol(tmp_path), options)
    assert not outcome.failures
    figures = pd.read_csv(out / "toy" / "results.csv").set_index(["model", "threat", "image"])[["psnr", "ssim"]]
    of = {model: figures.xs(model) for model in ("net", "nothing+net", "bit-depth+net")}
    assert of["nothing+net"].to_numpy().tolist() == of["net"].to_numpy().tolist()
    assert of["bit-depth+net"].to_numpy().tolist() != of["net"].to_numpy().tolist()
    text = (out / "toy" / "report.md").read_text()
    clean = figures.xs("clean", level="threat").psnr
    cost = (clean.loc["bit-depth+net"] - clean.loc["net"]).mean()
    (line,) = (row for row in text.splitlines() if row.startswith("| bit-depth | 1 |") and f"{cost:.2f} [" in row)
    assert "straight-through estimate" in text
    (nothing,) = (row for row in text.splitlines() if row.startswith("| nothing | 1 | 0.00 [0.00, 0.00]"))
    assert "By PSNR, **nothing** is no defence" in text, nothing + line


def test_a_model_that_is_defended_already_stands_beside_the_others_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", FakeLpips)
    options = RunOptions(out=tmp_path / "out", cache=tmp_path / "cache", device="cpu", workers=1, defence="bit-depth")
    outcome = evaluate("bicubic,mrs+bicubic", "clean", toy_protocol(tmp_path), options)
    assert {r.model for r in outcome.planned} == {"bicubic", "bit-depth+bicubic", "mrs+bicubic"}
    with pytest.raises(InputError, match="deployed with a defence already"):
        evaluate("mrs+bicubic", "clean", toy_protocol(tmp_path), options)


def attack_keys(model: str, threat: str, protocol: Protocol) -> tuple[str, ...]:
    data = load_dataset(protocol.dataset, crop=protocol.crop).first(1)
    cells, _ = plan(protocol, [Row(load_card(model), "n" * 64)], [threat], data, "cpu")
    return tuple(cells[0].attack_keys.values())


def test_attacks_that_know_a_defence_have_keys_of_their_own() -> None:
    protocol = load_protocol("adaptive")
    for name in DEFENCES:
        model = f"{name}+bicubic"
        blind = attack_keys(model, "apgd-transfer", protocol)
        assert blind == attack_keys("bicubic", "apgd-transfer", protocol), "it sees the network alone"
        eot, median = (attack_keys(model, threat, protocol) for threat in ("apgd-eot", "apgd-median"))
        assert blind not in (eot, median)
        assert (eot == median) == ("n" not in DEFENCES[name].defaults), "only pools of draws have two views"


def test_draws_of_attacks() -> None:
    threat = load_threat("apgd-median")
    bicubic = load_card("bicubic")
    expected = {"jpeg": (0, 1), "self-ensemble": (0, 1), "random-resize-pad": (1, 5), "mrs": (5, 1)}
    for name, (median_of, draws) in expected.items():
        seen = facing(threat, defended(bicubic, name))
        assert (seen.settings["median_of"], seen.settings["draws"]) == (median_of, draws), name
    assert facing(load_threat("pgd"), defended(bicubic, "jpeg")) == load_threat("pgd"), "it sees the network alone"
