"""One cell of the leaderboard: attack (or cache) -> verify -> super-resolve -> score."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchsr.base.errors import BenchsrError, InputError, ModelError
from benchsr.base.inference import Autocast, Stopwatch, checkpoint_blocks, full_float32, require_repeated, to_8bit
from benchsr.base.inner import inner_gradients
from benchsr.base.pairs import Sample
from benchsr.base.rng import Randomised
from benchsr.defences.bounds import distance_squares
from benchsr.defences.certificate import noisy_outputs
from benchsr.defences.smoothing import Smoothed
from benchsr.defences.table import deploy, deployment
from benchsr.evaluation.cache import AttackCache, AttackReport
from benchsr.evaluation.memory import MOST, PROBE_SIDE, Plan, bytes_per_pixel, free_bytes, plan_batch
from benchsr.evaluation.plan import Cell, facing
from benchsr.evaluation.protocol import Protocol
from benchsr.metrics.objective import BoundObjective, Objective
from benchsr.metrics.quality import Scores, score
from benchsr.models.cards import Card, Deployment, Live
from benchsr.models.live import trial
from benchsr.models.network import load_network, network_bytes
from benchsr.models.zoo import network_key
from benchsr.results.records import Record, Status
from benchsr.results.singles import Singles
from benchsr.threats.attacks import AttackResult
from benchsr.threats.health import attack_flags
from benchsr.threats.table import Threat
from benchsr.threats.variants import Universal

FEATURES = 0.1
"""Share of a worker's memory that may hold the truth's perceptual features: 100 whole DIV2K images take 2.2 GB."""

SCORED_AT_ONCE = 64
"""Single answers that are scored together."""

SCORING = Objective(perceptual_weight=0.0)
"""What memory for super-resolution alone is planned with: a bound, since no gradient is taken there."""


def slowest_first(cells: Sequence[Cell], protocol: Protocol) -> list[Cell]:
    """The order in which workers finish together and load few networks: those of large networks, and of long attacks.

    How long they take is guessed from the size of the weights and the passes through the network.
    """

    def passes(cell: Cell) -> int:
        threat, steps = protocol.threat(cell.threat), 0
        if (
            threat.objective and not cell.source
        ):  # a transferred attack is there; forward and back takes three times as long as forward
            counts = (int(threat.settings.get(name, 1)) for name in ("steps", "restarts", "draws"))
            steps = 3 * math.prod(counts) * max(1, threat.median_of)
        deployed = (deployment(card, threat.like) for card in cell.models.values())
        return steps + sum(threat.singles or protocol.evaluations * d.draws if d else 1 for d in deployed)

    def cost(cell: Cell) -> tuple[int, str, int]:
        card = cell.network_card
        return network_bytes(card), network_key(card), passes(cell) * len(cell.attack_keys)

    return sorted(cells, key=cost, reverse=True)


@dataclass(frozen=True)
class Attacked:
    """One image as a model will see it: its sample, LR after the threat (3, h, w), and what the attack reported."""

    sample: Sample
    lr: Tensor
    report: AttackReport


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A universal perturbation (3, h, w), and the seconds that it took for each image that it was fitted on."""

    shift: Tensor
    share: float


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model made of one image: its line of results, and unless that failed, LR and SR.

    `lr` (3, h, w) is what the model saw, `sr` (k, 3, sh, sw) its answer in [0, 1] in each of k evaluations.
    """

    record: Record
    lr: Tensor | None = None
    sr: Tensor | None = None


def reason(error: BaseException) -> str:
    """What went wrong, on one line. The error itself is not kept: its traceback holds every tensor on its way."""
    text = str(error) if isinstance(error, BenchsrError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:500]


def failed(template: Record, why: str) -> Record:
    """The record of an evaluation that went wrong."""
    return replace(template, status=Status.FAILED, reason=why)


def verify(threat: Threat, clean: Tensor, attacked: Tensor, rounding: float) -> None:
    """Raise ModelError unless `attacked` (3, h, w) is a finite image in [0, 1] within the threat's ball of `clean`."""
    if not bool(torch.isfinite(attacked).all()) or attacked.min() < 0 or attacked.max() > 1:
        raise ModelError(f"threat {threat.id!r} made an image that is not finite or not in [0, 1]")
    if threat.ball is None:
        return
    delta = (attacked - clean).double()[None]
    moved, slack = float(threat.ball.norm(delta)), float(threat.ball.norm(torch.full_like(delta, rounding)))
    if moved > threat.ball.eps * (1 + 1e-6) + slack + 1e-6:
        norm = type(threat.ball).__name__
        raise ModelError(
            f"threat {threat.id!r} moved the image by {moved:.6f} in {norm}, beyond its eps of {threat.ball.eps:.6f}"
        )


class Worker:
    """Computes cells on one device. It keeps the current network, and the truth's features between attacks.

    `memory_budget`: bytes that an attack may take, by default its `share` of most of what is free when it starts.
    Networks compute in full float32, but for the protocol's precision inside attacks.
    """

    def __init__(
        self,
        protocol: Protocol,
        device: torch.device,
        cache: AttackCache,
        batch_size: int = 8,
        memory_budget: float | None = None,
        *,
        share: float = 1.0,
    ) -> None:
        self.protocol = protocol
        self.device = device
        self.cache = cache
        self.batch_size = batch_size
        self.memory_budget = memory_budget
        self.share = share
        self._network: tuple[str, nn.Module] | None = None
        self._at_first: Tensor | None = None
        self._features: dict[tuple[str, str], Tensor] = {}
        self._features_room: float | None = None
        self._bytes_per_pixel: dict[tuple[str, Objective], float] = {}
        self._repeated: set[tuple[str, Deployment | None]] = set()
        self._perturbations: dict[str, _Fitted] = {}

    def run(self, cell: Cell) -> Iterator[Record]:
        """Compute the records of `cell`, and yield each as it is done; what goes wrong becomes its reason."""
        return (answer.record for answer in self.answers(cell))

    def answers(self, cell: Cell) -> Iterator[Answer]:
        """What the models of `cell` make of its images, one by one, each with its record."""
        by_image: dict[str, list[Record]] = {}
        for template in cell.records:
            by_image.setdefault(template.image, []).append(template)
        images = list(by_image)
        for start in range(0, len(images), self.batch_size):
            for image, attacked in self._attacked(cell, images[start : start + self.batch_size]).items():
                for template in by_image[image]:
                    if isinstance(attacked, str):
                        yield Answer(failed(template, attacked))
                        continue
                    try:
                        answer = self._score(cell, template, attacked)
                    except (Exception, SystemExit) as error:  # a stranger's model may raise anything: its row says it
                        answer = Answer(failed(template, reason(error)))
                    yield answer

    def _attacked(self, cell: Cell, images: Sequence[str]) -> dict[str, Attacked | str]:
        """Each image after the threat, or the reason why not."""
        done: dict[str, Attacked | str] = dict.fromkeys(images, "not attacked")
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
                done[image] = reason(error)
        for samples in by_shape.values():
            done |= self._attack(cell, samples)
        return done

    def _attack(self, cell: Cell, samples: list[Sample]) -> dict[str, Attacked | str]:
        """Attack images of one shape together; when that fails halve the batch, until only the culprit fails."""
        try:
            return {a.sample.id: a for a in self._attack_batch(cell, samples)}
        except (Exception, SystemExit) as error:  # out of memory, or one image's own trouble
            if len(samples) == 1:
                return {samples[0].id: reason(error)}
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(samples) // 2
        return self._attack(cell, samples[:half]) | self._attack(cell, samples[half:])

    def _attack_batch(self, cell: Cell, samples: list[Sample]) -> list[Attacked]:
        threat = self.protocol.threat(cell.threat)
        lr = self._to_device([s.lr for s in samples])
        hr = self._to_device([s.hr for s in samples])
        with full_float32():
            result, seconds = self._result(cell, threat, samples, lr, hr)
        clean, raised = (_listed(losses, len(samples)) for losses in (result.loss_clean, result.loss_attacked))
        flags = attack_flags(result)
        attacked = result.lr.cpu()
        if self.protocol.quantise_lr:
            attacked = to_8bit(attacked)
        done = []
        for i, sample in enumerate(samples):
            verify(threat, sample.lr, attacked[i], rounding=0.5 / 255 if self.protocol.quantise_lr else 0.0)
            report = AttackReport(seconds / len(samples), clean[i], raised[i], flags[i])
            done.append(Attacked(sample, attacked[i], report))
            self.cache.put(cell.attack_keys[sample.id], attacked[i], report)
        return done

    def _result(
        self, cell: Cell, threat: Threat, samples: Sequence[Sample], lr: Tensor, hr: Tensor
    ) -> tuple[AttackResult, float]:
        """What `threat` makes of images on the device, and the seconds that it took for all of them."""
        if threat.spec.kind == "dataset":
            return AttackResult(lr, None, None), 0.0
        network: nn.Module = nn.Identity()
        bound, size, shift = None, len(samples), None
        if threat.objective:
            bound = self._goal(cell, threat, samples, hr)
            plain = self._load(cell.attacked_card)
            network = Autocast(plain) if self.protocol.precision == "bf16" else plain
            plan = self._plan(cell.attacked_card, network, threat.objective, lr)
            checkpoint_blocks(plain, plan.checkpoint)
            size = plan.batch_size
        if threat.median_of:  # the attack knows the defence, which all models of the cell share
            network = deploy(cell.attacked_card, threat.like, network, self.protocol.seed, threat.median_of)
            threat = facing(threat, cell.attacked_card)
        if isinstance(network, Smoothed):
            network.draws_at_once = min(network.draws_at_once, size)
        shares = 0.0
        if threat.spec.make is Universal:
            fitted = [self._fitted(cell, threat, network, sample, size) for sample in samples]
            shift, shares = torch.stack([f.shift for f in fitted]), sum(f.share for f in fitted)
        with Stopwatch(self.device) as watch:
            ids = [s.id for s in samples]
            result = threat.run(network, lr, hr, ids, self.protocol.seed, bound=bound, batch_size=size, shift=shift)
        return result, watch.seconds + shares

    def _goal(self, cell: Cell, threat: Threat, samples: Sequence[Sample], hr: Tensor) -> BoundObjective | None:
        """The objective, bound to the truth or the targets of `samples`; None: the attack finds what else it is."""
        objective = threat.objective
        if objective and objective.against == "other":
            targets = [self._others(cell, sample)[0] for sample in samples]
            return self._bound(cell, targets, self._to_device([t.hr for t in targets]), objective)
        if objective and objective.against == "truth" and threat.part is None:  # whose features are kept
            return self._bound(cell, samples, hr, objective)
        return None

    def _others(self, cell: Cell, sample: Sample) -> list[Sample]:
        """The images that the attack on `sample` is given beside it. Raises InputError where they are of no use."""
        others = [cell.samples.sample(image) for image in cell.others[sample.id].ids]
        if not others:
            raise InputError(f"threat {cell.threat!r} needs other images too, and the data set has but one")
        for other in others:
            if other.lr.shape != sample.lr.shape:
                sizes = " and ".join(f"{s.id} ({s.lr.shape[2]} x {s.lr.shape[1]})" for s in (sample, other))
                raise InputError(
                    f"threat {cell.threat!r} needs LR images of one size, unlike {sizes}; set crop in the protocol"
                )
        return others

    def _fitted(self, cell: Cell, threat: Threat, network: nn.Module, sample: Sample, size: int) -> _Fitted:
        """The universal perturbation for `sample`: from the cache, or fitted now, `size` images at once, and kept."""
        others = cell.others[sample.id]
        if others.key not in self._perturbations:
            hit, attack = self.cache.get(others.key), threat.attack(network)
            if hit is None and isinstance(attack, Universal) and threat.objective:
                given = self._others(cell, sample)
                lr, hr = (self._to_device(images) for images in ([s.lr for s in given], [s.hr for s in given]))
                bound = self._bound(cell, given, hr, threat.objective)
                with Stopwatch(self.device) as watch:
                    shift = attack.fit(lr, hr, others.ids, self.protocol.seed, bound=bound, batch_size=size)
                hit = shift.cpu(), AttackReport(watch.seconds)
                self.cache.put(others.key, *hit)
            assert hit
            self._perturbations[others.key] = _Fitted(hit[0].to(self.device), hit[1].seconds / len(others.ids))
        return self._perturbations[others.key]

    def _to_device(self, images: Sequence[Tensor]) -> Tensor:
        batch = torch.stack(list(images))
        if self.device.type != "cuda":
            return batch
        return batch.pin_memory().to(self.device, non_blocking=True)  # work is queued while the copy is under way

    def _budget(self) -> float:
        """Bytes that may be taken now."""
        if self.memory_budget is not None:
            return self.memory_budget
        return self.share * MOST * free_bytes(self.device)

    def _plan(self, card: Card, network: nn.Module, objective: Objective, lr: Tensor) -> Plan:
        """How to attack the images `lr` with `network`, that of `card` as attacks see it, within the memory budget."""
        key, (height, width) = (network_key(card), objective), lr.shape[2:]
        if key not in self._bytes_per_pixel:
            checkpoint_blocks(self._load(card), active=False)
            side = min(PROBE_SIDE, height, width)
            self._bytes_per_pixel[key] = bytes_per_pixel(network, objective, self.device, side)
        return plan_batch(self._bytes_per_pixel[key], height * width, self.batch_size, self._budget())

    def _model(self, cell: Cell, model_id: str, lr: Tensor) -> nn.Module:
        """A model of the cell as it is deployed against the threat, for the image `lr` (1, 3, h, w)."""
        threat, network = self.protocol.threat(cell.threat), self._load(cell.network_card)
        model = deploy(cell.models[model_id], threat.like, network, self.protocol.seed)
        if isinstance(model, Smoothed) and self.device.type != "cpu":  # whose chunks are fixed
            model.draws_at_once = self._plan(cell.network_card, network, SCORING, lr).batch_size
        return model

    def _super_resolve(self, cell: Cell, model_id: str, attacked: Attacked) -> tuple[Tensor, float]:
        """What a model makes of an attacked image, (k, 3, sh, sw) in [0, 1] for k evaluations, and seconds for each."""
        sample, x = attacked.sample, attacked.lr[None].to(self.device)
        model = self._model(cell, model_id, x)

        def answer(k: int) -> Tensor:
            sr: Tensor = model(x, [sample.id], f"evaluation-{k}") if isinstance(model, Randomised) else model(x)
            return sr

        with torch.no_grad(), full_float32(), Stopwatch(self.device) as watch:
            answers = [answer(k) for k in range(self.protocol.evaluations if isinstance(model, Randomised) else 1)]
        sr = _checked(torch.cat(answers), sample)
        deployed = (
            network_key(cell.network_card),
            deployment(cell.models[model_id], self.protocol.threat(cell.threat).like),
        )
        plain, coded = model is self._load(cell.network_card), isinstance(cell.network_card, Live)
        if not isinstance(model, Smoothed) and (coded or not (plain or deployed in self._repeated)):
            with torch.no_grad(), full_float32():
                require_repeated(model_id if plain else "the defended model", answers[0], answer(0))
            self._repeated.add(deployed)
        return sr, watch.seconds / len(answers)

    def _single_answers(self, cell: Cell, model_id: str, attacked: Attacked) -> tuple[Tensor, Smoothed, float]:
        """A smoothed model's noisy answers to an image, (n, 3, 4h, 4w) in [0, 1], the model, and the seconds."""
        sample, x = attacked.sample, attacked.lr.to(self.device)
        model = self._model(cell, model_id, x[None])
        if not isinstance(model, Smoothed):
            raise ModelError(f"{model_id} is not median-smoothed: it has no noisy answers")
        n = self.protocol.threat(cell.threat).singles
        with full_float32(), Stopwatch(self.device) as watch:
            draws = noisy_outputs(model, x, model.sigma, n, self.protocol.seed, sample.id)
        return _checked(draws, sample), model, watch.seconds

    def _score(self, cell: Cell, template: Record, attacked: Attacked) -> Answer:
        sample, report, threat = attacked.sample, attacked.report, self.protocol.threat(cell.threat)
        singles: Singles | None = None
        with inner_gradients() as inner:
            if threat.singles:
                sr, model, seconds = self._single_answers(cell, template.model, attacked)
            else:
                sr, seconds = self._super_resolve(cell, template.model, attacked)
        self._require_unchanged(cell.network_card)
        found = self._scores(sr, sample, threat)
        if threat.singles:
            singles = self._singles(sr, sample, model, found, is_clean=threat.objective is None)
            figures = {name: statistics.median(values.tolist()) for name, values in found.figures.items()}
            sr = sr.median(dim=0).values[None]
        else:
            figures = {name: values.mean().item() for name, values in found.figures.items()}
        lacking = "; ".join(f"{name}: {why}" for name, why in found.lacking.items())
        if not figures:
            raise InputError(lacking)
        paired = threat.spec.kind == "dataset"
        delta = (attacked.lr - sample.lr).double()
        record = replace(
            template,
            reason=lacking,
            scores=figures,
            attack_linf=None if paired else float(delta.abs().max()),
            attack_l2=None if paired else float(delta.norm()),
            loss_clean=report.loss_clean,
            loss_attacked=report.loss_attacked,
            seconds_attack=report.seconds,
            seconds_sr=seconds,
            health=" ".join([*report.health.split(), *inner]),
            singles=singles,
        )
        return Answer(record, attacked.lr, sr)

    def _scores(self, sr: Tensor, sample: Sample, threat: Threat) -> Scores:
        """Scores of answers `sr` (k, 3, 4h, 4w) to one image, some of them at a time, by what `threat` has scored."""
        found = []
        for part in sr.split(SCORED_AT_ONCE):
            hr, lr = (image.to(self.device).expand(len(part), *image.shape) for image in (sample.hr, sample.lr))
            found.append(score(*threat.scored(part, hr, lr), self.protocol.metrics))
        return Scores(
            {name: torch.cat([f.figures[name] for f in found]) for name in found[0].figures}, found[0].lacking
        )

    def _singles(self, draws: Tensor, sample: Sample, model: Smoothed, found: Scores, *, is_clean: bool) -> Singles:
        """What is kept of a smoothed model's noisy answers `draws` (n, 3, 4h, 4w): what certificates rest on."""
        settings, hr = self.protocol.metrics, sample.hr.to(self.device)
        squares: tuple[float, ...] = ()
        if is_clean and settings.colour == "rgb":  # in luma the median's error is no element's
            seen = to_8bit(draws) if settings.quantise_sr else draws
            squares = tuple(distance_squares(seen, hr, border=settings.border).tolist())
        elements = len(hr) * math.prod(size - 2 * settings.border for size in hr.shape[-2:])
        scores = {name: tuple(values.tolist()) for name, values in found.figures.items()}
        return Singles(model.sigma, model.n, elements, scores, squares)

    def _load(self, card: Card) -> nn.Module:
        key = network_key(card)  # two cards may bear one id
        if self._network is None or self._network[0] != key:
            self._network = self._at_first = None  # frees the last one before the next is loaded
            self._perturbations = {}
            memory = self.share * free_bytes(torch.device("cpu"))  # for a stranger's code
            self._network = (key, load_network(card, device=self.device, memory=memory))
            self._at_first = self._tried(card)
        return self._network[1]

    def _tried(self, card: Card) -> Tensor | None:
        """What a network that no file describes answers to the trial image; None: it takes larger ones only."""
        if not isinstance(card, Live):
            return None
        network, x = self._load(card), trial(self.device)
        try:
            with torch.no_grad(), full_float32():
                answer: Tensor = network(x, ["trial"], "trial") if isinstance(network, Randomised) else network(x)
        except InputError:
            return None
        return answer

    def _require_unchanged(self, card: Card) -> None:
        """Raise ModelError where such a network is no longer what it was when it was loaded."""
        answer = self._tried(card)
        if answer is not None and self._at_first is not None:
            require_repeated(f"{card.id}, as time went by,", self._at_first, answer)

    def _bound(self, cell: Cell, samples: Sequence[Sample], hr: Tensor, objective: Objective) -> BoundObjective:
        if not objective.perceptual_weight:
            return objective.bind(hr)
        rows = []
        for i, sample in enumerate(samples):
            key = (cell.samples.sample_key(sample.id), objective.net)
            features = self._features.get(key)
            if features is None:
                with torch.no_grad(), full_float32():
                    features = objective.features(hr[i : i + 1])
                self._keep_features(key, features)
            rows.append(features)
        return BoundObjective(objective, hr, torch.cat(rows))

    def _keep_features(self, key: tuple[str, str], features: Tensor) -> None:
        """Keep features while there is room. A run goes through its images again and again: the first to come stay."""
        if self._features_room is None:
            self._features_room = FEATURES * self._budget()
        if features.nbytes <= self._features_room:
            self._features_room -= features.nbytes
            self._features[key] = features


def _checked(sr: Tensor, sample: Sample) -> Tensor:
    """Answers (k, 3, 4h, 4w), clamped to [0, 1]. Raises ModelError where they are not of that shape, or not finite."""
    if sr.shape[1:] != sample.hr.shape:
        seen, made, expected = ((1, *shape) for shape in (sample.lr.shape, sr.shape[1:], sample.hr.shape))
        raise ModelError(f"the model turned {seen} into {made}, not {expected}")
    if not bool(torch.isfinite(sr).all()):
        raise ModelError("the model returned NaN or infinite values")
    return sr.float().clamp(0, 1)


def _listed(values: Tensor | None, n: int) -> list[float | None]:
    return [None] * n if values is None else [float(value) for value in values]
