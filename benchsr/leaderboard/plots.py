"""Plots of tables and cells, as matplotlib Figures that belong to no global state."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from benchsr.base.drawing import COLOURS, GREY, GRID, MARKERS, canvas, drawn_once
from benchsr.leaderboard.compare import LEVEL, POWER, Difference
from benchsr.leaderboard.corruption import ERRORS, profiles
from benchsr.leaderboard.scores import NOT_RUN, SCORED, Cell, Floats, Grid, average, interval, sign
from benchsr.leaderboard.sensitivity import SENSITIVITY, Sensitivity
from benchsr.leaderboard.tables import (
    FAMILIES,
    LAYOUTS,
    WORST,
    CardInfo,
    LeaderboardInfo,
    Table,
    family_cards,
    metric_groups,
)
from benchsr.leaderboard.transfer import Matrix
from benchsr.metrics.quality import METRICS
from benchsr.threats.table import SWEEP, THREATS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

ATTACKS = LAYOUTS["table2"].threats


def _axis_title(metric: str) -> str:
    return f"{METRICS[metric].label}, {METRICS[metric].direction}"


def _width(inches: float, metrics: Sequence[str]) -> float:
    """The width of a figure with a panel for each of `metrics`, that of three being `inches`."""
    return inches * max(1.0, len(metrics) / len(SCORED))


def _style(k: int) -> tuple[str, str]:
    """Colour and marker of the k-th model of a plot: no two of 64 are equal."""
    return COLOURS[k % len(COLOURS)], MARKERS[k // len(COLOURS) % len(MARKERS)]


def _key(**style: Any) -> Line2D:
    """An entry of a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], **style)


def _models_figure(
    caption: str, models: Sequence[CardInfo], linestyle: Literal["-", ""], metrics: Sequence[str]
) -> tuple[Figure, list[Axes]]:
    """A figure of one panel a metric, with room for the legend of its models below."""
    columns = 3  # titles of four would not fit
    figure = canvas(_width(11, metrics), 3.6 + 0.2 * math.ceil(len(models) / columns))
    figure.suptitle(caption, fontsize=10)
    axes = list(np.atleast_1d(figure.subplots(1, len(metrics))))
    styles = [_style(k) for k in range(len(models))]
    handles = [
        _key(linestyle=linestyle, color=colour, marker=marker, label=card.title)
        for card, (colour, marker) in zip(models, styles, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    return figure, axes


def _caption(title: str, protocol: LeaderboardInfo, details: str) -> str:
    return f"{title}\n{protocol.title}; {details}"


def _panels(
    caption: str, labels: Sequence[str], missing: Sequence[str], row_height: float, metrics: Sequence[str]
) -> tuple[Figure, list[Axes], Floats]:
    """One panel a metric, with the models from top to bottom; below, the models that are not shown."""
    text = textwrap.fill("Not shown (reasons in the report): " + ", ".join(missing), 175) if missing else ""
    height = 1.4 + row_height * max(len(labels), 3) + 0.15 * len(text.splitlines())
    figure = canvas(_width(12, metrics), height)
    figure.suptitle(caption, fontsize=10)
    axes = np.atleast_1d(figure.subplots(1, len(metrics), sharey=True))
    rows = np.arange(len(labels), dtype=np.float64)
    for ax in axes:
        ax.set_ylim(len(labels) - 0.5, -0.5)
        ax.set_yticks(rows, labels, fontsize=9)
        ax.tick_params(axis="x", labelsize=8)
        ax.grid(axis="x", color=GRID, linewidth=0.7)
        ax.set_axisbelow(True)
        for edge in ("top", "right", "left"):
            ax.spines[edge].set_visible(False)
        ax.tick_params(axis="y", length=0)
    figure.supxlabel(text, fontsize=7.5, color=GREY)
    return figure, list(axes), rows


def _stripes(ax: Axes, rows: Floats) -> None:
    for row in rows[::2]:
        ax.axhspan(row - 0.5, row + 0.5, color="#f4f4f4", zorder=0, linewidth=0)


def _empty(caption: str, text: str) -> Figure:
    figure = canvas(11, 1.8)
    figure.suptitle(caption, fontsize=10)
    figure.text(0.5, 0.35, text, ha="center", va="center", fontsize=11, color=GREY)
    return figure


def _finite(values: Sequence[float]) -> Floats:
    """Values with NaN for the infinite: those have no place on an axis."""
    array = np.array(values, dtype=np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def plot_table(table: Table, protocol: LeaderboardInfo) -> Figure:
    """A dot for each figure of the table with its 95% interval; hollow where images are missing."""
    shown = [row for row in table.rows if row.evaluated]
    missing = [row.card.id for row in table.rows if not row.evaluated]
    caption = _caption(table.title, protocol, "mean over images, 95% bootstrap interval")
    if not shown:
        return _empty(caption, f"No row of this table has figures yet: the reasons stand in {table.name}.md")
    layout = table.filled.layout
    columns = [column for column in layout.columns if column != WORST]  # its dots are those of others
    figure, axes, rows = _panels(
        caption, [r.card.title for r in shown], missing, 0.16 + 0.085 * len(columns), table.metrics
    )
    dodge = np.linspace(-0.28, 0.28, len(columns)) if len(columns) > 1 else np.zeros(1)
    for ax, metric in zip(axes, table.metrics, strict=True):
        _stripes(ax, rows)
        for k, column in enumerate(columns):
            estimates = [row.cells[column].estimate(metric) for row in shown]
            values, low, high = (_finite([getattr(e, end) for e in estimates]) for end in ("value", "low", "high"))
            full = np.array([row.cells[column].ok for row in shown])
            y = rows + dodge[k]
            ax.hlines(y, low, high, color=COLOURS[k], linewidth=1.3, alpha=0.75)
            for face, chosen in ((COLOURS[k], full), ("white", ~full)):
                dots = ax.plot(values[chosen], y[chosen], MARKERS[k], color=COLOURS[k], markersize=5)
                dots[0].set_markerfacecolor(face)
        ax.set_xlabel(_axis_title(metric), fontsize=9)
    handles = [
        _key(color=COLOURS[k], marker=MARKERS[k], label=textwrap.fill(layout.heading(c), 18))
        for k, c in enumerate(columns)
    ]
    figure.legend(handles=handles, loc="outside right center", fontsize=9, frameon=False, labelspacing=0.8)
    return figure


def attack_average(grid: Grid, model: str) -> Cell:
    """The mean over the attacks of Table 2: a model's robust score."""
    return average([grid.get((model, threat), NOT_RUN) for threat in ATTACKS])


def plot_scatter(
    family: str, cards: Sequence[CardInfo], grid: Grid, protocol: LeaderboardInfo, metrics: Sequence[str] = SCORED
) -> Figure | None:
    """What robustness costs: each model's figure on clean images against its mean over the attacks, a panel a metric.

    None where no model has both.
    """
    both = [(c, grid.get((c.id, "clean"), NOT_RUN), attack_average(grid, c.id)) for c in cards]
    points = [(card, clean, robust) for card, clean, robust in both if clean.ok and robust.ok]
    if not points:
        return None
    caption = _caption(
        f"Clean and attacked – {FAMILIES[family][1]}", protocol, "attacked: mean over the attacks of Table 2"
    )
    figure, axes = _models_figure(caption, [card for card, _, _ in points], linestyle="", metrics=metrics)
    for ax, metric in zip(axes, metrics, strict=True):
        for k, (_, clean, robust) in enumerate(points):
            x, y = clean.estimate(metric), robust.estimate(metric)
            if not np.isfinite([x.value, y.value]).all():
                continue
            colour, marker = _style(k)
            for xs, ys in (((x.low, x.high), (y.value, y.value)), ((x.value, x.value), (y.low, y.high))):
                ax.plot(xs, ys, color=colour, alpha=0.45, linewidth=1)
            ax.plot(x.value, y.value, marker, color=colour, markersize=7)
        ax.set_xlabel(f"clean {METRICS[metric].title}", fontsize=9)
        ax.set_ylabel(f"attacked {METRICS[metric].title}", fontsize=9)
        ax.tick_params(labelsize=8)
        ax.grid(color=GRID, linewidth=0.7)
        ax.set_axisbelow(True)
        corner = "top right" if METRICS[metric].higher_is_better else "bottom left"
        ax.set_title(f"better: {corner}", fontsize=8, color=GREY)
    return figure


def plot_heat_map(
    family: str, cards: Sequence[CardInfo], grid: Grid, protocol: LeaderboardInfo, metrics: Sequence[str] = SCORED
) -> Figure | None:
    """Models by threats, a panel a metric, figures written in; None where nothing has a figure. Panels stand below each
    other, or side by side where the models outnumber the threats of all of them.
    """
    models = [c for c in cards if any(grid[m, t].n for m, t in grid if m == c.id)]
    threats = [
        t for t in protocol.threats if not THREATS[t].group and any(grid.get((c.id, t), NOT_RUN).n for c in models)
    ]
    if not models:
        return None
    caption = _caption(f"All threats – {FAMILIES[family][1]}", protocol, "means over images; italics: images missing")
    down, across = (1, len(metrics)) if len(models) > len(metrics) * len(threats) else (len(metrics), 1)
    size = (max(3 + 0.5 * across * len(threats), 7.5), 2 + down * (0.4 + 0.25 * len(models)))
    figure = canvas(*size)
    figure.suptitle(caption, fontsize=10)
    axes = figure.subplots(down, across, sharex=True, squeeze=False).flat
    cells = [[grid.get((c.id, t), NOT_RUN) for t in threats] for c in models]
    for k, (ax, metric) in enumerate(zip(axes, metrics, strict=True)):
        _heat_panel(ax, cells, metric, [c.title if k == 0 or across == 1 else "" for c in models], threats)
        ax.set_title(_axis_title(metric), fontsize=9)
    return figure


def _heat_panel(
    ax: Axes, cells: Sequence[Sequence[Cell]], metric: str, rows: Sequence[str], columns: Sequence[str]
) -> None:
    """Rows of cells as colours with their figures written in; bright is good, whatever the metric's direction."""
    values = np.array([[cell.value(metric) for cell in row] for row in cells])
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    way, about = sign(metric), METRICS[metric]
    ax.imshow(way * values, cmap="cividis", aspect="auto", vmin=min(way * low, way * high))
    middle = way * (low + high) / 2
    for (y, x), value in np.ndenumerate(values):
        text = "–" if np.isnan(value) else f"{value:.{about.decimals - 1}f}"
        bright = np.isnan(value) or way * value > middle
        style = "normal" if cells[y][x].ok else "italic"
        ax.text(x, y, text, ha="center", va="center", fontsize=7, style=style, color="black" if bright else "white")
    ax.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    ax.set_yticks(range(len(rows)), rows, fontsize=8)
    ax.tick_params(length=0)
    for edge in ax.spines.values():
        edge.set_visible(False)


def plot_transfer(
    family: str, found: Sequence[Matrix], protocol: LeaderboardInfo, metrics: Sequence[str] = SCORED
) -> Figure:
    """Sources by the models that are scored: a line of panels an attack, a panel a metric."""
    caption = _caption(
        f"Transferred attacks – {FAMILIES[family][1]}",
        protocol,
        "rows: attack made on; columns: scored; bright is good",
    )
    most = max(len(matrix.cards) for matrix in found)
    size = (2.5 + len(metrics) * (1.2 + 0.5 * most), 1 + len(found) * (2 + 0.3 * most))
    figure = canvas(*size)
    figure.suptitle(caption, fontsize=10)
    for line, matrix in zip(figure.subplots(len(found), len(metrics), squeeze=False), found, strict=True):
        ids = [card.id for card in matrix.cards]
        cells = [[matrix.cell(source, victim) for victim in ids] for source in ids]
        for k, (ax, metric) in enumerate(zip(line, metrics, strict=True)):
            _heat_panel(ax, cells, metric, ids if k == 0 else [""] * len(ids), ids)
            ax.set_title(f"{matrix.attack}: {_axis_title(metric)}", fontsize=9)
    return figure


def rank_draws(cells: Sequence[Cell], metric: str) -> Floats:
    """Ranks (len(cells), RESAMPLES) of complete cells on the same images in every bootstrap resample; 1 is best."""
    signed = [-sign(metric) * cell.of(metric, cell.draws) for cell in cells]
    ranks: Floats = rankdata(signed, method="min", axis=0).astype(np.float64)
    return ranks


def plot_rank_stability(
    family: str, cards: Sequence[CardInfo], grid: Grid, protocol: LeaderboardInfo, metrics: Sequence[str] = SCORED
) -> Figure | None:
    """How sure the ranking by the mean over the attacks is: each model's rank, and where 95% of the resamples put it.

    None where fewer than two models are complete.
    """
    from matplotlib.ticker import MaxNLocator

    scored = [(card, attack_average(grid, card.id)) for card in cards]
    complete = [(card, cell) for card, cell in scored if cell.ok]
    if len(complete) < 2:
        return None
    missing = [card.id for card, cell in scored if not cell.ok]
    caption = _caption(
        f"Rank over the attacks of Table 2 – {FAMILIES[family][1]}",
        protocol,
        "95% of bootstrap resamples of the images",
    )
    figure, axes, rows = _panels(caption, [card.title for card, _ in complete], missing, 0.28, metrics)
    for ax, metric in zip(axes, metrics, strict=True):
        _stripes(ax, rows)
        ranks = rankdata([-sign(metric) * cell.value(metric) for _, cell in complete], method="min")
        for y, rank, draws in zip(rows, ranks, rank_draws([cell for _, cell in complete], metric), strict=True):
            ax.plot(interval(draws), [y, y], color=COLOURS[2], linewidth=3, alpha=0.5, solid_capstyle="round")
            ax.plot(rank, y, "o", color=COLOURS[2], markersize=6)
        ax.set_xlim(0.5, len(complete) + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel(f"rank by {METRICS[metric].title} (1 is best)", fontsize=9)
    return figure


def plot_curves(
    family: str, cards: Sequence[CardInfo], grid: Grid, protocol: LeaderboardInfo, metrics: Sequence[str] = SCORED
) -> Figure | None:
    """Robustness curves: each model's figures against the attack's eps, a panel a metric, eps 0 being the clean image.

    None where no model has figures for the sweep.
    """
    sweep = {"clean": 0.0, **SWEEP}
    models = [c for c in cards if all(grid.get((c.id, t), NOT_RUN).ok for t in sweep)]
    if not models:
        return None
    caption = _caption(
        f"Robustness curves – {FAMILIES[family][1]}", protocol, "mean over images, 95% bootstrap interval"
    )
    figure, axes = _models_figure(caption, models, linestyle="-", metrics=metrics)
    eps = [255 * size for size in sweep.values()]
    for ax, metric in zip(axes, metrics, strict=True):
        for k, card in enumerate(models):
            found = [grid[card.id, threat].estimate(metric) for threat in sweep]
            colour, marker = _style(k)
            ax.plot(eps, [e.value for e in found], color=colour, marker=marker, markersize=5)
            ax.fill_between(eps, [e.low for e in found], [e.high for e in found], color=colour, alpha=0.06, linewidth=0)
        ax.set_xscale("symlog", base=2, linthresh=1)
        ax.set_xticks(eps, [f"{e:g}" for e in eps], fontsize=8)
        ax.set_xlabel("eps (1/255)", fontsize=9)
        ax.set_ylabel(_axis_title(metric), fontsize=9)
        ax.grid(color=GRID, linewidth=0.7)
    return figure


def plot_corruptions(
    family: str, cards: Sequence[CardInfo], grid: Grid, protocol: LeaderboardInfo, metrics: Sequence[str] = SCORED
) -> Figure | None:
    """Corruption error of each model by kind, relative to bicubic's, a panel a metric; None where there is none."""
    found = profiles(grid, cards)
    models = list({profile.card.id: profile.card for profile in found}.values())
    asked = [metric for metric in metrics if metric in ERRORS]
    if len(models) < 2 or not asked:
        return None
    caption = _caption(f"Corruptions – {FAMILIES[family][1]}", protocol, "errors of all severities, 95% interval")
    figure, axes = _models_figure(caption, models, linestyle="-", metrics=asked)
    for ax, metric in zip(axes, asked, strict=True):
        shown = [profile for profile in found if profile.metric == metric]
        for k, profile in enumerate(shown):
            colour, marker = _style(k)
            estimates, at = list(profile.kinds.values()), range(len(profile.kinds))
            ax.plot(at, [e.value for e in estimates], color=colour, marker=marker, markersize=4, linewidth=1)
            low, high = [e.low for e in estimates], [e.high for e in estimates]
            ax.fill_between(at, low, high, color=colour, alpha=0.06, linewidth=0)
        if shown:
            ax.set_xticks(range(len(shown[0].kinds)), list(shown[0].kinds), rotation=90, fontsize=8)
        ax.set_yscale("log")
        for formatted in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
            formatted("{x:g}")
        ax.tick_params(axis="y", which="both", labelsize=8)
        ax.set_ylabel(f"{ERRORS[metric][0]}, relative to bicubic", fontsize=9)
        ax.grid(color=GRID, linewidth=0.7)
    return figure


PLOTS = {
    "clean-vs-robust": plot_scatter,
    "robustness-curves": plot_curves,
    "heatmap": plot_heat_map,
    "rank-stability": plot_rank_stability,
    "corruptions": plot_corruptions,
}
"""Plots of a whole family, by the stem of their files."""


def all_plots(
    tables: Mapping[str, Table], grid: Grid, protocol: LeaderboardInfo, cards: Mapping[str, CardInfo], kind: str = "png"
) -> Iterator[tuple[str, bytes]]:
    """Every plot of the leaderboard, drawn as `kind`, with its name: one for each table, and those of PLOTS for each
    family.
    """
    for name, table in tables.items():
        yield name, drawn_once(plot_table, table, protocol, kind=kind)
    for family, (suffix, _) in FAMILIES.items():
        members = family_cards(family, grid, cards)
        ours = {pair: cell for pair, cell in grid.items() if pair[0] in {card.id for card in members}}
        groups = metric_groups(protocol.metrics) if members else {}
        for (name, plot), (end, metrics) in product(PLOTS.items(), groups.items()):
            content = drawn_once(plot, family, members, ours, protocol, metrics, kind=kind)
            if content:
                yield name + end + suffix, content


def plot_differences(title: str, a: str, b: str, differences: Sequence[Difference]) -> Figure:
    """Paired differences A - B with 95% intervals, a panel a metric, a line a threat; hollow where no test shows one.

    The band is what so many images find with probability POWER: a true difference inside it may well go unseen.
    """
    metrics = list(dict.fromkeys(d.metric for d in differences))
    threats = list(dict.fromkeys(d.threat for d in differences if d.n))
    figure = canvas(1.5 + 3.4 * len(metrics), 1.8 + 0.3 * max(len(threats), 3))
    figure.suptitle(f"{title}\n{a} (A) minus {b} (B), 95% bootstrap interval of the paired difference", fontsize=10)
    axes = np.atleast_1d(figure.subplots(1, len(metrics), sharey=True))
    for ax, metric in zip(axes, metrics, strict=True):
        ax.axvline(0, color=GREY, linewidth=0.8)
        for d in (d for d in differences if d.metric == metric and d.n):
            y, value, shown = threats.index(d.threat), d.difference, bool(d.better)
            if np.isfinite(d.detectable):
                ax.fill_betweenx([y - 0.35, y + 0.35], -d.detectable, d.detectable, color="#e6e6e6", linewidth=0)
            ax.plot([value.low, value.high], [y, y], color=COLOURS[2], linewidth=1.6)
            ax.plot(value.value, y, "o", color=COLOURS[2], markerfacecolor=COLOURS[2] if shown else "white")
        ax.set_ylim(len(threats) - 0.5, -0.5)
        ax.set_yticks(range(len(threats)), [f"{t} (n = {_images(differences, t)})" for t in threats], fontsize=8)
        ax.tick_params(axis="x", labelsize=8)
        side = "right" if METRICS[metric].higher_is_better else "left"
        ax.set_xlabel(f"{METRICS[metric].label}: A is better to the {side}", fontsize=8)
    note = (
        f"Filled: sign-flip test, Holm over the threats, {LEVEL:.0%}. Grey: differences that so many images find with "
        f"a chance below {POWER:.0%}; no band where they can find none."
    )
    figure.supxlabel(textwrap.fill(note, 45 * len(metrics)), fontsize=7.5, color=GREY)
    return figure


def _images(differences: Sequence[Difference], threat: str) -> int:
    return max(d.n for d in differences if d.threat == threat)


def pareto_front(costs: Sequence[float], values: Sequence[float], higher_is_better: bool) -> list[int]:
    """Indices, by growing cost, of the points that no other beats: none costs as little or less and is better."""
    signed = np.array(values) if higher_is_better else -np.array(values)
    front: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -signed[i])):
        if not front or signed[i] > signed[front[-1]]:
            front.append(i)
    return front


def plot_pareto(
    family: str,
    cards: Sequence[CardInfo],
    grid: Grid,
    protocol: LeaderboardInfo,
    costs: pd.DataFrame,
    metrics: Sequence[str] = SCORED,
) -> Figure | None:
    """Figures under attack against the multiply-accumulates of an answer, a panel a metric, with the Pareto front.

    `costs` is costs.csv. None where fewer than two models have both.
    """
    macs = {model: value for model, value in zip(costs["model"], costs["macs"], strict=True) if np.isfinite(value)}
    both = [(card, attack_average(grid, card.id), macs[card.id]) for card in cards if card.id in macs]
    points = [(card, cell, cost) for card, cell, cost in both if cell.ok]
    if len(points) < 2:
        return None
    side = int(costs["lr_side"].iloc[0])
    details = (
        f"mean over the attacks of Table 2; an answer for {side} x {side} LR pixels, all passes; line: Pareto front"
    )
    caption = _caption(f"Robustness and costs – {FAMILIES[family][1]}", protocol, details)
    figure, axes = _models_figure(caption, [card for card, _, _ in points], linestyle="", metrics=metrics)
    for ax, metric in zip(axes, metrics, strict=True):
        shown = [(k, cell.estimate(metric), cost / 1e9) for k, (_, cell, cost) in enumerate(points)]
        shown = [(k, e, cost) for k, e, cost in shown if np.isfinite(e.value)]
        for k, estimate, cost in shown:
            colour, marker = _style(k)
            ax.plot([cost, cost], [estimate.low, estimate.high], color=colour, alpha=0.45, linewidth=1)
            ax.plot(cost, estimate.value, marker, color=colour, markersize=7)
        values, spent = [e.value for _, e, _ in shown], [cost for _, _, cost in shown]
        front = pareto_front(spent, values, METRICS[metric].higher_is_better)
        ax.step([spent[i] for i in front], [values[i] for i in front], where="post", color=GREY, linewidth=1, zorder=0)
        # Interpolation has no MACs: the axis is linear up to the cheapest network.
        ax.set_xscale("symlog", linthresh=min([cost for cost in spent if cost], default=1.0))
        ax.set_xlabel("MACs of an answer (G)", fontsize=9)
        ax.set_ylabel(f"attacked: {_axis_title(metric)}", fontsize=9)
        ax.tick_params(labelsize=8)
        ax.grid(color="#dddddd", linewidth=0.7)
        ax.set_axisbelow(True)
    return figure


def plot_fourier(family: str, found: Sequence[Sensitivity], grid: Grid, protocol: LeaderboardInfo) -> Figure:
    """Each network's mean gain at every frequency, the lowest in the middle."""
    from matplotlib.colors import LogNorm

    columns = min(len(found), 4)
    rows = math.ceil(len(found) / columns)
    figure = canvas(1.5 + 2.4 * columns, 1.2 + 2.5 * rows)
    caption = _caption(f"Gain by frequency – {FAMILIES[family][1]}", protocol, "change of SR per change of LR, in l2")
    figure.suptitle(caption, fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    positive = np.concatenate([s.map[s.map > 0] for s in found])
    norm = LogNorm(max(positive.min(), positive.max() / 1000), positive.max())
    for ax in axes[len(found) :]:
        ax.set_axis_off()
    for ax, one in zip(axes, found, strict=False):
        half = (one.axis[1] - one.axis[0]) / 2 if len(one.axis) > 1 else 0.5
        span = (one.axis[0] - half, one.axis[-1] + half)
        drawn = ax.imshow(one.map, cmap="cividis", norm=norm, extent=(*span, *span), origin="lower")
        ax.set_title(textwrap.fill(one.card.title, 30), fontsize=8)
        ax.set_xticks([-0.4, 0, 0.4])
        ax.set_yticks([-0.4, 0, 0.4])
        ax.tick_params(labelsize=7)
    bar = figure.colorbar(drawn, ax=list(axes), shrink=0.8, label="gain", format="%g")
    bar.ax.yaxis.set_minor_formatter("{x:g}")
    figure.supxlabel("cycles per LR pixel; 0 is even light", fontsize=8, color=GREY)
    return figure


def plot_plane(family: str, found: Sequence[Sensitivity], grid: Grid, protocol: LeaderboardInfo) -> Figure | None:
    """Perception against sensitivity: LPIPS on clean images by the largest singular value; None without both."""
    both = [(s, grid.get((s.card.id, "clean"), NOT_RUN)) for s in found]
    points = [(s, cell.estimate("lpips")) for s, cell in both if cell.ok and np.isfinite(cell.value("lpips"))]
    if not points:
        return None
    caption = _caption(f"Perception and sensitivity – {FAMILIES[family][1]}", protocol, "95% bootstrap intervals")
    figure, (ax,) = _models_figure(caption, [s.card for s, _ in points], linestyle="", metrics=["lpips"])
    for k, (one, lpips) in enumerate(points):
        colour, marker = _style(k)
        x = one.singular
        for xs, ys in (((x.low, x.high), (lpips.value,) * 2), ((x.value,) * 2, (lpips.low, lpips.high))):
            ax.plot(xs, ys, color=colour, alpha=0.45, linewidth=1)
        ax.plot(x.value, lpips.value, marker, color=colour, markersize=7)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("largest singular value of the Jacobian", fontsize=9)
    ax.set_ylabel(f"clean {_axis_title('lpips')}", fontsize=9)
    ax.grid(color=GRID, linewidth=0.7)
    ax.set_title("better: bottom left", fontsize=8, color=GREY)
    return figure


SENSITIVITY_PLOTS: Mapping[str, Callable[..., Figure | None]] = {SENSITIVITY: plot_plane, "fourier": plot_fourier}
"""Plots of sensitivity.csv, by the stem of their files."""
