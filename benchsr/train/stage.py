"""One stage of a recipe: its networks and optimisers, and what one step does to them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchsr.base.errors import InputError
from benchsr.base.rng import generators, normal_like
from benchsr.metrics.objective import BoundObjective, Objective, per_image_mean
from benchsr.train.adapters import adapter_rank, trained_parameters, weights_fixed
from benchsr.train.crops import Batch
from benchsr.train.degraders import degrade
from benchsr.train.losses import low_pass, median, relativistic_loss
from benchsr.train.networks import SCALE, PatchDiscriminator, VGGDiscriminator
from benchsr.train.recipe import KernelsShape, Stage

BETAS = (0.9, 0.99)
"""Adam's, as in the paper (section 5.3)."""

DEGRADER_BETAS = (0.5, 0.999)
"""Adam's where a degrader is trained (Fritsche et al. 2019; Bell-Kligler et al. 2019): its aim moves with the judge."""


def mrs_copies(lr: Tensor, sigmas: tuple[float, ...], ids: list[str], seed: int) -> Tensor:
    """The copies of a batch that MRS fine-tuning sees: `lr` (N, 3, h, w) -> (len(sigmas) * N, 3, h, w).

    Copy i adds N(0, sigmas[i]^2) noise, drawn for each row from (seed, id, i) and not clipped, as at inference.
    """
    return torch.cat([lr + s * normal_like(lr, generators(seed, ids, f"mrs-{i}")) for i, s in enumerate(sigmas)])


def mrs_medians(sr: Tensor, sigmas: tuple[float, ...]) -> Tensor:
    """The median over the copies of equal sigma: (len(sigmas) * N, ...) -> (number of distinct sigmas * N, ...)."""
    copies = sr.chunk(len(sigmas))
    groups = [
        torch.stack([copy for copy, sigma in zip(copies, sigmas, strict=True) if sigma == distinct])
        for distinct in dict.fromkeys(sigmas)
    ]
    return torch.cat([median(group) for group in groups])


def new_judge(stage: Stage) -> nn.Module:
    """The untrained discriminator of `stage`; members of a pool of kernels have one each."""
    if stage.patch is None:
        return VGGDiscriminator(SCALE * stage.crop, stage.gan_features)
    groups = stage.degrader.members if isinstance(stage.degrader, KernelsShape) else 1
    return PatchDiscriminator(stage.gan_features, stage.patch.kernel, stage.patch.strides, groups)


class StageRun:
    """Networks, optimisers and losses of one stage; `accelerator` decides on device, precision and processes.

    `network` is the generator, or the degrader in a stage that trains one. LR is made by `degrader`, in eval mode; by
    bicubic where it is None.
    """

    def __init__(
        self, stage: Stage, network: nn.Module, accelerator: Accelerator, seed: int, degrader: nn.Module | None = None
    ) -> None:
        self.stage = stage
        self.seed = seed
        self.accelerator = accelerator
        self.threat = stage.load_threat()
        self.content = Objective(stage.l1, stage.perceptual, stage.perceptual_net)
        if not adapter_rank(network):
            network.requires_grad_(True)
        network = self._place(network)
        self.ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(stage.ema))
        self.generator, self.optimiser = self._prepare(network)
        self.degrader = None if degrader is None else degrader.to(accelerator.device)
        self.judge: Any = None
        self.judge_optimiser: Any = None
        if stage.adversarial:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                judge = new_judge(stage)
            self.judge, self.judge_optimiser = self._prepare(self._place(judge.requires_grad_(True)))

    def _place(self, network: nn.Module) -> nn.Module:
        return network.to(self.accelerator.device).to(memory_format=torch.channels_last).train()

    def _prepare(self, network: nn.Module) -> tuple[Any, Any]:
        betas = DEGRADER_BETAS if self.stage.degrader else BETAS
        optimiser = torch.optim.Adam(trained_parameters(network), lr=self.stage.lr, betas=betas)
        network, optimiser = self.accelerator.prepare(network, optimiser)
        return network, optimiser

    def _update(self, network: nn.Module, optimiser: torch.optim.Optimizer, loss: Tensor, rate: float) -> Tensor:
        """One optimiser step at learning rate `rate`; returns the gradient's norm before clipping."""
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        norm: Tensor = self.accelerator.clip_grad_norm_(trained_parameters(network), self.stage.clip)
        optimiser.step()
        return norm

    def perturb(self, lr: Tensor, truth: BoundObjective, ids: list[str]) -> Tensor:
        """`lr` under the stage's threat, computed against the generator's current weights."""
        goal = self.threat.objective
        model = self.accelerator.unwrap_model(self.generator)
        if goal is None:
            return self.threat(model, lr, truth.hr, ids, self.seed)
        if goal.perceptual_weight and truth.features is not None and goal.net == self.content.net:
            bound = replace(truth, objective=goal)  # the truth's features serve attack and training alike
        else:
            bound = goal.bind(truth.hr)
        with weights_fixed(model):
            return self.threat.attack(model).last_iterate(lr, bound, ids, self.seed)

    def _super_resolve(self, batch: Batch) -> tuple[Tensor, BoundObjective, Tensor]:
        """The generator's answers, what they should be, and what the judge takes for real."""
        stage, device = self.stage, self.accelerator.device
        lr, hr = batch.lr.to(device), batch.hr.to(device)
        if self.degrader is not None:
            lr = degrade(self.degrader, hr, lr, batch.ids, self.seed)
        truth = self.content.bind(hr)
        seen = mrs_copies(self.perturb(lr, truth, batch.ids), stage.sigmas, batch.ids, self.seed)
        sr = mrs_medians(self.generator(seen.contiguous(memory_format=torch.channels_last)), stage.sigmas)
        return sr, truth, hr

    def _degrade(self, batch: Batch) -> tuple[Tensor, BoundObjective, Tensor]:
        """The degrader's answers, the bicubic LR that they should keep to, and images of the source domain."""
        if batch.source is None:
            raise InputError(f"stage {self.stage.name!r} needs images of a source domain")
        lr, hr, source = (images.to(self.accelerator.device) for images in (batch.lr, batch.hr, batch.source))
        degraded = self.generator(hr, lr, generators(self.seed, batch.ids, "degrader")).float()
        return degraded, self.content.bind(lr), source

    def _content(self, answers: Tensor, truth: BoundObjective) -> dict[str, Tensor]:
        terms = truth.components(answers)
        if side := self.stage.low_pass:
            terms["l1"] = per_image_mean((low_pass(answers, side) - low_pass(truth.hr, side)).abs())
        return terms

    def _judged(self, images: Tensor) -> Tensor:
        """What the judge is shown of `images`."""
        side = self.stage.low_pass
        return images - low_pass(images, side) if side else images

    def step(self, k: int, batch: Batch) -> dict[str, float]:
        """Do 0-based step `k` on `batch`; returns its losses (unweighted terms), gradient norm and learning rate."""
        stage = self.stage
        rate = stage.learning_rate(k)
        with parametrize.cached():  # adapters are merged once a step, for attack and answers alike
            outputs, truth, reals = (self._degrade if stage.degrader else self._super_resolve)(batch)
        parts = [self._content(answers, truth) for answers in outputs.chunk(len(outputs) // len(truth.hr))]
        terms = {name: torch.stack([part[name].mean() for part in parts]).mean() for name in parts[0]}
        reals, fakes = self._judged(reals), self._judged(outputs)
        if self.judge is not None:
            # The bare module, its weights frozen: the generator's backward pass must not touch the judge's gradients.
            judge = self.accelerator.unwrap_model(self.judge).requires_grad_(False)
            real, fake = judge(reals, fakes)
            judge.requires_grad_(True)
            terms["adversarial"] = relativistic_loss(fake, real)
        loss = torch.stack([getattr(stage, name) * term for name, term in terms.items()]).sum()
        terms["grad_norm"] = self._update(self.generator, self.optimiser, loss, rate)
        self.ema.update_parameters(self.accelerator.unwrap_model(self.generator))
        if self.judge is not None:
            terms["judge"] = relativistic_loss(*self.judge(reals, fakes.detach()))
            self._update(self.judge, self.judge_optimiser, terms["judge"], rate)
        return {"lr": rate, "loss": loss.item(), **{name: term.item() for name, term in terms.items()}}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a step depends on, beside (seed, step) and the data."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        parts = {"generator": self.accelerator.unwrap_model(self.generator), "optimiser": self.optimiser}
        if self.judge is not None:
            parts |= {"judge": self.accelerator.unwrap_model(self.judge), "judge_optimiser": self.judge_optimiser}
        if self.degrader is not None:
            parts["degrader"] = self.degrader
        return parts | {"ema": self.ema}
