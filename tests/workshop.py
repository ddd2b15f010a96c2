"""A folder with all that the commands work on, small, and what each of them is to leave there.

For trials that disturb commands: kill them, fill their disk, change files under them.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
import shutil
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forks import Command, Forks, forks
from PIL import Image
from toys import photos, toy_card

from benchsr.evaluation.cache import AttackCache, AttackReport

HALF = re.compile(r"\..+\.\w{8}\.tmp")
"""Names of files that are being written, or were when their writer was killed."""

NO_RESULT = ("timings.csv", ".lock", ".json", ".pt")
"""Ends of names of files that hold times, settings or nothing."""

STRANGERS = ("notes.txt", ".results.csv.mine.tmp", "ab.safetensors", "zz/results.csv", "ab/notes.txt")
"""Files of somebody else's, as they may lie in any folder."""

PROTOCOL = """id = "toy"
title = "Toy"
dataset = "pictures"
crop = 12
threats = ["clean", "noise", "fgsm", "pgd"]
[metrics]
names = ["psnr", "ssim"]
[objective]
l1_weight = 1.0
perceptual_weight = 0.0
[settings.pgd]
steps = 2
"""

RECIPE = """
[recipe]
held_out = 0
network = {filters = 8, blocks = 1}
""" + "".join(
    f'[[recipe.stages]]\nname = "{name}"\nsteps = 12\nbatch = 2\ncrop = 8\nlr = {lr}\n'
    for name, lr in {"first": 1e-3, "second": 1e-4}.items()
)

DATA = """id = "mine"
title = "Two pairs"
licence = "none"
paper = "none"
scales = [4]
count = 2
lr.kind = "given"
[source]
kind = "archives"
"""

RUN = "run --protocol toy.toml --models toy-a.toml,toy-b.toml --threats all --cache cache --device cpu --out"


@dataclass(frozen=True)
class Work:
    """A command, and the folders in which it leaves what it makes."""

    command: str
    makes: tuple[str, ...]
    prepare: Callable[[Path], None] = lambda folder: None
    again: Callable[[Path], str] = lambda folder: ""
    """What the command needs beside it to go on."""


def _bare_board(folder: Path) -> None:
    (folder / "bare" / "toy").mkdir(parents=True)
    for name in ("results.csv", "protocol.json", "environments.json", "timings.csv"):
        shutil.copy(folder / "board" / "toy" / name, folder / "bare" / "toy")


def _spoilt_cache(folder: Path) -> None:
    """Forty entries, ten of them damaged, and ten that were left half written long ago."""
    cache = AttackCache(folder / "pruned")
    for i in range(40):
        key = hashlib.sha256(str(i).encode()).hexdigest()
        cache.put(key, torch.full((3, 4, 4), i / 40), AttackReport(0.0))
        path = Path(cache.path(key))
        if i % 4 == 0:
            path.write_bytes(path.read_bytes()[:-1])
        if i % 4 == 1:
            half = path.with_name(f".{path.name}.abcd1234.tmp")
            half.write_bytes(b"half")
            os.utime(half, (1e9, 1e9))


def _resumed(folder: Path) -> str:
    return " --resume" if (folder / "trained" / "checkpoint.pt").exists() else ""


WORKS: Mapping[str, Work] = {
    "run": Work(f"{RUN} out --workers 1", ("out", "cache")),
    "run, 2 workers": Work(f"{RUN} out --workers 2", ("out", "cache")),
    "report": Work("report --protocol toy.toml --out bare", ("bare",), _bare_board),
    "site": Work("site --leaderboards board --out page", ("page",)),
    "train": Work(
        "train toy-t.toml --data pictures --device cpu --out trained --workers 1", ("trained",), again=_resumed
    ),
    "fetch": Work("fetch mine.toml", ("user/datasets", "user/downloads")),
    "cache prune": Work("cache prune --cache pruned", ("pruned",), _spoilt_cache),
}


@dataclass
class Workshop:
    """The folder. `expected`: what each work leaves where nothing disturbs it; `seconds`: of CPU time then."""

    folder: Path
    forks: Forks
    expected: dict[str, dict[str, str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    foreign: dict[Path, tuple[str, int, int]] = field(default_factory=dict)

    def fresh(self, name: str) -> None:
        """As if the work had never been done; somebody else's files lie in its places."""
        if name not in self.expected:
            self._clear(name)
            command = self.start(name)
            assert command.wait() == 0, command.error
            self.expected[name], self.seconds[name] = self.made(name), command.cpu_seconds
        self._clear(name)

    def _clear(self, name: str) -> None:
        work = WORKS[name]
        for made in work.makes:
            shutil.rmtree(self.folder / made, ignore_errors=True)
        work.prepare(self.folder)
        places = [self.folder / place for made in work.makes for place in (made, f"{made}/toy")]
        self.foreign = {}
        for path in (place / stranger for place in places for stranger in STRANGERS):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("somebody else's")
            self.foreign[path] = _state(path)

    def start(self, name: str, prepare: str = "", **settings: Any) -> Command:
        """Begin the work, or go on with it; `prepare`: see `Forks.start`."""
        work = WORKS[name]
        prepare = prepare or ("hooks:checkpoint_often" if name == "train" else "")
        return self.forks.start(work.command + work.again(self.folder), self.folder, prepare, **settings)

    def wait_a_while(self, command: Command, name: str, dice: random.Random) -> None:
        """Until a random moment of the work, most often; in CPU time, whatever else this machine does."""
        until = dice.uniform(0, self.seconds[name])
        if name == "fetch":  # which waits for the server
            time.sleep(dice.uniform(0, 2 * SENDING_SECONDS))
        while not command.ended and command.spent < until:
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.02))

    def made(self, name: str) -> dict[str, str]:
        """What the work has made: each file with its hash, each line of a results.csv by itself."""
        found: dict[str, str] = {}
        seen: Counter[str] = Counter()
        for path in (path for made in WORKS[name].makes for path in sorted((self.folder / made).rglob("*"))):
            if not path.is_file() or path in self.foreign or HALF.fullmatch(path.name) or path.name.endswith(NO_RESULT):
                continue
            where = path.relative_to(self.folder).as_posix()
            if path.name != "results.csv":
                found[where] = hashlib.sha256(_content(path)).hexdigest()
                continue
            for line in path.read_text().splitlines():
                row = f"{where}: {','.join(line.split(',')[:5])}"
                seen[row] += 1
                found[row if seen[row] == 1 else f"{row} ({seen[row]})"] = line
        return found

    def compare(self, name: str, may_lack: str = "//") -> Counter[str]:
        """What of a work that is done is not as it was to be; files of the folder `may_lack` need not be there."""
        expected, found = self.expected[name], self.made(name)
        return Counter(
            lost=sum(not place.startswith(f"{may_lack}/") for place in expected.keys() - found.keys()),
            doubled=len(found.keys() - expected.keys()),
            changed=sum(found[place] != content for place, content in expected.items() if place in found),
            foreign_files_touched=self.touched(),
        )

    def touched(self) -> int:
        """How many of somebody else's files are not as they were."""
        return sum(not path.exists() or _state(path) != state for path, state in self.foreign.items())


def _content(path: Path) -> bytes:
    """Of safetensors without their header, which holds the seconds that an attack took."""
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little") if path.suffix == ".safetensors" else 0
    return content[header:]


def _state(path: Path) -> tuple[str, int, int]:
    about = path.stat()
    return hashlib.sha256(path.read_bytes()).hexdigest(), about.st_mtime_ns, about.st_ino


SENDING_SECONDS = 0.5
"""How long the server of `mine.toml` takes for its larger archive."""


@contextmanager
def workshop(folder: Path, said: Path) -> Iterator[Workshop]:
    """A workshop in an empty `folder`; what the commands print goes to files of the folder `said`."""
    for i, name in enumerate(("toy-a", "toy-b", "toy-t")):
        toy_card(folder, name, seed=i, more=RECIPE if name == "toy-t" else "")
    photos(folder / "pictures")
    (folder / "toy.toml").write_text(PROTOCOL)
    archives = {f"/{part}.zip": _archive(part) for part in ("HR", "LR")}
    with _serving(archives) as address:
        lines = [DATA]
        for path, content in archives.items():
            lines += ["[[source.archives]]", f'part = "{path[1:3]}"', f'url = "{address}{path}"']
            lines += [f"bytes = {len(content)}", f'sha256 = "{hashlib.sha256(content).hexdigest()[:16]}"']
        (folder / "mine.toml").write_text("\n".join(lines))
        warm = [f"{RUN} board --workers 1", "site --leaderboards board --out page", "fetch mine.toml"]
        warm += ["train toy-t.toml --data pictures --device cpu --out warm --steps 1", "cache prune --cache cache"]
        with forks(folder, said, warm, {"BENCHSR_CACHE": str(folder / "user")}) as started:
            yield Workshop(folder, started)


def _archive(part: str) -> bytes:
    """Two pictures of noise, laid out like DIV2K's."""
    buffer, dice = io.BytesIO(), np.random.default_rng(0)
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("0801", "0802"):
            side, where = (
                (160, f"DIV2K_valid_HR/{name}.png") if part == "HR" else (40, f"DIV2K_valid_LR/X4/{name}x4.png")
            )
            png = io.BytesIO()
            Image.fromarray(dice.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(png, "PNG")
            archive.writestr(where, png.getvalue())
    return buffer.getvalue()


@contextmanager
def _serving(files: Mapping[str, bytes]) -> Iterator[str]:
    """A web server that takes its time, and goes on where it is asked to; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content, wanted = files[self.path], self.headers.get("Range", "")
            start = int(wanted.removeprefix("bytes=").removesuffix("-") or 0)
            self.send_response(206 if wanted else 200)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            for i in range(start, len(content), 8192):
                try:
                    self.wfile.write(content[i : i + 8192])
                except OSError:  # who asked is gone
                    return
                time.sleep(SENDING_SECONDS * 8192 / max(map(len, files.values())))

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(timeout=5)
