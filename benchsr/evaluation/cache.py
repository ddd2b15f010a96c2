"""Attacked LR images, kept by what determines them, so that none is computed twice."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import fsspec
import torch
from fsspec.exceptions import FSTimeoutError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from benchsr.base.errors import InputError
from benchsr.base.files import write_atomic

log = logging.getLogger(__name__)

_FOLDER = re.compile("[0-9a-f]{2}")

_ENTRY = re.compile(r"([0-9a-f]{2})/\1[0-9a-f]{62}\.safetensors")

_HALF = re.compile(r"([0-9a-f]{2})/\.\1[0-9a-f]{62}\.safetensors\.\w{8}\.tmp")
"""Names that `AttackCache.put` gives, relative to the cache: of entries, and of those that are being written."""

What = Literal["read", "written"]

ONCE = "once"
"""Attribute of a log record: of those that bear the same, a run says one, whichever worker it comes from."""

PAUSE_SECONDS = 60
"""How long a store that fails is left alone: it may be away for seconds or days, and each try can take many seconds."""

ANSWER_SECONDS = 60
"""How long a store may take over one entry. Clients' own limits, times their retries, come to many minutes."""


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
    or not at all, and equal keys mean equal content, so any number of runs may share one cache without locks. Where it
    fails or forbids, it says so once and is left alone for PAUSE_SECONDS: no result needs it. Raises InputError for an
    address of a kind that fsspec does not know.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = str(folder)
        try:
            self._open()
        except (ValueError, ImportError) as error:
            raise InputError(f"cache {self.folder}: {error}; give a folder, or an address that fsspec knows") from None
        self._paused: dict[What, float] = {}
        self._told: set[bool] = set()
        self._renewed = -math.inf

    def path(self, key: str) -> str:
        """Where the entry of `key` is kept."""
        return f"{self.root_card}/{key[:2]}/{key}.safetensors"

    def get(self, key: str) -> tuple[Tensor, AttackReport] | None:
        """The attacked LR (3, h, w) float32 and its report; None where there is none, or one of no use (logged)."""
        path, found = self.path(key), None
        if self._pausing("read"):
            return None
        try:
            found = self._read(path)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except ValueError as error:
            log.warning("cache entry %s is damaged (%s); it is computed again", path, error)
        except Exception as error:  # each store has errors of its own
            self._fail("read", error)
            return None
        self._paused.pop("read", None)
        return found

    def put(self, key: str, lr: Tensor, report: AttackReport) -> None:
        """Keep `lr` (3, h, w), unless that fails (disk full, read-only, no network)."""
        if self._pausing("written"):
            return
        lr = lr.detach().to("cpu", torch.float32).contiguous()
        about = json.dumps(asdict(report))
        content = save({"lr": lr}, metadata={"sha256": _hash(key, about, lr), "report": about})
        path = self.path(key)
        try:
            if "file" in self._files.protocol:
                write_atomic(path, content)
            else:  # object stores show an object once it is whole
                self._files.pipe_file(path, content, **self._patience)
        except Exception as error:  # each store has errors of its own
            self._fail("written", error)
        else:
            self._paused.pop("written", None)

    def entries(self) -> Iterator[Entry]:
        """All entries. Only files that bear an entry's name, in its place, are looked at: others are not ours."""
        return (entry for entry in self._ours() if _ENTRY.fullmatch(self._name(entry.path)))

    def damaged(self) -> dict[str, str]:
        """Every entry that is not whole under its own name, and what is wrong with it.

        Raises InputError where one cannot be read.
        """
        found = {}
        for entry in self.entries():
            try:
                self._read(entry.path)
            except FileNotFoundError:  # taken away meanwhile
                continue
            except ValueError as error:
                found[entry.path] = str(error)
            except Exception as error:
                raise InputError(f"{entry.path}: cannot be read: {_said(error)}") from None
        return found

    def prune(self, days: float | None = None) -> list[Entry]:
        """Delete damaged entries, what interrupted runs left half written and, if `days` is given, older entries.

        Returns what was deleted. Half-written files younger than an hour are left alone: another run may be writing
        them; and so is all that this cache has not made. Raises InputError where the folder holds other things and
        no entry, and where files cannot be read or deleted.
        """
        self._require_cache()
        damaged, gone = self.damaged(), []
        for entry in list(self._ours()):
            half = _HALF.fullmatch(self._name(entry.path)) is not None
            old = entry.age > 3600 if half else days is not None and entry.age > days * 86400
            if old or entry.path in damaged:
                try:
                    self._files.rm_file(entry.path)
                except FileNotFoundError:  # somebody else took it away meanwhile
                    continue
                except Exception as error:
                    raise InputError(f"{entry.path}: cannot be deleted: {_said(error)}") from None
                gone.append(entry)
        return gone

    def _open(self) -> None:
        """Take a client of our own: it reads credentials anew, and remembers no listings."""
        self._files, self.root_card = fsspec.url_to_fs(self.folder, skip_instance_cache=True)

    @property
    def _patience(self) -> dict[str, float]:
        return {"timeout": ANSWER_SECONDS} if self._files.async_impl else {}

    def _pausing(self, what: What) -> bool:
        return time.monotonic() < self._paused.get(what, 0)

    def _fail(self, what: What, error: Exception) -> None:
        forbidden, now = isinstance(error, PermissionError), time.monotonic()
        if forbidden not in self._told:
            self._told.add(forbidden)
            log.warning(
                "the cache %s cannot be %s (%s); going on without it: attacks are computed, and it is tried again "
                "every %d s",
                *(self.folder, what, _said(error), PAUSE_SECONDS),
                extra={ONCE: f"{self.folder} {forbidden}"},
            )
        if not (forbidden and what == "read"):  # which may be of this entry alone
            self._paused[what] = now + PAUSE_SECONDS
        if now > self._renewed + PAUSE_SECONDS:  # a client takes seconds to make
            self._renewed = now
            self._open()  # its credentials may have been renewed

    def _ours(self) -> Iterator[Entry]:
        """Files that bear the name of an entry or of one half written, in its place."""
        now = time.time()
        for folder in self._listed(self.root_card):
            if folder["type"] != "directory" or not _FOLDER.fullmatch(self._name(folder["name"])):
                continue
            for about in self._listed(folder["name"]):
                name = self._name(about["name"])
                if about["type"] == "file" and (_ENTRY.fullmatch(name) or _HALF.fullmatch(name)):
                    written = about.get("mtime") or about.get("created") or about.get("LastModified") or now
                    age = now - (written if isinstance(written, float) else written.timestamp())
                    yield Entry(about["name"], about["size"] or 0, age)

    def _listed(self, folder: str) -> list[dict[str, Any]]:
        try:
            return list(self._files.ls(folder, detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except Exception as error:
            raise InputError(f"cache {folder}: cannot be listed: {_said(error)}") from None

    def _name(self, path: str) -> str:
        """A path of this cache's file system relative to the cache, with forward slashes."""
        return path.removeprefix(self.root_card).strip("/")

    def _require_cache(self) -> None:
        others = [
            name for about in self._listed(self.root_card) if not _FOLDER.fullmatch(name := self._name(about["name"]))
        ]
        if others and not any(self.entries()):
            raise InputError(
                f"{self.folder} is no cache of attacked images: it holds {others[0]!r} and no entry; "
                "nothing was deleted"
            )

    def _read(self, path: str) -> tuple[Tensor, AttackReport]:
        """One entry. Raises ValueError saying what is wrong with it, or OSError."""
        # from its start, since s3fs first asks for the size of a whole file, and is not told why that is refused
        content = self._files.cat_file(path, start=0, **self._patience)
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


def _said(error: Exception) -> str:
    if isinstance(error, FSTimeoutError):  # which says nothing
        return f"no answer within {ANSWER_SECONDS} s"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _hash(key: str, about: str, lr: Tensor) -> str:
    """SHA-256 of all that an entry says: whichever of its bytes is changed, it no longer matches."""
    said = f"{key}\n{about}\n{lr.dtype} {tuple(lr.shape)}\n"
    return hashlib.sha256(said.encode() + lr.view(torch.uint8).numpy().tobytes()).hexdigest()
