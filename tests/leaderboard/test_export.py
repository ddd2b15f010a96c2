"""Tables in every format, a model's page, and costs beside a board: read back and compared with results.csv."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_leaderboard import card
from toys import call, records

from benchsr.base.errors import InputError
from benchsr.commands.costs import Costs
from benchsr.commands.export import export, write_costs
from benchsr.leaderboard import Leaderboard, LeaderboardInfo, tables
from benchsr.leaderboard.export import FORMATS, Exhibit, exhibit, model_page
from benchsr.leaderboard.plots import pareto_front
from benchsr.models.zoo import zoo
from benchsr.results.records import Record, Status, write_results

THREATS = ("clean", "noise", "blur", "fgsm", "bim", "pgd", "cw")
MODELS = {"bicubic": 2.0, "impressionism-ntire": 1.0, "mrs-impressionism-ntire": 0.0}


def figures() -> list[Record]:
    scene = np.linspace(20, 30, 10)
    return [r for m, lead in MODELS.items() for t in THREATS for r in records(m, t, scene + lead)]


def info(made: list[Record]) -> LeaderboardInfo:
    images = tuple(dict.fromkeys(r.image for r in made))
    return LeaderboardInfo("toy", "Toy 100% & <b>", "ab" * 32, ("Data: photos.",), THREATS, images)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A board of real cards with made-up figures: bicubic leads everywhere."""
    monkeypatch.chdir(tmp_path)
    made = figures()
    folder = tmp_path / "leaderboards" / "toy"
    folder.mkdir(parents=True)
    (folder / "leaderboard.json").write_text(json.dumps(asdict(info(made))))
    write_results(folder / "results.csv", made)
    return folder


def test_csv_is_the_table_itself(board: Path) -> None:
    found = pd.read_csv(io.BytesIO(export("table2", "csv", board)))
    made = figures()
    expected = tables(made, info(made), zoo())["table2"]
    assert list(found) == list(expected)
    for name in ("fgsm_n", "cw_psnr", "bim_lpips_low", "pgd_ssim_rank"):
        np.testing.assert_allclose(found[name], expected[name].astype("float64"), rtol=1e-5)
    assert list(found["pgd_psnr_mark"].dropna()) == ["best", "second"]


def test_html_holds_the_figures_and_marks(board: Path) -> None:
    text = export("table1", "html", board).decode()
    assert ">27.00<" in text
    rule = text.split("{")[0]
    assert re.findall(r"row(\d+)_col0", rule) == ["0"]
    assert "Toy 100% &amp; &lt;b&gt;" in text


def test_latex_is_escaped_and_bold_where_best(board: Path) -> None:
    text = export("table1", "latex", board).decode()
    lines = {line.split(" & ")[0]: line for line in text.splitlines() if line.endswith(r"\\")}
    assert lines["Bicubic interpolation"].split(" & ")[1] == r"\bfseries 27.00"
    assert lines["Impressionism (RealSR) for NTIRE 2020"].split(" & ")[1] == "26.00"
    assert r"Toy 100\% \& <b>" in text
    assert {line.count(" & ") for name, line in lines.items() if name} == {9}
    assert text.count(r"\begin{tabular}{lrrrrrrrrr}") == text.count(r"\bottomrule") == 1


def test_latex_has_no_character_with_a_meaning_left() -> None:
    shown = Exhibit("c", [("", "a_b")], ["50% & #1"], [["~^\\{}$"]], pd.DataFrame())
    text = FORMATS["latex"](shown).decode()
    assert r"50\% \& \#1 & \textasciitilde{}\textasciicircum{}\textbackslash{}\{\}\$ \\" in text
    assert r"a\_b" in text


def test_markdown(board: Path) -> None:
    lines = export("table1", "markdown", board).decode().splitlines()
    first = next(line for line in lines if line.startswith("| Bicubic"))
    assert first.split(" | ")[1] == "**27.00**"
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_missing_images_and_rows_stay_and_say_so() -> None:
    made = [r for r in figures() if not (r.model == "bicubic" and r.image == "image-000" and r.threat == "clean")]
    shown = exhibit(Leaderboard(info(made), zoo(), made), Path(), "table1")
    by_label = dict(zip(shown.labels, shown.cells, strict=True))
    assert by_label["Bicubic interpolation"][0] == "27.56*"
    assert "ESRGAN" not in by_label
    assert re.search(r"Without figures: .*\besrgan\b", shown.caption)
    assert "esrgan" in set(shown.data["model"])
    whole = exhibit(Leaderboard(info(made), zoo(), made, missing=True), Path(), "table1")
    assert set(dict(zip(whole.labels, whole.cells, strict=True))["ESRGAN"]) == {"–"}


def test_parquet(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "fastparquet", None)
    with pytest.raises(InputError, match=r"pip install 'benchsr\[parquet\]'"):
        export("table1", "parquet", board)


def test_parquet_keeps_the_data(board: Path) -> None:
    pytest.importorskip("pyarrow")
    found = pd.read_parquet(io.BytesIO(export("table1", "parquet", board)))
    expected = pd.read_csv(io.BytesIO(export("table1", "csv", board)))
    np.testing.assert_allclose(found["clean_psnr"], expected["clean_psnr"], rtol=1e-5)
    assert list(found) == list(expected)


def test_a_models_page_says_what_its_figures_are(board: Path) -> None:
    text = export("mrs-impressionism-ntire", "markdown", board).decode()
    assert "| Clean LR | 25.00 [" in text
    assert "see the network without that" in text
    assert "Not a row of the paper." in text
    for caveat in zoo()["mrs-impressionism-ntire"].caveats:
        assert caveat in text
    assert "median" not in export("bicubic", "markdown", board).decode()


def test_a_models_page_names_what_is_missing_and_compact_networks() -> None:
    made = [r for r in figures() if r.model == "bicubic" and r.threat != "cw"]
    failed = records("bicubic", "cw", [20.0], status=Status.FAILED, reason="out of memory")
    made += [replace(r, scores={}) for r in failed]
    cards = {"bicubic": card("bicubic", "compact")}
    text = model_page(Leaderboard(info(made), cards, made), cards["bicubic"])
    assert "Not evaluated: cw (out of memory)." in text
    assert "not the paper's model" in text


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("export tabel1 --protocol toy", "its tables: table1, table2"),
        ("export table1 --protocol toy --format word", "unknown format 'word'"),
        ("export bicubic --protocol toy --format csv", "its page is Markdown"),
        ("export esrgan --protocol toy", "no figures on this board"),
        ("export costs --protocol toy", "make it with: benchsr costs"),
        ("export table1 --protocol other", "make it with: benchsr report"),
    ],
)
def test_refusals(
    command: str,
    message: str,
    board: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, command) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_export_writes_a_file(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "export table1 --protocol toy --format latex --out t.tex") == 0
    assert r"\toprule" in (board.parents[1] / "t.tex").read_text()


BICUBIC = Costs("bicubic", 64, 0, 0, 1, 0, 100, 0.1, "m")
RRDB = Costs("impressionism-ntire", 64, 16_697_987, 10**12, 1, 10**12, 10**8, 9.0, "m")


def test_costs_are_kept_by_model(tmp_path: Path) -> None:
    write_costs(tmp_path, [BICUBIC, Costs("esrgan", 64, reason="no weights")])
    data = write_costs(tmp_path, [RRDB]).set_index("model")
    assert list(data.index) == ["bicubic", "esrgan", "impressionism-ntire"]
    assert data.loc["impressionism-ntire", "macs"] == 10**12
    assert (tmp_path / "costs.csv").read_text().splitlines()[2] == "esrgan,64,,,,,,,,no weights"
    again = write_costs(tmp_path, [replace(BICUBIC, lr_side=32)])
    assert list(again["model"]) == ["bicubic"]  # costs at other sizes are not comparable


def test_costs_are_drawn_and_exported(board: Path) -> None:
    write_costs(board, [BICUBIC, RRDB])
    with Image.open(board / "pareto.png") as image:
        assert min(image.size) > 200
    assert not (board / "pareto-compact.png").exists()  # of one model
    text = export("costs", "markdown", board).decode()
    assert "| impressionism-ntire | 16.70 | 1000.00 | 1 | 100 | 9 |" in text
    assert "64 x 64 pixels" in text
    assert "16.70 & 1000.00 & 1 & 100 & 9" in export("costs", "latex", board).decode()


def test_costs_command(board: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "costs --models bicubic --lr-side 8 --protocol toy") == 0
    shown = capsys.readouterr().out
    assert "8 x 8 pixels" in shown
    assert shown.splitlines()[2].split()[:3] == ["bicubic", "0.00", "0.00"]
    assert pd.read_csv(board / "costs.csv").loc[0, "model"] == "bicubic"
    (board / "costs.csv").write_text("model,price\nbicubic,3\n")
    assert call(monkeypatch, "costs --models bicubic --lr-side 8 --protocol toy") == 2
    assert "no column" in capsys.readouterr().err


def test_pareto_front() -> None:
    costs, values = [1, 2, 2, 3, 5], [10, 12, 14, 14, 13]
    assert pareto_front(costs, values, True) == [0, 2]
    assert pareto_front(costs, values, False) == [0]
    assert pareto_front([5, 1], [3, 1], True) == [1, 0]
    rng = np.random.default_rng(0)
    costs, values = list(rng.uniform(size=30)), list(rng.uniform(size=30))
    beaten = {i for i in range(30) for j in range(30) if costs[j] < costs[i] and values[j] >= values[i]}
    assert set(pareto_front(costs, values, True)) == set(range(30)) - beaten
