"""The cache of attacked images: nothing damaged is ever used, and a cache that fails costs no result."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from toys import call

from benchsr.base.errors import InputError
from benchsr.evaluation.cache import AttackCache, AttackReport

KEY = "ab" * 32
REPORT = AttackReport(0.5, 0.1, 0.2, "no-gain")
LR = torch.rand((3, 5, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["folder", "memory"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> AttackCache:
    return AttackCache(tmp_path / "cache" if request.param == "folder" else f"memory://{tmp_path}")


def test_what_goes_in_comes_out(cache: AttackCache) -> None:
    assert cache.get(KEY) is None
    cache.put(KEY, LR, REPORT)
    found = cache.get(KEY)
    assert found is not None
    assert torch.equal(found[0], LR)
    assert found[1] == REPORT
    assert [entry.path for entry in cache.entries()] == [cache.path(KEY)]
    assert cache.damaged() == {}


def test_any_changed_byte_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = AttackCache(tmp_path)
    cache.put(KEY, LR, REPORT)
    path = Path(cache.path(KEY))
    whole = path.read_bytes()
    served = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        found = cache.get(KEY)
        if found is not None:  # only what says nothing may differ: the blanks that pad the header
            served += 1
            assert torch.equal(found[0], LR)
            assert found[1] == REPORT
    assert served < 8
    assert path.name in caplog.text


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 8, b"\x02" + bytes(7) + b"{}", b"\x40" + bytes(80)])
def test_files_that_are_no_entries_are_misses(content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = AttackCache(tmp_path)
    path = Path(cache.path(KEY))
    path.parent.mkdir()
    path.write_bytes(content)
    assert cache.get(KEY) is None
    assert path.name in caplog.text
    assert list(cache.damaged()) == [str(path)]


def test_an_entry_under_anothers_name_is_damaged(tmp_path: Path) -> None:
    cache = AttackCache(tmp_path)
    cache.put(KEY, LR, REPORT)
    other = "ab" + "cd" * 31
    Path(cache.path(KEY)).rename(cache.path(other))
    assert cache.get(other) is None


def test_prune_takes_the_damaged_and_the_old(tmp_path: Path) -> None:
    cache = AttackCache(tmp_path)
    keys = [f"{i:02x}" * 32 for i in range(4)]
    for key in keys:
        cache.put(key, LR, REPORT)
    damaged, old, new, _ = (Path(cache.path(key)) for key in keys)
    damaged.write_bytes(b"not an entry")
    long_ago = time.time() - 10 * 86400
    os.utime(old, (long_ago, long_ago))
    abandoned, running = (new.with_name(f".{new.name}.{mark}.tmp") for mark in ("ab_3x9yz", "c0ffee__"))
    abandoned.write_bytes(b"half")
    os.utime(abandoned, (long_ago, long_ago))
    running.write_bytes(b"half")
    assert {entry.path for entry in cache.prune()} == {str(damaged), str(abandoned)}
    assert {entry.path for entry in cache.prune(days=9)} == {str(old)}
    assert new.exists()
    assert {entry.path for entry in cache.prune(days=0)} >= {str(new)}
    assert running.exists()


def test_two_may_prune_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = AttackCache(tmp_path)
    for i in range(2):
        cache.put(f"{i:02x}" * 32, LR, REPORT)
    remove = cache._files.rm_file

    def second(path: str) -> None:
        remove(path)
        remove(path)

    monkeypatch.setattr(cache._files, "rm_file", second)
    assert cache.prune(days=0) == []
    assert list(cache.entries()) == []


FOREIGN = (
    "thesis.txt",
    "ab/notes.txt",
    "ab/results.safetensors",
    f"cd/{KEY}.safetensors",  # in another key's folder
    f"ab/{KEY}.safetensors.bak",
    f"ab/.{KEY}.safetensors.backup.tmp.gz",
    f"{KEY}.safetensors",
    f"ab/deep/{KEY}.safetensors",
    "photos/me.tmp",
)


def lay_out(folder: Path) -> dict[Path, bytes]:
    """Files of someone else, long ago."""
    for name in FOREIGN:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"years of work")
        os.utime(path, (0, 0))
    return {folder / name: b"years of work" for name in FOREIGN}


def test_what_others_keep_in_the_folder_is_neither_listed_nor_counted_nor_deleted(tmp_path: Path) -> None:
    cache = AttackCache(tmp_path)
    cache.put(KEY, LR, REPORT)
    theirs = lay_out(tmp_path)
    assert [entry.path for entry in cache.entries()] == [cache.path(KEY)]
    assert cache.damaged() == {}
    assert cache.prune() == []
    assert [entry.path for entry in cache.prune(days=0)] == [cache.path(KEY)]
    assert {path: path.read_bytes() for path in theirs} == theirs


def test_a_folder_that_is_no_cache_is_not_pruned(tmp_path: Path) -> None:
    theirs = lay_out(tmp_path)
    with pytest.raises(InputError, match=r"is no cache of attacked images: it holds .* nothing was deleted"):
        AttackCache(tmp_path).prune(days=0)
    assert {path: path.read_bytes() for path in theirs} == theirs
    assert AttackCache(tmp_path / "absent").prune() == []


class StoreError(Exception):
    """As botocore's: of no kind that Python knows."""


def test_a_store_that_fails_costs_no_result(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    cache = AttackCache("memory://failing")

    def fail(*_: object, **__: object) -> None:
        raise StoreError("the token has expired")

    for name in ("cat_file", "pipe_file", "ls"):
        monkeypatch.setattr(MemoryFileSystem, name, fail)
    cache.put(KEY, LR, REPORT)
    assert cache.get(KEY) is None
    assert caplog.text.count("the token has expired") == 1
    with pytest.raises(InputError, match="cannot be listed: the token has expired"):
        cache.prune()


def test_an_entry_that_cannot_be_read_just_now_is_not_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = AttackCache("memory://busy")
    cache.put(KEY, LR, REPORT)

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("busy")

    with monkeypatch.context() as patch:
        patch.setattr(cache._files, "cat_file", fail)
        with pytest.raises(InputError, match="cannot be read: busy"):
            cache.prune()
    assert cache.get(KEY) is not None


def test_an_unwritable_cache_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = AttackCache(tmp_path / "file" / "cache")
    cache.put(KEY, LR, REPORT)
    cache.put(KEY, LR, REPORT)
    assert cache.get(KEY) is None
    assert len(caplog.records) == 1
    assert "file/cache" in caplog.text


def test_an_address_of_unknown_kind_is_refused() -> None:
    with pytest.raises(InputError, match="nowhere"):
        AttackCache("nowhere://bucket/attacked")


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    folder = tmp_path / "cache"
    cache = AttackCache(folder)
    cache.put(KEY, LR, REPORT)
    assert call(monkeypatch, f"cache info --cache {folder}") == 0
    assert "1 entries" in capsys.readouterr().out
    assert call(monkeypatch, f"cache verify --cache {folder}") == 0
    Path(cache.path(KEY)).write_bytes(b"cut")
    assert call(monkeypatch, f"cache verify --cache {folder}") == 1
    assert KEY in "".join(capsys.readouterr().out.split())
    assert call(monkeypatch, f"cache prune --cache {folder}") == 0
    assert "1 files deleted" in capsys.readouterr().out
    assert call(monkeypatch, f"cache verify --cache {folder}") == 0
    assert call(monkeypatch, f"cache info --cache {tmp_path / 'absent'}") == 0
    (tmp_path / "thesis.txt").write_text("years of work")
    assert call(monkeypatch, f"cache prune --cache {tmp_path}") == 2
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_store_that_is_away_is_left_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache, asked, now = AttackCache("memory://away"), 0, 0.0
    cache.put(KEY, LR, REPORT)
    monkeypatch.setattr("benchsr.evaluation.cache.time.monotonic", lambda: now)

    def fail(*_: object, **__: object) -> None:
        nonlocal asked
        asked += 1
        raise ConnectionError("no route")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "cat_file", fail)
        for now in (1.0, 2.0, 62.0, 63.0):  # noqa: B007 - read by the clock
            assert cache.get(KEY) is None
    assert asked == 2
    assert caplog.text.count("cannot be read (no route)") == 1
    cache.put("cd" * 32, LR, REPORT)  # it can still be written
    assert cache.get(KEY) is None
    now = 123.0
    assert cache.get(KEY) is not None
    assert cache.get("cd" * 32) is not None


def test_an_entry_that_may_not_be_read_keeps_nobody_from_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = AttackCache("memory://forbidden")
    cache.put(KEY, LR, REPORT)
    read = MemoryFileSystem.cat_file

    def refuse(files: MemoryFileSystem, path: str, **_: object) -> bytes:
        if path != cache.path(KEY):
            raise PermissionError("forbidden")
        content: bytes = read(files, path)
        return content

    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
    for _ in range(2):
        assert cache.get("cd" * 32) is None
        assert cache.get(KEY) is not None
    assert caplog.text.count("cannot be read (forbidden)") == 1
