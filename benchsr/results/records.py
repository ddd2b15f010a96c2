"""One evaluation as one line of results.csv, the file that every table, plot and claim is derived from."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from benchsr.base.errors import InputError
from benchsr.base.files import write_atomic


class Status(StrEnum):
    """What became of one planned evaluation."""

    OK = "ok"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"


@dataclass(frozen=True)
class Record:
    """One line of results.csv: one model under one threat on one image. Fields that were not computed are None.

    `attack_linf` and `attack_l2` are norms of the perturbation in [0, 1] units; `loss_*` is the attack's objective
    before and after; `environment` names an entry of environments.json. `key` hashes everything that can change a
    figure of this row, and comes last so that a line cut short can never be mistaken for a whole one. `seconds_*`,
    wall-clock seconds per image, differ from run to run: they stand in timings.csv, not in results.csv.
    """

    protocol: str
    dataset: str
    model: str
    threat: str
    image: str
    status: Status
    reason: str = ""
    psnr: float | None = None
    ssim: float | None = None
    lpips: float | None = None
    attack_linf: float | None = None
    attack_l2: float | None = None
    loss_clean: float | None = None
    loss_attacked: float | None = None
    seconds_attack: float | None = None
    seconds_sr: float | None = None
    health: str = ""
    seed: int = 0
    environment: str = ""
    key: str = ""


TIMINGS = ("seconds_attack", "seconds_sr")
"""Fields that timings.csv holds."""

COLUMNS = tuple(field.name for field in fields(Record) if field.name not in TIMINGS)
"""The columns of results.csv, in order. `key` comes last: a line that was cut short lacks its 64 characters."""

_NUMBERS = tuple(field.name for field in fields(Record) if field.default is None and field.name not in TIMINGS)

_KEY = re.compile(r"[0-9a-f]{64}")

_RECORD = TypeAdapter(Record)


def read_results(path: Path) -> tuple[list[Record], list[str]]:
    """Read results.csv: its records, and a sentence about every line that had to be dropped.

    A line is dropped where it is cut short, is not CSV, or holds a value that no Record can have. Of lines about the
    same (model, threat, image) the last one counts. A header that was cut short is reported too. Raises InputError
    where the file cannot be read, or where its header names other columns.
    """
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    header, *lines = text.split("\n")
    expected, problems = ",".join(COLUMNS), []
    if header.rstrip("\r") != expected:
        if not expected.startswith(header):
            raise InputError(f"{path}: not a results file of this version: {_differences(header)}; move it away")
        problems.append("line 1: the header was cut short")
    found: dict[tuple[str, str, str], Record] = {}
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        try:
            record = _parse(line)
        except ValueError as error:
            problems.append(f"line {number} dropped: {error}")
            continue
        identity = (record.model, record.threat, record.image)
        found.pop(identity, None)
        found[identity] = record
    return list(found.values()), problems


def write_results(path: Path, records: Iterable[Record]) -> None:
    """Write results.csv atomically, its lines sorted by model, threat and image.

    Figures keep 9 significant digits. Text is brought onto one line. Raises InputError for an unwritable folder.
    """
    ordered = sorted(records, key=lambda r: (r.model, r.threat, r.image))
    write_atomic(path, _line(COLUMNS) + "".join(map(_format, ordered)))


def append_record(path: Path, record: Record) -> None:
    """Append one record, on a fresh line even where an interrupted run left the last one unfinished; flushed at once.

    A file that is missing or empty gets its header first. Raises InputError where the file cannot be written.
    """
    _append(path, COLUMNS, record)


def append_timing(path: Path, record: Record) -> None:
    """Append the seconds of one record to timings.csv, as `append_record` does."""
    _append(path, (*TIMINGS, "key"), record)


def write_timings(path: Path, records: Iterable[Record]) -> None:
    """Write timings.csv atomically: key and seconds of each record that has any. Raises as `write_results`."""
    columns = (*TIMINGS, "key")
    lines = sorted({_format(r, columns) for r in records if r.seconds_attack is not None or r.seconds_sr is not None})
    write_atomic(path, _line(columns) + "".join(lines))


def read_timings(path: Path) -> dict[str, dict[str, Any]]:
    """Key -> seconds by name; lines that cannot be read, and a missing file, hold none: no figure hangs on them."""
    found: dict[str, dict[str, Any]] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    except OSError:
        return found
    for values in csv.reader(lines):
        try:
            *seconds, key = values
            found[key] = {name: float(value) for name, value in zip(TIMINGS, seconds, strict=True) if value}
        except ValueError:
            continue
    return found


def _append(path: Path, columns: Sequence[str], record: Record) -> None:
    try:
        with path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(-1, os.SEEK_END)
            start = _line(columns) if not size else "" if file.read(1) == b"\n" else "\n"
            file.write((start + _format(record, columns)).encode())
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def _format(record: Record, columns: Sequence[str] = COLUMNS) -> str:
    values = (getattr(record, name) for name in columns)
    return _line("" if v is None else f"{v:.9g}" if isinstance(v, float) else " ".join(str(v).split()) for v in values)


def _line(values: Iterable[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()


def _parse(line: str) -> Record:
    """The record of one line. Raises ValueError saying what is wrong with it."""
    try:
        values = next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise ValueError(f"not CSV ({error})") from None
    if len(values) != len(COLUMNS):
        raise ValueError(f"{len(values)} of {len(COLUMNS)} fields")
    row = dict(zip(COLUMNS, values, strict=True))
    if not _KEY.fullmatch(row["key"]):
        raise ValueError("its key is not 64 hexadecimal characters")
    try:
        record = _RECORD.validate_python({k: v if v or k not in _NUMBERS else None for k, v in row.items()})
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{first['loc'][0]}: {first['msg']}") from None
    for name in _NUMBERS:
        if math.isnan(getattr(record, name) or 0.0):
            raise ValueError(f"{name} is not a number")
    return record


def _differences(header: str) -> str:
    names = header.rstrip("\r").split(",")
    missing, unknown = [c for c in COLUMNS if c not in names], [n[:40] for n in names if n not in COLUMNS]
    parts = [f"no column {', '.join(missing)}"] * bool(missing) + [f"unknown {', '.join(unknown[:5])}"] * bool(unknown)
    return "; ".join(parts) or "columns in another order"
