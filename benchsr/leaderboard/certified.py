"""Table 4: what is certified of each smoothed model, above what the strongest l2 attack beneath it has reached.

Every certificate stands beside the attack on the same statistic and no other: the median score of single noisy answers
beside attacks that were scored so, the deployed median of k draws beside attacks on the deployed model; without an
attack too under the sigma of the attacks, as a card may set another for clean images. The exact median image is
nobody's to attack, and stands alone.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from benchsr.base.drawing import COLOURS, GREY, GRID, canvas
from benchsr.base.text import escape, markdown_table
from benchsr.defences.bounds import ScoreBound, deployed_psnr_within, median_psnr_within, median_score_bound
from benchsr.defences.certificate import deployment_cost, largest_eps
from benchsr.defences.conformal import DatasetBound, dataset_bound, images_needed
from benchsr.leaderboard.scores import CONFIDENCE
from benchsr.metrics.quality import METRICS
from benchsr.results.records import Record, Status
from benchsr.results.singles import Singles
from benchsr.threats.table import L2_SWEEP

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ETA = 1e-3
"""How often an element of the deployed median may leave its bound, over the draws of the answer."""

COVERAGE = 0.9
"""The share of images that a statement about the data set is about."""

SCORES = ("psnr", "ssim", "lpips")
"""Metrics whose single scores are certified."""


@dataclass(frozen=True)
class Statement:
    """One kind of certificate: the statistic it is of, in words, its metric, and what has been done to that statistic.

    `bound` gives it of an image's single answers at a radius, `reach` the radius from which on it says nothing. The
    attacks of radius r are the threats that begin with one of `attacks` and end in "l2-r", and `clean` is the threat
    without one; none where nothing is covered.
    """

    name: str
    of: str
    metric: str
    bound: Callable[[Singles, float], ScoreBound]
    reach: Callable[[Singles], float]
    clean: str = ""
    attacks: tuple[str, ...] = ()

    def threats(self, name: str) -> list[str]:
        """Those of this statistic under `name`, of `L2_SWEEP` or "" for none."""
        return [f"{before}{name}" for before in self.attacks] if name else [self.clean] * bool(self.attacks)


def _of_score(metric: str) -> Statement:
    higher = METRICS[metric].higher_is_better

    def bound(s: Singles, radius: float) -> ScoreBound:
        scores = torch.tensor(s.scores[metric], dtype=torch.float64)
        return median_score_bound(scores, s.sigma, radius, CONFIDENCE, higher_is_better=higher)

    def reach(s: Singles) -> float:
        return largest_eps(len(s.scores[metric]), s.sigma, CONFIDENCE)

    return Statement(
        f"score-{metric}", "median score of one noisy answer", metric, bound, reach, "single", ("single-",)
    )


def _squares(s: Singles) -> torch.Tensor:
    return torch.tensor(s.squares, dtype=torch.float64)


def _image_reach(s: Singles) -> float:
    return largest_eps(len(s.squares) - 1, s.sigma, 1 - (1 - CONFIDENCE) / s.elements)


STATEMENTS: Mapping[str, Statement] = {
    statement.name: statement
    for statement in (
        *map(_of_score, SCORES),
        Statement(
            "deployed-psnr",
            "deployed median of k draws, expected over its draws",
            "psnr",
            lambda s, r: deployed_psnr_within(_squares(s), s.elements, s.sigma, r, s.k, ETA, CONFIDENCE),
            lambda s: max(0.0, _image_reach(s) - s.sigma * deployment_cost(s.k, ETA)),
            "l2-0",
            ("", "pgd-"),
        ),
        Statement(
            "image-psnr",
            "exact median image",
            "psnr",
            lambda s, r: median_psnr_within(_squares(s), s.elements, s.sigma, r, CONFIDENCE),
            _image_reach,
        ),
    )
}


@dataclass(frozen=True)
class Point:
    """Certified and attacked figure at one radius, means over the images; None where there is no such figure.

    `attacked` is of each image the worst under `attacks`, those of the statistic that were run on all images.
    """

    radius: float
    certified: float | None
    attacked: float | None
    attacks: tuple[str, ...] = ()

    @property
    def gap(self) -> float | None:
        """How far apart the two are; None where one is missing."""
        return None if self.certified is None or self.attacked is None else abs(self.attacked - self.certified)


@dataclass(frozen=True)
class Certified:
    """One statement about one model: its points by growing radius, and from which radius on it says nothing.

    `singles` are those of its `images`, in that order.
    """

    model: str
    statement: Statement
    images: tuple[str, ...]
    singles: tuple[Singles, ...]
    points: tuple[Point, ...]

    @property
    def title(self) -> str:
        """Metric and statistic."""
        return f"{METRICS[self.statement.metric].title}: {self.statement.of}"

    @property
    def vacuous_from(self) -> float:
        """The radius from which on some image has no bound."""
        return min(map(self.statement.reach, self.singles))

    @property
    def crossed(self) -> tuple[float, ...]:
        """Radii at which the attack has gone beyond the certificate, which says that a bound or the code has failed."""
        sign = 1 if METRICS[self.statement.metric].higher_is_better else -1
        return tuple(
            p.radius
            for p in self.points
            if p.certified is not None and p.attacked is not None and sign * p.attacked < sign * p.certified
        )

    @property
    def conditions(self) -> str:
        """sigma, draws and confidence, as every figure of it must be read."""
        s = self.singles[0]
        n = len(s.scores[self.statement.metric])
        deployed = f", k = {s.k}, eta = {ETA:g}" if self.statement.name == "deployed-psnr" else ""
        return f"sigma {s.sigma:g}, n = {n}{deployed}, {CONFIDENCE:.0%} for each image and radius by itself"

    @property
    def cells(self) -> list[str]:
        """Certified and, where one is covered, attacked figure of each point, as tables show them."""
        return [_cell(self.statement, point) for point in self.points]

    @property
    def words(self) -> str:
        """What is proven, in a sentence or two."""
        s, of, title = self.singles[0], self.statement.of, METRICS[self.statement.metric].title
        lines = [
            f"{title} ({of}; {self.conditions}): the certificate is vacuous from radius {self.vacuous_from:.3g} on"
        ]
        if self.statement.name == "deployed-psnr":
            cost = s.sigma * deployment_cost(s.k, ETA)
            lines.append(f"a median of {s.k} draws in place of the exact one costs {cost:.3g} of the radius")
        gaps = [f"{gap:.3g} at {p.radius:g}" for p in self.points if (gap := p.gap) is not None]
        if gaps:
            lines.append(f"gap to the strongest attack on the same statistic: {', '.join(gaps)}")
        elif not self.statement.attacks:
            lines.append("no attack of the board is on this statistic: none stands beside it")
        if self.crossed:
            radii = ", ".join(f"{r:g}" for r in self.crossed)
            lines.append(f"CROSSED at {radii}: a bound failed, as one in twenty may, or something is wrong")
        return "; ".join(lines) + "."


@dataclass(frozen=True)
class Kept:
    """What a share of images keeps under each perturbation of `radius`, of one model's single noisy answers."""

    model: str
    radius: float
    bound: DatasetBound
    needed: int

    @property
    def words(self) -> str:
        """The statement, or how many images it would need."""
        share, r = f"{self.bound.coverage:.0%}", f"{self.radius:g}"
        if self.bound.feasible:
            return (
                f"at least {share} of images keep PSNR >= {self.bound.threshold:.2f} dB for every ||d|| <= {r} (one "
                f"noisy answer; {self.bound.n} calibration images)"
            )
        return (
            f"||d|| <= {r}: {self.bound.n} images cannot support a statement about {share} of images; {self.needed} can"
        )


@dataclass(frozen=True)
class Certificates:
    """All that singles.csv and results.csv prove of the models of a board."""

    records: Sequence[Record]

    @cached_property
    def by_model(self) -> dict[str, list[Certified]]:
        """Model -> its statements; models without single answers are left out."""
        done = {(r.model, r.threat, r.image): r for r in self.records if r.status is Status.OK}
        found: dict[str, list[Certified]] = {}
        for model in dict.fromkeys(model for model, threat, _ in done if threat == "single"):
            own = {(threat, image): r for (name, threat, image), r in done.items() if name == model}
            images = tuple(image for threat, image in own if threat == "single" and own[threat, image].singles)
            made = [_certified(model, statement, images, own) for statement in STATEMENTS.values()]
            found[model] = [certified for certified in made if certified]
        return {model: lines for model, lines in found.items() if lines}

    def kept(self, model: str) -> list[Kept]:
        """What a share of images keeps, by radius: from the first noisy answer to each image."""
        lines = [certified for certified in self.by_model.get(model, []) if certified.statement.name == "score-psnr"]
        if not lines:
            return []
        first = torch.tensor([s.scores["psnr"][0] for s in lines[0].singles], dtype=torch.float64)
        sigma = lines[0].singles[0].sigma
        return [
            Kept(model, r, dataset_bound(first, sigma, r, COVERAGE), images_needed(COVERAGE, r / sigma))
            for r in (0.0, *L2_SWEEP.values())
            if r <= lines[0].vacuous_from
        ]

    @property
    def frame(self) -> pd.DataFrame:
        """certificates.csv: a line for each model, statement and radius."""
        return pd.DataFrame(
            {
                "model": c.model,
                "statement": c.statement.name,
                "metric": c.statement.metric,
                "radius": p.radius,
                "certified": p.certified,
                "attacked": p.attacked,
                "attacks": " ".join(p.attacks),
                "vacuous_from": c.vacuous_from,
                "images": len(c.images),
                "sigma": c.singles[0].sigma,
                "n": len(c.singles[0].scores[c.statement.metric]),
                "k": c.singles[0].k,
                "confidence": CONFIDENCE,
                "eta": ETA if c.statement.name == "deployed-psnr" else None,
            }
            for lines in self.by_model.values()
            for c in lines
            for p in c.points
        )


def _certified(
    model: str, statement: Statement, images: tuple[str, ...], own: Mapping[tuple[str, str], Record]
) -> Certified | None:
    """The statement about a model, from its evaluations by threat and image; None where it cannot be made."""
    singles = tuple(s for image in images if (s := own["single", image].singles))
    if not singles or any(statement.metric not in s.scores for s in singles):
        return None
    if not statement.name.startswith("score") and not all(s.squares for s in singles):
        return None
    points = []
    for name, radius in {"": 0.0, **L2_SWEEP}.items():
        bounds = [statement.bound(s, radius) for s in singles]
        certified = fmean(b.value for b in bounds) if all(b.feasible for b in bounds) else None
        points.append(Point(radius, certified, *_attacked(statement, name, images, own)))
    return Certified(model, statement, images, singles, tuple(points))


def _attacked(
    statement: Statement, name: str, images: Sequence[str], own: Mapping[tuple[str, str], Record]
) -> tuple[float | None, tuple[str, ...]]:
    """The worst figure of each image under the attacks of one radius, averaged, and which attacks those are."""
    found: dict[str, list[float]] = {}
    for threat in statement.threats(name):
        rows = [own.get((threat, image)) for image in images]
        scores = [r.scores[statement.metric] for r in rows if r and statement.metric in r.scores]
        if len(scores) == len(images):
            found[threat] = scores
    worst = min if METRICS[statement.metric].higher_is_better else max
    return (fmean(map(worst, zip(*found.values(), strict=True))) if found else None), tuple(found)


def table4(found: Certificates, titles: Mapping[str, str]) -> str:
    """Table 4 in Markdown: certified / attacked, a column for each radius; "vacuous" where nothing is proven."""
    radii = [0.0, *L2_SWEEP.values()]
    rows = [
        [
            escape(titles.get(model, model)),
            c.title,
            c.conditions,
            *c.cells,
        ]
        for model, lines in found.by_model.items()
        for c in lines
    ]
    return markdown_table(["Model", "Of what", "Conditions", *(f"r = {r:g}" for r in radii)], rows, 3)


def _cell(statement: Statement, point: Point) -> str:
    digits = 2 if statement.metric == "psnr" else 3
    at = "≥" if METRICS[statement.metric].higher_is_better else "≤"
    certified = "vacuous" if point.certified is None else f"{at} {point.certified:.{digits}f}"
    if not statement.attacks:
        return certified
    return f"{certified} / {'–' if point.attacked is None else f'{point.attacked:.{digits}f}'}"


PANELS = ("score-psnr", "score-lpips", "deployed-psnr", "image-psnr")
"""Statements that the plot shows."""


def plot_sandwich(models: Sequence[tuple[str, Sequence[Certified]]], caption: str) -> Figure | None:
    """For each model (title, statements) a row: what is certified and what the attack reached, against the radius.

    None without models. Where the certificate is vacuous, the panel says from where on, in words and grey.
    """
    if not models:
        return None
    figure = canvas(14, 0.9 + 3.1 * len(models))
    figure.suptitle(caption, fontsize=10)
    for row, (title, lines) in zip(figure.subplots(len(models), len(PANELS), squeeze=False), models, strict=True):
        by_name = {c.statement.name: c for c in lines}
        for ax, name in zip(row, PANELS, strict=True):
            if name not in by_name:
                ax.set_axis_off()
                continue
            _sandwich(ax, by_name[name])
            said = (title, by_name[name].statement.of, by_name[name].conditions)
            ax.set_title("\n".join(textwrap.fill(line, 64) for line in said), fontsize=6.5)
    return figure


def _sandwich(ax: Axes, c: Certified) -> None:
    metric, edge = METRICS[c.statement.metric], c.vacuous_from
    within = np.linspace(0, edge, 40, endpoint=False) if edge else np.zeros(0)
    values = [fmean(c.statement.bound(s, r).value for s in c.singles) for r in within]
    shown = [(r, v) for r, v in zip(within, values, strict=True) if abs(v) < inf]
    ax.plot([r for r, _ in shown], [v for _, v in shown], color=COLOURS[0], label="certified: no attack gets beyond")
    reached = [(p.radius, p.attacked) for p in c.points if p.attacked is not None]
    if reached:
        ax.plot(*zip(*reached, strict=True), "o-", color=COLOURS[1], markersize=4, label="attacked: reached by one")
    ax.axvspan(edge, max(L2_SWEEP.values()), color="#eeeeee", zorder=0)
    word = f"vacuous from {edge:.3g} on"
    ax.text(0.98, 0.5, word, transform=ax.transAxes, fontsize=7, color=GREY, rotation=90, ha="right", va="center")
    ax.set_xscale("symlog", base=2, linthresh=min(L2_SWEEP.values()))
    ticks = [0.0, *L2_SWEEP.values()][:-1]  # the last two radii lie too close for two labels
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks], fontsize=7)
    ax.set_xlabel("l2 radius over the LR image", fontsize=8)
    ax.set_ylabel(f"{metric.title}{f' ({metric.unit})' if metric.unit else ''}", fontsize=8)
    ax.tick_params(axis="y", labelsize=7)
    ax.grid(color=GRID, linewidth=0.7)
    ax.legend(fontsize=6.5, frameon=False, loc="best")
