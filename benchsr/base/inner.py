"""Whether a model takes gradients of its own to answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

INNER = "inner-gradient"
"""The flag of a model that does."""

_asked: list[list[str]] = []
"""Where it is noted, the innermost block last."""


def note_inner_gradient() -> None:
    """Say that the model that is asked now took a gradient, if anybody wants to know: it may be in another process."""
    if _asked:
        _asked[-1][:] = [INNER]


@contextmanager
def inner_gradients() -> Iterator[list[str]]:
    """The flag of a model that is asked inside and takes a gradient or a step of an optimiser to answer, else nothing.

    RobustBench flags such models too (Croce et al. 2021): attacks seldom see through them. It costs nothing.
    """
    found: list[str] = []
    _asked.append(found)
    run_backward, thread = torch.autograd.graph._engine_run_backward, threading.get_ident()

    def noted(*_: Any) -> None:
        if threading.get_ident() == thread:
            found[:] = [INNER]

    def noted_backward(*args: Any, **settings: Any) -> Any:
        noted()
        return run_backward(*args, **settings)

    # The engine: whoever imported torch.autograd.grad by name goes through it too.
    hook = register_optimizer_step_pre_hook(noted)
    try:
        with patch.object(torch.autograd, "_engine_run_backward", noted_backward):
            yield found
    finally:
        _asked.pop()
        hook.remove()
