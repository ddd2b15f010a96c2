"""Scores of single noisy answers, in singles.csv beside results.csv: what certificates of a score are derived from.

A line holds all that costs. Radii, confidence and coverage are asked of it later, without another pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchsr.base.files import write_atomic
from benchsr.results.lines import MAX_HEADER, append_line, format_line


@dataclass(frozen=True)
class Singles:
    """How a smoothed model's n noisy answers to one image score, one by one, under N(0, sigma^2 I) of its input.

    `scores`: metric -> n figures in the order of the draws. `k`: draws whose median the deployed model returns.
    `squares`, of a clean image alone, n + 1: the mean, over the `elements` that are scored, of the squared distance of
    the element's j-th closest answer from the truth, j = 1 ... n; last that of the farthest answer that there could be.
    """

    sigma: float
    k: int
    elements: int
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    squares: tuple[float, ...] = ()


_BEFORE, _AFTER = ("sigma", "k", "elements"), ("squares", "key")
"""The columns of singles.csv before and after those of the metrics. Figures of one column are parted by spaces."""


def append_singles(path: Path, key: str, singles: Singles, metrics: Sequence[str]) -> None:
    """Append the single answers of the evaluation `key`; flushed at once. Raises as `append_line`."""
    append_line(path, _columns(metrics), _values(key, singles, metrics))


def write_singles(path: Path, found: Mapping[str, Singles], metrics: Sequence[str]) -> None:
    """Write singles.csv, single answers by key, atomically; take it away where there are none. Raises InputError."""
    lines = sorted(format_line(_values(key, singles, metrics)) for key, singles in found.items())
    if lines:
        write_atomic(path, format_line(_columns(metrics)) + "".join(lines))
    else:
        path.unlink(missing_ok=True)


def read_singles(path: Path) -> dict[str, Singles]:
    """Key -> single answers; lines that are cut short or cannot be read, and a missing file, hold none."""
    found: dict[str, Singles] = {}
    try:
        header, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, ValueError):
        return found
    names = header[:MAX_HEADER].split(",")
    metrics = names[len(_BEFORE) : -len(_AFTER)]
    for line in lines if names == _columns(metrics) else ():
        cells = line.split(",")
        if len(cells) != len(names):
            continue
        try:
            *scores, squares = (tuple(map(float, cell.split())) for cell in cells[len(_BEFORE) : -1])
            named = {metric: values for metric, values in zip(metrics, scores, strict=True) if values}
            singles = Singles(float(cells[0]), int(cells[1]), int(cells[2]), named, squares)
        except ValueError:
            continue
        if not any(math.isnan(v) for values in (*scores, squares) for v in values):
            found[cells[-1]] = singles
    return found


def _columns(metrics: Sequence[str]) -> list[str]:
    return [*_BEFORE, *metrics, *_AFTER]


def _values(key: str, singles: Singles, metrics: Sequence[str]) -> list[str]:
    columns = (*(singles.scores.get(metric, ()) for metric in metrics), singles.squares)
    numbers = [" ".join(f"{v:.6g}" for v in values) for values in columns]
    return [f"{singles.sigma:.9g}", str(singles.k), str(singles.elements), *numbers, key]
