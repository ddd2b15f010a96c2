"""What docs/performance.md makes of measurements, and how two runs of README's command are compared."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from benchmarks.machine import cpu_flags, machine
from benchmarks.readme_command import FIGURES, ROW, compared
from benchmarks.report import document, verdicts
from benchmarks.test_speed import BOARD, CELLS, product, whole_image
from benchmarks.toil import spread, toil
from benchmarks.workloads import Job, flop, network, scene, trunk

JOB = {"network": "rrdb-23", "height": 48, "width": 48, "images": 1, "steps": None, "draws": 21}


def times(**seconds: float) -> dict[str, list[dict[str, float]]]:
    return {name.replace("_", " "): [{"seconds": s, "cpu_seconds": s}] for name, s in seconds.items()}


FLOP = {"flop": 2e9, "flop_per_second": 1e9}


def case(attack: str, **about: Any) -> dict[str, Any]:
    return {"kind": "speed", "name": attack, "job": {**JOB, "attack": attack}, "load": 0.0, **FLOP, **about}


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
    assert "| PGD | 48x48 | fp32 | 10 s | 5.5 s | 0.55 | 0.55 | 1.000 | 36% | 0.0 |" in page


def test_runs_are_compared_row_by_row() -> None:
    def run(*psnr: str) -> pd.DataFrame:
        rows = [("m", "pgd", str(k), value, "0.5", "0.1") for k, value in enumerate(psnr)]
        return pd.DataFrame(rows, columns=[*ROW, *FIGURES]).set_index(ROW)

    found = compared(run("20.1", "21.0", "22.0"), run("20.1", "21.5"))
    assert (found["rows_old"], found["rows_shared"], found["rows_equal"]) == (3, 2, 1)
    assert found["cells_moved"] == ["m / pgd"]
    assert found["largest_move_of_a_cell"] == pytest.approx({"psnr": 0.25, "ssim": 0, "lpips": 0})


def test_arithmetic_is_counted_forward_and_back() -> None:
    x, weight = torch.rand(1, 3, 8, 8, requires_grad=True), torch.rand(4, 3, 3, 3)
    forward = 2 * 64 * weight.numel()
    assert flop(lambda: F.conv2d(x, weight, padding=1)) == forward
    assert flop(lambda: torch.autograd.grad(F.conv2d(x, weight, padding=1).sum(), x)[0]) == 2 * forward


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_gpu_is_asked_works_on_a_cpu() -> None:
    job = Job("compact", "pgd", "fp32", 16, 16, steps=1, device="cpu")
    measured = whole_image(job)
    lr, hr = scene(job)
    assert measured["step_flop"] == 2 * (flop(lambda: network("compact")[0](lr)) + flop(lambda: trunk("vgg16")(hr)))
    assert measured["forward_seconds"] > 0
    assert set(measured) == {"step_seconds", "forward_seconds", "step_flop", "peak_bytes"}
    assert product(torch.float32, "cpu", 64) > 0


def test_cells_are_spread_as_those_of_a_board() -> None:
    shares = spread(BOARD, CELLS)
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)
    assert shares[0] > 10 * shares[CELLS // 2]
    cells = toil(shares, 100_000)
    assert min(cell.pieces for cell in cells) == 1
    assert sum(cell.pieces for cell in cells) == pytest.approx(100_000, rel=0.02)
