"""What `benchsr sensitivity` measured, beside a board: means over images, maps over frequencies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

from benchsr.leaderboard.scores import Estimate, Floats, interval, resampled_means
from benchsr.leaderboard.tables import CardInfo
from benchsr.metrics.sensitivity import opposite
from benchsr.results.lines import read_table
from benchsr.threats.balls import Norm

SENSITIVITY = "sensitivity"
"""Name of the file and the plot."""

COLUMNS = ("model", "network", "image", "side", "figure", "ky", "kx", "value", "products", "residual", "reason", "key")
"""Columns of sensitivity.csv. `figure`: "singular", the largest singular value of the Jacobian with the products that
it took and the residual; "gain", at the frequency `ky`, `kx` in cycles per image, which has `side` LR pixels; or one of
SMALLEST, the norm of the smallest change that was found to cost DROP dB of PSNR ([0, 1] units; in l2 over the whole LR
image), without a value where none was, with the `reason`."""

SMALLEST: Mapping[str, Norm] = {"smallest-linf": "linf", "smallest-l2": "l2"}
"""Figures of the smallest change, and its norm."""

DROP = 3.0
"""dB of PSNR that the smallest change costs: it doubles the mean squared error."""

TYPES = {
    **dict.fromkeys(("model", "network", "image", "figure", "key"), "object"),
    **{"side": "int64", "value": "float64", "residual": "float64"},
    **dict.fromkeys(("ky", "kx", "products"), "Int64"),
}
"""What pandas is to take the columns for, but for the reason."""

COUNTS = {"ky": "Int64", "kx": "Int64", "products": "Int64"}
"""Columns that hold whole numbers, or none."""

LARGEST = 32 / 255
"""Root mean square of the largest changes among which the smallest is sought; in L-infinity their eps."""

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
    data = read_table(path, TYPES, "make it with: benchsr sensitivity")
    data = data.assign(
        reason=data["reason"].astype(object).fillna("").astype(str) if "reason" in data else ""
    )  # older files have none
    return data[list(COLUMNS)]


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
        lines = _lines(data, card, networks, ("singular", "gain"))
        singular, gains = (lines[lines["figure"] == figure] for figure in ("singular", "gain"))
        if len(singular) and len(gains):
            found.append(_of(card, singular, gains, int(lines["side"].iloc[0])))
    return found


def _lines(data: pd.DataFrame, card: CardInfo, networks: Mapping[str, str], figures: Iterable[str]) -> pd.DataFrame:
    """Lines with these figures of a card's present weights, at the largest side that was measured."""
    lines = data[(data["model"] == card.id) & data["figure"].isin(list(figures))]
    if card.id in networks:
        lines = lines[lines["network"] == networks[card.id]]
    largest: pd.DataFrame = lines[lines["side"] == lines["side"].max()]
    return largest


@dataclass(frozen=True)
class Smallest:
    """One model as deployed: figure of SMALLEST -> the smallest change of each image that costs DROP dB, ascending; inf
    where none was found.
    """

    card: CardInfo
    side: int
    values: Mapping[str, Sequence[float]]

    @property
    def images(self) -> int:
        """How many images were searched."""
        return len(self.values["smallest-linf"])

    @property
    def cells(self) -> list[str]:
        """Median, smallest and largest over images, in L-infinity in 255ths and in l2."""
        return [_spread(self.values["smallest-linf"], 255), _spread(self.values["smallest-l2"])]


def smallest_changes(data: pd.DataFrame, cards: Iterable[CardInfo], networks: Mapping[str, str]) -> list[Smallest]:
    """Those of `cards` whose smallest changes were sought; `networks` as for `sensitivities`."""
    found = []
    for card in cards:
        lines = _lines(data, card, networks, SMALLEST)
        values = {f: sorted(lines[lines["figure"] == f]["value"].astype(float).fillna(np.inf)) for f in SMALLEST}
        if all(values.values()):
            found.append(Smallest(card, int(lines["side"].iloc[0]), values))
    return found


def _spread(values: Sequence[float], unit: float = 1.0) -> str:
    """Median, smallest and largest of ascending `values`, to three digits."""
    middle, least, most = (
        f"{value * unit:.3g}" if np.isfinite(value) else "not reached"
        for value in (median(values), values[0], values[-1])
    )
    return f"{middle} [{least}, {most}]"


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
