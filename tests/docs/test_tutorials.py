"""The tutorials do what they say: their files, Python and bash are followed in order, in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

from benchsr.cli import main

FOLDER = Path(__file__).parents[2] / "docs" / "tutorials"
NEEDS = {"cluster": "ray", "training": "accelerate"}


def run_bash(example: Example) -> None:
    """Commands of benchsr run in this process: importing torch for each would take most of the time."""
    for line in example.parsed.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] != ["benchsr"]:
            subprocess.run(["bash", "-euc", line], check=True)
            continue
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as stopped:
                main()
        assert not stopped.value.code, f"{example.path}:{example.line}: {line} exited with {stopped.value.code}"


TITLED = RawFencedCodeBlockLexer(re.compile(r'toml title="(?P<name>[a-z-]+\.toml)"$\n', re.MULTILINE))


def titled_files(document: Document) -> Iterator[Region]:
    """A block of TOML with a title is the file of that name."""
    for region in TITLED(document):
        region.parsed, region.evaluator = region.lexemes["source"], write_file
        yield region


def write_file(example: Example) -> None:
    Path(example.region.lexemes["name"]).write_text(example.parsed, encoding="utf-8")


PAGES = Sybil([PythonCodeBlockParser(), CodeBlockParser("bash", run_bash), titled_files], path=str(FOLDER))


@pytest.fixture
def beginner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder but for the tutorials' protocol, made the working directory."""
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    folder = tmp_path / "work"
    folder.mkdir()
    shutil.copy(FOLDER / "rehearsal.toml", folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("page", sorted(path.stem for path in FOLDER.glob("*.md")))
def test_tutorial(page: str, beginner: Path, request: pytest.FixtureRequest) -> None:
    if page in NEEDS:
        needed = pytest.importorskip(NEEDS[page])
        request.addfinalizer(getattr(needed, "shutdown", lambda: None))  # Ray's; other tests start their own
    if page == "training":  # Accelerate keeps the precision that a process asked for first, here maybe another test's
        reset = needed.state.AcceleratorState._reset_state
        reset()
        request.addfinalizer(reset)
    examples = list(PAGES.parse(FOLDER / f"{page}.md").examples())
    assert examples, f"{page}.md shows nothing that runs"
    for example in examples:
        example.evaluate()
