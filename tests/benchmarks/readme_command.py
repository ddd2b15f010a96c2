"""README's command by two checkouts of benchsr, side by side: seconds of both, and whether their figures agree.

    python tests/benchmarks/readme_command.py OLD_CHECKOUT NEW_CHECKOUT --photographs 2

The old code that docs/performance.md speaks of is the last of the first round, commit dc0eb11 (version 0.1.0):
`git worktree add ../old dc0eb11`. Both run in this Python, in a scratch folder, with caches of their own into which
all weights are fetched before anything is timed; the new code computes the rows and threats that the old one has. Old
and new take turns, `--rounds` times. Writes docs/readme-command.json, which report.py puts into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

TARGET = Path(__file__).parents[2] / "docs" / "readme-command.json"
PERCEPTUAL = "compact-esrgan"
"""A small network: attacked once before the clock starts, for which the weights of the perceptual loss are fetched."""

ROW = ["model", "threat", "image"]
FIGURES = ["psnr", "ssim", "lpips"]
TOLERANCE = {"psnr": 0.1, "ssim": 0.005, "lpips": 0.005}
"""How far the mean of a cell may move: that of `benchsr report --check`."""


@dataclass
class Checkout:
    """One contestant: its code, and a scratch folder with its cache and boards."""

    name: str
    code: Path
    scratch: Path
    seconds: list[float] = field(default_factory=list)

    def run(self, out: str, *options: str) -> float:
        """README's command with `options`, into the folder `out` of boards; its seconds, imports included."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "BENCHSR_"))}
        environment = {**kept, "PYTHONPATH": str(self.code), "BENCHSR_CACHE": str(self.scratch / "cache")}
        folders = ["--out", str(self.scratch / out), "--cache", str(self.scratch / f"attacked-{out}")]
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", "from benchsr.cli import main; main()", "run", *options, *folders],
            cwd=self.scratch,
            env=environment,
            stdout=subprocess.DEVNULL,
            check=False,
        )
        seconds = time.perf_counter() - begun
        if done.returncode:
            raise SystemExit(f"{self.code}: benchsr run {' '.join(options)} ended with exit code {done.returncode}")
        return seconds

    def table(self, out: str) -> pd.DataFrame:
        """What it computed, as text to the last digit."""
        frame = pd.read_csv(self.scratch / out / "quick" / "results.csv", dtype=str, keep_default_na=False)
        return frame[frame.status == "ok"].set_index(ROW)[FIGURES]

    @property
    def commit(self) -> str:
        """The commit that is checked out; empty where that is no repository."""
        asked = ["git", "-C", str(self.code), "rev-parse", "--short", "HEAD"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def compared(old: pd.DataFrame, new: pd.DataFrame) -> dict[str, Any]:
    """How many rows both have, how many are equal to the last digit, and which cells' means moved beyond tolerance."""
    shared = old.index.intersection(new.index)
    a, b = old.loc[shared], new.loc[shared]
    cells = (b.astype(float) - a.astype(float)).groupby(level=["model", "threat"]).mean().abs()
    moved = cells[(cells > pd.Series(TOLERANCE)).any(axis=1)].reset_index().to_dict("records")
    return {
        "rows_old": len(old),
        "rows_shared": len(shared),
        "rows_equal": int((a == b).all(axis=1).sum()),
        "cells_shared": len(cells),
        "cells_moved": [f"{cell['model']} / {cell['threat']}" for cell in moved],
        "largest_move_of_a_cell": {name: float(value) for name, value in cells.max().items()},
    }


def main() -> None:
    """Run both, and write what they took."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from benchmarks.machine import machine, model_name

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, metavar="OLD_CHECKOUT")
    parser.add_argument("new", type=Path, metavar="NEW_CHECKOUT")
    parser.add_argument("--photographs", type=int, default=6, help="Of the six of the protocol quick.")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--models", default="all", help="To try this script itself.")
    parser.add_argument("--threats", default="all", help="To try this script itself.")
    parser.add_argument("--out", type=Path, default=TARGET)
    given = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="benchsr-readme-") as scratch:
        old, new = (Checkout(n, getattr(given, n).resolve(), Path(scratch) / n) for n in ("old", "new"))
        models = given.models
        for checkout in (old, new):
            checkout.scratch.mkdir()
            checkout.run("fetched", "--models", models, "--threats", "clean", "--limit", "1")
            checkout.run("fetched", "--models", PERCEPTUAL, "--threats", "fgsm", "--limit", "1")
            models = ",".join(sorted(set(checkout.table("fetched").reset_index().model)))  # those that can be had
        threats = given.threats
        for number in range(given.rounds):
            for checkout in (old, new):
                chosen = ["--models", models, "--threats", threats, "--limit", str(given.photographs)]
                checkout.seconds.append(checkout.run(f"round{number}", *chosen))
                print(f"{checkout.name}: {checkout.seconds[-1]:.1f} s, load {os.getloadavg()[0]:.1f}", flush=True)
                threats = ",".join(sorted(set(checkout.table(f"round{number}").reset_index().threat)))
        tables = [checkout.table("round0") for checkout in (old, new)]
        result = {
            "machine": machine(model_name()),
            "old_commit": old.commit,
            "new_commit": new.commit,
            "photographs": given.photographs,
            "models": models.split(","),
            "threats": threats.split(","),
            "seconds": {checkout.name: checkout.seconds for checkout in (old, new)},
            "load": os.getloadavg()[0],
            **compared(*tables),
        }
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in result.items() if k not in ("models", "threats", "machine")}, indent=1))


if __name__ == "__main__":
    main()
