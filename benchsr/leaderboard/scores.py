"""From records to cells: means over images with bootstrap intervals. Everything else is derived from these."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchsr.metrics.quality import METRICS
from benchsr.results.records import Record, Status, metrics_of

Floats = NDArray[np.float64]
CellStatus = Literal["ok", "partial", "failed", "unavailable", "not run"]

SCORED = ("psnr", "ssim", "lpips")
"""Metrics of the paper's tables, in its order: the first columns of every array of scores."""

SIGN = np.array([1.0 if METRICS[name].higher_is_better else -1.0 for name in SCORED])
"""Turns scores into "higher is better"."""


def sign(metric: str) -> float:
    """1 where higher is better, else -1: turns a metric's figures into "higher is better"."""
    return 1.0 if METRICS[metric].higher_is_better else -1.0


def brief(metrics: Iterable[str]) -> list[str]:
    """The metrics that short tables show: SSIM, which goes with PSNR, is left out where there are others."""
    found = list(metrics)
    return [metric for metric in found if metric != "ssim"] or found


RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% bootstrap percentile interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Cell:
    """One model under one threat, averaged over images.

    `n` images were scored by `metrics`, k of them; `mean` is (k,), and `draws` (RESAMPLES, k) holds the mean of every
    bootstrap resample. Two cells on the same images are resampled alike, so that draws may be subtracted. Both are NaN
    where nothing was scored. Where `status` is not "ok", or a metric has no figure, `reason` says why. `shares` are
    the images' parts (k,) of the mean, for paired tests; a difference of cells has none.
    """

    n: int
    mean: Floats
    draws: Floats
    status: CellStatus
    reason: str = ""
    shares: Mapping[str, Floats] = field(default_factory=dict)
    metrics: tuple[str, ...] = SCORED

    @property
    def ok(self) -> bool:
        """Whether every image of the protocol was scored: only then may the cell be ranked or compared."""
        return self.status == "ok"

    def of(self, metric: str, scores: Floats) -> Floats:
        """One metric's part (...) of scores (..., k) of this cell; NaN where it was not computed."""
        if metric not in self.metrics:
            return np.full(scores.shape[:-1], np.nan)
        return scores[..., self.metrics.index(metric)]

    def value(self, metric: str) -> float:
        """Mean of one metric."""
        return float(self.of(metric, self.mean))

    def estimate(self, metric: str) -> Estimate:
        """Mean and interval of one metric."""
        return Estimate(self.value(metric), *interval(self.of(metric, self.draws)))

    def only(self, metrics: Sequence[str]) -> Cell:
        """The same of these of its metrics alone."""
        i = [self.metrics.index(metric) for metric in metrics]
        shares = {image: share[i] for image, share in self.shares.items()}
        return replace(self, mean=self.mean[i], draws=self.draws[:, i], shares=shares, metrics=tuple(metrics))


Grid = Mapping[tuple[str, str], Cell]
"""(model id, threat id) -> cell."""

NOT_RUN = Cell(0, np.full(3, np.nan), np.full((RESAMPLES, 3), np.nan), "not run", "was not part of any run so far")


def interval(draws: Floats) -> tuple[float, float]:
    """The 95% percentile interval of bootstrap draws (B,). Draws may be infinite: nothing is interpolated."""
    ordered = np.sort(draws)
    cut = int(len(draws) * (1 - CONFIDENCE) / 2)
    return float(ordered[cut]), float(ordered[-1 - cut])


@lru_cache(maxsize=64)
def resampling_weights(images: tuple[str, ...]) -> Floats:
    """How often each of n images is drawn in each resample, divided by n: (RESAMPLES, n), rows sum to 1.

    Seeded by the images' names: the same images are always resampled alike, other images independently.
    """
    seed = int.from_bytes(hashlib.sha256("\x1f".join(images).encode()).digest()[:8], "little")
    n = len(images)
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n


def resampled_means(values: Floats, images: tuple[str, ...]) -> Floats:
    """Means (RESAMPLES, k) of bootstrap resamples of `values` (n, k), one row for each of `images`.

    PSNR of equal images is infinite; a resample holding such an image has an infinite mean.
    """
    weights, infinite = resampling_weights(images), np.isposinf(values)
    means = weights @ np.where(infinite, 0.0, values)
    means[weights @ infinite > 0] = np.inf
    return means


def make_cell(records: Sequence[Record], expected: int) -> Cell:
    """The cell of one (model, threat) from its records, of which a full set has `expected`."""
    done = sorted((r for r in records if r.status is Status.OK), key=lambda r: r.image)
    others = [r for r in records if r.status is not Status.OK]
    if not done:
        worst: CellStatus = "failed" if any(r.status is Status.FAILED for r in others) else "unavailable"
        why = "; ".join(dict.fromkeys(r.reason for r in others))
        return Cell(0, NOT_RUN.mean, NOT_RUN.draws, worst, why) if others else NOT_RUN
    metrics, images = tuple(dict.fromkeys([*SCORED, *metrics_of(done)])), [r.image for r in done]
    values = np.array([[r.scores.get(m, np.nan) for m in metrics] for r in done])
    if not others and len(done) >= expected:
        return _whole(values, images, metrics, "; ".join(dict.fromkeys(r.reason for r in done if r.reason)))
    draws = resampled_means(values, tuple(images))
    causes = Counter(f"{r.status}: {r.reason}" for r in others)
    why = "; ".join([f"{len(done)} of {max(expected, len(records))} images", *(f"{n} {c}" for c, n in causes.items())])
    return Cell(len(done), values.mean(axis=0), draws, "partial", why, metrics=metrics)


def _whole(values: Floats, images: Sequence[str], metrics: tuple[str, ...], reason: str = "") -> Cell:
    """The complete cell of `values` (n, k), a row for each of `images`, sorted, and a column for each of `metrics`."""
    shares = {image: v / len(images) for image, v in zip(images, values, strict=True)}
    draws = resampled_means(values, tuple(images))
    return Cell(len(images), values.mean(axis=0), draws, "ok", reason, shares, metrics)


def make_grid(records: Iterable[Record], expected: Mapping[str, int]) -> Grid:
    """All cells. `expected` says for each threat how many images make a full set."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.model, record.threat), []).append(record)
    return {pair: make_cell(group, expected.get(pair[1], 0)) for pair, group in groups.items()}


def average(cells: Sequence[Cell]) -> Cell:
    """The plain mean of several cells' means, as in the paper's "Avg" columns: "ok" only where all of them are."""
    if lacking := _lacking(cells):
        return lacking
    cells = _alike(cells)
    mean, draws = (np.mean([getattr(cell, name) for cell in cells], axis=0) for name in ("mean", "draws"))
    shares: dict[str, Floats] = {}
    for image, share in chain.from_iterable(cell.shares.items() for cell in cells):
        shares[image] = shares.get(image, 0.0) + share / len(cells)
    why = "; ".join(dict.fromkeys(cell.reason for cell in cells if cell.reason))
    return Cell(sum(cell.n for cell in cells), mean, draws, "ok", why, shares, cells[0].metrics)


def worst(cells: Sequence[Cell]) -> Cell:
    """Of each image the worst figure of several cells, metric by metric: a bound on what any one of them says alone.

    "ok" only where all of them are; their images are the same.
    """
    if lacking := _lacking(cells):
        return lacking
    cells = _alike(cells)
    images, metrics = sorted(set.intersection(*(set(cell.shares) for cell in cells))), cells[0].metrics
    signs = np.array([sign(m) for m in metrics])
    values = np.array([[cell.shares[image] * cell.n for image in images] for cell in cells])
    return _whole(signs * (signs * values).min(axis=0), images, metrics)


def _lacking(cells: Sequence[Cell]) -> Cell | None:
    """An empty cell with the reason of the first of `cells` that is not complete."""
    first = next((cell for cell in cells if not cell.ok), None)
    return first and Cell(0, NOT_RUN.mean, NOT_RUN.draws, first.status, first.reason)


def _alike(cells: Sequence[Cell]) -> list[Cell]:
    """The cells with those metrics that all of them have."""
    common = [m for m in cells[0].metrics if all(m in cell.metrics for cell in cells)]
    return [cell.only(common) for cell in cells]


def subtract(a: Cell, b: Cell) -> Cell:
    """a - b, image by image: the draws are paired where both saw the same images. "ok" only where both are."""
    if lacking := _lacking([a, b]):
        return lacking
    a, b = _alike([a, b])
    with np.errstate(invalid="ignore"):  # inf - inf: two perfect PSNRs have no difference
        return Cell(min(a.n, b.n), a.mean - b.mean, a.draws - b.draws, "ok", metrics=a.metrics)
