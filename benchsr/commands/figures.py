"""Pictures beside the figures, as the paper's Figures 1, 3, 4 and 5: what a threat does to an image and its SR."""

from __future__ import annotations

import io
import json
import multiprocessing
import tempfile
import textwrap
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from benchsr.base import drawing
from benchsr.base.drawing import recall, remember
from benchsr.base.errors import InputError, ModelError, Stopped
from benchsr.base.files import cache_dir, write_changed
from benchsr.base.inference import one_thread
from benchsr.base.pairs import Sample
from benchsr.data.datasets import load_dataset
from benchsr.data.images import write_image
from benchsr.evaluation.cache import AttackCache
from benchsr.evaluation.executors import Processes, follow_parent, load_executor, uninterrupted
from benchsr.evaluation.ledger import stored_protocol
from benchsr.evaluation.plan import Cell, plan, resolve
from benchsr.evaluation.protocol import Protocol, load_protocol, select_threats
from benchsr.evaluation.worker import Worker
from benchsr.leaderboard.tables import FAMILIES
from benchsr.metrics.quality import METRICS
from benchsr.models.cards import Card
from benchsr.models.zoo import select_cards
from benchsr.results.records import Record
from benchsr.threats.table import THREATS

ZOOM = 4
"""The zoom crop's side is this fraction of the shorter side of HR."""

PANEL = 512
"""Longest side in HR pixels of the pictures for the page; of larger images a window around the zoom crop is shown."""


QUALITY = 80
"""Quality of the page's lossy WebP pictures, from 0 to 100."""

ENTRY = "entry.json"
"""Where a packed shot holds its entry of figures.json."""

NOTE = "Pictures of HR size are lossy (WebP): look at them, measure nothing on them. Those of LR size are lossless."
"""What the page says of its pictures."""


@dataclass(frozen=True, eq=False)
class View:
    """One model on one image: LR as it saw it (3, h, w), its SR (3, sh, sw), both in [0, 1], and its line of results.

    Of a model that draws noise the first evaluation is shown; its figures are means over all of them.
    """

    card: Card
    lr: Tensor
    sr: Tensor
    record: Record


@dataclass(frozen=True, eq=False)
class Scene:
    """One image under one threat, as models of one family see it."""

    threat: str
    family: str
    sample: Sample
    views: Sequence[View]

    @property
    def title(self) -> str:
        """Image, threat and family in words."""
        return f"{self.sample.id}, {THREATS[self.threat].title}, {FAMILIES[self.family][1].split(',')[0]}"

    @cached_property
    def factor(self) -> int:
        """How far perturbations are amplified so that the largest of the scene just fits between black and white."""
        largest = max(float((view.lr - self.sample.lr).abs().max()) for view in self.views)
        return max(1, int(0.5 / largest)) if largest else 1

    def perturbation(self, view: View) -> Tensor:
        """The change of LR, amplified by `factor` around mid-grey: (3, h, w) in [0, 1]."""
        return (0.5 + self.factor * (view.lr - self.sample.lr)).clamp(0, 1)

    @cached_property
    def error_factor(self) -> int:
        """How far errors are amplified so that all but the largest hundredth of the scene stay below white."""
        large = torch.stack([self._errors(view) for view in self.views]).flatten().quantile(0.99)
        return max(1, int(1 / large)) if large else 1

    def error(self, view: View) -> Tensor:
        """The absolute error of SR, mean over channels, amplified by `error_factor`: grey (3, sh, sw) in [0, 1]."""
        return (self.error_factor * self._errors(view)).clamp(0, 1).expand(3, -1, -1)

    def _errors(self, view: View) -> Tensor:
        """(1, sh, sw)"""
        return self.window((view.sr - self.sample.hr).abs().mean(0, keepdim=True))

    @cached_property
    def zoom(self) -> tuple[int, int, int]:
        """(top, left, side) in HR pixels, multiples of the scale, of the square of the largest mean error of SR."""
        errors = torch.stack([(view.sr - self.sample.hr).abs().mean(0) for view in self.views]).mean(0)
        scale = self.sample.scale
        side = max(scale, min(errors.shape) // ZOOM // scale * scale)
        means = F.avg_pool2d(errors[None], side, stride=scale)[0]
        row, column = divmod(int(means.argmax()), means.shape[1])
        return row * scale, column * scale, side

    def cut(self, image: Tensor) -> Tensor:
        """The zoom crop of an HR image."""
        top, left, side = self.zoom
        return image[:, top : top + side, left : left + side]

    def window(self, image: Tensor) -> Tensor:
        """The part of an HR or LR image that the page shows: all of it, or at most PANEL HR pixels around the zoom."""
        scale, size_here = self.sample.scale, image.shape[1] / self.sample.hr.shape[1]
        spans = []
        for start, size in zip(self.zoom[:2], self.sample.hr.shape[1:], strict=True):
            length = min(size, PANEL)
            begin = min(max(start + self.zoom[2] // 2 - length // 2, 0), size - length) // scale * scale
            spans.append(slice(int(begin * size_here), int((begin + length) * size_here)))
        return image[:, spans[0], spans[1]]


def views(worker: Worker, cell: Cell, image: str) -> Iterator[View]:
    """What each model of the cell makes of one image. Raises ModelError where that fails."""
    (part,) = cell.shards((record for record in cell.records if record.image == image), 1)
    for answer in worker.answers(part):
        if answer.lr is None or answer.sr is None:
            raise ModelError(f"{answer.record.model} under {cell.threat}: {answer.record.reason}")
        yield View(cell.models[answer.record.model], answer.lr, answer.sr[0].cpu(), answer.record)


@dataclass(frozen=True, eq=False)
class Shot:
    """What a scene will show, known before anything is computed."""

    threat: str
    family: str
    image: str
    cards: Mapping[str, Card]
    keys: tuple[str, ...]
    """Of the lines of results of its models."""
    drawings: bool

    @property
    def made_of(self) -> tuple[object, ...]:
        """All that its pictures depend on, apart from the code."""
        titles = [THREATS[self.threat].title, *(f"{card.id} {card.title}" for card in self.cards.values())]
        return self.threat, self.family, self.image, titles, self.keys, self.drawings


def shots(
    cells: Sequence[Cell], cards: Sequence[Card], threats: Sequence[str], images: Sequence[str], drawings: bool
) -> list[Shot]:
    """A shot for each image, threat and family with a model that can be had here, in that order."""
    found: dict[tuple[str, str], dict[str, tuple[Card, str]]] = {}
    for cell in cells:
        for record in cell.records:
            found.setdefault((record.image, cell.threat), {})[record.model] = cell.models[record.model], record.key
    order = {card.id: i for i, card in enumerate(cards)}
    made = []
    for image in images:
        for threat in threats:
            models = sorted(found.get((image, threat), {}).items(), key=lambda model: order[model[0]])
            families = {card.family for _, (card, _) in models} - {"both"} or {"paper"}
            for family in (f for f in FAMILIES if models and f in families):
                shown = {name: card for name, (card, _) in models if card.family in (family, "both")}
                keys = tuple(key for name, (_, key) in models if name in shown)
                made.append(Shot(threat, family, image, shown, keys, drawings))
    return made


@dataclass(frozen=True)
class Studio:
    """Computes what shots show and draws it: all that a process needs for it."""

    protocol: Protocol
    device: str
    cache: str
    cells: Sequence[Cell]

    def packed(self, shots: Sequence[Shot]) -> list[bytes]:
        """Each shot's entry of figures.json and files, as `save` makes them, in a zip file; they are remembered too.

        Raises BenchsrError where a model fails.
        """
        worker = Worker(self.protocol, torch.device(self.device), AttackCache(self.cache))
        wanted = {(shot.threat, shot.image) for shot in shots}
        samples: dict[tuple[str, str], Sample] = {}
        made: dict[tuple[str, str], list[View]] = {}
        with one_thread():  # as in a run
            for cell in self.cells:  # network by network: each is loaded once
                for image in dict.fromkeys(record.image for record in cell.records):
                    if (cell.threat, image) in wanted:
                        samples[cell.threat, image] = cell.samples.sample(image)
                        made.setdefault((cell.threat, image), []).extend(views(worker, cell, image))
        done = []
        for shot in shots:
            of_model = {view.card.id: view for view in made[shot.threat, shot.image]}
            chosen = [of_model[model] for model in shot.cards]
            scene = Scene(shot.threat, shot.family, samples[shot.threat, shot.image], chosen)
            done.append(_packed(scene, shot.drawings))
            remember(done[-1], *shot.made_of)
        return done

    def shared(self, shots: Sequence[Shot], workers: int) -> list[bytes]:
        """`packed` by so many processes, which share the GPUs in turn; each loads all networks.

        Raises BenchsrError where a model fails, or a process dies.
        """
        parts = [shots[k::workers] for k in range(min(workers, len(shots)))]
        if len(parts) < 2:
            return self.packed(shots) if shots else []
        count = torch.cuda.device_count() if self.device == "cuda" else 0
        studios = [replace(self, device=f"cuda:{k % count}") if count else self for k in range(len(parts))]
        done: dict[Shot, bytes] = {}
        spawn = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
        try:
            with ProcessPoolExecutor(len(parts), spawn, follow_parent) as pool:
                try:
                    with uninterrupted():
                        packed = pool.map(Studio.packed, studios, parts)
                    for part, found in zip(parts, packed, strict=True):
                        done |= zip(part, found, strict=True)
                except Stopped:
                    for process in multiprocessing.active_children():  # which the pool would wait for
                        process.terminate()
                    raise
        except BrokenProcessPool:
            raise ModelError("a process that draws died; was there enough memory? Ask for fewer --workers") from None
        return [done[shot] for shot in shots]


def _packed(scene: Scene, drawings: bool) -> bytes:
    buffer = io.BytesIO()
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(buffer, "w") as pack:
        folder = Path(scratch)
        pack.writestr(ENTRY, json.dumps(save(scene, folder, drawings)))
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            pack.write(file, file.relative_to(folder).as_posix())
    return buffer.getvalue()


def _unpack(content: bytes, folder: Path) -> Any:
    """Write a shot's files below `folder`, and return its entry of figures.json."""
    with zipfile.ZipFile(io.BytesIO(content)) as pack:
        for name in (name for name in pack.namelist() if name != ENTRY):
            write_changed(folder / name, pack.read(name))
        return json.loads(pack.read(ENTRY))


def figures_of(record: Record) -> str:
    """The figures of a line of results in words."""
    parts = []
    for name, value in record.scores.items():
        metric = METRICS[name]
        parts.append(f"{metric.title} {metric.shown(value)} {metric.unit}".strip())
    return " · ".join(parts)


def change_of(record: Record) -> str:
    """Size of the perturbation in words; empty for a data set that comes with its own LR."""
    if record.attack_linf is None or record.attack_l2 is None:
        return ""
    return f"L∞ {record.attack_linf * 255:.1f}/255 · L2 {record.attack_l2:.2f}"


def draw(scene: Scene) -> Figure:
    """One column for the truth and one for each model: input, amplified perturbation, SR with its figures, zoom."""
    sample, views = scene.sample, scene.views
    columns: list[tuple[str, list[Tensor | None], list[str]]] = [
        ("Truth", [sample.lr, None, sample.hr, scene.cut(sample.hr)], ["clean LR", "", "HR", ""])
    ]
    for view in views:
        pictures = [view.lr, scene.perturbation(view), view.sr, scene.cut(view.sr)]
        below = [change_of(view.record).replace(" · ", "\n"), f"change × {scene.factor}"]
        columns.append((view.card.title, [*pictures], [*below, figures_of(view.record).replace(" · ", "\n"), ""]))
    figure = drawing.canvas(1.75 * len(columns) + 0.3, 8.2)
    figure.suptitle(scene.title, fontsize=10)
    grid = figure.subplots(4, len(columns), squeeze=False)
    for k, (title, pictures_of, captions) in enumerate(columns):
        for i, (picture, caption) in enumerate(zip(pictures_of, captions, strict=True)):
            _show(grid[i][k], picture, caption)
        grid[0][k].set_title(textwrap.fill(title, 22, max_lines=3, placeholder=" …"), fontsize=8)
        top, left, side = scene.zoom
        grid[2][k].add_patch(
            Rectangle((left - 0.5, top - 0.5), side, side, fill=False, edgecolor="#E69F00", linewidth=1.2)
        )
    return figure


def _show(ax: Axes, picture: Tensor | None, caption: str) -> None:
    ax.set_axis_off()
    if picture is not None:
        ax.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
        ax.text(0.5, -0.03, caption, transform=ax.transAxes, ha="center", va="top", fontsize=6.5)


def save(scene: Scene, folder: Path, drawings: bool = True) -> dict[str, Any]:
    """Write a scene's pictures for the page, and with `drawings` its PNG and PDF, below `folder`; returns its entry of
    figures.json.

    Models that were shown the same LR share its files.
    """
    sample, views = scene.sample, scene.views
    name = f"{sample.id}-{scene.threat}{FAMILIES[scene.family][0]}"

    def picture(stem: str, image: Tensor, quality: int | None = None) -> str:
        write_image(folder / f"{stem}.webp", scene.window(image), quality)
        return f"{stem}.webp"

    entry: dict[str, Any] = {
        "title": scene.title,
        "image": sample.id,
        "threat": scene.threat,
        "family": scene.family,
        "factor": scene.factor,
        "error_factor": scene.error_factor,
        "input": picture(f"{name}/input", sample.lr),
        "truth": picture(f"{name}/truth", sample.hr, QUALITY),
        "views": {},
    }
    shared = all(torch.equal(view.lr, views[0].lr) for view in views)
    for view in views:
        model = view.card.id
        whose = "all" if shared else model
        write_image(folder / name / f"{model}-error.webp", scene.error(view), QUALITY)
        entry["views"][model] = {
            "title": view.card.title,
            "change of LR": change_of(view.record),
            "lr": picture(f"{name}/{whose}-lr", view.lr),
            "change": picture(f"{name}/{whose}-change", scene.perturbation(view)),
            "sr": picture(f"{name}/{model}-sr", view.sr, QUALITY),
            "error": f"{name}/{model}-error.webp",
        }
    if drawings:
        figure = draw(scene)
        for kind in ("png", "pdf"):
            drawing.save(figure, folder / f"{name}.{kind}")
            entry[kind] = f"{name}.{kind}"
    return entry


def make_figures(
    models: str = "all",
    threats: str = "all",
    images: str | None = None,
    protocol: str | Path | Protocol = "quick",
    *,
    out: str | Path = "leaderboards",
    cache: str | Path | None = None,
    device: str = "auto",
    drawings: bool = True,
    workers: int | str = 1,
) -> Path:
    """Write <out>/<protocol>/figures: small pictures for the page, and with `drawings` a PNG and a PDF for each image,
    threat and family.

    `models`, `threats`, `images`: "all" or ids separated by commas; `images` None: the first one. Attacks come from the
    cache or are computed as for the leaderboard that stands there; what shows the same as before comes whole from the
    cache of figures. `workers`: processes, as for `benchsr run`; others than 1 import the main module, which must then
    be guarded. Raises BenchsrError where a model fails, and InputError where no model can be had or an image is not in
    the data set.
    """
    chosen = protocol if isinstance(protocol, Protocol) else load_protocol(protocol)
    folder = Path(out) / chosen.board
    if (folder / "results.csv").exists():  # the pictures stand beside its figures
        chosen, fingerprint = stored_protocol(folder)
        if chosen.fingerprint != fingerprint:
            raise InputError(
                f"{folder / 'results.csv'} was made by another version of benchsr, whose pictures cannot be made with "
                "this one; run the benchmark again"
            )
    executor = load_executor("local", device, workers)
    dataset = load_dataset(chosen.dataset, crop=chosen.crop, scale=chosen.scale).first(chosen.images)
    wanted = dataset.ids[:1] if images is None else dataset.sources.select(images)
    cards, named = select_cards(models, chosen.scale), select_threats(threats, chosen)
    cells, _ = plan(chosen, resolve(cards), named, dataset, executor.device.type)
    todo = shots(cells, cards, named, wanted, drawings)
    if not todo:
        raise InputError(f"none of the models {models!r} can be had here; see: benchsr list models")
    packs = {shot: recall(*shot.made_of) for shot in todo}
    lacking = [shot for shot, known in packs.items() if known is None]
    studio = Studio(chosen, str(executor.device), str(cache or cache_dir() / "attacked"), cells)
    count = executor.workers if isinstance(executor, Processes) else 1
    packs |= zip(lacking, studio.shared(lacking, count), strict=True)
    entries = [_unpack(content, folder / "figures") for content in packs.values() if content]
    about = {"fingerprint": chosen.fingerprint, "note": NOTE, "scenes": entries}
    write_changed(folder / "figures" / "figures.json", json.dumps(about, indent=1) + "\n")
    return folder / "figures"
