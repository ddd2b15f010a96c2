"""One gradient loop; FGSM, BIM, PGD and CW are settings and small hooks of it (paper, section 3.1).

Every attack is a `torchattacks.attack.Attack` whose label is the HR truth: `atk(lr, hr)` returns attacked LR images.
Unlike torchattacks' own, these keep the best iterate, leave every submodule in the mode they found it in, check their
inputs, and draw from per-image generators instead of the global one.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchattacks.attack import Attack

from benchsr.base.errors import InputError, ModelError
from benchsr.base.inference import eval_mode, full_float32, row_slices
from benchsr.base.pairs import check_pair
from benchsr.base.rng import Randomised, generators
from benchsr.metrics.objective import Against, BoundObjective, Objective
from benchsr.threats.balls import Norm, make_ball

Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(search variable, gradient of the gain, gain (N,)) -> next search variable."""

REFERENCES: Mapping[Against, Callable[[Tensor, Callable[[], Tensor]], Tensor]] = {
    "truth": lambda hr, answer: hr,
    "answer": lambda hr, answer: answer(),
    "turned": lambda hr, answer: hr.rot90(2, (-2, -1)),
    "other": lambda hr, answer: _no_target(),
}
"""(truth, what asks the model for its clean answer) -> the image that an objective compares with."""


def _no_target() -> Tensor:
    raise InputError("a targeted attack needs the image that it leads towards: run(..., bound=objective.bind(target))")


@dataclass(frozen=True)
class AttackResult:
    """What a threat did to N images of (3, h, w).

    `lr`: attacked images (N, 3, h, w) in [0, 1]. `loss_clean`, `loss_attacked`: the objective before and after, (N,);
    None where the threat has none.
    """

    lr: Tensor
    loss_clean: Tensor | None
    loss_attacked: Tensor | None


@dataclass(frozen=True)
class AttackTrace(AttackResult):
    """What a gradient attack did, and how it got there.

    `losses`, `gains`: the objective, and what the attack maximises, at every iterate, (N, steps + 1). `best_step`:
    index of the iterate kept, (N,). `zero_gradient`: largest share over the steps of gradient elements that were
    exactly zero, (N,). After restarts all of them are those of the image's best run.
    """

    loss_clean: Tensor
    loss_attacked: Tensor
    losses: Tensor
    gains: Tensor
    best_step: Tensor
    zero_gradient: Tensor

    @staticmethod
    def cat(parts: Sequence[AttackTrace]) -> AttackTrace:
        """Join results of parts of a batch."""
        return AttackTrace(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(AttackTrace)))

    @staticmethod
    def best(runs: Sequence[AttackTrace]) -> AttackTrace:
        """Of several runs on one batch, for each image the one whose kept iterate has the largest gain."""
        kept = torch.stack([run.gains.gather(1, run.best_step[:, None])[:, 0] for run in runs])
        winner = kept.argmax(0)
        rows = torch.arange(len(winner), device=winner.device)
        return AttackTrace(
            *(torch.stack([getattr(r, f.name) for r in runs])[winner, rows] for f in fields(AttackTrace))
        )


class GradientAttack(Attack):  # type: ignore[misc]
    """The loop that all gradient attacks share: start, then `steps` times gradient and step; the best iterate wins.

    `model` maps LR (N, 3, h, w) in [0, 1] to SR (N, 3, sh, sw), unclamped. `objective` defaults to L1 + perceptual
    with weights one. With `keep_best=False` the last iterate is returned, as torchattacks does. A `Randomised` model
    draws new noise whenever it is asked, and the gain and its gradient are then means over `draws` answers (expectation
    over transformation, Athalye et al. 2018). `restarts` runs are made and each image keeps its best.
    Subclasses say where the search starts, how a search variable becomes an image, what is maximised and how to step.
    """

    restarts = 1
    draws = 1
    needs_gradient = True
    shows_itself = True
    """Whether a step asks the model about the image itself. Otherwise a trace holds the clean image and the result."""

    def __init__(
        self,
        model: nn.Module,
        *,
        steps: int,
        objective: Objective | None = None,
        keep_best: bool = True,
    ) -> None:
        if steps < 1:
            raise InputError(f"steps must be at least 1; got {steps}")
        with contextlib.redirect_stdout(io.StringIO()):  # the base class prints when a model has no parameters
            super().__init__(type(self).__name__, model)
        self.steps = steps
        self.objective = objective or Objective()
        self.keep_best = keep_best

    def start(self, x: Tensor, gens: Sequence[torch.Generator]) -> Tensor:
        """The first search variable for clean images `x` (N, 3, h, w)."""
        return x

    def image(self, v: Tensor) -> Tensor:
        """The image (N, 3, h, w) in [0, 1] that the search variable `v` stands for."""
        return v

    def gain(self, loss: Tensor, image: Tensor, x: Tensor, sr_elements: int) -> Tensor:
        """What the attack maximises, (N,), given the objective's `loss` (N,), a mean over `sr_elements` of each SR."""
        return loss

    def answer(self, image: Tensor, ids: Sequence[str], noise: str, gradient: bool) -> Tensor:
        """What the objective judges of the model's answer to `image`; `gradient`: for a step, not for the record."""
        return self._sr(image, ids, noise)

    def stepper(self, x: Tensor, gens: Sequence[torch.Generator]) -> Step:
        """A fresh step rule for one run on clean images `x`; random steps come from `gens`, one for each image."""
        raise NotImplementedError

    def __call__(self, lr: Tensor, hr: Tensor, ids: Sequence[str] | None = None, seed: int = 0) -> Tensor:
        """Attack `lr` (N, 3, h, w) so that the model's output leaves `hr` (N, 3, sh, sw); see `run`."""
        return self.run(lr, hr, ids, seed).lr

    forward = __call__

    def run(
        self,
        lr: Tensor,
        hr: Tensor,
        ids: Sequence[str] | None = None,
        seed: int = 0,
        *,
        bound: BoundObjective | None = None,
        batch_size: int | None = None,
    ) -> AttackTrace:
        """Attack and report. `ids` (default "0", "1", ...) and `seed` determine all random draws, image by image.

        `bound` hands in the objective bound to `hr`, to share its features between attacks, or bound to any other
        image, as the target of an objective that leads towards it. Raises InputError for
        tensors of wrong shape, type, device or range, and ModelError where the model's output cannot be used.
        """
        check_pair(lr, hr)
        ids = [str(i) for i in range(len(lr))] if ids is None else list(ids)
        if len(ids) != len(lr):
            raise InputError(f"{len(ids)} ids for {len(lr)} images")
        with eval_mode(self.model), full_float32():
            return AttackTrace.cat(
                [
                    self._restarted(
                        lr[rows],
                        bound[rows] if bound else self._bind(lr[rows], hr[rows], ids[rows], seed),
                        ids[rows],
                        seed,
                    )
                    for rows in row_slices(len(lr), lr.device, batch_size)
                ]
            )

    def _bind(self, x: Tensor, hr: Tensor, ids: Sequence[str], seed: int) -> BoundObjective:
        """The objective, bound to the image that it is against."""

        @torch.no_grad()
        def answer() -> Tensor:
            return self._sr(x, ids, f"{seed}-reference").detach()

        return self.objective.bind(REFERENCES[self.objective.against](hr, answer))

    def last_iterate(self, x: Tensor, bound: BoundObjective, ids: Sequence[str], seed: int) -> Tensor:
        """Where the search ends on images `x` (N, 3, h, w), all at once: what adversarial training takes.

        `steps` gradients and no look at the result (Madry et al. 2018): for two steps 0.6 of what `run` costs.
        """
        name = self.attack.lower()
        with eval_mode(self.model):
            v = self.start(x, generators(seed, ids, f"{name}-start"))
            step = self.stepper(x, generators(seed, ids, f"{name}-step"))
            for t in range(self.steps):
                _, _, gain, grad = self._look(v, x, bound, ids, f"{seed}-{name}-{t}", gradient=True)
                v = step(v, grad, gain)
            return self.image(v).detach()

    def _restarted(self, x: Tensor, bound: BoundObjective, ids: Sequence[str], seed: int) -> AttackTrace:
        names = [f"{self.attack.lower()}{f'-{run}' if run else ''}" for run in range(self.restarts)]
        return AttackTrace.best([self._search(x, bound, ids, seed, name) for name in names])

    def _search(self, x: Tensor, bound: BoundObjective, ids: Sequence[str], seed: int, name: str) -> AttackTrace:
        x = x.detach()
        v = self.start(x, generators(seed, ids, f"{name}-start"))
        step = self.stepper(x, generators(seed, ids, f"{name}-step"))
        losses: list[Tensor] = []
        gains: list[Tensor] = []
        zero = x.new_zeros(len(x))
        best_image, best_gain = x, x.new_full((len(x),), -torch.inf)
        best_loss, best_step = x.new_zeros(len(x)), torch.zeros(len(x), dtype=torch.long, device=x.device)
        loss_clean: Tensor | None = None
        starts_clean = self.shows_itself and torch.equal(self.image(v), x)  # asked while the device has no work
        for t in range(self.steps + 1):
            last = t == self.steps
            gradient = self.needs_gradient and not last
            image, loss, gain, grad = self._look(v, x, bound, ids, f"{seed}-{name}-{t}", gradient)
            if gradient:
                zero = torch.maximum(zero, (grad == 0).flatten(1).float().mean(1))
            losses.append(loss)
            gains.append(gain)
            if t == 0 and starts_clean:
                loss_clean = loss
            better = gain > best_gain if self.keep_best else torch.full_like(gain, last, dtype=torch.bool)
            best_gain = torch.where(better, gain, best_gain)
            best_loss = torch.where(better, loss, best_loss)
            best_step = torch.where(better, t, best_step)
            best_image = torch.where(better.view(-1, 1, 1, 1), image, best_image)
            if not last:
                v = step(v, grad, gain)
        if loss_clean is None:
            with torch.no_grad():
                noises = self._noises(f"{seed}-{name}-clean")
                loss_clean = torch.stack([bound(self.answer(x, ids, noise, gradient=False)) for noise in noises]).mean(
                    0
                )
        if not self.shows_itself:  # losses of steps are of other images
            losses, gains, best_step = [loss_clean, losses[-1]], [loss_clean, gains[-1]], torch.ones_like(best_step)
        trace = torch.stack(losses, dim=1)
        if not bool(torch.isfinite(trace).all()):
            raise ModelError("the model returned NaN or infinite values under attack, or its loss overflowed")
        return AttackTrace(best_image, loss_clean, best_loss, trace, torch.stack(gains, dim=1), best_step, zero)

    def _noises(self, name: str) -> list[str]:
        """The purposes of the noise of one look at the model: one, where the model draws none."""
        return [f"{name}-{draw}" for draw in range(self.draws if isinstance(self.model, Randomised) else 1)]

    def _look(
        self, v: Tensor, x: Tensor, bound: BoundObjective, ids: Sequence[str], name: str, gradient: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The image of `v`; its loss (N,), gain (N,) and the gain's gradient, means over the model's noise."""
        v = v.detach().requires_grad_(gradient)
        looks = []
        for noise in self._noises(name):  # one by one: memory does not grow with the draws
            with torch.set_grad_enabled(gradient):
                image = self.image(v)
                loss = bound(self.answer(image, ids, noise, gradient))
                gain = self.gain(loss, image, x, bound.hr[0].numel())
            grad = torch.autograd.grad(gain.sum(), v)[0] if gradient else torch.zeros_like(v)
            looks.append((loss.detach(), gain.detach(), grad))
        loss, gain, grad = (torch.stack(parts).mean(0) for parts in zip(*looks, strict=True))
        return image.detach(), loss, gain, grad

    def _sr(self, image: Tensor, ids: Sequence[str], noise: str) -> Tensor:
        sr: Tensor = self.model(image, ids, noise) if isinstance(self.model, Randomised) else self.model(image)
        return sr


class PGD(GradientAttack):
    """Projected gradient descent (paper, section 3.1; Madry et al. 2018) in the ball of `norm`, L-infinity or l2.

    `eps`, `alpha`: radius and step in [0, 1] units, in l2 over all elements of an LR image. `random_start` draws the
    first iterate from U(-eps, eps), in l2 from the sphere; `start_scale` below 1 draws it at that fraction of the
    resolution, nearest-upsampled (Castillo et al. 2021: 1/1.5).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        eps: float = 10 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        random_start: bool = True,
        start_scale: float = 1.0,
        objective: Objective | None = None,
        keep_best: bool = True,
        norm: Norm = "linf",
    ) -> None:
        if alpha < 0 or not 0 < start_scale <= 1:
            raise InputError(f"need alpha >= 0, start_scale in (0, 1]; got {alpha}, {start_scale}")
        super().__init__(model, steps=steps, objective=objective, keep_best=keep_best)
        self.ball = make_ball(norm, eps)
        self.alpha = alpha
        self.random_start = random_start
        self.start_scale = start_scale

    def start(self, x: Tensor, gens: Sequence[torch.Generator]) -> Tensor:
        """`x`, or `x` plus a random draw from the ball, inside [0, 1]."""
        if not self.random_start:
            return x
        h, w = x.shape[-2:]
        coarse = x[..., : max(1, round(h * self.start_scale)), : max(1, round(w * self.start_scale))]
        delta = F.interpolate(self.ball.random(coarse, gens), size=(h, w), mode="nearest")
        return (x + self.ball.project(delta)).clamp(0, 1)

    def stepper(self, x: Tensor, gens: Sequence[torch.Generator]) -> Step:
        """Ascend by `alpha` along the gradient's sign, in l2 the gradient itself; project to the ball and to [0, 1]."""
        return lambda v, grad, gain: (x + self.ball.project(v + self.alpha * self.ball.steepest(grad) - x)).clamp(0, 1)


class BIM(PGD):
    """Basic iterative method: `steps` steps of eps / steps from the clean image (paper, section 3.1)."""

    def __init__(
        self,
        model: nn.Module,
        *,
        eps: float = 10 / 255,
        steps: int = 10,
        objective: Objective | None = None,
        keep_best: bool = True,
    ) -> None:
        alpha = eps / max(steps, 1)
        super().__init__(
            model, eps=eps, alpha=alpha, steps=steps, random_start=False, objective=objective, keep_best=keep_best
        )


class FGSM(BIM):
    """Fast gradient sign method: one step of `eps` (paper, equation 1)."""

    def __init__(
        self,
        model: nn.Module,
        *,
        eps: float = 10 / 255,
        objective: Objective | None = None,
        keep_best: bool = True,
    ) -> None:
        super().__init__(model, eps=eps, steps=1, objective=objective, keep_best=keep_best)


class CW(GradientAttack):
    """Carlini & Wagner for SR (paper, equation 2): min over w of ||delta||_2 - c L, x + delta = (tanh(w) + 1) / 2.

    `lr` is Adam's learning rate on w. L is summed over the HR image's elements here, not averaged: equation 2 leaves
    that open, and with a mean any delta costs more than c = 0.01 can bring, so that delta = 0 would be optimal, while
    the paper's CW destroys ESRGAN's output.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        c: float = 0.01,
        lr: float = 0.01,
        steps: int = 6,
        objective: Objective | None = None,
        keep_best: bool = True,
    ) -> None:
        if c <= 0 or lr <= 0:
            raise InputError(f"c and lr must be positive; got {c}, {lr}")
        super().__init__(model, steps=steps, objective=objective, keep_best=keep_best)
        self.c = c
        self.lr = lr

    def start(self, x: Tensor, gens: Sequence[torch.Generator]) -> Tensor:
        """The w whose image is `x`, kept finite where a pixel is 0 or 1."""
        return torch.atanh((2 * x - 1).clamp(-1 + 1e-6, 1 - 1e-6))

    def image(self, v: Tensor) -> Tensor:
        """(tanh(w) + 1) / 2, inside [0, 1] by construction."""
        return (torch.tanh(v) + 1) / 2

    def gain(self, loss: Tensor, image: Tensor, x: Tensor, sr_elements: int) -> Tensor:
        """c L - ||delta||_2, the negative of equation 2."""
        # The norm's gradient at delta = 0 is undefined; under a tiny offset it is zero.
        norm = ((image - x).square().flatten(1).sum(1) + 1e-12).sqrt()
        return self.c * sr_elements * loss - norm

    def stepper(self, x: Tensor, gens: Sequence[torch.Generator]) -> Step:
        """One Adam step on w (Kingma & Ba 2015, torch's defaults)."""
        w = torch.zeros_like(x)
        adam = torch.optim.Adam([w], lr=self.lr, maximize=True)

        def step(v: Tensor, grad: Tensor, gain: Tensor) -> Tensor:
            w.copy_(v)
            w.grad = grad
            adam.step()
            return w.clone()

        return step
