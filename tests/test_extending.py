"""A threat, a metric, a data set, a defence and a model, each added in one place from outside of the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from toys import FakeLpips, toy_card

from benchsr.base.registry import Registry
from benchsr.commands.run import evaluate
from benchsr.defences.table import DEFENCES, Defence
from benchsr.evaluation.options import RunOptions
from benchsr.metrics.quality import METRICS, Metric
from benchsr.threats.table import THREATS, ThreatSpec


def darken(x: Tensor, gens: Sequence[torch.Generator], *, by: float = 0.25) -> Tensor:
    return x - by


def brightness(sr: Tensor, hr: Tensor) -> Tensor:
    return (sr - hr).double().flatten(1).mean(1)


class Brighter(nn.Module):
    def __init__(self, network: nn.Module, by: float) -> None:
        super().__init__()
        self.network, self.by = network, by

    def forward(self, x: Tensor) -> Tensor:
        sr: Tensor = self.network(x) + self.by
        return sr


@pytest.fixture
def _added(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(table: Registry[Any], name: str, entry: object) -> None:
        monkeypatch.setattr(table, "_entries", {**table})
        table.add(name, entry)

    add(THREATS, "darker", ThreatSpec("Darker", "corruption", darken))
    add(METRICS, "bias", Metric("bias", "Bias", "", True, brightness))
    add(DEFENCES, "brighter", Defence("Brighter", lambda network, *, seed, by: Brighter(network, by)))


@pytest.mark.usefixtures("_added")
def test_one_of_each_is_seen_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", FakeLpips)
    (tmp_path / "cat.toml").write_text(
        'id = "cat"\ntitle = "One cat"\nlicence = "CC0"\npaper = "none"\ncount = 1\nscales = [4]\n'
        '[lr]\nkind = "made"\n[source]\nkind = "embedded"\nimages = ["chelsea.png"]\n'
    )
    (tmp_path / "mine.toml").write_text(
        f'id = "mine"\ntitle = "Mine"\ndataset = "{tmp_path / "cat.toml"}"\n'
        'crop = 16\nthreats = ["clean", "darker"]\n'
        '[metrics]\nnames = ["psnr", "ssim", "lpips", "bias"]\nquantise_sr = false\n[settings.darker]\nby = 0.1\n'
    )
    plain = toy_card(tmp_path, "toy-plain")
    defended = tmp_path / "toy-defended.toml"
    text = Path(plain).read_text().replace("toy-plain", "toy-defended", 1).replace("Toy toy-plain", "Toy defended")
    defended.write_text(text + '[defence]\nname = "brighter"\nsettings = { by = 0.125 }\n')
    options = RunOptions(out=tmp_path / "out", cache=tmp_path / "cache", device="cpu")
    evaluate(f"bicubic,{plain},{defended}", "all", tmp_path / "mine.toml", options)
    table = pd.read_csv(tmp_path / "out" / "mine" / "results.csv").set_index(["model", "threat", "image"])
    assert (table.status == "ok").all(), table.reason.tolist()
    assert set(table.index.get_level_values("image")) == {"chelsea"}
    bias = table.bias.droplevel("image")
    assert bias["bicubic", "darker"] - bias["bicubic", "clean"] == pytest.approx(-0.1, abs=0.01)
    assert 0.02 < bias["toy-defended", "clean"] - bias["toy-plain", "clean"] <= 0.125
    assert "darker" in (tmp_path / "out" / "mine" / "leaderboard.json").read_text()
