"""A stranger's images, data cards, manifests and archives: an error that names the file, or they are used."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tomlkit
from hostile import COUNTS, EXTREMES, HUGE, Survey, binaries, tables, texts
from hypothesis import strategies as st
from PIL import Image
from toys import photos

import benchsr.commands.run  # noqa: F401  # whose imports start programs, outside of what is watched
from benchsr.base.errors import BenchsrError
from benchsr.data import fetching
from benchsr.data.cards import load_data_card
from benchsr.data.datasets import load_dataset
from benchsr.data.images import read_image

Record = Callable[[str, object], None]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "cache"))


def picture(kind: str) -> bytes:
    """A good image file."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, rows: bytes = b"", more: bytes = b"", depth: int = 8) -> bytes:
    """A PNG that claims a size, whatever its compressed rows hold."""
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


BOMBS = [
    *(png(100_000, 100_000), png(2**31 - 1, 2**31 - 1), png(0, 0), png(8192, 8192), png(2**26, 1), png(1, 2**26)),
    png(8192, 8192, zlib.compress(bytes(64 << 20), 9)),
    png(64, 64, zlib.compress(bytes(256 << 20), 9)),
    png(64, 64, zlib.compress(bytes(64 * 193)), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(256 << 20), 9))),
    png(64, 64, zlib.compress(bytes(64 * 193)), chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(256 << 20), 9))),
    png(64, 64, zlib.compress(bytes(64 * 193)), chunk(b"eXIf", b"MM\0*" + b"\xff" * 5000)),
    png(64, 64, zlib.compress(bytes(64 * 193)), depth=255),
]
"""Small files that claim, or unpack to, much."""


def use_image(path: Path) -> None:
    image = read_image(path)
    assert image.shape[0] == 3
    assert 0 <= float(image.min()) <= float(image.max()) <= 1


@pytest.mark.parametrize("count", COUNTS)
def test_malformed_images(count: int, tmp_path: Path, record_property: Record) -> None:
    path = tmp_path / "image.png"
    good = [picture(kind) for kind in ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000")]
    survey = Survey(tmp_path, path, use_image, f"upscale {path} --model bicubic --out {tmp_path}/out.png")
    survey.run(binaries(*good), count + len(BOMBS), [*BOMBS, *EXTREMES[:3]]).record(record_property)
    assert survey.refused


@pytest.mark.parametrize("target", ["/dev/zero", "pipe", "."])
def test_images_that_are_no_files(target: str, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    if target == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(target)
    assert Survey(tmp_path, path, use_image).judge(None)


DATA_CARD = """id = "set"
title = "A set"
licence = "none"
paper = "none"
count = 2
scales = [2, 4]
caveats = ["Small."]
[lr]
kind = "made"
boundary = "edge"
[source]
kind = "folder"
path = "photos"
"""


def use_data_card(path: Path) -> None:
    card = load_data_card(path)
    fetching.state(card)
    with suppress(BenchsrError):  # about its files, which it names
        load_dataset(str(path))[0]


@pytest.mark.parametrize("count", COUNTS)
def test_malformed_data_cards(count: int, tmp_path: Path, record_property: Record) -> None:
    photos(tmp_path / "photos", 2)
    path = tmp_path / "set.toml"
    extremes = [
        *EXTREMES,
        *HUGE[:1],
        *(DATA_CARD.replace("photos", f).encode() for f in ("/proc", "\\u0000", "x" * 400)),
    ]
    contents = tables(tomlkit.parse(DATA_CARD).unwrap(), tomlkit.dumps) | texts(DATA_CARD.encode())
    survey = Survey(tmp_path, path, use_data_card, f"run --models bicubic --dataset {path} --out {tmp_path}/out")
    survey.run(contents, count, extremes).record(record_property)
    assert survey.refused


@pytest.mark.parametrize("count", COUNTS)
def test_malformed_manifests(count: int, tmp_path: Path, record_property: Record) -> None:
    source = 'kind = "manifest"\nmanifest = "set.csv"\nurl = "http://127.0.0.1:1/{path}"'
    card = tmp_path / "set.toml"
    card.write_text(DATA_CARD.replace('kind = "folder"\npath = "photos"', source))
    (tmp_path / "from").mkdir()
    good = "path,bytes,sha256\n" + "".join(f"HR/{i}_HR.png,{i + 9},{i:064x}\n" for i in range(3))
    survey = Survey(
        *(tmp_path, tmp_path / "set.csv", lambda _: fetching.fetch(card, tmp_path / "from")),
        f"fetch {card} --from {tmp_path}/from",
        names=(f"{tmp_path}/from lacks",),
    )
    survey.run(texts(good.encode()), count, EXTREMES).record(record_property)
    assert survey.refused


def archive(*entries: tuple[str | zipfile.ZipInfo, bytes], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as opened:
        for name, content in entries:
            opened.writestr(name, content)
    return buffer.getvalue()


def link(target: str) -> tuple[zipfile.ZipInfo, bytes]:
    about = zipfile.ZipInfo("link.png")
    about.external_attr = 0o120777 << 16
    return about, target.encode()


def lying(size: int) -> bytes:
    """An archive whose entry says that it unpacks to `size` bytes."""
    whole = archive(("0.png", bytes(1 << 20)))
    return whole.replace(struct.pack("<I", 1 << 20), struct.pack("<I", size))


ESCAPES = ["../escaped", "/tmp/escaped", "a/../../escaped", "..\\escaped", "C:\\escaped", "x" * 300]
ARCHIVES = [
    *(archive((name, b"x")) for name in ESCAPES),
    *(archive(link(target)) for target in ("/etc/passwd", "..", "0.png")),
    archive(*((f"{i}.png", b"") for i in range(1001))),
    archive(("0.png", picture("PNG")), ("0.png/1.png", picture("PNG"))),
    *(lying(size) for size in (0, 1, 2**31, 2**32 - 1)),
]
"""Archives that lead out of the folder, or unpack to more than they say or may."""


@pytest.mark.parametrize("count", COUNTS)
def test_malformed_archives(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    monkeypatch.setattr(fetching, "MAX_UNPACKED_BYTES", 1 << 28)
    own, origin, card = tmp_path / "own", tmp_path / "own" / "from", tmp_path / "own" / "set.toml"
    origin.mkdir(parents=True)
    source = 'kind = "archives"\narchives = [{ part = "HR", url = "https://example.org/hr.zip" }]'
    card.write_text(DATA_CARD.replace('kind = "folder"\npath = "photos"', source))
    monkeypatch.setenv("BENCHSR_CACHE", str(own / "cache"))
    folder = load_data_card(card).folder
    good = [
        archive(("HR/0.png", picture("PNG")), ("HR/1.png", picture("PNG")), how=how)
        for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    ]
    bombs = [archive(*((f"{i}.png", bytes(1 << 26)) for i in range(5)))]

    def clear() -> None:
        for path in sorted(folder.rglob("*"), reverse=True) if folder.is_dir() else []:
            path.rmdir() if path.is_dir() else path.unlink()

    survey = Survey(
        *(own, origin / "hr.zip", lambda _: fetching.fetch(card, origin)),
        f"fetch {card} --from {origin}",
        names=(str(folder),),  # where what was unpacked is not what the card says
        prepare=clear,
    )
    extremes = [*ARCHIVES, *bombs, *EXTREMES[:3]]
    survey.run(st.one_of(binaries(*good)), count + len(ARCHIVES), extremes).record(record_property)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own"]
