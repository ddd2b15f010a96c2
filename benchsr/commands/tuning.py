"""The choice of sigma by LPIPS on held-out images (paper, section 5: "sigma was chosen by LPIPS")."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import tomlkit
import torch
from matplotlib.figure import Figure
from torch import nn

from benchsr.base.drawing import GRID, canvas, save
from benchsr.base.errors import InputError
from benchsr.base.files import sha256_file, write_atomic
from benchsr.base.inference import Autocast, full_float32, to_8bit
from benchsr.base.pairs import USUAL, Scale
from benchsr.data.cards import DATASETS
from benchsr.data.datasets import Dataset, load_dataset
from benchsr.defences.smoothing import Smoothed
from benchsr.evaluation.protocol import Protocol, load_protocol
from benchsr.metrics.quality import METRICS, score
from benchsr.models.cards import Card
from benchsr.models.network import load_network
from benchsr.models.zoo import load_card, zoo_dir
from benchsr.threats.table import THREATS

SIGMAS = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1)
"""Candidates, in [0, 1] pixel units; 0 is no smoothing."""


def held_out(folder: str, crop: int | None, limit: int | None, scale: Scale = USUAL) -> Dataset:
    """The images of a folder to choose sigma on. Raises InputError for data that benchsr evaluates on."""
    if folder in DATASETS:
        raise InputError(
            f"{folder!r} is what leaderboards are evaluated on; give a folder of other images: --dataset DIR"
        )
    data = load_dataset(folder, crop=crop, scale=scale).first(limit)
    evaluated = [load_dataset(name) for name, card in DATASETS.items() if card.source.kind == "embedded"]
    known = {sha256_file(source.hr) for dataset in evaluated for source in dataset.sources.values()}
    known |= {listed.sha256 for card in DATASETS.values() for listed in card.manifest}
    for source in data.sources.values():
        if sha256_file(source.hr) in known:
            raise InputError(f"{source.hr} is an image that leaderboards are evaluated on; take it out of {folder}")
    return data


def try_sigmas(
    network: nn.Module,
    data: Dataset,
    protocol: Protocol,
    threats: Sequence[str],
    sigmas: Sequence[float] = SIGMAS,
    n: int = 21,
) -> pd.DataFrame:
    """Figures of `network` smoothed with each of `sigmas`: columns threat, sigma, psnr (dB), ssim, lpips; image means.

    Attacks see `network` itself, as the paper's do; their precision, all rounding, metrics and seed are those of
    `protocol`. Raises InputError for a threat with its own data set and for one that knows the smoothing, whose attack
    would differ with each sigma.
    """
    lines = []
    seen = Autocast(network) if protocol.precision == "bf16" else network
    for threat in (protocol.threat(name) for name in threats):
        if threat.median_of:
            raise InputError(f"threat {threat.id!r} knows the smoothing; choose sigma for one that does not")
        for sample in map(data.sample, data.ids):
            with full_float32():
                attacked = threat(seen, sample.lr[None], sample.hr[None], [sample.id], protocol.seed)
            attacked = to_8bit(attacked) if protocol.quantise_lr else attacked
            for sigma in sigmas:
                with torch.no_grad(), full_float32():
                    smoothed = Smoothed(network, sigma, n, protocol.seed) if sigma else None
                    sr = smoothed(attacked, [sample.id]) if smoothed else network(attacked)
                found = score(*threat.scored(sr, sample.hr[None], sample.lr[None]), protocol.metrics)
                figures = {name: value.item() for name, value in found.figures.items()}
                lines.append({"threat": threat.id, "sigma": sigma, **figures})
    return pd.DataFrame(lines).groupby(["threat", "sigma"], sort=False, as_index=False).mean()


def best_sigmas(figures: pd.DataFrame) -> dict[str, float]:
    """For each threat the sigma of lowest LPIPS, and under "" the one of lowest mean LPIPS over all of them."""
    table = figures.pivot_table(index="sigma", columns="threat", values="lpips")
    table[""] = table.mean(axis=1)
    return {str(threat): float(table.index.to_numpy()[table[threat].argmin()]) for threat in table}


def write_choice(path: Path, card: Card, figures: pd.DataFrame, data: Dataset, protocol: Protocol) -> dict[str, float]:
    """Write the chosen sigma into the card at `path`, keeping its layout, and how it was chosen into smoothing.chosen.

    A card that has a sigma for each threat gets those of the threats tried; any other gets one for all. Returns what
    was written, by threat id ("" for all). Raises InputError where the card cannot be written.
    """
    best = best_sigmas(figures)
    oracle = card.smoothing is not None and isinstance(card.smoothing.sigma, dict)
    chosen = {threat: sigma for threat, sigma in best.items() if bool(threat) == oracle}
    document = tomlkit.parse(path.read_text(encoding="utf-8"))
    table = document.setdefault("smoothing", tomlkit.table())
    table.setdefault("n", card.smoothing.n if card.smoothing else 21)
    if oracle:
        table["sigma"].update(chosen)
    else:
        table["sigma"] = chosen[""]
    threats = ", ".join(dict.fromkeys(figures["threat"]))
    table["chosen"] = (
        f"{datetime.now(UTC).date()}: lowest LPIPS under {threats} ({protocol.id} settings) on {len(data)} held-out "
        f"images ({data.fingerprint()[:12]}), of sigma {', '.join(f'{s:g}' for s in dict.fromkeys(figures['sigma']))}"
    )
    write_atomic(path, tomlkit.dumps(document))
    return chosen


def tune(
    model: str, threats: str, dataset: str, protocol: str, crop: int | None, limit: int | None, plot_file: Path
) -> tuple[pd.DataFrame, dict[str, float], Path]:
    """Choose sigma of a card on held-out images, write it into the card, and draw the choice.

    Returns all figures, the choice by threat id ("" for all), and the card's path. Raises BenchsrError.
    """
    card, chosen = load_card(model), load_protocol(protocol)
    path = Path(model) if model.endswith(".toml") else zoo_dir() / f"{card.id}.toml"
    data = held_out(dataset, crop, limit, card.factor)
    draws = card.smoothing.n if card.smoothing else 21
    figures = try_sigmas(load_network(card), data, chosen, THREATS.select(threats), n=draws)
    save(plot(figures, f"{card.title}: {len(data)} held-out images"), plot_file)
    return figures, write_choice(path, card, figures, data, chosen), path


def plot(figures: pd.DataFrame, title: str) -> Figure:
    """LPIPS, PSNR and SSIM against sigma, a line for each threat."""
    figure = canvas(11, 3.6)
    figure.suptitle(title, fontsize=10)
    for axes, metric in zip(figure.subplots(1, 3), ("lpips", "psnr", "ssim"), strict=True):
        for threat, rows in figures.groupby("threat", sort=False):
            axes.plot(rows["sigma"], rows[metric], marker="o", label=threat)
        better = "higher" if METRICS[metric].higher_is_better else "lower"
        axes.set(xlabel="sigma", ylabel=f"{METRICS[metric].title}, {better} is better")
        axes.grid(color=GRID, linewidth=0.7)
    axes.legend(fontsize=8)
    return figure
