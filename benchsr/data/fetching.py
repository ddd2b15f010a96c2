"""Data sets brought into the cache, from the net or out of a folder: every file checked, none there before it is whole.

What has neither hash nor size in its card (NTIRE, AIM) is pinned at its first fetch.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from benchsr.base.downloads import extract_zip, fetch_file, url_file
from benchsr.base.errors import BenchsrError, InputError, IntegrityError, UnavailableError
from benchsr.base.files import locked, require_sha256, sha256_file, shown, write_atomic
from benchsr.data.cards import MAX_ARCHIVE_BYTES, Archive, Archives, DataCard, FilesByManifest, Listed, load_data_card
from benchsr.data.datasets import find_sources

MAX_UNPACKED_BYTES, MAX_UNPACKED_FILES = 4 << 30, 1000


def fetch(name: str | Path, origin: str | Path | None = None) -> Path:
    """Bring a data set (id, or path of a card) into the cache, and return its folder; what is there already is kept.

    From the net, or out of the folder `origin`, which is searched with all below it: for files of the right hash,
    whatever they are called, or for archives by their name. Raises UnavailableError (no network, dead address, files
    missing in `origin`), IntegrityError (size or hash not as expected: names file, expected and found), InputError
    (images missing, no such folder, nothing to fetch), UnknownIdError and CardError.
    """
    card = load_data_card(name)
    if origin is not None and not Path(origin).is_dir():
        raise InputError(f"--from {origin}: no such folder")
    if card.source.kind in _FETCHERS:
        try:
            _FETCHERS[card.source.kind](card, None if origin is None else Path(origin))
        except OSError as error:
            raise InputError(f"{error.filename or card.folder}: cannot be read or written: {error.strerror}") from None
    elif origin is not None:
        raise InputError(f"--from {origin}: the images of {card.id} are not fetched; they are here already")
    sources = find_sources(card, card.scale)
    return card.folder if card.source.kind != "embedded" else next(iter(sources.values())).hr.parent


def state(card: DataCard) -> tuple[bool, str]:
    """Whether a data set is on this machine, and in words where it would come from. Hashes and fetches nothing."""
    sizes: list[int | None] = []  # of what is to be fetched
    if isinstance(card.source, FilesByManifest):
        paths = {card.folder / listed.name: listed.bytes for listed in card.manifest}
        sizes += [size for path, size in paths.items() if not path.is_file() or path.stat().st_size != size]
    elif isinstance(card.source, Archives):
        sizes += [archive.bytes for archive in card.source.archives if not (card.folder / archive.part).is_dir()]
    else:
        try:
            find_sources(card, card.scale)
        except BenchsrError as error:
            return False, f"missing: {error}"
    if not sizes:
        return True, "here"
    known = [size for size in sizes if size is not None]
    amount = f", {sum(known) / 1e6:.1f} MB" if len(known) == len(sizes) else ""
    return False, f"to fetch{amount}"


def _fetch_listed(card: DataCard, origin: Path | None) -> None:
    """The files of a manifest that are not here yet, or not what they should be."""
    assert isinstance(card.source, FilesByManifest)

    def wanted() -> list[Listed]:
        return [listed for listed in card.manifest if not _is(card.folder / listed.name, listed)]

    if not wanted():  # a cache that holds all may be read-only
        return
    with locked(card.folder):
        missing = wanted()
        found = {} if origin is None else _search(missing, origin)
        with tqdm(missing, desc=card.id, unit="file", leave=False, disable=None) as bar:
            for listed in bar:
                target = card.folder / listed.name
                if origin is not None:
                    content = found[listed.name].read_bytes()
                    if hashlib.sha256(content).hexdigest() != listed.sha256:
                        raise IntegrityError(f"{found[listed.name]} has just changed; try again")
                    write_atomic(target, content)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                url = card.source.url.replace("{path}", listed.path)
                try:
                    fetch_file(url, target, sha256=listed.sha256, max_bytes=listed.bytes)
                except UnavailableError as error:
                    raise UnavailableError(f"{error}, or run `{card.fetch_command} --from DIR` with a copy") from None


def _is(path: Path, listed: Listed) -> bool:
    return path.is_file() and path.stat().st_size == listed.bytes and sha256_file(path) == listed.sha256


def _search(wanted: Iterable[Listed], origin: Path) -> dict[str, Path]:
    """For each name the file below `origin` with the listed bytes, or an error that names those that are wrong."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(path for path in origin.rglob("*") if path.is_file()):
        by_size[path.stat().st_size].append(path)
        by_name[path.name].append(path)
    found: dict[str, Path] = {}
    missing: list[str] = []
    wrong: list[str] = []
    for listed in wanted:
        equal = next((path for path in by_size[listed.bytes] if sha256_file(path) == listed.sha256), None)
        if equal is not None:
            found[listed.name] = equal
        elif by_name[listed.name]:
            other = by_name[listed.name][0]
            wrong.append(
                f"{other}: {other.stat().st_size} bytes, sha256 {sha256_file(other)}; expected {listed.bytes} bytes, "
                f"sha256 {listed.sha256}"
            )
        else:
            missing.append(listed.name)
    if wrong:
        raise IntegrityError(f"{wrong[0]} ({len(wrong)} files are not what they should be; nothing was taken over)")
    if missing:
        raise UnavailableError(
            f"{origin} lacks {len(missing)} files, by name and by content: {', '.join(missing[:3])}"
            f"{', ...' if missing[3:] else ''}; nothing was taken over"
        )
    return found


def _fetch_archives(card: DataCard, origin: Path | None) -> None:
    assert isinstance(card.source, Archives)
    for archive in card.source.archives:
        if not (card.folder / archive.part).is_dir():
            with locked(card.folder):
                if not (card.folder / archive.part).is_dir():
                    _unpack(card, archive, origin)


def _unpack(card: DataCard, archive: Archive, origin: Path | None) -> None:
    """Download an archive, or find it below `origin`, and unpack it, whole or not at all."""
    if origin is None:
        path = url_file(
            archive.url,
            sha256=archive.sha256,
            filename=f"{card.folder.name}-{archive.part}.zip",
            max_bytes=archive.bytes or MAX_ARCHIVE_BYTES,
        )
    else:
        name = PurePosixPath(archive.url).name
        found = sorted(path for path in origin.rglob("*") if path.name == name and path.is_file())
        if not found:
            raise UnavailableError(f"{origin} holds no {name}; it was not taken over")
        path = found[0]
        require_sha256(path, archive.sha256 or "", str(path))
    if archive.bytes not in (None, path.stat().st_size):
        raise IntegrityError(
            f"{shown(path)} has {path.stat().st_size} bytes, not {archive.bytes}; delete it and try again"
        )
    unpacking = card.folder / f".{archive.part}.part"
    shutil.rmtree(unpacking, ignore_errors=True)
    extract_zip(path, unpacking, MAX_UNPACKED_BYTES, MAX_UNPACKED_FILES)
    unpacking.replace(card.folder / archive.part)


_FETCHERS: dict[str, Callable[[DataCard, Path | None], None]] = {
    "manifest": _fetch_listed,
    "archives": _fetch_archives,
}
