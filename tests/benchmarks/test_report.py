"""What docs/performance.md makes of measurements, and how two runs of README's command are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.machine import cpu_flags, machine
from benchmarks.readme_command import FIGURES, ROW, compared
from benchmarks.report import document, verdicts
from benchmarks.test_speed import BOARD, CELLS
from benchmarks.toil import spread, toil

JOB = {"network": "rrdb-23", "height": 48, "width": 48, "images": 1, "steps": None, "draws": 21}


def times(**seconds: float) -> dict[str, list[dict[str, float]]]:
    return {name.replace("_", " "): [{"seconds": s, "cpu_seconds": s}] for name, s in seconds.items()}


def case(attack: str, **about: Any) -> dict[str, Any]:
    return {"kind": "speed", "name": attack, "job": {**JOB, "attack": attack}, "load": 0.0, **about}


STRENGTH = {name: {"loss_attacked": 1.0} for name in ("plain", "fp32")}
CASES = [
    case("pgd", times=times(plain=10.0, fp32=5.5), strength=STRENGTH),
    case("mrs", times=times(plain=9.0, one_by_one=10.0, fp32=7.0)),
    {"kind": "memory", "malloc": "resident", "job": {**JOB, "attack": "pgd"}, "peak_bytes": {"plain": 100, "fp32": 30}},
    {"kind": "again", "first_seconds": 10.0, "second_seconds": 0.4},
    {"kind": "workers", "cells": 1000, "workers": {n: {"seconds": 100 / int(n), "start": 3.0} for n in ("1", "2")}},
    {"kind": "commands", "seconds": {"report": [6.0, 4.0, 5.0], "site": [9.0], "run, all known": [3.0], "list": [0.5]}},
    {"kind": "runner", "cpu_seconds_an_evaluation": 0.0005},
]
README = {
    "seconds": {"old": [100.0], "new": [40.0]},
    "machine": {"cpu": "a CPU", "cores": 2, "capability": "AVX2"},
    "photographs": 2,
    "old_commit": "dc0eb11",
    "new_commit": "",
    **compared(*[pd.DataFrame(columns=[*ROW, *FIGURES]).set_index(ROW)] * 2),
}


def test_every_bar_is_judged() -> None:
    judged = {line.split(" | ")[0].strip("| "): line for line in verdicts(CASES, README).splitlines()[2:]}
    assert {name: line.split(" | ")[-1].strip(" |") for name, line in judged.items()} == {
        "PGD-10, RRDB-23, fp32: time ratio": "met",
        "PGD-10, RRDB-23, fp32: loss ratio": "met",
        "MRS-21, RRDB-23, LR 48x48: time over that of single passes": "missed",
        "PGD, RRDB-23, fp32: peak memory ratio (resident)": "met",
        "second identical run / first": "met",
        "1,000 cells of mixed cost: two workers' speed over one's": "met",
        "`benchsr report`, s": "met",
        "`benchsr site`, s": "missed",
        "`benchsr run`, all known, s": "met",
        "`benchsr list`, s": "met",
        "README's command: today's code / the first round's": "met",
    }


def test_the_page_names_the_instruction_set(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16 sse\n")
    flags = cpu_flags(tmp_path / "cpuinfo")
    assert flags == ["avx2", "avx512_bf16"]
    page = document([{"machine_info": {**machine("a CPU"), "flags": flags}, "cases": CASES}], "plot.png", README)
    assert "of instruction sets it has avx2, avx512_bf16." in page
    assert "| 1 | 2 | 100 s | 40 s | 0.40 |" in page


def test_runs_are_compared_row_by_row() -> None:
    def run(*psnr: str) -> pd.DataFrame:
        rows = [("m", "pgd", str(k), value, "0.5", "0.1") for k, value in enumerate(psnr)]
        return pd.DataFrame(rows, columns=[*ROW, *FIGURES]).set_index(ROW)

    found = compared(run("20.1", "21.0", "22.0"), run("20.1", "21.5"))
    assert (found["rows_old"], found["rows_shared"], found["rows_equal"]) == (3, 2, 1)
    assert found["cells_moved"] == ["m / pgd"]
    assert found["largest_move_of_a_cell"] == pytest.approx({"psnr": 0.25, "ssim": 0, "lpips": 0})


def test_cells_are_spread_as_those_of_a_board() -> None:
    shares = spread(BOARD, CELLS)
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)
    assert shares[0] > 10 * shares[CELLS // 2]
    cells = toil(shares, 100_000)
    assert min(cell.pieces for cell in cells) == 1
    assert sum(cell.pieces for cell in cells) == pytest.approx(100_000, rel=0.02)
