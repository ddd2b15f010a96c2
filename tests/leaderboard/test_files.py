"""The files of a leaderboard's folder: made once of the same figures, whatever became of them since."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from toys import names, records

from benchsr.leaderboard import LeaderboardInfo, report, write_leaderboard
from benchsr.leaderboard.tables import paper_folder
from benchsr.models.zoo import zoo

INFO = LeaderboardInfo("toy", "Toy", "f" * 64, [], ["clean", "pgd"], names(5))
MODELS = ("bicubic", "re-esrgan")
RECORDS = [r for model in MODELS for t in INFO.threats for r in records(model, t, [24.0, 25.0, 26.0, 27.0, 28.0])]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often the files of a board were made so far."""
    count, real = [0], report.board_files

    def board_files(board: report.Leaderboard) -> dict[str, str | bytes | None]:
        count[0] += 1
        return real(board)

    monkeypatch.setattr("benchsr.leaderboard.report.board_files", board_files)
    monkeypatch.setattr("benchsr.leaderboard.report.all_plots", lambda *_: iter(()))
    monkeypatch.setattr("benchsr.base.drawing.cache_dir", lambda: tmp_path / "cache")
    return lambda: count[0]


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_files_are_made_once_and_come_back_as_they_were(tmp_path: Path, made: Callable[[], int]) -> None:
    write_leaderboard(tmp_path / "a", RECORDS, protocol=INFO, cards=zoo())
    first = written(tmp_path / "a")
    assert {"report.md", "claims.csv", "leaderboard.json"} <= set(first)
    before = (tmp_path / "a" / "claims.csv").stat().st_mtime_ns
    (tmp_path / "a" / "report.md").unlink()
    (tmp_path / "a" / "leaderboard.json").write_text("{}")
    (tmp_path / "a" / "curves-compact.md").write_text("of an earlier run")
    write_leaderboard(tmp_path / "a", RECORDS, protocol=INFO, cards=zoo())
    write_leaderboard(tmp_path / "b", list(reversed(RECORDS)), protocol=INFO, cards=dict(zoo()))
    assert written(tmp_path / "a") == written(tmp_path / "b") == first
    assert (tmp_path / "a" / "claims.csv").stat().st_mtime_ns == before
    assert made() == 1


def test_whatever_a_file_says_makes_it_anew(
    tmp_path: Path, made: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(info: LeaderboardInfo = INFO, missing: bool = False, **changes: str) -> int:
        cards = {**zoo(), "bicubic": zoo()["bicubic"].model_copy(update=changes)}
        write_leaderboard(tmp_path / "board", lines, protocol=info, cards=cards, missing=missing)
        return made()

    lines = list(RECORDS)
    assert write() == 1
    lines[0] = replace(lines[0], scores={**lines[0].scores, "psnr": 20.0})
    assert write() == 2
    assert write(replace(INFO, title="Other")) == 3
    assert write(missing=True) == 4
    assert write(title="Another title") == 5
    shutil.copytree(paper_folder(), tmp_path / "paper")
    (tmp_path / "paper" / "claims.toml").write_text((paper_folder() / "claims.toml").read_text() + "# mended\n")
    with monkeypatch.context() as patch:
        patch.setattr("benchsr.leaderboard.files.paper_folder", lambda: tmp_path / "paper")
        assert write() == 6
    with monkeypatch.context() as patch:
        patch.setattr("benchsr.base.drawing._made_with", lambda: "other code")
        assert write() == 7
    assert write() == 7


def test_what_another_package_brings_is_never_remembered(
    tmp_path: Path, made: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchsr.leaderboard.files.THREATS.origins", lambda _: {"pgd": "my-package 1.0"})
    for count in (1, 2):
        write_leaderboard(tmp_path / "board", RECORDS, protocol=INFO, cards=zoo())
        assert made() == count


def test_a_run_imports_what_makes_tables_and_plots_only_where_it_must() -> None:
    script = """
import sys
import benchsr.cli, benchsr.commands.run, benchsr.leaderboard
heavy = {"pandas", "matplotlib", "jinja2", "torchvision", "spandrel", "benchsr.leaderboard.report"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True)
