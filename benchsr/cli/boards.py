"""Commands about leaderboards that are there: compare, export, costs, sensitivity."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from benchsr.base.files import write_atomic
from benchsr.base.text import terminal_table
from benchsr.cli.options import MISSING, Device, Leaderboards, Models, OutDir, ProtocolName, err, out


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A model of the board; or the folder of a board.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another model; or another board.")],
    protocol: ProtocolName = "quick",
    leaderboards: Leaderboards = Path("leaderboards"),
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Folder that gets compare.csv, compare.md and plots.")
    ] = None,
) -> None:
    """Say in which figures two models differ on the same images, how surely, and what so many images can show."""
    from benchsr.commands.compare import HEADER, compare_named, write_comparison

    comparison = compare_named(a, b, protocol, leaderboards)
    for title, rows in comparison.sections():
        table = terminal_table(*HEADER, title=title, gap=1)
        for row in rows:
            table.add_row(*map(escape, row))
        out.print(table, highlight=False)
    out.print("\n".join(comparison.legend), markup=False, highlight=False)
    if out_dir is not None:
        files = write_comparison(comparison, out_dir)
        out.print(f"Written: {', '.join(path.name for path in files[:3])} in {out_dir}")


def export(
    name: Annotated[str, typer.Argument(metavar="TABLE", help="A table of the board; or a model, for its page.")],
    form: Annotated[str, typer.Option("--format", help="latex, csv, parquet, markdown or html.")] = "markdown",
    protocol: ProtocolName = "quick",
    leaderboards: Leaderboards = Path("leaderboards"),
    out_file: Annotated[Path | None, typer.Option("--out", help="File to write. Default: the terminal.")] = None,
    missing: Annotated[bool, typer.Option("--missing", help=MISSING)] = False,
) -> None:
    """Write a table for a paper or a notebook, or a model's figures and what they mean for its page."""
    from benchsr.commands.compare import board_folder
    from benchsr.commands.export import export as exported

    content = exported(name, form, board_folder(protocol, leaderboards), missing)
    if out_file is not None:
        write_atomic(out_file, content)
        out.print(f"Written: {out_file}")
    else:
        sys.stdout.buffer.write(content)


def costs(
    models: Models = "all",
    lr_side: Annotated[int, typer.Option(help="LR pixels a side that costs are stated for.")] = 64,
    protocol: ProtocolName = "quick",
    out_dir: OutDir = Path("leaderboards"),
    device: Device = "auto",
) -> None:
    """Measure what an answer costs: parameters, MACs, passes, memory, seconds; costs.csv and Pareto plots."""
    from rich.progress import track

    from benchsr.base.inference import pick_device
    from benchsr.commands.compare import board_folder
    from benchsr.commands.costs import cost_table
    from benchsr.commands.export import write_costs
    from benchsr.leaderboard import read_leaderboard
    from benchsr.leaderboard.export import COST_COLUMNS, cost_caption, cost_cells
    from benchsr.models.zoo import select_cards, zoo

    board = board_folder(protocol, out_dir)
    cards = select_cards(models, read_leaderboard(board, zoo()).protocol.scale)
    rows = cost_table(cards, lr_side, pick_device(device))
    data = write_costs(board, track(rows, "Costs", total=len(cards), console=err))
    table = terminal_table("model", *(title for title, _ in COST_COLUMNS.values()), gap=1)
    for model, line in zip(data["model"], cost_cells(data), strict=True):
        table.add_row(escape(model), *line)
    out.print(table, highlight=False)
    out.print(cost_caption(data), markup=False, highlight=False)
    for model, reason in zip(data["model"], data["reason"], strict=True):
        if isinstance(reason, str) and reason:
            out.print(f"{model}: {reason}", markup=False, highlight=False)
    out.print(f"Written: {board / 'costs.csv'}")


def sensitivity(
    models: Models = "all",
    crop: Annotated[
        int | None, typer.Option(help="Side of a centred LR crop. Default: the protocol's, or 24 of whole images.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first images of the data set.")] = None,
    smallest_eps: Annotated[
        bool,
        typer.Option(
            "--smallest-eps",
            help="Also search for the smallest change that costs 3 dB: 180 gradients an image, smoothed 900.",
        ),
    ] = False,
    protocol: ProtocolName = "quick",
    out_dir: OutDir = Path("leaderboards"),
    device: Device = "auto",
) -> None:
    """Measure how far answers move with their input: the Jacobian's largest singular value, gains by frequency.

    With --smallest-eps also the smallest change that costs 3 dB of PSNR, in L-infinity and l2, of models as deployed.

    Writes sensitivity.csv into the board, image by image, then its report and plots. The same command again goes on
    where the last one stopped. Exit code 1: some could not be measured, and why.
    """
    from rich.progress import track

    from benchsr.base.inference import pick_device
    from benchsr.commands.compare import board_folder
    from benchsr.commands.report import rewrite
    from benchsr.commands.sensitivity import measure, plan
    from benchsr.evaluation.ledger import stored_protocol
    from benchsr.leaderboard import read_leaderboard
    from benchsr.leaderboard.sensitivity import digits
    from benchsr.models.zoo import select_cards, zoo

    board = board_folder(protocol, out_dir)
    made, _ = stored_protocol(board)
    work = plan(select_cards(models, made.scale), made, pick_device(device), crop, limit, smallest_eps)
    failed = 0
    for job, why in track(measure(work, board), "Sensitivity", total=len(work.jobs), console=err):
        if why:
            failed += 1
            err.print(f"failed: {job.card.id} / {job.image} / {job.measure}: {why}", markup=False, highlight=False)
    for model, why in work.lacking.items():
        out.print(f"{model}: {why}", markup=False, highlight=False)
    rewrite(protocol, out=out_dir)
    table = terminal_table("model", "singular value", "gain, low", "gain, high", "images")
    read = read_leaderboard(board, zoo())
    for s in {s.card.id: s for family in read.sensitivities.values() for s in family}.values():
        table.add_row(escape(s.card.id), digits(s.singular), digits(s.low), digits(s.high), str(s.images))
    least = terminal_table("model", "costs 3 dB: linf / 255", "l2", "images")
    for sought in {s.card.id: s for family in read.smallest.values() for s in family}.values():
        least.add_row(escape(sought.card.id), *map(escape, sought.cells), str(sought.images))
    for shown in (table, least):
        if shown.row_count:
            out.print(shown, highlight=False)
    out.print(f"Written: {board / 'sensitivity.csv'}, and report.md with its plots")
    if failed:
        raise typer.Exit(1)
