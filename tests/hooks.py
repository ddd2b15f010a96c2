"""What is done to a command from within before it begins: `prepare` of `forks.Forks.start`. Imports nothing heavy."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any


def checkpoint_often() -> None:
    """Training keeps a checkpoint every few steps, not every minute."""
    from benchsr.train import loop

    loop.Job = partial(loop.Job, checkpoint_seconds=0.05)  # type: ignore[assignment, misc]


def clock_set_back(seconds: float, at: int) -> None:
    """From the `at`th question for the time on, the clock is so much behind."""
    asked = itertools.count()
    real, real_ns = time.time, time.time_ns

    def behind() -> float:
        return seconds if next(asked) >= at else 0.0

    time.time = lambda: real() - behind()
    time.time_ns = lambda: real_ns() - int(behind() * 1e9)


def results_changed(how: str, step: str, at: int) -> None:
    """Another program changes results.csv before the `at`th line is added, or after it was read `at` times."""
    from benchsr.evaluation import ledger
    from benchsr.results.records import append_record as append

    counted = itertools.count(1)
    read = ledger.read_ledger

    def reading(folder: Path) -> Any:
        found = read(folder)
        if step == "read" and next(counted) == at:
            CHANGES[how](folder / "results.csv")
        return found

    def appending(path: Path, *given: Any) -> None:
        if step == "append" and next(counted) == at:
            CHANGES[how](path)
        append(path, *given)

    ledger.read_ledger = reading
    ledger.append_record = appending  # type: ignore[assignment, attr-defined]


def cache_changed(how: str) -> None:
    """Another program changes every second entry of the cache once it is there."""
    from benchsr.evaluation.cache import AttackCache

    counted, put = itertools.count(), AttackCache.put
    whole: list[Path] = []

    def putting(self: AttackCache, key: str, *given: Any) -> None:
        put(self, key, *given)
        path = Path(self.path(key))
        if not path.is_file():
            return
        if next(counted) % 2 == 0:
            whole.append(path)
        elif how == "another entry's":
            path.write_bytes(whole[-1].read_bytes())
        else:
            CHANGES[how](path)

    AttackCache.put = putting  # type: ignore[assignment, method-assign]


def _replaced(path: Path) -> None:
    """By an older copy, as git and rsync do."""
    copy = path.with_name("copy-of-another-program")
    copy.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-3]))
    copy.replace(path)


def _other_figures(path: Path) -> None:
    lines = path.read_text().splitlines()
    fields = lines[-1].split(",")
    fields[7] = "99.0"
    path.write_text("\n".join([*lines[:-1], ",".join(fields), ""]))


def _with_a_line(path: Path) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[-1].replace("toy-", "rival-"), ""]))


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def _made_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


CHANGES: dict[str, Callable[[Path], object]] = {
    "a line more": _with_a_line,
    "another figure": _other_figures,
    "an older copy": _replaced,
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "removed": lambda path: path.unlink(),
    "rubbish at its end": lambda path: path.open("ab").write(b"\xff\x00,rubbish\n\n,,"),
    "a bit flipped": _flipped,
    "a folder": _made_a_folder,
}
"""What another program does to a file."""
