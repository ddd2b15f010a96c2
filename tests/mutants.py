"""Break the package on purpose, one line at a time, and see whether the tests notice.

    python tests/mutants.py [WORD]

tries the mutants of mutants.toml (those whose file or texts hold WORD) and prints a line of JSON for each. A mutant is
a text of one file of the package and what stands there instead. The file itself stays as it is: it is changed while it
is imported, in a forked copy of this process that has everything else imported already, and runs only the tests named
beside the file, until the first that fails.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import signal
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest

ROOT = Path(__file__).parents[1]
TABLE = Path(__file__).with_name("mutants.toml")
CPU_SECONDS = 120
"""What a mutant may compute before it counts as noticed: one that never ends would be."""

SECONDS = 1800
"""What it may take before there is no verdict: it waits for something, or this machine has no time for it."""

OTHERS = (
    *("cv2", "hypothesis", "lpips", "matplotlib.pyplot", "pandas", "psutil", "pytorch_msssim", "scipy.stats"),
    *("skimage.data", "skimage.metrics", "skimage.restoration", "spandrel.architectures.DAT", "torchattacks", "tqdm"),
    *("torchvision.models", "torchvision.transforms.functional", "typer.testing"),
)
"""What takes long to import, here once for all mutants."""

State = Literal["killed", "survived"]


class MutantError(Exception):
    """The table does not fit the package, or a test does not pass without any mutant."""


@dataclass(frozen=True)
class Mutant:
    """`old` in `file` becomes `new`; `tests` should fail then."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        """File and change on one line."""
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{self.file}: {old} -> {new or '(nothing)'}"

    @property
    def source(self) -> str:
        """The file's text with the mutant in it. Raises MutantError where the old text is not there exactly once."""
        text = (ROOT / self.file).read_text(encoding="utf-8")
        if (times := text.count(self.old)) != 1:
            raise MutantError(f"{TABLE.name}: {self.name}: the old text stands {times} times in {self.file}; mend it")
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant."""

    mutant: str
    state: State


def read_table(path: Path = TABLE) -> list[Mutant]:
    """All mutants, in the table's order. Raises MutantError."""
    groups = tomllib.loads(path.read_text(encoding="utf-8"))["file"]
    found = [Mutant(g["path"], old, new, tuple(g["tests"])) for g in groups for old, new in g["mutants"]]
    for mutant in found:
        compile(mutant.source, mutant.file, "exec")
    return found


class _Source(SourceFileLoader):
    """Loads a module from another text than its file's, and never from or into a compiled file."""

    def __init__(self, name: str, path: str, text: str) -> None:
        super().__init__(name, path)
        self.text = text

    def path_stats(self, path: object) -> dict[str, int]:
        raise OSError(f"{path} is not what is imported")

    def get_data(self, path: object) -> bytes:
        return self.text.encode()


class _Finder(MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self.name = mutant.file.removesuffix(".py").replace("/", ".")
        self.text = mutant.source

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        spec = PathFinder.find_spec(name, path, target)  # type: ignore[arg-type]
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _Source(name, spec.origin, self.text)
        return spec


def import_the_rest() -> None:
    """Import all that package and tests import, and forget the package itself."""
    for name in ("benchsr.cli", "benchsr.site", *OTHERS):
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.split(".")[0] == "benchsr"]:
        del sys.modules[name]
    gc.freeze()  # each copy's pytest collects garbage, and need not go through all of that


def run_tests(tests: tuple[str, ...], mutant: Mutant | None = None) -> int:
    """The exit code of pytest on `tests` in a forked copy of this process; negative: the signal that ended it."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 70  # of a process whose own code failed
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        signal.alarm(SECONDS)
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(quiet, stream)
        if mutant:
            sys.meta_path.insert(0, _Finder(mutant))
        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
    finally:
        os._exit(code)


def judge(mutant: Mutant) -> Verdict:
    """Whether the tests notice `mutant`. Raises MutantError where they do not even begin."""
    code = run_tests(mutant.tests, mutant)
    if code not in (0, 1, -signal.SIGXCPU, -signal.SIGKILL):
        raise MutantError(f"{mutant.name}: pytest ended with {code}: it is no fair mutant, or {mutant.tests} are amiss")
    return Verdict(mutant.name, "killed" if code else "survived")


def verdicts(mutants: list[Mutant]) -> Iterator[Verdict]:
    """Judge all. Raises MutantError where tests fail without any mutant."""
    import_the_rest()
    for tests in dict.fromkeys(mutant.tests for mutant in mutants):
        if code := run_tests(tests):
            raise MutantError(f"{' '.join(tests)}: pytest ends with {code} without any mutant; mend that first")
    yield from map(judge, mutants)


if __name__ == "__main__":
    os.chdir(ROOT)
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    for verdict in verdicts([mutant for mutant in read_table() if word in mutant.name]):
        print(json.dumps(asdict(verdict)), flush=True)
