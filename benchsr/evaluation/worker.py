"""One cell of the leaderboard: attack (or cache) -> verify -> super-resolve -> score."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchsr.base.errors import BenchsrError, ModelError
from benchsr.base.inference import Autocast, checkpoint_blocks
from benchsr.base.pairs import Sample
from benchsr.base.rng import Randomised
from benchsr.defences.smoothing import Smoothed, smoothed_for
from benchsr.evaluation.cache import AttackCache, AttackReport
from benchsr.evaluation.memory import MOST, PROBE_SIDE, Plan, bytes_per_pixel, free_bytes, plan_batch
from benchsr.evaluation.plan import Cell
from benchsr.evaluation.protocol import Protocol
from benchsr.metrics.objective import BoundObjective, Objective
from benchsr.metrics.quality import lpips, psnr, ssim
from benchsr.models.network import load_network
from benchsr.results.records import Record, Status
from benchsr.threats.attacks import AttackResult
from benchsr.threats.health import attack_flags
from benchsr.threats.table import Threat

FEATURES_KEPT = 64
"""Images whose perceptual features of the truth are kept between attacks and networks."""


@dataclass(frozen=True)
class Attacked:
    """One image as a model will see it: its sample, LR after the threat (3, h, w), and what the attack reported."""

    sample: Sample
    lr: Tensor
    report: AttackReport


def failed(template: Record, error: Exception) -> Record:
    """The record of an evaluation that went wrong, with its reason on one line."""
    text = str(error) if isinstance(error, BenchsrError) else f"{type(error).__name__}: {error}"
    return replace(template, status=Status.FAILED, reason=" ".join(text.split())[:500])


def verify(threat: Threat, clean: Tensor, attacked: Tensor, rounding: float) -> None:
    """Raise ModelError unless `attacked` (3, h, w) is a finite image in [0, 1] within the threat's ball of `clean`."""
    if not bool(torch.isfinite(attacked).all()) or attacked.min() < 0 or attacked.max() > 1:
        raise ModelError(f"threat {threat.id!r} made an image that is not finite or not in [0, 1]")
    eps, moved = threat.settings.get("eps"), float((attacked - clean).abs().max())
    if eps is not None and moved > float(eps) + rounding + 1e-6:
        raise ModelError(f"threat {threat.id!r} moved a pixel by {moved:.6f}, beyond its eps of {float(eps):.6f}")


class Worker:
    """Computes cells on one device. It keeps the current network, and the truth's features between attacks.

    `memory_budget`: bytes that an attack may take, by default most of what is free when it starts.
    """

    def __init__(
        self,
        protocol: Protocol,
        device: torch.device,
        cache: AttackCache,
        batch_size: int = 8,
        memory_budget: float | None = None,
    ) -> None:
        self.protocol = protocol
        self.device = device
        self.cache = cache
        self.batch_size = batch_size
        self.memory_budget = memory_budget
        self._network: tuple[str, nn.Module] | None = None
        self._features: dict[tuple[str, Objective], Tensor | None] = {}
        self._bytes_per_pixel: dict[tuple[str, Objective], float] = {}

    def run(self, cell: Cell) -> Iterator[Record]:
        """Compute the records of `cell`, and yield each as it is done; what goes wrong becomes its reason."""
        by_image: dict[str, list[Record]] = {}
        for template in cell.records:
            by_image.setdefault(template.image, []).append(template)
        images = list(by_image)
        for start in range(0, len(images), self.batch_size):
            for image, attacked in self._attacked(cell, images[start : start + self.batch_size]).items():
                for template in by_image[image]:
                    try:
                        if isinstance(attacked, Exception):
                            raise attacked
                        yield self._score(cell, template, attacked)
                    except Exception as error:  # a stranger's model may raise anything: its row says what
                        yield failed(template, error)

    def _attacked(self, cell: Cell, images: Sequence[str]) -> dict[str, Attacked | Exception]:
        done: dict[str, Attacked | Exception] = dict.fromkeys(images, ModelError("not attacked"))
        by_shape: dict[torch.Size, list[Sample]] = {}
        for image in images:
            try:
                sample = cell.samples.sample(image)
                hit = self.cache.get(cell.attack_keys[image])
                if hit is None:
                    by_shape.setdefault(sample.lr.shape, []).append(sample)
                else:
                    done[image] = Attacked(sample, *hit)
            except Exception as error:
                done[image] = error
        for samples in by_shape.values():
            done |= self._attack(cell, samples)
        return done

    def _attack(self, cell: Cell, samples: list[Sample]) -> dict[str, Attacked | Exception]:
        """Attack images of one shape together; when that fails halve the batch, until only the culprit fails."""
        try:
            return {a.sample.id: a for a in self._attack_batch(cell, samples)}
        except Exception as error:  # out of memory, or one image's own trouble
            if len(samples) == 1:
                return {samples[0].id: error}
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(samples) // 2
        return self._attack(cell, samples[:half]) | self._attack(cell, samples[half:])

    def _attack_batch(self, cell: Cell, samples: list[Sample]) -> list[Attacked]:
        threat = self.protocol.threat(cell.threat)
        lr = self._to_device([s.lr for s in samples])
        hr = self._to_device([s.hr for s in samples])
        ids = [s.id for s in samples]
        result: AttackResult | Tensor = lr
        size = len(samples)
        bound = self._bound(cell, samples, hr, threat.objective) if threat.objective else None
        network = self._load(cell) if threat.objective else nn.Identity()
        if self.protocol.precision == "bf16":
            network = Autocast(network)
        if threat.objective:
            plan = self._plan(cell, network, threat.objective, lr)
            checkpoint_blocks(self._load(cell), plan.checkpoint)
            size = plan.batch_size
        if threat.median_of:  # the attack knows the smoothing, which all models of the cell share
            network = smoothed_for(cell.network_card, threat.like, network, self.protocol.seed, threat.median_of)
        if isinstance(network, Smoothed):
            network.draws_at_once = min(network.draws_at_once, size)
        started = time.perf_counter()
        if threat.spec.kind != "dataset":
            result = threat.run(network, lr, hr, ids, self.protocol.seed, bound=bound, batch_size=size)
        found: list[tuple[float | None, float | None, str]] = [(None, None, "")] * len(samples)
        if isinstance(result, AttackResult):
            flags = attack_flags(result)
            found = list(zip(result.loss_clean.tolist(), result.loss_attacked.tolist(), flags, strict=True))
            result = result.lr
        attacked = result.cpu()
        seconds = (time.perf_counter() - started) / len(samples)
        if self.protocol.quantise_lr:
            attacked = (attacked * 255).round() / 255
        done = []
        for i, sample in enumerate(samples):
            verify(threat, sample.lr, attacked[i], rounding=0.5 / 255 if self.protocol.quantise_lr else 0.0)
            done.append(Attacked(sample, attacked[i], AttackReport(seconds, *found[i])))
            self.cache.put(cell.attack_keys[sample.id], attacked[i], done[-1].report)
        return done

    def _to_device(self, images: Sequence[Tensor]) -> Tensor:
        batch = torch.stack(list(images))
        if self.device.type != "cuda":
            return batch
        return batch.pin_memory().to(self.device, non_blocking=True)  # work is queued while the copy is under way

    def _plan(self, cell: Cell, network: nn.Module, objective: Objective, lr: Tensor) -> Plan:
        """How to attack the images `lr` with `network`, the cell's as attacks see it, within the memory budget."""
        key, (height, width) = (cell.network_card.id, objective), lr.shape[2:]
        if key not in self._bytes_per_pixel:
            checkpoint_blocks(self._load(cell), active=False)
            side = min(PROBE_SIDE, height, width)
            self._bytes_per_pixel[key] = bytes_per_pixel(network, objective, self.device, side)
        budget = MOST * free_bytes(self.device) if self.memory_budget is None else self.memory_budget
        return plan_batch(self._bytes_per_pixel[key], height * width, self.batch_size, budget)

    def _answers(self, cell: Cell, model_id: str, attacked: Attacked) -> tuple[Tensor, float]:
        """What a model makes of an attacked image, (k, 3, 4h, 4w) in [0, 1] for k evaluations, and seconds for each."""
        threat, sample = self.protocol.threat(cell.threat), attacked.sample
        model = smoothed_for(cell.models[model_id], threat.like, self._load(cell), self.protocol.seed)
        x = attacked.lr[None].to(self.device)
        started = time.perf_counter()
        with torch.no_grad():
            if isinstance(model, Randomised):
                answers = [model(x, [sample.id], f"evaluation-{k}") for k in range(self.protocol.evaluations)]
            else:
                answers = [model(x)]
        seconds = (time.perf_counter() - started) / len(answers)
        expected = (1, *sample.hr.shape)
        if answers[0].shape != expected:
            raise ModelError(f"the model turned {tuple(x.shape)} into {tuple(answers[0].shape)}, not {expected}")
        sr = torch.cat(answers).float()
        if not bool(torch.isfinite(sr).all()):
            raise ModelError("the model returned NaN or infinite values")
        return sr.clamp(0, 1), seconds

    def _score(self, cell: Cell, template: Record, attacked: Attacked) -> Record:
        sample, settings = attacked.sample, self.protocol.metrics
        sr, seconds = self._answers(cell, template.model, attacked)
        hr = sample.hr[None].to(self.device).expand_as(sr)
        rounded = (sr * 255).round() / 255 if settings.quantise_sr else sr
        paired = self.protocol.threat(cell.threat).spec.kind == "dataset"
        delta = (attacked.lr - sample.lr).double()
        return replace(
            template,
            psnr=float(psnr(rounded, hr, settings.border, settings.colour).mean()),
            ssim=float(ssim(rounded, hr, settings.border, settings.colour).mean()),
            lpips=float(lpips(sr, hr).mean()),
            attack_linf=None if paired else float(delta.abs().max()),
            attack_l2=None if paired else float(delta.norm()),
            loss_clean=attacked.report.loss_clean,
            loss_attacked=attacked.report.loss_attacked,
            seconds_attack=attacked.report.seconds,
            seconds_sr=seconds,
            health=attacked.report.health,
        )

    def _load(self, cell: Cell) -> nn.Module:
        card = cell.network_card
        if self._network is None or self._network[0] != card.id:
            self._network = None  # frees the last one before the next is loaded
            self._network = (card.id, load_network(card, device=self.device))
        return self._network[1]

    def _bound(self, cell: Cell, samples: Sequence[Sample], hr: Tensor, objective: Objective) -> BoundObjective:
        parts = []
        for i, sample in enumerate(samples):
            key = (cell.samples.sample_key(sample.id), objective)
            if key not in self._features:
                self._features[key] = objective.bind(hr[i : i + 1]).features
                if len(self._features) > FEATURES_KEPT:
                    del self._features[next(iter(self._features))]
            parts.append(self._features[key])
        features = [part for part in parts if part is not None]
        return BoundObjective(objective, hr, torch.cat(features) if features else None)
