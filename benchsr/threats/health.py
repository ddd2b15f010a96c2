"""What speaks against a figure while it is made: an attack's own report, and what a model does to answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from benchsr.threats.attacks import AttackResult, AttackTrace


def attack_flags(result: AttackResult) -> list[str]:
    """For each image of an attack's result its flags, joined by spaces; empty where nothing is suspicious or traced.

    NaN gradients need no flag: they make the next iterate NaN, and that raises ModelError.
    """
    if not isinstance(result, AttackTrace):
        return [""] * len(result.lr)
    gains = result.gains
    steps = gains.shape[1] - 1
    best = gains.cummax(dim=1).values
    tail = best[:, -1] - best[:, -1 - max(1, steps // 10)]
    kept = gains.gather(1, result.best_step[:, None])[:, 0]
    raised: Mapping[str, Tensor] = {
        "zero-gradient": result.zero_gradient > 0.5,
        "still-rising": (tail > 0.05 * (best[:, -1] - gains[:, 0])) & torch.tensor(steps > 1),
        "best-discarded": kept < best[:, -1],
        "no-gain": result.loss_attacked <= result.loss_clean,
    }
    return [" ".join(flag for flag, images in raised.items() if bool(images[i])) for i in range(len(gains))]


@contextmanager
def inner_gradients() -> Iterator[list[str]]:
    """The flag of a model that is asked inside and takes a gradient or a step of an optimiser to answer, else nothing.

    RobustBench flags such models too (Croce et al. 2021): attacks seldom see through them. It costs nothing.
    """
    found: list[str] = []
    run_backward, thread = torch.autograd.graph._engine_run_backward, threading.get_ident()

    def noted(*_: Any) -> None:
        if threading.get_ident() == thread:
            found[:] = ["inner-gradient"]

    def noted_backward(*args: Any, **settings: Any) -> Any:
        noted()
        return run_backward(*args, **settings)

    # The engine: whoever imported torch.autograd.grad by name goes through it too.
    hook = register_optimizer_step_pre_hook(noted)
    try:
        with patch.object(torch.autograd, "_engine_run_backward", noted_backward):
            yield found
    finally:
        hook.remove()
