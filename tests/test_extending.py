"""A threat, a metric, a data set, a defence and a model, each added in one place from outside: an installed package."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from toys import FakeLpips, call, package, toy_card

from benchsr.base.errors import InputError, UnknownIdError
from benchsr.base.registry import Registry
from benchsr.commands.compare import compare_named
from benchsr.commands.run import evaluate
from benchsr.commands.submit import submit
from benchsr.data.datasets import load_dataset
from benchsr.defences.table import DEFENCES, Defence, load_model
from benchsr.evaluation.options import RunOptions
from benchsr.evaluation.plan import plan, resolve
from benchsr.evaluation.protocol import load_protocol
from benchsr.leaderboard import read_leaderboard
from benchsr.leaderboard.export import exhibit
from benchsr.metrics.quality import METRICS, Metric
from benchsr.models.live import select
from benchsr.models.zoo import zoo
from benchsr.results.records import write_results
from benchsr.site.build import build_site
from benchsr.threats.table import THREATS, ThreatSpec, load_threat


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


DARKER = ThreatSpec("Darker", "corruption", darken)
BIAS = Metric("bias", "Bias", "", True, brightness)
CONTRAST = Metric("contrast", "Contrast", "grey levels", False, contrast, decimals=4)
BRIGHTER = Defence("Brighter", lambda network, *, seed, by=0.125: Brighter(network, by))

TABLES: tuple[Registry[Any], ...] = (THREATS, METRICS, DEFENCES)

POINTS = {
    "benchsr.threats": {"darker": "extra_pack:DARKER"},
    "benchsr.metrics": {"bias": "extra_pack:BIAS", "contrast": "extra_pack:CONTRAST"},
    "benchsr.defences": {"brighter": "extra_pack:BRIGHTER"},
    "benchsr.models": {"toy-plain": "extra_pack:CARD"},
}


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tables know nothing of installed packages, as a new process does."""
    for table in TABLES:
        own = {name: table[name] for name in table._entries if not table.origins([name])}
        for name, fresh in {"_entries": own, "_points": None, "_origins": {}, "_broken": {}}.items():
            monkeypatch.setattr(table, name, fresh)
    zoo.cache_clear()


@pytest.fixture
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", FakeLpips)
    monkeypatch.chdir(tmp_path)
    forget(monkeypatch)
    yield
    zoo.cache_clear()


@pytest.fixture
def _packaged(site: Path, _fresh: None) -> None:
    """The package extra-pack with one of each, whose card lies beside its code."""
    code = f"""
from pathlib import Path
from {__name__} import BIAS, BRIGHTER, CONTRAST, DARKER
from benchsr.models import load_card
CARD = load_card(Path(__file__).with_name("toy-plain.toml"))
"""
    toy_card(site, "toy-plain")
    package(site, "extra-pack", POINTS, code)


def mine(folder: Path) -> Path:
    """A protocol that asks for them on one image."""
    (folder / "cat.toml").write_text(
        'id = "cat"\ntitle = "One cat"\nlicence = "CC0"\npaper = "none"\ncount = 1\nscales = [4]\n'
        '[lr]\nkind = "made"\n[source]\nkind = "embedded"\nimages = ["chelsea.png"]\n'
    )
    file = folder / "mine.toml"
    file.write_text(
        f'id = "mine"\ntitle = "Mine"\ndataset = "{folder / "cat.toml"}"\n'
        'crop = 16\nthreats = ["clean", "darker"]\n'
        '[metrics]\nnames = ["psnr", "ssim", "lpips", "bias", "contrast", "ms-ssim"]\nquantise_sr = false\n'
        "[settings.darker]\nby = 0.1\n"
    )
    return file


@pytest.mark.usefixtures("_packaged")
def test_one_of_each_is_seen_in_a_run(site: Path, tmp_path: Path) -> None:
    defended = site / "toy-defended.toml"
    text = (site / "toy-plain.toml").read_text().replace("toy-plain", "toy-defended", 1)
    defended.write_text(text.replace("Toy toy-plain", "Toy defended") + '[defence]\nname = "brighter"\n')
    options = RunOptions(out=tmp_path / "out", cache=tmp_path / "cache", device="cpu")
    evaluate(f"bicubic,toy-plain,{defended}", "all", mine(tmp_path), options)
    table = pd.read_csv(tmp_path / "out" / "mine" / "results.csv").set_index(["model", "threat", "image"])
    assert (table.status == "ok").all(), table.reason.tolist()
    assert set(table.index.get_level_values("image")) == {"chelsea"}
    bias = table.bias.droplevel("image")
    assert bias["bicubic", "darker"] - bias["bicubic", "clean"] == pytest.approx(-0.1, abs=0.01)
    assert 0.02 < bias["toy-defended", "clean"] - bias["toy-plain", "clean"] <= 0.125
    assert "darker" in (tmp_path / "out" / "mine" / "leaderboard.json").read_text()
    own = pd.read_csv(tmp_path / "out" / "mine" / "packages-compact.csv").set_index("model")
    assert own.darker_psnr["toy-plain"] == pytest.approx(table.psnr["toy-plain", "darker", "chelsea"], abs=0.01)
    assert own.darker_psnr_rank.min() == 1
    assert "packages-compact" in (tmp_path / "out" / "mine" / "report.md").read_text()
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


@pytest.mark.usefixtures("_packaged")
def test_the_command_line_knows_what_a_package_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchsr.leaderboard.report.all_plots", lambda *_: iter(()))
    mine(tmp_path)
    command = "run --models toy-plain --threats darker --defence brighter --protocol mine.toml --out out --workers 1"
    assert call(monkeypatch, command) == 0
    lines = pd.read_csv(tmp_path / "out/mine/results.csv").set_index("model")
    assert lines.bias["brighter+toy-plain"] > lines.bias["toy-plain"]
    [made_in] = json.loads((tmp_path / "out/mine/environments.json").read_text()).values()
    assert made_in["versions"]["extra-pack"] == "1.0"
    settings = json.loads((tmp_path / "out/mine/protocol.json").read_text())
    assert settings["metrics"]["bias"] == "extra-pack 1.0"
    capsys.readouterr()
    monkeypatch.setattr("benchsr.cli.entries.out", Console(width=300))
    for group, points in POINTS.items():
        assert call(monkeypatch, f"list {group.partition('.')[2]}") == 0
        told = [line for line in capsys.readouterr().out.splitlines() if "extra-pack 1.0" in line]
        assert sorted(line.split()[0] for line in told) == sorted(points)


def keys(board: Path, model: str, threat: str, metrics: str = '"psnr"') -> tuple[set[str], set[str], str]:
    """Of attacked images, of evaluations, and the fingerprint."""
    text = mine(board).read_text().replace('["clean", "darker"]', f'["{threat}"]').partition("[metrics]")[0]
    file = board / "other.toml"
    file.write_text(f"{text}[metrics]\nnames = [{metrics}]\n")
    asked = load_protocol(file)
    data = load_dataset(asked.dataset, crop=asked.crop, scale=asked.scale)
    cells, missing = plan(asked, resolve(select(model)), [threat], data, "cpu")
    assert not missing
    attacks = {key for cell in cells for key in cell.attack_keys.values()}
    return attacks, {record.key for cell in cells for record in cell.records}, asked.fingerprint


ASKED = {
    "threat": ("bicubic", "darker"),
    "metric": ("bicubic", "noise", '"psnr", "bias"'),
    "defence": ("brighter+bicubic", "noise"),
    "attack": ("brighter+bicubic", "square"),
    "model": ("toy-plain", "fgsm"),
    "ours": ("jpeg+bicubic", "pgd-median", '"psnr", "ssim", "dists"'),
}


@pytest.mark.usefixtures("_packaged")
def test_the_origin_of_what_computes_a_figure_is_in_its_keys(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {name: keys(tmp_path, *asked) for name, asked in ASKED.items()}
    (site / "extra_pack-1.0.dist-info").rename(site / "extra_pack-1.1.dist-info")
    meta = site / "extra_pack-1.1.dist-info" / "METADATA"
    meta.write_text(meta.read_text().replace("1.0", "1.1"))
    forget(monkeypatch)
    second = {name: keys(tmp_path, *asked) for name, asked in ASKED.items()}
    same = {name: [a == b for a, b in zip(first[name], second[name], strict=True)] for name in ASKED}
    assert same == {  # attacked images, evaluations, fingerprint
        "threat": [False, False, False],
        "metric": [True, False, False],
        "defence": [True, False, True],
        "attack": [False, False, True],
        "model": [True, True, True],  # its weights are what counts, and stay
        "ours": [True, True, True],
    }
    monkeypatch.setattr("sys.path", [path for path in sys.path if path != str(site)])
    forget(monkeypatch)
    assert keys(tmp_path, *ASKED["ours"]) == first["ours"]
    with pytest.raises(UnknownIdError):
        THREATS["darker"]


@pytest.mark.usefixtures("_packaged")
def test_a_submission_says_which_package_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchsr.leaderboard.report.all_plots", lambda *_: iter(()))
    file = mine(tmp_path)
    file.write_text(file.read_text().replace('"ssim", "lpips", "bias", "contrast", "ms-ssim"', '"contrast"'))
    card = tmp_path / "toy-mine.toml"
    toy_card(tmp_path, "toy-mine", more='[defence]\nname = "brighter"\n')
    text = submit(card, file, device="cpu").text
    for entry in ("threat darker", "metric contrast", "defence brighter"):
        assert f"{entry} is of extra-pack 1.0; who has not installed it" in text
    assert "model " not in "".join(line for line in text.splitlines() if "extra-pack" in line)


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("entry", ["None", "load_card('bicubic')", "live.live('toy-plain', net())"])
def test_a_model_that_is_no_card_of_its_own_is_left_out(
    entry: str, site: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = f"from toys import net\nfrom benchsr.models import live, load_card\nCARD = {entry}"
    package(site, "odd", {"benchsr.models": {"toy-plain": "odd:CARD"}}, code)
    assert "toy-plain" not in list(zoo())
    assert zoo()["bicubic"].id == "bicubic"
    assert "model 'toy-plain' of odd 1.0 cannot be used (it " in caplog.messages[0]


@pytest.mark.usefixtures("_fresh")
def test_the_package_of_the_docs_works(site: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
    project, code = (text.partition(f"```{kind}\n")[2].partition("```")[0] for kind in ("toml", "python"))
    toy_card(site, "my-model")
    package(site, "my-robustness", tomllib.loads(project)["project"]["entry-points"], code)
    lr = torch.rand((1, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_threat("darker")(load_model("bicubic"), lr, torch.zeros(1, 3, 32, 32)), (lr - 0.1).clamp(0))
    answers = [load_model(model)(lr) for model in ("brighter+my-model", "my-model")]
    assert torch.allclose(answers[0], answers[1] + 0.1)
    assert METRICS["contrast"]({"sr": answers[1].clamp(0, 1)}).shape == (1,)
