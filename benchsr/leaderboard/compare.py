"""Two models on the same images: paired differences, how sure they are, and what so many images can show at all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import nctdtrinc
from scipy.stats import t

from benchsr.base.errors import InputError
from benchsr.leaderboard.scores import Estimate, Floats, interval, resampled_means
from benchsr.metrics.quality import METRICS
from benchsr.results.records import Record, Status, metrics_of
from benchsr.threats.table import THREATS

if TYPE_CHECKING:
    import pandas as pd

LEVEL = 0.05
"""Chance of any false finding within a family of tests."""

POWER = 0.8
"""Chance with which the smallest detectable difference is found."""

FLIPS = 9_999
"""Random sign flips where there are more than so many; below, every one is taken."""


@lru_cache(maxsize=64)
def sign_flips(images: tuple[str, ...]) -> tuple[Floats, bool]:
    """Signs (F, n) to multiply paired differences with, and whether they are all that there are.

    Every one means half of 2^n: a flip and its opposite give sums as far from zero. Random ones are seeded by the
    images' names.
    """
    n = len(images)
    if 2 ** (n - 1) <= FLIPS:
        bits = np.arange(2 ** (n - 1))[:, None] >> np.arange(n) & 1
        return (1 - 2 * bits).astype(np.float64), True
    seed = int.from_bytes(hashlib.sha256("\x1f".join(("flips", *images)).encode()).digest()[:8], "little")
    bits = np.random.default_rng(seed).integers(0, 2, size=(FLIPS, n))
    return (1 - 2 * bits).astype(np.float64), False


def sign_flip_test(differences: Floats, images: tuple[str, ...]) -> Floats:
    """Two-sided p-values (k,) of the mean of paired `differences` (n, k), n > 0, a row for each of `images`.

    The hypothesis: on each image the two models might as well swap their figures, so that each difference might have
    the other sign. Exact where every flip is taken; otherwise the observed one counts among the random ones (Phipson
    and Smyth 2010). NaN where a difference is not finite.
    """
    finite = np.isfinite(differences).all(axis=0)
    values = np.where(finite, differences, 0.0)
    flips, exact = sign_flips(images)
    observed = np.abs(values.sum(axis=0))
    extreme = (np.abs(flips @ values) >= observed * (1 - 1e-9)).sum(axis=0)
    p = extreme / len(flips) if exact else (extreme + 1) / (len(flips) + 1)
    return np.where(finite, p, np.nan)


def smallest_p(n: int) -> float:
    """The smallest p-value that `sign_flip_test` can give for n images."""
    return max(2.0 ** (1 - n), 1 / (FLIPS + 1))


def holm(p: Floats) -> Floats:
    """Holm's (1979) step-down adjustment of the p-values (m,) of one family of tests; NaN is in no family."""
    adjusted = np.full(len(p), np.nan)
    order = np.argsort(p)[: int(np.isfinite(p).sum())]
    stepped = (len(order) - np.arange(len(order))) * p[order]
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(stepped))
    return adjusted


def detectable(deviation: float, n: int, level: float = LEVEL, power: float = POWER) -> float:
    """The smallest true mean difference that n paired differences of this standard deviation show with `power`.

    Computed for the paired t-test, two-sided at `level`, from the noncentral t distribution (Cohen 1988; a difference
    found with the wrong sign does not count); the sign-flip test is close to it for roughly normal differences.
    Infinite where n images cannot reach the level whatever they show.
    """
    if n < 2 or smallest_p(n) > level:
        return np.inf
    critical = t.ppf(1 - level / 2, n - 1)
    return float(nctdtrinc(n - 1, 1 - power, critical)) * deviation / float(np.sqrt(n))


NOTHING = Estimate(np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class Difference:
    """Model A minus model B under one threat by one metric, over the `n` images that both have figures for.

    `spread` is the standard deviation of the paired differences, `p` of the sign-flip test, `p_holm` after Holm over
    the threats; a true difference of `detectable` is found with probability POWER at Holm's strictest step. `reason`
    says why there are no figures (n = 0) or no test.
    """

    threat: str
    metric: str
    n: int = 0
    a: float = np.nan
    b: float = np.nan
    difference: Estimate = NOTHING
    spread: float = np.nan
    p: float = np.nan
    p_holm: float = np.nan
    detectable: float = np.nan
    reason: str = ""

    @property
    def better(self) -> str:
        """ "A", "B", or "" where the test shows no difference."""
        if not self.p_holm <= LEVEL:
            return ""
        return "A" if (self.difference.value > 0) == METRICS[self.metric].higher_is_better else "B"


def compare(a: Sequence[Record], b: Sequence[Record]) -> list[Difference]:
    """Every paired difference between the records of one model and those of another, by metric and threat.

    Pairs are records of one threat, data set and image. Metrics are those that both have figures in; each is a
    family of tests over its threats. Raises InputError where no image is in common.
    """
    order = {threat: i for i, threat in enumerate(THREATS)}
    threats = sorted({r.threat for r in (*a, *b)}, key=lambda threat: (order.get(threat, len(order)), threat))
    found: list[Difference] = []
    for metric in metrics_of(a):
        family = [_difference(t, metric, *([r for r in side if r.threat == t] for side in (a, b))) for t in threats]
        tests = sum(d.n > 0 for d in family)
        adjusted = holm(np.array([d.p for d in family]))
        found += [
            replace(d, p_holm=float(p), detectable=detectable(d.spread, d.n, LEVEL / tests))
            for d, p in zip(family, adjusted, strict=True)
            if tests
        ]
    if not found:
        raise InputError("no image has figures of both under the same threat")
    return found


def _difference(threat: str, metric: str, a: Sequence[Record], b: Sequence[Record]) -> Difference:
    """The difference under one threat, not adjusted for the others."""
    sides = [{(r.dataset, r.image): v for r in side if (v := r.scores.get(metric)) is not None} for side in (a, b)]
    common = sorted(sides[0].keys() & sides[1].keys())
    if not common:
        return Difference(threat, metric, reason=_absence(a, b))
    images = tuple(image for _, image in common)
    values = np.array([[side[pair] for pair in common] for side in sides], dtype=np.float64)
    pairs = paired(*values)[:, None]
    found = Difference(threat, metric, len(images), *values.mean(axis=1).tolist())
    if not np.isfinite(pairs).all():
        return replace(found, reason="an image is perfect (infinite) on one side alone: no mean difference, no test")
    estimate = Estimate(float(pairs.mean()), *interval(resampled_means(pairs, images)[:, 0]))
    spread = float(pairs.std(ddof=1)) if len(images) > 1 else np.nan
    return replace(found, difference=estimate, spread=spread, p=float(sign_flip_test(pairs, images)[0]))


def paired(a: Floats, b: Floats) -> Floats:
    """a - b; two infinite scores are equal."""
    with np.errstate(invalid="ignore"):
        return np.where(a == b, 0.0, a - b)


def _absence(a: Sequence[Record], b: Sequence[Record]) -> str:
    """Why two sides have no image in common."""
    why = {}
    for name, side in (("A", a), ("B", b)):
        if not any(r.status is Status.OK for r in side):
            why[name] = "; ".join(dict.fromkeys(f"{r.status}: {r.reason}" for r in side)) or "not run"
    if len(why) == 2 and why["A"] == why["B"]:
        return why["A"]
    return "; ".join(f"{name} {reason}" for name, reason in why.items()) or "no image in common"


def compare_boards(a: Sequence[Record], b: Sequence[Record]) -> dict[str, list[Difference]]:
    """`compare` for each model with figures in both boards. Raises InputError where there is none."""
    models = sorted({r.model for r in a if r.status is Status.OK} & {r.model for r in b if r.status is Status.OK})
    sides = [{model: [r for r in side if r.model == model] for model in models} for side in (a, b)]
    found = {}
    for model in models:
        with suppress(InputError):  # figures, but of other images
            found[model] = compare(sides[0][model], sides[1][model])
    if not found:
        raise InputError("no model has figures of the same images in both")
    return found


def frame(differences: Mapping[str, Sequence[Difference]]) -> pd.DataFrame:
    """A row for each difference: model (the mapping's key), threat, metric, n, a, b, difference with its 95% interval
    (low, high), spread, p, p_holm, better, detectable and reason.
    """
    import pandas as pd

    lines = []
    for model, found in differences.items():
        for d in found:
            fields = {name: getattr(d, name) for name in ("threat", "metric", "n", "a", "b")}
            ends = {"difference": d.difference.value, "low": d.difference.low, "high": d.difference.high}
            rest = {name: getattr(d, name) for name in ("spread", "p", "p_holm", "better", "detectable", "reason")}
            lines.append({"model": model, **fields, **ends, **rest})
    return pd.DataFrame(lines)


def tied_with_best(scores: Sequence[Floats], images: tuple[str, ...], higher_is_better: bool) -> list[bool] | None:
    """Which models of a column share the best one's mark, itself included: those that no paired test separates from it.

    `scores` holds for each model (n,) figures whose sum or mean over `images` it is ranked by. The tests are sign-flip
    tests against the best, with Holm over the others. None where so few images could separate nobody.
    """
    values = np.array(scores) if higher_is_better else -np.array(scores)
    if len(values) < 2 or smallest_p(len(images)) * (len(values) - 1) > LEVEL:
        return None
    best = int(values.sum(axis=1).argmax())
    others = [i for i in range(len(values)) if i != best]
    adjusted = holm(sign_flip_test(np.stack([paired(values[best], values[i]) for i in others], axis=1), images))
    separated = {i for i, p in zip(others, adjusted, strict=True) if p <= LEVEL}
    return [i not in separated for i in range(len(values))]
