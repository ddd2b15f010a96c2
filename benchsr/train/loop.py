"""The training loop: the stages of a recipe, exact resume, logs, weights and where they come from."""

from __future__ import annotations

import copy
import csv
import io
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from tqdm import tqdm

from benchsr.base.errors import InputError, ModelError
from benchsr.base.files import write_atomic
from benchsr.threats.table import THREATS, Threat, load_threat
from benchsr.train.adapters import adapter_rank, adapter_state
from benchsr.train.crops import Crops, TrainingImages
from benchsr.train.degraders import degrade, new_degrader
from benchsr.train.noise import plot_noise
from benchsr.train.recipe import KernelsShape, Recipe, Stage
from benchsr.train.stage import StageRun
from benchsr.train.validate import Figures, mean_figures, validate

NOISE_CROPS = 2048
"""Crops that noise statistics are taken over."""

LOG_COLUMNS = ("stage", "step", "lr", "loss", "l1", "perceptual", "adversarial", "judge", "grad_norm")


@dataclass
class Progress:
    """Where a run stands: the stage and step to do next, seconds spent in each stage, validation rows so far."""

    stage: int = 0
    step: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    validation: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """One training run: `name` is the card's id, `network` the generator that it starts from, `out` its folder."""

    name: str
    recipe: Recipe
    network: nn.Module
    data: TrainingImages
    out: Path
    seed: int = 0
    workers: int = 0
    checkpoint_seconds: float = 60.0

    @property
    def checkpoint(self) -> Path:
        """The file that a run resumes from."""
        return self.out / "checkpoint.pt"

    def weights(self, stage: Stage) -> Path:
        """The file of the weights after `stage`."""
        return self.out / f"{self.name}-{stage.name}.safetensors"

    @property
    def identity(self) -> dict[str, str | int]:
        """What a checkpoint must agree with to be resumed: the recipe too, but for its steps, which may grow."""
        recipe = self.recipe.with_steps(1).sha256
        return {"model": self.name, "seed": self.seed, "data": self.data.fingerprint, "recipe": recipe}


class StepLog:
    """`log.csv`, one line a step. Reopening it drops the lines that a killed run wrote after its last checkpoint."""

    def __init__(self, path: Path, stages: Sequence[str], progress: Progress) -> None:
        kept: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="") as old:
                rows = [
                    row for row in csv.DictReader(old) if row[LOG_COLUMNS[-1]] is not None
                ]  # None: a line cut short
            done = (progress.stage, progress.step)
            kept = [row for row in rows if (stages.index(row["stage"]), int(row["step"])) < done]
        text = io.StringIO()
        writer = csv.DictWriter(text, LOG_COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
        write_atomic(path, text.getvalue())
        self._file = path.open("a", newline="", buffering=1)
        self._writer = csv.DictWriter(self._file, LOG_COLUMNS)

    def add(self, stage: str, step: int, values: dict[str, float]) -> None:
        """Append one step. Raises InputError where it cannot be written."""
        try:
            self._writer.writerow({"stage": stage, "step": step, **{name: f"{v:.9g}" for name, v in values.items()}})
        except OSError as error:
            raise InputError(
                f"{self._file.name}: cannot be written: {error.strerror}; make room, and go on with --resume"
            ) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def validation_threats() -> list[Threat]:
    """Clean images, and PGD as the quick protocol sets it (eps 10/255, 10 steps, L1 + 0.01 VGG-16)."""
    return [load_threat("clean"), load_threat("pgd", l1_weight=1.0, perceptual_weight=0.01, perceptual_net="vgg16")]


def noise_figures(degrader: nn.Module, data: TrainingImages, crop: int, seed: int, path: Path) -> Figures:
    """How far the noise of bicubic LR and of `degrader`'s LR is from the source domain's, drawn into `path`.

    NOISE_CROPS crops of `crop` pixels each. The figures are `{bicubic|generated}_{variance|autocorrelation|spectrum}`
    (see `NoiseStatistics.distance`); the smaller the nearer. No photograph is in both, source and the other two.
    """
    if data.source is None:
        raise InputError("noise can be compared only with images of a source domain")
    crops = Crops(data.images, stage="noise", batch=NOISE_CROPS, crop=crop, seed=seed, source=data.source.images)
    batch = crops[0]
    assert batch.source is not None
    generated = degrade(degrader.cpu(), batch.hr, batch.lr, batch.ids, seed)
    found = plot_noise({data.source.name: batch.source, "bicubic": batch.lr, "generated": generated}, path)
    source = found[data.source.name]
    return {
        f"{name}_{statistic}": value
        for name in ("bicubic", "generated")
        for statistic, value in found[name].distance(source).items()
    }


def export(network: nn.Module, path: Path) -> None:
    """Write the weights, or the adapters where there are any, as float16 safetensors, which `load_network` reads."""
    adapters = adapter_state(network)
    state = {n: v.detach().half().cpu().contiguous() for n, v in (adapters or network.state_dict()).items()}
    rank = {"rank": str(adapter_rank(network)), "alpha": str(adapter_rank(network))} if adapters else None
    write_atomic(path, safetensors.torch.save(state, metadata=rank))


class Trainer:
    """Runs a job; `accelerator` decides on device, precision and processes."""

    def __init__(self, job: Job, accelerator: Accelerator, *, resume: bool = False) -> None:
        self.job = job
        self.accelerator = accelerator
        self.progress = Progress()
        self._saved: dict[str, Any] | None = None
        if resume:
            self._saved = self._load_checkpoint()
            self.progress = Progress(**self._saved.pop("progress"))
        elif job.checkpoint.exists():
            raise InputError(f"{job.out} holds a run already; go on with --resume, or choose another folder with --out")

    def _load_checkpoint(self) -> dict[str, Any]:
        path = self.job.checkpoint
        if not path.exists():
            raise InputError(f"nothing to resume: {path} does not exist; start without --resume")
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        for key, value in self.job.identity.items():
            before = saved["identity"].get(key)
            if before != value:
                raise InputError(
                    f"{path} is of a run with {key} {before!r}, not {value!r}; bring the card back as it was, or train "
                    "into another folder with --out"
                )
        return saved

    def _save_checkpoint(self, run: StageRun) -> None:
        if self.accelerator.is_main_process:
            buffer = io.BytesIO()
            state = {"identity": self.job.identity, "progress": asdict(self.progress), "run": run.state_dict()}
            torch.save(state, buffer)
            write_atomic(self.job.checkpoint, buffer.getvalue())

    def run(self) -> Progress:
        """Train through all stages.

        Writes into the job's folder checkpoint.pt, log.csv, validation.csv, and for each stage its EMA weights,
        `NAME-STAGE.safetensors`. A resumed run takes the very steps that an uninterrupted one takes. Raises ModelError
        where the loss stops being finite.
        """
        job, progress = self.job, self.progress
        job.out.mkdir(parents=True, exist_ok=True)
        log = None
        if self.accelerator.is_main_process:
            log = StepLog(job.out / "log.csv", [stage.name for stage in job.recipe.stages], progress)
        generator, degrader = job.network, None
        for index, stage in enumerate(job.recipe.stages):
            network = generator if stage.degrader is None else self._new_degrader(stage)
            if index >= progress.stage:
                if degrader and stage.degrader is None and progress.step == 0:
                    self._validate_start(generator)
                run = StageRun(stage, network, self.accelerator, job.seed, None if stage.degrader else degrader)
                if self._saved:
                    run.load_state_dict(self._saved["run"])
                    self._saved = None
                self._run_stage(run, log)
                network = copy.deepcopy(run.ema.module)
                self.accelerator.free_memory()
                if self.accelerator.is_main_process:
                    export(network, job.weights(stage))
                progress.stage, progress.step = index + 1, 0
            # Of stages done before a resume, only the shape of the networks is needed: the checkpoint fills them.
            if stage.degrader is None:
                generator = network
            else:
                degrader = network.eval().requires_grad_(False)
        if log:
            log.close()
        return progress

    def _new_degrader(self, stage: Stage) -> nn.Module:
        source = self.job.data.source
        if source is None:
            raise InputError(f"{self.job.name}: stage {stage.name} needs images of a source domain")
        return new_degrader(stage, source.images, self.job.seed)

    def _run_stage(self, run: StageRun, log: StepLog | None) -> None:
        job, progress, stage = self.job, self.progress, run.stage
        crops = Crops(
            job.data.images,
            stage=stage.name,
            batch=stage.batch,
            crop=stage.crop,
            seed=job.seed,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            source=job.data.source.images if job.data.source and stage.degrader else (),
            members=stage.degrader.members if isinstance(stage.degrader, KernelsShape) else 1,
        )
        spent = progress.seconds.get(stage.name, 0.0)
        started = saved = time.monotonic()
        todo = range(progress.step, stage.steps)
        name = f"{job.name} {stage.name}"
        # Closed before anything is said of why it ended.
        with tqdm(total=stage.steps, initial=progress.step, desc=name, disable=log is None) as bar:
            for k, batch in zip(todo, crops.loader(todo, job.workers), strict=True):
                values = run.step(k, batch)
                if not all(map(math.isfinite, values.values())):
                    raise ModelError(f"{job.name}: stage {stage.name} diverged at step {k}; lower its learning rate")
                if log:
                    log.add(stage.name, k, values)
                bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
                bar.update()
                progress.step = k + 1
                if stage.validate_every and progress.step % stage.validate_every == 0 and progress.step < stage.steps:
                    self._validate(run)
                now = time.monotonic()
                progress.seconds[stage.name] = spent + now - started
                if now - saved > job.checkpoint_seconds:
                    self._save_checkpoint(run)
                    saved = now
        self._save_checkpoint(run)
        self._validate(run)
        self._save_checkpoint(run)

    def _validate(self, run: StageRun) -> None:
        """Add a row of figures: of a degrader its noise, of a generator those on the held-out images, which the
        processes share among themselves.
        """
        network = copy.deepcopy(run.ema.module).eval().requires_grad_(False)
        if run.stage.degrader is None:
            self._add_figures(run.stage.name, self._held_out_figures(network, self._threats()))
        elif self.accelerator.is_main_process:
            path = self.job.out / f"noise-{run.stage.name}.png"
            figures = noise_figures(network, self.job.data, run.stage.crop, self.job.seed, path)
            self._add_figures(run.stage.name, figures)

    def _validate_start(self, generator: nn.Module) -> None:
        """Add the figures in a stand-in domain of the network that the generator starts from, to be beaten."""
        network = copy.deepcopy(generator).to(self.accelerator.device).eval()
        self._add_figures("start", self._held_out_figures(network, self._threats()[2:]))

    def _threats(self) -> list[Threat]:
        """What generators are validated under: the source domain too, where it is a stand-in that can be applied."""
        source = self.job.data.source
        return validation_threats() + ([load_threat(source.name)] if source and source.name in THREATS else [])

    def _held_out_figures(self, network: nn.Module, threats: Sequence[Threat]) -> Figures:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        held_out = self.job.data.held_out[rank::world]
        rows: list[Figures] = validate(network, held_out, threats, self.accelerator.device)
        return mean_figures(gather_object(rows))

    def _add_figures(self, stage: str, figures: Figures) -> None:
        if figures:
            row = {"stage": stage, "step": self.progress.step, **figures}
            earlier = [
                old for old in self.progress.validation if (old["stage"], old["step"]) != (row["stage"], row["step"])
            ]
            self.progress.validation = [*earlier, row]
            if self.accelerator.is_main_process:
                text = io.StringIO()
                columns = dict.fromkeys(name for known in self.progress.validation for name in known)
                writer = csv.DictWriter(text, list(columns))
                writer.writeheader()
                writer.writerows(self.progress.validation)
                write_atomic(self.job.out / "validation.csv", text.getvalue())
                tqdm.write(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
