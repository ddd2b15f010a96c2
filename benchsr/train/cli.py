"""`benchsr train`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:  # torch and accelerate take seconds to import, which `benchsr --help` should not
    from accelerate import Accelerator
    from torch import nn

    from benchsr.train.loop import Job, Progress
    from benchsr.train.recipe import Recipe

Scale = Literal["compact", "paper"]


def starting_network(recipe: Recipe, seed: int) -> tuple[str, nn.Module]:
    """The network that training starts from, and its name: the first of `recipe.start` to be had, or a new one.

    Raises UnavailableError where `recipe.start` names cards and none of their weights can be had.
    """
    from benchsr.base.errors import UnavailableError
    from benchsr.models.network import load_network
    from benchsr.train.networks import new_generator

    reasons = []
    for card_id in recipe.start:
        try:
            return card_id, load_network(card_id)
        except UnavailableError as error:
            reasons.append(f"{card_id}: {error}")
    if reasons:
        raise UnavailableError("no network to start from; " + "; ".join(reasons))
    return "scratch", new_generator(recipe.network.filters, recipe.network.blocks, seed)


def accelerator_for(device: str, precision: str) -> Accelerator:
    """Accelerate's view of `device` ("auto", "cpu" or "cuda"), autocast in bfloat16 where `precision` says so.

    torchrun's processes are found. Raises InputError for a device or precision that there is not.
    """
    from benchsr.base.errors import InputError, UnavailableError
    from benchsr.base.precision import pick_precision

    try:
        from accelerate import Accelerator
    except ModuleNotFoundError as error:
        raise UnavailableError("training needs accelerate; install it with: pip install 'benchsr[train]'") from error
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device must be auto, cpu or cuda; got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU here; use --device cpu")
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    chosen = pick_precision(precision, torch.device("cpu" if on_cpu else "cuda"))
    return Accelerator(cpu=on_cpu, mixed_precision="bf16" if chosen == "bf16" else "no")


def _trained(job: Job, accelerator: Accelerator, resume: bool) -> Progress:
    """Run the training; a stop says whether there is a checkpoint to go on from."""
    from benchsr.base.errors import Stopped
    from benchsr.train.loop import Trainer

    try:
        return Trainer(job, accelerator, resume=resume).run()
    except Stopped as stopped:
        if not resume:
            checkpoint = "goes on from its last checkpoint, with --resume" if job.checkpoint.exists() else "starts anew"
            stopped.how = f"the same command {checkpoint}"
        raise


def train(
    recipe: Annotated[
        str, typer.Argument(help="a model with a recipe: esrgan, ad-l-pgd, certsr, esrgan-fs-ntire ...; or a card.toml")
    ],
    scale: Annotated[
        Scale, typer.Option(help="compact: minutes to hours anywhere; paper: RRDB-23 on GPUs")
    ] = "compact",
    data: Annotated[Path, typer.Option(help="folder of HR images, searched recursively")] = Path("data"),
    steps: Annotated[int | None, typer.Option(min=1, help="steps of every stage [default: the recipe's]")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    out: Annotated[Path | None, typer.Option(help="folder of checkpoint, logs, weights [default: runs/MODEL]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the checkpoint in --out")] = False,
    seed: Annotated[int, typer.Option(help="seed of all random draws")] = 0,
    adapter_rank: Annotated[
        int | None, typer.Option(min=1, help="train low-rank adapters of this rank instead of all weights")
    ] = None,
    precision: Annotated[str, typer.Option(help="auto (bf16 where it is fast), fp32 or bf16")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="data processes beside each training process")] = 0,
) -> None:
    """Train a model by the recipe in its card; on N devices: torchrun --nproc-per-node N -m benchsr.train RECIPE ..."""
    accelerator = accelerator_for(device, precision)
    from benchsr.models.zoo import load_card
    from benchsr.train.crops import load_images
    from benchsr.train.curves import plot_curves
    from benchsr.train.domains import with_source
    from benchsr.train.loop import Job
    from benchsr.train.provenance import provenance, write_provenance
    from benchsr.train.recipe import parse_recipe

    is_card = recipe.endswith(".toml")
    prefix = "compact-" if scale == "compact" and not is_card else ""
    card = load_card(recipe if is_card else prefix + recipe.removeprefix("compact-"))
    plan = parse_recipe(card.recipe, card.id).with_steps(steps)
    folder = out or Path("runs") / card.id
    start, network = starting_network(plan, seed)
    if adapter_rank is not None:
        from benchsr.train.adapters import add_adapters

        network = add_adapters(network, adapter_rank, seed)
    main = accelerator.is_main_process
    images = load_images(data, plan.crop, plan.held_out, plan.held_out_crop, progress=main)
    if plan.sources:
        images = with_source(images, plan.sources, plan.crop, seed)
    job = Job(card.id, plan, network, images, folder, seed, workers)
    progress = _trained(job, accelerator, resume)
    if not main:
        return
    count = accelerator.num_processes
    words = ["benchsr", "train"] if count == 1 else ["torchrun", f"--nproc-per-node={count}", "-m", "benchsr.train"]
    words += [recipe, "--scale", scale, "--data", str(data), "--out", str(folder), "--seed", str(seed)]
    words += [] if adapter_rank is None else ["--adapter-rank", str(adapter_rank)]
    words += ["--precision", "bf16" if accelerator.mixed_precision == "bf16" else "fp32"]
    words += [] if steps is None else ["--steps", str(steps)]
    table = provenance(job, progress, start=start, command=shlex.join(words), processes=count)
    write_provenance(folder / f"{card.id}.json", table)
    plot_curves(folder)
    typer.echo(f"weights: {job.weights(plan.stages[-1])}")
