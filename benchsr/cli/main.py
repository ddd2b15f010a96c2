"""The command line: names in, calls out.

Exit codes: 0 done, 1 some evaluations failed, 2 wrong usage or bad input, 130 and 143 stopped by Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.logging import RichHandler
from rich.markup import escape

from benchsr.base.errors import BenchsrError, InputError, Stopped
from benchsr.cli.boards import compare, costs, export, sensitivity
from benchsr.cli.caches import caches
from benchsr.cli.entries import fetch, list_entries, show
from benchsr.cli.images import attack, certify, figures, upscale
from benchsr.cli.options import (
    MISSING,
    CacheFolder,
    DatasetName,
    Device,
    Leaderboards,
    Models,
    OutDir,
    ProtocolName,
    Seed,
    Threats,
    err,
    examples,
    out,
)
from benchsr.cli.stopping import stoppable
from benchsr.train.cli import train

if TYPE_CHECKING:
    from benchsr.commands.run import Outcome


def run(
    models: Models = "all",
    threats: Threats = "all",
    protocol: ProtocolName = "quick",
    scale: Annotated[
        int | None, typer.Option(help="Super-resolution factor: 2, 3, 4 or 8. Default: the protocol's.")
    ] = None,
    defence: Annotated[
        str | None, typer.Option(help="'all', or ids separated by commas: each around each model too, as jpeg+MODEL.")
    ] = None,
    dataset: DatasetName = None,
    limit: Annotated[int | None, typer.Option(help="Only the first images of the data set.")] = None,
    out_dir: OutDir = Path("leaderboards"),
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
        str, typer.Option(help="Cells at a time, each in a process; auto: as many as cores, or as GPUs.")
    ] = "auto",
    cell_timeout: Annotated[
        float | None, typer.Option(help="Seconds for one cell; then its worker is killed and its row fails.")
    ] = None,
    ray_address: Annotated[str | None, typer.Option(help="Of a Ray cluster. Default: Ray on this machine.")] = None,
    trust_code: Annotated[
        bool,
        typer.Option("--trust-code", help="Run package.module:factory in --models: that code has all your rights."),
    ] = False,
    transfer: Annotated[
        bool, typer.Option("--transfer", help="Score the attacks on each model on all of the others too.")
    ] = False,
) -> None:
    """Evaluate models under threats and write the leaderboard: tables, plots, report.

    The same command again goes on where the last one stopped and repeats nothing that is known.
    Exit code: 0 all that is available is evaluated, 1 some evaluations failed, 2 wrong usage, 130 or 143 stopped.
    """
    from benchsr.commands.run import evaluate
    from benchsr.evaluation.options import RunOptions

    given = {name: value for name, value in locals().items() if name in RunOptions.__dataclass_fields__}
    outcome = evaluate(models, threats, protocol, RunOptions(**given, out=out_dir, console=out))
    _tell(outcome)
    if outcome.failures:
        raise typer.Exit(1)


def _tell(outcome: Outcome) -> None:
    """What a run came to: tables, what is missing, what failed, and where it all stands."""
    from benchsr.leaderboard import summary
    from benchsr.results.records import Status
    from benchsr.results.transfers import TRANSFER

    for part in summary(outcome.planned, outcome.cards, out.width):
        out.print(part)
    if any(record.status is Status.UNAVAILABLE for record in outcome.planned):
        out.print(f"What is missing, and why: {outcome.folder / 'report.md'}")
    if outcome.transferred:
        from benchsr.leaderboard import read_leaderboard

        board = read_leaderboard(outcome.folder, outcome.cards)
        for matrix in (matrix for found in board.transfers.values() for matrix in found):
            out.print(*matrix.sentences(board.protocol.metrics), sep="\n", markup=False, highlight=False)
    out.print(f"Leaderboard: {outcome.folder}")
    if outcome.failures:
        err.print(
            f"{len(outcome.failures)} evaluations failed; their reasons stand in {outcome.folder / 'results.csv'}"
            + (f" and {TRANSFER}/results.csv" if outcome.transferred else "")
        )


def report(
    protocol: ProtocolName = "quick",
    dataset: DatasetName = None,
    out_dir: OutDir = Path("leaderboards"),
    check: Annotated[
        Path | None, typer.Option(help="Folder of older leaderboards: fail if a figure moved without a reason.")
    ] = None,
    issue_file: Annotated[
        Path | None, typer.Option("--issue", help="With --check: a file for the text of an issue, if figures moved.")
    ] = None,
    missing: Annotated[bool, typer.Option("--missing", help=MISSING)] = False,
) -> None:
    """Write tables, plots and report again from results.csv; with --check compare it with an older one first.

    Exit code 1: a figure moved by more than its tolerance although its data, weights and settings are the same.
    """
    from benchsr.base.files import write_atomic
    from benchsr.commands.report import rewrite
    from benchsr.results.drift import check as drifted
    from benchsr.results.drift import issue

    if issue_file and not check:
        raise InputError("--issue goes with --check: it tells of figures that moved since an older leaderboard")
    folder = rewrite(protocol, dataset, out_dir, missing)
    out.print(f"Leaderboard: {folder}")
    if check is not None:
        moved, compared, new = drifted(folder / "results.csv", check / folder.name / "results.csv")
        for cell in moved:
            err.print(f"moved: {cell}", style="red", markup=False, highlight=False)
        counted = f"{compared} cells compared with {check / folder.name}: {len(moved)} figures moved, {new} are new"
        out.print(counted, soft_wrap=True)  # a line that scripts look for
        if moved and issue_file:
            write_atomic(issue_file, issue(moved, compared, folder.name))
        if moved:
            raise typer.Exit(1)


def site(
    leaderboards: Leaderboards = Path("leaderboards"),
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
    from benchsr.commands.tuning import tune

    with out.status(f"{model} on {dataset}"):
        figures, chosen, card = tune(model, threat, dataset, protocol, crop, limit, out_file)
    out.print(figures.to_string(index=False, float_format="%.4f"), highlight=False)
    for name, sigma in chosen.items():
        out.print(f"sigma {sigma:g} {f'against {name}' if name else 'against all threats'}: {card}")


def submit(
    card: Annotated[Path, typer.Argument(metavar="CARD.toml", help="The model's card.")],
    protocol: ProtocolName = "quick",
    out_file: Annotated[
        Path | None, typer.Option("--out", help="The pull request's text. Default: ID-pull-request.md.")
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


COMMANDS: dict[str, tuple[Callable[..., None], *tuple[str, ...]]] = {
    "run": (
        run,
        "benchsr run --models all --threats all",
        "benchsr run --models impressionism-ntire,my-model.toml --threats clean,noise,pgd --limit 2",
        "benchsr run --models my-weights.safetensors,mine=net.pth --threats clean,pgd",
        "benchsr run --models mine=package.module:factory --trust-code",
        "benchsr run --protocol paper --device cuda --precision bf16",
        "benchsr run --protocol adaptive --models re-esrgan --defence jpeg,mrs --threats clean,apgd-eot",
        "benchsr run --dataset photos/ --out my-boards",
        "benchsr run --scale 2 --models dat-light-x2,bicubic",
        "benchsr run --models bicubic,re-esrgan,dat-light-x4 --threats clean,pgd --transfer",
        "benchsr run --workers 4 --cell-timeout 600",
    ),
    "list": (
        list_entries,
        "benchsr list models",
        "benchsr list threats",
        "benchsr list metrics",
        "benchsr list defences",
    ),
    "show": (
        show,
        "benchsr show impressionism-ntire",
        "benchsr show pgd",
        "benchsr show paper",
    ),
    "fetch": (
        fetch,
        "benchsr fetch set14",
        "benchsr fetch set14 --from ~/Downloads/SR-testing-datasets",
        "benchsr fetch impressionism-ntire",
    ),
    "attack": (
        attack,
        "benchsr attack photo.png --model impressionism-ntire --threat pgd --out attacked.png",
        "benchsr attack photo.png --model realesrgan-x4plus --threat pgd --set eps=0.0157 --set steps=20",
    ),
    "upscale": (
        upscale,
        "benchsr upscale small.png --model impressionism-ntire --out large.png",
        "benchsr upscale noisy.png --model mrs-impressionism-ntire --threat fgsm",
    ),
    "report": (
        report,
        "benchsr report",
        "benchsr report --protocol paper --out my-boards --missing",
        "benchsr run --out fresh && benchsr report --out fresh --check leaderboards --issue moved.md",
    ),
    "compare": (
        compare,
        "benchsr compare impressionism-ntire mrs-impressionism-ntire",
        "benchsr compare compact-esrgan compact-certsr --protocol adaptive --out certsr-vs-esrgan",
        "benchsr compare my-boards/quick leaderboards/quick --out mine-vs-published",
    ),
    "export": (
        export,
        "benchsr export table2",
        "benchsr export table2 --format latex --out table2.tex",
        "benchsr export costs --format csv",
        "benchsr export impressionism-ntire --out README-part.md",
    ),
    "costs": (
        costs,
        "benchsr costs",
        "benchsr costs --models impressionism-ntire,bicubic --lr-side 128 --device cuda",
    ),
    "sensitivity": (
        sensitivity,
        "benchsr sensitivity --models bicubic,re-esrgan",
        "benchsr sensitivity --models compact-esrgan,compact-certsr --smallest-eps --limit 2",
        "benchsr sensitivity --models all --protocol paper --crop 48 --limit 10 --device cuda",
    ),
    "site": (
        site,
        "benchsr site",
        "benchsr site --leaderboards my-boards --out my-page --serve",
    ),
    "train": (
        train,
        "benchsr train esrgan --data photos/",
        "benchsr train certsr --data photos/ --steps 100 --out runs/certsr",
        "benchsr train ad-l-pgd --scale paper --data DIV2K_train_HR/ --device cuda",
    ),
    "certify": (
        certify,
        "benchsr certify small.png --model compact-certsr --sigma 0.06 --eps 0.05",
        "benchsr certify small.png --model impressionism-ntire --n 1001 --confidence 0.999 --crop 24 --simultaneous",
    ),
    "tune-sigma": (
        tune_sigma,
        "benchsr tune-sigma my-model.toml --threat pgd,noise --dataset held-out-photos/ --crop 32",
    ),
    "figures": (
        figures,
        "benchsr figures --models bicubic,impressionism-ntire --threats clean,noise,pgd",
        "benchsr figures --models all --threats pgd --images astronaut,coffee",
    ),
    "submit": (submit, "benchsr submit my-model.toml"),
}
"""Every command with examples of its use, in the order of the help."""


app = typer.Typer(
    name="benchsr",
    help="Adversarial robustness benchmark for image super-resolution.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, (_function, *_lines) in COMMANDS.items():
    app.command(_name, epilog=examples(*_lines))(_function)
app.add_typer(caches, name="cache")


def main() -> None:
    """Entry point: errors that users can act on become one message and exit code 2, never a traceback."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=err, show_time=False, show_path=False)],
    )
    try:
        stoppable(app)
    except BenchsrError as error:
        err.print(f"[bold red]benchsr:[/] {escape(str(error))}", highlight=False)
        sys.exit(2)
    except Stopped as stopped:
        err.print(f"\nbenchsr: stopped; {stopped.how}", soft_wrap=True, markup=False)  # a bar may stand half drawn
        sys.exit(128 + stopped.number)
    except OSError as error:  # a disk that is full, a folder that may not be read
        where = f"{error.filename}: " if error.filename else ""
        err.print(f"[bold red]benchsr:[/] {escape(where + (error.strerror or str(error)))}", highlight=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
