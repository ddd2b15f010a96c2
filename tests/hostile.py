"""Malformed files of any kind, and what whoever reads one keeps to: an error that names it, or it is used as it is.

Nothing is run, nothing is asked of the network, nothing is written outside of the test's own folder, and neither time
nor memory grows beyond SECONDS and BYTES.
"""

from __future__ import annotations

import copy
import io
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchsr.base.errors import BenchsrError
from benchsr.base.files import shown
from benchsr.cli import main

SECONDS, BYTES = 5.0, 500_000_000
"""Processor time, and growth of the process's own memory, that one malformed file may cost."""

COUNTS = [15, pytest.param(120, marks=[pytest.mark.slow, pytest.mark.reliability])]
"""Files of each kind: in every run, and in the nightly trial."""

TOLD = 8
"""Refused files of each kind that the command line is shown too."""

_RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.spawn")
_CALLS = ("socket.connect", "socket.getaddrinfo", "urllib.Request")
_WRITES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")


@dataclass
class Watch:
    """What happens while a file is read: programs, connections, and files written outside of `own`."""

    own: Path
    seen: list[str] = field(default_factory=list)

    def __call__(self, event: str, about: tuple[Any, ...]) -> None:
        if event in (*_RUNS, *_CALLS):
            self.seen.append(f"{event} {about[:2]}")
        elif event in _WRITES or (event == "open" and self._writing(*about[1:3])):
            for path in about[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
                if isinstance(path, str | bytes | os.PathLike) and not self._ours(os.fsdecode(path)):
                    self.seen.append(f"{event} {os.fsdecode(path)}")

    @staticmethod
    def _writing(mode: object, flags: object) -> bool:
        if isinstance(mode, str):
            return any(c in mode for c in "wax+")
        return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))

    def _ours(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real.startswith((str(self.own), "/dev/null")) or "__pycache__" in real


_watch: list[Watch] = []
sys.addaudithook(lambda event, about: _watch[-1](event, about) if _watch else None)


def _too_slow(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s of processor time")


@contextmanager
def bounded(own: Path) -> Iterator[None]:
    """Fail where what is done inside costs too much, or touches what is none of its business."""
    usual = resource.getrlimit(resource.RLIMIT_DATA)
    handler = signal.signal(signal.SIGPROF, _too_slow)
    watch = Watch(own.resolve())
    _watch.append(watch)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    resource.setrlimit(resource.RLIMIT_DATA, (psutil.Process().memory_info().data + BYTES, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, usual)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        _watch.pop()
    if watch.seen:
        raise AssertionError("; ".join(watch.seen[:5]))


def complaint(use: Callable[[], object]) -> str | None:
    """What a user is told, if anything; any other exception is the test's failure."""
    try:
        use()
    except BenchsrError as error:
        return str(error)
    return None


@dataclass
class Survey:
    """Malformed contents of one kind of file, put at `path` below the folder `own`, and what became of them.

    `use` reads the file and makes what use there is of it; `command` is a command line that does, too. An error names
    the file, or one of `names` where it is about others that the file is compared with.
    """

    own: Path
    path: Path
    use: Callable[[Path], object]
    command: str = ""
    names: Sequence[str] = ()
    prepare: Callable[[], object] = lambda: None
    inputs: int = 0
    refused: int = 0

    def run(self, contents: st.SearchStrategy[bytes], count: int, extremes: Sequence[bytes] = ()) -> Survey:
        """Try the extremes and then contents, `count` files in all, always the same."""
        for content in extremes:
            self.judge(content)

        @settings(
            max_examples=max(1, count - len(extremes)),
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(content=contents)
        def each(content: bytes) -> None:
            self.judge(content)

        each()
        return self

    def judge(self, content: bytes | None) -> str | None:
        """What is said of one content; None: the file is there already."""
        self.prepare()
        if content is not None:
            self.path.write_bytes(content)
        self.inputs += 1
        with bounded(self.own):
            said = complaint(lambda: self.use(self.path))
        if said is not None:
            self.refused += 1
            assert any(name in said for name in (str(self.path), shown(self.path), *self.names)), said
            assert len(said) < 10_000
            if self.command and self.refused <= TOLD:
                self.tell()
        return said

    def tell(self) -> None:
        """The command line refuses the file with one message that names it: no traceback."""
        spoken, before = io.StringIO(), sys.argv
        sys.argv = ["benchsr", *self.command.split()]
        try:
            with (
                bounded(self.own),
                redirect_stderr(spoken),
                redirect_stdout(spoken),
                pytest.raises(SystemExit) as ended,
            ):
                main()
        finally:
            sys.argv = before
        said = "".join(spoken.getvalue().split())
        assert ended.value.code == 2, said
        assert any("".join(name.split()) in said for name in (str(self.path), shown(self.path), *self.names)), said
        assert "Traceback" not in said

    def record(self, record_property: Callable[[str, object], None]) -> None:
        """Hand the counts on; `bounded` and `complaint` have failed the test otherwise."""
        record_property("trial", f"Malformed versions of {self.path.name}")
        counts = {"inputs": self.inputs, "refused": self.refused, "tracebacks": 0, "foreign_files_touched": 0}
        for name, count in counts.items():
            record_property(name, count)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes of a good file, with a piece cut out and something else in its place."""
    start = draw(st.integers(0, len(whole)))
    end = draw(st.integers(start, min(len(whole), start + 200)))
    return whole[:start] + draw(st.binary(max_size=40)) + whole[end:]


@st.composite
def flipped(draw: st.DrawFn, whole: bytes) -> bytes:
    """Some bytes of a good file are others; its beginning, where headers are, is hit as often as the rest."""
    content = bytearray(whole)
    places = st.integers(0, min(64, len(whole) - 1)) | st.integers(0, len(whole) - 1)
    for place in draw(st.lists(places, min_size=1, max_size=8)):
        content[place] ^= draw(st.integers(1, 255))
    return bytes(content)


@st.composite
def relined(draw: st.DrawFn, whole: bytes) -> bytes:
    """Some lines of a good file come twice, not at all, elsewhere, or are of another alphabet."""
    lines = whole.splitlines(keepends=True)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(lines) - 1)) if lines else 0
        line = lines[place] if lines else b""
        lines[place : place + 1] = draw(
            st.sampled_from([[], [line, line], [line.upper()], [line.decode(errors="replace").encode("utf-16")]])
        )
        if draw(st.booleans()):
            lines.insert(draw(st.integers(0, len(lines))), line)
    return b"".join(lines)


NUMBERS = [
    "nan",
    "inf",
    "-inf",
    "NaN",
    "Infinity",
    "-1",
    "0",
    "1e999",
    "-0.0",
    "9" * 400,
    "1_0",
    "0x10",
    "1e-320",
    "true",
]
WORDS = [
    *("", "../../../etc/passwd", "/etc/passwd", "C:\\\\x", "a\\nb", "\\u0000", "\\ud800", "[red]x[/]", "%s{}", "<b>"),
    *("é́‮x‬", "👩‍👩‍👧", "x" * 5000, "=1+1", ".", "..", "~", "file:///etc/passwd", "null"),
]


@st.composite
def retyped(draw: st.DrawFn, whole: bytes) -> bytes:
    """Some numbers and words of a good text are others, of no sensible size, type or alphabet."""
    text = whole.decode()
    tokens = list(re.finditer(r'"[^"\n]*"|(?<![\w.])-?\d[\d.e+-]*', text))
    for token in sorted(draw(st.lists(st.sampled_from(tokens), min_size=1, max_size=3)), key=lambda t: -t.start()):
        number, word = draw(st.sampled_from(NUMBERS)), f'"{draw(st.sampled_from(WORDS))}"'
        text = (
            text[: token.start()]
            + draw(st.sampled_from([number, word, "[]", "{}", f"[{number}]"]))
            + text[token.end() :]
        )
    return text.encode()


def texts(whole: bytes) -> st.SearchStrategy[bytes]:
    """Malformed versions of a good text file."""
    return damaged(whole) | flipped(whole) | relined(whole) | retyped(whole) | st.binary(max_size=300)


def binaries(*wholes: bytes) -> st.SearchStrategy[bytes]:
    """Malformed versions of good files that are no text."""
    each = st.sampled_from(wholes)
    cut = each.flatmap(lambda whole: st.integers(0, len(whole)).map(lambda end: whole[:end]))
    return each.flatmap(damaged) | each.flatmap(flipped) | cut | st.binary(max_size=300)


values: st.SearchStrategy[Any] = st.recursive(
    # Integers of any length; 2**70 is one that no field can hold.
    st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=50) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def tables(draw: st.DrawFn, good: Mapping[str, Any], dump: Callable[[Any], str], other: Any = values) -> bytes:
    """A good table, some of whose parts, at any depth, are gone, of another name, or anything at all."""
    table = copy.deepcopy(dict(good))
    for _ in range(draw(st.integers(1, 3))):
        place: Any = table
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw(st.sampled_from(keys)) if keys else None
            if key is None or not isinstance(place[key], dict | list) or draw(st.booleans()):
                break
            place = place[key]
        if key is not None and draw(st.booleans()):
            place[key] = draw(other)
        elif key is not None and draw(st.booleans()):
            del place[key]
        elif isinstance(place, dict):
            place[draw(st.text(max_size=10))] = draw(other)
    return dump(table).encode(errors="surrogatepass")


def jsons(good: Mapping[str, Any]) -> st.SearchStrategy[bytes]:
    """Malformed versions of a good JSON file."""
    return tables(good, json.dumps, values | st.none()) | texts(json.dumps(good, indent=1).encode())


NESTED = 30_000
EXTREMES = [
    *(b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"null", b"[]", b"{}", b'"', b"# ", b"1e999", b"NaN"),
    *(
        b"[" * NESTED,
        b"a=" + b"[" * NESTED,
        b'{"a":' * NESTED,
        b"a." * NESTED + b"a=1",
        b"9" * NESTED,
        b"#" * (1 << 20),
    ),
]
"""Contents that no text file of ours has."""
HUGE = [b" " * (32 << 20), b"[" + b"{}," * (10 << 20) + b"{}]", b"a,b\n" * (4 << 20)]
"""Files of tens of megabytes."""
