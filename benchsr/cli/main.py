"""The command line: names in, calls out. Exit codes: 0 done, 1 some evaluations failed, 2 wrong usage or bad input."""

from __future__ import annotations

import inspect
import json
import logging
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from benchsr.base.errors import BenchsrError, InputError
from benchsr.base.files import cache_dir, write_atomic
from benchsr.evaluation.cache import AttackCache
from benchsr.results.records import Status
from benchsr.train.cli import train

app = typer.Typer(
    name="benchsr",
    help="Adversarial robustness benchmark for x4 image super-resolution.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console()
err = Console(stderr=True)

Models = Annotated[str, typer.Option(help="'all', or ids and card files (my-model.toml) separated by commas.")]
Threats = Annotated[str, typer.Option(help="'all', or ids separated by commas.")]
ProtocolName = Annotated[str, typer.Option(help="Protocol id, or the path of a protocol file (.toml).")]
DatasetName = Annotated[
    str | None, typer.Option(help="Another data set: an id, or a folder of HR images (or HR/ and LR/).")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Seed = Annotated[int | None, typer.Option(help="Seed of all random draws. Default: the protocol's.")]
CacheFolder = Annotated[
    str | None, typer.Option(help="Folder, or fsspec address, of attacked images. Default: in the user's cache.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A setting of the threat, as name=value. Repeat for more.")
]


def examples(*lines: str) -> str:
    """An epilog that shows commands, one a line."""
    return "**Examples**\n\n" + "\n\n".join(f"`{line}`" for line in lines)


@app.command(
    epilog=examples(
        "benchsr run --models all --threats all",
        "benchsr run --models impressionism-ntire,my-model.toml --threats clean,noise,pgd --limit 2",
        "benchsr run --protocol paper --device cuda --precision bf16",
        "benchsr run --dataset photos/ --out my-boards",
        "benchsr run --workers 4 --cell-timeout 600",
    )
)
def run(
    models: Models = "all",
    threats: Threats = "all",
    protocol: ProtocolName = "quick",
    dataset: DatasetName = None,
    limit: Annotated[int | None, typer.Option(help="Only the first images of the data set.")] = None,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder that gets <protocol>/results.csv.")] = Path(
        "leaderboards"
    ),
    cache: CacheFolder = None,
    device: Device = "auto",
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16: of the network inside attacks.")] = None,
    batch_size: Annotated[int, typer.Option(help="Most images at once on a GPU; the CPU takes one.")] = 8,
    memory_budget: Annotated[
        float | None,
        typer.Option(
            help="GB for attacks, of each worker; they become slower rather than larger. Default: most of what is free."
        ),
    ] = None,
    seed: Seed = None,
    perceptual_net: Annotated[str | None, typer.Option(help="vgg16 or vgg19: of the attacks' loss.")] = None,
    executor: Annotated[str, typer.Option(help="local (this machine) or ray (a Ray cluster).")] = "local",
    workers: Annotated[
        int | None, typer.Option(help="Cells at a time, each in a process. Default: 1; with Ray one for each GPU.")
    ] = None,
    cell_timeout: Annotated[
        float | None, typer.Option(help="Seconds for one cell; then its worker is killed and its row fails.")
    ] = None,
    ray_address: Annotated[str | None, typer.Option(help="Of a Ray cluster. Default: Ray on this machine.")] = None,
) -> None:
    """Evaluate models under threats and write the leaderboard: tables, plots, report.

    The same command again goes on where the last one stopped and repeats nothing that is known.
    Exit code: 0 all that is available is evaluated, 1 some evaluations failed, 2 wrong usage.
    """
    from benchsr.commands.run import evaluate
    from benchsr.leaderboard import summary_table

    outcome = evaluate(
        models,
        threats,
        protocol,
        dataset=dataset,
        limit=limit,
        out=out_dir,
        cache=cache,
        device=device,
        precision=precision,
        batch_size=batch_size,
        memory_budget=memory_budget,
        seed=seed,
        perceptual_net=perceptual_net,
        executor=executor,
        workers=workers,
        cell_timeout=cell_timeout,
        ray_address=ray_address,
        console=out,
    )
    for table in summary_table(outcome.planned, outcome.cards):
        out.print(table)
    unavailable = {r.model: r.reason for r in outcome.planned if r.status is Status.UNAVAILABLE and r.image}
    if unavailable:
        out.print(f"{len(unavailable)} models have no weights here; reasons: {outcome.folder / 'report.md'}")
    out.print(f"Leaderboard: {outcome.folder}")
    if outcome.failures:
        err.print(
            f"{len(outcome.failures)} evaluations failed; their reasons stand in {outcome.folder / 'results.csv'}"
        )
        raise typer.Exit(1)


@app.command("list", epilog=examples("benchsr list models", "benchsr list threats"))
def list_entries(kind: Annotated[str, typer.Argument(help="models, threats, datasets or protocols.")]) -> None:
    """List what benchsr knows."""
    from benchsr.base.registry import Registry
    from benchsr.data.datasets import DATASETS
    from benchsr.evaluation.protocol import protocols
    from benchsr.models.zoo import availability, zoo
    from benchsr.threats.table import THREATS, ThreatSpec

    def threat_settings(spec: ThreatSpec) -> str:
        return ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in spec.defaults.items())

    listings: dict[str, tuple[tuple[str, ...], Callable[[], Iterable[tuple[str, ...]]]]] = {
        "models": (
            ("id", "title", "scale", "weights"),
            lambda: ((c.id, c.title, c.family, availability(c)[1]) for c in zoo().values()),
        ),
        "threats": (
            ("id", "title", "kind", "settings"),
            lambda: ((i, s.title, s.kind, threat_settings(s)) for i, s in THREATS.items()),
        ),
        "datasets": (("id", "title"), lambda: ((i, s.title) for i, s in DATASETS.items())),
        "protocols": (("id", "title", "data"), lambda: ((p.id, p.title, p.dataset) for p in protocols().values())),
    }
    columns, rows = Registry("kind of entry", listings)[kind]
    table = Table(*columns)
    for row in rows():
        table.add_row(*row)
    out.print(table)


@app.command(epilog=examples("benchsr show impressionism-ntire", "benchsr show pgd", "benchsr show paper"))
def show(entry: Annotated[str, typer.Argument(metavar="ID", help="A model, threat, data set or protocol.")]) -> None:
    """Show everything about one entry."""
    from benchsr.base.registry import Registry
    from benchsr.data.datasets import DATASETS
    from benchsr.evaluation.protocol import protocols
    from benchsr.models.zoo import availability, load_card, zoo
    from benchsr.threats.table import THREATS

    if entry.endswith(".toml") or entry in zoo():
        card = load_card(entry)
        out.print({"model": card.model_dump(exclude_none=True), "weights": availability(card)[1]})
    elif entry in THREATS:
        spec = THREATS[entry]
        out.print({"threat": entry, "title": spec.title, "kind": spec.kind, "settings": spec.defaults})
        if spec.make is not None:
            out.print(inspect.getdoc(spec.make) or "")
    elif entry in protocols():
        protocol = protocols()[entry]
        out.print({"protocol": protocol.figures(), "fingerprint": protocol.fingerprint})
        out.print("\n".join(protocol.description))
    elif entry in DATASETS:
        out.print(DATASETS[entry])
    else:
        known = [*zoo(), *THREATS, *DATASETS, *protocols()]
        Registry("entry", dict.fromkeys(known))[entry]


@app.command(epilog=examples("benchsr fetch div2k-valid", "benchsr fetch impressionism-ntire"))
def fetch(name: Annotated[str, typer.Argument(help="A data set, or a model whose weights are wanted.")]) -> None:
    """Download a data set or a model's weights: with progress, resumed after a break, checked against its hash."""
    from benchsr.data import datasets as data
    from benchsr.models.zoo import load_card, network_key, zoo

    if name.endswith(".toml") or name in zoo():
        out.print(f"{name}: network {network_key(load_card(name))}")
    else:
        out.print(f"{name}: {data.fetch(name)}")


@app.command(
    epilog=examples(
        "benchsr attack photo.png --model impressionism-ntire --threat pgd --out attacked.png",
        "benchsr attack photo.png --model realesrgan-x4plus --threat pgd --set eps=0.0157 --set steps=20",
    )
)
def attack(
    image: Annotated[Path, typer.Argument(help="An HR image; LR is made from it.")],
    model: Annotated[str, typer.Option(help="Model id or card file.")],
    threat: Annotated[str, typer.Option(help="Threat id.")] = "pgd",
    settings: Settings = None,
    out_file: Annotated[Path, typer.Option("--out", help="PNG of the attacked LR.")] = Path("attacked.png"),
    crop: Annotated[int | None, typer.Option(help="Side of a centred LR crop.")] = None,
    device: Device = "auto",
    seed: Seed = None,
) -> None:
    """Attack one image, and save the attacked LR and what the model makes of it."""
    from benchsr.base.inference import pick_device
    from benchsr.data.datasets import load_sample
    from benchsr.data.images import write_image
    from benchsr.defences.smoothing import load_model
    from benchsr.metrics.quality import psnr
    from benchsr.threats.attacks import AttackResult
    from benchsr.threats.table import load_threat

    chosen = load_threat(threat, **parse_settings(settings or []))
    target = pick_device(device)
    network = load_model(model, device=target)
    sample = load_sample(image, crop=crop)
    lr, hr = sample.lr[None].to(target), sample.hr[None].to(target)
    with out.status(f"{chosen.spec.title} on {model}"):
        result = chosen.run(network, lr, hr, [sample.id], seed or 0)
        attacked = result.lr if isinstance(result, AttackResult) else result
        with torch.no_grad():
            sr_clean, sr = network(lr).clamp(0, 1), network(attacked).clamp(0, 1)
    sr_file = out_file.with_name(f"{out_file.stem}-sr.png")
    write_image(out_file, attacked[0].cpu())
    write_image(sr_file, sr[0].cpu())
    table = Table("", "before", "after")
    if isinstance(result, AttackResult):
        table.add_row("objective", f"{float(result.loss_clean):.4f}", f"{float(result.loss_attacked):.4f}")
    table.add_row("PSNR", f"{float(psnr(sr_clean, hr)):.2f} dB", f"{float(psnr(sr, hr)):.2f} dB")
    out.print(table)
    out.print(f"largest change of a pixel: {float((attacked - lr).abs().max()) * 255:.2f}/255")
    out.print(f"attacked LR: {out_file} (rounded to 8 bit)\nits SR: {sr_file}")


@app.command(
    epilog=examples(
        "benchsr upscale small.png --model impressionism-ntire --out large.png",
        "benchsr upscale noisy.png --model mrs-impressionism-ntire --threat fgsm",
    )
)
def upscale(
    image: Annotated[Path, typer.Argument(help="An LR image.")],
    model: Annotated[str, typer.Option(help="Model id or card file.")],
    out_file: Annotated[Path, typer.Option("--out", help="PNG of the SR image.")] = Path("upscaled.png"),
    threat: Annotated[str, typer.Option(help="For smoothed models: use the sigma set for this threat.")] = "clean",
    device: Device = "auto",
) -> None:
    """Super-resolve one image x4."""
    from benchsr.base.inference import pick_device
    from benchsr.data.images import read_image, write_image
    from benchsr.defences.smoothing import load_model

    target = pick_device(device)
    lr = read_image(image)[None].to(target)
    with out.status(f"{model} on {lr.shape[3]} x {lr.shape[2]} pixels"), torch.no_grad():
        sr = load_model(model, threat, target)(lr)
    write_image(out_file, sr[0].clamp(0, 1).cpu())
    out.print(f"{out_file}: {sr.shape[3]} x {sr.shape[2]} pixels")


@app.command(
    epilog=examples(
        "benchsr report",
        "benchsr report --protocol paper --out my-boards",
        "benchsr run --out fresh && benchsr report --out fresh --check leaderboards",
    )
)
def report(
    protocol: ProtocolName = "quick",
    dataset: DatasetName = None,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder that holds <protocol>/results.csv.")] = Path(
        "leaderboards"
    ),
    check: Annotated[
        Path | None, typer.Option(help="Folder of older leaderboards: fail if a figure moved without a reason.")
    ] = None,
) -> None:
    """Write tables, plots and report again from results.csv; with --check compare it with an older one first.

    Exit code 1: a figure moved by more than its tolerance although its data, weights and settings are the same.
    """
    from benchsr.commands.report import rewrite
    from benchsr.results.drift import check as drifted

    folder = rewrite(protocol, dataset, out_dir)
    out.print(f"Leaderboard: {folder}")
    if check is not None:
        moved, compared = drifted(folder / "results.csv", check / folder.name / "results.csv")
        for cell in moved:
            err.print(f"moved: {cell}", style="red", markup=False, highlight=False)
        out.print(f"{compared} cells compared with {check / folder.name}, {len(moved)} figures moved")
        if moved:
            raise typer.Exit(1)


@app.command(epilog=examples("benchsr site", "benchsr site --leaderboards my-boards --out my-page --serve"))
def site(
    leaderboards: Annotated[Path, typer.Option(help="Folder that holds <protocol>/results.csv.")] = Path(
        "leaderboards"
    ),
    out_dir: Annotated[Path, typer.Option("--out", help="Folder that gets the page.")] = Path("site"),
    serve: Annotated[bool, typer.Option("--serve", help="Then show it at http://127.0.0.1:8000.")] = False,
) -> None:
    """Write the leaderboards as a web page that needs neither server nor network."""
    from benchsr.site import build_site, serve_site

    build_site(leaderboards, out_dir)
    out.print(f"Page: {out_dir / 'index.html'}")
    if serve:
        out.print("http://127.0.0.1:8000 (stop with Ctrl-C)")
        serve_site(out_dir)


caches = typer.Typer(help="Look after the cache of attacked images.", no_args_is_help=True)
app.add_typer(caches, name="cache")


@caches.command(epilog=examples("benchsr cache info", "benchsr cache info --cache s3://bucket/attacked"))
def info(cache: CacheFolder = None) -> None:
    """Say how many attacked images are kept, and how large and how old they are."""
    kept = _cache(cache)
    entries = list(kept.entries())
    days = max((entry.age for entry in entries), default=0) / 86400
    size = sum(entry.bytes for entry in entries) / 1e6
    out.print(f"{kept.folder}: {len(entries)} entries, {size:.1f} MB, the oldest of {days:.1f} days ago")


@caches.command(epilog=examples("benchsr cache verify"))
def verify(cache: CacheFolder = None) -> None:
    """Check every entry against its hash. Exit code 1 where one is damaged; runs compute such entries again."""
    damaged = _cache(cache).damaged()
    for path, problem in damaged.items():
        out.print(f"{path}: {problem}", markup=False)
    out.print(f"{len(damaged)} damaged entries")
    if damaged:
        raise typer.Exit(1)


@caches.command(epilog=examples("benchsr cache prune", "benchsr cache prune --days 90"))
def prune(
    cache: CacheFolder = None,
    days: Annotated[float | None, typer.Option(help="Also entries written more than so many days ago.")] = None,
) -> None:
    """Delete damaged entries, leftovers of interrupted runs and, if asked for, old entries."""
    gone = _cache(cache).prune(days)
    out.print(f"{len(gone)} files deleted, {sum(entry.bytes for entry in gone) / 1e6:.1f} MB")


def _cache(folder: str | None) -> AttackCache:
    return AttackCache(folder or cache_dir() / "attacked")


app.command(
    epilog=examples(
        "benchsr train esrgan --data photos/",
        "benchsr train certsr --data photos/ --steps 100 --out runs/certsr",
        "benchsr train ad-l-pgd --scale paper --data DIV2K_train_HR/ --device cuda",
    )
)(train)


@app.command(
    epilog=examples(
        "benchsr certify small.png --model compact-certsr --sigma 0.06 --eps 0.05",
        "benchsr certify small.png --model impressionism-ntire --n 1001 --confidence 0.999 --crop 24 --simultaneous",
    )
)
def certify(
    image: Annotated[Path, typer.Argument(help="An LR image.")],
    model: Annotated[str, typer.Option(help="Model id or card file; of a smoothed one its network.")],
    sigma: Annotated[float, typer.Option(help="Standard deviation of the noise, pixels being in [0, 1].")] = 0.06,
    eps: Annotated[float, typer.Option(help="l2 radius to certify, over the whole LR image.")] = 0.05,
    n: Annotated[int, typer.Option(help="Draws.")] = 101,
    confidence: Annotated[float, typer.Option(help="Of each bound, or of all together.")] = 0.95,
    simultaneous: Annotated[bool, typer.Option("--simultaneous", help="All bounds of the image together.")] = False,
    crop: Annotated[int, typer.Option(help="Side of a centred LR crop: memory and time grow with its area.")] = 32,
    results: Annotated[Path, typer.Option(help="results.csv whose attacks are put beside the radius.")] = Path(
        "leaderboards/quick/results.csv"
    ),
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for bounds, widths, curves and text.")] = Path(
        "certificate"
    ),
    device: Device = "auto",
    seed: Seed = None,
) -> None:
    """Bound what any small change of one image can do to the median-smoothed model."""
    from benchsr.base.inference import pick_device
    from benchsr.commands.certify import attack_norms, write_report
    from benchsr.data.images import read_image
    from benchsr.models.network import load_network
    from benchsr.models.zoo import load_card

    target = pick_device(device)
    lr = read_image(image)
    top, left = (max(0, (side - crop) // 2) for side in lr.shape[1:])
    lr = lr[:, top : top + crop, left : left + crop].to(target)
    norms = attack_norms(results) if results.exists() else {}
    network = load_network(load_card(model), target)
    with out.status(f"{n} draws of {model} on {lr.shape[2]} x {lr.shape[1]} pixels"):
        lines = write_report(
            out_dir, network, lr, sigma, eps, n, confidence, seed or 0, simultaneous=simultaneous, norms=norms
        )
    out.print("\n".join(lines), highlight=False)
    out.print(f"Written: {out_dir}")


@app.command(
    "tune-sigma",
    epilog=examples("benchsr tune-sigma my-model.toml --threat pgd,noise --dataset held-out-photos/ --crop 32"),
)
def tune_sigma(
    model: Annotated[str, typer.Argument(help="Model id or card file; the card is changed.")],
    threat: Annotated[str, typer.Option(help="Threat ids, separated by commas.")],
    dataset: Annotated[str, typer.Option(help="Folder of images that no leaderboard is evaluated on.")],
    protocol: ProtocolName = "quick",
    crop: Annotated[int | None, typer.Option(help="Side of a centred LR crop.")] = 32,
    limit: Annotated[int | None, typer.Option(help="Only the first images.")] = None,
    out_file: Annotated[Path, typer.Option("--out", help="Plot of LPIPS, PSNR and SSIM against sigma.")] = Path(
        "sigma.png"
    ),
) -> None:
    """Choose the noise of a smoothed model by LPIPS on held-out images, and write it into its card.

    A card with a sigma for each threat gets those of the threats named; any other gets one sigma for all of them.
    """
    from benchsr.commands.tuning import held_out, plot, try_sigmas, write_choice
    from benchsr.evaluation.protocol import load_protocol
    from benchsr.models.network import load_network
    from benchsr.models.zoo import load_card, zoo_dir
    from benchsr.threats.table import THREATS

    card, chosen = load_card(model), load_protocol(protocol)
    path = Path(model) if model.endswith(".toml") else zoo_dir() / f"{card.id}.toml"
    data = held_out(dataset, crop, limit)
    draws = card.smoothing.n if card.smoothing else 21
    with out.status(f"{card.id} on {len(data)} images"):
        figures = try_sigmas(load_network(card), data, chosen, THREATS.select(threat), n=draws)
    out.print(figures.to_string(index=False, float_format="%.4f"), highlight=False)
    plot(figures, f"{card.title}: {len(data)} held-out images").savefig(out_file, dpi=110)
    for name, sigma in write_choice(path, card, figures, data, chosen).items():
        out.print(f"sigma {sigma:g} {f'against {name}' if name else 'against all threats'}: {path}")


@app.command(
    epilog=examples(
        "benchsr figures --models bicubic,impressionism-ntire --threats clean,noise,pgd",
        "benchsr figures --models all --threats pgd --images astronaut,coffee",
    )
)
def figures(
    models: Models = "all",
    threats: Threats = "all",
    images: Annotated[
        str | None, typer.Option(help="'all', or ids separated by commas. Default: the first image.")
    ] = None,
    protocol: ProtocolName = "quick",
    out_dir: Annotated[Path, typer.Option("--out", help="Folder that gets <protocol>/figures.")] = Path("leaderboards"),
    cache: CacheFolder = None,
    device: Device = "auto",
) -> None:
    """Draw what threats do to images and their SR, as PNG and PDF; `benchsr site` shows them with a slider."""
    from benchsr.commands.figures import make_figures

    with out.status("Drawing"):
        folder = make_figures(models, threats, images, protocol, out=out_dir, cache=cache, device=device)
    out.print(f"Figures: {folder}")


@app.command(epilog=examples("benchsr submit my-model.toml"))
def submit(
    card: Annotated[Path, typer.Argument(metavar="CARD.toml", help="The model's card.")],
    protocol: ProtocolName = "quick",
    out_file: Annotated[
        Path | None, typer.Option("--out", help="The pull request's text. Default: <id>-pull-request.md.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Check a model card, compute the row it would add, and write the text of the pull request.

    Exit code 1: evaluations failed, or figures did not repeat; the text says which.
    """
    from benchsr.commands.submit import submit as evaluate_card

    result = evaluate_card(card, protocol, device=device, out=out_file, console=out)
    out.print(result.text, markup=False, highlight=False)
    if result.failures:
        err.print("not ready: " + "; ".join(result.failures), markup=False, highlight=False)
        raise typer.Exit(1)


@app.command(
    epilog=examples(
        "benchsr compare impressionism-ntire mrs-impressionism-ntire",
        "benchsr compare compact-esrgan compact-certsr --protocol adaptive --out certsr-vs-esrgan",
        "benchsr compare my-boards/quick leaderboards/quick --out mine-vs-published",
    )
)
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A model of the board; or the folder of a board.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another model; or another board.")],
    protocol: ProtocolName = "quick",
    leaderboards: Annotated[Path, typer.Option(help="Folder that holds <protocol>/results.csv.")] = Path(
        "leaderboards"
    ),
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Folder that gets compare.csv, compare.md and plots.")
    ] = None,
) -> None:
    """Say in which figures two models differ on the same images, how surely, and what so many images can show."""
    from benchsr.cli.compare import HEADER, compare_named, write_comparison

    comparison = compare_named(a, b, protocol, leaderboards)
    for title, rows in comparison.sections():
        table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
        for column in HEADER:
            table.add_column(column, justify="left" if column == "threat" else "right", overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row))
        out.print(table, highlight=False)
    out.print("\n".join(comparison.legend), markup=False, highlight=False)
    if out_dir is not None:
        files = write_comparison(comparison, out_dir)
        out.print(f"Written: {', '.join(path.name for path in files[:3])} in {out_dir}")


@app.command(
    epilog=examples(
        "benchsr export table2",
        "benchsr export table2 --format latex --out table2.tex",
        "benchsr export costs --format csv",
        "benchsr export impressionism-ntire --out README-part.md",
    )
)
def export(
    name: Annotated[str, typer.Argument(metavar="TABLE", help="A table of the board; or a model, for its page.")],
    form: Annotated[str, typer.Option("--format", help="latex, csv, parquet, markdown or html.")] = "markdown",
    protocol: ProtocolName = "quick",
    leaderboards: Annotated[Path, typer.Option(help="Folder that holds <protocol>/results.csv.")] = Path(
        "leaderboards"
    ),
    out_file: Annotated[Path | None, typer.Option("--out", help="File to write. Default: the terminal.")] = None,
) -> None:
    """Write a table for a paper or a notebook, or a model's figures and what they mean for its page."""
    from benchsr.cli.compare import board_folder
    from benchsr.commands_export import export as exported

    content = exported(name, form, board_folder(protocol, leaderboards))
    if out_file is not None:
        write_atomic(out_file, content)
        out.print(f"Written: {out_file}")
    else:
        sys.stdout.buffer.write(content)


@app.command(
    epilog=examples("benchsr costs", "benchsr costs --models impressionism-ntire,bicubic --lr-side 128 --device cuda")
)
def costs(
    models: Models = "all",
    lr_side: Annotated[int, typer.Option(help="LR pixels a side that costs are stated for.")] = 64,
    protocol: ProtocolName = "quick",
    out_dir: Annotated[Path, typer.Option("--out", help="Folder that holds <protocol>/results.csv.")] = Path(
        "leaderboards"
    ),
    device: Device = "auto",
) -> None:
    """Measure what an answer costs: parameters, MACs, passes, memory, seconds; costs.csv and Pareto plots."""
    from rich.progress import track

    from benchsr.base.inference import pick_device
    from benchsr.cli.compare import board_folder
    from benchsr.commands.costs import cost_table
    from benchsr.commands_export import write_costs
    from benchsr.leaderboard.export import COST_COLUMNS, cost_caption, cost_cells
    from benchsr.models.zoo import select_cards

    board, cards = board_folder(protocol, out_dir), select_cards(models)
    rows = cost_table(cards, lr_side, pick_device(device))
    data = write_costs(board, track(rows, "Costs", total=len(cards), console=err))
    table = Table("model", *(title for title, _ in COST_COLUMNS.values()), box=None, padding=(0, 1, 0, 0))
    for model, line in zip(data["model"], cost_cells(data), strict=True):
        table.add_row(escape(model), *line)
    out.print(table, highlight=False)
    out.print(cost_caption(data), markup=False, highlight=False)
    for model, reason in zip(data["model"], data["reason"], strict=True):
        if isinstance(reason, str) and reason:
            out.print(f"{model}: {reason}", markup=False, highlight=False)
    out.print(f"Written: {board / 'costs.csv'}")


def parse_settings(pairs: list[str]) -> dict[str, float | int | bool | str]:
    """Turn ["eps=0.03", "steps=20"] into typed settings. Raises InputError for anything not name=value."""
    settings: dict[str, float | int | bool | str] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals and text):
            raise InputError(f"--set {pair!r}: write it as name=value, for example --set eps=0.03")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        settings[name] = value if isinstance(value, float | int | bool | str) else text
    return settings


def main() -> None:
    """Entry point: errors that users can act on become one message and exit code 2, never a traceback."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=err, show_time=False, show_path=False)],
    )
    try:
        app()
    except BenchsrError as error:
        err.print(f"[bold red]benchsr:[/] {escape(str(error))}", highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("benchsr: interrupted; what was computed is kept, and the same command goes on from there")
        sys.exit(130)


if __name__ == "__main__":
    main()
