"""Commands that look at images: attack, upscale, certify and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchsr.base.text import terminal_table
from benchsr.cli.options import (
    CacheFolder,
    Device,
    Models,
    OutDir,
    ProtocolName,
    Seed,
    Settings,
    Threats,
    out,
    parse_settings,
)


def attack(
    image: Annotated[Path, typer.Argument(help="An HR image; LR is made from it.")],
    model: Annotated[str, typer.Option(help="Model id, card or weights file.")],
    threat: Annotated[str, typer.Option(help="Threat id.")] = "pgd",
    settings: Settings = None,
    out_file: Annotated[Path, typer.Option("--out", help="PNG of the attacked LR.")] = Path("attacked.png"),
    crop: Annotated[int | None, typer.Option(help="Side of a centred LR crop.")] = None,
    device: Device = "auto",
    seed: Seed = None,
) -> None:
    """Attack one image as a run does, and save the attacked LR and what the model makes of it."""
    from benchsr.commands.images import attack_image
    from benchsr.data.datasets import load_sample
    from benchsr.models.network import at_own_scale
    from benchsr.models.zoo import load_card
    from benchsr.threats.table import load_threat

    chosen = load_threat(threat, **parse_settings(settings or []))
    card = at_own_scale(load_card(model))
    with out.status(f"{chosen.spec.title} on {model}"):
        sample = load_sample(image, crop=crop, scale=card.factor)
        done = attack_image(card, chosen, sample, device, seed or 0)
    sr_file = out_file.with_name(f"{out_file.stem}-sr.png")
    done.save(out_file, sr_file)
    table = terminal_table("", "before", "after")
    for name, before, after in done.rows():
        table.add_row(name, before, after)
    out.print(table)
    out.print(f"largest change of a pixel: {done.largest_change * 255:.2f}/255")
    out.print(f"attacked LR: {out_file} (rounded to 8 bit)\nits SR: {sr_file}")


def upscale(
    image: Annotated[Path, typer.Argument(help="An LR image.")],
    model: Annotated[str, typer.Option(help="Model id or card file.")],
    out_file: Annotated[Path, typer.Option("--out", help="PNG of the SR image.")] = Path("upscaled.png"),
    threat: Annotated[str, typer.Option(help="For smoothed models: use the sigma set for this threat.")] = "clean",
    device: Device = "auto",
) -> None:
    """Super-resolve one image, by the factor of the model."""
    from benchsr.commands.images import upscale_image

    with out.status(f"{model} on {image}"):
        height, width = upscale_image(image, model, out_file, threat, device)
    out.print(f"{out_file}: {width} x {height} pixels")


def certify(
    image: Annotated[Path, typer.Argument(help="An LR image.")],
    model: Annotated[str, typer.Option(help="Model id or card file; of a smoothed one its network.")],
    sigma: Annotated[float, typer.Option(help="Standard deviation of the noise, pixels being in [0, 1].")] = 0.06,
    eps: Annotated[float, typer.Option(help="l2 radius to certify, over the whole LR image.")] = 0.05,
    n: Annotated[int, typer.Option(help="Draws.")] = 101,
    confidence: Annotated[float, typer.Option(help="Of each bound, or of all together.")] = 0.95,
    simultaneous: Annotated[bool, typer.Option("--simultaneous", help="All bounds of the image together.")] = False,
    crop: Annotated[int, typer.Option(help="Side of a centred LR crop: memory and time grow with its area.")] = 32,
    results: Annotated[
        Path,
        typer.Option(
            help="results.csv whose attacks of this size stand beside the radius, and whose certificates of the model."
        ),
    ] = Path("leaderboards/quick/results.csv"),
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for bounds, widths, curves and text.")] = Path(
        "certificate"
    ),
    device: Device = "auto",
    seed: Seed = None,
) -> None:
    """Bound what any small change of one image can do to the median-smoothed model."""
    from benchsr.commands.certify import Settings, attack_norms, board_words, certify_image

    settings = Settings(sigma, eps, n, confidence, seed or 0, simultaneous)
    norms = attack_norms(results) if results.exists() else None
    with out.status(f"{n} draws of {model} on {image}"):
        lines = certify_image(image, model, settings, out_dir, crop, norms, device)
    board = board_words(results, model) if results.exists() else []
    out.print("\n".join([*lines, *board]), highlight=False)
    out.print(f"Written: {out_dir}")


def figures(
    models: Models = "all",
    threats: Threats = "all",
    images: Annotated[
        str | None, typer.Option(help="'all', or ids separated by commas. Default: the first image.")
    ] = None,
    protocol: ProtocolName = "quick",
    out_dir: OutDir = Path("leaderboards"),
    drawings: Annotated[
        bool, typer.Option(help="Beside the page's pictures a PNG and a PDF of all models side by side.")
    ] = True,
    cache: CacheFolder = None,
    device: Device = "auto",
    workers: Annotated[str, typer.Option(help="Processes that compute and draw; auto: as many as cores.")] = "auto",
) -> None:
    """Draw what threats do to images and their SR, as PNG and PDF; `benchsr site` shows them with a slider."""
    from benchsr.commands.figures import make_figures

    with out.status("Drawing"):
        folder = make_figures(
            models,
            threats,
            images,
            protocol,
            out=out_dir,
            cache=cache,
            device=device,
            drawings=drawings,
            workers=workers,
        )
    out.print(f"Figures: {folder}")
