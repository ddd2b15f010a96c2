"""Attacked LR images, kept by what determines them, so that none is computed twice."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from benchsr.downloads import write_atomic

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AttackReport:
    """What an attack says of one image: the objective before and after, and its wall-clock seconds."""

    seconds: float
    loss_clean: float | None = None
    loss_attacked: float | None = None
    health: str = ""


class AttackCache:
    """A folder of safetensors files named by key (64 hex characters), each with its report and content hash."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """Where the entry of `key` is kept."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> tuple[Tensor, AttackReport] | None:
        """The attacked LR (3, h, w) float32 and its report; None where there is none or it is damaged."""
        path = self.path(key)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as entry:
                meta, lr = entry.metadata(), entry.get_tensor("lr")
            if meta["sha256"] != _hash(lr):
                raise ValueError("content does not match its hash")
            return lr, AttackReport(**json.loads(meta["report"]))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            log.warning("cache entry %s is damaged (%s); it is computed again", path, error)
            return None

    def put(self, key: str, lr: Tensor, report: AttackReport) -> None:
        """Keep `lr` (3, h, w). Raises InputError where the folder cannot be written."""
        lr = lr.detach().to("cpu", torch.float32).contiguous()
        meta = {"sha256": _hash(lr), "report": json.dumps(asdict(report))}
        write_atomic(self.path(key), save({"lr": lr}, metadata=meta))


def _hash(lr: Tensor) -> str:
    return hashlib.sha256(lr.numpy().tobytes()).hexdigest()
