"""Signs that an attack was weaker than it looks (Pintor et al. 2022, "Indicators of Attack Failure", for regression).

A high score under a failing attack is not robustness. Some signs show while the attack runs and are kept with each
image in results.csv; others show only when evaluations are compared, and are found there. Either stands beside the
number it concerns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import log10, nan
from statistics import fmean

from benchsr.leaderboard.scores import sign
from benchsr.leaderboard.tables import CardInfo
from benchsr.metrics.quality import METRICS
from benchsr.results.records import Record, Status, metrics_of
from benchsr.threats.adaptive import StrongPGD
from benchsr.threats.table import THREATS

FLAGS: Mapping[str, str] = {
    "zero-gradient": "more than half of the gradient's elements were exactly zero at some step",
    "still-rising": "the last tenth of the steps brought over a twentieth of the gain: more steps would bring more",
    "best-discarded": "the iterate that was returned is not the best that was found",
    "no-gain": "the attack did not raise its loss at all",
    "inner-gradient": "the model itself takes gradients or steps of an optimiser to answer: attacks seldom see through "
    "that, and an answer costs more than it seems",
    "transfer-stronger": "the same attack on the base network alone lowers PSNR more: what this knows does not help",
    "random-as-strong": "random noise that is no larger lowers PSNR as much",
    "metric-gaming": "a score that needs no reference improves on the clean image's while PSNR falls by 1 dB or more: "
    "the score is deceived",
    "black-box-stronger": "a search of the same size without gradients lowers PSNR more: the gradients mislead",
    "not-monotone": "the same attack with a smaller eps lowers PSNR more: this one has lost its way",
    "metric-unmoved": "the attack raised its loss, and PSNR is as on the unattacked image: it attacks something else",
    "not-the-best": "another attack of the same size and statistic lowers mean PSNR by over half a dB more",
    "not-destroyed": "with this large an eps PSNR stays above what a mere change of brightness by eps would leave",
}
"""Flag -> what it means. The first five are found per image, the others by comparing means over images; all but
inner-gradient, which is of the model and so under every threat, and metric-gaming are of attacks. A model with a sigma
for each threat is compared only where it has the same: with the clean image under the sigma of the attack (`l2-0`)."""

MARGIN = 0.1
"""dB of mean PSNR by which one evaluation must beat another before that counts."""

CLEARLY = 0.5
"""dB of mean PSNR by which an attack that knows the whole model may fall behind the best of its size."""

NOISES = ("noise", "random")
"""Threats that know nothing of the model: an attack no smaller than them should do more harm."""

GAMED = 1.0
"""dB of mean PSNR that a score without a reference must not improve over."""

LARGE = 16 / 255
"""L-infinity size ([0, 1] units) from which an attack should destroy any output."""


def flags(records: Iterable[Record], cards: Mapping[str, CardInfo]) -> dict[tuple[str, str], tuple[str, ...]]:
    """All flags of each (model, threat) in the order of FLAGS: those kept with its images, and those found here.

    `cards` say which models have a sigma for each threat; one that is not among them is taken to have none.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.status is Status.OK and record.threat in THREATS:
            groups.setdefault((record.model, record.threat), []).append(record)
    found = {key: {flag for r in group for flag in r.health.split()} for key, group in groups.items()}
    for model in dict.fromkeys(model for model, _ in groups):
        own = {threat: group for (name, threat), group in groups.items() if name == model}
        for threat in own:
            beside = _comparable(own, threat, cards.get(model))
            found[model, threat].update(_compared(threat, own[threat], beside), _gamed(threat, own[threat], beside))
    return {key: tuple(flag for flag in FLAGS if flag in raised) for key, raised in found.items() if raised}


def _comparable(own: Mapping[str, Sequence[Record]], threat: str, card: CardInfo | None) -> dict[str, Sequence[Record]]:
    """A model's records under the other threats that it meets with the same sigma, on the same images."""
    images, sigma = _images(own[threat]), _sigma(card, threat)
    return {
        other: rows
        for other, rows in own.items()
        if other != threat and _images(rows) == images and _sigma(card, other) == sigma
    }


def _sigma(card: CardInfo | None, threat: str) -> float:
    """The sigma of a model that has one for each threat; 0 for a model that meets all threats alike."""
    sigma = getattr(card.smoothing, "sigma", None) if card else None
    return float(sigma.get(THREATS[threat].like or threat, 0.0)) if isinstance(sigma, Mapping) else 0.0


def _unattacked(threat: str, beside: Mapping[str, Sequence[Record]]) -> Sequence[Record]:
    """What to compare an attack with: the same statistic without it, of the same deployment; empty where none is."""
    spec = THREATS[threat]
    names = (spec.unattacked, "l2-0") if spec.unattacked == "clean" else (spec.unattacked,)
    return next((beside[name] for name in names if name in beside), ())


def _compared(threat: str, group: Sequence[Record], beside: Mapping[str, Sequence[Record]]) -> Iterator[str]:
    """Flags of an attack with the records `group`, from the cells that it can be compared with."""
    spec = THREATS[threat]
    if spec.kind != "attack":
        return
    psnr, size = _mean(group, "psnr"), _mean(group, "attack_linf")
    for other, rows in beside.items():
        if THREATS[other].in_part != spec.in_part:
            continue
        deeper = psnr - _mean(rows, "psnr")
        if _transfer_of(other, threat) and deeper > MARGIN:
            yield "transfer-stronger"
        yield from (flag for flag, found in _weaker(threat, other, deeper) if found)
        no_larger = _mean(rows, "attack_l2") <= 1.05 * _mean(group, "attack_l2")
        if other in NOISES and no_larger and deeper > -MARGIN:
            yield "random-as-strong"
    if clean := _unattacked(threat, beside):
        before, rose = _mean(clean, "psnr"), _mean(group, "loss_attacked") > 1.05 * _mean(group, "loss_clean")
        if rose and before - psnr < MARGIN:
            yield "metric-unmoved"
        # The errors of a brightness shift and of the clean output add up in squares; 1 dB is for clipping.
        shifted = -10 * log10(10 ** (-before / 10) + size**2)
        if spec.unattacked == "clean" and size >= LARGE and psnr > shifted + 1 and "norm" not in spec.preset:
            yield "not-destroyed"


def _gamed(threat: str, group: Sequence[Record], beside: Mapping[str, Sequence[Record]]) -> Iterator[str]:
    """ "metric-gaming", from a threat's own records and the cells that it can be compared with."""
    clean = _unattacked(threat, beside)
    gains = (sign(m) * (_mean(group, m) - _mean(clean, m)) for m in metrics_of(clean) if not METRICS[m].reference)
    if clean and _mean(group, "psnr") <= _mean(clean, "psnr") - GAMED and any(gain > 0 for gain in gains):
        yield "metric-gaming"


def _weaker(threat: str, other: str, deeper: float) -> Iterator[tuple[str, bool]]:
    """Flags of an attack beside another that lowers mean PSNR by `deeper` dB more, and whether they are raised."""
    mine, theirs = THREATS[threat], THREATS[other]
    if theirs.kind != "attack" or not isinstance(mine.make, type) or not isinstance(theirs.make, type):
        return
    a, b = mine.defaults, theirs.defaults
    if "eps" in a and all(a.get(name) == b.get(name) for name in ("norm", "singles", "eps")):
        same_view = a.get("median_of") == b.get("median_of")
        gradients = getattr(mine.make, "needs_gradient", True) and not getattr(theirs.make, "needs_gradient", True)
        yield "black-box-stronger", gradients and same_view and deeper > MARGIN
        full = issubclass(mine.make, StrongPGD) and bool(a.get("median_of")) and not mine.limited
        yield "not-the-best", full and deeper > CLEARLY
    rest = {**a, "eps": 0.0} == {**b, "eps": 0.0} and mine.make is theirs.make
    smaller = float(b.get("eps", 0.0)) < float(a.get("eps", 0.0))
    yield "not-monotone", rest and smaller and deeper > MARGIN


def _transfer_of(base: str, threat: str) -> bool:
    """Whether `base` is the attack `threat` without knowledge of the smoothing."""
    known, blind = THREATS[threat], THREATS[base]
    same = known.make is blind.make and all(known.preset.get(k) == blind.preset.get(k) for k in ("eps", "norm", "loss"))
    return same and blind.preset.get("median_of") == 0 and bool(known.preset.get("median_of"))


def _images(records: Sequence[Record]) -> set[str]:
    return {record.image for record in records}


def _mean(records: Sequence[Record], field: str) -> float:
    """Mean of a column; NaN, which compares as False with everything, where a value is missing."""
    values = [r.scores[field] if field in r.scores else getattr(r, field, None) for r in records]
    return fmean(nan if value is None else value for value in values)
