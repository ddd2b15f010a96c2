"""Files that are whole or not there: the cache folder, hashes, atomic writes, locks."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from filelock import FileLock

from benchsr.base.errors import InputError, IntegrityError

CHUNK = 1 << 20


def cache_dir() -> Path:
    """The folder of fetched and computed files: `$BENCHSR_CACHE`, else the platform's cache folder of the user."""
    import pooch

    return Path(os.environ.get("BENCHSR_CACHE") or pooch.os_cache("benchsr"))


def shown(path: Path) -> str:
    """A path as messages name it. Some end up in published results, so the user's own folders go by short names."""
    for name, folder in {"$BENCHSR_CACHE": os.environ.get("BENCHSR_CACHE"), "~": str(Path.home())}.items():
        if folder and path.is_relative_to(folder):
            return f"{name}/{path.relative_to(folder).as_posix()}"
    return str(path)


def require_ordinary(path: str | Path) -> None:
    """Raise InputError for a folder, a pipe or a device: reading one might never end."""
    if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113  # Path's raise for names that are too long
        raise InputError(f"{path}: is no ordinary file")


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as 64 lower-case hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_sha256(path: Path, sha256: str, what: str) -> str:
    """The SHA-256 of a file, if it begins with `sha256`; else raise IntegrityError about `what`."""
    found = sha256_file(path)
    if not found.startswith(sha256):
        raise IntegrityError(f"{what}: sha256 is {found}, not {sha256}; delete {shown(path)} and fetch it again")
    return found


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` at once when the block ends well, and vanishes when it does not."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; choose a folder that you may write to (--out, --cache)"
        ) from error
    scratch = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        scratch.chmod(0o666 & ~_umask())  # mkstemp's files are private; ours are ordinary
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Write `content` (text as UTF-8) to `path`: whoever reads it sees the old file or the new one, never a part.

    Folders are made as needed. Raises InputError, naming the file, where the folder cannot be written to or the disk
    is full.
    """
    try:
        with replacing(Path(path)) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:  # the disk is full
        raise InputError(f"cannot write {path}: {error.strerror}; make room, or choose another folder") from error


_HALF = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp")
"""Names that `replacing` gives to what is being written."""


def sweep(folder: Path, names: Container[str]) -> None:
    """Delete what killed writers of the files `names` left half written in `folder` an hour ago or more."""
    for path in folder.glob(".*.tmp"):
        half = _HALF.fullmatch(path.name)
        with suppress(OSError):  # gone meanwhile, or not to be deleted: it does no harm
            if half and half[1] in names and time.time() - path.stat().st_mtime > 3600:
                path.unlink()


def write_changed(path: Path, content: bytes | str) -> None:
    """`write_atomic`, unless the file holds just that."""
    whole = content.encode() if isinstance(content, str) else content
    if not path.is_file() or path.read_bytes() != whole:
        write_atomic(path, whole)


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Keep other processes from changing `target` at the same time, by a lock file beside it."""
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise InputError(
            f"cannot write to {target.parent}: {error.strerror}; choose a folder that you may write to "
            "(BENCHSR_CACHE, --out)"
        ) from error
    try:
        yield
    finally:
        lock.release()


def digest(value: object) -> str:
    """SHA-256 (64 hex characters) of a JSON-able value, independent of the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()
