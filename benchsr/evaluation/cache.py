"""Attacked LR images, kept by what determines them, so that none is computed twice."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import fsspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from benchsr.base.errors import BenchsrError, InputError
from benchsr.base.files import write_atomic

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AttackReport:
    """What an attack says of one image: the objective before and after, and its wall-clock seconds."""

    seconds: float
    loss_clean: float | None = None
    loss_attacked: float | None = None
    health: str = ""


class Entry(NamedTuple):
    """One file of the cache: its address, size in bytes, and age in seconds."""

    path: str
    bytes: int
    age: float


class AttackCache:
    """Safetensors files named by key (64 hex characters), each with its report and a hash of key, report and pixels.

    `folder` is a folder, or an address that fsspec knows ("s3://bucket/attacked", "memory://"). An entry appears whole
    or not at all, and equal keys mean equal content, so any number of runs may share one cache without locks. Raises
    InputError for an address of a kind that fsspec does not know.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = str(folder)
        try:
            self._files, self.root_card = fsspec.url_to_fs(self.folder)
        except (ValueError, ImportError) as error:
            raise InputError(f"cache {self.folder}: {error}; give a folder, or an address that fsspec knows") from None
        self._writable = True

    def path(self, key: str) -> str:
        """Where the entry of `key` is kept."""
        return f"{self.root_card}/{key[:2]}/{key}.safetensors"

    def get(self, key: str) -> tuple[Tensor, AttackReport] | None:
        """The attacked LR (3, h, w) float32 and its report; None where there is none, or a damaged one (logged)."""
        try:
            return self._read(self.path(key))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            log.warning("cache entry %s is damaged (%s); it is computed again", self.path(key), error)
            return None

    def put(self, key: str, lr: Tensor, report: AttackReport) -> None:
        """Keep `lr` (3, h, w). Where that fails (disk full, read-only) say so once, and go on: no result needs it."""
        if not self._writable:
            return
        lr = lr.detach().to("cpu", torch.float32).contiguous()
        about = json.dumps(asdict(report))
        content = save({"lr": lr}, metadata={"sha256": _hash(key, about, lr), "report": about})
        path = self.path(key)
        try:
            if "file" in self._files.protocol:
                write_atomic(path, content)
            else:  # object stores show an object once it is whole
                self._files.pipe_file(path, content)
        except (OSError, BenchsrError) as error:
            self._writable = False
            log.warning("the cache %s cannot be written (%s); going on without keeping attacks", self.folder, error)

    def entries(self) -> Iterator[Entry]:
        """All files of the cache, unfinished ones of interrupted runs included."""
        now = time.time()
        for path, about in self._files.find(self.root_card, detail=True).items():
            written = about.get("mtime") or about.get("created") or about.get("LastModified") or now
            age = now - (written if isinstance(written, float) else written.timestamp())
            yield Entry(path, about["size"] or 0, age)

    def damaged(self) -> dict[str, str]:
        """Every file that is not a whole entry under its own name, and what is wrong with it."""
        found = {}
        for entry in self.entries():
            try:
                self._read(entry.path)
            except FileNotFoundError:  # taken away meanwhile
                continue
            except (OSError, ValueError) as error:
                found[entry.path] = str(error)
        return found

    def prune(self, days: float | None = None) -> list[Entry]:
        """Delete damaged files and, if `days` is given, entries written longer ago; returns what was deleted.

        Files younger than an hour that are no entries yet are left alone: another run may be writing them. Raises
        InputError where files cannot be deleted.
        """
        damaged, gone = self.damaged(), []
        for entry in self.entries():
            unfinished = entry.path.endswith(".tmp") and entry.age < 3600
            if (entry.path in damaged and not unfinished) or (days is not None and entry.age > days * 86400):
                try:
                    self._files.rm_file(entry.path)
                except OSError as error:
                    raise InputError(f"{entry.path}: cannot be deleted: {error.strerror or error}") from None
                gone.append(entry)
        return gone

    def _read(self, path: str) -> tuple[Tensor, AttackReport]:
        """One entry. Raises ValueError saying what is wrong with it, or OSError."""
        content = self._files.cat_file(path)
        try:
            header = content[8 : 8 + int.from_bytes(content[:8], "little")]
            meta = json.loads(header)["__metadata__"]
            lr, about = load(content)["lr"], meta["report"]
            report = AttackReport(**json.loads(about))
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"not an entry of this cache: {type(error).__name__}: {error}") from None
        if meta.get("sha256") != _hash(Path(path).stem, about, lr):
            raise ValueError("its content does not match its hash")
        return lr, report


def _hash(key: str, about: str, lr: Tensor) -> str:
    """SHA-256 of all that an entry says: whichever of its bytes is changed, it no longer matches."""
    said = f"{key}\n{about}\n{lr.dtype} {tuple(lr.shape)}\n"
    return hashlib.sha256(said.encode() + lr.view(torch.uint8).numpy().tobytes()).hexdigest()
