"""The folder of one leaderboard: what stands in it, and who may change it.

results.csv holds a line for each evaluation, protocol.json the settings that all of them were made with,
environments.json the machines and versions that single lines name, timings.csv the seconds that they took, singles.csv
the scores of single noisy answers. Nothing else writes these five.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from benchsr.base.errors import InputError
from benchsr.base.files import digest, locked, sweep, write_atomic
from benchsr.base.schema import read_json
from benchsr.evaluation.protocol import CODE_VERSION, Protocol
from benchsr.results.records import (
    Record,
    Status,
    append_record,
    append_timing,
    read_results,
    read_timings,
    write_results,
    write_timings,
)
from benchsr.results.singles import append_singles, read_singles, write_singles
from benchsr.threats.table import THREATS

log = logging.getLogger(__name__)

FILES = ("results.csv", "protocol.json", "environments.json", "timings.csv", "singles.csv")

PACKAGES = ("benchsr", "torch", "torchvision", "torchattacks", "lpips", "spandrel", "scikit-image", "numpy")
"""Packages whose versions an environment names: those that compute figures."""


def environment(device: torch.device, plugins: Iterable[str] = ()) -> dict[str, Any]:
    """What a figure may hang on beside protocol, data and weights: versions, device and processor.

    `plugins`: packages that bring entries, with their versions ("my-package 1.0").
    """
    gpu = device.type == "cuda"
    others = dict(sorted(plugin.rsplit(" ", 1) for plugin in set(plugins)))
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}, **others},
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "processor": torch.backends.cpu.get_cpu_capability(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


class _Stored(BaseModel):
    """What protocol.json must say."""

    protocol: Protocol
    fingerprint: str


def stored_protocol(folder: Path) -> tuple[Protocol, str]:
    """The protocol that the results in `folder` were made with, and its fingerprint.

    Raises InputError where there are no results, or protocol.json does not tell.
    """
    path = folder / "protocol.json"
    if not (folder / "results.csv").exists():
        raise InputError(f"{folder / 'results.csv'} does not exist; make it with: benchsr run")
    fix = (
        f"it says what {folder / 'results.csv'} was made with: bring it back, or move the results away and run the "
        "benchmark again"
    )
    told = read_json(path, _Stored, fix)
    return told.protocol, told.fingerprint


def read_ledger(folder: Path) -> list[Record]:
    """The records of results.csv with their timings and single answers; of damaged lines the log tells.

    An evaluation whose single answers are lost counts as not done. Raises InputError.
    """
    records, problems = read_results(folder / "results.csv")
    for problem in problems:
        log.warning("%s: %s", folder / "results.csv", problem)
    timings, singles = read_timings(folder / "timings.csv"), read_singles(folder / "singles.csv")
    whole = [r for r in records if r.key in singles or not _has_singles(r)]
    return [replace(record, singles=singles.get(record.key), **timings.get(record.key, {})) for record in whole]


def _has_singles(record: Record) -> bool:
    """Whether singles.csv must have a line for the record."""
    threat = THREATS.get(record.threat)
    return record.status is Status.OK and threat is not None and "singles" in threat.preset


class Ledger:
    """The leaderboard in `folder` under `protocol`, open for lines computed in `made_in` (see `environment`).

    Runs of equal settings share it: each change is made under a lock. Results of other settings are moved aside when it
    is opened, under a name that was never used before, and never mixed in.
    """

    def __init__(self, folder: Path, protocol: Protocol, made_in: Mapping[str, Any]) -> None:
        self.folder = folder
        self.protocol = protocol
        self.made_in = dict(made_in)
        self.environment = digest(self.made_in)[:12]
        self.results = folder / "results.csv"
        self.timings = folder / "timings.csv"
        self.singles = folder / "singles.csv"

    def open(self) -> list[Record]:
        """Take the folder over for this protocol; returns what it holds already."""
        told: dict[str, Any] = {"fingerprint": self.protocol.fingerprint, "code": CODE_VERSION}
        told |= {"metrics": versions} if (versions := self.protocol.metrics.versions) else {}
        text = json.dumps({**told, "protocol": self.protocol.model_dump(mode="json")}, indent=2) + "\n"
        with locked(self.results):
            sweep(self.folder, FILES)
            before = self._fingerprint()
            if self.results.exists() and before != self.protocol.fingerprint:
                stamp = f"{before[:8]}-{_stamp()}"
                aside = _unused(self.folder, f"results-{stamp}", ".csv")
                for file in (self.folder / "protocol.json", self.timings, self.singles):
                    if file.exists():
                        file.replace(_unused(self.folder, f"{file.stem}-{stamp}", file.suffix))
                self.results.replace(aside)
                log.warning("%s was made with other settings; it is kept as %s", self.results, aside.name)
            if before != self.protocol.fingerprint:
                write_atomic(self.folder / "protocol.json", text)
            return read_ledger(self.folder) if self.results.exists() else []

    def append(self, record: Record) -> Record:
        """Add a line computed now, with the environment that made it; returns it so."""
        named = replace(record, environment=self.environment)
        with locked(self.results):
            self._require_ours()
            self._name_environment()
            if named.singles:
                append_singles(self.singles, named.key, named.singles, self.protocol.metrics.names)
            append_record(self.results, named, self.protocol.metrics.names)
            append_timing(self.timings, named)
        return named

    def retire(self, today: Mapping[Identity, Set[str]]) -> None:
        """Move figures aside that were made with other weights, data or settings than today's.

        `today`: (model, threat, image) -> keys, for each evaluation whose key can be told today. A line of which
        nothing can be told, such as of a card that is not at hand, stays.
        """
        with locked(self.results):
            self._require_ours()
            known = read_ledger(self.folder) if self.results.exists() else []
            told = {(model, threat) for model, threat, image in today if image}
            outdated = [
                r for r in known if (r.model, r.threat) in told and r.key not in today.get(identity(r), frozenset())
            ]
            if not outdated:
                return
            if figures := [record for record in outdated if record.status is Status.OK]:
                stamp = _stamp()
                aside = _unused(self.folder, f"results-outdated-{stamp}", ".csv")
                write_results(aside, figures, self.protocol.metrics.names)
                write_timings(_unused(self.folder, f"timings-outdated-{stamp}", ".csv"), figures)
                self._write_singles(_unused(self.folder, f"singles-outdated-{stamp}", ".csv"), figures)
                models = ", ".join(sorted({record.model for record in figures}))
                log.warning(
                    "%d figures of %s were made with other weights, data or settings than today's; they are kept as %s",
                    *(len(figures), models, aside.name),
                )
            gone = {(identity(record), record.key) for record in outdated}
            self._revise(lambda found: [r for r in found if (identity(r), r.key) not in gone])

    @contextmanager
    def merged(self, planned: Sequence[Record], done: Mapping[str, Record]) -> Iterator[list[Record]]:
        """Write the lines of this run (`done`: those that have figures, by key) beside those of others; gives all.

        Figures of what cannot be had any more stay as they are. Until the block ends no other run can add to them, so
        that what it derives from them is of the newest.
        """
        with locked(self.results):
            self._require_ours()

            def beside_ours(known: Sequence[Record]) -> list[Record]:
                by_key = {r.key: r for r in known if r.status is Status.OK} | dict(done)
                figures = {(r.model, r.threat) for r in by_key.values() if r.status is Status.OK}
                ours = [
                    replace(by_key.get(r.key, r), model=r.model, threat=r.threat, network=r.network)
                    for r in planned
                    if r.status is not Status.UNAVAILABLE or (r.model, r.threat) not in figures
                ]
                mine, pairs = {identity(r) for r in ours}, {(r.model, r.threat) for r in ours}
                # A model that failed or was unavailable as a whole has one line, without an image.
                earlier = [r for r in known if r.status is Status.OK or (r.model, r.threat) not in pairs]
                return [r for r in earlier if identity(r) not in mine] + ours

            records = self._revise(beside_ours)
            write_timings(self.timings, records)
            self._write_singles(self.singles, records)
            yield read_ledger(self.folder)  # in the file's order and digits: a later report is of the same

    def _revise(self, revise: Callable[[Sequence[Record]], list[Record]]) -> list[Record]:
        """Write what `revise` makes of the lines that stand there; again where other programs change them meanwhile.

        Our own runs wait for the lock, but editors, git and rsync do not.
        """
        while True:
            before = _version(self.results)
            records = revise(read_ledger(self.folder) if before else [])
            if _version(self.results) == before:
                self._write(records)
                return records

    def _write(self, records: Sequence[Record]) -> None:
        write_results(self.results, records, self.protocol.metrics.names)

    def _write_singles(self, path: Path, records: Sequence[Record]) -> None:
        found = {record.key: record.singles for record in records if record.singles}
        write_singles(path, found, self.protocol.metrics.names)

    def _name_environment(self) -> None:
        path = self.folder / "environments.json"
        try:
            named = read_json(path, dict[str, Any], "")
        except InputError:
            named = {}
        if self.environment not in named:
            write_atomic(path, json.dumps({**named, self.environment: self.made_in}, indent=2) + "\n")

    def _fingerprint(self) -> str:
        try:
            return str(read_json(self.folder / "protocol.json", dict[str, Any], "").get("fingerprint", "unknown"))
        except InputError:
            return "unknown"

    def _require_ours(self) -> None:
        if self._fingerprint() != self.protocol.fingerprint:
            raise InputError(
                f"{self.folder} was taken over by a run with other settings, which moved these results aside; give one "
                "of them another --out, and run this command again"
            )


Identity = tuple[str, str, str]
"""Model, threat and image: what at most one line of results.csv is about."""


def identity(record: Record) -> Identity:
    """What the line is about."""
    return record.model, record.threat, record.image


def _version(path: Path) -> tuple[int, int, int] | None:
    """What changes whenever a file is written or replaced; None where there is none."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S")


def _unused(folder: Path, stem: str, suffix: str) -> Path:
    """A file of `folder` that is not there yet."""
    path, number = folder / f"{stem}{suffix}", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}{suffix}"
    return path
