"""`benchsr certify`: a certificate of one image as bounds, widths, curves and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchsr.base.drawing import canvas, save
from benchsr.base.errors import InputError
from benchsr.base.files import write_atomic
from benchsr.base.inference import pick_device
from benchsr.data.images import read_image, write_image
from benchsr.defences.certificate import (
    Certificate,
    certify_draws,
    deployment_cost,
    largest_eps,
    noisy_outputs,
    width_curves,
)
from benchsr.evaluation.ledger import read_ledger, stored_protocol
from benchsr.leaderboard.certified import Certificates
from benchsr.models.cards import Card
from benchsr.models.network import load_network
from benchsr.models.zoo import load_card


@dataclass(frozen=True)
class Settings:
    """What to certify: see `benchsr.certify`."""

    sigma: float
    eps: float
    n: int = 101
    confidence: float = 0.95
    seed: int = 0
    simultaneous: bool = False


@dataclass(frozen=True)
class Norms:
    """l2 norms of the LR's change by threat id, mean and largest, on LR crops of side `crop` (None: of many sizes)."""

    crop: int | None
    by_threat: Mapping[str, tuple[float, float]]


def describe(
    certificate: Certificate, side: tuple[int, int], norms: Norms | None = None, step: float = 9 / 255
) -> list[str]:
    """The certificate in words, a line each: what it covers, how wide it is, and how far attacks reach beyond it.

    `side`: height and width of the LR image. `norms`: of threats, called inside the radius where all of one are, else
    outside and not covered, if they are of LR images of that size, as an l2 norm grows with its image; `step`: the
    L-infinity attack put beside the radius in any case.
    """
    c = certificate
    together = "all bounds of the image together" if c.simultaneous else "each bound by itself"
    pixels = c.lower[0].numel()
    lines = [
        f"Covers: every change of the LR image whose l2 norm over all its elements is below {c.eps:g} (pixel values in "
        f"[0, 1]), for the exact median of the network under N(0, {c.sigma:g}^2). Holds with {c.confidence:.1%} "
        f"confidence for {together} ({pixels} elements), from order statistics {c.ranks[0]} and {c.ranks[1]} of {c.n}.",
        "Does not cover: any larger change.",
        f"Largest certifiable radius with {c.n} draws at this confidence: {c.largest_eps:.4g}.",
    ]
    if not c.feasible:
        return [
            *lines,
            f"Not certifiable: {c.n} draws cannot bound eps/sigma = {c.eps / c.sigma:.3g}; all bounds infinite.",
        ]
    percentiles = ", ".join(f"{p:g}%: {w * 255:.1f}" for p, w in c.width_percentiles().items())
    within = ", ".join(f"{t}/255: {float(c.fraction_within(t / 255).mean()):.1%}" for t in (8, 16, 32))
    reach = step * sqrt(3 * side[0] * side[1])
    lines += [
        deployed(c),
        f"Width in units of 1/255: mean {float(c.width.mean()) * 255:.1f}; percentiles {percentiles}.",
        f"Elements certified not to move by more than: {within}.",
        f"An L-infinity step of {step * 255:g}/255 on an LR image of this size has l2 norm {reach:.3g}, "
        f"{reach / max(c.eps, 1e-12):.3g} times the certified radius.",
    ]
    return lines + (_beside(c, norms, side) if norms and norms.by_threat else [])


def _beside(certificate: Certificate, norms: Norms, side: tuple[int, int]) -> list[str]:
    """Norms of attacks beside the radius, where both are about LR images of one size; else why they are not."""
    size = f"LR crops of {norms.crop} x {norms.crop} pixels" if norms.crop else "LR images of other sizes"
    if side == (norms.crop, norms.crop):
        return [
            f"Threat {name}: mean l2 norm {mean:.3g}, largest {largest:.3g} on {size}, "
            + ("inside" if largest < certificate.eps else "outside" if mean >= certificate.eps else "partly outside")
            + " the certified radius"
            + ("." if largest < certificate.eps else ": not covered.")
            for name, (mean, largest) in norms.by_threat.items()
        ]
    hint = f"; certify with --crop {norms.crop} to compare" if norms.crop else ""
    found = ", ".join(f"{name} {mean:.3g}" for name, (mean, _) in norms.by_threat.items())
    return [
        f"Mean l2 norms of threats, measured on {size} and not comparable with the radius over "
        f"{side[0]} x {side[1]} pixels: {found}{hint}."
    ]


def deployed(c: Certificate, k: int = 21, eta: float = 1e-3) -> str:
    """What the bounds say of the deployed median of k draws, which may break them with probability `eta`, in words."""
    cost = c.sigma * deployment_cost(k, eta / (2 * c.lower[0].numel() if c.simultaneous else 1))
    median = f"The median of {k} draws that a deployed model returns"
    if c.eps > cost:
        return f"{median} stays within them, but for {eta:.1%} of its draws, for changes below {c.eps - cost:.3g}."
    return f"{median} is covered by bounds made for {cost:.3g} or more, and these are made for {c.eps:g}."


def attack_norms(results: Path) -> Norms:
    """The norms of a leaderboard's attacks from its results.csv, and from protocol.json beside it their size."""
    seen: dict[str, dict[str, float]] = {}
    for r in read_ledger(results.parent):
        if r.attack_l2:
            seen.setdefault(r.threat, {})[f"{r.model}/{r.image}"] = r.attack_l2
    try:
        crop = stored_protocol(results.parent)[0].crop
    except InputError:  # nobody knows
        crop = None
    return Norms(crop, {threat: (fmean(norms.values()), max(norms.values())) for threat, norms in seen.items()})


def as_deployed(card: Card, sigma: float) -> str:
    """Whether a certificate of `card`'s network under noise `sigma` is of the model that attacks face, in words."""
    if card.smoothing is None:
        return (
            "The model is deployed without median smoothing: this certificate is of its smoothed network, and covers "
            "no attack on the model as it is."
        )
    own = card.smoothing.sigma
    if isinstance(own, dict) or own != sigma:
        told = "a sigma for each threat" if isinstance(own, dict) else f"sigma {own:g}"
        return f"The card deploys the model with {told}: this certificate covers it under sigma {sigma:g} alone."
    return f"The card deploys the model with the same sigma, as a median of {card.smoothing.n} draws."


def board_words(results: Path, model: str) -> list[str]:
    """What the board of a results.csv proves of `model` beside its attacks, a line each; none where it proves nothing.

    Raises InputError for a board that cannot be read.
    """
    proven = Certificates(read_ledger(results.parent))
    lines = [certified.words for certified in proven.by_model.get(model, [])]
    lines += [f"Data set: {kept.words}." for kept in proven.kept(model)]
    return [f"Of the board {results.parent.name}: {line}" for line in lines]


def certify_image(
    image: Path, model: str, settings: Settings, folder: Path, crop: int, norms: Norms | None, device: str = "auto"
) -> list[str]:
    """Certify `model` on the centred LR crop of side `crop` of an image file; see `write_report`."""
    target = pick_device(device)
    lr = read_image(image)
    top, left = (max(0, (side - crop) // 2) for side in lr.shape[1:])
    lr = lr[:, top : top + crop, left : left + crop].to(target)
    card = load_card(model)
    remark = as_deployed(card, settings.sigma)
    return write_report(folder, load_network(card, target), lr, settings, norms, remark)


def write_report(
    folder: Path, model: nn.Module, lr: Tensor, settings: Settings, norms: Norms | None = None, remark: str = ""
) -> list[str]:
    """Certify one image `lr` (3, h, w); write lower.png, upper.png, width.png, curves.png and certificate.txt.

    Returns the lines of certificate.txt, of which `remark` is one. Memory as for `certify`.
    """
    sigma, n, confidence, together = settings.sigma, settings.n, settings.confidence, settings.simultaneous
    draws = noisy_outputs(model, lr, sigma, n, settings.seed, "0")
    certificate = certify_draws(draws, sigma, settings.eps, confidence, together)
    for name in ("lower", "upper"):
        write_image(folder / f"{name}.png", getattr(certificate, name)[0].clamp(0, 1).cpu())
    elements = draws[0].numel() if together else None
    counts = [c for c in (21, 101, 1001) if c < n] + [n]
    radii = np.linspace(0, max(largest_eps(c, sigma, confidence, elements) for c in counts) * 0.999, 25).tolist()
    curves = width_curves(draws, sigma, confidence, counts, radii, together)
    save(_width(certificate), folder / "width.png")
    save(_curves(radii, curves, sigma), folder / "curves.png")
    lines = [*describe(certificate, (lr.shape[1], lr.shape[2]), norms), *([remark] if remark else [])]
    write_atomic(folder / "certificate.txt", "\n".join(lines) + "\n")
    return lines


def _width(certificate: Certificate) -> Figure:
    figure = canvas(5, 4)
    axes = figure.subplots()
    shown = axes.imshow(certificate.width[0].amax(0).cpu().numpy() * 255, cmap="viridis", vmin=0)
    figure.colorbar(shown, label="upper - lower, widest channel (1/255)")
    axes.set_axis_off()
    return figure


def _curves(eps: Sequence[float], curves: Mapping[int, Sequence[float]], sigma: float) -> Figure:
    figure = canvas(5, 4)
    axes = figure.subplots()
    for n, widths in curves.items():
        axes.plot(eps, [w * 255 for w in widths], label=f"n = {n}")
    axes.set(xlabel=f"certified l2 radius (sigma {sigma:g})", ylabel="mean width (1/255)", ylim=(0, None))
    axes.legend()
    return figure
