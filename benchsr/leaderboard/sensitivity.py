"""What `benchsr sensitivity` measured, beside a board: means over images, maps over frequencies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchsr.base.errors import InputError
from benchsr.leaderboard.scores import Estimate, Floats, interval, resampled_means
from benchsr.leaderboard.tables import CardInfo
from benchsr.metrics.sensitivity import opposite

SENSITIVITY = "sensitivity"
"""Name of the file and the plot."""

COLUMNS = ("model", "network", "image", "side", "figure", "ky", "kx", "value", "products", "residual", "key")
"""Columns of sensitivity.csv. `figure`: "singular", the largest singular value of the Jacobian with the products that
it took and the residual; or "gain", at the frequency `ky`, `kx` in cycles per image, which has `side` LR pixels."""

COUNTS = {"ky": "Int64", "kx": "Int64", "products": "Int64"}
"""Columns that hold whole numbers, or none."""

SPLIT = 0.25
"""Cycles per LR pixel that part low from high frequencies: half of the most that an axis can have."""


def unmeasured() -> pd.DataFrame:
    """A sensitivity.csv without lines."""
    return pd.DataFrame(columns=list(COLUMNS))


def read_sensitivity(folder: Path) -> pd.DataFrame:
    """sensitivity.csv of the board in `folder`, empty where it is missing. Raises InputError for another file."""
    path = folder / f"{SENSITIVITY}.csv"
    if not path.exists():
        return unmeasured()
    try:
        data = pd.read_csv(path, dtype=COUNTS)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); make it with: benchsr sensitivity") from None
    if lacking := set(COLUMNS) - set(data):
        raise InputError(f"{path}: no column {', '.join(sorted(lacking))}; make it anew with: benchsr sensitivity")
    return data


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """One model: the mean over images of its largest singular value, of its gains at low and at high frequencies, and
    of the gain at each frequency; what the power iteration took at most, and left.

    `map` (n, n) is over ky and kx from the lowest to the highest of `axis`, cycles per LR pixel.
    """

    card: CardInfo
    images: int
    singular: Estimate
    low: Estimate
    high: Estimate
    products: int
    residual: float
    axis: Floats
    map: Floats


def sensitivities(data: pd.DataFrame, cards: Iterable[CardInfo], networks: Mapping[str, str]) -> list[Sensitivity]:
    """Those of `cards` that were measured; `networks`: model -> the beginning of its network's key on the board, since
    lines of other weights do not count.
    """
    found = []
    for card in cards:
        lines = data[data["model"] == card.id]
        if card.id in networks:
            lines = lines[lines["network"] == networks[card.id]]
        lines = lines[lines["side"] == lines["side"].max()]
        singular, gains = (lines[lines["figure"] == figure] for figure in ("singular", "gain"))
        if len(singular) and len(gains):
            found.append(_of(card, singular, gains, int(lines["side"].iloc[0])))
    return found


def _of(card: CardInfo, singular: pd.DataFrame, gains: pd.DataFrame, side: int) -> Sensitivity:
    radius = np.hypot(gains["ky"].astype(float), gains["kx"].astype(float)) / side
    low, high = (
        _estimate(band.groupby("image")["value"].mean()) for band in (gains[radius < SPLIT], gains[radius >= SPLIT])
    )
    means = gains.groupby(["ky", "kx"], as_index=False)["value"].mean()
    mean = {(int(ky), int(kx)): float(v) for ky, kx, v in means[["ky", "kx", "value"]].to_numpy()}
    mean |= {opposite(side, side, *frequency): value for frequency, value in mean.items()}
    axis = sorted({ky for ky, _ in mean})
    return Sensitivity(
        card,
        len(singular),
        _estimate(singular.set_index("image")["value"]),
        low,
        high,
        products=int(singular["products"].max()),
        residual=float(singular["residual"].max()),
        axis=np.array(axis) / side,
        map=np.array([[mean.get((ky, kx), np.nan) for kx in axis] for ky in axis]),
    )


def _estimate(by_image: pd.Series[float]) -> Estimate:
    ordered = by_image.sort_index()
    values = np.array(ordered, dtype=np.float64)[:, None]
    draws = resampled_means(values, tuple(map(str, ordered.index)))[:, 0]
    return Estimate(float(values.mean()), *interval(draws))


def digits(estimate: Estimate) -> str:
    """An estimate with its interval, to three digits."""
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"


def most_sensitive(found: Sequence[Sensitivity]) -> str:
    """Which network moves most and least, as a sentence; empty with fewer than two."""
    if len(found) < 2:
        return ""
    least, *_, most = sorted(found, key=lambda s: s.singular.value)
    return (
        f"The worst small change of LR moves SR by {digits(most.singular)} times its size in {most.card.title}, and by "
        f"{digits(least.singular)} times in {least.card.title}, the least."
    )
