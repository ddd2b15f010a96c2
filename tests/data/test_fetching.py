"""Fetching data sets from a local server and out of folders, by own cards; what is not as expected is never left."""

from __future__ import annotations

import hashlib
import io
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import grey_levels, random_image
from torch import Tensor

from benchsr.base.downloads import extract_zip
from benchsr.base.errors import BenchsrError, InputError, IntegrityError, UnavailableError, UnknownIdError
from benchsr.base.shrinking import bicubic_downscale
from benchsr.data import fetching
from benchsr.data.cards import load_data_card
from benchsr.data.datasets import load_dataset
from benchsr.data.fetching import fetch, state


@dataclass
class Site:
    """A web server of one process: `files` by path; the next `cuts` answers break off half way."""

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)
    address: str = ""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    new_process(monkeypatch)
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            site.asked.append((self.path, wanted))
            if self.path not in site.files:
                self.send_error(404)
                return
            content = site.files[self.path]
            start = int(wanted.removeprefix("bytes=").removesuffix("-") or 0)
            self.send_response(206 if wanted else 200)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            half = start + (len(content) - start) // 2
            self.wfile.write(content[start : half if site.cuts else None])
            site.cuts = max(0, site.cuts - 1)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    site.address = f"http://127.0.0.1:{server.server_port}"
    yield site
    server.shutdown()
    server.server_close()
    thread.join(timeout=5)


def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget which addresses failed."""
    monkeypatch.setattr("benchsr.base.downloads._failures", {})


IMAGES = {"0801": random_image(40, 48, 1), "0802": random_image(44, 40, 2)}
HEAD = 'title = "Two pairs"\nlicence = "none"\npaper = "none"\nscales = [4]\n'


def png(image: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(grey_levels(image).permute(1, 2, 0).numpy().astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def zipped(files: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, image in files.items():
            archive.writestr(name, png(image))
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- archives ------------------------------------------------------------------------------------------------------


def card_of_archives(site: Site, folder: Path, changes: dict[str, str] | None = None, count: int = 2) -> Path:
    """A card of the site's two archives; `changes` are lines of the HR one."""
    lines = ['id = "small"', HEAD, f'count = {count}\nlr.kind = "given"\n[source]\nkind = "archives"']
    for part in ("HR", "LR"):
        content = site.files[f"/{part}.zip"]
        fields = {"url": f'"{site.address}/{part}.zip"', "bytes": f"{len(content)}"}
        fields |= {"sha256": f'"{sha256(content)[:8]}"'} | (changes or {} if part == "HR" else {})
        lines += ["[[source.archives]]", f'part = "{part}"', *(f"{name} = {value}" for name, value in fields.items())]
    path = folder / "small.toml"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def small(site: Site, tmp_path: Path) -> Path:
    """The card of two pairs on the site, laid out like DIV2K."""
    site.files = {
        "/HR.zip": zipped({f"DIV2K_valid_HR/{name}.png": image for name, image in IMAGES.items()}),
        "/LR.zip": zipped({f"DIV2K_valid_LR/X4/{name}x4.png": bicubic_downscale(im) for name, im in IMAGES.items()}),
    }
    return card_of_archives(site, tmp_path)


def test_fetch_then_load_then_fetch_nothing(site: Site, small: Path) -> None:
    size = sum(map(len, site.files.values()))
    assert state(load_data_card(small)) == (False, f"to fetch, {size / 1e6:.1f} MB")
    folder = fetch(small)
    assert sorted(path.name for path in folder.iterdir()) == ["HR", "LR"]
    dataset = load_dataset(small)
    assert (dataset.id, dataset.ids) == ("small", ["0801", "0802"])
    assert torch.equal(dataset[1].hr, IMAGES["0802"])
    assert torch.equal(dataset[1].lr, bicubic_downscale(dataset[1].hr))
    assert fetch(small) == folder
    assert len(site.asked) == 2
    assert state(load_data_card(small)) == (True, "here")


@pytest.mark.reliability
def test_a_fetch_cut_short_goes_on_where_it_stopped(site: Site, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download cut short by the server: taken up where it broke off, and its hash checked."""
    site.cuts = 1
    with pytest.raises(UnavailableError, match="HR"):
        fetch(small)
    with pytest.raises(UnavailableError, match=r"not here: run `benchsr fetch small\.toml`"):
        load_dataset(small)
    new_process(monkeypatch)
    fetch(small)
    half = len(site.files["/HR.zip"]) // 2
    assert site.asked[1] == ("/HR.zip", f"bytes={half}-")
    assert len(load_dataset(small)) == 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sha256": f'"{"0" * 8}"'}, IntegrityError, "sha256"),
        ({"bytes": f"{10**6}"}, IntegrityError, "not 1000000"),
        ({"bytes": "100"}, IntegrityError, "larger than the 100 bytes"),
        ({"url": '"{}/gone.zip"'}, UnavailableError, r"gone\.zip"),
    ],
)
def test_fetch_refuses_what_is_not_as_expected(
    site: Site, small: Path, change: dict[str, str], error: type[BenchsrError], message: str
) -> None:
    card = card_of_archives(site, small.parent, {name: text.format(site.address) for name, text in change.items()})
    for _ in range(2):  # what was refused is not taken the next time
        with pytest.raises(error, match=message):
            fetch(card)
        with pytest.raises(UnavailableError):
            load_dataset(card)


def test_fetch_says_when_images_are_missing(site: Site, small: Path) -> None:
    with pytest.raises(InputError, match="2 of the 3 images"):
        fetch(card_of_archives(site, small.parent, count=3))


def test_archives_are_taken_over_from_a_folder(site: Site, small: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy" / "below"
    copy.mkdir(parents=True)
    (copy / "HR.zip").write_bytes(site.files["/HR.zip"])
    with pytest.raises(UnavailableError, match=r"copy holds no LR\.zip"):
        fetch(small, tmp_path / "copy")
    (copy / "LR.zip").write_bytes(site.files["/HR.zip"])
    with pytest.raises(IntegrityError, match=rf"LR\.zip: sha256 is {sha256(site.files['/HR.zip'])}"):
        fetch(small, tmp_path / "copy")
    with pytest.raises(UnavailableError):
        load_dataset(small)
    (copy / "LR.zip").write_bytes(site.files["/LR.zip"])
    fetch(small, tmp_path / "copy")
    assert len(load_dataset(small)) == 2
    assert not site.asked


def test_two_fetches_at_once_unpack_each_archive_once(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked: list[str] = []

    def slowly(path: Path, *args: Any) -> None:
        unpacked.append(path.name[-6:])
        time.sleep(0.2)  # the other one gets here too, unless it must wait
        extract_zip(path, *args)

    monkeypatch.setattr(fetching, "extract_zip", slowly)
    with ThreadPoolExecutor(2) as two:
        folders = list(two.map(fetch, [small, small]))
    assert folders[0] == folders[1]
    assert sorted(unpacked) == ["HR.zip", "LR.zip"]


# --- files by manifest ---------------------------------------------------------------------------------------------


@pytest.fixture
def listed(site: Site, tmp_path: Path) -> Path:
    """The card of four files on the site, laid out like Set5; the second image is grey (PNG colour type 0)."""
    grey = Image.fromarray(np.random.default_rng(3).integers(0, 256, (44, 40), dtype=np.uint8))
    small, buffers = grey.resize((10, 11)), [io.BytesIO(), io.BytesIO()]
    for image, buffer in zip((grey, small), buffers, strict=True):
        image.save(buffer, format="PNG")
    files = {"img_1_HR.png": png(IMAGES["0801"]), "img_1_LR.png": png(bicubic_downscale(IMAGES["0801"]))}
    files |= {f"img_2_{part}.png": buffer.getvalue() for part, buffer in zip(("HR", "LR"), buffers, strict=True)}
    site.files = {f"/at/x4/{name}": content for name, content in files.items()}
    rows = [f"x4/{name},{len(content)},{sha256(content)}" for name, content in files.items()]
    (tmp_path / "mine.csv").write_text("\n".join(["path,bytes,sha256", *rows, ""]))
    card = f'id = "mine"\n{HEAD}count = 2\nlr.kind = "given"\n[source]\nkind = "manifest"\nmanifest = "mine.csv"\n'
    (tmp_path / "mine.toml").write_text(f'{card}url = "{site.address}/at/{{path}}"\n')
    return tmp_path / "mine.toml"


def files_at(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def contents(site: Site) -> dict[str, bytes]:
    return {path.rpartition("/")[2]: content for path, content in site.files.items()}


def test_listed_files_are_fetched_once_and_a_damaged_one_again(site: Site, listed: Path) -> None:
    folder = fetch(listed)
    assert files_at(folder) == contents(site)
    assert fetch(listed) == folder
    assert len(site.asked) == 4
    dataset = load_dataset(listed)
    assert dataset.ids == ["img_1", "img_2"]
    assert torch.equal(dataset[0].lr, bicubic_downscale(IMAGES["0801"]))
    grey = dataset[1].hr
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])
    (folder / "img_2_LR.png").write_bytes(site.files["/at/x4/img_1_LR.png"])
    with pytest.raises(IntegrityError, match=r"img_2_LR\.png: sha256 is [0-9a-f]{64}, not [0-9a-f]{64}; run `benchsr"):
        load_dataset(listed)
    fetch(listed)
    assert site.asked[4:] == [("/at/x4/img_2_LR.png", "")]
    assert files_at(folder) == contents(site)


def test_a_listed_file_cut_short_is_taken_up_again(site: Site, listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.cuts = 1
    with pytest.raises(UnavailableError, match=r"img_1_HR.*or run `benchsr fetch mine\.toml --from DIR`"):
        fetch(listed)
    with pytest.raises(UnavailableError, match=r"4 of 4 files missing, img_1_HR\.png first"):
        load_dataset(listed)
    new_process(monkeypatch)
    folder = fetch(listed)
    half = len(site.files["/at/x4/img_1_HR.png"]) // 2
    assert site.asked[1] == ("/at/x4/img_1_HR.png", f"bytes={half}-")
    assert files_at(folder) == contents(site)


@pytest.mark.parametrize(("other", "message"), [(b"\0" * 200, "sha256 is"), (b"\0" * 9999, "larger than the")])
def test_other_bytes_at_the_address_are_not_kept(site: Site, listed: Path, other: bytes, message: str) -> None:
    content = site.files["/at/x4/img_1_LR.png"]
    site.files["/at/x4/img_1_LR.png"] = other[: len(content)] if "sha256" in message else other
    for _ in range(2):
        with pytest.raises(IntegrityError, match=rf"x4/img_1_LR\.png.*{message}"):
            fetch(listed)
        folder = load_data_card(listed).folder
        assert not (folder / "img_1_LR.png").exists()
    site.files["/at/x4/img_1_LR.png"] = content
    assert "img_1_LR.png" in files_at(fetch(listed))


def test_listed_files_are_found_by_content_whatever_their_names(site: Site, listed: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    (copy / "below").mkdir(parents=True)
    for number, (name, content) in enumerate(contents(site).items()):
        (copy / "below" / (name if number else "renamed.bin")).write_bytes(content)
    (copy / "img_1_HR.png").write_bytes(b"another set's image of that name")
    assert files_at(fetch(listed, copy)) == contents(site)
    assert not site.asked


def test_nothing_is_taken_over_from_a_folder_that_lacks_a_file_or_holds_another(
    site: Site, listed: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in contents(site).items():
        (copy / name).write_bytes(content)
    (copy / "img_2_LR.png").write_bytes(b"damaged")
    expected = contents(site)["img_2_LR.png"]
    message = (
        rf"img_2_LR\.png: 7 bytes, sha256 {sha256(b'damaged')}; expected {len(expected)} bytes, "
        rf"sha256 {sha256(expected)} \(1 files"
    )
    with pytest.raises(IntegrityError, match=message):
        fetch(listed, copy)
    (copy / "img_2_LR.png").unlink()
    with pytest.raises(UnavailableError, match=r"lacks 1 files.*: img_2_LR\.png; nothing"):
        fetch(listed, copy)
    assert not load_data_card(listed).folder.exists()


# --- what needs no fetching ----------------------------------------------------------------------------------------


def test_fetching_the_embedded_photographs_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("url_file", "fetch_file"):
        monkeypatch.setattr(fetching, name, lambda *_, **__: pytest.fail("asked the network"))
    assert (fetch("photos") / "chelsea.png").is_file()
    with pytest.raises(InputError, match="here already"):
        fetch("photos", tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        fetch("photos", tmp_path / "absent")
    with pytest.raises(UnknownIdError):
        fetch("fotos")
