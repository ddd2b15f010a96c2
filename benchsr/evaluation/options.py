"""What a run may be told beside models, threats and protocol."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchsr.base.errors import InputError
from benchsr.evaluation.executors import Executor, load_executor


@dataclass(frozen=True)
class RunOptions:
    """The options of `benchsr.run`, which documents them; checked when made. Raises InputError for unusable ones."""

    scale: int | None = None
    defence: str | None = None
    dataset: str | None = None
    limit: int | None = None
    out: str | Path = "leaderboards"
    cache: str | Path | None = None
    device: str = "auto"
    precision: str | None = None
    batch_size: int = 8
    memory_budget: float | None = None
    seed: int | None = None
    perceptual_net: str | None = None
    executor: str | Executor = "local"
    workers: int | str | None = None
    cell_timeout: float | None = None
    ray_address: str | None = None
    console: Console | None = None
    trust_code: bool = False
    transfer: bool = False

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit must be at least 1; got {self.limit}")
        if self.batch_size < 1:
            raise InputError(f"--batch-size must be at least 1; got {self.batch_size}")
        if self.memory_budget is not None and not self.memory_budget > 0:
            raise InputError(f"--memory-budget must be positive; got {self.memory_budget}")

    def load_executor(self) -> Executor:
        """What computes the cells."""
        if not isinstance(self.executor, str):
            return self.executor
        return load_executor(self.executor, self.device, self.workers, self.cell_timeout, self.ray_address)
