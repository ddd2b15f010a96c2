"""Attacks for who knows the defence: many steps, restarts, APGD's schedule, and a search that needs no gradient.

What they know of the smoothing lies in the model they are given: the base network (transfer), single noisy draws
averaged over `draws` (expectation over transformation), or the median itself, differentiated. Each asks the model with
new noise at every step, so that none can fit one fixed draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt

import torch
from torch import Tensor, nn

from benchsr.base.errors import InputError
from benchsr.base.rng import uniform_like
from benchsr.metrics.objective import Objective
from benchsr.threats.attacks import PGD, Step
from benchsr.threats.balls import Norm


class StrongPGD(PGD):
    """PGD with restarts, and steps of alpha = pace * eps / steps (Madry et al. 2018: pace 2.5).

    `draws`: answers of a randomised model averaged at each step. Raises InputError unless steps, restarts, draws >= 1.
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
        norm: Norm = "linf",
    ) -> None:
        if restarts < 1 or draws < 1:
            raise InputError(f"restarts and draws must be at least 1; got {restarts}, {draws}")
        alpha = pace * eps / max(steps, 1)
        super().__init__(model, eps=eps, alpha=alpha, steps=steps, objective=objective, norm=norm)
        self.restarts = restarts
        self.draws = draws

    def inside(self, v: Tensor, x: Tensor) -> Tensor:
        """The nearest image to `v` (N, 3, h, w) in the ball around `x` and in [0, 1]."""
        return (x + self.ball.project(v - x)).clamp(0, 1)


class APGD(StrongPGD):
    """Auto-PGD (Croce & Hein 2020, algorithm 1): momentum, and a step of 2 eps that is halved where progress stalls.

    At the checkpoints of `checkpoints`, an image whose gain rose in fewer than 3/4 of the steps since the last one, or
    whose step and best gain have not changed since then, goes on from its best iterate with half the step.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        eps: float = 8 / 255,
        steps: int = 50,
        restarts: int = 2,
        draws: int = 1,
        objective: Objective | None = None,
        norm: Norm = "linf",
    ) -> None:
        super().__init__(model, eps=eps, steps=steps, restarts=restarts, draws=draws, objective=objective, norm=norm)

    @staticmethod
    def checkpoints(steps: int) -> list[int]:
        """The steps at which progress is judged: ceil(p_j steps), p_j+1 = p_j + max(p_j - p_j-1 - 0.03, 0.06)."""
        before, p, found = 0.0, 0.22, []
        while p <= 1:
            found.append(ceil(round(p * steps, 6)))  # 0.57 * 100 is a little more than 57
            before, p = p, p + max(p - before - 0.03, 0.06)
        return sorted(set(found))

    def stepper(self, x: Tensor, gens: Sequence[torch.Generator]) -> Step:
        """A step rule that remembers its momentum and the best iterate."""
        return _ApgdStep(self, x)


class _ApgdStep:
    """z = inside(v + size steepest(grad)); next iterate = inside(v + 0.75 (z - v) + 0.25 (v - before))."""

    def __init__(self, attack: APGD, x: Tensor) -> None:
        self.attack, self.x = attack, x
        self.checkpoints = attack.checkpoints(attack.steps)
        self.size = torch.full_like(x[:, 0, 0, 0], 2 * attack.ball.eps)
        self.best, self.before, self.best_grad = x, x, x
        self.best_gain = torch.full_like(self.size, -torch.inf)
        self.gain_before = -self.best_gain
        self.t = self.checked = 0
        self.rises = torch.zeros_like(self.size)
        self.best_when_checked, self.halved_when_checked = self.best_gain, self.size >= 0

    def __call__(self, v: Tensor, grad: Tensor, gain: Tensor) -> Tensor:
        better = gain > self.best_gain
        self.best, self.best_grad = _where(better, v, self.best), _where(better, grad, self.best_grad)
        self.best_gain = torch.where(better, gain, self.best_gain)
        self.rises = self.rises + (gain > self.gain_before)
        if self.t in self.checkpoints:
            stuck = ~self.halved_when_checked & (self.best_gain <= self.best_when_checked)
            stalled = stuck | (self.rises < 0.75 * (self.t - self.checked))
            self.size = torch.where(stalled, self.size / 2, self.size)
            v, grad = _where(stalled, self.best, v), _where(stalled, self.best_grad, grad)
            self.best_when_checked, self.halved_when_checked = self.best_gain, stalled
            self.checked, self.rises = self.t, torch.zeros_like(self.rises)
        inside, x = self.attack.inside, self.x
        ahead = inside(v + self.size.view(-1, 1, 1, 1) * self.attack.ball.steepest(grad), x)
        following = inside(v + 0.75 * (ahead - v) + 0.25 * (v - self.before), x) if self.t else ahead
        self.before, self.gain_before, self.t = v, gain, self.t + 1
        return following


class Square(StrongPGD):
    """Square attack (Andriushchenko et al. 2020, L-infinity): random search by squares of +-eps, without gradients.

    It starts from vertical stripes of +-eps; every step paints one square of one sign a channel, and keeps it where the
    gain rose. `share` is the first square's part of the image, halved on the paper's schedule, stretched to `steps`.
    """

    needs_gradient = False

    def __init__(
        self,
        model: nn.Module,
        *,
        eps: float = 8 / 255,
        steps: int = 200,
        restarts: int = 1,
        draws: int = 1,
        share: float = 0.8,
        objective: Objective | None = None,
    ) -> None:
        super().__init__(model, eps=eps, steps=steps, restarts=restarts, draws=draws, objective=objective)
        self.share = share

    def start(self, x: Tensor, gens: Sequence[torch.Generator]) -> Tensor:
        """`x` with each column of each channel moved by eps, up or down."""
        stripes = self.ball.eps * uniform_like(x[:, :, :1], gens).sign()
        return (x + stripes).clamp(0, 1)

    def side(self, t: int, height: int, width: int) -> int:
        """The side of the square of step `t`, in pixels."""
        halvings = sum(t / self.steps > at / 10_000 for at in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))
        return max(1, min(height, width, round(sqrt(self.share / 2**halvings * height * width))))

    def stepper(self, x: Tensor, gens: Sequence[torch.Generator]) -> Step:
        """The best image so far with one more square."""
        best, best_gain, t = x, x.new_full((len(x),), -torch.inf), 0
        height, width = x.shape[-2:]

        def step(v: Tensor, grad: Tensor, gain: Tensor) -> Tensor:
            nonlocal best, best_gain, t
            better = gain > best_gain
            best, best_gain = _where(better, v, best), torch.where(better, gain, best_gain)
            side, t = self.side(t, height, width), t + 1
            candidate = best.clone()
            for image, clean, gen in zip(candidate, x, gens, strict=True):
                top, left = (int(torch.randint(n - side + 1, (), generator=gen)) for n in (height, width))
                square = slice(None), slice(top, top + side), slice(left, left + side)
                sign = torch.randint(2, (3, 1, 1), generator=gen).to(x) * 2 - 1
                image[square] = (clean[square] + self.ball.eps * sign).clamp(0, 1)
            return candidate

        return step


def _where(rows: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """`chosen` for the images where `rows` (N,) holds, `other` for the rest."""
    return torch.where(rows.view(-1, 1, 1, 1), chosen, other)
