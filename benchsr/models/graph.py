"""Networks whose files hold their graph: steps in the order of computation, joined by the names of what they give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn


class Step(NamedTuple):
    """A module, and the names of what it takes and gives; one that takes nothing is given the network's input."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    module: nn.Module


class Graph(nn.Module):
    """The network of `steps`: (N, 3, h, w) in, what its last step gives out. Not clamped, differentiable.

    Raises ValueError for a step that takes what no step before it gives.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__()
        last: dict[str, int] = {}
        for at, step in enumerate(steps):
            if missing := [name for name in step.inputs if name not in last]:
                raise ValueError(f"{step.outputs[0]!r} takes {missing[0]!r}, which no layer before it gives")
            last |= dict.fromkeys((*step.inputs, *step.outputs), at)
        self.steps = nn.ModuleList(step.module for step in steps)
        self._wires = [
            (step.inputs, step.outputs, [name for name, end in last.items() if end == at])
            for at, step in enumerate(steps)
        ]

    def forward(self, lr: Tensor) -> Tensor:
        """Compute the steps, keeping what each gives only until the last one that takes it."""
        kept: dict[str, Tensor] = {}
        given = lr
        for (inputs, outputs, spent), module in zip(self._wires, self.steps, strict=True):
            given = module(*(kept[name] for name in inputs)) if inputs else lr
            kept |= dict.fromkeys(outputs, given)
            for name in spent:
                del kept[name]
        return given


class Function(nn.Module):
    """A step without numbers of its own."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *x: Tensor) -> Tensor:
        """Apply it."""
        return self.function(*x)
