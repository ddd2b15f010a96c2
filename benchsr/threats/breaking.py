"""How little it takes: the smallest perturbation of each image that costs a given number of dB."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchsr.base.errors import InputError
from benchsr.base.pairs import check_pair
from benchsr.base.rng import Randomised
from benchsr.metrics.quality import psnr
from benchsr.threats.attacks import PGD


def smallest_eps(
    make: Callable[[float], PGD],
    model: nn.Module,
    lr: Tensor,
    hr: Tensor,
    largest: float,
    *,
    drop: float = 3.0,
    rounds: int = 8,
    border: int = 0,
    evaluations: int = 1,
    ids: Sequence[str] | None = None,
    seed: int = 0,
) -> Tensor:
    """For each image of `lr` (N, 3, h, w) the norm of the smallest change found that costs `model` `drop` dB: (N,).

    `make(eps)` gives the attack of radius eps, whose ball says in which norm. By bisection between 0 and `largest`,
    `rounds` attacks after the first. Each figure is the norm of a perturbation that was found and does cost as much, so
    it bounds the true smallest from above; inf where not even `largest` does. A model that draws noise is scored by its
    mean PSNR over `evaluations` with noise that no attack has seen. Raises InputError for tensors that cannot be used,
    and for a drop or radius that is not positive.
    """
    check_pair(lr, hr)
    if not (drop > 0 and largest > 0 and rounds >= 0 and evaluations >= 1):
        raise InputError(f"need drop, largest > 0, rounds >= 0, evaluations >= 1; got {drop}, {largest}, {rounds}")
    ids = [str(i) for i in range(len(lr))] if ids is None else list(ids)

    def score(x: Tensor, y: Tensor, name: str) -> float:
        with torch.no_grad():
            if isinstance(model, Randomised):
                answers = torch.cat([model(x, [name], f"evaluation-{k}") for k in range(evaluations)])
            else:
                answers = model(x)
        return float(psnr(answers.clamp(0, 1), y.expand_as(answers), border).mean())

    def one(x: Tensor, y: Tensor, name: str) -> float:
        goal, low, best, eps = score(x, y, name) - drop, 0.0, float("inf"), largest
        for _ in range(rounds + 1):
            attack = make(eps)
            attacked = attack(x, y, [name], seed)
            if score(attacked, y, name) <= goal:
                best = min(best, float(attack.ball.norm(attacked - x)))
            elif best == float("inf"):
                break
            else:
                low = eps
            eps = (low + min(best, largest)) / 2
        return best

    return torch.tensor([one(x[None], y[None], name) for x, y, name in zip(lr, hr, ids, strict=True)])
