"""What speaks against a figure while it is made: an attack's own report, and what a model does to answer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

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
