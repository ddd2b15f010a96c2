"""Attacks with other means than PGD's: 8-bit images, momentum and diverse inputs for transfer, one half, all images.

Each is a small hook of the one loop. Attacks with other aims (towards an image, away from the clean answer, CosPGD) are
PGD with another objective, and need no code here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchsr.base.errors import InputError
from benchsr.base.inference import eval_mode, full_float32, row_slices
from benchsr.base.pairs import check_pair
from benchsr.base.rng import generators
from benchsr.metrics.objective import BoundObjective, Objective
from benchsr.threats.adaptive import StrongPGD
from benchsr.threats.attacks import AttackResult, Step

LEVEL = 1 / 255
"""One grey level."""


class EightBitPGD(StrongPGD):
    """PGD whose every iterate is an 8-bit image: rounded to 1/255 inside the ball after each step.

    Steps have at least one grey level, or rounding would undo them. Raises InputError for eps below one grey level.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        eps: float = 8 / 255,
        steps: int = 50,
        restarts: int = 2,
        draws: int = 1,
        pace: float = 2.5,
        objective: Objective | None = None,
    ) -> None:
        if eps < LEVEL:
            raise InputError(f"an 8-bit attack needs eps of at least 1/255; got {eps * 255:g}/255")
        super().__init__(model, eps=eps, steps=steps, restarts=restarts, draws=draws, pace=pace, objective=objective)
        self.alpha = max(self.alpha, LEVEL)

    def rounded(self, v: Tensor, x: Tensor) -> Tensor:
        """The nearest 8-bit image to `v` (N, 3, h, w) in the ball around `x`, which need not be one itself."""
        lowest, highest = (((x + side * self.ball.eps) * 255).clamp(0, 255) for side in (-1, 1))
        slack = 1e-4  # x + eps is a whole level but for float32's rounding
        levels = torch.min(torch.max((v * 255).round(), (lowest - slack).ceil()), (highest + slack).floor())
        return levels / 255

    def start(self, x: Tensor, gens: Sequence[torch.Generator]) -> Tensor:
        """A random 8-bit image of the ball."""
        return self.rounded(super().start(x, gens), x)

    def stepper(self, x: Tensor, gens: Sequence[torch.Generator]) -> Step:
        """PGD's step, rounded."""
        step = super().stepper(x, gens)
        return lambda v, grad, gain: self.rounded(step(v, grad, gain), x)


class MIFGSM(StrongPGD):
    """Momentum iterative FGSM (Dong et al. 2018), made to transfer: steps along the sign of accumulated gradients.

    Each gradient is divided by its mean magnitude and added to `decay` times what was gathered before. From the clean
    image in steps of pace * eps / steps; the last iterate is returned, as what fits this model best transfers worst.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        eps: float = 8 / 255,
        steps: int = 10,
        draws: int = 1,
        pace: float = 1.0,
        decay: float = 1.0,
        objective: Objective | None = None,
    ) -> None:
        if decay < 0:
            raise InputError(f"decay must be >= 0; got {decay}")
        super().__init__(model, eps=eps, steps=steps, restarts=1, draws=draws, pace=pace, objective=objective)
        self.decay = decay
        self.random_start = self.keep_best = False

    def stepper(self, x: Tensor, gens: Sequence[torch.Generator]) -> Step:
        """PGD's step along the momentum."""
        step, momentum = super().stepper(x, gens), torch.zeros_like(x)

        def along(v: Tensor, grad: Tensor, gain: Tensor) -> Tensor:
            nonlocal momentum
            size = grad.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-20)  # where a gradient is zero it stays so
            momentum = self.decay * momentum + grad / size
            return step(v, momentum, gain)

        return along


class Placed(NamedTuple):
    """An image shrunk to `height` x `width` LR pixels whose corner lies at row `top`, column `left` of a black one."""

    height: int
    width: int
    top: int
    left: int


class DIMIFGSM(MIFGSM):
    """MI-FGSM with diverse inputs (Xie et al. 2019), made to transfer: steps ask about shrunk and shifted images.

    With `probability` LR is shrunk bilinearly to between `shrink` and 1 of its sides and lies at random on black. As SR
    must stay comparable with the truth, its part of the answer is cut out and enlarged again. No record is made of such
    answers.
    """

    shows_itself = False

    def __init__(
        self,
        model: nn.Module,
        *,
        eps: float = 8 / 255,
        steps: int = 10,
        draws: int = 1,
        pace: float = 1.0,
        decay: float = 1.0,
        shrink: float = 0.9,
        probability: float = 0.5,
        objective: Objective | None = None,
    ) -> None:
        if not (0 < shrink < 1 and 0 <= probability <= 1):
            raise InputError(f"need 0 < shrink < 1 and probability in [0, 1]; got {shrink}, {probability}")
        super().__init__(model, eps=eps, steps=steps, draws=draws, pace=pace, decay=decay, objective=objective)
        self.shrink = shrink
        self.probability = probability

    def place(self, height: int, width: int, gen: torch.Generator) -> Placed | None:
        """Where an image of height x width LR pixels goes for one look; None: it stays as it is."""

        def between(low: int, high: int) -> int:
            return int(torch.randint(low, max(high, low + 1), (), generator=gen))

        if float(torch.rand((), generator=gen)) >= self.probability:
            return None
        side = min(height, width)
        small = between(int(side * self.shrink), side) / side
        h, w = (max(1, round(size * small)) for size in (height, width))
        return Placed(h, w, between(0, height - h), between(0, width - w))

    def answer(self, image: Tensor, ids: Sequence[str], noise: str, gradient: bool) -> Tensor:
        """For a step, the model's answer to the image in another place, brought back to its own."""
        if not gradient:
            return super().answer(image, ids, noise, gradient)
        height, width = image.shape[-2:]
        places = [self.place(height, width, gen) for gen in generators(0, ids, f"{noise}-place")]
        shown = torch.cat([_put(x[None], place) for x, place in zip(image, places, strict=True)])
        sr = super().answer(shown, ids, noise, gradient)
        return torch.cat([_brought_back(y[None], width, place) for y, place in zip(sr, places, strict=True)])


def _put(x: Tensor, place: Placed | None) -> Tensor:
    """The image `x` (1, 3, h, w) in its place."""
    if place is None:
        return x
    h, w, top, left = place
    small = F.interpolate(x, size=(h, w), mode="bilinear", align_corners=False)
    return F.pad(small, (left, x.shape[-1] - w - left, top, x.shape[-2] - h - top))


def _brought_back(sr: Tensor, width: int, place: Placed | None) -> Tensor:
    """What `sr` (1, 3, sh, sw) shows of an image in that place of LR `width` pixels wide, at the size of the whole."""
    if place is None:
        return sr
    scale = sr.shape[-1] // width
    rows, columns = (
        slice(scale * start, scale * (start + size))
        for start, size in ((place.top, place.height), (place.left, place.width))
    )
    return F.interpolate(sr[..., rows, columns], size=sr.shape[-2:], mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Part:
    """What of an image is attacked, the columns to the left, and what is scored, those to the right of a margin.

    `attacked`: the share of LR's columns that may change. `margin`: LR columns in between that count for nothing; 2
    are as far as bicubic interpolation sees. Networks see further, some of them everything: what is scored moves only
    as far as their receptive field carries the change. Raises InputError for a share outside of (0, 1) and a negative
    margin.
    """

    attacked: float
    margin: int

    def __post_init__(self) -> None:
        if not (0 < self.attacked < 1 and self.margin >= 0):
            raise InputError(f"need 0 < attacked < 1 and margin >= 0; got {self.attacked}, {self.margin}")

    def only(self, changed: Tensor, x: Tensor) -> Tensor:
        """`changed` (N, 3, h, w) where it may change, `x` elsewhere."""
        columns = torch.arange(x.shape[-1], device=x.device) < self._end(x.shape[-1])
        return torch.where(columns, changed, x)

    def scored(self, image: Tensor, width: int) -> Tensor:
        """The part of `image` (..., sh, sw) that is scored, where LR is `width` pixels wide.

        Raises InputError where there is none.
        """
        first = self._end(width) + self.margin
        if first >= width:
            raise InputError(f"LR {width} pixels wide leaves nothing to score: take a smaller attacked or margin")
        return image[..., image.shape[-1] // width * first :]

    def _end(self, width: int) -> int:
        return round(self.attacked * width)


def beside(x: Tensor, gens: Sequence[torch.Generator], *, attacked: float = 0.5, margin: int = 4) -> Tensor:
    """Clean LR, scored on the part that `partial` is scored on: its baseline."""
    return x


class PartialPGD(StrongPGD):
    """PGD on the left part of LR against the right part of SR: what is scored was never touched.

    The objective is asked about the scored part alone. `attacked` and `margin` as in `Part`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        eps: float = 8 / 255,
        steps: int = 50,
        restarts: int = 2,
        draws: int = 1,
        pace: float = 2.5,
        attacked: float = 0.5,
        margin: int = 4,
        objective: Objective | None = None,
    ) -> None:
        super().__init__(model, eps=eps, steps=steps, restarts=restarts, draws=draws, pace=pace, objective=objective)
        self.part = Part(attacked, margin)

    def start(self, x: Tensor, gens: Sequence[torch.Generator]) -> Tensor:
        """A random start on the left part."""
        return self.part.only(super().start(x, gens), x)

    def stepper(self, x: Tensor, gens: Sequence[torch.Generator]) -> Step:
        """PGD's step on the left part."""
        step = super().stepper(x, gens)
        return lambda v, grad, gain: self.part.only(step(v, grad, gain), x)

    def answer(self, image: Tensor, ids: Sequence[str], noise: str, gradient: bool) -> Tensor:
        """The scored part of SR."""
        return self.part.scored(super().answer(image, ids, noise, gradient), image.shape[-1])

    def _bind(self, x: Tensor, hr: Tensor, ids: Sequence[str], seed: int) -> BoundObjective:
        return super()._bind(x, self.part.scored(hr, x.shape[-1]), ids, seed)


class Universal(StrongPGD):
    """One perturbation for all images, fitted on others (Moosavi-Dezfooli et al. 2017; for SR Choi et al. 2019).

    PGD from zero along the gradient of the mean loss over the images that it is fitted on. `fit` finds the
    perturbation, `apply` adds it to images.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        eps: float = 8 / 255,
        steps: int = 50,
        draws: int = 1,
        pace: float = 2.5,
        objective: Objective | None = None,
    ) -> None:
        super().__init__(model, eps=eps, steps=steps, restarts=1, draws=draws, pace=pace, objective=objective)
        self.random_start = False

    def stepper(self, x: Tensor, gens: Sequence[torch.Generator]) -> _SharedStep:
        """One step for all images of `x`."""
        return _SharedStep(self, x)

    def fit(
        self,
        lr: Tensor,
        hr: Tensor,
        ids: Sequence[str] | None = None,
        seed: int = 0,
        *,
        bound: BoundObjective | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """The perturbation (3, h, w) that raises the mean loss over the images `lr`; arguments as for `run`."""
        check_pair(lr, hr)
        names = [str(i) for i in range(len(lr))] if ids is None else list(ids)
        parts = list(row_slices(len(lr), lr.device, batch_size))
        with eval_mode(self.model), full_float32():
            whole = bound or self._bind(lr, hr, names, seed)
            v, step = self.start(lr, []), self.stepper(lr, [])
            for t in range(self.steps):
                name = f"{seed}-universal-{t}"
                looks = [self._look(v[r], lr[r], whole[r], names[r], name, gradient=True) for r in parts]
                gain, grad = (torch.cat([look[i] for look in looks]) for i in (2, 3))
                v = step(v, grad, gain)
        return step.shift

    def apply(
        self,
        shift: Tensor,
        lr: Tensor,
        hr: Tensor,
        ids: Sequence[str] | None = None,
        seed: int = 0,
        *,
        bound: BoundObjective | None = None,
        batch_size: int | None = None,
    ) -> AttackResult:
        """`lr` (N, 3, h, w) with the perturbation `shift`, (3, h, w) or one for each image, and what it brings.

        Other arguments as for `run`. Raises InputError where `shift` is not of the images' size.
        """
        check_pair(lr, hr)
        if shift.shape not in (lr.shape, lr.shape[1:]):
            raise InputError(f"a perturbation of {tuple(shift.shape)} does not fit images of {tuple(lr.shape[1:])}")
        names = [str(i) for i in range(len(lr))] if ids is None else list(ids)
        moved, losses = (lr + shift).clamp(0, 1), []
        with eval_mode(self.model), full_float32():
            for r in row_slices(len(lr), lr.device, batch_size):
                whole = bound[r] if bound else self._bind(lr[r], hr[r], names[r], seed)
                looks = [
                    self._look(x[r], lr[r], whole, names[r], f"{seed}-universal-{name}", gradient=False)[1]
                    for name, x in {"clean": lr, "attacked": moved}.items()
                ]
                losses.append(torch.stack(looks))
        return AttackResult(moved, *torch.cat(losses, dim=1))

    def run(self, *args: object, **kwargs: object) -> NoReturn:
        """Raises InputError: a universal perturbation comes from other images."""
        raise InputError("a universal perturbation is fitted on other images: apply(fit(others, their_hr), lr, hr)")


class _SharedStep:
    """The perturbation `shift` (3, h, w) goes along the mean of the images' gradients."""

    def __init__(self, attack: Universal, x: Tensor) -> None:
        self.attack, self.x, self.shift = attack, x, torch.zeros_like(x[0])

    def __call__(self, v: Tensor, grad: Tensor, gain: Tensor) -> Tensor:
        ball = self.attack.ball
        moved = self.shift[None] + self.attack.alpha * ball.steepest(grad.mean(0, keepdim=True))
        self.shift = ball.project(moved)[0]
        return (self.x + self.shift).clamp(0, 1)
