"""Files of a leaderboard that somebody changed: an error that names the file, or the board is shown as it stands."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
from hostile import COUNTS, EXTREMES, HUGE, Survey, jsons, texts
from hypothesis import strategies as st
from toys import names, records

from benchsr.commands.export import export
from benchsr.leaderboard import LeaderboardInfo, read_leaderboard, summary
from benchsr.leaderboard.export import cost_cells, read_costs
from benchsr.leaderboard.report import report
from benchsr.leaderboard.sensitivity import COLUMNS, read_sensitivity, sensitivities, smallest_changes
from benchsr.models.zoo import zoo
from benchsr.results.records import write_results
from benchsr.site.explorer import copy_figures

Record = Callable[[str, object], None]
MODELS, THREATS = ("bicubic", "re-esrgan", "mrs-impressionism-ntire"), ("clean", "noise", "pgd", "fgsm")


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """A small board of made-up figures."""
    folder = tmp_path / "boards" / "toy"
    folder.mkdir(parents=True)
    made = [r for model in MODELS for threat in THREATS for r in records(model, threat, [20.0, 30.0, 25.0])]
    write_results(folder / "results.csv", made)
    about = LeaderboardInfo("toy", "Toy", "ab" * 32, ("Data: none.",), THREATS, names(3))
    (folder / "leaderboard.json").write_text(json.dumps(asdict(about)))
    return folder


def exporting(table: str, board: Path) -> str:
    return f"export {table} --protocol {board.name} --leaderboards {board.parent}"


def use_board(path: Path) -> None:
    """All that is said of a board in words."""
    board = read_leaderboard(path.parent, zoo())
    assert report(board, [])
    assert list(summary(board.records, zoo())) is not None
    export("table1", "csv", path.parent)


DAMAGE: dict[str, Callable[[bytes], st.SearchStrategy[bytes]]] = {
    "leaderboard.json": lambda good: jsons(json.loads(good)),
    "results.csv": texts,
}


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", DAMAGE)
def test_malformed_boards(name: str, count: int, board: Path, tmp_path: Path, record_property: Record) -> None:
    path = board / name
    survey = Survey(tmp_path, path, use_board, exporting("table1", board), names=("is no table of",))
    survey.run(DAMAGE[name](path.read_bytes()), count, [*EXTREMES, *HUGE]).record(record_property)
    assert survey.refused


def measured() -> pd.DataFrame:
    """A sensitivity.csv of one model."""
    figures: list[tuple[object, ...]] = [("singular", None, None, 2.0, 5, 0.1)]
    figures += [("gain", ky, kx, 1.5, None, None) for ky in range(8) for kx in range(8)]
    figures += [(f"smallest-{norm}", None, None, 0.1, None, None) for norm in ("linf", "l2")]
    lines = [("bicubic", "abc", "i0", 8, *figure, "", "k") for figure in figures]
    return pd.DataFrame(lines, columns=list(COLUMNS)).astype(dict.fromkeys(("ky", "kx", "products"), "Int64"))


@pytest.mark.parametrize("count", COUNTS)
def test_malformed_sensitivity(count: int, board: Path, tmp_path: Path, record_property: Record) -> None:
    def use(path: Path) -> None:
        data = read_sensitivity(path.parent)
        for found in (sensitivities(data, [zoo()["bicubic"]], {}), smallest_changes(data, [zoo()["bicubic"]], {})):
            for each in found:
                assert each.images >= 0

    good = measured().to_csv(index=False).encode()
    survey = Survey(tmp_path, board / "sensitivity.csv", use, exporting("table1", board))
    survey.run(texts(good), count, [*EXTREMES, *HUGE]).record(record_property)


@pytest.mark.parametrize("count", COUNTS)
def test_malformed_costs(count: int, board: Path, tmp_path: Path, record_property: Record) -> None:
    good = b"model,lr_side,parameters,macs_pass,passes,macs,peak_bytes,seconds,machine,reason\n"
    good += b"bicubic,64,0,0,1,0,1000,0.01,cpu,\nre-esrgan,64,,,,,,,,no weights\n"
    survey = Survey(
        *(tmp_path, board / "costs.csv", lambda path: cost_cells(read_costs(path.parent))),
        exporting("costs", board),
    )
    survey.run(texts(good), count, [*EXTREMES, *HUGE]).record(record_property)
    assert survey.refused


@pytest.mark.parametrize("count", COUNTS)
def test_malformed_figures(count: int, board: Path, tmp_path: Path, record_property: Record) -> None:
    (board / "figures").mkdir()
    view = {"title": "Bicubic", "change of LR": "none", "lr": "a.webp", "sr": "b.webp"}
    scene = {"title": "x", "image": names(3)[0], "threat": "pgd", "family": "paper", "factor": 12, "error_factor": 3.5}
    scene |= {"input": "a.webp", "truth": "b.webp", "views": {"bicubic": view}}
    good = {"fingerprint": "ab" * 32, "note": "Pictures.", "scenes": [scene]}

    def use(path: Path) -> None:
        assert copy_figures(board, read_leaderboard(board, zoo()), tmp_path / "page")

    survey = Survey(tmp_path, board / "figures" / "figures.json", use)
    survey.run(jsons(good), count, [*EXTREMES, *HUGE]).record(record_property)
