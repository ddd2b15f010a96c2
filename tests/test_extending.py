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

from benchsr.base.errors import InputError
from benchsr.base.registry import Registry
from benchsr.commands.compare import compare_named
from benchsr.commands.run import evaluate
from benchsr.defences.table import DEFENCES, Defence
from benchsr.evaluation.options import RunOptions
from benchsr.leaderboard import read_leaderboard
from benchsr.leaderboard.export import exhibit
from benchsr.metrics.quality import METRICS, Metric
from benchsr.models.zoo import zoo
from benchsr.results.records import write_results
from benchsr.site.build import build_site
from benchsr.threats.table import THREATS, ThreatSpec


def darken(x: Tensor, gens: Sequence[torch.Generator], *, by: float = 0.25) -> Tensor:
    return x - by


def brightness(sr: Tensor, hr: Tensor) -> Tensor:
    return (sr - hr).double().flatten(1).mean(1)


def contrast(sr: Tensor) -> Tensor:
    return sr.double().flatten(1).std(1)


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
    add(METRICS, "contrast", Metric("contrast", "Contrast", "grey levels", False, contrast, decimals=4))
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
        '[metrics]\nnames = ["psnr", "ssim", "lpips", "bias", "contrast", "ms-ssim"]\nquantise_sr = false\n'
        "[settings.darker]\nby = 0.1\n"
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
    _metrics_are_everywhere(tmp_path / "out" / "mine", table)


def _metrics_are_everywhere(board: Path, results: pd.DataFrame) -> None:
    """The new metrics in tables, report, plots, page and comparison; one that cannot be computed with its reason."""
    clean = results.contrast.droplevel("image")["toy-plain", "clean"]
    further = pd.read_csv(board / "table1-more-compact.csv").set_index("model")
    assert further.clean_contrast.to_dict()["toy-plain"] == pytest.approx(clean, rel=1e-5)
    best = further[further.clean_contrast == further.clean_contrast.min()]
    assert set(best.clean_contrast_rank) == {1}  # lower is better
    assert not pd.read_csv(board / "table1-compact.csv").filter(regex="bias|contrast").columns.tolist()
    text = (board / "table1-more-compact.md").read_text()
    title = THREATS["clean"].title
    assert " | ".join(f"{title} {metric}" for metric in ("Bias ↑", "Contrast ↓", "MS-SSIM ↑")) in text
    assert f"{clean:.4f}" in text
    assert "ms-ssim: a border of 4 must leave 161 pixels a side; the images are (1, 3, 64, 64)" in text
    assert (board / "heatmap-more-compact.png").is_file()
    assert "](heatmap-more-compact.png)" in (board / "report.md").read_text()

    shown = compare_named("toy-plain", "toy-defended", "mine", board.parent)
    titles = [title for title, _ in shown.sections()]
    assert titles[3:] == ["Bias, higher is better", "Contrast (grey levels), lower is better"]
    [page] = [path for path in build_site(board.parent, board.parent / "page") if path.name == "index.html"]
    html = page.read_text()
    assert f'data-c="clean" data-m="contrast" data-v="{results.contrast["bicubic", "clean", "chelsea"]:.9g}"' in html
    assert '<input type="radio" name="metric" value="bias">' in html
    assert exhibit(read_leaderboard(board, zoo()), board, "table1-more-compact").columns[1][1] == "Contrast"


def test_two_metrics_of_one_name_are_one_clear_error() -> None:
    with pytest.raises(InputError, match="metric 'psnr' is registered already; give one of the two another name"):
        METRICS.add("psnr", Metric("psnr", "Mine", "", True, contrast))


@pytest.mark.parametrize("name", ["seed", "Mine", "a b"])
def test_a_metric_cannot_be_called_as_another_column_is(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"no column of results.csv can be called '{name}'"):
        write_results(tmp_path / "results.csv", [], [name])
