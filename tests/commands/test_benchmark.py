"""`benchsr.benchmark`: a network of one's own, ranked and compared."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from conftest import tiny_rrdb
from torch import nn
from toys import FakeLpips, Upscale, net, photos, toy_card

import benchsr
from benchsr.base.errors import InputError
from benchsr.commands.benchmark import Report

PROTOCOL = """
id = "toy"
title = "Toy"
dataset = "{photos}"
crop = 16
threats = ["clean", "noise", "fgsm"]
[objective]
l1_weight = 1.0
perceptual_weight = 0.0
"""

NOTEBOOK = """
import torch
import benchsr
class Mine(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.interpolate(x, scale_factor=4, mode="nearest")
report = benchsr.benchmark(Mine().eval(), protocol, against="bicubic")
report.table
report.compare("bicubic")
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", FakeLpips)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.toml").write_text(PROTOCOL.format(photos=photos(tmp_path / "photos", n=2)))
    return "toy.toml"


def test_ten_lines_from_import_torch_to_a_compared_ranked_row(toy: str) -> None:
    assert len(NOTEBOOK.strip().splitlines()) <= 10
    cell: dict[str, object] = {"protocol": toy, "__name__": "notebook"}
    exec(NOTEBOOK, cell)
    report = cell["report"]
    assert isinstance(report, Report)
    assert sorted(report.table.model) == ["bicubic", "mine"]
    lines = pd.read_csv("leaderboards/toy/results.csv")
    means = lines.groupby(["threat", "model"])[["psnr", "ssim", "lpips"]].mean()
    row = report.table.set_index("model").loc["mine"]
    for threat in ("clean", "noise", "fgsm"):
        assert row[f"{threat}_psnr"] == pytest.approx(means.psnr[threat, "mine"])
    compared = report.compare("bicubic").table.set_index(["metric", "threat"])
    for threat in ("clean", "noise", "fgsm"):
        expected = means.psnr[threat, "mine"] - means.psnr[threat, "bicubic"]
        assert compared.difference["psnr", threat] == pytest.approx(expected)
    assert "Means over 2 images" in report.to_markdown()
    assert r"\toprule" in report.to_latex()
    assert "<table" in report._repr_html_()
    assert "A is mine, B is bicubic" in report.compare("bicubic").to_markdown()


def test_the_best_comes_first_by_the_mean_of_its_ranks(toy: str) -> None:
    """Ranks are counted anew, from results.csv."""
    table = benchsr.benchmark(tiny_rrdb(), toy, name="bad", against={"worse": net(Upscale), "bicubic": "bicubic"}).table
    lines = pd.read_csv("leaderboards/toy/results.csv")
    means = (
        lines.groupby(["threat", "model"])[["psnr", "ssim", "lpips"]].mean().round({"psnr": 2, "ssim": 3, "lpips": 3})
    )
    ranks = means.assign(lpips=-means.lpips).groupby("threat").rank(ascending=False, method="min")
    mean = ranks.mean(axis=1).groupby("model").mean()
    assert table.model[0] == "bicubic"
    assert list(mean[table.model]) == sorted(mean)
    assert list(table["rank"]) == [int(rank) for rank in sorted(mean.rank(method="min"))]


def test_gaps_rank_last(toy: str, tmp_path: Path) -> None:
    card = Path(toy_card(tmp_path, "toy-gone"))
    card.write_text(card.read_text().replace('"compact"', '"paper"'))
    (tmp_path / "toy-gone.safetensors").unlink()
    table = benchsr.benchmark(net(Upscale), toy, "clean", against=f"bicubic,{card}").table.set_index("model")
    assert table.index[-1] == "toy-gone"
    assert table["rank"]["toy-gone"] == 3
    assert table.clean_status["toy-gone"] == "unavailable"
    assert math.isnan(table.clean_psnr["toy-gone"])


def test_a_model_that_was_not_in_the_run_is_compared_through_the_same_cache(
    toy: str,
) -> None:
    report = benchsr.benchmark(tiny_rrdb(), toy, against="")
    assert list(report.table.model) == ["mine"]
    before = pd.read_csv("leaderboards/toy/results.csv")
    compared = report.compare("floor=bicubic")
    lines = pd.read_csv("leaderboards/toy/results.csv").set_index("model")
    assert (compared.a, compared.b) == ("mine", "floor")
    mine = lines.reset_index().query("model == 'mine'").reset_index(drop=True)
    pd.testing.assert_frame_equal(mine[before.columns], before)
    clean = lines[lines.threat == "clean"].psnr.groupby("model").mean()
    found = compared.table.set_index(["metric", "threat"]).difference
    assert found["psnr", "clean"] == pytest.approx(clean["mine"] - clean["floor"])
    for other in ("bicubic,floor=bicubic", "mine=bicubic"):
        with pytest.raises(InputError, match="with one other model"):
            report.compare(other)


def test_names_and_families_that_clash_are_refused_before_the_run(toy: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two of the models are called 'mine'"):
        benchsr.benchmark(tiny_rrdb(), toy, against={"mine": tiny_rrdb()})
    with pytest.raises(InputError, match="mine and toy-small share no table"):
        benchsr.benchmark(tiny_rrdb(), toy, against=toy_card(tmp_path, "toy-small"))
    with pytest.raises(InputError, match="train mode"):
        benchsr.benchmark(tiny_rrdb().train(), toy)
    assert not (tmp_path / "leaderboards").exists()


def test_a_network_of_another_scale_is_measured_beside_models_of_that_scale(toy: str) -> None:
    report = benchsr.benchmark(nn.Upsample(scale_factor=2).eval(), toy, threats="clean", scale=2)
    assert set(report.table.model) == {"mine", "bicubic"}
    assert report.folder.name == "toy-x2"
